//! Why a candidate is dropped.

use super::candidates::CANDIDATES_MAX;
use super::denied::capabilities;
use crate::engine::catalog::Capabilities;
use std::fmt;
use std::sync::Arc;

/// Why a candidate is dropped. In the order of the checks: the reason that got furthest is the one a caller is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// A fallback or level names a model that is not configured.
    NoSuchModel,
    /// The key's scopes leave the model out.
    Scope,
    /// The tier does not open the model; the tier that does, when the model names one.
    Tier(Option<Arc<str>>),
    /// The level neither lists the model nor bounds its price.
    NotInLevel(Arc<str>),
    /// The provider does not speak the path's dialect.
    Dialect,
    /// The model lacks a capability.
    Capability(Capabilities),
    /// The request does not fit the window.
    ContextWindow {
        /// Tokens of the window.
        window: u64,
        /// Tokens of the request.
        needed: u64,
    },
    /// More output is asked than the model can write.
    OutputSize(u64),
    /// Above the level's price, or of unknown price.
    LevelCost(Arc<str>),
    /// Own keys are required, and there is none at the provider.
    NoOwnKey,
    /// The platform has no key at the provider.
    NoPlatformKey,
    /// The price is unknown and the key has a budget.
    Unpriced,
    /// The measured median is above the level's latency, milliseconds.
    LevelLatency {
        /// The level.
        level: Arc<str>,
        /// The median measured.
        median_ms: u64,
    },
    /// The provider serves as many requests as it may.
    Busy(u32),
    /// The same target with the same payer stands earlier.
    Duplicate,
    /// Behind the sixty-fourth.
    Beyond,
}

impl Reason {
    /// How far the candidate got.
    pub(super) fn depth(&self) -> u8 {
        match self {
            Reason::NoSuchModel => 0,
            Reason::Scope => 1,
            Reason::Tier(_) => 2,
            Reason::NotInLevel(_) => 3,
            Reason::Dialect => 4,
            Reason::Capability(_) => 5,
            Reason::ContextWindow { .. } => 6,
            Reason::OutputSize(_) => 7,
            Reason::LevelCost(_) => 8,
            Reason::NoOwnKey => 9,
            Reason::NoPlatformKey => 10,
            Reason::Unpriced => 11,
            Reason::LevelLatency { .. } => 12,
            Reason::Busy(_) => 13,
            Reason::Duplicate => 14,
            Reason::Beyond => 15,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::NoSuchModel => write!(f, "no such model is configured"),
            Reason::Scope => write!(f, "outside the key's scopes"),
            Reason::Tier(Some(tier)) => write!(f, "open from the tier {tier} on"),
            Reason::Tier(None) => write!(f, "not open to the tier"),
            Reason::NotInLevel(level) => write!(f, "the level {level} neither lists it nor bounds its price"),
            Reason::Dialect => write!(f, "the provider does not speak this path's dialect"),
            Reason::Capability(missing) => write!(f, "cannot do: {}", capabilities(*missing)),
            Reason::ContextWindow { window, needed } => write!(f, "needs {needed} tokens, the context window has {window}"),
            Reason::OutputSize(most) => write!(f, "writes {most} tokens at most"),
            Reason::LevelCost(level) => write!(f, "not within the price of the level {level}"),
            Reason::NoOwnKey => write!(f, "own keys are required, and there is none here"),
            Reason::NoPlatformKey => write!(f, "the platform has no key here"),
            Reason::Unpriced => write!(f, "no price, and the key has a budget"),
            Reason::LevelLatency { level, median_ms } => {
                write!(f, "first event after {median_ms} ms in the median, slower than the level {level} asks for")
            }
            Reason::Busy(bound) => write!(f, "{bound} requests in flight, as many as it may have"),
            Reason::Duplicate => write!(f, "the same target stands earlier"),
            Reason::Beyond => write!(f, "behind the first {CANDIDATES_MAX} candidates"),
        }
    }
}
