//! What all requests share.

use super::aside::aside;
use super::body::InFlight;
use super::client_ids::ClientIds;
use super::idempotency::Answers;
use super::queue::Queue;
use super::settle::Tried;
use super::upstream::Upstreams;
use crate::config::load::{Files, Fingerprint};
use crate::config::pace;
use crate::config::problem::Problem;
use crate::config::weir_toml::Settings;
use crate::engine::budget::Account;
use crate::engine::catalog::{Catalog, Target, Tier};
use crate::engine::dialect::Endpoint;
use crate::engine::limit::{Limiter, Limits, Quota};
use crate::engine::route::Class;
use crate::store::Store;
use crate::store::accounts::Accounts;
use crate::store::audit::{self, Actor};
use crate::store::callers::{CallerKey, CallerKeys};
use crate::store::ledger::{Facts, Ledger, Outcome};
use crate::store::vault::ring::KeyRing;
use crate::telemetry::clock;
use crate::telemetry::log_lines::{self, Severity};
use crate::telemetry::metrics::Metrics;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The state behind every listener.
pub struct Gateway {
    /// `weir.toml`.
    pub settings: Settings,
    /// The hot snapshot. A request keeps the one it began with.
    pub catalog: ArcSwap<Catalog>,
    /// Where the snapshot comes from.
    pub files: Files,
    /// How reloads went. Never held for long: requests ask, too.
    pub reloads: Mutex<Reloads>,
    /// Held by a reload for as long as it takes.
    pub loading: Mutex<Retired>,
    /// The store, for what is not on a request's path.
    pub store: Store,
    /// Callers' keys.
    pub callers: Arc<CallerKeys>,
    /// Verified tokens, when configured.
    pub jwt: Option<Arc<crate::auth::jwt::Jwt>>,
    /// Providers' keys.
    pub key_ring: Arc<KeyRing>,
    /// Rows.
    pub ledger: Ledger,
    /// Balances.
    pub accounts: Arc<Accounts>,
    /// Rate limits in use, by what they belong to.
    pub limiters: Limiters,
    /// Connections to providers.
    pub upstreams: Arc<Upstreams>,
    /// Requests in service, and who waits.
    pub queue: Arc<Queue>,
    /// Clients' own names of their requests.
    pub client_ids: ClientIds,
    /// Answers by `Idempotency-Key`; `None`: none are kept.
    pub answers: Option<Arc<Answers>>,
    /// All request bodies together.
    pub bodies: Arc<InFlight>,
    /// Prometheus.
    pub metrics: Metrics,
    /// Shutting down.
    pub drain: Drain,
    /// How far behind the exports are.
    pub exports: crate::export::Exports,
    /// Where callers find more credits.
    pub upgrade_url: Option<Arc<str>>,
    /// Who calls when nobody is asked for a key.
    pub open_caller: Arc<CallerKey>,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gateway")
    }
}

/// Snapshots that requests may still have. One of ten thousand models takes milliseconds to free, for which the request that lets go of it
/// last is not to wait: a reload, or a look for changed files, frees what nobody has any more.
pub type Retired = Vec<Arc<Catalog>>;

/// How the hot files were taken.
#[derive(Debug, Default, Clone)]
pub struct Reloads {
    /// The version that was looked at last.
    pub seen: Fingerprint,
    /// Snapshots loaded since the start.
    pub generation: u64,
    /// When the snapshot in use was loaded.
    pub loaded_ms: u64,
    /// What is wrong with the files as they are now; empty when the snapshot in use is theirs.
    pub problems: Vec<Problem>,
}

/// Requests under way, and whether new ones are still taken.
///
/// A request counts itself in and then looks whether it is refused; who leaves refuses and then looks who is in. One of them sees the
/// other, which takes an order over both fields: `SeqCst`.
#[derive(Debug, Default)]
pub struct Drain {
    draining: AtomicBool,
    closing: AtomicBool,
    active: AtomicU64,
}

/// One request under way; ends on drop.
#[derive(Debug)]
pub struct Active<'a>(&'a Drain);

impl Drain {
    /// Counts a request in.
    pub fn begin(&self) -> Active<'_> {
        self.active.fetch_add(1, Ordering::SeqCst);
        Active(self)
    }

    /// Requests under way.
    pub fn active(&self) -> u64 {
        self.active.load(Ordering::SeqCst)
    }

    /// From now on new requests are refused.
    pub fn start(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// From now on connections are closed behind their answers: a successor takes the next ones.
    pub fn close_connections(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Connections are closed behind their answers.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// New requests are refused.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whom a limit belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A key, by its id.
    Key(Arc<str>),
    /// An account in a tier.
    InTier(Arc<str>, Arc<str>),
}

/// The rate limits of keys, accounts and tiers that have been used.
#[derive(Debug, Default)]
pub struct Limiters {
    by_owner: papaya::HashMap<Owner, Arc<Limiter>>,
}

impl Limiters {
    /// What `owner` has of `limits`; `None` when nothing is limited.
    pub fn of(&self, owner: Owner, limits: Limits) -> Option<Quota> {
        (limits != Limits::default()).then(|| Quota { limiter: self.limiter(owner), limits })
    }

    /// What a key's account has of a tier's limits, as [`Limiters::of`]. Its limiter is looked for once, while the key has the same tier,
    /// as its account is ([`CallerKey::account`]).
    pub fn in_tier(&self, key: &CallerKey, tier: &Tier) -> Option<Quota> {
        if tier.limits == Limits::default() {
            return None;
        }
        let find = || self.limiter(Owner::InTier(key.account_id.clone(), tier.name.clone()));
        let limiter = match key.in_tier() {
            Some((name, limiter)) if *name == tier.name => limiter.clone(),
            Some(_) => find(),
            None => {
                let limiter = find();
                key.is_in_tier(tier.name.clone(), limiter.clone());
                limiter
            }
        };
        Some(Quota { limiter, limits: tier.limits })
    }

    /// The limiter of `owner`, the same for as long as this lives.
    fn limiter(&self, owner: Owner) -> Arc<Limiter> {
        self.by_owner.pin().get_or_insert_with(owner, Arc::default).clone()
    }
}

impl Gateway {
    /// [`Gateway::reload`], and a record in the audit log when there was something to load. Blocking.
    pub fn reload_for(&self, when: Reload, actor: Actor<'_>) -> Result<Reloaded, Vec<Problem>> {
        let result = self.reload(when);
        let told = match &result {
            Ok(Reloaded::Unchanged) => return result,
            Ok(Reloaded::Loaded) => "ok",
            // What is wrong is in the log, with its lines.
            Err(_) => "rejected",
        };
        let generation = format!("generation {}", self.reloads.lock().generation);
        if let Err(error) = self.store.write(|tx| audit::record(tx, actor, "config.reload", &generation, told, clock::now_ms())) {
            log_lines::event(Severity::Error, "a reload could not be recorded", &error.to_string());
        }
        result
    }

    /// Loads the hot files again, now or if they changed since they were last looked at. A set with a problem changes nothing.
    /// Returns the problems. Blocking (file reads, parsing); not for a worker.
    pub fn reload(&self, when: Reload) -> Result<Reloaded, Vec<Problem>> {
        // One reload at a time, and none of them on a request's path.
        let mut retired = self.loading.lock();
        let free: Vec<_> = retired.extract_if(.., |catalog| Arc::strong_count(catalog) == 1).collect();
        if !free.is_empty() {
            aside(|| {
                for catalog in free.into_iter().filter_map(Arc::into_inner) {
                    pace::free(catalog.models);
                    Arc::into_inner(catalog.prices).into_iter().for_each(pace::free);
                }
            });
        }
        let before = self.reloads.lock().seen.clone();
        let seen = self.files.fingerprint(&before);
        if when == Reload::IfChanged && before == seen {
            return Ok(Reloaded::Unchanged);
        }
        let retired = &mut *retired;
        aside(|| self.load(seen, retired))
    }

    fn load(&self, mut seen: Fingerprint, retired: &mut Retired) -> Result<Reloaded, Vec<Problem>> {
        let loaded = load(&self.files, &mut seen);
        match loaded {
            Ok(mut catalog) => {
                catalog.adopt(&self.catalog.load(), pace::rest);
                self.read_keys(&catalog);
                if let Some(jwt) = &self.jwt {
                    jwt.use_tiers(catalog.tiers.values().map(|tier| (tier.name.clone(), tier.rank)).collect());
                }
                retired.push(self.catalog.swap(Arc::new(catalog)));
                let mut reloads = self.reloads.lock();
                reloads.seen = seen;
                reloads.generation += 1;
                reloads.loaded_ms = clock::now_ms();
                reloads.problems.clear();
                self.metrics.config_loaded.set(reloads.loaded_ms as f64 / 1000.0);
                drop(reloads);
                self.metrics.config_reloads.with_label_values(&["ok"]).inc();
                log_lines::event(Severity::Info, "configuration loaded", &self.files.routing().to_string_lossy());
                Ok(Reloaded::Loaded)
            }
            Err(problems) => {
                let mut reloads = self.reloads.lock();
                reloads.seen = seen;
                reloads.problems.clone_from(&problems);
                drop(reloads);
                self.metrics.config_reloads.with_label_values(&["rejected"]).inc();
                for problem in &problems {
                    log_lines::event(Severity::Error, "configuration rejected", &problem.to_string());
                }
                Err(problems)
            }
        }
    }

    /// Takes the providers' keys that a catalog refers to. One that is not there is told and leaves its provider to users'
    /// own keys: a configuration is not worse for what a machine lacks.
    fn read_keys(&self, catalog: &Catalog) {
        let references = catalog.providers.values().filter_map(|provider| provider.key.clone());
        match self.key_ring.load(&self.store, references) {
            Ok(problems) => problems.iter().for_each(|(_, what)| log_lines::event(Severity::Warn, "provider key missing", what)),
            Err(error) => log_lines::event(Severity::Error, "provider keys cannot be read", &error.to_string()),
        }
    }

    /// The account a caller draws on.
    pub fn account<'c>(&self, caller: &'c CallerKey) -> &'c Arc<Account> {
        caller.account(&self.accounts)
    }

    /// What one failed attempt leaves in the log.
    pub fn log_attempt(&self, request_id: &str, target: &Target, class: Class, status: Option<u16>) {
        log_lines::line(Severity::Warn, "attempt", clock::now_ms(), |line| {
            line.text("request_id", request_id);
            line.text("provider", &target.provider.name);
            line.text("model", &target.upstream_model);
            line.text("class", class.name());
            line.number("status", u64::from(status.unwrap_or(0)));
        });
    }

    /// What a request that was answered from an earlier one leaves in the log.
    pub fn log_replay(&self, request_id: &str, caller: &CallerKey, endpoint: Endpoint, status: u16) {
        log_lines::line(Severity::Info, "replay", clock::now_ms(), |line| {
            line.text("request_id", request_id);
            line.text("path", endpoint.path());
            line.number("status", u64::from(status));
            line.text("key_id", &caller.id);
            line.text("account", &caller.account_id);
        });
    }

    /// The line a request leaves in the log: what happened, never what was said.
    pub fn log_request<'a>(&self, facts: &Facts, outcome: &Outcome, endpoint: Endpoint, tried: impl Iterator<Item = &'a Tried>) {
        log_lines::line(Severity::Info, "request", facts.started_ms, |line| {
            line.text("request_id", &facts.request_id);
            line.text("path", endpoint.path());
            line.text("key_id", &facts.key_id);
            line.text("account", &facts.account);
            line.text("model", outcome.model.as_deref().unwrap_or(""));
            line.text("provider", outcome.provider.as_deref().unwrap_or(""));
            line.number("status", u64::from(outcome.status));
            line.text("end", outcome.end.name());
            line.flag("byok", outcome.byok);
            line.number("input_tokens", outcome.usage.input_tokens());
            line.number("output_tokens", outcome.usage.output_tokens());
            line.text("usage", outcome.usage_source.name());
            line.text("cost", outcome.cost.text().as_str());
            line.text("charge", outcome.charge.text().as_str());
            line.number_or_null("first_event_ms", outcome.first_event_ms);
            line.number("duration_ms", outcome.duration_ms);
            line.list("attempts", tried, |attempt, one| {
                attempt.text("class", one.class.name());
                attempt.number("status", u64::from(one.status.unwrap_or(0)));
                attempt.text("provider", &one.target.provider.name);
                attempt.text("model", &one.target.upstream_model);
            });
        });
    }
}

/// Reads the hot files and checks them together, the Lua policy they name as well. All problems are reported.
pub fn load(files: &Files, seen: &mut Fingerprint) -> Result<Catalog, Vec<Problem>> {
    let (catalog, problems) = survey(files, seen);
    if problems.is_empty() {
        return Ok(catalog);
    }
    pace::free(catalog.models);
    Err(problems)
}

/// As [`load`], with the catalog beside the problems: see [`Files::survey`].
pub fn survey(files: &Files, seen: &mut Fingerprint) -> (Catalog, Vec<Problem>) {
    let (catalog, problems) = files.survey(seen);
    #[cfg(feature = "lua-policy")]
    let problems = {
        let found = catalog.lua_policy.as_deref().and_then(|policy| crate::policy::check(policy).err());
        problems.into_iter().chain(found.into_iter().flatten()).collect()
    };
    (catalog, problems)
}

/// When to load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// Now.
    Always,
    /// If a file changed.
    IfChanged,
}

/// What a reload that found no problem did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reloaded {
    /// There is a new snapshot.
    Loaded,
    /// The files are those that were seen last.
    Unchanged,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::money::{Credits, Factor};

    fn tier(name: &str, rpm: Option<u64>) -> Tier {
        let limits = Limits { rpm, concurrent: rpm, ..Limits::default() };
        Tier {
            name: name.into(),
            rank: 0,
            markup: Factor::ZERO,
            levels: None,
            models: None,
            byok: false,
            byok_fee: Credits(0),
            own_base_url: false,
            limits,
            monthly_cap: None,
        }
    }

    #[test]
    fn an_account_has_one_limiter_in_a_tier_whichever_key_asks() {
        let limiters = Limiters::default();
        let [first, second, stranger] =
            [("one", "acme"), ("two", "acme"), ("three", "other")].map(|(id, account)| CallerKey::outside(id, account, None, u64::MAX));
        let (starter, pro) = (tier("starter", Some(5)), tier("pro", Some(7)));
        let of = |key: &CallerKey, tier: &Tier| {
            let quota = limiters.in_tier(key, tier).unwrap();
            assert_eq!(quota.limits, tier.limits);
            quota.limiter
        };
        let begun = of(&first, &starter);
        for key in [&first, &second, &first] {
            assert!(Arc::ptr_eq(&of(key, &starter), &begun));
        }
        assert!(!Arc::ptr_eq(&of(&stranger, &starter), &begun));
        // In another tier, as after another default: its own limiter, and the first one again afterwards.
        let elsewhere = of(&first, &pro);
        assert!(!Arc::ptr_eq(&elsewhere, &begun));
        assert!(Arc::ptr_eq(&of(&second, &pro), &elsewhere));
        assert!(Arc::ptr_eq(&of(&first, &starter), &begun));
        // Other limits: the same limiter, so what was used stays used.
        let used = limiters.in_tier(&first, &starter).unwrap().admit(0, 0).unwrap();
        let tighter = limiters.in_tier(&second, &tier("starter", Some(1))).unwrap();
        assert!(tighter.admit(0, 0).is_err());
        assert!(limiters.in_tier(&first, &tier("starter", None)).is_none());
        drop(used);
    }
}
