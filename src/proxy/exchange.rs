//! The one loop: attempts by the plan until one commits, then its answer to the client, then the account.

use super::attempt::{self, Committed, Failed, Sending, Streaming, Whole};
use super::denied;
use super::gateway::Gateway;
use super::headers::{self, Outbound};
use super::ingress::{Admitted, Head};
use super::relay::{Relay, Relayed, relay};
use super::respond;
use super::settle::{Current, Ending, Exchanged, Settlement};
use crate::engine::catalog::{BaseUrl, Provider, Target};
use crate::engine::health::InFlight;
use crate::engine::limit::Standings;
use crate::engine::meter::Watch;
use crate::engine::money::Usd;
use crate::engine::peek::{self, Edits};
use crate::engine::provider::spec;
use crate::engine::refusal::{Refusal, UpstreamFailure};
use crate::engine::route::{Attempt, Outcome, Payer, Verdict};
use crate::engine::tokens;
use crate::store::ledger::End;
use crate::store::secret::Secret;
use crate::telemetry::clock;
use crate::telemetry::metrics::Series;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use pingora_core::protocols::http::ServerSession;
use pingora_http::ResponseHeader;
use std::sync::Arc;
use std::time::Instant;

/// The headers that tell the client what happened.
#[derive(Clone)]
pub struct Told {
    target: Arc<Target>,
    own_key: bool,
    was_fallback: bool,
    attempts: u32,
}

/// An attempt that is prepared: everything but the connection.
struct Prepared {
    sending_to: Arc<Provider>,
    public_only: bool,
    header: Box<pingora_http::RequestHeader>,
    body: Vec<Bytes>,
    watch: Watch,
    key: Option<Arc<Secret>>,
}

/// Serves an admitted request. Returns whether the client's connection may be used again.
pub async fn serve(gateway: &Arc<Gateway>, session: &mut ServerSession, head: &Head, mut admitted: Admitted) -> bool {
    let mut attempts = 0;
    loop {
        let now_ms = clock::now_ms();
        let Some(attempt) = admitted.plan.next(now_ms) else {
            // The verdict before said so, and a plan begins with at least one attempt.
            return refuse(session, head, admitted.settlement, Refusal::Internal, &admitted.standings).await;
        };
        attempts += 1;
        let told = Told { target: attempt.target.clone(), own_key: matches!(attempt.payer, Payer::Own(_)), was_fallback: attempt.is_fallback || attempts > 1, attempts };
        let series = gateway.metrics.of_target(&attempt.target);
        if let Some(open) = admitted.settlement.open() {
            open.current = Some(Current { target: told.target.clone(), own_key: told.own_key, attempts, was_fallback: told.was_fallback });
            open.series = Some(series.clone());
        }
        let prepared = match prepare(gateway, session, head, &admitted, &attempt) {
            Ok(prepared) => prepared,
            Err(refusal) => {
                // As a provider's 401 would: the key is to blame, and another target may have one.
                let outcome = Outcome::Status { code: 401, retry_after_ms: None, error_code: "", message: "" };
                if matches!(admitted.plan.after(&attempt, &outcome, clock::now_ms()), Verdict::TryNext) {
                    continue;
                }
                return refuse(session, head, admitted.settlement, refusal, &admitted.standings).await;
            }
        };
        let in_flight = attempt.target.begin();
        let deadline = head.started + prepared.sending_to.timeouts.total;
        let asked_at = Instant::now();
        let sending = Sending {
            provider: &prepared.sending_to,
            public_only: prepared.public_only,
            header: prepared.header,
            body: &prepared.body,
            watch: prepared.watch,
            stream: admitted.peek.stream,
            deadline,
        };
        let result = tokio::select! {
            biased;
            result = attempt::attempt(&gateway.upstreams, sending) => result,
            _ = session.read_body_or_idle(true) => {
                admitted.plan.after(&attempt, &Outcome::Cancelled, clock::now_ms());
                gateway.metrics.attempts.with_label_values(&[&attempt.target.provider.name, "cancelled"]).inc();
                cancel(admitted.settlement, &prepared.watch).await;
                return false;
            }
        };
        let waited = asked_at.elapsed();
        match result {
            Ok(committed) => {
                let now_ms = clock::now_ms();
                attempt.record_first_event(now_ms, waited.as_micros() as u64);
                admitted.plan.after(&attempt, &Outcome::Ok, now_ms);
                gateway.metrics.attempts.with_label_values(&[&attempt.target.provider.name, "ok"]).inc();
                let total = head.started.elapsed();
                series.first_event.observe(total.as_secs_f64());
                series.overhead.observe(total.saturating_sub(waited).as_secs_f64());
                if let Some(open) = admitted.settlement.open() {
                    open.first_event_ms = Some(total.as_millis() as u64);
                }
                let answering = Answering { gateway, head, told, standings: admitted.standings, deadline, series, in_flight };
                // The body is not needed any more: its memory and its share go back before a long stream begins.
                drop((prepared.body, admitted.body, admitted.share));
                let answered = answering.answer(session, committed, admitted.settlement).await;
                if answered.broken_off {
                    admitted.plan.after(&attempt, &Outcome::BrokenOff, clock::now_ms());
                    gateway.metrics.attempts.with_label_values(&[&attempt.target.provider.name, "broken_off"]).inc();
                }
                return answered.reusable;
            }
            Err(failed) => {
                let outcome = failed.outcome();
                let class = outcome.class();
                gateway.metrics.attempts.with_label_values(&[&attempt.target.provider.name, class.name()]).inc();
                let verdict = admitted.plan.after(&attempt, &outcome, clock::now_ms());
                gateway.log_attempt(head.id.as_str(), &attempt.target, class, failed.status());
                match verdict {
                    Verdict::TryNext => {}
                    Verdict::Refuse(no) => {
                        let secret = prepared.key.as_deref().map(|key| key.expose());
                        let failure = UpstreamFailure::new(attempt.target.provider.name.clone(), failed.status(), failed.message(), secret);
                        let failure = denied::Failure { said: failure, is_about_money: outcome.is_about_money() };
                        let refusal = denied::refusal(no, admitted.peek.model.as_deref().unwrap_or_default(), Some(failure));
                        return refuse(session, head, admitted.settlement, refusal, &admitted.standings).await;
                    }
                    // The others do not follow a failure before the first event.
                    Verdict::ReturnUpstream | Verdict::Committed | Verdict::EndStream | Verdict::Drop => {
                        return return_upstream(session, head, admitted.settlement, failed, &told, &admitted.standings, prepared.key.as_deref()).await;
                    }
                }
            }
        }
    }
}

/// Puts the key, the path, the model's name and the edits of one attempt together.
fn prepare(gateway: &Gateway, session: &ServerSession, head: &Head, admitted: &Admitted, attempt: &Attempt) -> Result<Prepared, Refusal> {
    let target = &attempt.target;
    let (key, provider, public_only) = match &attempt.payer {
        Payer::Platform => {
            let key = match &target.provider.key {
                None => None,
                // Configured and not there: never asked without.
                Some(reference) => Some(gateway.key_ring.platform(reference).ok_or_else(|| Refusal::NoPayer { model: target.model.as_ref().into() })?),
            };
            (key, target.provider.clone(), false)
        }
        Payer::Own(_) => {
            let own = gateway.key_ring.own(&admitted.caller.key.account_id, &target.provider.name).ok_or_else(|| gone(target))?;
            let secret = Some(Arc::new(own.open(head.started_ms).map_err(|_| gone(target))?));
            match own.base_url() {
                Some(base) => (secret, Arc::new(Provider { base: base.clone(), ..(*target.provider).clone() }), true),
                None => (secret, target.provider.clone(), false),
            }
        }
    };
    let row = spec(provider.kind);
    let peek = &admitted.peek;
    let asks_for_usage = peek.stream && !peek.include_usage && row.asks_for_usage(head.endpoint);
    let edits = Edits {
        model: (peek.model.as_deref() != Some(&*target.upstream_model)).then_some(&*target.upstream_model),
        include_usage: asks_for_usage,
        max_output: [admitted.output_cap, attempt.max_output].into_iter().flatten().min(),
        cap_field: row.output_cap_field(head.endpoint).unwrap_or(""),
    };
    let mut body = Vec::with_capacity(6);
    peek::edit(head.endpoint, &admitted.body, peek, &edits, &mut body);
    let mut path = String::with_capacity(64);
    row.write_path(&provider, head.endpoint, &target.upstream_model, &mut path);
    let authority = authority(&provider.base);
    let header = headers::outbound(&Outbound {
        client: session.req_header(),
        spec: row,
        path: &path,
        authority: &authority,
        key: key.as_ref().map(|secret| secret.expose()),
        own_key: matches!(attempt.payer, Payer::Own(_)),
        length: body.iter().map(Bytes::len).sum(),
        request_id: head.id.as_str(),
    })
    .ok_or_else(|| Refusal::NoPayer { model: target.model.as_ref().into() })?;
    let watch = Watch { endpoint: head.endpoint, kind: provider.kind, family: tokens::family(&target.upstream_model), strip_usage: asks_for_usage };
    Ok(Prepared { sending_to: provider, public_only, header, body, watch, key })
}

/// `host` or `host:port` as the `Host` header has it: the scheme's own port is left out.
pub fn authority(base: &BaseUrl) -> String {
    let host: std::borrow::Cow<'_, str> = if base.host.contains(':') { format!("[{}]", base.host).into() } else { (&*base.host).into() };
    if base.port == if base.tls { 443 } else { 80 } { host.into_owned() } else { format!("{host}:{}", base.port) }
}

/// An own key that was removed between the plan and the attempt.
fn gone(target: &Target) -> Refusal {
    Refusal::ByokMissing { model: target.model.as_ref().into(), providers: vec![target.provider.name.clone()] }
}

/// The client left while a target was being asked: the prompt has been sent, so it is taken as used.
async fn cancel(mut settlement: Settlement, watch: &Watch) {
    if let Some(open) = settlement.open() {
        open.status = 499;
    }
    settlement.settle(Ending::Cancelled, Exchanged::nothing(watch.family)).await;
}

/// What answering needs.
struct Answering<'a> {
    gateway: &'a Arc<Gateway>,
    head: &'a Head,
    told: Told,
    standings: Standings,
    deadline: Instant,
    series: Arc<Series>,
    /// The target's count of requests under way, until the answer's end.
    in_flight: InFlight,
}

impl Answering<'_> {
    async fn answer(self, session: &mut ServerSession, committed: Committed, settlement: Settlement) -> Relayed {
        match committed {
            Committed::Whole(whole) => Relayed { reusable: self.whole(session, *whole, settlement).await, broken_off: false },
            Committed::Stream(streaming) | Committed::Opaque(streaming) => self.stream(session, *streaming, settlement).await,
        }
    }

    /// The account first, then the answer: its cost is a header, and its row must be there before its end is seen.
    async fn whole(self, session: &mut ServerSession, whole: Whole, settlement: Settlement) -> bool {
        let Whole { header: upstream, body, tally, text } = whole;
        let settled = settlement.settle(Ending::Complete, Exchanged { tally, text }).await;
        drop(self.in_flight);
        let Some(mut header) = response_header(&upstream, self.head, Some(&self.told), &self.standings) else { return false };
        let length = header.insert_header(CONTENT_LENGTH, HeaderValue::from(body.len()));
        if length.is_err() || !put_cost(&mut header, settled.cost) {
            return false;
        }
        session.write_response_header(Box::new(header)).await.is_ok() && session.write_response_body(body, true).await.is_ok()
    }

    async fn stream(self, session: &mut ServerSession, streaming: Streaming, settlement: Settlement) -> Relayed {
        const NO: Relayed = Relayed { reusable: false, broken_off: false };
        let Some(mut header) = response_header(&streaming.header, self.head, Some(&self.told), &self.standings) else { return NO };
        // Framing is this hop's own: what the client gets may be shorter than what the upstream sends. HTTP/1.0 knows no chunks:
        // there the end of the connection is the end of the answer.
        if session.req_header().version == http::Version::HTTP_10 {
            session.set_keepalive(None);
        } else if header.insert_header(http::header::TRANSFER_ENCODING, HeaderValue::from_static("chunked")).is_err() {
            return NO;
        }
        if session.write_response_header(Box::new(header)).await.is_err() {
            let upstream = attempt::abandon(self.gateway.upstreams.clone(), streaming.connected, streaming.meter, self.told.target.provider.on_disconnect, self.deadline).await;
            let (tally, text) = upstream.finish();
            settlement.settle(Ending::Cancelled, Exchanged { tally, text }).await;
            return NO;
        }
        self.gateway.metrics.streams_active.inc();
        let _active = StreamGauge(&self.gateway.metrics.streams_active);
        let relaying = Relay {
            session,
            upstreams: &self.gateway.upstreams,
            provider: &self.told.target.provider,
            endpoint: self.head.endpoint,
            deadline: self.deadline,
            series: &self.series,
            upgrade_url: self.gateway.upgrade_url.clone(),
        };
        let closes = relaying.session.req_header().version == http::Version::HTTP_10;
        let relayed = relay(relaying, streaming, settlement).await;
        Relayed { reusable: relayed.reusable && !closes, ..relayed }
    }
}

struct StreamGauge<'a>(&'a prometheus::IntGauge);

impl Drop for StreamGauge<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The client's header of an upstream answer.
fn response_header(upstream: &ResponseHeader, head: &Head, told: Option<&Told>, standings: &Standings) -> Option<ResponseHeader> {
    let mut header = ResponseHeader::build_no_case(upstream.status, Some(upstream.headers.len() + 12)).ok()?;
    headers::copy_response(&upstream.headers, &mut header);
    for (name, value) in weirs_own(head, told, standings) {
        header.insert_header(name, value).ok()?;
    }
    Some(header)
}

/// weir's own response headers.
pub fn weirs_own(head: &Head, told: Option<&Told>, standings: &Standings) -> Vec<(HeaderName, HeaderValue)> {
    let mut out = Vec::with_capacity(12);
    if let Ok(value) = HeaderValue::from_str(head.id.as_str()) {
        out.push((headers::X_REQUEST_ID, value));
    }
    if let Some(told) = told {
        let flag = |is: bool| HeaderValue::from_static(if is { "true" } else { "false" });
        let name = |text: &str| HeaderValue::from_str(text).ok();
        out.extend(name(&told.target.provider.name).map(|value| (headers::X_PROVIDER_USED, value)));
        out.extend(name(&told.target.upstream_model).map(|value| (headers::X_MODEL_USED, value)));
        out.push((headers::X_USED_BYOK, flag(told.own_key)));
        out.push((headers::X_WAS_FALLBACK, flag(told.was_fallback)));
        out.push((headers::X_WEIR_ATTEMPTS, HeaderValue::from(told.attempts)));
    }
    standings.headers(|name, value| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            out.push((HeaderName::from_static(name), value));
        }
    });
    out
}

fn put_cost(header: &mut ResponseHeader, cost: Usd) -> bool {
    HeaderValue::from_str(&cost.to_string()).is_ok_and(|value| header.insert_header(headers::X_COST_INCURRED, value).is_ok())
}

/// Passes an upstream's refusal on as it came: the caller is to blame and should see why.
async fn return_upstream(session: &mut ServerSession, head: &Head, settlement: Settlement, failed: Failed, told: &Told, standings: &Standings, key: Option<&Secret>) -> bool {
    let failure = UpstreamFailure::new(told.target.provider.name.clone(), failed.status(), failed.message(), key.map(|key| key.expose()));
    let refusal = Refusal::AttemptsFailed { attempts: told.attempts, last: failure, retry_after_ms: None };
    let Some(answer) = failed.answer.filter(|answer| !answer.body.is_empty()) else {
        return refuse(session, head, settlement, refusal, standings).await;
    };
    let status = answer.header.status.as_u16();
    // A provider that quotes the key it was given does not get it through.
    if key.is_some_and(|key| shares_secret(&answer.body, key.expose().as_bytes())) {
        return refuse(session, head, settlement, refusal, standings).await;
    }
    settlement.refuse(End::Failed, status).await;
    let Some(mut header) = response_header(&answer.header, head, Some(told), standings) else { return false };
    if header.insert_header(CONTENT_LENGTH, HeaderValue::from(answer.body.len())).is_err() {
        return false;
    }
    session.write_response_header(Box::new(header)).await.is_ok() && session.write_response_body(answer.body, true).await.is_ok()
}

/// Whether a body holds the key or eight characters in a row of its secret part (all but the first and last four, which its
/// owner is shown).
fn shares_secret(body: &[u8], key: &[u8]) -> bool {
    let secret = key.get(4..key.len().saturating_sub(4)).unwrap_or_default();
    memchr::memmem::find(body, key).is_some() || secret.windows(8).any(|part| memchr::memmem::find(body, part).is_some())
}

/// Says no to an admitted request.
async fn refuse(session: &mut ServerSession, head: &Head, mut settlement: Settlement, refusal: Refusal, standings: &Standings) -> bool {
    if let Some(open) = settlement.open() {
        open.gateway.metrics.refusals.with_label_values(&[refusal.reason()]).inc();
    }
    settlement.refuse(End::Failed, refusal.status()).await;
    write_refusal(session, Some(head), head.endpoint.dialect(), &refusal, standings).await
}

/// Writes a refusal in the dialect of the path.
pub async fn write_refusal(session: &mut ServerSession, head: Option<&Head>, dialect: crate::engine::dialect::Dialect, refusal: &Refusal, standings: &Standings) -> bool {
    let body = refusal.body(dialect);
    let Ok(header) = respond::header(refusal.status(), "application/json", body.len()) else { return false };
    let mut extra = head.map(|head| weirs_own(head, None, standings)).unwrap_or_default();
    if let Some(wait) = refusal.retry_after_s() {
        extra.push((http::header::RETRY_AFTER, HeaderValue::from(wait)));
    }
    if let Some(allow) = refusal.allow() {
        extra.push((http::header::ALLOW, HeaderValue::from_static(allow)));
    }
    if refusal.closes_connection() {
        session.set_keepalive(None);
        extra.push((http::header::CONNECTION, HeaderValue::from_static("close")));
    }
    respond::write(session, header, body.into(), &extra).await && !refusal.closes_connection()
}
