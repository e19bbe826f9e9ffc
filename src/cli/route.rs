//! `weir route`: what would be tried for a request, and why. Nothing is called.

use super::Failure;
use crate::app;
use crate::config::weir_toml::Settings;
use crate::engine::catalog::{Capabilities, Catalog, Provider, Tier};
use crate::engine::dialect::Endpoint;
use crate::engine::health::KeyState;
use crate::engine::policy::{ByokWish, OPEN, Scopes};
use crate::engine::route::{self, Ask, Caller, Draw, Explanation};
use crate::store::callers::CallerKeys;
use crate::store::follow::Mirror;
use crate::store::{now_ms, vault};
use clap::Args;
use std::collections::HashSet;
use std::io::Write;
use std::sync::Arc;

/// `weir route …`
#[derive(Debug, Args)]
pub struct RouteArgs {
    /// The model as a caller names it
    #[arg(long)]
    pub model: String,
    /// The power level (X-Power-Level)
    #[arg(long)]
    pub level: Option<String>,
    /// The caller's key, or its id (key_…)
    #[arg(long, conflicts_with = "tier")]
    pub key: Option<String>,
    /// The caller's tier
    #[arg(long)]
    pub tier: Option<String>,
    /// The request is for a stream
    #[arg(long)]
    pub stream: bool,
    /// The task (X-Task-Type)
    #[arg(long)]
    pub task: Option<String>,
    /// The path that is asked
    #[arg(long, default_value = "/v1/chat/completions")]
    pub path: String,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 100)]
    pub prompt_tokens: u64,
    /// The seed of the weighted draw
    #[arg(long, default_value_t = 1)]
    pub draw: u64,
    /// Print JSON, for scripts
    #[arg(long)]
    pub json: bool,
}

/// Who is supposed to call.
struct Supposed {
    tier: Option<Arc<Tier>>,
    scopes: Scopes,
    has_budget: bool,
    own_keys: HashSet<String>,
}

/// Prints the plan. A refusal is an answer, not a failure.
pub fn run(args: &RouteArgs, settings: Settings, out: &mut dyn Write) -> Result<(), Failure> {
    let catalog = app::load_catalog(&settings).map_err(app::problems)?;
    let endpoint = Endpoint::of_path(&args.path).ok_or_else(|| Failure::Usage(format!("--path: there is no {}", args.path)))?;
    let supposed = supposed(args, &settings, &catalog)?;
    let own_key = |provider: &Provider| supposed.own_keys.contains(&*provider.name).then(|| Arc::new(KeyState::default()));
    let ask = Ask {
        model: &args.model,
        level_header: args.level.as_deref(),
        task: args.task.as_deref(),
        endpoint,
        needs: if args.stream { Capabilities::STREAM } else { Capabilities::default() },
        prompt_tokens: args.prompt_tokens,
        max_output: None,
        byok: ByokWish::Unspecified,
        prefix_hash: 0,
    };
    let caller = Caller { tier: supposed.tier.as_deref(), scopes: &supposed.scopes, has_budget: supposed.has_budget, own_key: &own_key };
    let mut explanation = Explanation::default();
    // The refusal is in the explanation as well.
    let _ = route::plan(&catalog, &ask, &caller, now_ms(), Draw(args.draw), Some(&mut explanation));
    if args.json { super::json(out, &explanation) } else { Ok(write!(out, "{explanation}")?) }
}

fn supposed(args: &RouteArgs, settings: &Settings, catalog: &Catalog) -> Result<Supposed, Failure> {
    let tier_of =
        |name: &str| catalog.tiers.get(name).cloned().ok_or_else(|| Failure::Failed(format!("there is no tier '{name}' in routing.toml")));
    let default_tier = || catalog.routing.default_tier.as_deref().map(tier_of).transpose();
    let Some(presented) = &args.key else {
        let tier = args.tier.as_deref().map(tier_of).transpose()?.map_or_else(default_tier, |tier| Ok(Some(tier)))?;
        return Ok(Supposed { tier, scopes: OPEN, has_budget: false, own_keys: HashSet::new() });
    };
    let store = app::open_store(settings)?;
    let callers = CallerKeys::default();
    callers.reload(&store)?;
    let key = callers
        .lookup(presented, now_ms())
        .ok()
        .or_else(|| callers.by_id(presented))
        .ok_or_else(|| Failure::Failed("--key: no such key, or it is expired or revoked".into()))?;
    let own_keys = vault::list(&store, Some(&key.account_id))?.into_iter().map(|entry| entry.provider).collect();
    let tier = key.tier.as_deref().map(tier_of).transpose()?.map_or_else(default_tier, |tier| Ok(Some(tier)))?;
    Ok(Supposed { tier, scopes: key.scopes().clone(), has_budget: key.has_budget, own_keys })
}
