//! `[level.…]`

use super::{Check, Names, check_name, is_plain, time};
use crate::config::walk::Table;
use crate::engine::catalog::Level;
use crate::engine::money::Factor;
use rustc_hash::FxHashMap;
use std::sync::Arc;

pub(super) fn read(name: &str, mut table: Table<'_>, names: &Names<'_>, check: &Check) -> Level {
    check_name(&table, "level", name, is_plain);
    table.require("models", "[\"…\"]");
    let written = table.strings("models").unwrap_or_default();
    if written.is_empty() && table.type_of("models") == Some("array") {
        table.problem("models", "must name at least one model");
    }
    let models = names.models(&table, "models", &written, check);
    let mut tasks = FxHashMap::default();
    if let Some(mut own) = table.table("tasks") {
        for task in own.names() {
            let written = own.strings(task).unwrap_or_default();
            if written.is_empty() && own.type_of(task) == Some("array") {
                own.problem(task, "must name at least one model");
            }
            tasks.insert(task.into(), names.models(&own, task, &written, check));
        }
        own.finish();
    }
    let level = Level {
        name: names.levels.get(name).map_or_else(|| Arc::from(name), Arc::clone),
        models,
        cost_multiplier: table.factor("cost_multiplier").unwrap_or(Factor::ONE),
        max_cost_per_1m: table.usd("max_cost_per_1m"),
        max_latency: time(&mut table, "max_latency"),
        max_output: table.integer_in("max_output", 1..=u64::MAX),
        fallback: table.flag("fallback").unwrap_or(true),
        tasks,
    };
    table.finish();
    level
}
