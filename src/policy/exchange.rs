//! One request as its policy sees it, from the first handler to the last.

use super::data::Data;
use super::vm;
use crate::engine::catalog::{LuaPolicy, OnPolicyError};
use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use std::sync::Arc;

/// Headers that carry a credential: a policy neither sees nor sets them.
const CREDENTIALS: &[&str] = &["api-key", "authorization", "cookie", "proxy-authorization", "x-api-key", "x-goog-api-key"];
/// Framing is the gateway's own.
const FRAMING: &[&str] = &["connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];

/// What is known of a request when its head and body were read and its caller is known.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// `POST`.
    pub method: String,
    /// Path and query, as sent.
    pub target: String,
    /// `HTTP/1.1`, `HTTP/2.0`.
    pub protocol: &'static str,
    /// `http`, `https`.
    pub scheme: &'static str,
    /// The client's address.
    pub remote_address: String,
    /// weir's id of the request.
    pub request_id: String,
    /// When the head was read, in milliseconds since the epoch.
    pub started_ms: u64,
    /// The caller's account.
    pub account: String,
    /// The caller's key, by its id.
    pub key_id: String,
    /// The caller's tier.
    pub tier: Option<String>,
    /// As sent; credentials included, which no handler is shown.
    pub headers: HeaderMap,
}

/// Headers that a policy set, each with all of its values; none: taken away.
pub type HeaderEdits = Vec<(HeaderName, Vec<HeaderValue>)>;

/// What `access` came to.
#[derive(Debug)]
pub enum Access {
    /// On with the request, changed like this.
    Go {
        /// Request headers to change.
        headers: HeaderEdits,
        /// Another body.
        body: Option<Bytes>,
    },
    /// Answered by the policy.
    Answer {
        /// Status.
        status: u16,
        /// Its body.
        body: Bytes,
    },
    /// Refused without a body, with a status from 400 to 599.
    Denied(u16),
    /// Close the connection without an answer (444).
    Close,
}

/// What a part of an answer becomes.
#[derive(Debug, PartialEq, Eq)]
pub struct Filtered {
    /// What goes out.
    pub bytes: Bytes,
    /// The policy ends the answer here, before its own end.
    pub cut: bool,
}

/// Why a handler came to nothing. What it was is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// Its budget of instructions or time is used up.
    TooLong,
    /// Its memory is.
    TooMuchMemory,
    /// It raised an error.
    Raised,
}

/// A handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Access,
    HeaderFilter,
    BodyFilter,
    Log,
}

impl Phase {
    /// Every phase, in the order of their numbers.
    pub(super) const ALL: [Phase; 4] = [Phase::Access, Phase::HeaderFilter, Phase::BodyFilter, Phase::Log];

    pub(super) fn name(self) -> &'static str {
        match self {
            Phase::Access => "access",
            Phase::HeaderFilter => "header_filter",
            Phase::BodyFilter => "body_filter",
            Phase::Log => "log",
        }
    }
}

/// Which handlers a policy has, by the numbers of their phases.
pub(super) type Handlers = [bool; 4];

/// What handlers read and write.
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) head: Head,
    pub(super) request_edits: Vec<HeaderName>,
    pub(super) body: Bytes,
    pub(super) new_body: Option<Bytes>,
    pub(super) response: HeaderMap,
    pub(super) response_edits: Vec<HeaderName>,
    pub(super) status: Option<u16>,
    pub(super) said: Option<Vec<u8>>,
    pub(super) exit: Option<i64>,
    pub(super) chunk: Bytes,
    pub(super) new_chunk: Option<Bytes>,
    pub(super) end: bool,
    pub(super) ctx: Option<Data>,
}

/// One request's run through its policy. Keeps the policy it began with. The `log` handler runs when it is dropped, so that it
/// runs once on every path.
pub struct Exchange {
    policy: Arc<LuaPolicy>,
    handlers: Handlers,
    /// Away only while a handler runs.
    state: Option<Box<State>>,
    /// A handler failed and the request is refused for it: no filter runs on that refusal.
    refused: bool,
}

impl Exchange {
    /// A request whose caller is known.
    pub fn new(policy: Arc<LuaPolicy>, head: Head) -> Exchange {
        let handlers = vm::handlers(&policy);
        let state = State {
            phase: Phase::Access,
            head,
            request_edits: Vec::new(),
            body: Bytes::new(),
            new_body: None,
            response: HeaderMap::new(),
            response_edits: Vec::new(),
            status: None,
            said: None,
            exit: None,
            chunk: Bytes::new(),
            new_chunk: None,
            end: false,
            ctx: None,
        };
        Exchange { policy, handlers, state: Some(Box::new(state)), refused: false }
    }

    /// Runs `access` on a request whose body is `body`.
    pub fn access(&mut self, body: &Bytes) -> Result<Access, Failed> {
        const UNCHANGED: Access = Access::Go { headers: Vec::new(), body: None };
        if let Some(state) = &mut self.state {
            state.body = body.clone();
        }
        let ran = self.run(Phase::Access);
        let Some(state) = &mut self.state else { return Err(Failed::Raised) };
        state.body = Bytes::new();
        let (said, exit, body, edited) =
            (state.said.take(), state.exit.take(), state.new_body.take(), std::mem::take(&mut state.request_edits));
        if !ran? {
            return Ok(UNCHANGED);
        }
        if let Some(said) = said {
            return Ok(Access::Answer { status: state.status.unwrap_or(200), body: said.into() });
        }
        Ok(match exit {
            None | Some(0) => Access::Go { headers: edits(&state.head.headers, edited), body },
            Some(444) => {
                state.status = Some(444);
                Access::Close
            }
            Some(status @ 200..400) => Access::Answer { status: status as u16, body: Bytes::new() },
            Some(status @ 400..600) => Access::Denied(status as u16),
            // `ngx.ERROR` and what is no status.
            Some(_) => Access::Denied(500),
        })
    }

    /// Runs `header_filter` on a response header. Returns the status and the headers to change.
    pub fn header_filter(&mut self, status: u16, headers: &HeaderMap) -> Result<(u16, HeaderEdits), Failed> {
        let is_wanted = [Phase::HeaderFilter, Phase::BodyFilter, Phase::Log].into_iter().any(|phase| self.has(phase));
        let Some(state) = &mut self.state else { return Err(Failed::Raised) };
        if !is_wanted && state.response_edits.is_empty() {
            return Ok((status, Vec::new()));
        }
        // What earlier handlers set stands in the answer, whoever gives it.
        let early = std::mem::replace(&mut state.response, headers.clone());
        for name in &state.response_edits {
            state.response.remove(name);
            for value in early.get_all(name) {
                state.response.append(name.clone(), value.clone());
            }
        }
        state.status = Some(status);
        let early = edits(&state.response, state.response_edits.clone());
        let ran = self.run(Phase::HeaderFilter);
        let Some(state) = &mut self.state else { return Err(Failed::Raised) };
        let edited = std::mem::take(&mut state.response_edits);
        if !ran? {
            return Ok((status, early));
        }
        Ok((state.status.unwrap_or(status), edits(&state.response, edited)))
    }

    /// Whether answers pass through `body_filter`: their length is not known before their end.
    pub fn filters_bodies(&self) -> bool {
        self.has(Phase::BodyFilter) && !self.refused
    }

    /// Runs `body_filter` on the next bytes of the answer; `end`: they are the last.
    pub fn body_filter(&mut self, chunk: Bytes, end: bool) -> Result<Filtered, Failed> {
        if !self.filters_bodies() {
            return Ok(Filtered { bytes: chunk, cut: false });
        }
        let Some(state) = &mut self.state else { return Err(Failed::Raised) };
        (state.chunk, state.end, state.new_chunk) = (chunk, end, None);
        let ran = self.run(Phase::BodyFilter);
        let Some(state) = &mut self.state else { return Err(Failed::Raised) };
        let (chunk, new) = (std::mem::take(&mut state.chunk), state.new_chunk.take());
        Ok(if ran? { Filtered { bytes: new.unwrap_or(chunk), cut: state.end && !end } } else { Filtered { bytes: chunk, cut: false } })
    }

    /// The request is refused because a handler failed: only `log` runs from now on.
    pub fn refuse(&mut self, status: u16) {
        self.refused = true;
        if let Some(state) = &mut self.state {
            state.status = Some(status);
        }
    }

    fn has(&self, phase: Phase) -> bool {
        self.handlers[phase as usize]
    }

    /// Runs a handler. `false`: there is none, or it failed and is passed over.
    fn run(&mut self, phase: Phase) -> Result<bool, Failed> {
        if !self.has(phase) || (self.refused && phase != Phase::Log) {
            return Ok(false);
        }
        let Some(mut state) = self.state.take() else { return Err(Failed::Raised) };
        state.phase = phase;
        let (state, result) = vm::call(&self.policy, state);
        self.state = Some(state);
        match (result, self.policy.on_error) {
            (Ok(()), _) => Ok(true),
            (Err(_), OnPolicyError::Pass) => Ok(false),
            (Err(failed), OnPolicyError::Refuse) => Err(failed),
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // Nobody is left to be told; what went wrong is in the log.
        if !std::thread::panicking() {
            let _ = self.run(Phase::Log);
        }
    }
}

impl State {
    /// A request header's values; none for a credential.
    pub(super) fn request_values(&self, name: &str) -> impl Iterator<Item = &HeaderValue> {
        let shown = !is_credential(name);
        self.head.headers.get_all(name).into_iter().filter(move |_| shown)
    }

    /// Sets a request header, or takes it away. Credentials and framing are left as they are: they are weir's.
    pub(super) fn set_request(&mut self, name: HeaderName, values: Vec<HeaderValue>) {
        if !is_credential(name.as_str()) && !FRAMING.contains(&name.as_str()) {
            set(&mut self.head.headers, &mut self.request_edits, name, values);
        }
    }

    /// Sets a response header, or takes it away.
    pub(super) fn set_response(&mut self, name: HeaderName, values: Vec<HeaderValue>) {
        if !FRAMING.contains(&name.as_str()) {
            set(&mut self.response, &mut self.response_edits, name, values);
        }
    }
}

/// Whether a header carries a credential.
pub(super) fn is_credential(name: &str) -> bool {
    CREDENTIALS.binary_search(&name).is_ok()
}

fn set(headers: &mut HeaderMap, edits: &mut Vec<HeaderName>, name: HeaderName, values: Vec<HeaderValue>) {
    headers.remove(&name);
    for value in values {
        headers.append(name.clone(), value);
    }
    if !edits.contains(&name) {
        edits.push(name);
    }
}

/// The present values of the headers that were set.
fn edits(headers: &HeaderMap, edited: Vec<HeaderName>) -> HeaderEdits {
    edited
        .into_iter()
        .map(|name| {
            let values = headers.get_all(&name).into_iter().cloned().collect();
            (name, values)
        })
        .collect()
}
