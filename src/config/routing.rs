//! `routing.toml`: text in, a catalog or problems out.
//!
//! Every table is read, every reference between tables is checked, and all problems are reported together; a catalog that came
//! with a problem is not to be used. Prices come in already read, for a target without one is a problem here.

mod levels;
mod models;
pub(super) use models::NO_PRICE;
#[cfg(feature = "gateway")]
pub(super) use models::RESERVED;
mod providers;
mod tiers;

pub(crate) use providers::from_folder;

use super::pace;
use super::prices::Prices;
use super::problem::Problem;
use super::walk::{File, Table, nearest};
use crate::engine::catalog::{Catalog, LuaPolicy, OnPolicyError, Retry, Routing};
use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Nearest names are looked for this often in one load: each look passes over every name, and a file in which more than this
/// many references are wrong has one cause, not many slips.
const MAX_HINTS: u32 = 100;

/// Longest time any setting may have; longer is a slip of the unit.
const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Names travel in response headers and metric labels.
pub(super) const MAX_NAME_BYTES: usize = 200;

/// Reads `routing.toml`. `routing_file` is its path as the operator named it: problems are reported under it, and relative paths
/// in it are taken from its folder.
pub fn parse(routing_file: &str, routing_text: &str, prices: &Arc<Prices>) -> (Catalog, Vec<Problem>) {
    let file = File::new(routing_file, routing_text);
    let mut catalog = Catalog { prices: Arc::clone(prices), ..Catalog::default() };
    if let Some(document) = file.parse() {
        let mut root = file.root(&document);
        read(&mut root, routing_file, &mut catalog);
        root.finish();
        File::close(document);
    }
    (catalog, file.into_problems())
}

/// What every part of the file needs to check its references.
struct Check {
    hints_left: Cell<u32>,
}

impl Check {
    /// Notes a reference to something that is not there, with the nearest name that is.
    fn unknown<'n>(&self, table: &Table<'_>, key: &str, what: &str, written: &str, names: impl Iterator<Item = &'n str>) {
        let hint = match self.hints_left.get() {
            0 => None,
            left => {
                self.hints_left.set(left - 1);
                nearest(written, names)
            }
        };
        let hint = hint.map_or_else(|| format!("; add [{what}.{written:?}] or name another"), |near| format!("; did you mean {near:?}?"));
        table.problem(key, format!("there is no {what} {written:?}{hint}"));
    }
}

fn read<'a>(root: &mut Table<'a>, file: &str, catalog: &mut Catalog) {
    let check = Check { hints_left: Cell::new(MAX_HINTS) };
    catalog.routing = Routing::default();
    if let Some(mut table) = root.table("retry") {
        catalog.retry = retry(&mut table);
        table.finish();
    }
    let folder = Path::new(file).parent().unwrap_or(Path::new(""));
    if let Some(mut table) = root.table("policy") {
        catalog.lua_policy = table.table("lua").and_then(|lua| lua_policy(lua, folder)).map(Arc::new);
        table.finish();
    }
    for (name, table) in root.tables("provider") {
        catalog.providers.insert(name.into(), Arc::new(providers::read(name, table, folder)));
    }
    let tier_tables = root.tables("tier");
    let level_tables = root.tables("level");
    let model_tables = root.tables("model");
    let infer = match root.table("routing") {
        Some(mut table) => {
            let infer = table.flag("infer").unwrap_or(true);
            let tier = table.string("default_tier");
            if let Some(tier) = tier
                && !tier_tables.iter().any(|(name, _)| *name == tier)
            {
                check.unknown(&table, "default_tier", "tier", tier, tier_tables.iter().map(|(name, _)| *name));
            }
            catalog.routing.default_tier = tier.map(Arc::from);
            table.finish();
            infer
        }
        None => true,
    };
    catalog.routing.infer = infer;
    let names = Names {
        models: model_tables.iter().map(|(name, _)| (*name, Arc::from(*name))).collect(),
        levels: level_tables.iter().map(|(name, _)| (*name, Arc::from(*name))).collect(),
        infer,
    };
    for (name, table) in tier_tables {
        let tier = tiers::read(name, table, &names, &check);
        catalog.tiers.insert(Arc::clone(&tier.name), Arc::new(tier));
    }
    for (name, table) in model_tables {
        pace::rest();
        let model = models::read(name, table, &names, catalog, &check);
        catalog.models.insert(Arc::clone(&model.name), Arc::new(model));
    }
    for (name, table) in level_tables {
        let level = levels::read(name, table, &names, &check);
        catalog.levels.insert(Arc::clone(&level.name), Arc::new(level));
    }
}

/// The names tables may refer to, each shared by all that do.
struct Names<'a> {
    models: FxHashMap<&'a str, Arc<str>>,
    levels: FxHashMap<&'a str, Arc<str>>,
    infer: bool,
}

impl Names<'_> {
    /// The models a list names; those that are not there are noted.
    fn models(&self, table: &Table<'_>, key: &str, written: &[&str], check: &Check) -> Vec<Arc<str>> {
        let mut found: Vec<Arc<str>> = Vec::with_capacity(written.len());
        let mut once = FxHashSet::with_capacity_and_hasher(written.len(), FxBuildHasher);
        for name in written {
            pace::rest();
            match self.models.get(name) {
                Some(_) if !once.insert(name) => table.problem(key, format!("{name:?} is listed twice")),
                Some(model) => found.push(Arc::clone(model)),
                None => check.unknown(table, key, "model", name, self.models.keys().copied()),
            }
        }
        found
    }
}

/// A rule that is not applied must not look as if it were: what cannot run a policy takes no file that names one.
fn lua_policy(mut table: Table<'_>, folder: &Path) -> Option<LuaPolicy> {
    table.require("file", "\"policy.lua\"");
    let file = table.string("file").map(|file| folder.join(file).to_string_lossy().into());
    let on_error = table.choice("on_error", &[("refuse", OnPolicyError::Refuse), ("pass", OnPolicyError::Pass)]).unwrap_or_default();
    if !cfg!(feature = "lua-policy") {
        table.problem("", "this build runs no Lua policies: build weir with --features lua-policy, or take this table out");
    }
    table.finish();
    Some(LuaPolicy { file: file?, text: Box::default(), on_error })
}

fn retry<'a>(table: &mut Table<'a>) -> Retry {
    /// More attempts than this only keep a caller waiting for a failure.
    const MAX_ATTEMPTS: u64 = 20;
    let mut retry = Retry::default();
    if let Some(attempts) = table.integer_in("max_attempts", 1..=MAX_ATTEMPTS) {
        retry.max_attempts = attempts as u32;
    }
    if let Some(cooldown) = time(table, "cooldown") {
        retry.cooldown = cooldown;
        retry.cooldown_long = retry.cooldown_long.max(cooldown);
    }
    if let Some(mut after) = table.table("cooldown_after") {
        if let Some(failures) = after.integer_in("failures", 1..=1_000) {
            retry.cooldown_failures = failures as u32;
        }
        if let Some(long) = time(&mut after, "time") {
            if long < retry.cooldown {
                after.problem("time", "is shorter than the cooldown after a single failure");
            }
            retry.cooldown_long = long;
        }
        after.finish();
    }
    retry
}

/// A time longer than nothing and not longer than a day.
fn time<'a>(table: &mut Table<'a>, key: &'a str) -> Option<Duration> {
    let time = table.duration(key)?;
    if time.is_zero() || time > MAX_TIME {
        table.problem(key, "must be longer than nothing and not longer than a day");
        return None;
    }
    Some(time)
}

/// Notes a name that could not travel in a header or a label.
fn check_name(table: &Table<'_>, what: &str, name: &str, allowed: fn(u8) -> bool) {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(allowed) {
        table.problem(
            "",
            format!("a {what}'s name has 1 to {MAX_NAME_BYTES} characters, visible ASCII without spaces{}", plain_hint(allowed)),
        );
    }
}

/// Names of providers, levels and tiers: also parts of price keys, paths and `weir/<level>`.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

fn plain_hint(allowed: fn(u8) -> bool) -> &'static str {
    if allowed(b'/') { ", quotes and backslashes" } else { ": letters, digits, '.', '_' and '-'" }
}

#[cfg(test)]
mod tests;
