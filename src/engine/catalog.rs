//! What an operator configured, resolved and checked: providers, models, levels, tiers, prices.
//!
//! A catalog is immutable. A reload builds a new one beside it and swaps; a request keeps the one it began with. What must
//! outlive a swap (health, measured latency, cooldowns) hangs on shared [`TargetState`](super::health::TargetState)s that
//! [`Catalog::adopt`] carries over by name.

use super::dialect::Endpoint;
use super::health::{ProviderState, TargetState};
use super::money::{Credits, Factor, Usd};
use super::price::{Price, UNPRICED, believed};
use super::provider::Kind;
use super::tokens::Family;
use super::usage::Usage;
use rustc_hash::{FxHashMap, FxHashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Everything `routing.toml` and `prices.toml` say.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Providers by name.
    pub providers: FxHashMap<Arc<str>, Arc<Provider>>,
    /// Models by the name callers use.
    pub models: FxHashMap<Arc<str>, Arc<Model>>,
    /// Levels by name (`eco`, `balanced`, `precision`, or others an operator adds).
    pub levels: FxHashMap<Arc<str>, Arc<Level>>,
    /// Tiers by name.
    pub tiers: FxHashMap<Arc<str>, Arc<Tier>>,
    /// Prices by `provider/model`; the same ones in the next catalog if only `routing.toml` changes.
    pub prices: Arc<FxHashMap<Arc<str>, Arc<Price>>>,
    /// How often and how long to retry.
    pub retry: Retry,
    /// Rules for names nobody configured.
    pub routing: Routing,
    /// The operator's Lua policy, when there is one.
    pub lua_policy: Option<Arc<LuaPolicy>>,
}

/// A Lua policy as its file has it. The engine does not run it: it travels with the snapshot so that both are swapped as one, and
/// that a request keeps the one it began with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LuaPolicy {
    /// The file's path.
    pub file: Box<str>,
    /// Its text, read together with `routing.toml`; empty in a catalog that was made from text alone.
    pub text: Box<str>,
    /// What to do with a request whose handler fails.
    pub on_error: OnPolicyError,
}

/// What becomes of a request when its policy's handler fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnPolicyError {
    /// It is refused, or its answer ends: a rule that cannot be applied is not skipped.
    #[default]
    Refuse,
    /// It goes on as if there were no such handler.
    Pass,
}

/// A configured provider: where it is and how to treat it.
#[derive(Debug, Clone)]
pub struct Provider {
    /// The table's name in `routing.toml`.
    pub name: Arc<str>,
    /// Which API it speaks.
    pub kind: Kind,
    /// Where it is reached.
    pub base: BaseUrl,
    /// Account id (Cloudflare), resource (Azure).
    pub account: Option<Box<str>>,
    /// API version query (Azure).
    pub api_version: Option<Box<str>>,
    /// The platform's key; `None`: the platform has none here (Ollama, vLLM without a key, or users' keys only).
    pub key: Option<SecretRef>,
    /// Lower is asked first.
    pub priority: u32,
    /// How long each phase may take.
    pub timeouts: Timeouts,
    /// What to do upstream when the client goes away.
    pub on_disconnect: OnDisconnect,
    /// Comment heartbeats to the client while the upstream is silent.
    pub heartbeat: Option<Duration>,
    /// Requests at the same time; `None`: no bound but the process's.
    pub max_concurrent: Option<u32>,
    /// Active probe interval; `None`: passive only.
    pub probe: Option<Duration>,
    /// PEM file with the authorities to trust for this provider instead of the system's.
    pub ca: Option<Box<str>>,
    /// HTTP/2 is offered by ALPN (TLS only).
    pub http2: bool,
    /// Whether the platform pays when a user's own key is refused.
    pub byok_falls_to_platform: bool,
    /// Live state shared by all of its targets; outlives reloads.
    pub state: Arc<ProviderState>,
}

/// A parsed base URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl {
    /// TLS or plain.
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: Box<str>,
    /// Port, explicit or the scheme's.
    pub port: u16,
    /// Path without a trailing slash (`""` or `/v1`).
    pub path: Box<str>,
    /// `host` or `host:port` as the `Host` header has it: an IPv6 address in brackets, the scheme's own port left out.
    pub authority: Box<str>,
}

/// Where a secret is kept; never the secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SecretRef {
    /// An environment variable.
    Env(Box<str>),
    /// A file whose trimmed content is the secret.
    File(Box<str>),
    /// A name in the vault.
    Vault(Box<str>),
}

/// Phase timeouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP and TLS.
    pub connect: Duration,
    /// Request written to first event (or whole answer's first byte).
    pub first_event: Duration,
    /// Between two events or body reads.
    pub between_events: Duration,
    /// The whole exchange.
    pub total: Duration,
}

/// What happens upstream when the client goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDisconnect {
    /// Close at once; the account takes what was generated so far.
    #[default]
    Cancel,
    /// Read on (bounded by the total timeout) for the exact usage.
    Drain,
}

/// A model as callers name it.
#[derive(Debug, Clone)]
pub struct Model {
    /// The callers' name.
    pub name: Arc<str>,
    /// Who can serve it.
    pub targets: Vec<Arc<Target>>,
    /// Other models, once the targets are used up (resolved names).
    pub fallback: Vec<Arc<str>>,
    /// The lowest tier rank that may use it, and that tier's name for the refusal.
    pub min_tier: Option<(u32, Arc<str>)>,
    /// Tokens of prompt and answer together.
    pub context_window: Option<u64>,
    /// Tokens of an answer at most.
    pub max_output: Option<u64>,
    /// What it can do; `None`: not stated, everything passes.
    pub can: Option<Capabilities>,
    /// Order inside a priority group.
    pub strategy: Strategy,
    /// Requests with the same prefix prefer the target that served it, unless its latency is worse by this percentage.
    pub stick: Option<u32>,
    /// Ask the next target as well when the first event is later than the usual p95.
    pub hedge: bool,
}

/// One provider's model behind a callers' name.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its number, as it is configured now.
    pub id: TargetId,
    /// The provider.
    pub provider: Arc<Provider>,
    /// The callers' name of the model (for an inferred target: what was asked).
    pub model: Arc<str>,
    /// The provider's name of the model.
    pub upstream_model: Arc<str>,
    /// Which vocabulary counts its text.
    pub family: Family,
    /// Lower is asked first: the target's own, or else the provider's.
    pub priority: u32,
    /// Share inside its priority group.
    pub weight: u32,
    /// What it costs.
    pub price: TargetPrice,
    /// The name is in the configuration (its metric label is the name, else `other`).
    pub configured: bool,
    /// Health and measurements; outlives reloads.
    pub state: Arc<TargetState>,
}

/// A byte of a model's name: whatever providers call theirs.
pub fn is_of_a_name(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'"' && byte != b'\\'
}

/// A number for a target, for who keeps something made of it: no other target of this process had it or will, nor the same one after its
/// configuration was loaded again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TargetId(u64);

impl TargetId {
    /// A target's that is made for one request: nothing is to be kept of it.
    pub const UNKEPT: TargetId = TargetId(0);

    /// One that was not given before.
    pub fn next() -> TargetId {
        static LAST: AtomicU64 = AtomicU64::new(0);
        TargetId(LAST.fetch_add(1, Relaxed) + 1)
    }

    /// The number; 0 for [`TargetId::UNKEPT`].
    pub fn number(self) -> u64 {
        self.0
    }
}

/// What a target costs.
#[derive(Debug, Clone)]
pub enum TargetPrice {
    /// By the table.
    Priced(Arc<Price>),
    /// Nothing, on purpose.
    Free,
    /// Unknown, on purpose: only keys without a budget may use it.
    Unpriced,
}

impl TargetPrice {
    /// What a usage costs and the `price_id` that a row has it by. `service_tier` is the one the answer names, `reported` the
    /// provider's own figure.
    pub fn bill(&self, usage: &Usage, service_tier: Option<&str>, reported: Option<Usd>) -> (Usd, &str) {
        match self {
            TargetPrice::Priced(price) => price.bill(usage, service_tier, reported),
            TargetPrice::Free => (Usd(0), "free"),
            TargetPrice::Unpriced => (believed(reported).unwrap_or_default(), UNPRICED),
        }
    }
}

/// Order inside a priority group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// By weight, drawn.
    #[default]
    WeightedRandom,
    /// Least measured time to first event.
    LeastLatency,
    /// Least blended price.
    LeastCost,
    /// Fewest requests in flight.
    LeastBusy,
}

/// A set of capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(pub u8);

impl Capabilities {
    /// Streams.
    pub const STREAM: Capabilities = Capabilities(1);
    /// Calls tools.
    pub const TOOLS: Capabilities = Capabilities(2);
    /// Sees images.
    pub const VISION: Capabilities = Capabilities(4);
    /// Answers in JSON when told to.
    pub const JSON: Capabilities = Capabilities(8);

    /// Both sets.
    pub const fn with(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 | other.0)
    }

    /// Everything in `needs` is in `self`.
    pub const fn covers(self, needs: Capabilities) -> bool {
        needs.0 & !self.0 == 0
    }
}

/// A power level: a list of models and limits on them.
#[derive(Debug)]
pub struct Level {
    /// `eco`, `balanced`, `precision`.
    pub name: Arc<str>,
    /// Model names in order of preference.
    pub models: Vec<Arc<str>>,
    /// The charge is cost times this.
    pub cost_multiplier: Factor,
    /// Pico-dollars per million tokens, blended (3 parts input, 1 part output), at most. A target whose price by the token is unknown
    /// is outside: one without a price, and one that only the provider tells.
    pub max_cost_per_1m: Option<super::money::Usd>,
    /// Measured median time to first event at most.
    pub max_latency: Option<Duration>,
    /// Output cap lowered or set to this.
    pub max_output: Option<u64>,
    /// `false`: the first target alone, once.
    pub fallback: bool,
    /// Task types (`X-Task-Type`) with their own order of models.
    pub tasks: FxHashMap<Box<str>, Vec<Arc<str>>>,
}

/// What a caller's subscription opens.
#[derive(Debug)]
pub struct Tier {
    /// The table's name.
    pub name: Arc<str>,
    /// Higher opens more.
    pub rank: u32,
    /// Charge factor on top: 0.6 means times 1.6.
    pub markup: Factor,
    /// Levels it opens; `None`: all.
    pub levels: Option<Vec<Arc<str>>>,
    /// Models it opens; `None`: all its rank reaches.
    pub models: Option<FxHashSet<Arc<str>>>,
    /// May bring own provider keys.
    pub byok: bool,
    /// Credits charged per request served with the caller's own key.
    pub byok_fee: Credits,
    /// May set own base URLs.
    pub own_base_url: bool,
    /// Rate limits.
    pub limits: super::limit::Limits,
    /// Credits an account may be charged in a calendar month (UTC).
    pub monthly_cap: Option<Credits>,
}

/// Attempts and cooldown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts per request at most.
    pub max_attempts: u32,
    /// Cooldown after a failure.
    pub cooldown: Duration,
    /// Failures in a row until the longer cooldown.
    pub cooldown_failures: u32,
    /// The longer cooldown.
    pub cooldown_long: Duration,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry { max_attempts: 3, cooldown: Duration::from_secs(60), cooldown_failures: 3, cooldown_long: Duration::from_secs(300) }
    }
}

/// Rules for what is not spelled out.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Infer a provider from a name nobody configured.
    pub infer: bool,
    /// The tier of a key that names none.
    pub default_tier: Option<Arc<str>>,
}

impl Default for Routing {
    fn default() -> Routing {
        Routing { infer: true, default_tier: None }
    }
}

impl Catalog {
    /// Takes over from `old` what outlives a reload: the live state of providers and targets of the same name. Called once,
    /// before this catalog is shared. `rest` is called between models, for who must not be at it for long at a time.
    pub fn adopt(&mut self, old: &Catalog, rest: impl Fn()) {
        // The same policy is the same one: whoever runs it keeps what was made for it.
        if self.lua_policy == old.lua_policy {
            self.lua_policy.clone_from(&old.lua_policy);
        }
        for (name, provider) in &mut self.providers {
            if let Some(before) = old.providers.get(name) {
                Arc::make_mut(provider).state = Arc::clone(&before.state);
            }
        }
        for (name, model) in &mut self.models {
            rest();
            let before = old.models.get(name);
            for target in &mut Arc::make_mut(model).targets {
                let same = before.and_then(|model| model.targets.iter().find(|other| other.is_at(target)));
                let target = Arc::make_mut(target);
                // The provider was replaced above; targets made from configuration have one of the catalog's.
                if let Some(provider) = self.providers.get(&target.provider.name) {
                    target.provider = Arc::clone(provider);
                }
                if let Some(same) = same {
                    target.state = Arc::clone(&same.state);
                }
            }
        }
    }
}

impl Target {
    /// Whether the other is the same provider's same model.
    fn is_at(&self, other: &Target) -> bool {
        self.upstream_model == other.upstream_model && self.provider.name == other.provider.name
    }
}

impl Provider {
    /// Whether this provider speaks the endpoint's dialect.
    pub fn speaks(&self, endpoint: Endpoint) -> bool {
        super::provider::spec(self.kind).speaks(endpoint)
    }
}
