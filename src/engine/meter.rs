//! Bytes in, usage out. A meter watches one answer and ends exactly once.

use super::dialect::Endpoint;
use super::provider::Kind;
use super::tokens::{Family, Stream};
use super::usage::{Source, Usage};
use bytes::Bytes;

/// What a meter must know about the attempt it watches.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    /// Whose format the answer has.
    pub endpoint: Endpoint,
    /// Whose habits its usage has.
    pub kind: Kind,
    /// How its text is counted when the provider is silent.
    pub family: Family,
    /// Take the usage event out again: we asked for it, the client did not.
    pub strip_usage: bool,
}

/// An error the upstream sent inside a stream or as a body. Never shown unscrubbed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpstreamError {
    /// Its `code` or `type`, lower case.
    pub code: String,
    /// Its message (bounded).
    pub message: String,
}

/// Watches a stream of server-sent events.
#[derive(Debug)]
pub struct StreamMeter {
    watch: Watch,
}

/// What an answer came to.
#[derive(Debug, Default)]
pub struct Tally {
    /// Disjoint counts, as far as the provider reported them.
    pub usage: Usage,
    /// Where they came from; `Counted` and `Mixed` once [`Tally::count`] filled gaps.
    pub source: Source,
    /// The provider reported final usage.
    pub reported: bool,
    /// The model the answer names.
    pub model: Option<String>,
    /// The service tier the answer names.
    pub service_tier: Option<String>,
    /// The provider's own cost in pico-dollars (OpenRouter's `usage.cost`).
    pub reported_cost: Option<super::money::Usd>,
    /// The stream's normal end mark was seen (`[DONE]`, `message_stop`, `response.completed`).
    pub ended: bool,
    /// The parts were inconsistent (details larger than totals); totals won.
    pub inconsistent: bool,
    /// The last error seen.
    pub error: Option<UpstreamError>,
}

impl StreamMeter {
    /// A new meter.
    pub fn new(watch: Watch) -> StreamMeter {
        StreamMeter { watch }
    }
    /// Takes upstream bytes; appends what the client is to get, in order, to `out` (usually the chunk itself).
    pub fn feed(&mut self, _chunk: Bytes, _out: &mut Vec<Bytes>) {
        todo!()
    }
    /// Events (not comments) seen so far. The first one commits an attempt.
    pub fn events(&self) -> u64 {
        todo!()
    }
    /// The error event seen, if any.
    pub fn error(&self) -> Option<&UpstreamError> {
        todo!()
    }
    /// The normal end mark was seen.
    pub fn ended(&self) -> bool {
        todo!()
    }
    /// A bound on the output tokens so far that needs no tokenizer: bytes of generated text.
    pub fn output_at_most(&self) -> u64 {
        todo!()
    }
    /// Output tokens so far by the tokenizer (may load it).
    pub fn output_counted(&mut self) -> u64 {
        todo!()
    }
    /// Bytes held back that the client must still get (a partial event at the end of the stream).
    pub fn flush(&mut self, _out: &mut Vec<Bytes>) {
        todo!()
    }
    /// Ends the watch: what was reported, and the text counter for what was not.
    pub fn finish(self) -> (Tally, Stream) {
        todo!()
    }
}

impl Tally {
    /// Fills the gaps a provider left: input from `prompt_tokens` (our estimate), output from `text`. Sets the source.
    pub fn count(&mut self, _prompt_tokens: u64, _text: &mut Stream) {
        todo!()
    }
}

/// Reads a whole answer. `Err(())`: empty or not JSON where JSON is due.
#[allow(clippy::result_unit_err)]
pub fn whole(_watch: &Watch, _body: &[u8]) -> Result<(Tally, Stream), ()> {
    todo!()
}
