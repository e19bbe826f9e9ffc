//! The plan: attempts in order, what each outcome leads to, and whose state it changes.

use super::candidates::{Candidate, Context, Pool, due, gates};
use super::denied::{self, Denied};
use super::explain::Explanation;
use super::outcome::{Blame, Class, Outcome};
use super::resolve::{Resolved, Source};
use crate::engine::catalog::{Level, Retry, Target};
use crate::engine::health::{KeyState, MAX_RETRY_AFTER_MS, Phase, TargetState};
use crate::engine::money::Factor;
use std::sync::Arc;

/// Attempts a plan holds, and so the bound of `max_attempts`. When there are more candidates, the last place goes to the
/// one with the widest context window, should a prompt turn out too long.
pub const ATTEMPTS_KEPT: usize = 16;

/// The attempts of one request, and how far it got.
#[derive(Debug)]
pub struct Plan {
    /// The level whose limits and multiplier hold.
    pub level: Option<Arc<Level>>,
    /// The charge is cost times this (and the tier's markup).
    pub multiplier: Factor,
    slots: Vec<Option<Attempt>>,
    /// Slots not tried yet, as bits.
    left: u16,
    made: u32,
    most: u32,
    hedge: bool,
    retry: Retry,
    retry_after_ms: Option<u64>,
}

/// One try at one target.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Where.
    pub target: Arc<Target>,
    /// With whose key.
    pub payer: Payer,
    /// Another model than the one asked (a fallback, or a further model of the level).
    pub is_fallback: bool,
    /// The only request that is let through to find out whether the target has recovered.
    pub is_probe: bool,
    /// Write this output cap into the request; `None`: leave what it says.
    pub max_output: Option<u64>,
    /// The most the answer can hold, for the reservation; `None`: nobody named a bound.
    pub output_at_most: Option<u64>,
    /// The model's window, when it is known.
    pub context_window: Option<u64>,
}

/// Whose key pays.
#[derive(Debug, Clone)]
pub enum Payer {
    /// The platform's.
    Platform,
    /// The caller's own at this provider.
    Own(Arc<KeyState>),
}

/// What to do after an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Committed: pass the answer on. How it ends is told by [`Attempt::came_to_its_end`] or [`Attempt::broke_off`].
    Committed,
    /// Ask [`Plan::next`], which has one.
    TryNext,
    /// Pass the upstream's answer on as it is.
    ReturnUpstream,
    /// Refuse.
    Refuse(Denied),
    /// Something has gone out already: an error event, and no normal end mark.
    EndStream,
    /// Nobody waits for it.
    Drop,
}

impl Plan {
    pub(super) fn new(context: &Context<'_>, resolved: &Resolved<'_>, pool: &Pool<'_>, mut explain: Option<&mut Explanation>) -> Plan {
        let retry = context.catalog.retry;
        let alone = resolved.level.is_some_and(|level| !level.fallback);
        let most = if alone { 1 } else { retry.max_attempts.clamp(1, ATTEMPTS_KEPT as u32) };
        let hedge = !alone && matches!(resolved.source, Source::Model(model) if model.hedge);
        let multiplier = resolved.level.map_or(Factor::ONE, |level| level.cost_multiplier);
        let kept = if alone { 1 } else { pool.len().min(ATTEMPTS_KEPT) };
        let mut slots = Vec::with_capacity(kept);
        for (at, candidate) in kept_candidates(pool, kept).enumerate() {
            if let Some(explanation) = explain.as_deref_mut() {
                explanation.ordered(candidate.explained, at);
            }
            slots.push(Some(Attempt::of(candidate)));
        }
        let left = u16::try_from((1u32 << kept) - 1).unwrap_or(u16::MAX);
        Plan { level: resolved.level.cloned(), multiplier, slots, left, made: 0, most, hedge, retry, retry_after_ms: None }
    }

    /// The next attempt: the first that is ready now, else the one that is due first. `None`: nothing is left, or as many
    /// were made as may be. Every attempt handed out is to be ended by [`Plan::after`], or a probe's place stays taken for
    /// [`PROBE_LEASE_MS`](crate::engine::health::PROBE_LEASE_MS).
    pub fn next(&mut self, now_ms: u64) -> Option<Attempt> {
        if self.made >= self.most {
            return None;
        }
        let mut due_first: Option<(u64, usize)> = None;
        for at in self.remaining() {
            let Some(attempt) = &self.slots[at] else { continue };
            let due_ms = match due(&attempt.target, attempt.payer.own(), now_ms) {
                0 => match attempt.claim(now_ms) {
                    Claim::NotNeeded => return self.take(at, false),
                    Claim::Won => return self.take(at, true),
                    Claim::Lost => now_ms,
                },
                due_ms => due_ms,
            };
            if due_first.is_none_or(|(first, _)| due_ms < first) {
                due_first = Some((due_ms, at));
            }
        }
        self.take(due_first?.1, false)
    }

    /// What follows from the outcome of an attempt of this plan. Whoever is to blame is told at once.
    pub fn after(&mut self, attempt: &Attempt, outcome: &Outcome<'_>, now_ms: u64) -> Verdict {
        let class = outcome.class();
        attempt.settle(outcome, class, now_ms, &self.retry);
        if let Outcome::Status { retry_after_ms: Some(wait), .. } = outcome {
            let wait = (*wait).min(MAX_RETRY_AFTER_MS);
            self.retry_after_ms = Some(self.retry_after_ms.map_or(wait, |held| held.min(wait)));
        }
        match class {
            Class::Ok => Verdict::Committed,
            Class::Cancelled => Verdict::Drop,
            Class::BrokenOff => Verdict::EndStream,
            Class::BadRequest => Verdict::ReturnUpstream,
            Class::ContextLength => {
                self.keep_wider_than(attempt.context_window);
                if self.has_next() { Verdict::TryNext } else { Verdict::ReturnUpstream }
            }
            Class::KeyRefused if attempt.refusal_is_the_callers() => Verdict::Refuse(Denied::OwnKeyRefused {
                provider: Arc::clone(&attempt.target.provider.name),
                status: denied::status(outcome),
            }),
            Class::TargetFailed | Class::RateLimited | Class::KeyRefused => {
                if self.has_next() {
                    Verdict::TryNext
                } else {
                    Verdict::Refuse(self.exhausted(outcome, class))
                }
            }
        }
    }

    /// How failures are counted: what [`Attempt::broke_off`] needs when the plan itself is long gone.
    pub fn retry(&self) -> Retry {
        self.retry
    }

    /// An attempt that was not made after all, because its target serves as many requests as it may: it does not count, and
    /// the target is not asked again.
    pub fn pass_over(&mut self, attempt: &Attempt, now_ms: u64) {
        attempt.settle(&Outcome::Cancelled, Class::Cancelled, now_ms, &self.retry);
        self.made = self.made.saturating_sub(1);
    }

    /// [`Plan::next`] has another attempt.
    pub fn has_next(&self) -> bool {
        self.left != 0 && self.made < self.most
    }

    /// Attempts handed out so far.
    pub fn attempts(&self) -> u32 {
        self.made
    }

    /// How many attempts there may be at most.
    pub fn most_attempts(&self) -> u32 {
        self.most.min(self.made + self.left.count_ones())
    }

    /// How long to wait for the first event of `attempt` before [`Plan::next`] is asked as well, microseconds: the target's
    /// 95th percentile. `None`: the model does not hedge, nothing else is left, or too little is measured.
    pub fn hedge_after_us(&self, attempt: &Attempt, now_ms: u64) -> Option<u64> {
        (self.hedge && self.has_next()).then(|| attempt.target.state.first_event.p95_us(now_ms)).flatten()
    }

    /// The attempts not made yet, in the planned order. For reservations and explanations; it takes no probe's place.
    pub fn upcoming(&self) -> impl Iterator<Item = &Attempt> {
        self.remaining().filter_map(|at| self.slots[at].as_ref())
    }

    fn remaining(&self) -> impl Iterator<Item = usize> + use<> {
        let left = self.left;
        (0..self.slots.len()).filter(move |at| left & (1 << at) != 0)
    }

    fn take(&mut self, at: usize, is_probe: bool) -> Option<Attempt> {
        self.left &= !(1 << at);
        self.made += 1;
        self.slots[at].take().map(|attempt| Attempt { is_probe, ..attempt })
    }

    /// Leaves only the attempts that `keep` takes: not everyone who carries a plan out can make all of them.
    pub fn keep_only(&mut self, keep: impl Fn(&Attempt) -> bool) {
        for at in self.remaining() {
            if !self.slots[at].as_ref().is_some_and(&keep) {
                self.left &= !(1 << at);
            }
        }
    }

    /// Leaves only what can hold a prompt that did not fit `window`. An unknown window promises nothing.
    fn keep_wider_than(&mut self, window: Option<u64>) {
        self.keep_only(|attempt| matches!((attempt.context_window, window), (Some(theirs), Some(mine)) if theirs > mine));
    }

    fn exhausted(&self, outcome: &Outcome<'_>, last: Class) -> Denied {
        if outcome.is_too_late() {
            return Denied::TooLate { attempts: self.made };
        }
        Denied::Failed { attempts: self.made, last, status: denied::status(outcome), retry_after_ms: self.retry_after_ms }
    }
}

enum Claim {
    NotNeeded,
    Won,
    Lost,
}

impl Attempt {
    fn of(candidate: &Candidate<'_>) -> Attempt {
        Attempt {
            target: Arc::clone(candidate.target),
            payer: candidate.own.as_ref().map_or(Payer::Platform, |key| Payer::Own(Arc::clone(key))),
            is_fallback: candidate.position > 0,
            is_probe: false,
            max_output: candidate.cap.enforce,
            output_at_most: candidate.cap.at_most,
            context_window: candidate.facts.context_window,
        }
    }

    /// Its answer has come to its end. What opened with its beginning stays as it is: others may have failed since.
    pub fn came_to_its_end(&self) {
        self.answering().on_end();
    }

    /// Its answer broke off after it had committed: the same as [`Plan::after`] with that outcome.
    pub fn broke_off(&self, now_ms: u64, retry: &Retry) {
        self.settle(&Outcome::BrokenOff, Class::BrokenOff, now_ms, retry);
    }

    /// Takes a measured time from request written to first event.
    pub fn record_first_event(&self, now_ms: u64, first_event_us: u64) {
        match self.payer.own().and_then(KeyState::own_base) {
            Some(base) => base.first_event.record(now_ms, first_event_us),
            None => self.target.state.first_event.record(now_ms, first_event_us),
        }
    }

    /// Takes the probe's place at every gate that has one to give.
    fn claim(&self, now_ms: u64) -> Claim {
        let gates = gates(&self.target, self.payer.own());
        let mut claim = Claim::NotNeeded;
        for (at, gate) in gates.iter().enumerate() {
            let Some(gate) = gate.filter(|gate| gate.phase(now_ms) == Phase::ProbeDue) else { continue };
            if gate.claim_probe(now_ms) {
                claim = Claim::Won;
                continue;
            }
            if matches!(claim, Claim::Won) {
                gates[..at].iter().flatten().for_each(|gate| gate.release_probe());
            }
            return Claim::Lost;
        }
        claim
    }

    /// The provider refused the caller's own key, and nobody stands in for it.
    fn refusal_is_the_callers(&self) -> bool {
        matches!(self.payer, Payer::Own(_)) && !self.target.provider.byok_falls_to_platform
    }

    /// Tells the states: blame to whom it belongs, success to all that had a part in it.
    fn settle(&self, outcome: &Outcome<'_>, class: Class, now_ms: u64, retry: &Retry) {
        if self.is_probe {
            // Every gate of a probe was open or is held by it. Whoever is blamed or cleared below is so afterwards.
            gates(&self.target, self.payer.own()).into_iter().flatten().for_each(|gate| gate.release_probe());
        }
        let provider = &self.target.provider.state;
        let own_base = self.payer.own().and_then(KeyState::own_base);
        match (class.blame(), &self.payer) {
            (Blame::Target, _) => {
                let state = self.answering();
                if class == Class::BrokenOff {
                    state.on_break(now_ms, retry)
                } else {
                    state.on_failure(now_ms, retry)
                }
                if own_base.is_none() {
                    provider.note_failure(now_ms, retry);
                }
            }
            (Blame::Key, Payer::Own(key)) if class == Class::RateLimited => key.on_rate_limited(now_ms, retry_after(outcome), retry),
            (Blame::Key, Payer::Own(key)) => key.on_refused(now_ms, retry),
            (Blame::Key, Payer::Platform) if class == Class::RateLimited => {
                self.target.state.platform_key.on_rate_limited(now_ms, retry_after(outcome), retry);
            }
            (Blame::Key, Payer::Platform) if concerns_the_whole_provider(outcome) => provider.platform_key.on_refused(now_ms, retry),
            (Blame::Key, Payer::Platform) => self.target.state.platform_key.on_refused(now_ms, retry),
            (Blame::Nobody, _) if class == Class::Ok => self.succeed(),
            (Blame::Nobody | Blame::Caller, _) => {}
        }
    }

    /// Who answers: the target, or the server that the caller's own key leads to.
    fn answering(&self) -> &TargetState {
        self.payer.own().and_then(KeyState::own_base).unwrap_or(&self.target.state)
    }

    fn succeed(&self) {
        let provider = &self.target.provider.state;
        match &self.payer {
            Payer::Platform => {
                provider.platform_key.on_success();
                self.target.state.platform_key.on_success();
            }
            Payer::Own(key) => {
                key.on_success();
                if let Some(base) = key.own_base() {
                    base.on_success();
                    return;
                }
            }
        }
        self.target.state.on_success();
        provider.on_probe_ok();
        provider.note_success();
    }
}

impl Payer {
    /// The caller's own key, when it pays.
    pub fn own(&self) -> Option<&KeyState> {
        match self {
            Payer::Platform => None,
            Payer::Own(key) => Some(key),
        }
    }
}

/// An unknown key, or one without quota, is so for every model of the provider. A 403 or 402 may be about this model, or the
/// size of this request: it stays with the target.
fn concerns_the_whole_provider(outcome: &Outcome<'_>) -> bool {
    !matches!(outcome, Outcome::Status { code: 402 | 403, .. })
}

fn retry_after(outcome: &Outcome<'_>) -> Option<u64> {
    match outcome {
        Outcome::Status { retry_after_ms, .. } => *retry_after_ms,
        _ => None,
    }
}

/// The first `kept` in order; the last place goes to the widest window beyond them, when that is wider than all of theirs.
fn kept_candidates<'p, 'a>(pool: &'p Pool<'a>, kept: usize) -> impl Iterator<Item = &'p Candidate<'a>> {
    let window = |candidate: &&Candidate<'_>| candidate.facts.context_window;
    let inside = pool.iter().take(kept).filter_map(|candidate| window(&candidate)).max();
    let beyond = pool.iter().skip(kept).max_by_key(window).filter(|candidate| kept > 1 && inside.is_some() && window(candidate) > inside);
    pool.iter().take(kept - usize::from(beyond.is_some())).chain(beyond)
}
