//! From the name a caller writes to the models that may answer.

use super::denied::Denied;
use super::explain::Explanation;
use super::{Ask, Caller, nearest};
use crate::engine::catalog::{Catalog, Level, Model, Provider, Target, TargetId, TargetPrice};
use crate::engine::level::{AUTO, MODEL_PREFIX, find};
use crate::engine::policy::{self, Closed};
use crate::engine::provider::{Kind, infer};
use crate::engine::tokens;
use std::sync::Arc;

/// Providers of one kind that an inferred name is offered to, by priority; more of one kind are not asked.
pub(super) const INFERRED_MAX: usize = 4;

/// Targets made for a name nobody configured, in order of preference.
pub(super) type Inferred = [Option<Arc<Target>>; INFERRED_MAX];

/// What a name stands for.
pub(super) struct Resolved<'a> {
    pub level: Option<&'a Arc<Level>>,
    pub source: Source<'a>,
}

/// Where the candidates come from.
pub(super) enum Source<'a> {
    /// A configured model, then its fallbacks.
    Model(&'a Arc<Model>),
    /// The models of a level, in its order.
    Level(&'a [Arc<str>]),
    /// Targets made for the name.
    Inferred(&'a Inferred),
}

/// Contract: exact name, level, inferred provider, or the nearest names. `room` holds inferred targets.
pub(super) fn resolve<'a>(
    catalog: &'a Catalog,
    ask: &Ask<'_>,
    caller: &Caller<'_>,
    room: &'a mut Inferred,
    mut explain: Option<&mut Explanation>,
) -> Result<Resolved<'a>, Denied> {
    let mut say = |text: &dyn Fn() -> String| {
        if let Some(explanation) = explain.as_deref_mut() {
            explanation.steps.push(text());
        }
    };
    if let Some(model) = catalog.models.get(ask.model) {
        let level = ask.level_header.map(|name| level(catalog, caller, name)).transpose()?;
        say(&|| format!("{:?} is a configured model", ask.model));
        if let Some(level) = level {
            say(&|| format!("the level {} limits it (header)", level.name));
        }
        return Ok(Resolved { level, source: Source::Model(model) });
    }
    let named = match ask.model.strip_prefix(MODEL_PREFIX) {
        Some(name) => Some(name),
        None if ask.model == AUTO => Some(ask.level_header.ok_or(Denied::NoLevel)?),
        None => None,
    };
    if let Some(name) = named {
        let level = level(catalog, caller, name)?;
        let models = level.models_for(ask.task);
        say(&|| format!("{:?} is the level {}: {} models in its order{}", ask.model, level.name, models.len(), task(level, ask.task)));
        return Ok(Resolved { level: Some(level), source: Source::Level(models) });
    }
    let level = ask.level_header.map(|name| self::level(catalog, caller, name)).transpose()?;
    if catalog.routing.infer
        && let Some((kind, upstream)) = infer(ask.model)
        && make_targets(catalog, ask.model, kind, upstream, room)
    {
        say(&|| format!("{:?} is not configured; its name points to a provider of kind {}", ask.model, kind.name()));
        return Ok(Resolved { level, source: Source::Inferred(room) });
    }
    Err(Denied::UnknownModel { asked: nearest::shown(ask.model), nearest: nearest::models(catalog, caller, ask.model) })
}

/// Whether a name means a model or a level here, for whoever may use it.
pub fn is_known(catalog: &Catalog, model: &str) -> bool {
    let is_inferred = || {
        let kind = infer(model).filter(|_| catalog.routing.infer).map(|(kind, _)| kind);
        kind.is_some_and(|kind| catalog.providers.values().any(|provider| provider.kind == kind))
    };
    catalog.models.contains_key(model)
        || model == AUTO
        || model.strip_prefix(MODEL_PREFIX).is_some_and(|level| find(catalog, level).is_some())
        || is_inferred()
}

/// The level that a request names, whether or not it may use it.
pub fn asked_level<'a>(catalog: &'a Catalog, model: &str, level_header: Option<&str>) -> Option<&'a Arc<Level>> {
    find(catalog, model.strip_prefix(MODEL_PREFIX).or(level_header)?)
}

/// A level this caller may use.
fn level<'a>(catalog: &'a Catalog, caller: &Caller<'_>, name: &str) -> Result<&'a Arc<Level>, Denied> {
    let Some(level) = find(catalog, name) else {
        return Err(Denied::UnknownLevel { asked: nearest::shown(name), nearest: nearest::levels(catalog, caller, name) });
    };
    match policy::may_use_level(caller.tier, caller.scopes, level) {
        Ok(()) => Ok(level),
        Err(Closed::Scope | Closed::Tier(_)) => Err(Denied::LevelClosed { level: Arc::clone(&level.name) }),
    }
}

/// Fills `room` with a target at each configured provider of the kind, by priority, then name. `false`: there is none.
fn make_targets(catalog: &Catalog, asked: &str, kind: Kind, upstream: &str, room: &mut Inferred) -> bool {
    let mut providers: [Option<&Arc<Provider>>; INFERRED_MAX] = [None; INFERRED_MAX];
    for provider in catalog.providers.values().filter(|provider| provider.kind == kind) {
        let mut next = Some(provider);
        // Insertion into a short sorted list; what falls off its end is not asked.
        for slot in &mut providers {
            let Some(candidate) = next else { break };
            let before = slot.is_none_or(|held| (candidate.priority, &candidate.name) < (held.priority, &held.name));
            if before {
                next = slot.replace(candidate);
            }
        }
    }
    let family = tokens::family(upstream);
    let (model, upstream): (Arc<str>, Arc<str>) = (asked.into(), upstream.into());
    for (slot, provider) in room.iter_mut().zip(providers.into_iter().flatten()) {
        let price = catalog.prices.get(format!("{}/{upstream}", provider.name).as_str());
        *slot = Some(Arc::new(Target {
            id: TargetId::UNKEPT,
            provider: Arc::clone(provider),
            model: Arc::clone(&model),
            upstream_model: Arc::clone(&upstream),
            family,
            priority: provider.priority,
            weight: 1,
            price: price.map_or(TargetPrice::Unpriced, |price| TargetPrice::Priced(Arc::clone(price))),
            configured: false,
            state: provider.state.inferred(&upstream),
        }));
    }
    room[0].is_some()
}

fn task(level: &Level, task: Option<&str>) -> String {
    match task {
        Some(task) if level.tasks.contains_key(task) => format!(" for the task {task}"),
        Some(_) => " (the task has none of its own)".to_owned(),
        None => String::new(),
    }
}
