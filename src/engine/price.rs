//! Prices and what a usage costs by them.
//!
//! A price is made once, at load: what is not priced apart falls back to a broader rate there, so that a cost is one pass of
//! multiplications. All arithmetic is in integers over one denominator and rounds once.
//!
//! Deliberately absent: prices by time of day or region. Where a provider has those, take its own figure (`reported`).

use super::money::{BadAmount, Usd, div_half_even};
use super::usage::{Bucket, Usage};
use std::sync::Arc;

/// How many buckets there are.
const BUCKETS: usize = Bucket::ALL.len();

/// Rates as written: one per bucket at most.
///
/// Tokens: pico-dollars per million. `Milliseconds`: pico-dollars per hour. `Images`, `Requests`, `WebSearches`: pico-dollars each.
/// 64 bits reach to 18 million dollars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rates {
    at: [Option<u64>; BUCKETS],
}

/// Rates, and the rates that replace them once the input passes a mark.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sheet {
    /// Rates at any length.
    pub rates: Rates,
    /// Input tokens (cached ones count), and the rates of the whole request once there are more. What a step does not name stays as
    /// on the step below.
    pub above: Vec<(u64, Rates)>,
}

/// The rates of one `provider/model`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    id: Arc<str>,
    base: Schedule,
    /// By the tier's name as an answer gives it.
    tiers: Vec<(Box<str>, Schedule)>,
    reported: bool,
}

/// Whose figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Basis {
    /// The table's rates.
    #[default]
    Table,
    /// The provider's own cost field when the answer has one, else the table's rates.
    Reported,
}

/// Rates with every fall-back filled in, steps by falling mark.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Schedule {
    rates: Rates,
    steps: Vec<(u64, Rates)>,
}

/// What a provider may say a request cost: 10,000 dollars. More is a mistake, or a caller's own server, and does not count.
pub const REPORTED_COST_MAX: Usd = Usd(10_000 * Usd::ONE.0);
/// The `price_id` of a row whose cost is not known.
pub const UNPRICED: &str = "unpriced";

/// One denominator for all units: a multiple of a million tokens and of the milliseconds in an hour.
const DENOMINATOR: u128 = 18_000_000;
/// What a token count is multiplied by: `DENOMINATOR` over a million.
const TOKENS_WEIGHT: u128 = DENOMINATOR / 1_000_000;
/// What milliseconds are multiplied by: `DENOMINATOR` over the milliseconds in an hour.
const MILLISECONDS_WEIGHT: u128 = DENOMINATOR / 3_600_000;

impl Rates {
    /// Sets the rate of a bucket. `TooLarge` when 64 bits do not hold it (or it is negative).
    pub fn set(&mut self, bucket: Bucket, rate: Usd) -> Result<(), BadAmount> {
        self.at[bucket as usize] = Some(u64::try_from(rate.0).map_err(|_| BadAmount::TooLarge)?);
        Ok(())
    }

    /// The rate of a bucket, in the unit of that bucket.
    pub fn of(&self, bucket: Bucket) -> Option<Usd> {
        self.at[bucket as usize].map(|rate| Usd(i128::from(rate)))
    }

    /// No rate at all.
    pub fn is_empty(&self) -> bool {
        self.at.iter().all(Option::is_none)
    }

    /// These rates, and below them others.
    pub fn over(mut self, below: &Rates) -> Rates {
        for (mine, theirs) in self.at.iter_mut().zip(below.at) {
            *mine = mine.or(theirs);
        }
        self
    }

    /// What is not priced apart is priced as the broader bucket. Order matters: a broader one is filled before it is borrowed from.
    fn with_fall_backs(mut self) -> Rates {
        use Bucket::*;
        const FALL_BACKS: [(Bucket, Bucket); 9] = [
            (CachedInput, Input),
            (CachedAudioInput, CachedInput),
            (ImageInput, Input),
            (AudioInput, Input),
            (CacheWrite5m, Input),
            (CacheWrite1h, CacheWrite5m),
            (Reasoning, Output),
            (AudioOutput, Output),
            (ImageOutput, Output),
        ];
        for (bucket, broader) in FALL_BACKS {
            self.at[bucket as usize] = self.at[bucket as usize].or(self.at[broader as usize]);
        }
        self
    }

    /// Pico-dollars over [`DENOMINATOR`], not yet divided.
    fn sum(&self, usage: &Usage) -> u128 {
        usage.iter().fold(0u128, |sum, (bucket, count)| {
            let rate = u128::from(self.at[bucket as usize].unwrap_or(0));
            sum.saturating_add((u128::from(count) * rate).saturating_mul(weight(bucket)))
        })
    }

    fn dearest(&self, buckets: &[Bucket]) -> u64 {
        buckets.iter().filter_map(|bucket| self.at[*bucket as usize]).max().unwrap_or(0)
    }
}

impl Price {
    /// The price of `name` (`provider/model`), with a sheet per service tier. A tier's rates stand over the sheet's; its steps are its own.
    pub fn new(name: &str, sheet: &Sheet, tiers: &[(Box<str>, Sheet)], basis: Basis) -> Price {
        let base = Schedule::new(sheet, &Rates::default());
        let mut tiers: Vec<_> = tiers.iter().map(|(tier, own)| (tier.clone(), Schedule::new(own, &sheet.rates))).collect();
        tiers.sort_by(|(one, _), (other, _)| one.cmp(other));
        let reported = basis == Basis::Reported;
        let id = format!("{name}@{:08x}", fingerprint(&base, &tiers, reported)).into();
        Price { id, base, tiers, reported }
    }

    /// The name and a fingerprint of every rate: the same for the same rates on any machine, another once one changes.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What a usage costs, rounded once, half to even. `service_tier` is the one the answer names; `reported` the provider's own
    /// figure, taken when the price says so.
    pub fn cost(&self, usage: &Usage, service_tier: Option<&str>, reported: Option<Usd>) -> Usd {
        if let Some(cost) = reported.filter(|cost| self.reported && cost.0 >= 0) {
            return cost;
        }
        let sum = self.schedule(service_tier).at(usage.input_tokens()).sum(usage);
        // Half of u128 is far beyond any cost; what saturated stays the largest amount.
        Usd(div_half_even(i128::try_from(sum).unwrap_or(i128::MAX), DENOMINATOR as i128))
    }

    /// The cost ([`Price::cost`]) and the `price_id` that a row has it by.
    pub fn bill(&self, usage: &Usage, service_tier: Option<&str>, reported: Option<Usd>) -> (Usd, &str) {
        let reported = believed(reported);
        let cost = self.cost(usage, service_tier, reported);
        // Nothing, because what it costs by was not told: a transcript as plain text does not say how long the speech was.
        let is_unknown = cost.0 == 0 && !usage.is_zero() && !self.covers(usage, service_tier, reported);
        (cost, if is_unknown { UNPRICED } else { &self.id })
    }

    /// Whether everything used that must cost something has a rate. `false`: the cost is too low and the row should say so.
    /// Tokens beside a unit that is priced (seconds of audio, images, requests) need none.
    pub fn covers(&self, usage: &Usage, service_tier: Option<&str>, reported: Option<Usd>) -> bool {
        use Bucket::*;
        if self.reported && reported.is_some() {
            return true;
        }
        let rates = self.schedule(service_tier).at(usage.input_tokens());
        let rated = |bucket: Bucket| usage.of(bucket) > 0 && rates.of(bucket).is_some();
        let unit_priced = [Milliseconds, Images, Requests].into_iter().any(rated);
        let unrated = |bucket: Bucket| usage.of(bucket) > 0 && rates.of(bucket).is_none();
        let tokens_rated = !INPUTS.iter().chain(&OUTPUTS).copied().any(unrated);
        let silent_units = usage.total_tokens() == 0 && [Milliseconds, Images].into_iter().any(unrated);
        !unrated(WebSearches) && (unit_priced || (tokens_rated && !silent_units))
    }

    /// Dollars per million tokens at three parts input and one part output, at the base rates.
    pub fn blended_per_1m(&self) -> Usd {
        let rate = |bucket| self.base.rates.of(bucket).unwrap_or_default().0;
        Usd(div_half_even(3 * rate(Bucket::Input) + rate(Bucket::Output), 4))
    }

    /// The most a request can cost in tokens and its fee per request, rounded up: the dearest rate of each side, in any service tier,
    /// at any step `prompt_tokens` reaches. Images and seconds are not in it; see [`Price::most_of`]. Searches are in neither: nobody knows
    /// beforehand how many a model makes.
    pub fn most(&self, prompt_tokens: u64, max_output_tokens: u64) -> Usd {
        let most = self.rates_up_to(prompt_tokens).map(|rates| {
            let side = |tokens: u64, buckets| (u128::from(tokens) * u128::from(rates.dearest(buckets))).saturating_mul(TOKENS_WEIGHT);
            let fee = u128::from(rates.dearest(&[Bucket::Requests])).saturating_mul(DENOMINATOR);
            side(prompt_tokens, &INPUTS).saturating_add(side(max_output_tokens, &OUTPUTS)).saturating_add(fee)
        });
        Usd(i128::try_from(most.max().unwrap_or(0).div_ceil(DENOMINATOR)).unwrap_or(i128::MAX))
    }

    /// How many output tokens an amount pays for at the least, at the dearest output rate a request of `prompt_tokens` can meet.
    /// `u64::MAX` when output costs nothing.
    pub fn output_tokens_for(&self, amount: Usd, prompt_tokens: u64) -> u64 {
        let rate = self.rates_up_to(prompt_tokens).map(|rates| rates.dearest(&OUTPUTS)).max().unwrap_or(0);
        match (u128::try_from(amount.0), rate) {
            (_, 0) => u64::MAX,
            (Err(_), _) => 0,
            (Ok(amount), rate) => u64::try_from(amount.saturating_mul(1_000_000) / u128::from(rate)).unwrap_or(u64::MAX),
        }
    }

    /// The most that `count` of one bucket's units can cost, rounded up: the dearest rate in any service tier.
    pub fn most_of(&self, bucket: Bucket, count: u64) -> Usd {
        let rate = self.rates_up_to(u64::MAX).map(|rates| rates.dearest(&[bucket])).max().unwrap_or(0);
        let most = (u128::from(count) * u128::from(rate)).saturating_mul(weight(bucket)).div_ceil(DENOMINATOR);
        Usd(i128::try_from(most).unwrap_or(i128::MAX))
    }

    /// Some request may cost something by it.
    pub fn may_cost(&self) -> bool {
        self.reported || self.rates_up_to(u64::MAX).any(|rates| rates.at.iter().flatten().any(|rate| *rate > 0))
    }

    fn schedule(&self, service_tier: Option<&str>) -> &Schedule {
        let named = |tier: &str| self.tiers.iter().find(|(name, _)| **name == *tier).map(|(_, schedule)| schedule);
        service_tier.and_then(named).unwrap_or(&self.base)
    }

    /// Every set of rates a request with at most this many input tokens can be billed by.
    fn rates_up_to(&self, input_tokens: u64) -> impl Iterator<Item = &Rates> {
        let schedules = std::iter::once(&self.base).chain(self.tiers.iter().map(|(_, schedule)| schedule));
        schedules.flat_map(move |schedule| {
            let steps = schedule.steps.iter().filter(move |(mark, _)| input_tokens > *mark);
            std::iter::once(&schedule.rates).chain(steps.map(|(_, rates)| rates))
        })
    }

    /// Whether there is nothing but the provider's own figure, so that [`Price::blended_per_1m`] tells nothing.
    pub fn is_only_reported(&self) -> bool {
        self.reported && self.rates_up_to(u64::MAX).all(Rates::is_empty)
    }
}

/// A provider's own figure, unless it cannot be one.
pub fn believed(reported: Option<Usd>) -> Option<Usd> {
    reported.filter(|cost| (Usd(0)..=REPORTED_COST_MAX).contains(cost))
}

impl Schedule {
    fn new(sheet: &Sheet, below: &Rates) -> Schedule {
        let written = sheet.rates.over(below);
        let mut above = sheet.above.clone();
        above.sort_by_key(|(mark, _)| *mark);
        let mut reached = written;
        let mut steps: Vec<_> = above
            .into_iter()
            .map(|(mark, rates)| {
                reached = rates.over(&reached);
                (mark, reached.with_fall_backs())
            })
            .collect();
        steps.reverse();
        Schedule { rates: written.with_fall_backs(), steps }
    }

    fn at(&self, input_tokens: u64) -> &Rates {
        self.steps.iter().find(|(mark, _)| input_tokens > *mark).map_or(&self.rates, |(_, rates)| rates)
    }
}

/// Buckets whose tokens the model reads.
const INPUTS: [Bucket; 7] = [
    Bucket::Input,
    Bucket::ImageInput,
    Bucket::AudioInput,
    Bucket::CachedInput,
    Bucket::CachedAudioInput,
    Bucket::CacheWrite5m,
    Bucket::CacheWrite1h,
];

/// Buckets whose tokens the model writes.
const OUTPUTS: [Bucket; 4] = [Bucket::Output, Bucket::Reasoning, Bucket::AudioOutput, Bucket::ImageOutput];

fn weight(bucket: Bucket) -> u128 {
    match bucket {
        Bucket::Milliseconds => MILLISECONDS_WEIGHT,
        Bucket::Images | Bucket::Requests | Bucket::WebSearches => DENOMINATOR,
        _ => TOKENS_WEIGHT,
    }
}

/// FNV-1a (64 bits, folded to 32) over every rate: stable across versions and machines, which the standard hashers are not.
fn fingerprint(base: &Schedule, tiers: &[(Box<str>, Schedule)], reported: bool) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut take = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    take(&[u8::from(reported)]);
    for (name, schedule) in std::iter::once(("", base)).chain(tiers.iter().map(|(name, schedule)| (&**name, schedule))) {
        take(name.as_bytes());
        for (mark, rates) in std::iter::once(&(0, schedule.rates)).chain(&schedule.steps) {
            take(&mark.to_le_bytes());
            // Only rates that are there, under their names: a bucket added later changes no fingerprint.
            for bucket in Bucket::ALL {
                if let Some(rate) = rates.at[bucket as usize] {
                    take(bucket.name().as_bytes());
                    take(&rate.to_le_bytes());
                }
            }
        }
    }
    (hash ^ (hash >> 32)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use Bucket::*;

    fn rates(list: &[(Bucket, &str)]) -> Rates {
        let mut rates = Rates::default();
        for (bucket, amount) in list {
            rates.set(*bucket, Usd::parse(amount).unwrap()).unwrap();
        }
        rates
    }

    fn price(list: &[(Bucket, &str)]) -> Price {
        Price::new("p/m", &Sheet { rates: rates(list), above: vec![] }, &[], Basis::Table)
    }

    fn usage(list: &[(Bucket, u64)]) -> Usage {
        let mut usage = Usage::default();
        for (bucket, count) in list {
            usage.set(*bucket, *count);
        }
        usage
    }

    #[test]
    fn every_bucket_at_its_rate_or_the_broader_one() {
        let check = |list: &[(Bucket, &str)], used: &[(Bucket, u64)], cost: &str| {
            assert_eq!(price(list).cost(&usage(used), None, None).to_string(), cost, "{list:?} {used:?}");
        };
        check(&[(Input, "0.15"), (Output, "0.60")], &[(Input, 19), (Output, 10)], "0.00000885");
        let sonnet = [(Input, "3"), (CachedInput, "0.30"), (CacheWrite5m, "3.75"), (CacheWrite1h, "6"), (Output, "15")];
        let used = [(Input, 21), (CachedInput, 188_086), (CacheWrite5m, 1_000), (CacheWrite1h, 2_000), (Output, 393), (Reasoning, 7)];
        // 21×3 + 188086×0.3 + 1000×3.75 + 2000×6 + 400×15 = 78238.8 millionths.
        check(&sonnet, &used, "0.0782388");
        check(&[(Input, "1")], &[(CachedInput, 1), (CachedAudioInput, 1), (ImageInput, 1), (AudioInput, 1)], "0.000004");
        check(&[(Input, "1")], &[(CacheWrite5m, 1), (CacheWrite1h, 1), (Output, 1_000_000)], "0.000002");
        check(&[(Input, "1"), (CacheWrite5m, "2")], &[(CacheWrite1h, 1)], "0.000002");
        check(&[(Input, "1"), (CachedInput, "0.5")], &[(CachedAudioInput, 2)], "0.000001");
        check(&[(Output, "2"), (Reasoning, "3")], &[(Reasoning, 1), (AudioOutput, 1), (ImageOutput, 1)], "0.000007");
        check(&[(Images, "0.04"), (Requests, "0.005"), (WebSearches, "0.01")], &[(Images, 2), (Requests, 1), (WebSearches, 3)], "0.115");
        // 0.111 dollars an hour, 10.5 seconds: 0.00032375.
        check(&[(Milliseconds, "0.111")], &[(Milliseconds, 10_500)], "0.00032375");
    }

    #[test]
    fn a_cost_is_rounded_once_to_even() {
        // Half a pico-dollar each; together one.
        let half = price(&[(Input, "0.0000005"), (Output, "0.0000005")]);
        assert_eq!(half.cost(&usage(&[(Input, 1)]), None, None), Usd(0));
        assert_eq!(half.cost(&usage(&[(Input, 1), (Output, 1)]), None, None), Usd(1));
        assert_eq!(half.cost(&usage(&[(Input, 3)]), None, None), Usd(2));
        let largest = price(&[(Input, "18446744.073709551615")]);
        assert!(largest.cost(&usage(&[(Input, u64::MAX), (CachedInput, u64::MAX)]), None, None).0 > 0);
    }

    #[test]
    fn a_step_takes_the_whole_request_once_its_input_is_past_the_mark() {
        let sheet = Sheet {
            rates: rates(&[(Input, "3"), (CachedInput, "0.3"), (Output, "15")]),
            above: vec![(500, rates(&[(Input, "12")])), (200, rates(&[(Input, "6"), (Output, "22.5")]))],
        };
        let price = Price::new("p/m", &sheet, &[], Basis::Table);
        let check = |used: &[(Bucket, u64)], cost: &str| assert_eq!(price.cost(&usage(used), None, None).to_string(), cost, "{used:?}");
        check(&[(Input, 200), (Output, 10)], "0.00075");
        check(&[(Input, 201), (Output, 10)], "0.001431");
        // Cached tokens count towards the mark and keep their own rate.
        check(&[(Input, 1), (CachedInput, 200)], "0.000066");
        // The higher step keeps the lower one's output rate.
        check(&[(Input, 501), (Output, 10)], "0.006237");
    }

    #[test]
    fn the_tier_the_answer_names() {
        let sheet = Sheet { rates: rates(&[(Input, "2"), (CachedInput, "1"), (Output, "8")]), above: vec![(100, rates(&[(Input, "4")]))] };
        let tiers = [
            ("flex".into(), Sheet { rates: rates(&[(Input, "1"), (Output, "4")]), above: vec![] }),
            ("priority".into(), Sheet { rates: rates(&[(Input, "5")]), above: vec![(100, rates(&[(Input, "7")]))] }),
        ];
        let price = Price::new("p/m", &sheet, &tiers, Basis::Table);
        let check = |tier: Option<&str>, used: &[(Bucket, u64)], cost: &str| {
            assert_eq!(price.cost(&usage(used), tier, None).to_string(), cost, "{tier:?} {used:?}");
        };
        check(None, &[(Input, 10), (Output, 1)], "0.000028");
        check(Some("default"), &[(Input, 10)], "0.00002");
        check(Some("flex"), &[(Input, 10), (Output, 1), (CachedInput, 1)], "0.000015");
        check(Some("flex"), &[(Input, 101)], "0.000101");
        check(Some("priority"), &[(Input, 10), (Output, 1)], "0.000058");
        check(Some("priority"), &[(Input, 101)], "0.000707");
        assert_eq!(price.most_of(Input, 1_000_000), Usd::parse("7").unwrap());
    }

    #[test]
    fn the_providers_own_figure_when_the_price_says_so() {
        let sheet = Sheet { rates: rates(&[(Input, "1")]), above: vec![] };
        let used = usage(&[(Input, 10)]);
        let own = Some(Usd(77));
        let reported = Price::new("p/m", &sheet, &[], Basis::Reported);
        assert_eq!(reported.cost(&used, None, own), Usd(77));
        assert_eq!(reported.cost(&used, None, None), Usd(10_000_000));
        assert_eq!(reported.cost(&used, None, Some(Usd(-1))), Usd(10_000_000));
        assert_eq!(Price::new("p/m", &sheet, &[], Basis::Table).cost(&used, None, own), Usd(10_000_000));
        // More than any request costs is a mistake.
        assert_eq!(reported.bill(&used, None, Some(REPORTED_COST_MAX)), (REPORTED_COST_MAX, reported.id()));
        assert_eq!(reported.bill(&used, None, Some(Usd(REPORTED_COST_MAX.0 + 1))), (Usd(10_000_000), reported.id()));
    }

    #[test]
    fn what_was_not_told_is_not_free() {
        let hourly = price(&[(Milliseconds, "0.36")]);
        assert_eq!(hourly.bill(&usage(&[(Milliseconds, 1_000), (Output, 5)]), None, None).1, hourly.id());
        assert_eq!(hourly.bill(&usage(&[(Output, 5)]), None, None), (Usd(0), UNPRICED));
        assert_eq!(hourly.bill(&usage(&[]), None, None), (Usd(0), hourly.id()), "nothing was used");
        let free = price(&[(Input, "0"), (Output, "0")]);
        assert_eq!(free.bill(&usage(&[(Input, 9), (Output, 9)]), None, None), (Usd(0), free.id()));
    }

    #[test]
    fn the_most_a_request_can_cost_is_never_less_than_what_it_costs() {
        let sheet = Sheet {
            rates: rates(&[(Input, "3"), (CacheWrite1h, "6"), (Output, "15"), (Reasoning, "20"), (Requests, "0.01")]),
            above: vec![(200, rates(&[(Input, "7"), (CacheWrite1h, "5")]))],
        };
        let tiers = [("priority".into(), Sheet { rates: rates(&[(Output, "30")]), above: vec![] })];
        let price = Price::new("p/m", &sheet, &tiers, Basis::Table);
        assert_eq!(price.most(100, 10).to_string(), "0.0109");
        proptest::proptest!(|(counts: [u8; 15], tier in 0..2usize)| {
            let mut used = Usage::default();
            for (bucket, count) in Bucket::ALL.into_iter().zip(counts) {
                used.set(bucket, u64::from(count));
            }
            used.set(Requests, 1);
            for unit in [Milliseconds, Images, WebSearches] {
                used.set(unit, 0);
            }
            let cost = price.cost(&used, ["priority", "default"].get(tier).copied(), None);
            assert!(cost <= price.most(used.input_tokens(), used.output_tokens()));
        });
    }

    #[test]
    fn what_an_amount_pays_for() {
        let price = price(&[(Input, "1"), (Output, "15")]);
        assert_eq!(price.output_tokens_for(Usd::parse("0.0001499").unwrap(), 0), 9);
        assert_eq!(price.output_tokens_for(Usd(-1), 0), 0);
        assert_eq!(super::tests::price(&[(Input, "1")]).output_tokens_for(Usd(0), 0), u64::MAX);
        assert_eq!(price.blended_per_1m().to_string(), "4.5");
    }

    #[test]
    fn what_has_no_rate_is_said() {
        let check = |list: &[(Bucket, &str)], used: &[(Bucket, u64)], covered: bool| {
            assert_eq!(price(list).covers(&usage(used), None, None), covered, "{list:?} {used:?}");
        };
        check(&[(Input, "1"), (Output, "0")], &[(CachedInput, 5), (Reasoning, 1), (Requests, 1)], true);
        check(&[(Input, "1")], &[(Input, 5), (Output, 1)], false);
        check(&[(Input, "1")], &[(Milliseconds, 5)], false);
        check(&[(Input, "1")], &[(Input, 5), (Milliseconds, 5)], true);
        check(&[(Milliseconds, "1")], &[(Milliseconds, 5), (Output, 9)], true);
        check(&[(Images, "1")], &[(Images, 1), (Requests, 1), (Input, 9)], true);
        check(&[(Input, "1")], &[(Input, 1), (WebSearches, 1)], false);
    }

    #[test]
    fn an_id_follows_the_rates() {
        let one = price(&[(Input, "1"), (Output, "2")]);
        assert_eq!(one.id(), price(&[(Output, "2"), (Input, "1")]).id());
        assert_ne!(one.id(), price(&[(Input, "2"), (Output, "1")]).id());
        // Rows keep it: a change here makes every stored id foreign.
        assert_eq!(one.id(), "p/m@f0e3ddf2");
    }
}
