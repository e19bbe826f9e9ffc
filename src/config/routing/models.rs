//! `[model.…]`

use super::{Check, Names, check_name};
use crate::config::walk::Table;
use crate::engine::catalog::{Capabilities, Catalog, Model, Strategy, Target, TargetId, TargetPrice, is_of_a_name};
use crate::engine::tokens;
use std::sync::Arc;

/// Levels are asked for as `weir/<level>`, so no model may be.
pub(in crate::config) const RESERVED: &str = "weir/";

/// More latency than this, in percent, outweighs a warm prompt cache: a cache read saves most of the input's cost and time, so
/// a target may be half as slow again before another is better.
const STICK_MARGIN_PERCENT: u32 = 50;

/// Targets of one model; a request tries a handful.
const MAX_TARGETS: usize = 1_000;

pub(super) fn read(name: &str, mut table: Table<'_>, names: &Names<'_>, catalog: &Catalog, check: &Check) -> Model {
    check_name(&table, "model", name, is_of_a_name);
    if name.starts_with(RESERVED) {
        table.problem("", "weir/… asks for a power level, so a model cannot be named so");
    }
    // Every model's name is in `names`.
    let shared = names.models.get(name).map_or_else(|| Arc::from(name), Arc::clone);
    let min_tier = min_tier(&mut table, catalog, check);
    let context_window = table.integer_in("context_window", 1..=u64::MAX);
    let max_output = table.integer_in("max_output", 1..=u64::MAX);
    if let (Some(window), Some(output)) = (context_window, max_output)
        && output > window
    {
        table.problem("max_output", format!("is more than the context_window of {window} tokens"));
    }
    let (stick, margin) = (table.choice("stick", &[("prefix", ())]), table.integer_in("stick_margin", 0..=10_000));
    if stick.is_none() && margin.is_some() {
        table.problem("stick_margin", "has no meaning without stick = \"prefix\"");
    }
    let model = Model {
        targets: targets(&mut table, &shared, catalog, check),
        fallback: fallback(&mut table, name, names, check),
        min_tier,
        context_window,
        max_output,
        can: can(&mut table),
        strategy: strategy(&mut table),
        stick: stick.map(|()| margin.map_or(STICK_MARGIN_PERCENT, |percent| percent as u32)),
        hedge: table.flag("hedge").unwrap_or(false),
        name: shared,
    };
    table.finish();
    model
}

fn targets(table: &mut Table<'_>, model: &Arc<str>, catalog: &Catalog, check: &Check) -> Vec<Arc<Target>> {
    table.require("targets", "[ { provider = \"…\" } ]");
    let Some(tables) = table.array("targets") else { return Vec::new() };
    if tables.is_empty() || tables.len() > MAX_TARGETS {
        table.problem("targets", format!("must have 1 to {MAX_TARGETS} entries"));
    }
    let mut targets: Vec<Arc<Target>> = Vec::with_capacity(tables.len());
    for mut entry in tables {
        if let Some(target) = target(&mut entry, model, catalog, check) {
            if targets.iter().any(|other| other.provider.name == target.provider.name && other.upstream_model == target.upstream_model) {
                entry.problem("", "this provider's model is listed twice; give one entry the weight of both");
            }
            targets.push(Arc::new(target));
        }
        entry.finish();
    }
    targets
}

fn target(entry: &mut Table<'_>, model: &Arc<str>, catalog: &Catalog, check: &Check) -> Option<Target> {
    entry.require("provider", "\"…\"");
    let provider_name = entry.string("provider");
    let upstream_model: Arc<str> = entry.string("model").map_or_else(|| Arc::clone(model), Arc::from);
    if upstream_model.is_empty() || !upstream_model.bytes().all(is_of_a_name) {
        entry.problem("model", "must be visible ASCII without spaces, quotes and backslashes");
    }
    let weight = entry.integer_in("weight", 0..=1_000_000).map_or(1, |weight| weight as u32);
    let priority = entry.integer_in("priority", 0..=1_000_000).map(|priority| priority as u32);
    // `Some(None)`: said, and not a price; then nothing more is said about it.
    let said = entry.has("price").then(|| entry.choice("price", &[("free", Said::Free), ("unpriced", Said::Unpriced)]));
    let provider_name = provider_name?;
    let Some(provider) = catalog.providers.get(provider_name) else {
        check.unknown(entry, "provider", "provider", provider_name, catalog.providers.keys().map(|name| &**name));
        return None;
    };
    let price = match said {
        Some(Some(Said::Free)) => TargetPrice::Free,
        Some(_) => TargetPrice::Unpriced,
        None => price(entry, provider_name, &upstream_model, catalog),
    };
    Some(Target {
        id: TargetId::next(),
        provider: Arc::clone(provider),
        model: Arc::clone(model),
        family: tokens::family(&upstream_model),
        upstream_model,
        priority: priority.unwrap_or(provider.priority),
        weight,
        price,
        configured: true,
        state: Arc::default(),
    })
}

#[derive(Clone, Copy)]
enum Said {
    Free,
    Unpriced,
}

/// How the problem begins that a target has no price.
pub(in crate::config) const NO_PRICE: &str = "no price";

fn price(entry: &Table<'_>, provider: &str, model: &str, catalog: &Catalog) -> TargetPrice {
    let key = format!("{provider}/{model}");
    match catalog.prices.get(key.as_str()) {
        Some(price) => TargetPrice::Priced(Arc::clone(price)),
        None => {
            entry.problem(
                "",
                format!("{NO_PRICE}: add [price.{key:?}] to prices.toml, or say price = \"free\" or price = \"unpriced\" (then only keys without a budget may use it) here"),
            );
            TargetPrice::Unpriced
        }
    }
}

fn min_tier(table: &mut Table<'_>, catalog: &Catalog, check: &Check) -> Option<(u32, Arc<str>)> {
    let name = table.string("min_tier")?;
    match catalog.tiers.get(name) {
        Some(tier) => Some((tier.rank, Arc::clone(&tier.name))),
        None => {
            check.unknown(table, "min_tier", "tier", name, catalog.tiers.keys().map(|name| &**name));
            None
        }
    }
}

/// Circles between models are fine, for an attempt is made once; a model that falls back to itself is a slip.
fn fallback(table: &mut Table<'_>, model: &str, names: &Names<'_>, check: &Check) -> Vec<Arc<str>> {
    let Some(written) = table.strings("fallback") else { return Vec::new() };
    if written.contains(&model) {
        table.problem("fallback", "a model cannot fall back to itself");
    }
    names.models(table, "fallback", &written, check)
}

fn can(table: &mut Table<'_>) -> Option<Capabilities> {
    const WORDS: [(&str, Capabilities); 4] =
        [("stream", Capabilities::STREAM), ("tools", Capabilities::TOOLS), ("vision", Capabilities::VISION), ("json", Capabilities::JSON)];
    let written = table.strings("can")?;
    let mut can = Capabilities::default();
    for word in written {
        match WORDS.iter().find(|(known, _)| *known == word) {
            Some((_, capability)) => can = can.with(*capability),
            None => table.problem("can", format!("{word:?} is not one of stream, tools, vision, json")),
        }
    }
    Some(can)
}

fn strategy(table: &mut Table<'_>) -> Strategy {
    const WORDS: [(&str, Strategy); 4] = [
        ("weighted", Strategy::WeightedRandom),
        ("least-latency", Strategy::LeastLatency),
        ("least-cost", Strategy::LeastCost),
        ("least-busy", Strategy::LeastBusy),
    ];
    table.choice("strategy", &WORDS).unwrap_or_default()
}
