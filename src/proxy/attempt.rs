//! One attempt at one target, up to the point where it either commits or fails.
//!
//! An attempt commits with its first event (a stream) or its last byte (a whole answer), not with its headers: until then
//! another target can take over and the client never knows.

use super::body::Share;
use super::headers;
use super::heap::boxed;
use super::upstream::{ConnectError, Connected, Upstreams};
use crate::engine::catalog::{OnDisconnect, Provider, Timeouts};
use crate::engine::dialect;
use crate::engine::meter::{self, StreamMeter, Tally, UpstreamError, Watch};
use crate::engine::peek::Pieces;
use crate::engine::route::{Outcome, TimeoutPhase};
use crate::engine::tokens::Stream as TextCounter;
use bytes::{Bytes, BytesMut};
use http::response::Parts;
use pingora_error::{ErrorType, RetryType};
use pingora_http::{RequestHeader, ResponseHeader};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An error body is read up to here; the rest says nothing more.
pub const ERROR_BODY_BYTES_MAX: usize = 64 << 10;
/// A whole answer is held until it is complete (its cost goes into a header). A larger one is passed on as it comes, counted
/// by its tail, without the cost header; so is one that finds no room beside all other bodies.
pub const WHOLE_ANSWER_BYTES_MAX: usize = 64 << 20;
/// Slices up to this size wait for the last one, to go out in one write with it; larger ones are worth a write of their own.
const HELD_SLICE_BYTES_MAX: usize = 16 << 10;
/// What may come before the first event of a stream (comments): beyond it the attempt commits as it is.
const PREAMBLE_BYTES_MAX: usize = 64 << 10;

/// Everything an attempt sends.
pub struct Sending {
    /// Where to.
    pub provider: Arc<Provider>,
    /// The base URL is the caller's: only public addresses.
    pub public_only: bool,
    /// The request header, credentials in place.
    pub header: Box<RequestHeader>,
    /// The body in order.
    pub body: Pieces,
    /// How to read the answer.
    pub watch: Watch,
    /// When the exchange as a whole must be over.
    pub deadline: Instant,
    /// Room for a whole answer, beside the bodies of all requests.
    pub held: Share,
}

/// A target that answers.
pub enum Committed {
    /// A stream: its first event has come.
    Stream(Box<Streaming>),
    /// A whole answer.
    Whole(Box<Whole>),
    /// An answer that is neither JSON nor events (audio), or too large to hold: passed on as it comes.
    Opaque(Box<Streaming>),
}

/// A stream at its first event.
pub struct Streaming {
    /// The upstream connection, to be read on.
    pub connected: Connected,
    /// The client's header so far.
    pub header: Parts,
    /// Counts what passes.
    pub meter: StreamMeter,
    /// What the client gets first.
    pub first: Vec<Bytes>,
    /// Its room, until it is written, where it was to be a whole answer.
    pub share: Option<Share>,
}

/// A whole answer, read to its end.
pub struct Whole {
    /// The upstream connection, for the next request.
    pub connected: Connected,
    /// The client's header so far.
    pub header: Parts,
    /// The body.
    pub body: Bytes,
    /// What it came to.
    pub tally: Tally,
    /// Text to count where the provider said nothing.
    pub text: TextCounter,
    /// Its room, until it is written.
    pub share: Share,
}

/// A target that did not answer.
pub struct Failed {
    what: What,
    /// The upstream's answer, when there was one.
    pub answer: Option<Answer>,
}

/// What happened.
#[derive(Debug, Clone, Copy)]
enum What {
    /// The provider closed an idle connection just as it was used: nothing was processed.
    Stale,
    Connect,
    Tls,
    Reset,
    Timeout(TimeoutPhase),
    Status {
        retry_after_ms: Option<u64>,
    },
    ErrorFirstEvent,
    EmptyOrNotJson,
}

/// An upstream's refusal as it came.
pub struct Answer {
    /// The client's header so far.
    pub header: Parts,
    /// Its body, at most [`ERROR_BODY_BYTES_MAX`].
    pub body: Bytes,
    /// What the body says.
    pub error: UpstreamError,
}

impl Failed {
    fn new(what: What) -> Failed {
        Failed { what, answer: None }
    }

    /// The connection was used a moment too late. No failure of the target: the attempt is to be made again.
    pub fn is_stale(&self) -> bool {
        matches!(self.what, What::Stale)
    }

    /// The same in the plan's terms.
    pub fn outcome(&self) -> Outcome<'_> {
        let (status, error_code, message) = match &self.answer {
            Some(answer) => (answer.header.status.as_u16(), answer.error.code.as_str(), answer.error.message.as_str()),
            None => (0, "", ""),
        };
        match self.what {
            What::Connect => Outcome::Connect,
            What::Tls => Outcome::Tls,
            // Made again, unless its key has gone meanwhile: then that is what is wrong, as when it is not there from the start.
            What::Stale => Outcome::Status { code: 401, retry_after_ms: None, error_code: "", message: "" },
            What::Reset => Outcome::Reset,
            What::Timeout(phase) => Outcome::Timeout(phase),
            What::Status { retry_after_ms } => Outcome::Status { code: status, retry_after_ms, error_code, message },
            What::ErrorFirstEvent => Outcome::ErrorFirstEvent { error_code, message },
            What::EmptyOrNotJson => Outcome::EmptyOrNotJson,
        }
    }

    /// For people: what the provider said, or what broke. Not yet scrubbed.
    pub fn message(&self) -> &str {
        match (&self.answer, self.what) {
            (Some(answer), _) => &answer.error.message,
            (None, What::Connect) => "cannot connect",
            (None, What::Tls) => "TLS handshake failed",
            (None, What::Reset | What::Stale) => "the connection broke before the answer began",
            (None, What::Timeout(TimeoutPhase::Connect)) => "no connection in time",
            (None, What::Timeout(_)) => "no answer in time",
            (None, _) => "the answer is empty or not in the expected format",
        }
    }

    /// The provider's status, when it gave one.
    pub fn status(&self) -> Option<u16> {
        self.answer.as_ref().map(|answer| answer.header.status.as_u16())
    }
}

/// Makes one attempt. Cancel-safe: dropped, it closes the upstream connection, which cancels the work there. The caller makes one
/// that [is stale](Failed::is_stale) again: what it sent is gone, for a copy of every header is too dear to keep.
pub async fn attempt(upstreams: &Arc<Upstreams>, sending: Sending) -> Result<Committed, Failed> {
    let connected =
        upstreams.connect(&sending.provider, sending.public_only).await.map_err(|error| Failed::new(connect_outcome(&error)))?;
    exchange(upstreams, connected, sending).await.map_err(|failed| *failed)
}

impl From<What> for Box<Failed> {
    fn from(what: What) -> Box<Failed> {
        Box::new(Failed::new(what))
    }
}

fn connect_outcome(error: &ConnectError) -> What {
    match error {
        ConnectError::Tls | ConnectError::Authorities => What::Tls,
        ConnectError::Timeout => What::Timeout(TimeoutPhase::Connect),
        ConnectError::Name | ConnectError::Connect | ConnectError::NotPublic => What::Connect,
    }
}

fn read_outcome(error: &pingora_error::Error, phase: TimeoutPhase) -> What {
    if *error.etype() == ErrorType::ReadTimedout || *error.etype() == ErrorType::WriteTimedout { What::Timeout(phase) } else { What::Reset }
}

async fn exchange(upstreams: &Arc<Upstreams>, mut connected: Connected, sending: Sending) -> Result<Committed, Box<Failed>> {
    let Sending { provider, header, body, watch, deadline, held, .. } = sending;
    let timeouts = provider.timeouts;
    let first_event_by = Instant::now() + timeouts.first_event;
    let reused = connected.reused;
    let holds = connected.holds.clone().filter(|_| !body.is_empty());
    let hold = |on: bool| {
        if let Some(holds) = &holds {
            holds.store(on, std::sync::atomic::Ordering::Relaxed);
        }
    };
    let session = &mut connected.session;
    session.set_write_timeout(Some(timeouts.first_event));
    let wrote = async {
        hold(true);
        session.write_request_header(header).await?;
        let slices = body.len();
        if slices == 0 {
            return session.finish_request_body().await;
        }
        for (index, slice) in body.into_iter().enumerate() {
            hold(index + 1 < slices && slice.len() <= HELD_SLICE_BYTES_MAX);
            session.write_request_body(slice, index + 1 == slices).await?;
        }
        Ok(())
    };
    // A provider may answer (413, 401) before it has read the whole body: look for that answer before giving up.
    let write_error = wrote.await.err();
    connected.sent_whole = write_error.is_none();
    let session = &mut connected.session;
    let limit = first_event_by.min(deadline);
    loop {
        session.set_read_timeout(Some(remaining(limit)));
        if let Err(error) = session.read_response_header().await {
            let closed = write_error.is_some() || matches!(error.retry, RetryType::ReusedOnly);
            let what = if closed && reused { What::Stale } else { read_outcome(&error, TimeoutPhase::FirstEvent) };
            return Err(if closed && !reused { What::Reset } else { what }.into());
        }
        if !session.response_header().is_some_and(|header| header.status.is_informational()) {
            break;
        }
    }
    let Some(upstream) = session.response_header() else { return Err(What::Reset.into()) };
    let header = headers::passing(upstream);
    let reading = Reading { watch, timeouts, deadline };
    if !upstream.status.is_success() {
        let retry_after_ms = retry_after_ms(upstream, crate::telemetry::clock::now_ms());
        return Err(Box::new(refused(upstreams, connected, header, retry_after_ms, &reading).await));
    }
    if is_event_stream(upstream) {
        first_event(connected, header, &reading, limit).await
    } else if is_opaque(upstream) {
        Ok(Committed::Opaque(boxed(|| Streaming { connected, header, meter: StreamMeter::of_body(watch), first: Vec::new(), share: None })))
    } else {
        whole(upstreams, connected, header, &reading, held).await
    }
}

/// What reading an answer needs to know.
struct Reading {
    watch: Watch,
    timeouts: Timeouts,
    deadline: Instant,
}

/// Whether an answer is passed on as it comes: it is neither JSON nor events, or too large to hold.
fn is_opaque(header: &ResponseHeader) -> bool {
    let content_type = content_type(header);
    let declared = || header.headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse::<usize>().ok();
    content_type.starts_with("audio/")
        || content_type.starts_with("application/octet-stream")
        || declared().is_some_and(|length| length > WHOLE_ANSWER_BYTES_MAX)
}

fn remaining(until: Instant) -> Duration {
    // Zero would mean "at once" to the timer; a millisecond lets what is already there be read.
    until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

fn content_type(header: &ResponseHeader) -> &str {
    header.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("")
}

fn is_event_stream(header: &ResponseHeader) -> bool {
    content_type(header).get(..17).is_some_and(|start| start.eq_ignore_ascii_case("text/event-stream"))
}

/// Reads an upstream's refusal.
async fn refused(
    upstreams: &Arc<Upstreams>,
    mut connected: Connected,
    header: Parts,
    retry_after_ms: Option<u64>,
    reading: &Reading,
) -> Failed {
    let mut body = BytesMut::new();
    connected.session.set_read_timeout(Some(reading.timeouts.between_events.min(remaining(reading.deadline))));
    let complete = loop {
        match connected.session.read_response_body().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= ERROR_BODY_BYTES_MAX => body.extend_from_slice(&chunk),
            Ok(Some(_)) | Err(_) => break false,
            Ok(None) => break true,
        }
    };
    if complete {
        upstreams.release(connected).await;
    }
    let error = dialect::upstream_error(&body);
    Failed { what: What::Status { retry_after_ms }, answer: Some(Answer { header, body: body.freeze(), error }) }
}

/// `retry-after-ms` (OpenAI) or `Retry-After` in seconds or as a date (RFC 9110, 10.2.3).
pub fn retry_after_ms(header: &ResponseHeader, now_ms: u64) -> Option<u64> {
    let text = |name: &str| header.headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(ms) = text("retry-after-ms").and_then(|value| value.split('.').next().and_then(|whole| whole.parse().ok())) {
        return Some(ms);
    }
    let value = text("retry-after")?;
    if let Some(seconds) = value.split('.').next().and_then(|whole| whole.parse::<u64>().ok()) {
        return Some(seconds.saturating_mul(1000));
    }
    let date = httpdate::parse_http_date(value).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some((date.as_millis() as u64).saturating_sub(now_ms))
}

/// Waits for the first event.
async fn first_event(mut connected: Connected, header: Parts, reading: &Reading, limit: Instant) -> Result<Committed, Box<Failed>> {
    let mut meter = StreamMeter::new(reading.watch);
    let mut first = Vec::with_capacity(4);
    let mut held = 0;
    loop {
        connected.session.set_read_timeout(Some(remaining(limit)));
        match connected.session.read_response_body().await {
            Ok(Some(chunk)) => {
                held += chunk.len();
                meter.feed(chunk, &mut first);
            }
            Ok(None) => {
                meter.flush(&mut first);
                if meter.events() == 0 {
                    return Err(What::EmptyOrNotJson.into());
                }
            }
            Err(error) => return Err(read_outcome(&error, TimeoutPhase::FirstEvent).into()),
        }
        if meter.events() > 0 || held > PREAMBLE_BYTES_MAX {
            if let Some(error) = meter.error_at_first() {
                let failed =
                    Failed { what: What::ErrorFirstEvent, answer: Some(Answer { header, body: Bytes::new(), error: error.clone() }) };
                return Err(Box::new(failed));
            }
            return Ok(Committed::Stream(boxed(|| Streaming { connected, header, meter, first, share: None })));
        }
    }
}

/// Reads a whole answer.
async fn whole(
    upstreams: &Arc<Upstreams>,
    mut connected: Connected,
    header: Parts,
    reading: &Reading,
    mut share: Share,
) -> Result<Committed, Box<Failed>> {
    let mut chunks: Vec<Bytes> = Vec::with_capacity(2);
    let mut length = 0;
    loop {
        connected.session.set_read_timeout(Some(reading.timeouts.between_events.min(remaining(reading.deadline))));
        match connected.session.read_response_body().await {
            Ok(Some(chunk)) => {
                length += chunk.len();
                chunks.push(chunk);
                if length > WHOLE_ANSWER_BYTES_MAX || share.grow_to(length as u64).is_err() {
                    let (mut meter, mut first) = (StreamMeter::of_body(reading.watch), Vec::new());
                    chunks.into_iter().for_each(|chunk| meter.feed(chunk, &mut first));
                    return Ok(Committed::Opaque(boxed(|| Streaming { connected, header, meter, first, share: Some(share) })));
                }
            }
            Ok(None) => break,
            Err(error) => return Err(read_outcome(&error, TimeoutPhase::Total).into()),
        }
    }
    let body = if chunks.len() == 1 { chunks.swap_remove(0) } else { chunks.concat().into() };
    let failed = match meter::whole(&reading.watch, &body) {
        // Some answer 200 with an error object: to the client that is a failure like any other.
        Ok((Tally { error: Some(error), ref usage, .. }, _)) if usage.is_zero() => {
            Failed { what: What::ErrorFirstEvent, answer: Some(Answer { header, body, error }) }
        }
        Ok((tally, text)) => return Ok(Committed::Whole(boxed(|| Whole { connected, header, body, tally, text, share }))),
        Err(()) => Failed::new(What::EmptyOrNotJson),
    };
    upstreams.release(connected).await;
    Err(Box::new(failed))
}

/// Reads a cancelled stream to its end for its usage, where the provider is configured so; otherwise closes it.
pub async fn abandon(
    upstreams: Arc<Upstreams>,
    mut connected: Connected,
    mut meter: StreamMeter,
    on_disconnect: OnDisconnect,
    deadline: Instant,
) -> StreamMeter {
    if on_disconnect == OnDisconnect::Cancel {
        connected.session.shutdown().await;
        return meter;
    }
    let mut discarded = Vec::new();
    loop {
        connected.session.set_read_timeout(Some(remaining(deadline)));
        match connected.session.read_response_body().await {
            Ok(Some(chunk)) => {
                meter.feed(chunk, &mut discarded);
                discarded.clear();
            }
            Ok(None) => {
                upstreams.release(connected).await;
                return meter;
            }
            Err(_) => return meter,
        }
        if Instant::now() >= deadline {
            return meter;
        }
    }
}
