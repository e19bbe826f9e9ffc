//! What has been read of an answer so far. The files of the formats write into it; the meter takes the result.

use super::Endpoint;
use super::reported::{Field, Reported};
use super::scan::{Scan, decimal, text, unescape};
use super::template::{Hole, Holes, Template};
use crate::engine::meter::UpstreamError;
use crate::engine::money::Usd;
use crate::engine::tokens::{Family, Stream};

/// Model names and service tiers longer than this are passed over: they come from outside and are kept.
const MAX_NAME_BYTES: usize = 256;
/// Error messages longer than this are cut.
pub const MAX_MESSAGE_BYTES: usize = 1024;
/// Error codes longer than this are cut.
const MAX_CODE_BYTES: usize = 128;
/// Digits of a pico-dollar behind the decimal point of a dollar.
const PICO_PLACES: u32 = 12;

/// An answer, as far as it was read.
#[derive(Debug)]
pub struct Reading {
    /// Its format.
    pub endpoint: Endpoint,
    /// The provider's counts.
    pub reported: Reported,
    /// The model it names.
    pub model: Option<String>,
    /// The service tier it names.
    pub service_tier: Option<String>,
    /// The provider's own cost.
    pub cost: Option<Usd>,
    /// The last error.
    pub error: Option<UpstreamError>,
    /// A finish reason was seen: no more text comes, and the usage event may.
    pub finished: bool,
    /// The end mark was seen.
    pub ended: bool,
    /// Images made.
    pub images: u64,
    /// Bytes of generated text, escapes resolved.
    pub text_bytes: u64,
    /// What `text_bytes` was when the provider last reported its output.
    reported_at: Option<u64>,
    /// The text for the tokenizer; `None`: nobody asks for it.
    text: Option<Stream>,
    /// The answer is whole, so its text was not streamed before.
    is_whole_answer: bool,
    /// What the event at hand has shown.
    event: ThisEvent,
    /// The last event that was read, while those that follow may be like it.
    pub(super) template: Template,
}

#[derive(Debug, Clone, Default)]
struct ThisEvent {
    no_choices: bool,
    usage: bool,
    output_reported: bool,
    holes: Holes,
}

impl Reading {
    /// Nothing read yet of a stream; text is kept for a count by `family`.
    pub fn of_stream(endpoint: Endpoint, family: Family) -> Reading {
        Reading { text: Some(Stream::new(family)), is_whole_answer: false, ..Reading::of_whole(endpoint, None) }
    }

    /// Nothing read yet of a whole answer; its text goes to `text`.
    pub fn of_whole(endpoint: Endpoint, text: Option<Stream>) -> Reading {
        Reading {
            endpoint,
            reported: Reported::default(),
            model: None,
            service_tier: None,
            cost: None,
            error: None,
            finished: false,
            ended: false,
            images: 0,
            text_bytes: 0,
            reported_at: None,
            text,
            is_whole_answer: true,
            event: ThisEvent::default(),
            template: Template::default(),
        }
    }

    /// An event begins.
    pub fn begin_event(&mut self) {
        self.event = ThisEvent::default();
        self.template.clear();
    }

    /// The event was read. `true`: it is the usage event (no choices, and usage), which can be left out of the stream.
    pub fn end_event(&mut self) -> bool {
        if self.event.output_reported {
            self.reported_at = Some(self.text_bytes);
        }
        self.event.no_choices && self.event.usage
    }

    /// Takes the event at hand as the template of the next ones, if it told nothing but text. Call after `end_event`.
    pub fn keep_template(&mut self, name: &[u8], data: &[u8]) {
        if !(self.event.no_choices || self.event.usage || self.event.output_reported) {
            self.template.set(name, data, &self.event.holes);
        }
    }

    /// Reads an event that differs from the one before in its texts alone. `false`: nothing was read.
    #[inline]
    pub fn is_as_before(&mut self, name: &[u8], data: &[u8]) -> bool {
        let Some(texts) = self.template.texts(name, data) else { return false };
        for raw in texts.into_iter().flatten() {
            self.push(raw);
        }
        true
    }

    /// The provider reported the output, and no text came after that.
    pub fn is_output_reported(&self) -> bool {
        let output = self.reported.of(Field::Output);
        self.reported_at == Some(self.text_bytes) && (output > 0 || self.text_bytes == 0 || self.reported.of(Field::Milliseconds) > 0)
    }

    /// The event at hand (or the whole answer) reports all there is to report.
    pub fn reports_output(&mut self) {
        self.event.output_reported = true;
    }

    /// The answer is whole: its text was not streamed before.
    pub fn is_whole_answer(&self) -> bool {
        self.is_whole_answer
    }

    /// Web searches that are not in the usage object but in the output.
    pub fn raise_web_searches(&mut self, searches: u64) {
        self.reported.set(Field::WebSearches, self.reported.of(Field::WebSearches).max(searches));
    }

    /// Output tokens the provider has reported so far.
    pub fn output_reported(&self) -> u64 {
        self.reported.of(Field::Output)
    }

    /// The text counter.
    pub fn text_mut(&mut self) -> Option<&mut Stream> {
        self.text.as_mut()
    }

    /// Takes the text counter out.
    pub fn take_text(&mut self) -> Option<Stream> {
        self.text.take()
    }

    /// Generated text, as written in its JSON string.
    #[inline]
    pub fn generated(&mut self, raw: &[u8]) {
        self.event.holes.note(Hole::Text, raw);
        self.push(raw);
    }

    #[inline]
    fn push(&mut self, raw: &[u8]) {
        let (text, text_bytes) = (&mut self.text, &mut self.text_bytes);
        unescape(raw, |run| {
            *text_bytes += run.len() as u64;
            if let Some(text) = text {
                text.push(run);
            }
        });
    }

    /// Generated text that is not a JSON string.
    pub fn generated_plain(&mut self, plain: &[u8]) {
        self.text_bytes += plain.len() as u64;
        if let Some(text) = &mut self.text {
            text.push(plain);
        }
    }

    /// Generated text, if a string is here.
    #[inline]
    pub fn generated_here(&mut self, scan: &mut Scan<'_>) {
        if let Some(raw) = scan.string() {
            self.generated(raw);
        }
    }

    /// A string that says nothing and is another one in each event.
    #[inline]
    pub fn padding_here(&mut self, scan: &mut Scan<'_>) {
        if let Some(raw) = scan.string() {
            self.event.holes.note(Hole::Padding, raw);
        }
    }

    /// A number that says nothing and is another one in each event.
    #[inline]
    pub fn count_here(&mut self, scan: &mut Scan<'_>) {
        if let Some(raw) = scan.number() {
            self.event.holes.note(Hole::Count, raw);
        }
    }

    /// The model's name, if a string is here; allocates only when it differs from the last.
    #[inline]
    pub fn model_here(&mut self, scan: &mut Scan<'_>) {
        name_here(&mut self.model, scan);
    }

    /// The service tier, if a string is here.
    #[inline]
    pub fn service_tier_here(&mut self, scan: &mut Scan<'_>) {
        name_here(&mut self.service_tier, scan);
    }

    /// The choices of the event at hand are an empty list.
    pub fn no_choices(&mut self) {
        self.event.no_choices = true;
    }

    /// A usage object that replaces what was reported before. A null is none; all zeros are a placeholder.
    pub fn usage_here(&mut self, scan: &mut Scan<'_>) {
        let usage = self.usage(scan);
        self.reported.replace_by(&usage);
        self.event.output_reported |= !usage.is_zero();
    }

    /// A cumulative usage object: counts only rise. `is_final`: its output is that of the whole answer.
    pub fn cumulative_usage_here(&mut self, scan: &mut Scan<'_>, is_final: Final) {
        let usage = self.usage(scan);
        self.reported.raise_to(&usage);
        self.event.output_reported |= is_final == Final::Yes && !usage.is_zero();
    }

    fn usage(&mut self, scan: &mut Scan<'_>) -> Reported {
        let mut usage = Reported::default();
        self.event.usage |= scan.here() == Some(b'{');
        let (cost, service_tier) = (&mut self.cost, &mut self.service_tier);
        usage.read(scan, |key, scan| match key {
            b"cost" => {
                if let Some(pico) = scan.number().and_then(|number| decimal(number, PICO_PLACES)) {
                    *cost = Some(Usd(pico));
                }
            }
            b"service_tier" => name_here(service_tier, scan),
            _ => {}
        });
        usage
    }

    /// The error here (object or text), if it is one: null, false and empty text are none.
    pub fn error_here(&mut self, scan: &mut Scan<'_>) {
        match scan.here() {
            Some(b'"') => {
                let message = scan.string().map(|raw| text(raw, MAX_MESSAGE_BYTES)).unwrap_or_default();
                if !message.is_empty() {
                    self.error = Some(UpstreamError { code: String::new(), message });
                }
            }
            Some(b'{') => {
                let mut found = ErrorFields::default();
                scan.object(|key, scan| found.field(key, scan));
                self.error = Some(found.into_error());
            }
            _ => {}
        }
    }
}

/// Whether a cumulative usage object is the last word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Final {
    /// More will come.
    No,
    /// It covers the whole answer.
    Yes,
}

/// The fields of an error object, in whatever order they stand.
#[derive(Debug, Default)]
pub struct ErrorFields {
    code: Option<String>,
    code_number: Option<String>,
    kind: Option<String>,
    status: Option<String>,
    message: Option<String>,
}

impl ErrorFields {
    /// Takes the field `key` if it belongs to an error.
    pub fn field(&mut self, key: &[u8], scan: &mut Scan<'_>) {
        match key {
            b"code" => {
                if let Some(number) = scan.number() {
                    self.code_number = Some(text(number, MAX_CODE_BYTES));
                } else {
                    code_here(&mut self.code, scan);
                }
            }
            b"type" => code_here(&mut self.kind, scan),
            b"status" => code_here(&mut self.status, scan),
            b"message" | b"msg" | b"detail" => self.message(scan),
            _ => {}
        }
    }

    /// A message is text, or (Mistral, FastAPI) an object or list with the text somewhere inside: then its JSON is the message.
    fn message(&mut self, scan: &mut Scan<'_>) {
        match scan.here() {
            Some(b'"') => self.message = scan.string().map(|raw| text(raw, MAX_MESSAGE_BYTES)),
            Some(b'{' | b'[') => {
                let raw = scan.raw();
                let mut message = String::from_utf8_lossy(&raw[..raw.len().min(MAX_MESSAGE_BYTES)]).into_owned();
                message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
                self.message = Some(message);
            }
            _ => {}
        }
    }

    /// Sets the type, as written.
    pub fn kind(&mut self, raw: &[u8]) {
        if !raw.is_empty() {
            self.kind = Some(text(raw, MAX_CODE_BYTES));
        }
    }

    /// There was a message.
    pub fn has_message(&self) -> bool {
        self.message.is_some()
    }

    /// The error: its code is `code` where that is text, else Gemini's `status`, else `type`, else the number.
    pub fn into_error(self) -> UpstreamError {
        let code = self.code.or(self.status).or(self.kind).or(self.code_number).unwrap_or_default();
        UpstreamError { code: code.to_ascii_lowercase(), message: self.message.unwrap_or_default() }
    }
}

fn code_here(slot: &mut Option<String>, scan: &mut Scan<'_>) {
    if let Some(raw) = scan.string()
        && !raw.is_empty()
    {
        *slot = Some(text(raw, MAX_CODE_BYTES));
    }
}

#[inline]
fn name_here(slot: &mut Option<String>, scan: &mut Scan<'_>) {
    let Some(raw) = scan.string() else { return };
    if raw.is_empty() || raw.len() > MAX_NAME_BYTES || slot.as_ref().is_some_and(|name| is_written_as(name, raw)) {
        return;
    }
    *slot = Some(text(raw, MAX_NAME_BYTES));
}

/// Whether `raw` is a spelling of `name`.
fn is_written_as(name: &str, raw: &[u8]) -> bool {
    let mut rest = Some(name.as_bytes());
    unescape(raw, |run| rest = rest.and_then(|rest| rest.strip_prefix(run)));
    rest.is_some_and(<[u8]>::is_empty)
}
