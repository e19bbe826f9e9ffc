//! The one loop: attempts by the plan until one commits, then its answer to the client, then the account.

use super::attempt::{self, Committed, Failed, Sending, Streaming, Whole};
use super::body::Share;
use super::denied;
use super::gateway::Gateway;
use super::headers::{self, OWN_HEADERS, Outbound};
use super::heap::{boxed, pinned};
use super::idempotency::Keeping;
use super::ingress::{Admitted, Head};
use super::queue::Place;
use super::race::{Raced, Serving, Try};
use super::relay::{Relay, relay};
use super::respond;
use super::settle::{Ending, Exchanged, Settlement};
use crate::engine::catalog::{Provider, Retry, Target};
use crate::engine::health::InFlight;
use crate::engine::limit::Standings;
use crate::engine::meter::Watch;
use crate::engine::outbound;
use crate::engine::peek;
use crate::engine::provider::spec;
use crate::engine::refusal::{Refusal, UpstreamFailure};
use crate::engine::route::{Attempt, Payer, Verdict};
use crate::engine::tokens::Family;
use crate::store::ledger::End;
use crate::store::secret::Secret;
use crate::telemetry::clock;
use crate::telemetry::series::Series;
use bytes::Bytes;
use futures::future::join;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use pingora_core::protocols::http::ServerSession;
use pingora_http::ResponseHeader;
use std::sync::Arc;
use std::time::Instant;

/// The headers that tell the client what happened.
#[derive(Clone)]
pub struct Told {
    /// The target.
    pub target: Arc<Target>,
    /// With the caller's own key.
    pub own_key: bool,
    /// Not the first choice.
    pub was_fallback: bool,
    /// Attempts made, this one included.
    pub attempts: u32,
}

/// An attempt that is prepared: everything but the connection.
pub struct Prepared {
    /// What it sends.
    pub sending: Sending,
    /// The key in its header.
    pub key: Option<Arc<Secret>>,
}

/// Serves an admitted request. Returns whether the client's connection may be used again.
pub async fn serve(gateway: &Arc<Gateway>, session: &mut ServerSession, head: &Head, admitted: Box<Admitted>) -> bool {
    let mut serving = Serving { gateway, head, admitted, opened: false, passed_over: false };
    loop {
        let (next, sending) = match serving.next(session) {
            Ok(next) => next,
            Err(refusal) => return Box::pin(serving.refuse(session, refusal)).await,
        };
        match pinned(|| serving.race(session, next, sending)).await {
            Raced::Won(winner, committed) => {
                let (answering, settlement) = serving.answering(*winner);
                return answering.answer(session, committed, settlement).await;
            }
            Raced::Gone(family) => {
                Box::pin(cancel(serving.admitted.settlement, family)).await;
                return false;
            }
            Raced::Lost(_, _, Verdict::TryNext) => {}
            Raced::Lost(last, failed, Verdict::Refuse(no)) => {
                let secret = last.key.as_deref().map(|key| key.expose());
                let said = UpstreamFailure::new(last.told.target.provider.name.clone(), failed.status(), failed.message(), secret);
                let failure = denied::Failure { said, is_about_money: failed.outcome().is_about_money() };
                let refusal = denied::refusal(no, serving.admitted.peek.model.as_deref().unwrap_or_default(), Some(failure));
                return Box::pin(serving.refuse(session, refusal)).await;
            }
            // The others do not follow a failure before the first event.
            Raced::Lost(last, failed, Verdict::ReturnUpstream | Verdict::Committed | Verdict::EndStream | Verdict::Drop) => {
                return Box::pin(serving.return_upstream(session, *failed, &last.told, last.key.as_deref())).await;
            }
        }
    }
}

impl<'a> Serving<'a> {
    /// What the answer needs of all this.
    fn answering(self, winner: Try) -> (Box<Answering<'a>>, Settlement) {
        let Serving { gateway, head, admitted, opened, .. } = self;
        let Try { attempt, told, series, in_flight, deadline, .. } = winner;
        let blame = Blame { gateway, attempt, series: series.clone(), retry: admitted.plan.retry(), is_told: false };
        let (standings, settlement, keeping, place) = for_the_answer(admitted);
        let answering = Answering { gateway, head, told, standings, deadline, series, in_flight, opened, keeping, blame, _place: place };
        (Box::new(answering), settlement)
    }

    /// Passes an upstream's refusal on as it came: the caller is to blame and should see why.
    async fn return_upstream(self, session: &mut ServerSession, failed: Failed, told: &Told, key: Option<&Secret>) -> bool {
        let failure =
            UpstreamFailure::new(told.target.provider.name.clone(), failed.status(), failed.message(), key.map(|key| key.expose()));
        let refusal = Refusal::AttemptsFailed { attempts: told.attempts, last: failure, retry_after_ms: None };
        let Some(answer) = failed.answer.filter(|answer| !answer.body.is_empty() && !self.opened) else {
            return self.refuse(session, refusal).await;
        };
        let status = answer.header.status.as_u16();
        // A provider that quotes the key it was given does not get it through.
        if key.is_some_and(|key| quotes(&answer.body, key.expose().as_bytes())) {
            return self.refuse(session, refusal).await;
        }
        let (standings, settlement, keeping, _place) = for_the_answer(self.admitted);
        settlement.refuse(End::Failed, status).await;
        drop(keeping);
        let mut header = answer.header;
        weirs_own(self.head, Some(told), &standings, &mut header.headers);
        header.headers.insert(CONTENT_LENGTH, HeaderValue::from(answer.body.len()));
        respond::write(session, header, answer.body).await
    }

    /// Says no to an admitted request. What is opened already ends with an error event.
    async fn refuse(self, session: &mut ServerSession, refusal: Refusal) -> bool {
        self.gateway.metrics.refusals.with_label_values(&[refusal.reason()]).inc();
        let (standings, settlement, keeping, _place) = for_the_answer(self.admitted);
        settlement.refuse(End::Failed, refusal.status()).await;
        // Sent again, it runs anew, at once.
        drop(keeping);
        if self.opened {
            return end_opened(session, self.head, &refusal).await;
        }
        write_refusal(session, Some(self.head), self.head.endpoint.dialect(), &refusal, &standings).await
    }
}

/// What an answer needs of a request. The rest (the body with its share of the memory, the plan) goes before a long stream begins.
fn for_the_answer(admitted: Box<Admitted>) -> (Standings, Settlement, Option<Keeping>, Place) {
    let Admitted { standings, settlement, keeping, place, .. } = *admitted;
    (standings, settlement, keeping, place)
}

/// Whether a text has as much of a secret in it as nobody may see: eight bytes in a row beyond the first and last four.
fn quotes(text: &[u8], secret: &[u8]) -> bool {
    match secret.len() {
        // Too short to have a part that is more than its ends.
        0 => false,
        1..16 => memchr::memmem::find(text, secret).is_some(),
        length => secret[4..length - 4].windows(8).any(|part| memchr::memmem::find(text, part).is_some()),
    }
}

/// Ends a stream that was opened before anybody answered, without its normal end mark.
async fn end_opened(session: &mut ServerSession, head: &Head, refusal: &Refusal) -> bool {
    let mut event = String::new();
    refusal.write_event(head.endpoint, &mut event);
    session.write_response_body(event.into(), true).await.is_ok()
}

/// Puts the key, the path, the model's name and the edits of one attempt together.
pub fn prepare(
    gateway: &Gateway,
    session: &ServerSession,
    head: &Head,
    admitted: &Admitted,
    attempt: &Attempt,
) -> Result<Prepared, Refusal> {
    let target = &attempt.target;
    let (key, provider, public_only) = match &attempt.payer {
        Payer::Platform => {
            let key = match &target.provider.key {
                None => None,
                // Configured and not there: never asked without.
                Some(reference) => {
                    Some(gateway.key_ring.platform(reference).ok_or_else(|| Refusal::NoPayer { model: target.model.as_ref().into() })?)
                }
            };
            (key, target.provider.clone(), false)
        }
        Payer::Own(_) => {
            let own = gateway.key_ring.own(&admitted.caller.key.account_id, &target.provider.name).ok_or_else(|| gone(target))?;
            let secret = Some(Arc::new(own.open(head.started_ms).map_err(|_| gone(target))?));
            match own.base_url() {
                // A tier may be left, and its rights with it. Another place than the key's own must not see it.
                Some(_) if !admitted.caller.tier.as_ref().is_some_and(|tier| tier.own_base_url) => return Err(gone(target)),
                Some(base) => {
                    let provider = Provider { base: base.clone(), ca: None, ..(*target.provider).clone() };
                    (secret, Arc::new(provider), !gateway.settings.vault.allows_host(&base.host))
                }
                None => (secret, target.provider.clone(), false),
            }
        }
    };
    let row = spec(provider.kind);
    let peek = &admitted.peek;
    let edits = outbound::edits(head.endpoint, peek, row, attempt, admitted.output_cap);
    let body = peek::edit(head.endpoint, &admitted.body, peek, &edits);
    let mut path = String::with_capacity(64);
    row.write_path(&provider, head.endpoint, &target.upstream_model, &mut path);
    let header = headers::outbound(&Outbound {
        client: session.req_header(),
        spec: row,
        path: &path,
        authority: &provider.base.authority,
        key: key.as_ref().map(|secret| secret.expose()),
        own_key: matches!(attempt.payer, Payer::Own(_)),
        length: body.iter().map(Bytes::len).sum(),
        request_id: head.id.as_str(),
    })
    .ok_or_else(|| Refusal::NoPayer { model: target.model.as_ref().into() })?;
    let watch = Watch { endpoint: head.endpoint, kind: provider.kind, family: target.family, strip_usage: edits.include_usage };
    let deadline = head.started + provider.timeouts.total;
    let held = Share::of(&gateway.bodies);
    Ok(Prepared { sending: Sending { provider, public_only, header, body, watch, deadline, held }, key })
}

/// An own key that was removed between the plan and the attempt.
fn gone(target: &Target) -> Refusal {
    Refusal::ByokMissing { model: target.model.as_ref().into(), providers: vec![target.provider.name.clone()] }
}

/// The client left while a target was being asked: the prompt has been sent, so it is taken as used.
async fn cancel(mut settlement: Settlement, family: Family) {
    if let Some(open) = settlement.open() {
        open.status = 499;
    }
    settlement.settle(Ending::Cancelled, Exchanged::nothing(family)).await;
}

/// Who is to blame for the end of an answer that has begun. Told once, before the client sees the end, so that who looks afterwards
/// finds it; nobody is where it is dropped untold, for whoever stopped then was not the provider.
pub struct Blame<'a> {
    gateway: &'a Gateway,
    attempt: Attempt,
    series: Arc<Series>,
    retry: Retry,
    is_told: bool,
}

impl Blame<'_> {
    /// The provider broke off.
    pub fn provider(&mut self) {
        if !std::mem::replace(&mut self.is_told, true) {
            self.attempt.broke_off(clock::now_ms(), &self.retry);
            self.gateway.metrics.attempts.with_label_values(&[&self.attempt.target.provider.name, "broken_off"]).inc();
        }
    }

    /// The provider did all that was wanted of it.
    pub fn nobody(&mut self) {
        if !std::mem::replace(&mut self.is_told, true) {
            self.attempt.came_to_its_end();
            self.gateway.metrics.attempt_ok(&self.series);
        }
    }
}

impl Drop for Blame<'_> {
    fn drop(&mut self) {
        self.nobody();
    }
}

/// What answering needs. In a box: each step of an answer holds it.
struct Answering<'a> {
    gateway: &'a Arc<Gateway>,
    head: &'a Head,
    told: Told,
    standings: Standings,
    deadline: Instant,
    series: Arc<Series>,
    /// The target's count of requests under way, until the answer's end.
    in_flight: InFlight,
    /// The client has its header and some comments already.
    opened: bool,
    /// Keeps the answer to be given again.
    keeping: Option<Keeping>,
    blame: Blame<'a>,
    _place: Place,
}

impl Answering<'_> {
    /// Returns whether the client's connection may be used again.
    async fn answer(self: Box<Self>, session: &mut ServerSession, committed: Committed, settlement: Settlement) -> bool {
        match committed {
            Committed::Whole(whole) if self.opened => pinned(|| self.not_streamed(session, *whole, settlement)).await,
            Committed::Whole(whole) => pinned(|| self.whole(session, *whole, settlement)).await,
            Committed::Stream(streaming) | Committed::Opaque(streaming) => self.stream(session, streaming, settlement).await,
        }
    }

    /// The account first, then the answer: its cost is a header, and its row must be there before its end is seen.
    async fn whole(mut self: Box<Self>, session: &mut ServerSession, whole: Whole, settlement: Settlement) -> bool {
        let Whole { connected, mut header, body, tally, text, share: _held } = whole;
        self.blame.nobody();
        let settled = settlement.settle(Ending::Complete, Exchanged { tally, text }).await;
        drop(self.in_flight);
        weirs_own(self.head, Some(&self.told), &self.standings, &mut header.headers);
        header.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        if let Ok(cost) = HeaderValue::from_str(settled.cost.text().as_str()) {
            header.headers.insert(headers::X_COST_INCURRED, cost);
        }
        // Before it is written: it is paid, so a client that loses it on the way gets it by asking again.
        if let Some(mut keeping) = self.keeping {
            keeping.head(&header);
            keeping.body(&body);
            keeping.complete(clock::now_ms());
        }
        // In this order: who waits for the answer does not wait for the pool, nor does the pool for a slow client. (It does wait for a
        // row that is not safe at once, with `commit = "strict"` say.)
        join(respond::write(session, header, body), self.gateway.upstreams.release(connected)).await.0
    }

    /// A stream was opened for the client and the target answered without one: there is no place for that answer.
    async fn not_streamed(mut self: Box<Self>, session: &mut ServerSession, whole: Whole, settlement: Settlement) -> bool {
        self.blame.provider();
        let Whole { connected, tally, text, .. } = whole;
        self.gateway.upstreams.release(connected).await;
        settlement.settle(Ending::Failed, Exchanged { tally, text }).await;
        let provider = self.told.target.provider.name.clone();
        let refusal = Refusal::StreamBroken(UpstreamFailure::new(provider, None, "it answered without streaming", None));
        end_opened(session, self.head, &refusal).await
    }

    async fn stream(mut self: Box<Self>, session: &mut ServerSession, mut streaming: Box<Streaming>, settlement: Settlement) -> bool {
        // Taken out: a stream has no use for it while it runs.
        let mut header = std::mem::replace(&mut streaming.header, respond::header(200, 0));
        weirs_own(self.head, Some(&self.told), &self.standings, &mut header.headers);
        // Framing is this hop's own: what the client gets may be shorter than what the upstream sends. HTTP/1.0 knows no chunks:
        // there the end of the connection is the end of the answer.
        if session.req_header().version == http::Version::HTTP_10 {
            session.set_keepalive(None);
        } else {
            header.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if let Some(keeping) = &mut self.keeping {
            keeping.head(&header);
        }
        if !self.opened && session.write_response_header(boxed(|| header.into())).await.is_err() {
            let upstream = Box::pin(attempt::abandon(
                self.gateway.upstreams.clone(),
                streaming.connected,
                streaming.meter,
                self.told.target.provider.on_disconnect,
                self.deadline,
            ))
            .await;
            let (tally, text) = upstream.finish();
            settlement.settle(Ending::Cancelled, Exchanged { tally, text }).await;
            return false;
        }
        self.gateway.metrics.streams_active.inc();
        let _active = StreamGauge(&self.gateway.metrics.streams_active);
        let mut relaying = Relay {
            session,
            upstreams: &self.gateway.upstreams,
            provider: &self.told.target.provider,
            endpoint: self.head.endpoint,
            deadline: self.deadline,
            series: &self.series,
            upgrade_url: self.gateway.upgrade_url.clone(),
            keeping: self.keeping,
            blame: self.blame,
        };
        let closes = relaying.session.req_header().version == http::Version::HTTP_10;
        relay(&mut relaying, streaming, settlement).await && !closes
    }
}

struct StreamGauge<'a>(&'a prometheus::IntGauge);

impl Drop for StreamGauge<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The header of a stream that is opened before anybody answers.
pub fn opening_header(head: &Head, standings: &Standings) -> Box<ResponseHeader> {
    let mut header = respond::header(200, OWN_HEADERS);
    header.headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    header.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    header.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    weirs_own(head, None, standings, &mut header.headers);
    boxed(|| header.into())
}

/// weir's own response headers.
pub fn weirs_own(head: &Head, told: Option<&Told>, standings: &Standings, to: &mut HeaderMap) {
    if let Ok(value) = HeaderValue::from_str(head.id.as_str()) {
        to.insert(headers::X_REQUEST_ID, head.client_id.clone().unwrap_or_else(|| value.clone()));
        to.insert(headers::X_WEIR_REQUEST_ID, value);
    }
    if let Some(told) = told {
        let flag = |is: bool| HeaderValue::from_static(if is { "true" } else { "false" });
        for (name, text) in [(headers::X_PROVIDER_USED, &told.target.provider.name), (headers::X_MODEL_USED, &told.target.upstream_model)] {
            if let Ok(value) = HeaderValue::from_str(text) {
                to.insert(name, value);
            }
        }
        to.insert(headers::X_USED_BYOK, flag(told.own_key));
        to.insert(headers::X_WAS_FALLBACK, flag(told.was_fallback));
        to.insert(headers::X_WEIR_ATTEMPTS, HeaderValue::from(told.attempts));
    }
    standings.headers(|name, value| {
        if let Ok(value) = HeaderValue::from_str(value) {
            to.insert(HeaderName::from_static(name), value);
        }
    });
}

/// Writes a refusal in the dialect of the path.
pub async fn write_refusal(
    session: &mut ServerSession,
    head: Option<&Head>,
    dialect: crate::engine::dialect::Dialect,
    refusal: &Refusal,
    standings: &Standings,
) -> bool {
    let body = refusal.body(dialect);
    let mut header = respond::document(refusal.status(), "application/json", body.len());
    if let Some(head) = head {
        weirs_own(head, None, standings, &mut header.headers);
    }
    if let Some(wait) = refusal.retry_after_s() {
        header.headers.insert(http::header::RETRY_AFTER, HeaderValue::from(wait));
    }
    if let Some(allow) = refusal.allow() {
        header.headers.insert(http::header::ALLOW, HeaderValue::from_static(allow));
    }
    if refusal.closes_connection() {
        session.set_keepalive(None);
        header.headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    }
    respond::write(session, header, body.into()).await && !refusal.closes_connection()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_secret_is_found() {
        let secret = b"sk-proj-0123456789abcdef";
        for (text, expected) in [
            (&b"sk-proj-0123456789abcdef"[..], true),
            (b"part 01234567 of it", true),
            (b"456789abcdef", true),
            (b"sk-proj- and what follows", false),
            (b"0123456", false),
            (b"abcdef", false),
            (b"", false),
        ] {
            assert_eq!(quotes(text, secret), expected, "{}", String::from_utf8_lossy(text));
        }
        assert!(quotes(b"it is short12", b"short12") && !quotes(b"short1", b"short12") && !quotes(b"anything", b""));
    }
}
