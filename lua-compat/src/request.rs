//! One request, from its head to its row.
//!
//! `begin` → (`admitted`) → `attempt`, and `next` after each that failed → `answer` → `feed` … → `end`. What another plugin of the
//! proxy routes is only observed: `begin` → `answer` → `feed` … → `end`.

mod answer;
mod attempt;
mod ending;

use crate::admission::{Admission, Remembered, Who, digest};
use crate::cover::Cover;
use crate::engine::{Engine, Snapshot, now_ms};
use crate::head::Head;
use crate::packed::{self, Packed, Packer, Refused, Step};
use crate::settings::Away;
use bytes::Bytes;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use weir::engine::dialect::{Dialect, Endpoint};
use weir::engine::health::InFlight;
use weir::engine::id::{IdText, RequestId};
use weir::engine::meter::{StreamMeter, Watch};
use weir::engine::outbound;
use weir::engine::peek::{self, BadBody, Peek, Pieces};
use weir::engine::refusal::denied::{self, Failure};
use weir::engine::refusal::{Refusal, UpstreamFailure};
use weir::engine::route::{self, Attempt, Outcome, Plan, Verdict};
use zeroize::Zeroizing;

/// When to come again while the node is away.
const AWAY_RETRY_MS: u64 = 1_000;

/// Framing is the proxy's own on either side: it writes these itself.
const FRAMING: [&str; 5] = ["connection", "content-length", "host", "keep-alive", "transfer-encoding"];

/// One request.
pub struct Request {
    engine: Engine,
    snapshot: Arc<Snapshot>,
    head: Head,
    endpoint: Endpoint,
    body: Bytes,
    peek: Peek,
    prompt_tokens: u64,
    id: IdText,
    started_ms: u64,
    who: Who,
    admission: Option<Box<Admission>>,
    plan: Option<Plan>,
    current: Option<Current>,
    observed: Option<Observed>,
    attempts: u32,
    /// Boxed: it is most of a request, and comes last.
    answer: Option<Box<Answering>>,
    /// What the node's reservation covers; `None`: nothing bounds it.
    cover: Option<Cover>,
    status: u16,
    first_event_ms: Option<u64>,
    /// The node, which was to say who calls, did not admit it: nobody's row.
    unknown: bool,
    ended: bool,
}

/// The attempt under way.
struct Current {
    attempt: Attempt,
    own_key: bool,
    key: Option<Arc<Zeroizing<String>>>,
    /// Empty once it has gone.
    body: Pieces,
    /// The body is not as it came.
    is_edited: bool,
    watch: Watch,
    was_fallback: bool,
    started_ms: u64,
    /// The plan knows what it came to.
    judged: bool,
    /// Counts it at its target while it is under way.
    #[expect(dead_code, reason = "for its drop")]
    in_flight: InFlight,
}

/// Who answers a request that others route, as far as the proxy knows.
#[derive(Default)]
struct Observed {
    provider: Option<String>,
    model: Option<String>,
}

/// An answer on its way.
struct Answering {
    meter: StreamMeter,
    is_stream: bool,
    stopped: bool,
}

/// How an attempt failed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Failed<'a> {
    /// The status, the upstream's or the proxy's own.
    pub status: u16,
    /// The upstream answered.
    pub from_upstream: bool,
    /// The proxy can make no other attempt.
    pub is_last: bool,
    /// The upstream's `Retry-After`.
    pub retry_after_ms: Option<u64>,
    /// The beginning of the upstream's error, if it is at hand.
    pub body: &'a [u8],
}

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fed {
    /// It goes out as it came.
    Unchanged,
    /// What goes out is in the buffer.
    Changed,
    /// What goes out is in the buffer, and nothing after it: the balance is used up.
    Stop,
}

/// A chunk's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    /// What became of it.
    pub fed: Fed,
    /// The node is to be asked to extend the reservation ([`Request::extension`]).
    pub extend: bool,
}

impl Request {
    /// Reads a request. `Err`: the answer to give instead.
    pub fn begin(engine: &Engine, head: &[u8], body: &[u8]) -> Result<(Box<Request>, Step), Refused> {
        let started_ms = now_ms();
        engine.arm(started_ms);
        let head = Head::parse(head);
        #[cfg(feature = "panic-test")]
        if head.value("x-weir-panic").is_some() {
            panic!("asked to");
        }
        let Some(endpoint) = Endpoint::of_path(head.path()) else { return Err(refused(&Refusal::UnknownPath, Dialect::OpenAi)) };
        // Another method means something else to the provider: a GET here lists what others have stored there.
        if head.method().is_some_and(|method| method != "POST") {
            return Err(refused(&Refusal::WrongMethod { allow: "POST" }, endpoint.dialect()));
        }
        let body = Bytes::copy_from_slice(body);
        let read = match endpoint.is_multipart() {
            true => peek::multipart(head.value("content-type").unwrap_or(""), &body),
            false => peek::json(endpoint, &body),
        };
        let peek = match read {
            // Whoever routes it may know the model by itself.
            Err(BadBody::NoModel) if head.observe => Peek::default(),
            read => read.map_err(|bad| refused(&Refusal::BadBody(bad), endpoint.dialect()))?,
        };
        if let Some(what) = peek.unsupported.filter(|_| !head.observe) {
            return Err(refused(&Refusal::Unsupported(what), endpoint.dialect()));
        }
        // The id takes the low 80 bits, the draw those above.
        let random = (u128::from(engine.random()) << 64) | u128::from(engine.random());
        let id = RequestId::new(started_ms, random).text();
        let draw = (random >> 80) as u64;
        let observes = head.observe;
        let prompt_tokens = outbound::prompt_tokens(peek.model.as_deref().unwrap_or_default(), &peek);
        // Boxed: it is some thousand bytes, and goes through several hands.
        let mut request = Box::new(Request {
            engine: engine.clone(),
            snapshot: engine.inner.snapshot.load_full(),
            who: Who::of_proxy(head.account(), head.tier()),
            observed: observes.then(Observed::default),
            head,
            endpoint,
            body,
            peek,
            prompt_tokens,
            id,
            started_ms,
            admission: None,
            plan: None,
            current: None,
            attempts: 0,
            answer: None,
            cover: None,
            status: 200,
            first_event_ms: None,
            unknown: engine.away().is_some() && !observes,
            ended: false,
        });
        engine.inner.counts.open.fetch_add(1, Relaxed);
        let step = match engine.away() {
            _ if request.observed.is_some() => Step::Pass,
            Some(_) => Step::Admit(request.ask()),
            None => request.plan_and_try(draw, started_ms),
        };
        Ok((request, step))
    }

    /// The body of `POST /plugin/v1/admit`: what steers, never what is said.
    fn ask(&self) -> String {
        let steering = ["x-power-level", "x-task-type", "x-weir-byok", "x-request-id", "idempotency-key"];
        let headers: serde_json::Map<_, _> =
            steering.iter().filter_map(|name| Some(((*name).to_owned(), self.head.value(name)?.into()))).collect();
        let peek = &self.peek;
        json!({
            "key": self.head.credential(), "path": self.endpoint.path(), "headers": headers, "model": peek.model, "stream": peek.stream,
            "max_output": peek.max_output, "choices": peek.choices, "needs": peek.needs.0, "text_bytes": peek.text_bytes,
            "token_ids": peek.token_ids, "messages": peek.messages, "images": peek.images,
            "file_bytes": peek.file_bytes, "prefix_hash": peek.prefix_hash,
        })
        .to_string()
    }

    /// Takes the node's answer; `status` 0: there was none in time.
    pub fn admitted(&mut self, status: u16, body: &[u8]) -> Step {
        let credential = self.head.credential().map(digest);
        match status {
            200 => {
                let Some(admission) = Admission::parse(body) else { return self.refuse(&Refusal::Internal) };
                if let (Some(digest), Some(Away::ConfigOnly(remember))) = (credential, self.engine.away()) {
                    let until_ms = self.started_ms.saturating_add(remember.as_millis() as u64);
                    self.engine.remember(digest, Remembered { who: admission.who.clone(), until_ms });
                }
                self.who = admission.who.clone();
                self.unknown = false;
                self.cover = admission.covered_tokens.map(Cover::new);
                let draw = admission.draw;
                self.admission = Some(Box::new(admission));
                self.plan_and_try(draw, now_ms())
            }
            // The node is there and says no: its words are the caller's. What it said before about the key no longer holds.
            400..500 => {
                if let (401, Some(digest)) = (status, credential) {
                    self.engine.forget(&digest);
                }
                self.relay_refusal(status, body)
            }
            _ => {
                let known = credential.and_then(|digest| self.engine.recall(&digest)).filter(|known| known.until_ms > self.started_ms);
                match (self.engine.away(), known) {
                    (Some(Away::ConfigOnly(_)), Some(known)) => {
                        self.who = known.who;
                        self.unknown = false;
                        self.plan_and_try(self.engine.random(), now_ms())
                    }
                    _ => self.refuse(&Refusal::LedgerStopped { retry_after_ms: AWAY_RETRY_MS }),
                }
            }
        }
    }

    fn relay_refusal(&mut self, status: u16, body: &[u8]) -> Step {
        #[derive(Default)]
        struct Said {
            headers: Vec<(String, String)>,
            body: String,
        }
        let document: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let mut said = Said::default();
        if let Some(headers) = document.get("headers").and_then(|headers| headers.as_object()) {
            said.headers.extend(headers.iter().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))));
        }
        if let Some(text) = document.get("body").and_then(|text| text.as_str()) {
            said.body = text.to_owned();
        }
        self.status = status;
        said.headers.push(("content-type".into(), "application/json".into()));
        said.headers.extend(self.ids());
        Step::Refuse(Refused { status, headers: said.headers, body: said.body })
    }

    /// Appends the host of each attempt that may still follow, a line each, for a proxy that must know how many they are, and their
    /// addresses, before it comes to them.
    pub fn write_hosts(&self, out: &mut Vec<u8>) {
        let Some(plan) = &self.plan else { return };
        let left = plan.most_attempts().saturating_sub(plan.attempts());
        for attempt in plan.upcoming().take(left as usize) {
            out.extend_from_slice(attempt.target.provider.base.host.as_bytes());
            out.push(b'\n');
        }
    }

    /// Appends the body of the attempt under way.
    pub fn write_body(&self, out: &mut Vec<u8>) {
        for piece in self.current.iter().flat_map(|current| &current.body) {
            out.extend_from_slice(piece);
        }
    }

    /// The attempt under way failed: `status` 0 or 502 without an upstream's word is a connection that was not made or broke.
    pub fn next(&mut self, failed: &Failed<'_>) -> Step {
        let Failed { status, from_upstream, is_last, retry_after_ms, body } = *failed;
        let Some(mut current) = self.current.take() else { return self.refuse(&Refusal::Internal) };
        let error = if from_upstream { weir::engine::meter::error_of(body) } else { Default::default() };
        let outcome = match (from_upstream, status) {
            (true, code) => Outcome::Status { code, retry_after_ms, error_code: &error.code, message: &error.message },
            (false, 504) => Outcome::Timeout(route::TimeoutPhase::FirstEvent),
            (false, _) => Outcome::Connect,
        };
        let said = if from_upstream { error.message.as_str() } else { "no answer" };
        let failure = Failure {
            said: UpstreamFailure::new(
                current.attempt.target.provider.name.clone(),
                from_upstream.then_some(status),
                said,
                current.key.as_ref().map(|key| key.as_str()),
            ),
            is_about_money: outcome.is_about_money(),
        };
        let Some(plan) = &mut self.plan else { return self.refuse(&Refusal::Internal) };
        if is_last {
            plan.keep_only(|_| false);
        }
        let verdict = plan.after(&current.attempt, &outcome, now_ms());
        current.judged = true;
        match verdict {
            Verdict::TryNext => self.attempt(now_ms()),
            Verdict::Refuse(no) => {
                let refusal = denied::refusal(no, self.peek.model.as_deref().unwrap_or_default(), Some(failure));
                self.current = Some(current);
                self.refuse(&refusal)
            }
            Verdict::ReturnUpstream | Verdict::Committed | Verdict::EndStream | Verdict::Drop => {
                self.status = status;
                self.current = Some(current);
                Step::Pass
            }
        }
    }

    fn refuse(&mut self, refusal: &Refusal) -> Step {
        self.status = refusal.status();
        let mut refused = refused(refusal, self.endpoint.dialect());
        refused.headers.extend(self.ids());
        refused.headers.extend(self.admission.iter().flat_map(|admission| admission.headers.iter().cloned()));
        Step::Refuse(refused)
    }

    /// Appends a step of this request as it is packed.
    pub fn write_step(&self, step: &Step, out: &mut String) -> Packed {
        match step {
            Step::Admit(body) => {
                let mut packer = Packer::new(packed::ADMIT, out);
                packer.text(|out| out.push_str(body));
                packer.step
            }
            Step::Try => self.write_attempt(out),
            Step::Refuse(refused) => refused.pack(out),
            Step::Pass => Packed::default(),
        }
    }

    /// weir's id of the request: the node's, once it has given one.
    fn request_id(&self) -> &str {
        self.admission.as_ref().map_or(self.id.as_str(), |admission| &admission.request_id)
    }

    /// The request's id as the client calls it.
    fn shown_id(&self) -> &str {
        self.head.client_id().unwrap_or(self.request_id())
    }

    fn ids(&self) -> [(String, String); 2] {
        [("x-request-id".into(), self.shown_id().to_owned()), ("x-weir-request-id".into(), self.request_id().to_owned())]
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.engine.inner.counts.open.fetch_sub(1, Relaxed);
    }
}

fn refused(refusal: &Refusal, dialect: Dialect) -> Refused {
    let mut headers = vec![("content-type".to_owned(), "application/json".to_owned())];
    if let Some(wait) = refusal.retry_after_s() {
        headers.push(("retry-after".into(), wait.to_string()));
    }
    Refused { status: refusal.status(), headers, body: refusal.body(dialect) }
}
