//! `[tier.…]`

use super::{Check, Names, check_name, is_plain};
use crate::config::pace;
use crate::config::walk::Table;
use crate::engine::catalog::Tier;
use crate::engine::limit::Limits;
use crate::engine::money::{Credits, Factor};
use crate::engine::provider::infer;
use rustc_hash::FxHashSet;
use std::sync::Arc;

pub(super) fn read(name: &str, mut table: Table<'_>, names: &Names<'_>, check: &Check) -> Tier {
    check_name(&table, "tier", name, is_plain);
    table.require("rank", "1");
    let tier = Tier {
        name: name.into(),
        rank: table.integer_in("rank", 0..=1_000_000).unwrap_or(0) as u32,
        markup: table.factor("markup").unwrap_or(Factor::ZERO),
        levels: levels(&mut table, names, check),
        models: models(&mut table, names, check),
        byok: table.flag("byok").unwrap_or(false),
        byok_fee: table.credits("byok_fee").unwrap_or(Credits::ZERO),
        own_base_url: table.flag("own_base_url").unwrap_or(false),
        limits: limits(&mut table),
        monthly_cap: table.credits("monthly_cap"),
    };
    if !tier.byok {
        for key in ["byok_fee", "own_base_url"] {
            if table.has(key) && (key == "byok_fee" || tier.own_base_url) {
                table.problem(key, "has no meaning without byok = true");
            }
        }
    }
    table.finish();
    tier
}

fn levels(table: &mut Table<'_>, names: &Names<'_>, check: &Check) -> Option<Vec<Arc<str>>> {
    let written = table.strings("levels")?;
    let mut levels = Vec::with_capacity(written.len());
    for name in written {
        match names.levels.get(name) {
            Some(level) => levels.push(Arc::clone(level)),
            None => check.unknown(table, "levels", "level", name, names.levels.keys().copied()),
        }
    }
    Some(levels)
}

/// Names nobody configured may stand here when their provider is inferred.
fn models(table: &mut Table<'_>, names: &Names<'_>, check: &Check) -> Option<FxHashSet<Arc<str>>> {
    let written = table.strings("models")?;
    let mut models = FxHashSet::default();
    for name in written {
        pace::rest();
        match names.models.get(name) {
            Some(model) => drop(models.insert(Arc::clone(model))),
            None if names.infer && infer(name).is_some() => drop(models.insert(name.into())),
            None => check.unknown(table, "models", "model", name, names.models.keys().copied()),
        }
    }
    Some(models)
}

fn limits(table: &mut Table<'_>) -> Limits {
    let Some(mut own) = table.table("limits") else { return Limits::default() };
    // A limit of nothing would be a closed tier that says "try again".
    let limits = Limits {
        rpm: own.integer_in("rpm", 1..=u64::MAX),
        tpm: own.integer_in("tpm", 1..=u64::MAX),
        rpd: own.integer_in("rpd", 1..=u64::MAX),
        tpd: own.integer_in("tpd", 1..=u64::MAX),
        concurrent: own.integer_in("concurrent", 1..=u64::MAX),
    };
    own.finish();
    limits
}
