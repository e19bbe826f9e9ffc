//! Power levels: which models a level offers and the limits it puts on them.

use super::catalog::{Catalog, Level, TargetPrice};
use super::money::Usd;
use std::sync::Arc;

/// `"model": "weir/eco"` asks for the level `eco`.
pub const MODEL_PREFIX: &str = "weir/";

/// With this as the model, the level header chooses.
pub const AUTO: &str = "auto";

/// The level of that name.
pub fn find<'a>(catalog: &'a Catalog, name: &str) -> Option<&'a Arc<Level>> {
    catalog.levels.get(name)
}

/// A target's price per million tokens, three parts input and one part output; nothing where all is paid by the piece. `None`: unknown,
/// be it that there is no price or that only the provider tells what a request costs.
pub fn blended_per_1m(price: &TargetPrice) -> Option<Usd> {
    match price {
        TargetPrice::Priced(price) if price.is_only_reported() => None,
        TargetPrice::Priced(price) => Some(price.blended_per_1m()),
        TargetPrice::Free => Some(Usd(0)),
        TargetPrice::Unpriced => None,
    }
}

/// The output cap of a request under a level and for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputCap {
    /// Write this cap into the request; `None`: leave what it says.
    pub enforce: Option<u64>,
    /// The most the answer can hold; `None`: nobody named a bound.
    pub at_most: Option<u64>,
}

impl Level {
    /// The models in order of preference for a task; an unknown task has the level's own order.
    pub fn models_for(&self, task: Option<&str>) -> &[Arc<str>] {
        task.and_then(|task| self.tasks.get(task)).unwrap_or(&self.models)
    }

    /// Whether any list of the level names the model.
    pub fn lists(&self, model: &str) -> bool {
        self.models.iter().chain(self.tasks.values().flatten()).any(|name| **name == *model)
    }

    /// Whether a model that was asked by name may be charged at this level's rate: the level lists it, or bounds its price.
    /// Otherwise the header alone would buy the dearest model at the cheapest level's multiplier.
    pub fn takes(&self, model: &str) -> bool {
        self.max_cost_per_1m.is_some() || self.lists(model)
    }

    /// Whether a target with this price is within the level's. An unknown price is within no limit.
    pub fn affords(&self, price: &TargetPrice) -> bool {
        self.max_cost_per_1m.is_none_or(|most| blended_per_1m(price).is_some_and(|cost| cost <= most))
    }

    /// Whether a target with this measured median is within the level's latency. Unknown passes.
    pub fn waits_for(&self, median_us: Option<u64>) -> bool {
        match (self.max_latency, median_us) {
            (Some(most), Some(median)) => u128::from(median) <= most.as_micros(),
            _ => true,
        }
    }
}

/// What becomes of the output cap: the level's lowers or sets the request's, and a cap that weir sets never exceeds what the
/// model can write. `Err`: the request itself asks for more than the model's maximum, which is given.
pub fn output_cap(level: Option<&Level>, asked: Option<u64>, model_max: Option<u64>) -> Result<OutputCap, u64> {
    let level_cap = level.and_then(|level| level.max_output);
    let within = |cap: u64| model_max.map_or(cap, |most| cap.min(most));
    match (asked, level_cap) {
        (Some(asked), cap) => {
            let lowered = cap.map_or(asked, |cap| cap.min(asked));
            match model_max {
                Some(most) if lowered > most => Err(most),
                _ => Ok(OutputCap { enforce: (lowered < asked).then_some(lowered), at_most: Some(lowered) }),
            }
        }
        (None, Some(cap)) => Ok(OutputCap { enforce: Some(within(cap)), at_most: Some(within(cap)) }),
        (None, None) => Ok(OutputCap { enforce: None, at_most: model_max }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::price::{Basis, Price, Rates, Sheet};
    use super::super::usage::Bucket::{self, *};
    use super::*;

    fn sheet(written: &[(Bucket, &str)]) -> Sheet {
        let mut rates = Rates::default();
        for (bucket, amount) in written {
            rates.set(*bucket, Usd::parse(amount).unwrap()).unwrap();
        }
        Sheet { rates, above: Vec::new() }
    }

    #[test]
    fn a_cost_that_nobody_knows_beforehand_is_not_a_low_one() {
        let check = |basis, written: &[(Bucket, &str)], flex: &[(Bucket, &str)], expected: Option<&str>| {
            let price = Price::new("p/m", &sheet(written), &[("flex".into(), sheet(flex))], basis);
            let blended = blended_per_1m(&TargetPrice::Priced(price.into()));
            assert_eq!(blended.map(|cost| cost.to_string()).as_deref(), expected, "{basis:?} {written:?} {flex:?}");
        };
        check(Basis::Reported, &[], &[], None);
        check(Basis::Reported, &[], &[(Input, "1")], Some("0"));
        for unit in [Images, Milliseconds, Requests, WebSearches] {
            check(Basis::Table, &[(unit, "0.01")], &[], Some("0"));
        }
        check(Basis::Reported, &[(Input, "1"), (Output, "5")], &[], Some("2"));
        check(Basis::Reported, &[(Input, "0")], &[], Some("0"));
        check(Basis::Table, &[(Input, "4"), (Images, "0.04")], &[], Some("3"));
        check(Basis::Table, &[(Output, "4")], &[], Some("1"));
        check(Basis::Table, &[(Input, "0"), (Output, "0")], &[], Some("0"));
        check(Basis::Table, &[(Requests, "0"), (Milliseconds, "0")], &[], Some("0"));
        assert_eq!(blended_per_1m(&TargetPrice::Free), Some(Usd::ZERO));
        assert_eq!(blended_per_1m(&TargetPrice::Unpriced), None);
    }
}
