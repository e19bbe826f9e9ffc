//! The wire formats: which paths they have, where their usage, errors and end marks stand. One file per format.
//!
//! Reading goes through [`event`] and [`answer`] into a [`reading::Reading`]; [`upstream_error`] reads the body of an upstream's no.
//! [`error_event`] writes the end of a stream that breaks; what is refused before is written by [`refusal`](super::refusal).

pub mod anthropic;
pub mod openai_audio;
pub mod openai_chat;
pub mod openai_completions;
pub mod openai_embeddings;
pub mod openai_images;
pub mod openai_responses;
pub mod reading;
pub mod reported;
pub mod scan;
pub mod template;

use self::reading::{ErrorFields, Final, Reading};
use self::scan::{Scan, write_string};
use super::meter::UpstreamError;
use super::sse::Event;

/// A path a caller may ask, which decides how request and answer are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Endpoint {
    /// `POST /v1/chat/completions`
    ChatCompletions,
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/responses`
    Responses,
    /// `POST /v1/embeddings`
    Embeddings,
    /// `POST /v1/moderations`
    Moderations,
    /// `POST /v1/images/generations`
    Images,
    /// `POST /v1/audio/speech`
    Speech,
    /// `POST /v1/audio/transcriptions` (multipart)
    Transcriptions,
    /// `POST /v1/audio/translations` (multipart)
    Translations,
    /// `POST /v1/messages` (Anthropic)
    Messages,
    /// `POST /v1/messages/count_tokens` (Anthropic)
    CountTokens,
}

/// The shape of errors and events a caller of an endpoint expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// `{"error":{"message","type","param","code"}}`
    OpenAi,
    /// `{"type":"error","error":{"type","message"}}`
    Anthropic,
}

impl Endpoint {
    /// Every endpoint.
    pub const ALL: [Endpoint; 11] = [
        Endpoint::ChatCompletions,
        Endpoint::Completions,
        Endpoint::Responses,
        Endpoint::Embeddings,
        Endpoint::Moderations,
        Endpoint::Images,
        Endpoint::Speech,
        Endpoint::Transcriptions,
        Endpoint::Translations,
        Endpoint::Messages,
        Endpoint::CountTokens,
    ];

    /// The endpoint of a request path, exactly as written.
    pub fn of_path(path: &str) -> Option<Endpoint> {
        Endpoint::ALL.into_iter().find(|endpoint| endpoint.path() == path)
    }

    /// The path on the proxy listener; also the `path` label of metrics.
    pub const fn path(self) -> &'static str {
        match self {
            Endpoint::ChatCompletions => "/v1/chat/completions",
            Endpoint::Completions => "/v1/completions",
            Endpoint::Responses => "/v1/responses",
            Endpoint::Embeddings => "/v1/embeddings",
            Endpoint::Moderations => "/v1/moderations",
            Endpoint::Images => "/v1/images/generations",
            Endpoint::Speech => "/v1/audio/speech",
            Endpoint::Transcriptions => "/v1/audio/transcriptions",
            Endpoint::Translations => "/v1/audio/translations",
            Endpoint::Messages => "/v1/messages",
            Endpoint::CountTokens => "/v1/messages/count_tokens",
        }
    }

    /// The dialect its callers speak.
    pub const fn dialect(self) -> Dialect {
        match self {
            Endpoint::Messages | Endpoint::CountTokens => Dialect::Anthropic,
            _ => Dialect::OpenAi,
        }
    }

    /// Its body is `multipart/form-data`.
    pub const fn is_multipart(self) -> bool {
        matches!(self, Endpoint::Transcriptions | Endpoint::Translations)
    }
}

/// What an event was, as far as the meter must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A heartbeat, or no data: it commits nothing.
    Heartbeat,
    /// An event.
    Event,
    /// An event whose data is cut off or not of the format.
    Unreadable,
    /// The event that holds usage and nothing else.
    UsageOnly,
}

/// Reads one event of a stream. Allocates nothing but for the first model name, the first template, a service tier, an error.
pub fn event(event: &Event<'_>, reading: &mut Reading) -> Seen {
    let Event { name, data, truncated } = *event;
    if data.is_empty() || (reading.endpoint.dialect() == Dialect::Anthropic && anthropic::is_heartbeat(name, data)) {
        return Seen::Heartbeat;
    }
    if !truncated && reading.is_as_before(name, data) {
        return Seen::Event;
    }
    reading.begin_event();
    if truncated {
        usage_at_end(name, data, reading);
        reading.end_event();
        return Seen::Event;
    }
    let readable = match reading.endpoint {
        Endpoint::Messages | Endpoint::CountTokens => anthropic::event(name, data, reading),
        Endpoint::Responses => openai_responses::event(name, data, reading),
        Endpoint::Images => openai_images::event(name, data, reading),
        Endpoint::Speech | Endpoint::Transcriptions | Endpoint::Translations => openai_audio::event(name, data, reading),
        Endpoint::Completions => openai_completions::event(data, reading),
        Endpoint::ChatCompletions | Endpoint::Embeddings | Endpoint::Moderations => openai_chat::event(data, reading),
    };
    match (reading.end_event(), readable) {
        (_, false) => Seen::Unreadable,
        (true, true) => Seen::UsageOnly,
        (false, true) => {
            reading.keep_template(name, data);
            Seen::Event
        }
    }
}

/// Reads a whole JSON answer. `false`: it cannot be read to its end.
pub fn answer(body: &[u8], reading: &mut Reading) -> bool {
    reading.begin_event();
    let readable = match reading.endpoint {
        Endpoint::Messages => anthropic::answer(body, reading),
        Endpoint::Responses => openai_responses::answer(body, reading),
        Endpoint::Images => openai_images::answer(body, reading),
        Endpoint::Speech | Endpoint::Transcriptions | Endpoint::Translations => openai_audio::answer(body, reading),
        Endpoint::Completions => openai_completions::answer(body, reading),
        Endpoint::Embeddings | Endpoint::Moderations | Endpoint::CountTokens => openai_embeddings::answer(body, reading),
        Endpoint::ChatCompletions => openai_chat::answer(body, reading),
    };
    reading.end_event();
    readable
}

/// Reads what was kept of a body that was passed on: all of it, or (`true`) its start and end.
pub fn kept_answer((body, truncated): (&[u8], bool), reading: &mut Reading) {
    if truncated {
        reading.begin_event();
        usage_at_end(b"", body, reading);
        reading.end_event();
    } else {
        answer(body, reading);
    }
}

/// What a too long event or body still tells: its type at the start, its usage at the end.
fn usage_at_end(name: &[u8], data: &[u8], reading: &mut Reading) {
    let mut kind = name;
    Scan::new(data).object(|key, scan| {
        if key == b"type" {
            kind = scan.string().unwrap_or(kind);
        }
    });
    openai_images::completed(kind, reading);
    reading.ended |= matches!(kind, b"response.completed" | b"response.incomplete");
    const USAGE: &[u8] = b"\"usage\":";
    for at in memchr::memmem::rfind_iter(data, USAGE) {
        let mut scan = Scan::new(&data[at + USAGE.len()..]);
        if scan.here() == Some(b'{') {
            match reading.endpoint.dialect() {
                Dialect::OpenAi => reading.usage_here(&mut scan),
                Dialect::Anthropic => {
                    reading.cumulative_usage_here(&mut scan, if reading.is_whole_answer() { Final::Yes } else { Final::No })
                }
            }
            return;
        }
    }
}

/// The error in the body of an answer with an error status, in whatever shape (wire formats: OpenAI's `error` object, Ollama's
/// `error` text, Cloudflare's `errors` list, Mistral's and vLLM's fields at the top, FastAPI's `detail`, Gemini's list of one).
/// A body that is not JSON becomes the message.
pub fn upstream_error(body: &[u8]) -> UpstreamError {
    json_error(body, AtTop::Accepted).unwrap_or_else(|| {
        let message = String::from_utf8_lossy(&body[..body.len().min(reading::MAX_MESSAGE_BYTES)]).trim().to_string();
        UpstreamError { code: String::new(), message }
    })
}

/// The error in the body of an answer with a good status: only what is unmistakably one.
pub fn error_in_answer(body: &[u8]) -> Option<UpstreamError> {
    json_error(body, AtTop::OnlyIfNamed)
}

/// Whether `message` and its like count at the top of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtTop {
    /// Yes: the status said that it is an error.
    Accepted,
    /// Only beside `"object": "error"` or `"success": false`.
    OnlyIfNamed,
}

fn json_error(body: &[u8], at_top: AtTop) -> Option<UpstreamError> {
    let mut scan = Scan::new(body);
    if scan.here() == Some(b'[') {
        let mut first = None;
        scan.array(|scan| {
            let element = scan.raw();
            if first.is_none() && element.first() == Some(&b'{') {
                first = json_error(element, at_top);
            }
        });
        return first;
    }
    let mut reading = Reading::of_whole(Endpoint::ChatCompletions, None);
    let mut fields = ErrorFields::default();
    let mut named = false;
    scan.object(|key, scan| match key {
        b"error" => reading.error_here(scan),
        b"errors" => scan.array(|scan| {
            if reading.error.is_none() {
                reading.error_here(scan);
            }
        }),
        b"object" | b"type" => {
            let at = scan.string().unwrap_or_default();
            named |= at == b"error";
            if key == b"type" && at != b"error" {
                fields.kind(at);
            }
        }
        b"success" => named |= scan.raw() == b"false",
        _ => fields.field(key, scan),
    });
    let top = (named || at_top == AtTop::Accepted) && fields.has_message();
    reading.error.or_else(|| top.then(|| fields.into_error()))
}

/// Writes the event that ends a running stream of `endpoint`; no end mark may follow it, so that client libraries raise.
///
/// Responses have the error's fields at the top; the `error` object beside them is what OpenAI's libraries raise on (openai-python
/// `_streaming.py`, openai-node `core/streaming.ts`).
pub fn error_event(endpoint: Endpoint, kind: &str, code: &str, message: &str, out: &mut Vec<u8>) {
    let field = |name: &str, value: &str, out: &mut Vec<u8>| {
        out.extend_from_slice(name.as_bytes());
        write_string(value, out);
    };
    match endpoint {
        Endpoint::Messages | Endpoint::CountTokens => {
            field("event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":", kind, out);
            field(",\"message\":", message, out);
        }
        _ => {
            if endpoint == Endpoint::Responses {
                field("event: error\ndata: {\"type\":\"error\",\"code\":", code, out);
                field(",\"message\":", message, out);
                out.extend_from_slice(b",\"param\":null,");
            } else {
                out.extend_from_slice(b"data: {");
            }
            field("\"error\":{\"message\":", message, out);
            field(",\"type\":", kind, out);
            field(",\"param\":null,\"code\":", code, out);
        }
    }
    out.extend_from_slice(b"}}\n\n");
}
