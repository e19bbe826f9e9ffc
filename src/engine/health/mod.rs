//! Failures, cooldowns, single probes and measurements of targets, providers and keys. The clock is passed in.
//!
//! Blame has three addressees and each has its own state: a target (this provider's model) fails for everybody; a platform
//! key may be refused or rate limited at one target or at the whole provider; a user's own key concerns that user alone.
//! All states are atomics: a request reads and writes them without a lock, and a torn pair of them costs at most one
//! attempt, never an account.
//!
//! Deliberately absent: who is to blame. That is decided in [`route`](super::route).

mod breaker;
mod latency;

pub use breaker::{Breaker, MAX_RETRY_AFTER_MS, PROBE_LEASE_MS, Phase, STREAK_MS};
pub use latency::{Latency, MIN_SAMPLES, P95_MIN_SAMPLES, STALE_MS, WINDOW};

use super::catalog::{Retry, Target};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

/// Live state of a target.
#[derive(Debug, Default)]
pub struct TargetState {
    /// The target's own failures and cooldown.
    pub breaker: Breaker,
    /// The platform's key at this target: rate limits and refusals that hold for this model alone.
    pub platform_key: KeyState,
    /// Time to first event, microseconds.
    pub first_event: Latency,
    in_flight: AtomicU32,
}

/// Live state of a provider.
#[derive(Debug, Default)]
pub struct ProviderState {
    /// Verdict of active probes; cooling, it holds back every target of the provider.
    pub reachable: Breaker,
    /// The platform's key at the whole provider (unknown, out of credit).
    pub platform_key: KeyState,
    /// How the latest request at any of its targets went; for the gauge only, it holds nothing back.
    recent: Breaker,
    in_flight: AtomicU32,
    /// Targets nobody configured, by name hash: their health must outlive the request, and their number must be bounded.
    inferred: InferredStates,
}

/// Live state of a key: the platform's at a target or provider, or a user's own at a provider.
#[derive(Debug, Default)]
pub struct KeyState {
    /// Rate limits and refusals of the key.
    pub breaker: Breaker,
    /// The latest trouble was a refusal (401, 402, 403, no quota), not a rate limit.
    refused: AtomicBool,
    /// Failures of the user's own base URL, when the key has one: they say nothing about the provider.
    own_base: Option<Box<TargetState>>,
}

/// A request in flight at a target; ends on drop.
#[derive(Debug)]
pub struct InFlight {
    target: Arc<Target>,
}

/// Slots for the states of inferred targets of one provider. Two names in one slot share their health: a false cooldown of
/// an inferred target lasts minutes, an unbounded table lasts for ever.
const INFERRED_SLOTS: usize = 64;

#[derive(Debug)]
struct InferredStates([OnceLock<Arc<TargetState>>; INFERRED_SLOTS]);

impl Default for InferredStates {
    fn default() -> InferredStates {
        InferredStates([const { OnceLock::new() }; INFERRED_SLOTS])
    }
}

impl TargetState {
    /// Requests in flight here.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// The target failed.
    pub fn on_failure(&self, now_ms: u64, retry: &Retry) {
        self.breaker.on_failure(now_ms, retry);
    }

    /// An answer that had begun broke off.
    pub fn on_break(&self, now_ms: u64, retry: &Retry) {
        self.breaker.on_break(now_ms, retry);
    }

    /// An answer came to its end.
    pub fn on_end(&self) {
        self.breaker.on_end();
    }

    /// An answer begins; the cooldown ends.
    pub fn on_success(&self) {
        self.breaker.on_success();
    }

    /// 0 cooling, 1 probing, 2 healthy.
    pub fn gauge(&self, now_ms: u64) -> u8 {
        self.breaker.gauge(now_ms)
    }
}

impl ProviderState {
    /// Requests in flight at all of its targets.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// An active probe failed: every target waits.
    pub fn on_probe_failed(&self, now_ms: u64, retry: &Retry) {
        self.reachable.on_failure(now_ms, retry);
    }

    /// An active probe succeeded.
    pub fn on_probe_ok(&self) {
        self.reachable.on_success();
    }

    /// The value of `weir_provider_state`: 0 cooling, 1 probing, 2 healthy. Cooling means that active probes fail, that the
    /// platform's key is refused, or that the latest request at any of its targets failed and its cooldown runs.
    pub fn gauge(&self, now_ms: u64) -> u8 {
        self.reachable.gauge(now_ms).min(self.platform_key.breaker.gauge(now_ms)).min(self.recent.gauge(now_ms))
    }

    /// The state of an inferred target. Allocates on the first use of a slot.
    pub fn inferred(&self, upstream_model: &str) -> Arc<TargetState> {
        let slot = (hash(upstream_model) % INFERRED_SLOTS as u64) as usize;
        Arc::clone(self.inferred.0[slot].get_or_init(Arc::default))
    }

    pub(super) fn note_failure(&self, now_ms: u64, retry: &Retry) {
        self.recent.on_failure(now_ms, retry);
    }

    pub(super) fn note_success(&self) {
        self.recent.on_success();
    }
}

impl KeyState {
    /// A user's own key that goes to the user's own base URL: failures there are the key's, not the target's.
    pub fn with_own_base() -> KeyState {
        KeyState { own_base: Some(Box::default()), ..KeyState::default() }
    }

    /// The state of the user's own base URL.
    pub fn own_base(&self) -> Option<&TargetState> {
        self.own_base.as_deref()
    }

    /// A 429: until `retry_after_ms` (bounded by [`MAX_RETRY_AFTER_MS`]), or the usual cooldown when the provider named no time.
    pub fn on_rate_limited(&self, now_ms: u64, retry_after_ms: Option<u64>, retry: &Retry) {
        self.refused.store(false, Relaxed);
        match retry_after_ms {
            Some(wait) => self.breaker.hold(now_ms, wait),
            None => self.breaker.on_failure(now_ms, retry),
        }
    }

    /// The provider refused the key.
    pub fn on_refused(&self, now_ms: u64, retry: &Retry) {
        self.refused.store(true, Relaxed);
        self.breaker.on_failure(now_ms, retry);
    }

    /// The key was accepted.
    pub fn on_success(&self) {
        self.breaker.on_success();
    }

    /// The key is in trouble because it was refused (not rate limited).
    pub fn is_refused(&self) -> bool {
        self.breaker.failures() > 0 && self.refused.load(Relaxed)
    }
}

impl Target {
    /// Counts a request at the target and its provider until the guard drops.
    pub fn begin(self: &Arc<Target>) -> InFlight {
        self.state.in_flight.fetch_add(1, Relaxed);
        self.provider.state.in_flight.fetch_add(1, Relaxed);
        InFlight { target: Arc::clone(self) }
    }

    /// The same, unless the provider's `max_concurrent` is reached; the bound holds exactly, however many ask at once.
    pub fn try_begin(self: &Arc<Target>) -> Option<InFlight> {
        let bound = self.provider.max_concurrent.unwrap_or(u32::MAX);
        let count = &self.provider.state.in_flight;
        count.fetch_update(Relaxed, Relaxed, |now| (now < bound).then_some(now + 1)).ok()?;
        self.state.in_flight.fetch_add(1, Relaxed);
        Some(InFlight { target: Arc::clone(self) })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.target.state.in_flight.fetch_sub(1, Relaxed);
        self.target.provider.state.in_flight.fetch_sub(1, Relaxed);
    }
}

/// A hash that is the same in every run and on every node.
pub(super) fn hash(text: &str) -> u64 {
    use std::hash::Hasher;
    let mut hasher = rustc_hash::FxHasher::default();
    hasher.write(text.as_bytes());
    hasher.finish()
}
