//! The attempts of a request: its plan, who pays, and what each attempt sends.

use super::{Current, FRAMING, Request};
use crate::admission::Payment;
use crate::head::Fixed;
use crate::packed::{self, Packed, Packer, Place, Step};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use weir::engine::catalog::Provider;
use weir::engine::health::KeyState;
use weir::engine::meter::Watch;
use weir::engine::outbound;
use weir::engine::peek;
use weir::engine::policy::ByokWish;
use weir::engine::provider::{Auth, Spec, spec};
use weir::engine::refusal::{Refusal, denied};
use weir::engine::route::{self, Ask, Attempt, Caller, Draw, Outcome, Payer};
use zeroize::Zeroizing;

/// Headers that carry a key at one provider or another, a line each.
const KEYS: &str = "authorization\nx-api-key\napi-key\nx-goog-api-key\n";

/// One of [`KEYS`].
fn is_key(name: &str) -> bool {
    matches!(name, "authorization" | "x-api-key" | "api-key" | "x-goog-api-key")
}

impl Request {
    pub(super) fn plan_and_try(&mut self, draw: u64, now_ms: u64) -> Step {
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
        match route::plan(catalog, &ask, &caller, now_ms, Draw(draw), None) {
            Ok(plan) => {
                self.plan = Some(plan);
                self.attempt(now_ms)
            }
            Err(no) => {
                let refusal = denied::refusal(no, model, None);
                self.refuse(&refusal)
            }
        }
    }

    /// The next attempt for which there is a key.
    pub(super) fn attempt(&mut self, now_ms: u64) -> Step {
        loop {
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
        if self.attempts == 1 && self.head.fixed != Fixed::default() {
            self.keep_what_can_follow(&attempt, &edits, cap);
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
            body: pieces,
            watch,
            started_ms: now_ms,
            judged: false,
        });
        Step::Try
    }

    /// Appends the attempt under way as it is packed. There is one: the step that says so comes from making it.
    pub(super) fn write_attempt(&self, out: &mut String) -> Packed {
        let Some(current) = &self.current else { return Packed::default() };
        let row = spec(current.attempt.target.provider.kind);
        let mut packer = Packer::new(packed::TRY, out);
        packer.text(|out| out.push_str(self.request_id()));
        packer.text(|out| self.write_uri(&current.attempt, out));
        packer.text(|out| self.write_removed(current, out));
        packer.text(|out| self.write_set(row, out));
        if let Some(key) = &current.key {
            let (name, scheme) = match row.auth() {
                Auth::Bearer => ("authorization", "Bearer "),
                Auth::Header(name) => (name, ""),
            };
            packer.text(|out| out.push_str(name));
            packer.text(|out| [scheme, key].into_iter().for_each(|part| out.push_str(part)));
        }
        let flag = |is: bool, flag: u32| if is { flag } else { 0 };
        // A later attempt finds the body of the one before in its place.
        let is_edited = current.is_edited || self.attempts > 1;
        Packed {
            flags: flag(current.own_key, packed::OWN_KEY) | flag(current.was_fallback, packed::FALLBACK) | flag(is_edited, packed::EDITED),
            attempt: self.attempts,
            body_length: current.body.iter().map(|piece| piece.len()).sum(),
            target: current.attempt.target.id.number(),
            ..packer.step
        }
    }

    /// Appends the texts of where the attempt under way goes. `None`: there is none.
    pub fn write_target(&self, out: &mut String) -> Option<Place> {
        let target = &self.current.as_ref()?.attempt.target;
        let (base, timeouts) = (&target.provider.base, &target.provider.timeouts);
        let texts = [&*target.provider.name, &target.upstream_model, base.scheme(), &base.authority, &base.host];
        texts.iter().for_each(|text| out.push_str(text));
        let ms = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        Some(Place {
            port: base.port.into(),
            connect_ms: ms(timeouts.connect),
            first_event_ms: ms(timeouts.first_event),
            between_events_ms: ms(timeouts.between_events),
            lengths: texts.map(|text| text.len() as u32),
        })
    }

    /// The client's headers that stay here, and whatever another attempt may have set.
    fn write_removed(&self, current: &Current, out: &mut String) {
        let connections: Vec<&str> = self.head.values("connection").collect();
        let nominated = |name: &str| connections.iter().any(|by| outbound::nominates(by.as_bytes(), name));
        let stays =
            |name: &&str| !is_key(name) && !FRAMING.contains(name) && (!outbound::crosses_up(name, current.own_key) || nominated(name));
        out.push_str(KEYS);
        self.head.names().filter(stays).for_each(|name| packed::line(out, name));
    }

    /// Headers to set, but for the request's id and the key.
    fn write_set(&self, row: &Spec, out: &mut String) {
        packed::header(out, "accept-encoding", "identity");
        for (name, value) in row.default_headers() {
            if self.head.value(name).is_none() {
                packed::header(out, name, value);
            }
        }
    }

    /// Appends path and query.
    fn write_uri(&self, attempt: &Attempt, out: &mut String) {
        let provider = &attempt.target.provider;
        spec(provider.kind).write_path(provider, self.endpoint, &attempt.target.upstream_model, out);
    }

    /// Takes the attempts out of the plan that differ from the first where the proxy has no second choice.
    fn keep_what_can_follow(&mut self, first: &Attempt, first_edits: &peek::Edits<'_>, cap: Option<u64>) {
        let Some(mut plan) = self.plan.take() else { return };
        let fixed = self.head.fixed;
        let uri = |attempt: &Attempt| {
            let mut uri = String::with_capacity(64);
            self.write_uri(attempt, &mut uri);
            uri
        };
        let first_uri = uri(first);
        plan.keep_only(|attempt| {
            let edits = || outbound::edits(self.endpoint, &self.peek, spec(attempt.target.provider.kind), attempt, cap);
            (!fixed.scheme || attempt.target.provider.base.scheme() == first.target.provider.base.scheme())
                && (!fixed.uri || uri(attempt) == first_uri)
                && (!fixed.body || edits() == *first_edits)
        });
        self.plan = Some(plan);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_with_keys_are_those_that_are_taken_out() {
        let known = ["authorization", "x-api-key", "api-key", "x-goog-api-key", "accept", "key", ""];
        for name in known {
            assert_eq!(is_key(name), KEYS.lines().any(|key| key == name), "{name}");
        }
        assert!(KEYS.lines().all(is_key) && KEYS.ends_with('\n'));
    }
}
