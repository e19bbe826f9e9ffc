//! Bytes in, usage out. A meter watches one answer and ends exactly once.
//!
//! What comes in goes out as slices of the same chunks, at once. The one thing ever left out is the usage event, when we asked
//! for it and the client did not; only to be able to do that is an event that is still coming in held back, and only after a
//! finish reason: before it no usage event can come. When several choices stream at once their text is counted as one, in the order
//! it came, which may differ by a token or so at each change.

use super::dialect::reading::Reading;
use super::dialect::reported::habits;
use super::dialect::{self, Dialect, Endpoint, Seen};
use super::provider::Kind;
use super::sse::Decoder;
use super::tokens::{Family, Stream};
use super::usage::{Bucket, Source, Usage};
use bytes::Bytes;

/// The error in the body of an answer with an error status.
pub use super::dialect::upstream_error as error_of;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;

/// A partial event longer than this is no usage event (those are some hundred bytes) and goes out without being looked at first.
const MAX_HELD_BYTES: usize = 16 << 10;

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

/// Watches a stream of server-sent events, or another body that is passed on as it comes.
#[derive(Debug)]
pub struct StreamMeter {
    watch: Watch,
    decoder: Decoder,
    reading: Reading,
    framing: Framing,
    events: u64,
    /// The first of them was an error.
    began_with_error: bool,
    /// The event that is coming in, while it may be the usage event.
    held: Vec<Bytes>,
    held_bytes: usize,
    /// Bytes of the event that is coming in have gone out, so the rest must.
    partly_out: bool,
    /// The last event was left out; the line feed that completes its CRLF is, too.
    left_out: bool,
}

/// How the watched bytes are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// Server-sent events.
    Events,
    /// One body: audio, or JSON too large to be held.
    Body,
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
    /// A new meter for a stream of events.
    pub fn new(watch: Watch) -> StreamMeter {
        StreamMeter::framed(watch, Framing::Events, Reading::of_stream(watch.endpoint, watch.family))
    }

    /// A new meter for a body that is passed on as it comes and is no event stream: audio, or JSON too large to be held. Usage
    /// is looked for at its end.
    pub fn of_body(watch: Watch) -> StreamMeter {
        StreamMeter::framed(watch, Framing::Body, Reading::of_whole(watch.endpoint, Some(Stream::new(watch.family))))
    }

    fn framed(watch: Watch, framing: Framing, reading: Reading) -> StreamMeter {
        StreamMeter {
            watch,
            decoder: Decoder::default(),
            reading,
            framing,
            events: 0,
            began_with_error: false,
            held: Vec::new(),
            held_bytes: 0,
            partly_out: false,
            left_out: false,
        }
    }

    /// Takes upstream bytes; appends what the client is to get, in order, to `out` (usually the chunk itself).
    pub fn feed(&mut self, chunk: Bytes, out: &mut Vec<Bytes>) {
        if self.framing == Framing::Body {
            return self.feed_body(chunk, out);
        }
        // The chunk's bytes from here on have found no way out yet.
        let mut keep = 0;
        let mut at = 0;
        if self.decoder.takes_line_feed(&chunk) {
            at = 1;
            if self.left_out {
                keep = 1;
            }
        }
        loop {
            let start = at;
            let Some(block) = self.decoder.next(&chunk, &mut at) else {
                return self.forward_rest(chunk, keep, start, out);
            };
            let seen = block.map_or(Seen::Heartbeat, |event| dialect::event(&event, &mut self.reading));
            self.note(seen != Seen::Heartbeat);
            self.left_out = self.watch.strip_usage && seen == Seen::UsageOnly && !self.partly_out;
            self.partly_out = false;
            self.held_bytes = 0;
            if self.left_out {
                self.held.clear();
                push_slice(&chunk, keep, start, out);
                keep = at;
            } else {
                // What is held is the start of this event, so it stands before the whole chunk.
                out.append(&mut self.held);
            }
        }
    }

    /// Sends on what a chunk holds from `keep`; an event begins at `start` and is not complete.
    fn forward_rest(&mut self, chunk: Bytes, keep: usize, start: usize, out: &mut Vec<Bytes>) {
        let length = chunk.len();
        let partial_bytes = length - start;
        if partial_bytes == 0 {
            return push_slice(&chunk, keep, length, out);
        }
        let may_be_usage =
            self.watch.strip_usage && self.reading.finished && !self.partly_out && self.held_bytes + partial_bytes <= MAX_HELD_BYTES;
        if may_be_usage {
            push_slice(&chunk, keep, start, out);
            self.held_bytes += partial_bytes;
            self.held.push(chunk.slice(start..));
        } else {
            self.partly_out = true;
            self.held_bytes = 0;
            out.append(&mut self.held);
            push_slice(&chunk, keep, length, out);
        }
    }

    /// A body goes out as it comes; enough of it is kept to find the usage.
    fn feed_body(&mut self, chunk: Bytes, out: &mut Vec<Bytes>) {
        self.events += u64::from(self.events == 0 && !chunk.is_empty());
        if self.watch.endpoint != Endpoint::Speech {
            self.decoder.absorb(&chunk);
        }
        let length = chunk.len();
        push_slice(&chunk, 0, length, out);
    }

    /// Events (not comments) seen so far. The first one commits an attempt.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// What has gone out ends with an event, so that a comment may follow. Never in a body that is no event stream.
    pub fn is_between_events(&self) -> bool {
        self.framing == Framing::Events && !self.partly_out
    }

    /// Counts an event that was read.
    fn note(&mut self, is_event: bool) {
        self.began_with_error |= is_event && self.events == 0 && self.reading.error.is_some();
        self.events += u64::from(is_event);
    }

    /// The error that came before anything else, if one did, whatever has come behind it.
    pub fn error_at_first(&self) -> Option<&UpstreamError> {
        self.error().filter(|_| self.began_with_error)
    }

    /// What is watched are events; otherwise a body of another kind.
    pub fn is_of_events(&self) -> bool {
        self.framing == Framing::Events
    }

    /// The error event seen, if any.
    pub fn error(&self) -> Option<&UpstreamError> {
        self.reading.error.as_ref()
    }

    /// The normal end mark was seen.
    pub fn ended(&self) -> bool {
        self.reading.ended
    }

    /// Whether the stream may end here although its end mark is missing: some servers send none, so a finish reason will do; and
    /// an error event says by itself that this is no answer.
    pub fn may_end_without_mark(&self) -> bool {
        let is_openai = self.watch.endpoint.dialect() == Dialect::OpenAi;
        self.framing == Framing::Body || self.reading.error.is_some() || (is_openai && self.reading.finished)
    }

    /// A bound on the output tokens so far that needs no tokenizer: bytes of generated text.
    pub fn output_at_most(&self) -> u64 {
        self.text_at_most().max(self.reading.output_reported())
    }

    /// The same bound for the text alone, whatever the provider says it was.
    pub fn text_at_most(&self) -> u64 {
        // A token has at least one byte; the family's correction may make more of it.
        let per_mille = u64::from(self.watch.family.per_mille.max(1000));
        self.reading.text_bytes.saturating_mul(per_mille).div_ceil(1000)
    }

    /// Output tokens so far by the tokenizer (may load it).
    pub fn output_counted(&mut self) -> u64 {
        self.reading.text_mut().map_or(0, Stream::finish)
    }

    /// Bytes held back that the client must still get (a partial event at the end of the stream).
    pub fn flush(&mut self, out: &mut Vec<Bytes>) {
        let usage_only = self.read_last_event() == Seen::UsageOnly && !self.partly_out && self.watch.strip_usage;
        self.held_bytes = 0;
        if usage_only {
            self.held.clear();
        }
        out.append(&mut self.held);
    }

    /// Reads an event that has no blank line behind it.
    fn read_last_event(&mut self) -> Seen {
        let seen = self.decoder.end().map_or(Seen::Heartbeat, |event| dialect::event(&event, &mut self.reading));
        self.note(matches!(seen, Seen::Event | Seen::UsageOnly));
        seen
    }

    /// Ends the watch: what was reported, and the text counter for what was not.
    pub fn finish(mut self) -> (Tally, Stream) {
        match self.framing {
            Framing::Events => drop(self.read_last_event()),
            Framing::Body => dialect::kept_answer(self.decoder.absorbed(), &mut self.reading),
        }
        let text = self.reading.take_text().unwrap_or_else(|| Stream::new(self.watch.family));
        let mut tally = tally(&self.watch, self.reading);
        tally.usage.set(Bucket::Requests, u64::from(self.events > 0));
        (tally, text)
    }
}

impl Tally {
    /// Fills the gaps a provider left: input from `prompt_tokens` (our estimate), output from `text`. Sets the source.
    ///
    /// An error without any text or input leaves everything at 0: nothing was generated.
    pub fn count(&mut self, prompt_tokens: u64, text: &mut Stream) {
        if self.reported {
            self.source = Source::Upstream;
            return;
        }
        let input_reported = self.usage.input_tokens() > 0;
        let counted = text.finish();
        self.source = if input_reported { Source::Mixed } else { Source::Counted };
        let is_refused = self.error.is_some() && counted == 0;
        if !input_reported && !is_refused {
            self.usage.set(Bucket::Input, prompt_tokens);
        }
        // What the provider reported so far is a part of it, so the larger is the better.
        let missing = counted.saturating_sub(self.usage.output_tokens());
        self.usage.set(Bucket::Output, self.usage.of(Bucket::Output).saturating_add(missing));
    }
}

/// Reads a whole answer. `Err(())`: empty or not JSON where JSON is due.
#[allow(clippy::result_unit_err)]
pub fn whole(watch: &Watch, body: &[u8]) -> Result<(Tally, Stream), ()> {
    let text = Stream::new(watch.family);
    if body.is_empty() {
        return Err(());
    }
    let is_object = body.trim_ascii_start().first() == Some(&b'{');
    match watch.endpoint {
        Endpoint::Speech if !is_object => return Ok((accepted(watch, Reading::of_whole(watch.endpoint, None)), text)),
        Endpoint::Transcriptions | Endpoint::Translations if !is_object => {
            let mut reading = Reading::of_whole(watch.endpoint, Some(text));
            reading.generated_plain(body);
            let text = reading.take_text().unwrap_or_else(|| Stream::new(watch.family));
            return Ok((accepted(watch, reading), text));
        }
        _ => {}
    }
    // Most answers report their usage, and then nobody needs their text: it is read only in a second pass.
    let mut reading = Reading::of_whole(watch.endpoint, None);
    if !dialect::answer(body, &mut reading) {
        // A list of one error is JSON, too.
        reading.error = Some(dialect::error_in_answer(body).ok_or(())?);
        return Ok((accepted(watch, reading), text));
    }
    if reading.error.is_none() && !reading.is_output_reported() {
        reading.error = dialect::error_in_answer(body);
    }
    if reading.error.is_some() || reading.is_output_reported() {
        return Ok((accepted(watch, reading), text));
    }
    let mut reading = Reading::of_whole(watch.endpoint, Some(text));
    dialect::answer(body, &mut reading);
    let text = reading.take_text().unwrap_or_else(|| Stream::new(watch.family));
    Ok((accepted(watch, reading), text))
}

/// The tally of a whole answer: one request, unless it is an error.
fn accepted(watch: &Watch, reading: Reading) -> Tally {
    let mut tally = tally(watch, reading);
    tally.ended = true;
    tally.usage.set(Bucket::Requests, u64::from(tally.error.is_none()));
    tally
}

fn tally(watch: &Watch, reading: Reading) -> Tally {
    let (mut usage, inconsistent) = reading.reported.buckets(habits(watch.kind, watch.endpoint), watch.endpoint);
    usage.set(Bucket::Images, reading.images);
    // Images without usage are billed by number; counting prompt tokens costs nothing.
    let reported = reading.is_output_reported()
        || watch.endpoint == Endpoint::CountTokens
        || (watch.endpoint == Endpoint::Images && reading.images > 0);
    Tally {
        usage,
        source: Source::Upstream,
        reported,
        model: reading.model,
        service_tier: reading.service_tier,
        reported_cost: reading.cost,
        ended: reading.ended,
        inconsistent,
        error: reading.error,
    }
}

/// Appends a part of `chunk`, or the chunk itself, if it is not empty.
fn push_slice(chunk: &Bytes, from: usize, to: usize, out: &mut Vec<Bytes>) {
    if from == 0 && to == chunk.len() && to > 0 {
        out.push(chunk.clone());
    } else if from < to {
        out.push(chunk.slice(from..to));
    }
}
