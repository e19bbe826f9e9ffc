//! Reads and edits the few request fields that matter, in place, in one pass, without building a tree.
//!
//! [`json`] and [`multipart`] validate a body and say where the fields stand; [`edit`] replaces them. Every byte that no edit
//! asks for travels as it came: key order, number formats, unknown members, whitespace. Where a name is written twice the last
//! value holds, as in most parsers, and a replacement replaces every one, so that no parser behind sees another model.

mod edit;
mod multipart;
mod read;
mod scan;
#[cfg(test)]
mod tests;

pub use edit::edit;
pub use multipart::multipart;
pub use read::json;
pub use scan::DEPTH_MAX;

use super::catalog::Capabilities;
use bytes::Bytes;
use smallvec::SmallVec;
use std::fmt;
use std::ops::Range;

/// Bytes of a model's name (and of the other words kept) at most: it is looked up, echoed in a refusal and written to the ledger.
/// A longer one is a wrong type. The longest names in providers' lists are below 100.
pub const NAME_MAX: usize = 512;

/// What a request body says. Ranges index the body it was read from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Peek {
    /// The model's name, unescaped. Always there in a body that was read.
    pub model: Option<String>,
    /// The value (with its quotes) of every top-level `model`, the last one is the one that holds; in multipart the part's content.
    pub model_at: SmallVec<[Range<usize>; 1]>,
    /// `"stream": true`.
    pub stream: bool,
    /// The client asked for usage itself (`stream_options.include_usage` is true).
    pub include_usage: bool,
    /// The value of `stream_options`, when present.
    pub stream_options_at: Option<Range<usize>>,
    /// The requested output cap: the smallest of the endpoint's caps that hold.
    pub max_output: Option<u64>,
    /// Every output cap the endpoint knows, in the order written.
    pub caps: SmallVec<[Cap; 1]>,
    /// The larger of `n` and `best_of`, 1 when absent.
    pub choices: u64,
    /// What the target must be able to do.
    pub needs: Capabilities,
    /// Bytes of text the model will read (messages, tools, input), unescaped, images and audio not counted: the base of the
    /// token estimate.
    pub text_bytes: u64,
    /// Prompt tokens given as token ids (completions, embeddings).
    pub token_ids: u64,
    /// Messages or input items, each of which costs a few tokens of framing.
    pub messages: u64,
    /// Image parts in the prompt.
    pub images: u64,
    /// Bytes of the uploaded files (multipart).
    pub file_bytes: u64,
    /// Hash of the system prompt and the tools, for stickiness; 0 when there is neither.
    pub prefix_hash: u64,
    /// `service_tier`, when asked.
    pub service_tier: Option<String>,
    /// `response_format` where it is a word (audio, images): `text`, `srt` and `vtt` are answered without JSON.
    pub response_format: Option<String>,
    /// What is asked and not to be had through here.
    pub unsupported: Option<Unsupported>,
    /// Just behind the opening brace: where a missing field is put.
    pub insert_at: usize,
}

/// A body to send, in order: one piece unless it is long.
pub type Pieces = SmallVec<[Bytes; 1]>;

/// An output cap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cap {
    /// `max_tokens`, `max_completion_tokens` or `max_output_tokens`.
    pub name: &'static str,
    /// Its value.
    pub at: Range<usize>,
    /// Tokens; `None` for `null`.
    pub value: Option<u64>,
}

/// What a body may ask of a provider and not of weir.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsupported {
    /// `models`: OpenRouter's own list of fallbacks, which no policy here has seen.
    OtherModels,
    /// `"background": true`: the answer comes without what it costs, which nobody tells afterwards.
    Background,
    /// A field that matters in another case (`Model`): some servers take it for the field.
    Misspelt(&'static str),
}

/// Why a body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadBody {
    /// Not JSON; the byte offset and what was expected there.
    Json(usize, &'static str),
    /// JSON, but not an object.
    NotAnObject,
    /// No `model`, or not a string.
    NoModel,
    /// A field has the wrong type.
    WrongType(&'static str),
    /// Multipart without a usable boundary or unterminated.
    Multipart(&'static str),
}

/// What to change before sending a body on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits<'a> {
    /// Replace the model's name.
    pub model: Option<&'a str>,
    /// Ask for usage in the stream (chat and text completions; elsewhere there is nothing to ask).
    pub include_usage: bool,
    /// Lower every cap above this to it, or set one when none holds.
    pub max_output: Option<u64>,
    /// The name of the cap to set when none holds (`max_completion_tokens` for reasoning models); empty: the endpoint's usual one.
    pub cap_field: &'a str,
}

impl Peek {
    /// The caps that hold: the last of each name, unless it is `null`.
    pub fn effective_caps(&self) -> impl Iterator<Item = u64> + '_ {
        self.caps
            .iter()
            .enumerate()
            .filter(|(index, cap)| self.caps[index + 1..].iter().all(|later| later.name != cap.name))
            .filter_map(|(_, cap)| cap.value)
    }
}

impl fmt::Display for BadBody {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadBody::Json(at, expected) => write!(out, "the body is not valid JSON: expected {expected} at byte {at}"),
            BadBody::NotAnObject => out.write_str("the body must be a JSON object"),
            BadBody::NoModel => out.write_str("the body must name a model"),
            BadBody::WrongType(field) => write!(out, "{field} has the wrong type"),
            BadBody::Multipart(what) => write!(out, "the body is not valid multipart/form-data: {what}"),
        }
    }
}

impl std::error::Error for BadBody {}
