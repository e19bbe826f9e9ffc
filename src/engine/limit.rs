//! Rate limits: token buckets that may owe, per key, account and tier. The clock is passed in.
//!
//! A bucket is one atomic: the instant at which it will be full again (the generic cell rate algorithm, ITU-T I.371). Taking moves that
//! instant later, time moves towards it. A minute's limit may be used at once and comes back evenly. Tokens are taken as estimated and
//! corrected at the end; what was underestimated is owed, and the next request waits for it.
//!
//! Deliberately absent: locks, a clock, and any background refill.

use std::borrow::Borrow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Limits as configured; `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Requests a minute.
    pub rpm: Option<u64>,
    /// Tokens a minute.
    pub tpm: Option<u64>,
    /// Requests a day.
    pub rpd: Option<u64>,
    /// Tokens a day.
    pub tpd: Option<u64>,
    /// Requests at the same time.
    pub concurrent: Option<u64>,
}

/// Which limit was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Which {
    /// Requests a minute.
    Rpm,
    /// Tokens a minute.
    Tpm,
    /// Requests a day.
    Rpd,
    /// Tokens a day.
    Tpd,
    /// Requests at the same time.
    Concurrent,
}

/// A refusal: what was met and when it is worth trying again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limited {
    /// The limit that is met for the longest.
    pub which: Which,
    /// Its size.
    pub limit: u64,
    /// Milliseconds until the same request would pass if nothing else came.
    pub retry_after_ms: u64,
}

/// What one key, account or tier has used. Its limits come with each request ([`Quota`]): other limits hold at once, and what was used
/// stays used, as a share of them. In an [`Arc`] it takes 56 bytes, one line of main memory: of a million owners none is in a cache.
#[derive(Debug, Default)]
pub struct Limiter {
    /// For each of [`WINDOWS`] the nanoseconds since the epoch at which its bucket is (or was) full. Beyond now + window it owes. 64 bits
    /// reach to the year 2554.
    full_at_ns: [AtomicU64; WINDOWS.len()],
    in_flight: AtomicU64,
}

/// What was used and the limits it is held against now.
#[derive(Debug, Clone)]
pub struct Quota {
    /// What was used.
    pub limiter: Arc<Limiter>,
    /// What may be used.
    pub limits: Limits,
}

/// A request that passed. Dropped, it ends its part of `concurrent` and keeps what it took; see [`Admitted::correct`] and
/// [`Admitted::release`].
#[derive(Debug)]
#[must_use = "dropping it ends the request"]
pub struct Admitted {
    quota: Quota,
    tokens: u64,
}

/// Where a caller stands, for the `x-ratelimit-*` headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The limit.
    pub limit: u64,
    /// What is left of it now.
    pub remaining: u64,
    /// Milliseconds until all of it is there again.
    pub reset_ms: u64,
}

/// The tightest limits of requests and of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standings {
    /// Requests; `None`: not limited.
    pub requests: Option<Standing>,
    /// Tokens; `None`: not limited.
    pub tokens: Option<Standing>,
}

/// One bucket that has a limit.
#[derive(Debug, Clone, Copy)]
struct Gauge<'l> {
    which: Which,
    window_ns: u64,
    /// Units a window.
    limit: u64,
    full_at_ns: &'l AtomicU64,
}

/// The limits over time. Requests come first: they refuse without a look at tokens.
const WINDOWS: [(Which, u64); 4] = [(Which::Rpm, MINUTE_NS), (Which::Rpd, DAY_NS), (Which::Tpm, MINUTE_NS), (Which::Tpd, DAY_NS)];
/// What to say when too many requests run at once: nobody knows when one ends, so ask to come back soon.
const CONCURRENT_RETRY_MS: u64 = 1_000;
/// What to say when the limit is zero: nothing will ever pass, so ask to come back in a day at the earliest.
const NEVER_RETRY_MS: u64 = 86_400_000;
const NS_IN_MS: u64 = 1_000_000;
/// Room for the longest common `x-ratelimit-reset-*`: `23h59m59.999s`.
const RESET_BYTES: usize = 16;
const MINUTE_NS: u64 = 60_000 * NS_IN_MS;
const DAY_NS: u64 = 86_400_000 * NS_IN_MS;

impl Limits {
    fn of(&self, which: Which) -> Option<u64> {
        match which {
            Which::Rpm => self.rpm,
            Which::Tpm => self.tpm,
            Which::Rpd => self.rpd,
            Which::Tpd => self.tpd,
            Which::Concurrent => self.concurrent,
        }
    }
}

impl Limiter {
    /// Requests running now.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

impl Quota {
    /// Lets a request pass, or says which limit it met; then nothing is taken.
    ///
    /// An estimate larger than the whole limit passes when the bucket is full, and owes: the estimate may be too high, and a refusal
    /// would be forever.
    pub fn admit(self, now_ms: u64, tokens_estimate: u64) -> Result<Admitted, Limited> {
        let most = self.limits.concurrent.unwrap_or(u64::MAX);
        let in_flight = &self.limiter.in_flight;
        if in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |running| (running < most).then(|| running + 1)).is_err() {
            return Err(Limited { which: Which::Concurrent, limit: most, retry_after_ms: CONCURRENT_RETRY_MS });
        }
        // From here on dropping `admitted` takes the request out of `in_flight` again.
        let admitted = Admitted { quota: self, tokens: tokens_estimate };
        let now_ns = now_ms.saturating_mul(NS_IN_MS);
        for (taken, gauge) in admitted.quota.gauges().enumerate() {
            if gauge.take(now_ns, gauge.units(tokens_estimate)) {
                continue;
            }
            for taken in admitted.quota.gauges().take(taken) {
                taken.give_back(taken.units(tokens_estimate));
            }
            return Err(admitted.quota.longest_wait(now_ns, tokens_estimate, gauge));
        }
        Ok(admitted)
    }

    /// What is left of requests and of tokens: of a minute's and a day's limit the one with less left.
    pub fn standings(&self, now_ms: u64) -> Standings {
        let now_ns = now_ms.saturating_mul(NS_IN_MS);
        let mut standings = Standings::default();
        for gauge in self.gauges() {
            let tightest = if gauge.counts_tokens() { &mut standings.tokens } else { &mut standings.requests };
            *tightest = tighter(*tightest, Some(gauge.standing(now_ns)));
        }
        standings
    }

    /// Those with a limit.
    fn gauges(&self) -> impl Iterator<Item = Gauge<'_>> {
        WINDOWS.iter().zip(&self.limiter.full_at_ns).filter_map(|(&(which, window_ns), full_at_ns)| {
            let limit = self.limits.of(which)?;
            Some(Gauge { which, window_ns, limit, full_at_ns })
        })
    }

    /// Of all limits that would refuse this request the one that lasts longest; `refused` is known to be one.
    fn longest_wait(&self, now_ns: u64, tokens: u64, refused: Gauge<'_>) -> Limited {
        let longest = self.gauges().max_by_key(|gauge| gauge.wait_ns(now_ns, gauge.units(tokens))).unwrap_or(refused);
        let wait_ms = longest.wait_ns(now_ns, longest.units(tokens)).div_ceil(NS_IN_MS);
        Limited { which: longest.which, limit: longest.limit, retry_after_ms: wait_ms.clamp(1, NEVER_RETRY_MS) }
    }
}

/// Passes all quotas (of the key, and of its account in its tier) or none of them.
pub fn admit_all(quotas: impl IntoIterator<Item = Quota>, now_ms: u64, tokens_estimate: u64) -> Result<Vec<Admitted>, Limited> {
    let mut passed = Vec::new();
    for quota in quotas {
        match quota.admit(now_ms, tokens_estimate) {
            Ok(admitted) => passed.push(admitted),
            Err(limited) => {
                passed.into_iter().for_each(Admitted::release);
                return Err(limited);
            }
        }
    }
    Ok(passed)
}

impl Admitted {
    /// The request ends with this many tokens instead of the estimate; what it used beyond is owed.
    pub fn correct(self, now_ms: u64, actual_tokens: u64) {
        for gauge in self.quota.gauges().filter(Gauge::counts_tokens) {
            match actual_tokens.checked_sub(self.tokens) {
                Some(more) => gauge.owe(now_ms.saturating_mul(NS_IN_MS), more),
                None => gauge.give_back(self.tokens - actual_tokens),
            }
        }
    }

    /// The request never happened: everything it took goes back.
    pub fn release(self) {
        for gauge in self.quota.gauges() {
            gauge.give_back(gauge.units(self.tokens));
        }
    }

    /// What it passed.
    pub fn quota(&self) -> &Quota {
        &self.quota
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.quota.limiter.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gauge<'_> {
    fn counts_tokens(&self) -> bool {
        matches!(self.which, Which::Tpm | Which::Tpd)
    }

    fn units(&self, tokens: u64) -> u64 {
        if self.counts_tokens() { tokens } else { 1 }
    }

    /// How long `units` take to come back.
    fn time_ns(&self, units: u64) -> u64 {
        let time = u128::from(units) * u128::from(self.window_ns) / u128::from(self.limit.max(1));
        u64::try_from(time).unwrap_or(u64::MAX)
    }

    fn take(&self, now_ns: u64, units: u64) -> bool {
        let cost_ns = self.time_ns(units);
        let taken = self.full_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let start = full_at.max(now_ns);
            let fits = self.limit > 0 && (start - now_ns).saturating_add(cost_ns.min(self.window_ns)) <= self.window_ns;
            fits.then(|| start.saturating_add(cost_ns))
        });
        taken.is_ok()
    }

    /// Takes without asking.
    fn owe(&self, now_ns: u64, units: u64) {
        let cost_ns = self.time_ns(units);
        // The closure always returns a value, so the update cannot fail.
        let _ =
            self.full_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| Some(full_at.max(now_ns).saturating_add(cost_ns)));
    }

    /// An instant before now means full, so giving back too much gains nothing.
    fn give_back(&self, units: u64) {
        let cost_ns = self.time_ns(units);
        // As above.
        let _ = self.full_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| Some(full_at.saturating_sub(cost_ns)));
    }

    /// Zero when the units could be taken now.
    fn wait_ns(&self, now_ns: u64, units: u64) -> u64 {
        if self.limit == 0 {
            return u64::MAX;
        }
        let owed_ns = self.full_at_ns.load(Ordering::Relaxed).saturating_sub(now_ns);
        owed_ns.saturating_add(self.time_ns(units).min(self.window_ns)).saturating_sub(self.window_ns)
    }

    fn standing(&self, now_ns: u64) -> Standing {
        let missing_ns = self.full_at_ns.load(Ordering::Relaxed).saturating_sub(now_ns);
        let free_ns = u128::from(self.window_ns.saturating_sub(missing_ns));
        // At most `limit`, since the free part is at most the window.
        let remaining = (u128::from(self.limit) * free_ns / u128::from(self.window_ns)) as u64;
        Standing { limit: self.limit, remaining, reset_ms: missing_ns.div_ceil(NS_IN_MS) }
    }
}

impl Which {
    /// What it is, for a refusal's text.
    pub const fn text(self) -> &'static str {
        match self {
            Which::Rpm => "requests per minute",
            Which::Tpm => "tokens per minute",
            Which::Rpd => "requests per day",
            Which::Tpd => "tokens per day",
            Which::Concurrent => "requests at the same time",
        }
    }

    /// The key in `routing.toml`.
    pub const fn name(self) -> &'static str {
        match self {
            Which::Rpm => "rpm",
            Which::Tpm => "tpm",
            Which::Rpd => "rpd",
            Which::Tpd => "tpd",
            Which::Concurrent => "concurrent",
        }
    }
}

impl Standing {
    /// Appends `reset_ms` as OpenAI's headers write it: `120ms`, `1s`, `8.64s`, `6m0s`, `1h0m0s` (the format of Go's durations).
    pub fn reset(&self, out: &mut String) {
        let mut number = itoa::Buffer::new();
        let mut put = |value: u64, unit: &str| {
            out.push_str(number.format(value));
            out.push_str(unit);
        };
        let (seconds, ms) = (self.reset_ms / 1_000, self.reset_ms % 1_000);
        if seconds == 0 && ms > 0 {
            return put(ms, "ms");
        }
        let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
        if hours > 0 {
            put(hours, "h");
        }
        if hours > 0 || minutes > 0 {
            put(minutes, "m");
        }
        put(seconds, "");
        if ms > 0 {
            let digits = [b'.', b'0' + (ms / 100) as u8, b'0' + (ms / 10 % 10) as u8, b'0' + (ms % 10) as u8];
            let fraction = std::str::from_utf8(&digits).unwrap_or_default();
            out.push_str(fraction.trim_end_matches('0'));
        }
        out.push('s');
    }
}

impl Standings {
    /// Of several quotas the tightest of each.
    pub fn of(quotas: impl IntoIterator<Item = impl Borrow<Quota>>, now_ms: u64) -> Standings {
        quotas.into_iter().fold(Standings::default(), |sum, quota| {
            let other = quota.borrow().standings(now_ms);
            Standings { requests: tighter(sum.requests, other.requests), tokens: tighter(sum.tokens, other.tokens) }
        })
    }

    /// Hands each `x-ratelimit-*` header to `put`, named as OpenAI names them.
    pub fn headers(&self, mut put: impl FnMut(&'static str, &str)) {
        const REQUESTS: [&str; 3] = ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
        const TOKENS: [&str; 3] = ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];
        let (mut number, mut reset) = (itoa::Buffer::new(), String::with_capacity(RESET_BYTES));
        for (standing, [limit, remaining, until]) in [(&self.requests, REQUESTS), (&self.tokens, TOKENS)] {
            let Some(standing) = standing else { continue };
            put(limit, number.format(standing.limit));
            put(remaining, number.format(standing.remaining));
            reset.clear();
            standing.reset(&mut reset);
            put(until, &reset);
        }
    }
}

/// The one with less left.
fn tighter(one: Option<Standing>, other: Option<Standing>) -> Option<Standing> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.remaining < one.remaining { other } else { one }),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_790_000_000_000;

    fn quota(limits: Limits) -> Quota {
        Quota { limiter: Arc::default(), limits }
    }

    fn admit(quota: &Quota, now_ms: u64, tokens: u64) -> Admitted {
        quota.clone().admit(now_ms, tokens).unwrap()
    }

    fn refused(quota: &Quota, now_ms: u64, tokens: u64) -> (Which, u64) {
        let limited = quota.clone().admit(now_ms, tokens).expect_err("over the limit");
        (limited.which, limited.retry_after_ms)
    }

    #[test]
    fn a_minutes_requests_at_once_then_evenly() {
        let quota = quota(Limits { rpm: Some(3), ..Limits::default() });
        for _ in 0..3 {
            drop(admit(&quota, NOW, 0));
        }
        assert_eq!(refused(&quota, NOW, 0), (Which::Rpm, 20_000));
        assert_eq!(refused(&quota, NOW + 19_999, 0), (Which::Rpm, 1));
        drop(admit(&quota, NOW + 20_000, 0));
        assert_eq!(refused(&quota, NOW + 20_000, 0), (Which::Rpm, 20_000));
    }

    #[test]
    fn what_was_underestimated_is_owed() {
        let quota = quota(Limits { tpm: Some(1_000), ..Limits::default() });
        admit(&quota, NOW, 100).correct(NOW, 1_600);
        assert_eq!(quota.standings(NOW).tokens, Some(Standing { limit: 1_000, remaining: 0, reset_ms: 96_000 }));
        // 600 owed and 100 asked: 700 tokens take 42 s.
        assert_eq!(refused(&quota, NOW, 100), (Which::Tpm, 42_000));
        drop(admit(&quota, NOW + 42_000, 100));
    }

    #[test]
    fn what_was_overestimated_comes_back() {
        let quota = quota(Limits { tpm: Some(1_000), ..Limits::default() });
        admit(&quota, NOW, 900).correct(NOW, 100);
        assert_eq!(quota.standings(NOW).tokens.unwrap().remaining, 900);
        // Later than the bucket needs to refill, a correction downwards gains nothing, one upwards still counts.
        admit(&quota, NOW, 900).correct(NOW + 600_000, 0);
        assert_eq!(quota.standings(NOW + 600_000).tokens.unwrap().remaining, 1_000);
        admit(&quota, NOW + 600_000, 1_000).correct(NOW + 900_000, 1_250);
        assert_eq!(quota.standings(NOW + 900_000).tokens.unwrap().remaining, 750);
    }

    #[test]
    fn more_than_the_limit_passes_once_and_owes() {
        let quota = quota(Limits { tpm: Some(1_000), ..Limits::default() });
        drop(admit(&quota, NOW, 5_000));
        assert_eq!(refused(&quota, NOW, 1), (Which::Tpm, 240_060));
    }

    #[test]
    fn a_refusal_takes_nothing_and_names_the_longest_wait() {
        let quota = quota(Limits { rpm: Some(10), tpm: Some(100), tpd: Some(150), ..Limits::default() });
        drop(admit(&quota, NOW, 100));
        let before = quota.standings(NOW);
        // 50 more fit the day but not the minute; 60 fit neither, and the day's wait is longer.
        assert_eq!(refused(&quota, NOW, 50), (Which::Tpm, 30_000));
        assert_eq!(refused(&quota, NOW, 60), (Which::Tpd, 5_760_000));
        assert_eq!(quota.standings(NOW), before);
        assert_eq!(quota.limiter.in_flight(), 0);
    }

    #[test]
    fn requests_at_the_same_time() {
        let quota = quota(Limits { concurrent: Some(2), ..Limits::default() });
        let (one, two) = (admit(&quota, NOW, 0), admit(&quota, NOW, 0));
        assert_eq!(refused(&quota, NOW, 0), (Which::Concurrent, CONCURRENT_RETRY_MS));
        one.correct(NOW, 5);
        let three = admit(&quota, NOW, 0);
        drop((two, three));
        assert_eq!(quota.limiter.in_flight(), 0);
    }

    #[test]
    fn a_limit_of_zero_lets_nothing_pass() {
        assert_eq!(refused(&quota(Limits { rpm: Some(0), ..Limits::default() }), NOW, 0), (Which::Rpm, NEVER_RETRY_MS));
    }

    #[test]
    fn all_limiters_or_none() {
        let (wide, narrow) = (quota(Limits { rpm: Some(5), ..Limits::default() }), quota(Limits { rpm: Some(1), ..Limits::default() }));
        drop(admit_all([wide.clone(), narrow.clone()], NOW, 0).unwrap());
        assert_eq!(admit_all([wide.clone(), narrow.clone()], NOW, 0).unwrap_err().limit, 1);
        assert_eq!(wide.standings(NOW).requests.unwrap().remaining, 4);
        let both = Standings::of([&wide, &narrow], NOW);
        assert_eq!(both.requests, Some(Standing { limit: 1, remaining: 0, reset_ms: 60_000 }));
    }

    #[test]
    fn other_limits_after_a_reload() {
        let mut quota = quota(Limits { rpm: Some(2), ..Limits::default() });
        drop((admit(&quota, NOW, 0), admit(&quota, NOW, 0)));
        quota.limits = Limits::default();
        drop(admit(&quota, NOW, 0));
        quota.limits.rpm = Some(100);
        assert_eq!(refused(&quota, NOW, 0).0, Which::Rpm);
        drop(admit(&quota, NOW + 600, 0));
    }

    #[test]
    fn resets_are_written_as_openai_writes_them() {
        let check = |reset_ms: u64, text: &str| {
            let mut reset = String::new();
            Standing { limit: 1, remaining: 0, reset_ms }.reset(&mut reset);
            assert_eq!(reset, text);
        };
        check(0, "0s");
        check(120, "120ms");
        check(1_000, "1s");
        check(8_640, "8.64s");
        check(360_000, "6m0s");
        check(72_500, "1m12.5s");
        check(86_400_000, "24h0m0s");
        let mut headers = Vec::new();
        let tokens = Some(Standing { limit: 9, remaining: 4, reset_ms: 17 });
        Standings { requests: None, tokens }.headers(|name, value| headers.push(format!("{name}: {value}")));
        assert_eq!(headers, ["x-ratelimit-limit-tokens: 9", "x-ratelimit-remaining-tokens: 4", "x-ratelimit-reset-tokens: 17ms"]);
    }

    #[test]
    fn threads_together_pass_exactly_the_limit() {
        let quota = quota(Limits { rpm: Some(1_000), tpm: Some(50_000), ..Limits::default() });
        let passed: usize = std::thread::scope(|scope| {
            let run = || (0..500).filter(|_| quota.clone().admit(NOW, 100).is_ok()).count();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(passed, 500);
        assert_eq!(quota.limiter.in_flight(), 0);
    }
}
