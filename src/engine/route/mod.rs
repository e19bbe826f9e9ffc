//! The plan of attempts and what to try after which outcome.
//!
//! [`plan`] resolves the name, drops the candidates that cannot serve, and orders the rest; the [`Plan`] is then asked for
//! one attempt after the other, and told how each went. Nothing here waits, calls or reads a clock: one loop in the proxy
//! carries it out, and the same code explains itself to `weir route`.
//!
//! Decisions that are not obvious:
//!
//! - A level named beside a concrete model puts its limits and its multiplier on that model, provided the level lists the
//!   model or bounds its price ([`Level::takes`]); `weir/<level>` as the model wins over the header.
//! - Fallbacks are not followed further: a fallback's own fallbacks are not asked.
//! - Candidates that cool down stay at the end of the plan, the one due first first. They are tried when every healthy one
//!   has failed, for an answer from a target in doubt is worth more than a refusal.
//! - An own key that the provider refuses is not passed over in silence: it is tried again each time, so that its owner is
//!   told, unless the provider's configuration lets the platform pay.

mod candidates;
mod denied;
mod explain;
mod nearest;
mod order;
mod outcome;
mod plan;
mod reason;
mod resolve;

pub use candidates::CANDIDATES_MAX;
pub use denied::Denied;
pub use explain::{Considered, Explanation, Planned};
pub use outcome::{Blame, Class, Outcome, TimeoutPhase, classify};
pub use plan::{ATTEMPTS_KEPT, Attempt, Payer, Plan, Verdict};
pub use reason::Reason;
pub use resolve::{asked_level, is_known};

use super::catalog::{Capabilities, Catalog, Provider, Tier};
use super::dialect::Endpoint;
use super::health::KeyState;
use super::policy::{ByokWish, Scopes};
use std::sync::Arc;

/// What a request asks for.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The model as the caller names it.
    pub model: &'a str,
    /// `X-Power-Level`.
    pub level_header: Option<&'a str>,
    /// `X-Task-Type`.
    pub task: Option<&'a str>,
    /// The path.
    pub endpoint: Endpoint,
    /// What the target must be able to do.
    pub needs: Capabilities,
    /// Tokens of the prompt, estimated (rather too many).
    pub prompt_tokens: u64,
    /// The output cap the request names.
    pub max_output: Option<u64>,
    /// `X-Weir-Byok`.
    pub byok: ByokWish,
    /// Hash of the system prompt and the tools; 0: none.
    pub prefix_hash: u64,
}

/// Who asks.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// The tier; `None`: no restrictions.
    pub tier: Option<&'a Tier>,
    /// What the key was cut down to.
    pub scopes: &'a Scopes,
    /// The key has a budget: unpriced targets are closed to it.
    pub has_budget: bool,
    /// The caller's own key at a provider.
    pub own_key: &'a dyn Fn(&Provider) -> Option<Arc<KeyState>>,
}

/// The seed of every random choice of one plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw(pub u64);

/// Plans the attempts of one request. With `explain`, every step is recorded there; without, recording costs nothing.
///
/// Errors: why the request is refused without any call.
pub fn plan(
    catalog: &Catalog,
    ask: &Ask<'_>,
    caller: &Caller<'_>,
    now_ms: u64,
    draw: Draw,
    mut explain: Option<&mut Explanation>,
) -> Result<Plan, Denied> {
    let planned = plan_inner(catalog, ask, caller, now_ms, draw, explain.as_deref_mut());
    if let Some(explanation) = explain {
        match &planned {
            Ok(plan) => explanation.planned(plan),
            Err(refusal) => explanation.refused = Some(refusal.to_string()),
        }
    }
    planned
}

fn plan_inner(
    catalog: &Catalog,
    ask: &Ask<'_>,
    caller: &Caller<'_>,
    now_ms: u64,
    draw: Draw,
    mut explain: Option<&mut Explanation>,
) -> Result<Plan, Denied> {
    if !caller.scopes.allows_path(ask.endpoint.path()) {
        return Err(Denied::PathClosed { path: ask.endpoint.path() });
    }
    let payers = super::policy::payers(caller.tier, ask.byok).ok_or(Denied::ByokClosed)?;
    let mut inferred = resolve::Inferred::default();
    let resolved = resolve::resolve(catalog, ask, caller, &mut inferred, explain.as_deref_mut())?;
    let context = candidates::Context { catalog, ask, caller, payers, level: resolved.level, now_ms };
    let mut pool = candidates::Pool::new();
    candidates::gather(&context, &resolved, &mut pool, explain.as_deref_mut());
    if pool.is_empty() {
        return Err(pool.refusal(ask));
    }
    order::sort(&context, draw, &mut pool);
    Ok(Plan::new(&context, &resolved, &pool, explain))
}

#[cfg(test)]
mod tests;
