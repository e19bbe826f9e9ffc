//! Reading a request body once, bounded alone ([`max_body`](ReadLimits)) and together with all others ([`InFlight`]).

use bytes::{Bytes, BytesMut};
use pingora_core::protocols::http::ServerSession;
use pingora_error::ErrorType;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A client that sends nothing of its body for this long is answered 408.
pub const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// A body must have arrived whole within this (64 MiB at 2 Mbit/s), else 408: a drip cannot hold memory for ever.
pub const BODY_TOTAL_TIMEOUT: Duration = Duration::from_secs(300);
/// What is set aside at first for a body of unknown length.
const CHUNKED_START_BYTES: usize = 8 << 10;

/// Bytes of all request bodies that are held at this moment, and their bound.
#[derive(Debug)]
pub struct InFlight {
    held: AtomicU64,
    max: u64,
}

impl InFlight {
    /// A budget of `max` bytes.
    pub fn new(max: u64) -> Arc<InFlight> {
        Arc::new(InFlight { held: AtomicU64::new(0), max })
    }

    /// Bytes held now.
    pub fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        self.held.fetch_update(Relaxed, Relaxed, |held| held.checked_add(bytes).filter(|sum| *sum <= self.max)).is_ok()
    }
}

/// A body's share of [`InFlight`]; given back on drop.
#[derive(Debug)]
pub struct Share {
    budget: Arc<InFlight>,
    bytes: u64,
}

impl Share {
    /// Takes more, up to `bytes` in all.
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), BodyError> {
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 {
            if !self.budget.take(more) {
                return Err(BodyError::Overloaded);
            }
            self.bytes += more;
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Relaxed);
    }
}

/// Why there is no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// Over `max_body`: 413.
    TooLarge,
    /// All bodies together are over `max_body_in_flight`: 503.
    Overloaded,
    /// 408.
    TooSlow,
    /// The client went away or broke the framing: nobody to answer.
    Gone,
}

/// Reads the whole body. Answers `Expect: 100-continue` first, unless the declared length is refused.
/// Not cancel-safe: a dropped read loses the bytes read so far.
pub async fn read(session: &mut ServerSession, max_body: u64, budget: &Arc<InFlight>) -> Result<(Bytes, Share), BodyError> {
    let headers = &session.req_header().headers;
    let declared =
        headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u64>().ok());
    let expects = headers.get(http::header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let mut share = Share { budget: budget.clone(), bytes: 0 };
    if let Some(length) = declared {
        if length > max_body {
            return Err(BodyError::TooLarge);
        }
        share.grow_to(length)?;
    }
    if expects {
        session.write_continue_response().await.map_err(|_| BodyError::Gone)?;
    }
    session.set_read_timeout(Some(BODY_IDLE_TIMEOUT));
    let started = Instant::now();
    let is_http1 = session.as_http1().is_some();
    // Most bodies are short and come in one chunk, which is not copied again.
    let (mut first, mut body) = (Bytes::new(), BytesMut::new());
    loop {
        match session.read_request_body().await {
            Ok(Some(chunk)) => {
                let length = (first.len() + body.len() + chunk.len()) as u64;
                if length > max_body {
                    return Err(BodyError::TooLarge);
                }
                share.grow_to(length)?;
                if started.elapsed() > BODY_TOTAL_TIMEOUT {
                    return Err(BodyError::TooSlow);
                }
                match chunk.len() as u64 {
                    // Of a chunked body, less than a chunk's own length has come.
                    0 => continue,
                    // What HTTP/2 gives is a part of a larger buffer, which would stay with it.
                    all if all == length && is_http1 => first = chunk,
                    _ => {
                        if body.is_empty() {
                            body.reserve(declared.map_or(CHUNKED_START_BYTES, |length| length as usize));
                            body.extend_from_slice(&std::mem::take(&mut first));
                        }
                        body.extend_from_slice(&chunk);
                    }
                }
            }
            Ok(None) if body.is_empty() => return Ok((first, share)),
            Ok(None) => return Ok((body.freeze(), share)),
            Err(error) if *error.etype() == ErrorType::ReadTimedout => return Err(BodyError::TooSlow),
            Err(_) => return Err(BodyError::Gone),
        }
    }
}
