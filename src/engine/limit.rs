//! Rate limits: token buckets that may owe, per key, account and tier. The clock is passed in.
//!
//! A bucket is one atomic: the instant at which it will be full again (the generic cell rate algorithm, ITU-T I.371). Taking moves that
//! instant later, time moves towards it. A minute's limit may be used at once and comes back evenly. Tokens are taken as estimated and
//! corrected at the end; what was underestimated is owed, and the next request waits for it.
//!
//! Deliberately absent: locks, a clock, and any background refill.

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

/// What one key, account or tier has used of its limits.
#[derive(Debug)]
pub struct Limiter {
    gauges: [Gauge; 4],
    /// Requests at the same time at most; [`NO_LIMIT`] for none.
    concurrent: AtomicU64,
    in_flight: AtomicU64,
}

/// A request that passed. Dropped, it ends its part of `concurrent` and keeps what it took; see [`Admitted::correct`] and
/// [`Admitted::release`].
#[derive(Debug)]
#[must_use = "dropping it ends the request"]
pub struct Admitted {
    limiter: Arc<Limiter>,
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

/// One bucket.
#[derive(Debug)]
struct Gauge {
    which: Which,
    window_ns: u64,
    /// Units a window; [`NO_LIMIT`] for none.
    limit: AtomicU64,
    /// Nanoseconds since the epoch at which the bucket is (or was) full. Beyond now + window it owes. 64 bits reach to the year 2554.
    full_at_ns: AtomicU64,
}

/// Stands for "no limit" in an atomic.
const NO_LIMIT: u64 = u64::MAX;
/// What to say when too many requests run at once: nobody knows when one ends, so ask to come back soon.
const CONCURRENT_RETRY_MS: u64 = 1_000;
/// What to say when the limit is zero: nothing will ever pass, so ask to come back in a day at the earliest.
const NEVER_RETRY_MS: u64 = 86_400_000;
const NS_IN_MS: u64 = 1_000_000;
/// Room for the longest common `x-ratelimit-reset-*`: `23h59m59.999s`.
const RESET_BYTES: usize = 16;
const MINUTE_NS: u64 = 60_000 * NS_IN_MS;
const DAY_NS: u64 = 86_400_000 * NS_IN_MS;

impl Limiter {
    /// Nothing used yet.
    pub fn new(limits: Limits) -> Limiter {
        let gauge = |which, window_ns| Gauge { which, window_ns, limit: AtomicU64::new(NO_LIMIT), full_at_ns: AtomicU64::new(0) };
        let limiter = Limiter {
            gauges: [gauge(Which::Rpm, MINUTE_NS), gauge(Which::Rpd, DAY_NS), gauge(Which::Tpm, MINUTE_NS), gauge(Which::Tpd, DAY_NS)],
            concurrent: AtomicU64::new(NO_LIMIT),
            in_flight: AtomicU64::new(0),
        };
        limiter.change(limits);
        limiter
    }

    /// Other limits from now on (a reload). What was used stays used, as a share of the limit.
    pub fn change(&self, limits: Limits) {
        for gauge in &self.gauges {
            let limit = match gauge.which {
                Which::Rpm => limits.rpm,
                Which::Tpm => limits.tpm,
                Which::Rpd => limits.rpd,
                Which::Tpd => limits.tpd,
                Which::Concurrent => None,
            };
            gauge.limit.store(limit.unwrap_or(NO_LIMIT), Ordering::Relaxed);
        }
        self.concurrent.store(limits.concurrent.unwrap_or(NO_LIMIT), Ordering::Relaxed);
    }

    /// Its limits are these.
    pub fn has(&self, limits: Limits) -> bool {
        let [rpm, rpd, tpm, tpd] = self.gauges.each_ref().map(Gauge::limit);
        let concurrent = Some(self.concurrent.load(Ordering::Relaxed)).filter(|limit| *limit != NO_LIMIT);
        Limits { rpm, tpm, rpd, tpd, concurrent } == limits
    }

    /// Lets a request pass, or says which limit it met; then nothing is taken.
    ///
    /// An estimate larger than the whole limit passes when the bucket is full, and owes: the estimate may be too high, and a refusal
    /// would be forever.
    pub fn admit(self: &Arc<Limiter>, now_ms: u64, tokens_estimate: u64) -> Result<Admitted, Limited> {
        let most = self.concurrent.load(Ordering::Relaxed);
        let enter = self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |running| (running < most).then(|| running + 1));
        if enter.is_err() {
            return Err(Limited { which: Which::Concurrent, limit: most, retry_after_ms: CONCURRENT_RETRY_MS });
        }
        // From here on dropping `admitted` takes the request out of `in_flight` again.
        let admitted = Admitted { limiter: Arc::clone(self), tokens: tokens_estimate };
        let now_ns = now_ms.saturating_mul(NS_IN_MS);
        for (index, gauge) in self.gauges.iter().enumerate() {
            if gauge.take(now_ns, gauge.units(tokens_estimate)) {
                continue;
            }
            for taken in &self.gauges[..index] {
                taken.give_back(taken.units(tokens_estimate));
            }
            return Err(self.longest_wait(now_ns, tokens_estimate, gauge));
        }
        Ok(admitted)
    }

    /// Requests running now.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What is left of requests and of tokens: of a minute's and a day's limit the one with less left.
    pub fn standings(&self, now_ms: u64) -> Standings {
        let now_ns = now_ms.saturating_mul(NS_IN_MS);
        let [rpm, rpd, tpm, tpd] = &self.gauges;
        let tightest = |one: &Gauge, other: &Gauge| tighter(one.standing(now_ns), other.standing(now_ns));
        Standings { requests: tightest(rpm, rpd), tokens: tightest(tpm, tpd) }
    }

    /// Of all limits that would refuse this request the one that lasts longest; `refused` is known to be one.
    fn longest_wait(&self, now_ns: u64, tokens: u64, refused: &Gauge) -> Limited {
        let longest = self.gauges.iter().max_by_key(|gauge| gauge.wait_ns(now_ns, gauge.units(tokens))).unwrap_or(refused);
        let limit = longest.limit.load(Ordering::Relaxed);
        let wait_ms = longest.wait_ns(now_ns, longest.units(tokens)).div_ceil(NS_IN_MS);
        Limited { which: longest.which, limit, retry_after_ms: wait_ms.clamp(1, NEVER_RETRY_MS) }
    }
}

/// Passes all limiters (of the key, its account, its tier) or none of them.
pub fn admit_all<'l>(
    limiters: impl IntoIterator<Item = &'l Arc<Limiter>>,
    now_ms: u64,
    tokens_estimate: u64,
) -> Result<Vec<Admitted>, Limited> {
    let mut passed = Vec::new();
    for limiter in limiters {
        match limiter.admit(now_ms, tokens_estimate) {
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
        for gauge in self.limiter.gauges.iter().filter(|gauge| gauge.counts_tokens()) {
            match actual_tokens.checked_sub(self.tokens) {
                Some(more) => gauge.owe(now_ms.saturating_mul(NS_IN_MS), more),
                None => gauge.give_back(self.tokens - actual_tokens),
            }
        }
    }

    /// The request never happened: everything it took goes back.
    pub fn release(self) {
        for gauge in &self.limiter.gauges {
            gauge.give_back(gauge.units(self.tokens));
        }
    }

    /// The limiter it passed.
    pub fn limiter(&self) -> &Arc<Limiter> {
        &self.limiter
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.limiter.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gauge {
    fn counts_tokens(&self) -> bool {
        matches!(self.which, Which::Tpm | Which::Tpd)
    }

    fn units(&self, tokens: u64) -> u64 {
        if self.counts_tokens() { tokens } else { 1 }
    }

    fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit != NO_LIMIT)
    }

    /// How long `units` take to come back at `limit` a window.
    fn time_ns(&self, units: u64, limit: u64) -> u64 {
        let time = u128::from(units) * u128::from(self.window_ns) / u128::from(limit.max(1));
        u64::try_from(time).unwrap_or(u64::MAX)
    }

    fn take(&self, now_ns: u64, units: u64) -> bool {
        let Some(limit) = self.limit() else { return true };
        let cost_ns = self.time_ns(units, limit);
        let taken = self.full_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let start = full_at.max(now_ns);
            let fits = limit > 0 && (start - now_ns).saturating_add(cost_ns.min(self.window_ns)) <= self.window_ns;
            fits.then(|| start.saturating_add(cost_ns))
        });
        taken.is_ok()
    }

    /// Takes without asking.
    fn owe(&self, now_ns: u64, units: u64) {
        let Some(limit) = self.limit() else { return };
        let cost_ns = self.time_ns(units, limit);
        // The closure always returns a value, so the update cannot fail.
        let _ =
            self.full_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| Some(full_at.max(now_ns).saturating_add(cost_ns)));
    }

    /// An instant before now means full, so giving back too much gains nothing.
    fn give_back(&self, units: u64) {
        let Some(limit) = self.limit() else { return };
        let cost_ns = self.time_ns(units, limit);
        // As above.
        let _ = self.full_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| Some(full_at.saturating_sub(cost_ns)));
    }

    /// Zero when the units could be taken now.
    fn wait_ns(&self, now_ns: u64, units: u64) -> u64 {
        match self.limit() {
            None => 0,
            Some(0) => u64::MAX,
            Some(limit) => {
                let owed_ns = self.full_at_ns.load(Ordering::Relaxed).saturating_sub(now_ns);
                owed_ns.saturating_add(self.time_ns(units, limit).min(self.window_ns)).saturating_sub(self.window_ns)
            }
        }
    }

    fn standing(&self, now_ns: u64) -> Option<Standing> {
        let limit = self.limit()?;
        let missing_ns = self.full_at_ns.load(Ordering::Relaxed).saturating_sub(now_ns);
        let free_ns = u128::from(self.window_ns.saturating_sub(missing_ns));
        // At most `limit`, since the free part is at most the window.
        let remaining = (u128::from(limit) * free_ns / u128::from(self.window_ns)) as u64;
        Some(Standing { limit, remaining, reset_ms: missing_ns.div_ceil(NS_IN_MS) })
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
    /// Of two limiters' standings, the tighter of each.
    pub fn with(self, other: Standings) -> Standings {
        Standings { requests: tighter(self.requests, other.requests), tokens: tighter(self.tokens, other.tokens) }
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

    fn limiter(limits: Limits) -> Arc<Limiter> {
        Arc::new(Limiter::new(limits))
    }

    fn refused(limiter: &Arc<Limiter>, now_ms: u64, tokens: u64) -> (Which, u64) {
        let limited = limiter.admit(now_ms, tokens).expect_err("over the limit");
        (limited.which, limited.retry_after_ms)
    }

    #[test]
    fn a_minutes_requests_at_once_then_evenly() {
        let limiter = limiter(Limits { rpm: Some(3), ..Limits::default() });
        for _ in 0..3 {
            drop(limiter.admit(NOW, 0).unwrap());
        }
        assert_eq!(refused(&limiter, NOW, 0), (Which::Rpm, 20_000));
        assert_eq!(refused(&limiter, NOW + 19_999, 0), (Which::Rpm, 1));
        drop(limiter.admit(NOW + 20_000, 0).unwrap());
        assert_eq!(refused(&limiter, NOW + 20_000, 0), (Which::Rpm, 20_000));
    }

    #[test]
    fn what_was_underestimated_is_owed() {
        let limiter = limiter(Limits { tpm: Some(1_000), ..Limits::default() });
        limiter.admit(NOW, 100).unwrap().correct(NOW, 1_600);
        assert_eq!(limiter.standings(NOW).tokens, Some(Standing { limit: 1_000, remaining: 0, reset_ms: 96_000 }));
        // 600 owed and 100 asked: 700 tokens take 42 s.
        assert_eq!(refused(&limiter, NOW, 100), (Which::Tpm, 42_000));
        drop(limiter.admit(NOW + 42_000, 100).unwrap());
    }

    #[test]
    fn what_was_overestimated_comes_back() {
        let limiter = limiter(Limits { tpm: Some(1_000), ..Limits::default() });
        limiter.admit(NOW, 900).unwrap().correct(NOW, 100);
        assert_eq!(limiter.standings(NOW).tokens.unwrap().remaining, 900);
        // Later than the bucket needs to refill, a correction downwards gains nothing, one upwards still counts.
        limiter.admit(NOW, 900).unwrap().correct(NOW + 600_000, 0);
        assert_eq!(limiter.standings(NOW + 600_000).tokens.unwrap().remaining, 1_000);
        limiter.admit(NOW + 600_000, 1_000).unwrap().correct(NOW + 900_000, 1_250);
        assert_eq!(limiter.standings(NOW + 900_000).tokens.unwrap().remaining, 750);
    }

    #[test]
    fn more_than_the_limit_passes_once_and_owes() {
        let limiter = limiter(Limits { tpm: Some(1_000), ..Limits::default() });
        drop(limiter.admit(NOW, 5_000).unwrap());
        assert_eq!(refused(&limiter, NOW, 1), (Which::Tpm, 240_060));
    }

    #[test]
    fn a_refusal_takes_nothing_and_names_the_longest_wait() {
        let limiter = limiter(Limits { rpm: Some(10), tpm: Some(100), tpd: Some(150), ..Limits::default() });
        drop(limiter.admit(NOW, 100).unwrap());
        let before = limiter.standings(NOW);
        // 50 more fit the day but not the minute; 60 fit neither, and the day's wait is longer.
        assert_eq!(refused(&limiter, NOW, 50), (Which::Tpm, 30_000));
        assert_eq!(refused(&limiter, NOW, 60), (Which::Tpd, 5_760_000));
        assert_eq!(limiter.standings(NOW), before);
        assert_eq!(limiter.in_flight(), 0);
    }

    #[test]
    fn requests_at_the_same_time() {
        let limiter = limiter(Limits { concurrent: Some(2), ..Limits::default() });
        let (one, two) = (limiter.admit(NOW, 0).unwrap(), limiter.admit(NOW, 0).unwrap());
        assert_eq!(refused(&limiter, NOW, 0), (Which::Concurrent, CONCURRENT_RETRY_MS));
        one.correct(NOW, 5);
        let three = limiter.admit(NOW, 0).unwrap();
        drop((two, three));
        assert_eq!(limiter.in_flight(), 0);
    }

    #[test]
    fn a_limit_of_zero_lets_nothing_pass() {
        assert_eq!(refused(&limiter(Limits { rpm: Some(0), ..Limits::default() }), NOW, 0), (Which::Rpm, NEVER_RETRY_MS));
    }

    #[test]
    fn all_limiters_or_none() {
        let (wide, narrow) = (limiter(Limits { rpm: Some(5), ..Limits::default() }), limiter(Limits { rpm: Some(1), ..Limits::default() }));
        drop(admit_all([&wide, &narrow], NOW, 0).unwrap());
        assert_eq!(admit_all([&wide, &narrow], NOW, 0).unwrap_err().limit, 1);
        assert_eq!(wide.standings(NOW).requests.unwrap().remaining, 4);
        let both = wide.standings(NOW).with(narrow.standings(NOW));
        assert_eq!(both.requests, Some(Standing { limit: 1, remaining: 0, reset_ms: 60_000 }));
    }

    #[test]
    fn other_limits_after_a_reload() {
        let limiter = limiter(Limits { rpm: Some(2), ..Limits::default() });
        drop((limiter.admit(NOW, 0).unwrap(), limiter.admit(NOW, 0).unwrap()));
        limiter.change(Limits::default());
        drop(limiter.admit(NOW, 0).unwrap());
        limiter.change(Limits { rpm: Some(100), ..Limits::default() });
        assert_eq!(refused(&limiter, NOW, 0).0, Which::Rpm);
        drop(limiter.admit(NOW + 600, 0).unwrap());
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
        let limiter = limiter(Limits { rpm: Some(1_000), tpm: Some(50_000), ..Limits::default() });
        let passed: usize = std::thread::scope(|scope| {
            let run = || (0..500).filter(|_| limiter.admit(NOW, 100).is_ok()).count();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(passed, 500);
        assert_eq!(limiter.in_flight(), 0);
    }
}
