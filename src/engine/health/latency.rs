//! Median and 95th percentile of the latest times to first event.

use std::sync::OnceLock;
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// Measurements kept. Order statistics of the last 64 follow a change within a minute at one request a second.
pub const WINDOW: usize = 64;

/// Measurements until a median is believed: one cold start must not shut a target out.
pub const MIN_SAMPLES: u32 = 3;

/// Measurements until a 95th percentile is believed; with fewer it is only the largest of a handful.
pub const P95_MIN_SAMPLES: u32 = 10;

/// Without a new measurement for this long the old ones say nothing: a target that was slow gets another chance.
pub const STALE_MS: u64 = 5 * 60 * 1000;

/// Times to first event, in microseconds.
#[derive(Debug, Default)]
pub struct Latency {
    /// Allocated with the first measurement: most of ten thousand models are never asked.
    samples: OnceLock<Box<[AtomicU32; WINDOW]>>,
    recorded: AtomicU32,
    latest_ms: AtomicU64,
    /// Median and 95th percentile (above it), and how many measurements had been taken when they were found: sorting is for who
    /// asks, and few requests do.
    percentiles: AtomicU64,
    sorted_at: AtomicU32,
}

impl Latency {
    /// Takes a measurement. One that is being written while somebody asks may be missed until the next comes.
    pub fn record(&self, now_ms: u64, first_event_us: u64) {
        let samples = self.samples.get_or_init(|| Box::new([const { AtomicU32::new(0) }; WINDOW]));
        if now_ms.saturating_sub(self.latest_ms.swap(now_ms, Relaxed)) > STALE_MS {
            self.recorded.store(0, Relaxed);
            self.sorted_at.store(0, Relaxed);
        }
        let at = self.recorded.fetch_add(1, Relaxed);
        // More than an hour does not fit and does not matter. Nothing takes no time: zero is a place not written yet.
        samples[at as usize % WINDOW].store(u32::try_from(first_event_us).unwrap_or(u32::MAX).max(1), Relaxed);
        if at == u32::MAX {
            self.recorded.store(WINDOW as u32, Relaxed);
            self.sorted_at.store(0, Relaxed);
        }
    }

    /// The median, once [`MIN_SAMPLES`] are known and the latest is not older than [`STALE_MS`].
    pub fn median_us(&self, now_ms: u64) -> Option<u64> {
        self.known(now_ms, MIN_SAMPLES).then(|| u64::from(self.percentiles() as u32))
    }

    /// The 95th percentile, once [`P95_MIN_SAMPLES`] are known and the latest is not older than [`STALE_MS`].
    pub fn p95_us(&self, now_ms: u64) -> Option<u64> {
        self.known(now_ms, P95_MIN_SAMPLES).then(|| self.percentiles() >> 32)
    }

    /// Two who ask at once both sort.
    fn percentiles(&self) -> u64 {
        let recorded = self.recorded.load(Relaxed);
        let Some(samples) = self.samples.get().filter(|_| self.is_behind(recorded)) else {
            return self.percentiles.load(Relaxed);
        };
        let mut sorted = [0u32; WINDOW];
        let mut known = 0;
        for sample in samples.iter().take(recorded as usize).map(|sample| sample.load(Relaxed)).filter(|sample| *sample != 0) {
            sorted[known] = sample;
            known += 1;
        }
        if known == 0 {
            return self.percentiles.load(Relaxed);
        }
        let sorted = &mut sorted[..known];
        sorted.sort_unstable();
        // The 95th percentile: the smallest value that at least 95 % do not exceed.
        let (median, p95) = (sorted[(known - 1) / 2], sorted[(known * 95).div_ceil(100) - 1]);
        let found = u64::from(p95) << 32 | u64::from(median);
        self.percentiles.store(found, Relaxed);
        self.sorted_at.store(recorded, Release);
        found
    }

    /// The measurements since the last sort count: each of the first [`WINDOW`], later an eighth of them at a time, which moves a
    /// percentile by a few places at most.
    fn is_behind(&self, recorded: u32) -> bool {
        let sorted_at = self.sorted_at.load(Acquire);
        recorded != sorted_at && (sorted_at < WINDOW as u32 || recorded.wrapping_sub(sorted_at) >= WINDOW as u32 / 8)
    }

    fn known(&self, now_ms: u64, samples: u32) -> bool {
        self.recorded.load(Relaxed) >= samples && now_ms.saturating_sub(self.latest_ms.load(Relaxed)) <= STALE_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: u64 = 1_700_000_000_000;

    fn check(samples: impl IntoIterator<Item = u64>, median: Option<u64>, p95: Option<u64>) {
        let latency = Latency::default();
        for sample in samples {
            latency.record(T0, sample);
        }
        assert_eq!((latency.median_us(T0), latency.p95_us(T0)), (median, p95));
    }

    #[test]
    fn percentiles_of_what_came_last() {
        check([], None, None);
        check([7, 9], None, None);
        check([30, 10, 20], Some(20), None);
        check([4, 1, 3, 2], Some(2), None);
        check(1..=10, Some(5), Some(10));
        check(1..=20, Some(10), Some(19));
        // Only the last 64 count: all the slow ones are gone.
        check((0..100).map(|_| 9_000_000).chain((0..64).map(|_| 5)), Some(5), Some(5));
        // Asked after each, it is an eighth behind at most.
        let latency = Latency::default();
        for sample in (0..100).map(|_| 9_000_000).chain((0..64 + 7).map(|_| 5)) {
            latency.record(T0, sample);
            latency.median_us(T0);
        }
        assert_eq!((latency.median_us(T0), latency.p95_us(T0)), (Some(5), Some(5)));
        check([u64::MAX; 3], Some(u64::from(u32::MAX)), None);
    }

    #[test]
    fn old_measurements_say_nothing() {
        let latency = Latency::default();
        for _ in 0..10 {
            latency.record(T0, 9_000_000);
        }
        assert_eq!(latency.median_us(T0 + STALE_MS), Some(9_000_000));
        assert_eq!(latency.median_us(T0 + STALE_MS + 1), None);
        // The row begins anew, without the old ones.
        for at in 0..3 {
            latency.record(T0 + STALE_MS + 1 + at, 10);
        }
        assert_eq!(latency.median_us(T0 + STALE_MS + 4), Some(10));
    }
}
