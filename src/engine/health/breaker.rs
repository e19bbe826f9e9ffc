//! Cooldown after failures, then one probe at a time, then health again.

use crate::engine::catalog::Retry;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// The longest `Retry-After` that is believed. Providers send hours when a daily quota is used up; asking again every ten
/// minutes costs one request and notices a raised quota.
pub const MAX_RETRY_AFTER_MS: u64 = 10 * 60 * 1000;

/// How long a probe may hold its place. A probe whose outcome never comes (its task was dropped) gives way after this;
/// it is longer than any sensible first-event timeout.
pub const PROBE_LEASE_MS: u64 = 2 * 60 * 1000;

/// Two failures further apart than this are not "in a row": a target that fails once a day is not a failing one.
/// Longer than the longest usual cooldown, so that a failed probe after it still counts on.
pub const STREAK_MS: u64 = 15 * 60 * 1000;

/// Failures in a row and what follows from them.
#[derive(Debug, Default)]
pub struct Breaker {
    failures: AtomicU32,
    /// Failures that an answer has cleared which began and is not at its end.
    cleared: AtomicU32,
    last_failure_ms: AtomicU64,
    /// 0: healthy. In the future: cooling. Past: the next request is a probe.
    cooling_until_ms: AtomicU64,
    /// 0: nobody probes. Else when the probe's place is given to another.
    probe_until_ms: AtomicU64,
}

/// Where a breaker stands at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Nothing is known against it.
    Healthy,
    /// The cooldown is over; one request may find out.
    ProbeDue,
    /// That request is on its way.
    Probing,
    /// Not before this (milliseconds since the epoch).
    Cooling(u64),
}

impl Breaker {
    /// Where it stands.
    pub fn phase(&self, now_ms: u64) -> Phase {
        match self.cooling_until_ms.load(Relaxed) {
            0 => Phase::Healthy,
            until if until > now_ms => Phase::Cooling(until),
            _ if self.probe_until_ms.load(Relaxed) > now_ms => Phase::Probing,
            _ => Phase::ProbeDue,
        }
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures.load(Relaxed)
    }

    /// One more failure: the short cooldown, or the long one from `retry.cooldown_failures` in a row on. Never shortens a
    /// cooldown that runs.
    pub fn on_failure(&self, now_ms: u64, retry: &Retry) {
        let previous = self.last_failure_ms.swap(now_ms, Relaxed);
        let in_a_row = match now_ms.saturating_sub(previous) <= STREAK_MS {
            true => self.failures.fetch_add(1, Relaxed).saturating_add(1),
            false => {
                self.failures.store(1, Relaxed);
                1
            }
        };
        let cooldown = if in_a_row >= retry.cooldown_failures { retry.cooldown_long } else { retry.cooldown };
        let millis = u64::try_from(cooldown.as_millis()).unwrap_or(u64::MAX);
        self.cool(now_ms.saturating_add(millis));
    }

    /// Waits as long as it was told to, at most [`MAX_RETRY_AFTER_MS`].
    pub fn hold(&self, now_ms: u64, wait_ms: u64) {
        self.last_failure_ms.store(now_ms, Relaxed);
        self.failures.fetch_add(1, Relaxed);
        self.cool(now_ms.saturating_add(wait_ms.min(MAX_RETRY_AFTER_MS)));
    }

    /// An answer that had begun broke off: a failure as any other, and it follows those that its beginning cleared.
    pub fn on_break(&self, now_ms: u64, retry: &Retry) {
        self.failures.fetch_add(self.cleared.swap(0, Relaxed), Relaxed);
        self.on_failure(now_ms, retry);
    }

    /// An answer came to its end: what its beginning cleared is over.
    pub fn on_end(&self) {
        if self.cleared.load(Relaxed) != 0 {
            self.cleared.store(0, Relaxed);
        }
    }

    /// Healthy again: an answer begins.
    pub fn on_success(&self) {
        // The healthy path only reads: the line stays shared between the cores.
        if self.cooling_until_ms.load(Relaxed) != 0 || self.failures.load(Relaxed) != 0 {
            self.cleared.store(self.failures.swap(0, Relaxed), Relaxed);
            self.cooling_until_ms.store(0, Relaxed);
            self.probe_until_ms.store(0, Relaxed);
        }
    }

    /// Takes the probe's place: `true` for exactly one caller until the outcome comes, the probe is given up, or its lease ends.
    pub fn claim_probe(&self, now_ms: u64) -> bool {
        let held = self.probe_until_ms.load(Relaxed);
        held <= now_ms && self.probe_until_ms.compare_exchange(held, now_ms.saturating_add(PROBE_LEASE_MS), Relaxed, Relaxed).is_ok()
    }

    /// Gives the probe's place back without an outcome.
    pub fn release_probe(&self) {
        self.probe_until_ms.store(0, Relaxed);
    }

    /// 0 cooling, 1 probing or about to, 2 healthy.
    pub fn gauge(&self, now_ms: u64) -> u8 {
        match self.phase(now_ms) {
            Phase::Healthy => 2,
            Phase::ProbeDue | Phase::Probing => 1,
            Phase::Cooling(_) => 0,
        }
    }

    fn cool(&self, until_ms: u64) {
        self.cooling_until_ms.fetch_max(until_ms.max(1), Relaxed);
        self.probe_until_ms.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: u64 = 1_700_000_000_000;

    /// Fails at each of `at` (seconds after T0); the cooldown left after the last, in seconds.
    fn check(at: &[u64], expected: u64) {
        let breaker = Breaker::default();
        for seconds in at {
            breaker.on_failure(T0 + seconds * 1000, &Retry::default());
        }
        let last = T0 + at.last().copied().unwrap_or(0) * 1000;
        let left = match breaker.phase(last) {
            Phase::Cooling(until) => (until - last) / 1000,
            _ => 0,
        };
        assert_eq!(left, expected, "failures at {at:?}");
    }

    #[test]
    fn one_minute_then_five_after_three_in_a_row() {
        check(&[0], 60);
        check(&[0, 60], 60);
        check(&[0, 60, 120], 300);
        check(&[0, 60, 120, 420], 300);
        check(&[0, 0, 0], 300);
        // A failure long after the previous one begins a new row.
        check(&[0, 60, 120 + STREAK_MS / 1000], 60);
        check(&[0, 60, 60 + STREAK_MS / 1000], 300);
    }

    #[test]
    fn success_clears_everything() {
        let (breaker, retry) = (Breaker::default(), Retry::default());
        breaker.on_failure(T0, &retry);
        breaker.on_failure(T0, &retry);
        breaker.on_success();
        assert_eq!((breaker.phase(T0), breaker.failures(), breaker.gauge(T0)), (Phase::Healthy, 0, 2));
        breaker.on_failure(T0, &retry);
        assert_eq!(breaker.phase(T0), Phase::Cooling(T0 + 60_000));
    }

    #[test]
    fn answers_that_break_off_are_failures_in_a_row() {
        let (breaker, retry) = (Breaker::default(), Retry::default());
        let breaks = |at: u64, expected: u64| {
            breaker.on_success();
            assert_eq!(breaker.phase(at), Phase::Healthy, "a begun answer opens it");
            breaker.on_break(at, &retry);
            assert_eq!(breaker.phase(at), Phase::Cooling(at + expected * 1000));
        };
        breaks(T0, 60);
        breaks(T0 + 60_000, 60);
        breaks(T0 + 120_000, 300);
        // One that comes to its end, later than a failure began, ends the row and not the cooldown.
        breaker.on_success();
        breaker.on_failure(T0 + 420_000, &retry);
        breaker.on_end();
        assert_eq!(breaker.phase(T0 + 420_000), Phase::Cooling(T0 + 480_000));
        breaks(T0 + 480_000, 60);
    }

    #[test]
    fn a_cooldown_is_never_shortened() {
        let (breaker, retry) = (Breaker::default(), Retry::default());
        breaker.hold(T0, 400_000);
        breaker.on_failure(T0 + 1, &retry);
        assert_eq!(breaker.phase(T0 + 2), Phase::Cooling(T0 + 400_000));
    }

    #[test]
    fn retry_after_is_bounded() {
        let breaker = Breaker::default();
        breaker.hold(T0, 24 * 60 * 60 * 1000);
        assert_eq!(breaker.phase(T0), Phase::Cooling(T0 + MAX_RETRY_AFTER_MS));
        let breaker = Breaker::default();
        breaker.hold(T0, 0);
        assert_eq!(breaker.phase(T0), Phase::ProbeDue);
    }

    #[test]
    fn one_probe_at_a_time() {
        let (breaker, retry) = (Breaker::default(), Retry::default());
        breaker.on_failure(T0, &retry);
        let due = T0 + 60_000;
        assert_eq!((breaker.phase(due - 1), breaker.gauge(due - 1)), (Phase::Cooling(due), 0));
        assert_eq!((breaker.phase(due), breaker.gauge(due)), (Phase::ProbeDue, 1));
        assert!(breaker.claim_probe(due));
        assert!(!breaker.claim_probe(due));
        assert_eq!((breaker.phase(due), breaker.gauge(due)), (Phase::Probing, 1));
        // Given up, it is free at once; kept without an outcome, after its lease.
        breaker.release_probe();
        assert!(breaker.claim_probe(due));
        assert!(!breaker.claim_probe(due + PROBE_LEASE_MS - 1));
        assert!(breaker.claim_probe(due + PROBE_LEASE_MS));
        // A failed probe cools again, a good one heals.
        breaker.on_failure(due, &retry);
        assert_eq!(breaker.phase(due), Phase::Cooling(due + 60_000));
        assert!(breaker.claim_probe(due + 60_000));
        breaker.on_success();
        assert_eq!(breaker.phase(due), Phase::Healthy);
    }

    #[test]
    fn many_threads_get_one_probe() {
        let (breaker, retry) = (Breaker::default(), Retry::default());
        breaker.on_failure(T0, &retry);
        let winners: usize = std::thread::scope(|scope| {
            let tasks: Vec<_> = (0..8).map(|_| scope.spawn(|| usize::from(breaker.claim_probe(T0 + 60_000)))).collect();
            tasks.into_iter().map(|task| task.join().unwrap()).sum()
        });
        assert_eq!(winners, 1);
    }
}
