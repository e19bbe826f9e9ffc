//! One request, from its head to its row.
//!
//! `begin` → (`admitted`) → `attempt`, and `next` after each that failed → `answer` → `feed` … → `end`. What another plugin of the
//! proxy routes is only observed: `begin` → `answer` → `feed` … → `end`.

mod ending;

use crate::admission::{Admission, Payment, Remembered, Who, covered, digest};
use crate::cover::{Cover, Covered};
use crate::engine::{Engine, Snapshot, now_ms};
use crate::head::{Fixed, Head};
use crate::packed::{Step, Try};
use crate::settings::Away;
use bytes::Bytes;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use weir::engine::catalog::{BaseUrl, Provider};
use weir::engine::dialect::{Dialect, Endpoint};
use weir::engine::health::{InFlight, KeyState};
use weir::engine::id::RequestId;
use weir::engine::meter::{StreamMeter, Watch};
use weir::engine::outbound;
use weir::engine::peek::{self, BadBody, Peek};
use weir::engine::policy::ByokWish;
use weir::engine::provider::{Auth, Kind, spec};
use weir::engine::refusal::denied::{self, Failure};
use weir::engine::refusal::{Refusal, UpstreamFailure};
use weir::engine::route::{self, Ask, Attempt, Caller, Draw, Outcome, Payer, Plan, Verdict};
use weir::engine::tokens;

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
    request_id: String,
    started_ms: u64,
    who: Who,
    admission: Option<Admission>,
    plan: Option<Plan>,
    current: Option<Current>,
    observed: Option<Observed>,
    attempts: u32,
    answer: Option<Answering>,
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
    provider: Arc<Provider>,
    own_key: bool,
    key: Option<zeroize::Zeroizing<String>>,
    body: Option<Vec<Bytes>>,
    watch: Watch,
    was_fallback: bool,
    started_ms: u64,
    /// The plan knows what it came to.
    judged: bool,
    _in_flight: InFlight,
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
    pub fn begin(engine: &Engine, head: &[u8], body: &[u8]) -> Result<(Box<Request>, Step), Step> {
        let started_ms = now_ms();
        engine.arm(started_ms);
        let head = Head::parse(head);
        #[cfg(feature = "panic-test")]
        if head.value("x-weir-panic").is_some() {
            panic!("asked to");
        }
        let Some(endpoint) = Endpoint::of_path(&head.path) else { return Err(refuse(&Refusal::UnknownPath, Dialect::OpenAi)) };
        let body = Bytes::copy_from_slice(body);
        let content_type = head.value("content-type").unwrap_or("");
        let read = if endpoint.is_multipart() { peek::multipart(content_type, &body) } else { peek::json(endpoint, &body) };
        let peek = match read {
            // Whoever routes it may know the model by itself.
            Err(BadBody::NoModel) if head.observe => Peek::default(),
            read => read.map_err(|bad| refuse(&Refusal::BadBody(bad), endpoint.dialect()))?,
        };
        if peek.names_other_models && !head.observe {
            return Err(refuse(&Refusal::OtherModels, endpoint.dialect()));
        }
        let random = (u128::from(engine.random()) << 64) | u128::from(engine.random());
        let request_id = RequestId::new(started_ms, random).text().as_str().to_owned();
        let observes = head.observe;
        let prompt_tokens = outbound::prompt_tokens(peek.model.as_deref().unwrap_or_default(), &peek);
        // Boxed: it is some thousand bytes, and goes through several hands.
        let mut request = Box::new(Request {
            engine: engine.clone(),
            snapshot: engine.inner.snapshot.load_full(),
            who: Who::of_proxy(head.account.as_deref(), head.tier.as_deref()),
            observed: observes.then(Observed::default),
            head,
            endpoint,
            body,
            peek,
            prompt_tokens,
            request_id,
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
            None => request.plan_and_try(engine.random()),
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
            "token_ids": peek.token_ids, "messages": peek.messages, "images": peek.images, "prefix_hash": peek.prefix_hash,
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
                self.request_id.clone_from(&admission.request_id);
                self.cover = admission.covered_tokens.map(Cover::new);
                let draw = admission.draw;
                self.admission = Some(admission);
                self.plan_and_try(draw)
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
                        self.plan_and_try(self.engine.random())
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
        Step::Refuse { status, headers: said.headers, body: said.body }
    }

    fn plan_and_try(&mut self, draw: u64) -> Step {
        let byok = match self.head.value("x-weir-byok").map(str::to_ascii_lowercase).as_deref() {
            None => ByokWish::Unspecified,
            Some("prefer") => ByokWish::Prefer,
            Some("require") => ByokWish::Require,
            Some("never") => ByokWish::Never,
            Some(_) => return self.refuse(&Refusal::BadHeader { name: "X-Weir-Byok", expected: "prefer, require or never" }),
        };
        let catalog = &self.snapshot.catalog;
        let named = self.who.tier.as_deref().or(catalog.routing.default_tier.as_deref());
        let tier = match named {
            None => None,
            Some(name) => match catalog.tiers.get(name) {
                Some(tier) => Some(tier.clone()),
                None => return self.refuse(&Refusal::UnknownTier { tier: name.into() }),
            },
        };
        let states: HashMap<Arc<str>, Arc<KeyState>> = self
            .admission
            .iter()
            .flat_map(|admission| admission.keys.keys())
            .filter(|payment| payment.own)
            .map(|payment| (payment.provider.clone(), Arc::default()))
            .collect();
        let own_key = |provider: &Provider| states.get(&provider.name).cloned();
        let model = self.peek.model.as_deref().unwrap_or_default();
        let ask = Ask {
            model,
            level_header: self.head.value("x-power-level"),
            task: self.head.value("x-task-type"),
            endpoint: self.endpoint,
            needs: self.peek.needs,
            prompt_tokens: self.prompt_tokens,
            max_output: self.peek.max_output,
            byok,
            prefix_hash: self.peek.prefix_hash,
        };
        let caller = Caller { tier: tier.as_deref(), scopes: &self.who.scopes, has_budget: self.who.has_budget, own_key: &own_key };
        match route::plan(catalog, &ask, &caller, self.started_ms, Draw(draw), None) {
            Ok(plan) => {
                self.plan = Some(plan);
                self.attempt()
            }
            Err(no) => {
                let refusal = denied::refusal(no, model, None);
                self.refuse(&refusal)
            }
        }
    }

    /// The next attempt for which there is a key.
    fn attempt(&mut self) -> Step {
        loop {
            let now_ms = now_ms();
            let Some(attempt) = self.plan.as_mut().and_then(|plan| plan.next(now_ms)) else {
                let model = self.peek.model.as_deref().unwrap_or_default().into();
                return self.refuse(&Refusal::NoPayer { model });
            };
            match self.payment(&attempt) {
                Some((key, own_key)) => {
                    self.attempts += 1;
                    self.engine.inner.counts.attempts.fetch_add(1, Relaxed);
                    return self.prepare(attempt, key, own_key, now_ms);
                }
                None => {
                    if let Some(plan) = &mut self.plan {
                        plan.after(&attempt, &Outcome::Cancelled, now_ms);
                    }
                }
            }
        }
    }

    /// The key for an attempt and whether it is the caller's own. `None`: nobody can pay there.
    fn payment(&self, attempt: &Attempt) -> Option<(Option<zeroize::Zeroizing<String>>, bool)> {
        let provider = &attempt.target.provider;
        if let Some(admission) = &self.admission {
            let payment = Payment { provider: provider.name.clone(), own: matches!(attempt.payer, Payer::Own(_)) };
            return admission.keys.get(&payment).map(|key| (key.clone(), payment.own));
        }
        let key = self.snapshot.keys.get(&provider.name).cloned();
        (key.is_some() || provider.key.is_none()).then_some((key, false))
    }

    fn prepare(&mut self, attempt: Attempt, key: Option<zeroize::Zeroizing<String>>, own_key: bool, now_ms: u64) -> Step {
        let provider = attempt.target.provider.clone();
        let row = spec(provider.kind);
        let cap = self.admission.as_ref().and_then(|admission| admission.output_cap);
        let edits = outbound::edits(self.endpoint, &self.peek, row, &attempt, cap);
        let strip_usage = edits.include_usage;
        let mut pieces = Vec::with_capacity(6);
        peek::edit(self.endpoint, &self.body, &self.peek, &edits, &mut pieces);
        let unchanged = pieces.len() == 1 && pieces[0].len() == self.body.len() && pieces[0].as_ptr() == self.body.as_ptr();
        let body_bytes = pieces.iter().map(Bytes::len).sum();
        let uri = self.uri(&attempt);
        if self.attempts == 1 {
            let first = (scheme(&provider.base), &*uri, &edits);
            self.keep_what_can_follow(first, cap);
        }
        let mut remove: Vec<String> = self
            .head
            .headers
            .iter()
            .filter(|(name, _)| (!outbound::crosses_up(name, own_key) || self.head.nominates(name)) && !FRAMING.contains(&name.as_str()))
            .map(|(name, _)| name.clone())
            .collect();
        // Whatever another attempt may have set.
        for name in ["authorization", "x-api-key", "api-key", "x-goog-api-key"] {
            if !remove.iter().any(|held| held == name) {
                remove.push(name.into());
            }
        }
        let mut set = vec![("x-request-id".to_owned(), self.request_id.clone()), ("accept-encoding".to_owned(), "identity".to_owned())];
        for (name, value) in row.default_headers() {
            if self.head.value(name).is_none() {
                set.push(((*name).into(), (*value).into()));
            }
        }
        if let Some(key) = &key {
            if key.bytes().any(|byte| byte.is_ascii_control()) {
                let model = self.peek.model.as_deref().unwrap_or_default().into();
                return self.refuse(&Refusal::NoPayer { model });
            }
            set.push(match row.auth() {
                Auth::Bearer => ("authorization".into(), format!("Bearer {}", key.as_str())),
                Auth::Header(name) => (name.into(), key.as_str().to_owned()),
            });
        }
        let was_fallback = attempt.is_fallback || self.attempts > 1;
        let timeouts = &provider.timeouts;
        let step = Step::Try(Box::new(Try {
            request_id: self.request_id.clone(),
            provider: provider.name.to_string(),
            model: attempt.target.upstream_model.to_string(),
            scheme: scheme(&provider.base),
            authority: authority(&provider.base),
            host: provider.base.host.to_string(),
            port: provider.base.port,
            uri,
            attempt: self.attempts,
            own_key,
            was_fallback,
            body_bytes: (!unchanged || self.attempts > 1).then_some(body_bytes),
            timeouts_ms: [timeouts.connect, timeouts.first_event, timeouts.between_events].map(|time| time.as_millis() as u64),
            remove,
            set,
        }));
        let watch =
            Watch { endpoint: self.endpoint, kind: provider.kind, family: tokens::family(&attempt.target.upstream_model), strip_usage };
        let in_flight = attempt.target.begin();
        self.current = Some(Current {
            attempt,
            provider,
            own_key,
            key,
            body: Some(pieces),
            watch,
            was_fallback,
            started_ms: now_ms,
            judged: false,
            _in_flight: in_flight,
        });
        step
    }

    fn uri(&self, attempt: &Attempt) -> String {
        let (provider, mut uri) = (&attempt.target.provider, String::with_capacity(64));
        spec(provider.kind).write_path(provider, self.endpoint, &attempt.target.upstream_model, &mut uri);
        uri
    }

    /// Takes the attempts out of the plan that differ from the first where the proxy has no second choice.
    fn keep_what_can_follow(&mut self, (first_scheme, first_uri, first_edits): (&str, &str, &peek::Edits<'_>), cap: Option<u64>) {
        let fixed = self.head.fixed;
        let Some(mut plan) = self.plan.take_if(|_| fixed != Fixed::default()) else { return };
        plan.keep_only(|attempt| {
            let edits = || outbound::edits(self.endpoint, &self.peek, spec(attempt.target.provider.kind), attempt, cap);
            (!fixed.scheme || scheme(&attempt.target.provider.base) == first_scheme)
                && (!fixed.uri || self.uri(attempt) == first_uri)
                && (!fixed.body || edits() == *first_edits)
        });
        self.plan = Some(plan);
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
        for piece in self.current.iter().filter_map(|current| current.body.as_ref()).flatten() {
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
                current.provider.name.clone(),
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
            Verdict::TryNext => self.attempt(),
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

    /// An answer begins. Appends the header names to take out and those to put in, as the packed attempt has them.
    pub fn answer(&mut self, status: u16, head: &[u8], out: &mut String) {
        use std::fmt::Write;
        let head = Head::parse(&[b"\n", head].concat());
        if self.observed.is_some() {
            return self.observe(status, head, out);
        }
        let remove: Vec<&str> = head
            .headers
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| (!outbound::crosses_down(name) || head.nominates(name)) && !FRAMING.contains(name))
            .collect();
        let mut set = self.ids();
        if let Some(current) = &mut self.current {
            let flag = |is: bool| if is { "true" } else { "false" }.to_owned();
            set.push(("x-provider-used".into(), current.provider.name.to_string()));
            set.push(("x-model-used".into(), current.attempt.target.upstream_model.to_string()));
            set.push(("x-used-byok".into(), flag(current.own_key)));
            set.push(("x-was-fallback".into(), flag(current.was_fallback)));
            set.push(("x-weir-attempts".into(), self.attempts.to_string()));
            // The request has gone; the memory of its body may, too.
            current.body = None;
            let is_stream = head.is_stream();
            let now_ms = now_ms();
            let is_answer = (200..300).contains(&status);
            if let Some(plan) = self.plan.as_mut().filter(|_| !current.judged) {
                let refused = Outcome::Status { code: status, retry_after_ms: None, error_code: "", message: "" };
                plan.after(&current.attempt, if is_answer { &Outcome::Ok } else { &refused }, now_ms);
                current.judged = true;
            }
            if is_answer && self.answer.is_none() {
                self.first_event_ms = Some(now_ms.saturating_sub(self.started_ms));
                current.attempt.record_first_event(now_ms, now_ms.saturating_sub(current.started_ms).saturating_mul(1000));
                let meter = if is_stream { StreamMeter::new(current.watch) } else { StreamMeter::of_body(current.watch) };
                self.answer = Some(Answering { meter, is_stream, stopped: false });
            }
        }
        if let Some(admission) = &self.admission {
            set.extend(admission.headers.iter().cloned());
        }
        self.status = status;
        self.body = Bytes::new();
        let strips = self.current.as_ref().is_some_and(|current| current.watch.strip_usage)
            && self.answer.as_ref().is_some_and(|answer| answer.is_stream);
        let _ = writeln!(out, "{}\n{}", u8::from(strips), remove.len());
        remove.iter().for_each(|name| {
            let _ = writeln!(out, "{name}");
        });
        let _ = writeln!(out, "{}", set.len());
        crate::packed::put_headers(&set, out);
    }

    /// An answer begins that others asked for: nothing of it is changed.
    fn observe(&mut self, status: u16, head: Head, out: &mut String) {
        let is_stream = head.is_stream();
        let model = head.model.clone().or_else(|| self.peek.model.clone());
        if (200..300).contains(&status) && self.answer.is_none() {
            self.first_event_ms = Some(now_ms().saturating_sub(self.started_ms));
            // By the format the client reads; a provider's own habits are the other plugin's to translate.
            let kind = if self.endpoint.dialect() == Dialect::Anthropic { Kind::Anthropic } else { Kind::OpenAiCompatible };
            let family = tokens::family(model.as_deref().unwrap_or_default());
            let watch = Watch { endpoint: self.endpoint, kind, family, strip_usage: false };
            let meter = if is_stream { StreamMeter::new(watch) } else { StreamMeter::of_body(watch) };
            self.answer = Some(Answering { meter, is_stream, stopped: false });
        }
        self.attempts = 1;
        self.observed = Some(Observed { provider: head.provider, model });
        self.status = status;
        out.push_str("0\n0\n0\n");
    }

    /// Takes a chunk of the answer; `last`: none follows. Appends what goes out to `out` unless it is the chunk itself.
    pub fn feed(&mut self, chunk: &[u8], last: bool, out: &mut Vec<u8>) -> Passage {
        let unchanged = Passage { fed: Fed::Unchanged, extend: false };
        let Some(answer) = &mut self.answer else { return unchanged };
        if answer.stopped {
            return Passage { fed: Fed::Stop, extend: false };
        }
        let mut pieces = Vec::new();
        if !chunk.is_empty() {
            answer.meter.feed(Bytes::copy_from_slice(chunk), &mut pieces);
        }
        if last && answer.is_stream {
            answer.meter.flush(&mut pieces);
        }
        let covered = match &mut self.cover {
            Some(cover) if answer.is_stream && !answer.meter.ended() => cover.check(&mut answer.meter),
            _ => Covered::Enough,
        };
        let extend = covered == Covered::AskNow;
        if covered != Covered::UsedUp && pieces.iter().map(Bytes::len).sum::<usize>() == chunk.len() && pieces.len() <= 1 {
            return Passage { extend, ..unchanged };
        }
        pieces.iter().for_each(|piece| out.extend_from_slice(piece));
        if covered == Covered::UsedUp {
            answer.stopped = true;
            let mut event = String::from("\n\n");
            Refusal::CreditsRanOut { upgrade_url: None }.write_event(self.endpoint, &mut event);
            out.extend_from_slice(event.as_bytes());
            return Passage { fed: Fed::Stop, extend: false };
        }
        Passage { fed: Fed::Changed, extend }
    }

    /// The body of `POST /plugin/v1/extend`, once [`Passage::extend`] said so. `None`: there is nothing to extend.
    pub fn extension(&mut self) -> Option<String> {
        let (Some(cover), Some(current)) = (&mut self.cover, &self.current) else { return None };
        let target = &current.attempt.target;
        let asked = json!({
            "request_id": self.request_id, "provider": &*target.provider.name, "upstream_model": &*target.upstream_model,
            "byok": current.own_key, "attempts": self.attempts, "was_fallback": current.was_fallback, "output_tokens": cover.asking(),
        });
        Some(asked.to_string())
    }

    /// Takes the node's answer to an extension; `status` 0: there was none.
    pub fn extended(&mut self, status: u16, body: &[u8]) {
        if let Some(cover) = &mut self.cover {
            cover.answered(covered(status, body));
        }
    }

    fn refuse(&mut self, refusal: &Refusal) -> Step {
        self.status = refusal.status();
        let mut step = refuse(refusal, self.endpoint.dialect());
        if let Step::Refuse { headers, .. } = &mut step {
            headers.extend(self.ids());
            headers.extend(self.admission.iter().flat_map(|admission| admission.headers.iter().cloned()));
        }
        step
    }

    /// The request's id as the client calls it, and weir's own.
    fn ids(&self) -> Vec<(String, String)> {
        let shown = self.head.client_id().unwrap_or(&self.request_id).to_owned();
        vec![("x-request-id".into(), shown), ("x-weir-request-id".into(), self.request_id.clone())]
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.engine.inner.counts.open.fetch_sub(1, Relaxed);
    }
}

fn refuse(refusal: &Refusal, dialect: Dialect) -> Step {
    let mut headers = vec![("content-type".to_owned(), "application/json".to_owned())];
    if let Some(wait) = refusal.retry_after_s() {
        headers.push(("retry-after".into(), wait.to_string()));
    }
    Step::Refuse { status: refusal.status(), headers, body: refusal.body(dialect) }
}

fn scheme(base: &BaseUrl) -> &'static str {
    if base.tls { "https" } else { "http" }
}

/// `host` or `host:port` as the `Host` header has it: the scheme's own port is left out.
fn authority(base: &BaseUrl) -> String {
    let host = if base.host.contains(':') { format!("[{}]", base.host) } else { base.host.to_string() };
    if base.port == if base.tls { 443 } else { 80 } { host } else { format!("{host}:{}", base.port) }
}
