//! The attempts of a request: its plan, who pays, and what each attempt sends.

use super::{Current, FRAMING, Request};
use crate::admission::Payment;
use crate::engine::now_ms;
use crate::head::Fixed;
use crate::packed::{self, Step};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use weir::engine::catalog::Provider;
use weir::engine::health::KeyState;
use weir::engine::meter::Watch;
use weir::engine::outbound;
use weir::engine::peek;
use weir::engine::policy::ByokWish;
use weir::engine::provider::{Auth, spec};
use weir::engine::refusal::{Refusal, denied};
use weir::engine::route::{self, Ask, Attempt, Caller, Draw, Outcome, Payer};
use zeroize::Zeroizing;

/// Headers that carry a key at one provider or another.
const CREDENTIALS: [&str; 4] = ["authorization", "x-api-key", "api-key", "x-goog-api-key"];

impl Request {
    pub(super) fn plan_and_try(&mut self, draw: u64) -> Step {
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
    pub(super) fn attempt(&mut self) -> Step {
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
    fn payment(&self, attempt: &Attempt) -> Option<(Option<Arc<Zeroizing<String>>>, bool)> {
        let provider = &attempt.target.provider;
        if let Some(admission) = &self.admission {
            let payment = Payment { provider: provider.name.clone(), own: matches!(attempt.payer, Payer::Own(_)) };
            return admission.keys.get(&payment).map(|key| (key.clone(), payment.own));
        }
        let key = self.snapshot.keys.get(&provider.name).cloned();
        (key.is_some() || provider.key.is_none()).then_some((key, false))
    }

    fn prepare(&mut self, attempt: Attempt, key: Option<Arc<Zeroizing<String>>>, own_key: bool, now_ms: u64) -> Step {
        let provider = &attempt.target.provider;
        let row = spec(provider.kind);
        let cap = self.admission.as_ref().and_then(|admission| admission.output_cap);
        let edits = outbound::edits(self.endpoint, &self.peek, row, &attempt, cap);
        let pieces = peek::edit(self.endpoint, &self.body, &self.peek, &edits);
        let uri = self.uri(&attempt);
        if self.attempts == 1 {
            self.keep_what_can_follow((provider.base.scheme(), &*uri, &edits), cap);
        }
        if key.iter().flat_map(|key| key.bytes()).any(|byte| byte.is_ascii_control()) {
            let model = self.peek.model.as_deref().unwrap_or_default().into();
            return self.refuse(&Refusal::NoPayer { model });
        }
        let watch = Watch { endpoint: self.endpoint, kind: provider.kind, family: attempt.target.family, strip_usage: edits.include_usage };
        self.current = Some(Current {
            is_edited: !(pieces.len() == 1 && pieces[0].len() == self.body.len() && pieces[0].as_ptr() == self.body.as_ptr()),
            was_fallback: attempt.is_fallback || self.attempts > 1,
            in_flight: attempt.target.begin(),
            attempt,
            own_key,
            key,
            uri,
            body: pieces,
            watch,
            started_ms: now_ms,
            judged: false,
        });
        Step::Try
    }

    /// Appends the attempt under way as it is packed; nothing when there is none.
    pub(super) fn write_attempt(&self, out: &mut String) {
        let Some(current) = &self.current else { return };
        let target = &current.attempt.target;
        let base = &target.provider.base;
        packed::line(out, "try");
        let id = self.request_id();
        packed::line(out, id);
        packed::line(out, &current.uri);
        packed::number(out, self.attempts.into());
        packed::flag(out, current.own_key);
        packed::flag(out, current.was_fallback);
        // A later attempt finds the body of the one before in its place.
        match current.is_edited || self.attempts > 1 {
            true => packed::number(out, current.body.iter().map(|piece| piece.len() as u64).sum()),
            false => packed::line(out, "-"),
        }
        let mut place = packed::Block::new(out);
        for text in [&*target.provider.name, &target.upstream_model, base.scheme(), &base.authority, &base.host] {
            place.line(text);
        }
        place.number(base.port.into());
        let timeouts = &target.provider.timeouts;
        for time in [timeouts.connect, timeouts.first_event, timeouts.between_events] {
            place.number(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        }
        place.end();
        self.write_removed(current, out);
        self.write_set(current, id, out);
    }

    /// The client's headers that stay here.
    fn write_removed(&self, current: &Current, out: &mut String) {
        let nominated = self.head.value("connection");
        let stays = |name: &&str| {
            (!outbound::crosses_up(name, current.own_key) || nominated.is_some_and(|by| outbound::nominates(by, name)))
                && !FRAMING.contains(name)
        };
        let mut block = packed::Block::new(out);
        self.head.names().filter(stays).for_each(|name| block.line(name));
        // Whatever another attempt may have set.
        for name in CREDENTIALS {
            if !self.head.names().any(|held| held == name) {
                block.line(name);
            }
        }
        block.end();
    }

    /// Headers to set, the provider's key among them.
    fn write_set(&self, current: &Current, id: &str, out: &mut String) {
        let row = spec(current.attempt.target.provider.kind);
        let mut headers = packed::Headers::new(out);
        headers.header("x-request-id", "", id);
        headers.header("accept-encoding", "", "identity");
        for (name, value) in row.default_headers() {
            if self.head.value(name).is_none() {
                headers.header(name, "", value);
            }
        }
        if let Some(key) = &current.key {
            match row.auth() {
                Auth::Bearer => headers.header("authorization", "Bearer ", key),
                Auth::Header(name) => headers.header(name, "", key),
            }
        }
        headers.end();
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
            (!fixed.scheme || attempt.target.provider.base.scheme() == first_scheme)
                && (!fixed.uri || self.uri(attempt) == first_uri)
                && (!fixed.body || edits() == *first_edits)
        });
        self.plan = Some(plan);
    }
}
