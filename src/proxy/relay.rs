//! A committed stream, from its first event to its end.
//!
//! Bytes go out as they come, in order. What is already there when one read has ended shares its write (bounded by
//! [`COALESCE_BYTES_MAX`]); an event that is alone goes out at once. The account is settled before the bytes that tell the
//! client of the end, so that an end the client saw is an end the ledger has.

use super::attempt::{Streaming, abandon};
use super::exchange::Blame;
use super::heap::pinned;
use super::idempotency::Keeping;
use super::settle::{Ending, Exchanged, Settlement};
use super::upstream::Upstreams;
use crate::engine::catalog::Provider;
use crate::engine::dialect::Endpoint;
use crate::engine::refusal::{Refusal, UpstreamFailure};
use crate::telemetry::clock;
use crate::telemetry::series::Series;
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use pingora_core::protocols::http::ServerSession;
use pingora_error::ErrorType;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One write carries at most about this much: enough for a burst, little enough to hold for every stream.
pub const COALESCE_BYTES_MAX: usize = 16 << 10;
/// Slices are joined up to this much: a burst, and what one read more brings.
const JOINED_BYTES_MAX: usize = 128 << 10;
/// A client that takes nothing for this long is gone.
pub const CLIENT_WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// After its end mark a stream's connection gets this long to close its framing, then it is not reused.
const TRAILER_TIMEOUT: Duration = Duration::from_secs(1);

/// A comment between two events, which clients pass over.
pub const HEARTBEAT: &[u8] = b": heartbeat\n\n";

/// How an answer ended that its provider's connection did not outlive.
const BROKE: &str = "the connection broke in the middle of its answer";

/// What the relay needs besides the stream.
pub struct Relay<'a> {
    /// The client.
    pub session: &'a mut ServerSession,
    /// Connections, to give this one back.
    pub upstreams: &'a Arc<Upstreams>,
    /// Who answers.
    pub provider: &'a Provider,
    /// What was asked.
    pub endpoint: Endpoint,
    /// When the exchange must be over.
    pub deadline: Instant,
    /// The pair's metrics.
    pub series: &'a Series,
    /// Where more credits are to be had.
    pub upgrade_url: Option<Arc<str>>,
    /// Keeps the answer to be given again.
    pub keeping: Option<Keeping>,
    /// Is told how it ended.
    pub blame: Blame<'a>,
}

/// How reading ended.
enum End {
    /// The upstream closed the stream in good order.
    Upstream,
    /// The upstream broke or fell silent.
    Broken(&'static str),
    /// The client went away.
    Client,
    /// The reservation ran out and the balance has no more.
    Credit,
}

/// Passes a stream on and settles its account. Returns whether the client's connection may be used again.
/// Dropped half way (shutdown, panic), the settlement closes the account as cancelled.
pub async fn relay(relay: &mut Relay<'_>, mut streaming: Box<Streaming>, mut settlement: Settlement) -> bool {
    let Streaming { connected, meter, first, share, .. } = &mut *streaming;
    let mut joined = BytesMut::new();
    relay.session.set_write_timeout(Some(CLIENT_WRITE_TIMEOUT));
    let mut last_read = Instant::now();
    let mut broken = false;
    let end = loop {
        let ended = meter.ended();
        if !ended && settlement.exhausted(meter) {
            // The event that overdrew goes out: the provider asks for it.
            let _ = write(relay.session, &mut relay.keeping, first, &mut joined).await;
            break End::Credit;
        }
        if ended {
            break End::Upstream;
        }
        settlement.progress(meter);
        if write(relay.session, &mut relay.keeping, first, &mut joined).await.is_err() {
            break End::Client;
        }
        drop(share.take());
        if broken {
            break End::Broken(BROKE);
        }
        let limit = relay.provider.timeouts.between_events.min(relay.deadline.saturating_duration_since(last_read));
        connected.session.set_read_timeout(Some(limit.max(Duration::from_millis(1))));
        let Some(read) = relay.next(connected.session.read_response_body(), meter.is_between_events()).await else { break End::Client };
        let now = Instant::now();
        relay.series.between_events.observe(now - last_read);
        last_read = now;
        match read {
            Ok(Some(chunk)) => {
                let mut bytes = chunk.len();
                meter.feed(chunk, first);
                // What is already here shares the write. Without a timer: the read is dropped if it would wait.
                connected.session.set_read_timeout(None);
                while bytes < COALESCE_BYTES_MAX && !meter.ended() {
                    match connected.session.read_response_body().now_or_never() {
                        Some(Ok(Some(chunk))) => {
                            bytes += chunk.len();
                            meter.feed(chunk, first);
                        }
                        // Told once: the next read would find an end.
                        Some(Err(_)) => {
                            broken = true;
                            break;
                        }
                        Some(Ok(None)) | None => break,
                    }
                }
            }
            Ok(None) => break End::Upstream,
            Err(error) if *error.etype() == ErrorType::ReadTimedout => break End::Broken("it fell silent in the middle of its answer"),
            Err(_) => break End::Broken(BROKE),
        }
    };
    pinned(|| finish(relay, *streaming, joined, end, settlement)).await
}

async fn finish(relay: &mut Relay<'_>, streaming: Streaming, mut joined: BytesMut, end: End, settlement: Settlement) -> bool {
    let Streaming { mut connected, mut meter, first: mut out, .. } = streaming;
    // Only what ended well is given again; whatever else ends may be sent again and runs anew.
    let mut keeping = relay.keeping.take();
    match end {
        End::Upstream => {
            meter.flush(&mut out);
            // A stream may close in good order without an end mark, but not without having said that it is finished.
            let cut = !meter.ended() && !meter.may_end_without_mark();
            let failed = cut || meter.error().is_some();
            if failed {
                relay.blame.provider()
            } else {
                relay.blame.nobody()
            }
            let is_of_events = meter.is_of_events();
            let (tally, text) = meter.finish();
            settlement.settle(if failed { Ending::Failed } else { Ending::Complete }, Exchanged { tally, text }).await;
            if cut {
                drop(keeping);
                let refusal = relay.broken("it ended its answer before it was finished");
                return relay.end_with(&mut out, &mut joined, &refusal, is_of_events).await;
            }
            let taken = write(relay.session, &mut keeping, &mut out, &mut joined).await.is_ok();
            let client = pass_rest(relay.session, &mut keeping, &mut connected, taken).await;
            match keeping {
                Some(keeping) if !failed => keeping.complete(clock::now_ms()),
                other => drop(other),
            }
            let client = client && relay.session.write_response_body(Bytes::new(), true).await.is_ok();
            if connected.session.response_done() {
                relay.upstreams.release(connected).await;
            }
            client
        }
        End::Broken(what) => {
            relay.blame.provider();
            connected.session.shutdown().await;
            drop(keeping);
            meter.flush(&mut out);
            let is_of_events = meter.is_of_events();
            let (tally, text) = meter.finish();
            settlement.settle(Ending::Failed, Exchanged { tally, text }).await;
            relay.end_with(&mut out, &mut joined, &relay.broken(what), is_of_events).await
        }
        End::Credit => {
            connected.session.shutdown().await;
            drop(keeping);
            relay.blame.nobody();
            let is_of_events = meter.is_of_events();
            let (tally, text) = meter.finish();
            settlement.settle(Ending::Cancelled, Exchanged { tally, text }).await;
            let refusal = Refusal::CreditsRanOut { upgrade_url: relay.upgrade_url.clone() };
            relay.end_with(&mut out, &mut joined, &refusal, is_of_events).await
        }
        End::Client => {
            relay.blame.nobody();
            let meter = abandon(relay.upstreams.clone(), connected, meter, relay.provider.on_disconnect, relay.deadline).await;
            let (tally, text) = meter.finish();
            settlement.settle(Ending::Cancelled, Exchanged { tally, text }).await;
            false
        }
    }
}

/// Passes on what comes behind the end mark (the end of its line, a comment) until the upstream closes its framing. To the
/// client while it is `there`; whether it still is.
async fn pass_rest(
    session: &mut ServerSession,
    keeping: &mut Option<Keeping>,
    connected: &mut super::upstream::Connected,
    mut there: bool,
) -> bool {
    connected.session.set_read_timeout(Some(TRAILER_TIMEOUT));
    while (there || keeping.is_some()) && !connected.session.response_done() {
        match connected.session.read_response_body().await {
            Ok(Some(chunk)) => {
                if let Some(keeping) = keeping {
                    keeping.body(&chunk);
                }
                there = there && session.write_response_body(chunk, false).await.is_ok();
            }
            // An upstream that is slow to close has said everything all the same.
            Ok(None) | Err(_) => break,
        }
    }
    there
}

impl Relay<'_> {
    /// Waits for the upstream. While it is silent the client is told that somebody is there, if the provider's `heartbeat` is
    /// set and what has gone out ends with an event. `None`: the client has gone.
    async fn next<T>(&mut self, reading: impl Future<Output = T>, is_between_events: bool) -> Option<T> {
        let mut reading = pin!(reading);
        let heartbeat = self.provider.heartbeat.filter(|_| is_between_events);
        loop {
            tokio::select! {
                biased;
                read = &mut reading => return Some(read),
                _ = self.session.read_body_or_idle(true) => return None,
                () = silence(heartbeat) => {}
            }
            self.session.write_response_body(Bytes::from_static(HEARTBEAT), false).await.ok()?;
        }
    }

    fn broken(&self, what: &str) -> Refusal {
        Refusal::StreamBroken(UpstreamFailure::new(self.provider.name.clone(), None, what, None))
    }

    /// Ends the answer with an error event and without its normal end mark. A body that is not of events has no place for one: it ends
    /// without its end, so that nobody takes what came for all there is.
    async fn end_with(&mut self, out: &mut Vec<Bytes>, joined: &mut BytesMut, refusal: &Refusal, is_of_events: bool) -> bool {
        if !is_of_events {
            let _ = write(self.session, &mut self.keeping, out, joined).await;
            return false;
        }
        // A partial event may have gone out: an empty line ends it, so that the error stands alone.
        let mut event = String::from("\n\n");
        refusal.write_event(self.endpoint, &mut event);
        out.push(event.into());
        write(self.session, &mut self.keeping, out, joined).await.is_ok()
            && self.session.write_response_body(Bytes::new(), true).await.is_ok()
    }
}

async fn silence(heartbeat: Option<Duration>) {
    match heartbeat {
        Some(heartbeat) => tokio::time::sleep(heartbeat).await,
        None => std::future::pending().await,
    }
}

/// Writes what is due in one go.
async fn write(session: &mut ServerSession, keeping: &mut Option<Keeping>, out: &mut Vec<Bytes>, joined: &mut BytesMut) -> Result<(), ()> {
    let bytes = match out.len() {
        0 => return Ok(()),
        1 => out.swap_remove(0),
        // What was held of a long answer: joined it would be held twice.
        _ if out.iter().map(Bytes::len).sum::<usize>() > JOINED_BYTES_MAX => {
            for slice in out.drain(..) {
                if let Some(keeping) = keeping {
                    keeping.body(&slice);
                }
                session.write_response_body(slice, false).await.map_err(drop)?;
            }
            return Ok(());
        }
        _ => {
            for slice in out.drain(..) {
                joined.extend_from_slice(&slice);
            }
            joined.split().freeze()
        }
    };
    if let Some(keeping) = keeping {
        keeping.body(&bytes);
    }
    session.write_response_body(bytes, false).await.map_err(drop)
}
