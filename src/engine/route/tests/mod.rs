//! Catalogs made by hand, and the checks on them.

mod candidates;
mod explain;
mod health;
mod order;
mod outcomes;

use super::*;
use crate::engine::catalog::{BaseUrl, Level, Model, OnDisconnect, Retry, SecretRef, Strategy, Target, TargetId, TargetPrice, Timeouts};
use crate::engine::money::{Credits, Factor, Usd};
use crate::engine::policy::OPEN;
use crate::engine::price::{Basis, Price, Rates, Sheet};
use crate::engine::provider::Kind;
use crate::engine::tokens;
use crate::engine::usage::Bucket;
use rustc_hash::FxHashMap;
use std::time::Duration;

/// An invented now.
pub const T0: u64 = 1_700_000_000_000;

pub fn provider(name: &str, kind: Kind) -> Provider {
    Provider {
        name: name.into(),
        kind,
        base: BaseUrl::new(false, "127.0.0.1", 1, "/v1"),
        account: None,
        api_version: None,
        key: Some(SecretRef::Env("KEY".into())),
        priority: 50,
        timeouts: Timeouts {
            connect: Duration::from_secs(1),
            first_event: Duration::from_secs(1),
            between_events: Duration::from_secs(1),
            total: Duration::from_secs(1),
        },
        on_disconnect: OnDisconnect::Cancel,
        heartbeat: None,
        max_concurrent: None,
        probe: None,
        ca: None,
        http2: false,
        byok_falls_to_platform: false,
        state: Arc::default(),
    }
}

pub fn model(name: &str) -> Model {
    Model {
        name: name.into(),
        targets: Vec::new(),
        fallback: Vec::new(),
        min_tier: None,
        context_window: None,
        max_output: None,
        can: None,
        strategy: Strategy::WeightedRandom,
        stick: None,
        hedge: false,
    }
}

pub fn level(name: &str, models: &[&str]) -> Level {
    Level {
        name: name.into(),
        models: models.iter().map(|name| Arc::from(*name)).collect(),
        cost_multiplier: Factor::ONE,
        max_cost_per_1m: None,
        max_latency: None,
        max_output: None,
        fallback: true,
        tasks: FxHashMap::default(),
    }
}

pub fn tier(rank: u32) -> Tier {
    Tier {
        name: format!("rank-{rank}").into(),
        rank,
        markup: Factor::ZERO,
        levels: None,
        models: None,
        byok: true,
        byok_fee: Credits(0),
        own_base_url: false,
        limits: Default::default(),
        monthly_cap: None,
    }
}

/// So many dollars per million tokens, in and out.
pub fn price(usd: i128) -> TargetPrice {
    let mut rates = Rates::default();
    rates.set(Bucket::Input, Usd(usd * Usd::ONE.0)).unwrap();
    rates.set(Bucket::Output, Usd(usd * Usd::ONE.0)).unwrap();
    TargetPrice::Priced(Arc::new(Price::new("p/m", &Sheet { rates, above: Vec::new() }, &[], Basis::Table)))
}

/// What the provider says afterwards, and nothing before.
pub fn only_reported() -> TargetPrice {
    TargetPrice::Priced(Arc::new(Price::new("p/m", &Sheet::default(), &[], Basis::Reported)))
}

/// A catalog in the making.
#[derive(Default)]
pub struct World {
    pub catalog: Catalog,
}

impl World {
    pub fn provider(&mut self, name: &str, change: impl FnOnce(&mut Provider)) -> &mut World {
        let mut made = provider(name, Kind::OpenAi);
        change(&mut made);
        self.catalog.providers.insert(name.into(), Arc::new(made));
        self
    }

    /// `targets`: `provider` or `provider=weight`; the upstream model is called as the model.
    pub fn model(&mut self, name: &str, targets: &[&str], change: impl FnOnce(&mut Model)) -> &mut World {
        let mut made = model(name);
        for target in targets {
            let (provider, weight) = target.split_once('=').unwrap_or((target, "1"));
            if !self.catalog.providers.contains_key(provider) {
                self.provider(provider, |_| {});
            }
            made.targets.push(Arc::new(Target {
                id: TargetId::next(),
                provider: Arc::clone(&self.catalog.providers[provider]),
                model: name.into(),
                upstream_model: name.into(),
                family: tokens::family(name),
                priority: self.catalog.providers[provider].priority,
                weight: weight.parse().unwrap(),
                price: price(1),
                configured: true,
                state: Arc::default(),
            }));
        }
        change(&mut made);
        self.catalog.models.insert(name.into(), Arc::new(made));
        self
    }

    pub fn level(&mut self, name: &str, models: &[&str], change: impl FnOnce(&mut Level)) -> &mut World {
        let mut made = level(name, models);
        change(&mut made);
        self.catalog.levels.insert(name.into(), Arc::new(made));
        self
    }

    pub fn target(&self, model: &str, provider: &str) -> Arc<Target> {
        let model = &self.catalog.models[model];
        Arc::clone(model.targets.iter().find(|target| &*target.provider.name == provider).unwrap())
    }

    /// The plan of a request as `asker` makes it.
    pub fn plan(&self, asker: &Asker<'_>, now_ms: u64) -> Result<Plan, Denied> {
        self.plan_explained(asker, now_ms, None)
    }

    pub fn plan_explained(&self, asker: &Asker<'_>, now_ms: u64, explain: Option<&mut Explanation>) -> Result<Plan, Denied> {
        let own_key =
            |provider: &Provider| asker.own_keys.iter().find(|(name, _)| *name == &*provider.name).map(|(_, key)| Arc::clone(key));
        let caller = Caller { tier: asker.tier.as_ref(), scopes: &asker.scopes, has_budget: asker.has_budget, own_key: &own_key };
        plan(&self.catalog, &asker.ask, &caller, now_ms, Draw(asker.draw), explain)
    }

    /// The names of the attempts in order: `provider/model`, own keys marked `+`, fallbacks `~`, probes `?`.
    pub fn order(&self, asker: &Asker<'_>, now_ms: u64) -> String {
        match self.plan(asker, now_ms) {
            Ok(plan) => plan.upcoming().map(shown).collect::<Vec<_>>().join(" "),
            Err(denied) => format!("refused: {denied}"),
        }
    }
}

pub fn shown(attempt: &Attempt) -> String {
    let mark = |on: bool, mark: &'static str| if on { mark } else { "" };
    format!(
        "{}/{}{}{}{}",
        attempt.target.provider.name,
        attempt.target.model,
        mark(attempt.payer.own().is_some(), "+"),
        mark(attempt.is_fallback, "~"),
        mark(attempt.is_probe, "?")
    )
}

/// A request and who makes it.
pub struct Asker<'a> {
    pub ask: Ask<'a>,
    pub tier: Option<Tier>,
    pub scopes: Scopes,
    pub has_budget: bool,
    pub own_keys: Vec<(&'a str, Arc<KeyState>)>,
    pub draw: u64,
}

pub fn asks(model: &str) -> Asker<'_> {
    let ask = Ask {
        model,
        level_header: None,
        task: None,
        endpoint: Endpoint::ChatCompletions,
        needs: Capabilities::default(),
        prompt_tokens: 100,
        max_output: None,
        byok: ByokWish::Unspecified,
        prefix_hash: 0,
    };
    Asker { ask, tier: None, scopes: OPEN, has_budget: false, own_keys: Vec::new(), draw: 1 }
}

impl<'a> Asker<'a> {
    pub fn with(mut self, change: impl FnOnce(&mut Asker<'a>)) -> Asker<'a> {
        change(&mut self);
        self
    }
}

pub fn status(code: u16) -> Outcome<'static> {
    Outcome::Status { code, retry_after_ms: None, error_code: "", message: "" }
}

pub fn long_retry() -> Retry {
    Retry { max_attempts: 16, ..Retry::default() }
}
