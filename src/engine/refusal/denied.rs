//! From the plan's no to the caller's: the plan knows names and classes, the exchange knows what the provider said.

use crate::engine::catalog::Capabilities;
use crate::engine::refusal::{Refusal, UpstreamFailure};
use crate::engine::route::Denied;
use std::sync::Arc;

/// When to come again while every target serves as many requests as it may: they end by the second.
const BUSY_RETRY_MS: u64 = 1_000;

/// What the last attempt came to.
pub struct Failure {
    /// What the provider said.
    pub said: UpstreamFailure,
    /// It was about money.
    pub is_about_money: bool,
}

/// The refusal of a plan's no. `model` is what was asked; `failure` is the last attempt's, where there was one.
pub fn refusal(denied: Denied, model: &str, failure: Option<Failure>) -> Refusal {
    let names = |nearest: Vec<Box<str>>| nearest.into_iter().map(Arc::from).collect();
    let model: Box<str> = model.into();
    let is_about_money = failure.as_ref().is_some_and(|failure| failure.is_about_money);
    let failure = failure.map(|failure| failure.said);
    match denied {
        Denied::PathClosed { path } => Refusal::PathClosed { path },
        Denied::UnknownModel { asked, nearest } => Refusal::UnknownModel { asked, nearest: names(nearest) },
        Denied::UnknownLevel { asked, nearest } => Refusal::UnknownLevel { asked, known: names(nearest) },
        Denied::NoLevel => {
            Refusal::BadHeader { name: "X-Power-Level", expected: "the name of a level, since the model 'auto' leaves the choice to it" }
        }
        Denied::ModelClosed { model, min_tier } => Refusal::ModelClosed { model, needs: min_tier },
        Denied::LevelClosed { level } => Refusal::LevelClosed { level: (*level).into() },
        Denied::ByokClosed => Refusal::ByokClosed,
        Denied::NoOwnKey => Refusal::ByokMissing { model, providers: Vec::new() },
        Denied::NotSpoken { model, path } => Refusal::NotSpoken { model, path },
        Denied::Incapable { model, missing } => Refusal::CannotDo { model, lacks: capability(missing) },
        Denied::ContextLength { window, needed } => Refusal::ContextTooLong { model, tokens: needed, window },
        Denied::OutputTooLong { most } => Refusal::OutputTooLong { model, most },
        Denied::LevelLimit { level } => Refusal::LevelLimits { level: (*level).into(), limit: "price" },
        Denied::LevelTooSlow { level } => Refusal::LevelLimits { level: (*level).into(), limit: "latency" },
        Denied::Unpriced { model } => Refusal::Unpriced { model },
        Denied::NoKey { model } => Refusal::NoPayer { model },
        Denied::Busy => Refusal::Overloaded { retry_after_ms: BUSY_RETRY_MS },
        Denied::OwnKeyRefused { provider, status } => {
            let failure = failure.unwrap_or_else(|| UpstreamFailure::new(provider, status, "", None));
            if is_about_money { Refusal::ByokBroke(failure) } else { Refusal::ByokRefused(failure) }
        }
        Denied::Failed { attempts, retry_after_ms, .. } => match failure {
            Some(last) => Refusal::AttemptsFailed { attempts, last, retry_after_ms },
            None => Refusal::Internal,
        },
        Denied::TooLate { attempts } => match failure {
            Some(last) => Refusal::NoFirstEvent { provider: last.provider().into(), attempts },
            None => Refusal::Internal,
        },
    }
}

/// The first capability that is missing, for people.
fn capability(missing: Capabilities) -> &'static str {
    [(Capabilities::STREAM, "stream"), (Capabilities::TOOLS, "tools"), (Capabilities::VISION, "vision"), (Capabilities::JSON, "json")]
        .into_iter()
        .find(|(one, _)| missing.covers(*one))
        .map_or("what the request uses", |(_, name)| name)
}
