//! Reads and edits the few request fields that matter, in place, in one pass, without building a tree.

use super::catalog::Capabilities;
use super::dialect::Endpoint;
use bytes::Bytes;
use std::ops::Range;

/// What a request body says. Ranges index the body it was read from.
#[derive(Debug, Clone, Default)]
pub struct Peek {
    /// The model's name, unescaped.
    pub model: Option<String>,
    /// The value (with its quotes) of the last top-level `model`; in multipart the part's content.
    pub model_at: Option<Range<usize>>,
    /// `"stream": true`.
    pub stream: bool,
    /// The client asked for usage itself (`stream_options.include_usage` is true).
    pub include_usage: bool,
    /// The value of `stream_options`, when present.
    pub stream_options_at: Option<Range<usize>>,
    /// The requested output cap (the smallest of `max_tokens`, `max_completion_tokens`, `max_output_tokens`), with the name and place of each.
    pub max_output: Option<u64>,
    /// The places of the output caps' values.
    pub max_output_at: Vec<Range<usize>>,
    /// `n` (and `best_of`), 1 when absent.
    pub choices: u64,
    /// What the target must be able to do.
    pub needs: Capabilities,
    /// Bytes of text the model will read (messages, tools, input), images and audio not counted: the base of the token estimate.
    pub text_bytes: u64,
    /// Image parts in the prompt.
    pub images: u64,
    /// Hash of the system prompt and the tools, for stickiness.
    pub prefix_hash: u64,
    /// `service_tier`, when asked.
    pub service_tier: Option<String>,
    /// Just behind the opening brace: where a missing field is put.
    pub insert_at: usize,
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
#[derive(Debug, Clone, Default)]
pub struct Edits<'a> {
    /// Replace the model's name.
    pub model: Option<&'a str>,
    /// Ask for usage in the stream.
    pub include_usage: bool,
    /// Lower every cap above this to it, or set the endpoint's cap field when there is none.
    pub max_output: Option<u64>,
}

/// Reads a JSON body.
pub fn json(_endpoint: Endpoint, _body: &[u8]) -> Result<Peek, BadBody> {
    todo!()
}

/// Reads a `multipart/form-data` body (`content_type` holds the boundary).
pub fn multipart(_content_type: &str, _body: &[u8]) -> Result<Peek, BadBody> {
    todo!()
}

/// The body with the edits, as slices of the original and small inserts in order; every other byte is as it came.
/// Without an edit: the body alone.
pub fn edit(_endpoint: Endpoint, _body: &Bytes, _peek: &Peek, _edits: &Edits<'_>, _out: &mut Vec<Bytes>) {
    todo!()
}
