//! Why routing refuses a request.

use super::outcome::{Class, Outcome};
use crate::engine::catalog::Capabilities;
use std::fmt;
use std::sync::Arc;

/// Why no attempt is made, or no further one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// The key's scopes leave the path out.
    PathClosed {
        /// The path.
        path: &'static str,
    },
    /// Nobody serves a model of that name.
    UnknownModel {
        /// The name asked.
        asked: Box<str>,
        /// The nearest names this caller may use, best first.
        nearest: Vec<Box<str>>,
    },
    /// There is no such level.
    UnknownLevel {
        /// The level asked.
        asked: Box<str>,
        /// The levels there are.
        nearest: Vec<Box<str>>,
    },
    /// `auto` was asked without a level.
    NoLevel,
    /// The tier or the key's scopes do not open the model.
    ModelClosed {
        /// The model.
        model: Box<str>,
        /// The tier from which on it is open, when the model names one.
        min_tier: Option<Arc<str>>,
    },
    /// The tier or the key's scopes do not open the level.
    LevelClosed {
        /// The level.
        level: Arc<str>,
    },
    /// The tier does not have own keys, and they were required.
    ByokClosed,
    /// Own keys were required, and the caller has none where the model is served.
    NoOwnKey,
    /// No provider of the model speaks the path's dialect.
    NotSpoken {
        /// The model.
        model: Box<str>,
        /// The path.
        path: &'static str,
    },
    /// The model cannot do what the request uses.
    Incapable {
        /// The model.
        model: Box<str>,
        /// What is missing.
        missing: Capabilities,
    },
    /// The prompt and the output asked do not fit the window.
    ContextLength {
        /// The widest window there is, tokens.
        window: u64,
        /// What the request needs, tokens.
        needed: u64,
    },
    /// More output is asked than the model can write.
    OutputTooLong {
        /// The model's maximum, tokens.
        most: u64,
    },
    /// The level does not offer this model, or no target is within its price.
    LevelLimit {
        /// The level.
        level: Arc<str>,
    },
    /// Every target within the level's other limits is slower than it allows.
    LevelTooSlow {
        /// The level.
        level: Arc<str>,
    },
    /// The price is unknown and the key has a budget.
    Unpriced {
        /// The model.
        model: Box<str>,
    },
    /// The platform has no key where the model is served, nor has the caller.
    NoKey {
        /// The model.
        model: Box<str>,
    },
    /// Every target serves as many requests as it may.
    Busy,
    /// The caller's own key was refused by the provider.
    OwnKeyRefused {
        /// The provider.
        provider: Arc<str>,
        /// Its status; `None`: it said so inside a 200.
        status: Option<u16>,
    },
    /// Every attempt failed.
    Failed {
        /// How many were made.
        attempts: u32,
        /// The class of the last.
        last: Class,
        /// The status of the last, when it had one.
        status: Option<u16>,
        /// The shortest `Retry-After` that any of them named, milliseconds; bounded.
        retry_after_ms: Option<u64>,
    },
    /// No attempt had a first event in time.
    TooLate {
        /// How many were made.
        attempts: u32,
    },
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denied::PathClosed { path } => write!(f, "this key may not use {path}"),
            Denied::UnknownModel { asked, nearest } => {
                write!(f, "no model is called {asked:?}")?;
                names(f, nearest)
            }
            Denied::UnknownLevel { asked, nearest } => {
                write!(f, "no level is called {asked:?}")?;
                names(f, nearest)
            }
            Denied::NoLevel => write!(f, "the model `auto` needs a level: send X-Power-Level, or ask for weir/<level>"),
            Denied::ModelClosed { model, min_tier: Some(tier) } => write!(f, "{model} is open from the tier {tier} on"),
            Denied::ModelClosed { model, min_tier: None } => write!(f, "{model} is not open to this key"),
            Denied::LevelClosed { level } => write!(f, "the level {level} is not open to this key"),
            Denied::ByokClosed => write!(f, "own provider keys are not part of this key's tier"),
            Denied::NoOwnKey => write!(f, "own keys were required, and there is none where this model is served"),
            Denied::NotSpoken { model, path } => write!(f, "no provider of {model} speaks {path}"),
            Denied::Incapable { model, missing } => write!(f, "{model} lacks what the request uses: {}", capabilities(*missing)),
            Denied::ContextLength { window, needed } => write!(f, "the request needs {needed} tokens, the context window has {window}"),
            Denied::OutputTooLong { most } => write!(f, "the model writes {most} tokens at most"),
            Denied::LevelLimit { level } => write!(f, "the level {level} has no target for this within its limits"),
            Denied::LevelTooSlow { level } => write!(f, "no target is as fast as the level {level} asks for at the moment"),
            Denied::Unpriced { model } => write!(f, "{model} has no price, and this key has a budget"),
            Denied::NoKey { model } => write!(f, "there is no provider key for {model}"),
            Denied::Busy => write!(f, "every target serves as many requests as it may"),
            Denied::OwnKeyRefused { provider, status: Some(status) } => write!(f, "{provider} refused your own key with status {status}"),
            Denied::OwnKeyRefused { provider, status: None } => write!(f, "{provider} refused your own key"),
            Denied::Failed { attempts, last, status: Some(status), .. } => {
                write!(f, "all attempts failed ({attempts} made, the last: {}, status {status})", last.name())
            }
            Denied::Failed { attempts, last, .. } => write!(f, "all attempts failed ({attempts} made, the last: {})", last.name()),
            Denied::TooLate { attempts } => write!(f, "no first event in time ({attempts} attempts made)"),
        }
    }
}

impl std::error::Error for Denied {}

/// The names of a set, for people.
pub(super) fn capabilities(set: Capabilities) -> String {
    let all =
        [(Capabilities::STREAM, "stream"), (Capabilities::TOOLS, "tools"), (Capabilities::VISION, "vision"), (Capabilities::JSON, "json")];
    let names: Vec<&str> = all.iter().filter(|(one, _)| set.covers(*one)).map(|(_, name)| *name).collect();
    names.join(", ")
}

/// The status of an outcome, when it had one.
pub(super) fn status(outcome: &Outcome<'_>) -> Option<u16> {
    match outcome {
        Outcome::Status { code, .. } => Some(*code),
        _ => None,
    }
}

fn names(f: &mut fmt::Formatter<'_>, nearest: &[Box<str>]) -> fmt::Result {
    if nearest.is_empty() {
        return Ok(());
    }
    write!(f, "; nearest: {}", nearest.join(", "))
}
