//! Which targets may serve a request at all, and why the others may not.

use super::denied::Denied;
use super::explain::Explanation;
use super::reason::Reason;
use super::resolve::{Resolved, Source};
use super::{Ask, Caller, nearest, order};
use crate::engine::catalog::{Capabilities, Catalog, Level, Model, Strategy, Target, TargetPrice};
use crate::engine::health::{Breaker, KeyState, Phase};
use crate::engine::level::{OutputCap, blended_per_1m, output_cap};
use crate::engine::policy::{self, Closed, Payers};
use crate::engine::provider::spec;
use std::sync::Arc;

/// Candidates of one request at most, counted after the drops. A plan makes a handful of attempts; what stands behind the
/// sixty-fourth, in the order of the configuration, is not considered.
pub const CANDIDATES_MAX: usize = 64;

/// The part of the prompt's estimate that is surely there. The estimate sets aside a token for three bytes, English has 4.3:
/// a window is ruled out only when two thirds do not fit, and in between the provider decides. A wrong guess this way costs an
/// attempt, the other way a good answer.
const SURE_PART: (u64, u64) = (2, 3);

/// What every step of one plan looks at.
pub(super) struct Context<'a> {
    pub catalog: &'a Catalog,
    pub ask: &'a Ask<'a>,
    pub caller: &'a Caller<'a>,
    pub payers: Payers,
    pub level: Option<&'a Arc<Level>>,
    pub now_ms: u64,
}

/// A target and who would pay there.
pub(super) struct Candidate<'a> {
    pub target: &'a Arc<Target>,
    /// The caller's own key; `None`: the platform pays.
    pub own: Option<Arc<KeyState>>,
    /// 0: the model asked for. Then its fallbacks, or the level's further models.
    pub position: u8,
    pub facts: Facts<'a>,
    pub cap: OutputCap,
    /// Cools down until then, or is being probed until then at the latest; 0: ready.
    pub due_ms: u64,
    /// Its place in the explanation.
    pub explained: u16,
    /// Its place in the order, once the pool is sorted.
    pub key: order::Key,
}

/// What a model says about all of its targets.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    pub name: &'a str,
    pub min_tier: Option<&'a (u32, Arc<str>)>,
    pub context_window: Option<u64>,
    pub max_output: Option<u64>,
    pub can: Option<Capabilities>,
    pub strategy: Strategy,
    pub stick: Option<u32>,
}

/// The candidates of one request, at most [`CANDIDATES_MAX`]; most requests have a handful.
pub(super) struct Pool<'a> {
    /// In the order of the configuration until they are sorted.
    pub candidates: Vec<Candidate<'a>>,
    furthest: Option<(Reason, &'a str)>,
}

impl<'a> Pool<'a> {
    pub fn new() -> Pool<'a> {
        Pool { candidates: Vec::with_capacity(4), furthest: None }
    }

    pub fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    pub fn len(&self) -> usize {
        self.candidates.len()
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Candidate<'a>> {
        self.candidates.iter()
    }

    /// The refusal when nothing is left: the reason that got furthest.
    pub fn refusal(self, ask: &Ask<'_>) -> Denied {
        let Some((reason, model)) = self.furthest else {
            return Denied::UnknownModel { asked: nearest::shown(ask.model), nearest: Vec::new() };
        };
        let model = nearest::shown(model);
        match reason {
            Reason::NoSuchModel => Denied::UnknownModel { asked: model, nearest: Vec::new() },
            Reason::Scope => Denied::ModelClosed { model, min_tier: None },
            Reason::Tier(min_tier) => Denied::ModelClosed { model, min_tier },
            Reason::NotInLevel(level) | Reason::LevelCost(level) => Denied::LevelLimit { level },
            Reason::Dialect => Denied::NotSpoken { model, path: ask.endpoint.path() },
            Reason::Capability(missing) => Denied::Incapable { model, missing },
            Reason::ContextWindow { window, needed } => Denied::ContextLength { window, needed },
            Reason::OutputSize(most) => Denied::OutputTooLong { most },
            Reason::NoOwnKey => Denied::NoOwnKey,
            Reason::NoPlatformKey => Denied::NoKey { model },
            Reason::Unpriced => Denied::Unpriced { model },
            Reason::LevelLatency { level, .. } => Denied::LevelTooSlow { level },
            // The latter two need a candidate that was kept, so they are never the furthest of an empty pool.
            Reason::Busy(_) | Reason::Duplicate | Reason::Beyond => Denied::Busy,
        }
    }

    fn push(&mut self, candidate: Candidate<'a>) {
        self.candidates.push(candidate);
    }

    fn holds(&self, target: &Target, own: bool) -> bool {
        self.iter().any(|held| {
            held.own.is_some() == own
                && Arc::ptr_eq(&held.target.provider, &target.provider)
                && held.target.upstream_model == target.upstream_model
        })
    }

    /// Keeps the reason that got furthest; of two windows or maxima the larger one.
    fn note(&mut self, reason: &Reason, model: &'a str) {
        let further = match &self.furthest {
            None => true,
            Some((held, _)) => match (held, reason) {
                (Reason::ContextWindow { window: held, .. }, Reason::ContextWindow { window, .. }) => window > held,
                (Reason::OutputSize(held), Reason::OutputSize(most)) => most > held,
                _ => reason.depth() > held.depth(),
            },
        };
        if further {
            self.furthest = Some((reason.clone(), model));
        }
    }
}

impl<'a> Facts<'a> {
    fn of(model: &'a Model) -> Facts<'a> {
        Facts {
            name: &model.name,
            min_tier: model.min_tier.as_ref(),
            context_window: model.context_window,
            max_output: model.max_output,
            can: model.can,
            strategy: model.strategy,
            stick: model.stick,
        }
    }

    /// Of a name nobody configured nothing is known.
    fn unknown(name: &'a str) -> Facts<'a> {
        Facts { name, min_tier: None, context_window: None, max_output: None, can: None, strategy: Strategy::default(), stick: None }
    }
}

/// Puts every candidate that may serve into the pool, in the order of the configuration.
pub(super) fn gather<'a>(context: &Context<'a>, resolved: &Resolved<'a>, pool: &mut Pool<'a>, mut explain: Option<&mut Explanation>) {
    match resolved.source {
        Source::Model(model) => {
            gather_model(context, 0, model, pool, explain.as_deref_mut());
            let fallbacks = if resolved.level.is_none_or(|level| level.fallback) { &model.fallback[..] } else { &[] };
            for (at, name) in fallbacks.iter().enumerate() {
                gather_named(context, u8::try_from(at + 1).unwrap_or(u8::MAX), name, pool, explain.as_deref_mut());
            }
        }
        Source::Level(models) => {
            // A model that is closed to this request is no first choice: the next one is, and is then no fallback.
            let mut position = 0u8;
            for name in models {
                let before = pool.len();
                gather_named(context, position, name, pool, explain.as_deref_mut());
                position = position.saturating_add(u8::from(pool.len() > before));
            }
        }
        Source::Inferred(targets) => {
            let facts = Facts::unknown(targets.iter().flatten().next().map_or("", |target| &*target.model));
            gather_targets(context, 0, facts, targets.iter().flatten(), pool, explain);
        }
    }
}

fn gather_named<'a>(context: &Context<'a>, position: u8, name: &'a str, pool: &mut Pool<'a>, explain: Option<&mut Explanation>) {
    match context.catalog.models.get(name) {
        Some(model) => gather_model(context, position, model, pool, explain),
        None => {
            pool.note(&Reason::NoSuchModel, name);
            if let Some(explanation) = explain {
                explanation.missing(name, &Reason::NoSuchModel);
            }
        }
    }
}

fn gather_model<'a>(context: &Context<'a>, position: u8, model: &'a Model, pool: &mut Pool<'a>, explain: Option<&mut Explanation>) {
    gather_targets(context, position, Facts::of(model), model.targets.iter(), pool, explain);
}

fn gather_targets<'a>(
    context: &Context<'a>,
    position: u8,
    facts: Facts<'a>,
    targets: impl Iterator<Item = &'a Arc<Target>>,
    pool: &mut Pool<'a>,
    mut explain: Option<&mut Explanation>,
) {
    let cap = check_model(context, &facts);
    for target in targets {
        let own = if cap.is_ok() && context.payers != Payers::Platform { (context.caller.own_key)(&target.provider) } else { None };
        let has_own = own.is_some();
        let verdict = cap.clone().and_then(|cap| judge(context, target, has_own, pool).map(|()| cap));
        keep_or_drop(context, pool, Entry { target, own, position, facts, verdict }, explain.as_deref_mut());
        // The platform stands behind a user's failing key where the provider's configuration says so.
        if has_own && target.provider.byok_falls_to_platform && context.payers == Payers::OwnFirst {
            let verdict = cap.clone().and_then(|cap| judge(context, target, false, pool).map(|()| cap));
            keep_or_drop(context, pool, Entry { target, own: None, position, facts, verdict }, explain.as_deref_mut());
        }
    }
}

/// Every check of one target and payer, in the order of [`Reason`].
fn judge(context: &Context<'_>, target: &Target, own: bool, pool: &Pool<'_>) -> Result<(), Reason> {
    check_target(context, target)?;
    check_payer(context, target, own)?;
    check_moment(context, target)?;
    room_for(pool, target, own)
}

/// A target that has been judged.
struct Entry<'a> {
    target: &'a Arc<Target>,
    own: Option<Arc<KeyState>>,
    position: u8,
    facts: Facts<'a>,
    verdict: Result<OutputCap, Reason>,
}

fn keep_or_drop<'a>(context: &Context<'_>, pool: &mut Pool<'a>, entry: Entry<'a>, explain: Option<&mut Explanation>) {
    let Entry { target, own, position, facts, verdict } = entry;
    let due_ms = due(target, own.as_deref(), context.now_ms);
    let explained = match explain {
        Some(explanation) => explanation.considered(context.now_ms, target, own.is_some(), due_ms, verdict.as_ref().err()),
        None => 0,
    };
    match verdict {
        Ok(cap) => pool.push(Candidate { target, own, position, facts, cap, due_ms, explained, key: order::Key::default() }),
        Err(reason) => pool.note(&reason, facts.name),
    }
}

/// What holds or fails for all targets of a model alike.
fn check_model(context: &Context<'_>, facts: &Facts<'_>) -> Result<OutputCap, Reason> {
    let ask = context.ask;
    policy::may_use_model(context.caller.tier, context.caller.scopes, facts.name, facts.min_tier).map_err(|closed| match closed {
        Closed::Scope => Reason::Scope,
        Closed::Tier(name) => Reason::Tier(name.cloned()),
    })?;
    if let Some(level) = context.level
        && !level.takes(facts.name)
    {
        return Err(Reason::NotInLevel(Arc::clone(&level.name)));
    }
    if let Some(can) = facts.can
        && !can.covers(ask.needs)
    {
        return Err(Reason::Capability(Capabilities(ask.needs.0 & !can.0)));
    }
    let cap = output_cap(context.level.map(|level| &**level), ask.max_output, facts.max_output).map_err(Reason::OutputSize)?;
    if let Some(window) = facts.context_window {
        let prompt = ask.prompt_tokens.saturating_mul(SURE_PART.0) / SURE_PART.1;
        // Only an output the request names itself is counted: a cap set by the level gives way to a long prompt upstream.
        let needed = prompt.saturating_add(if ask.max_output.is_some() { cap.at_most.unwrap_or(0) } else { 0 });
        if needed > window {
            return Err(Reason::ContextWindow { window, needed });
        }
    }
    Ok(cap)
}

/// What the configuration says about one target.
fn check_target(context: &Context<'_>, target: &Target) -> Result<(), Reason> {
    if !target.provider.speaks(context.ask.endpoint) {
        return Err(Reason::Dialect);
    }
    match context.level {
        Some(level) if !level.affords(&target.price) => Err(Reason::LevelCost(Arc::clone(&level.name))),
        _ => Ok(()),
    }
}

/// Whether somebody can pay there.
fn check_payer(context: &Context<'_>, target: &Target, own: bool) -> Result<(), Reason> {
    if own {
        return Ok(());
    }
    if context.payers == Payers::Own {
        return Err(Reason::NoOwnKey);
    }
    if target.provider.key.is_none() && spec(target.provider.kind).needs_key {
        return Err(Reason::NoPlatformKey);
    }
    match target.price {
        TargetPrice::Unpriced if context.caller.has_budget => Err(Reason::Unpriced),
        _ => Ok(()),
    }
}

/// What is true at this moment only.
fn check_moment(context: &Context<'_>, target: &Target) -> Result<(), Reason> {
    if let Some(level) = context.level
        && level.max_latency.is_some()
        && let Some(median_us) = target.state.first_event.median_us(context.now_ms)
        && !level.waits_for(Some(median_us))
    {
        return Err(Reason::LevelLatency { level: Arc::clone(&level.name), median_ms: median_us / 1000 });
    }
    match target.provider.max_concurrent {
        Some(bound) if target.provider.state.in_flight() >= bound => Err(Reason::Busy(bound)),
        _ => Ok(()),
    }
}

fn room_for(pool: &Pool<'_>, target: &Target, own: bool) -> Result<(), Reason> {
    if pool.holds(target, own) {
        Err(Reason::Duplicate)
    } else if pool.len() == CANDIDATES_MAX {
        Err(Reason::Beyond)
    } else {
        Ok(())
    }
}

/// The breakers that stand before a target for a payer.
pub(super) fn gates<'s>(target: &'s Target, own: Option<&'s KeyState>) -> [Option<&'s Breaker>; 4] {
    let provider = &target.provider.state;
    match own {
        None => [
            Some(&provider.reachable),
            Some(&target.state.breaker),
            Some(&provider.platform_key.breaker),
            Some(&target.state.platform_key.breaker),
        ],
        Some(key) => {
            // A refused key without the platform behind it is asked again each time: its owner is to hear why.
            let hidden = key.is_refused() && !target.provider.byok_falls_to_platform;
            let key_gate = (!hidden).then_some(&key.breaker);
            match key.own_base() {
                Some(base) => [Some(&base.breaker), key_gate, None, None],
                None => [Some(&provider.reachable), Some(&target.state.breaker), key_gate, None],
            }
        }
    }
}

/// When the target may be asked: 0 at once, else the latest of its gates. One that is being probed is due now, behind the others.
pub(super) fn due(target: &Target, own: Option<&KeyState>, now_ms: u64) -> u64 {
    let wait = |gate: &Breaker| match gate.phase(now_ms) {
        Phase::Healthy | Phase::ProbeDue => 0,
        Phase::Probing => now_ms.max(1),
        Phase::Cooling(until) => until,
    };
    gates(target, own).into_iter().flatten().map(wait).max().unwrap_or(0)
}

/// The blended price for people.
pub(super) fn price_text(price: &TargetPrice) -> String {
    match (blended_per_1m(price), price) {
        (Some(cost), _) => cost.to_string(),
        (None, TargetPrice::Priced(_)) => "unknown".to_owned(),
        (None, _) => "unpriced".to_owned(),
    }
}
