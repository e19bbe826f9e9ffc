//! What a plan looked at and why it came out so, for `weir route` and for logs.

use super::candidates::price_text;
use super::plan::{Attempt, Payer, Plan};
use super::reason::Reason;
use crate::engine::catalog::Target;
use serde::Serialize;
use std::fmt;

/// Every step of one plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// How the name was resolved.
    pub steps: Vec<String>,
    /// Every candidate, in the order of the configuration.
    pub candidates: Vec<Considered>,
    /// The attempts, in order.
    pub attempts: Vec<Planned>,
    /// How many of them are made at most.
    pub max_attempts: u32,
    /// Why the request is refused, when it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// A candidate and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Considered {
    /// The callers' name of the model.
    pub model: String,
    /// The provider.
    pub provider: String,
    /// The provider's name of the model.
    pub upstream_model: String,
    /// `platform` or `own`.
    pub payer: &'static str,
    /// Lower is asked first.
    pub priority: u32,
    /// Share inside the priority group.
    pub weight: u32,
    /// `healthy`, `cooling` or `probing`.
    pub state: &'static str,
    /// Seconds of cooldown left, rounded up.
    pub cooling_s: u64,
    /// Measured median time to first event, milliseconds.
    pub median_ms: Option<u64>,
    /// Requests in flight.
    pub in_flight: u32,
    /// USD per million tokens, blended; `unknown` when only the provider tells it, `unpriced` without a price.
    pub price_per_1m: String,
    /// Its place in the order, from 1.
    pub order: Option<u32>,
    /// Why it was dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<String>,
}

/// An attempt of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// The callers' name of the model.
    pub model: String,
    /// The provider.
    pub provider: String,
    /// The provider's name of the model.
    pub upstream_model: String,
    /// `platform` or `own`.
    pub payer: &'static str,
    /// Another model than the one asked.
    pub is_fallback: bool,
    /// The output cap that is written into the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output: Option<u64>,
}

impl Explanation {
    pub(super) fn considered(&mut self, now_ms: u64, target: &Target, own: bool, due_ms: u64, dropped: Option<&Reason>) -> u16 {
        let place = u16::try_from(self.candidates.len()).unwrap_or(u16::MAX);
        self.candidates.push(Considered {
            model: target.model.to_string(),
            provider: target.provider.name.to_string(),
            upstream_model: target.upstream_model.to_string(),
            payer: if own { "own" } else { "platform" },
            priority: target.priority,
            weight: target.weight,
            state: match due_ms {
                0 => "healthy",
                due_ms if due_ms > now_ms => "cooling",
                _ => "probing",
            },
            cooling_s: due_ms.saturating_sub(now_ms).div_ceil(1000),
            median_ms: target.state.first_event.median_us(now_ms).map(|median_us| median_us / 1000),
            in_flight: target.state.in_flight(),
            price_per_1m: price_text(&target.price),
            order: None,
            dropped: dropped.map(Reason::to_string),
        });
        place
    }

    pub(super) fn missing(&mut self, model: &str, reason: &Reason) {
        self.steps.push(format!("{model:?}: {reason}"));
    }

    pub(super) fn ordered(&mut self, explained: u16, at: usize) {
        if let Some(candidate) = self.candidates.get_mut(usize::from(explained)) {
            candidate.order = u32::try_from(at + 1).ok();
        }
    }

    pub(super) fn planned(&mut self, plan: &Plan) {
        self.attempts = plan.upcoming().map(Planned::of).collect();
        self.max_attempts = plan.most_attempts();
    }
}

impl Planned {
    fn of(attempt: &Attempt) -> Planned {
        Planned {
            model: attempt.target.model.to_string(),
            provider: attempt.target.provider.name.to_string(),
            upstream_model: attempt.target.upstream_model.to_string(),
            payer: match attempt.payer {
                Payer::Platform => "platform",
                Payer::Own(_) => "own",
            },
            is_fallback: attempt.is_fallback,
            max_output: attempt.max_output,
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        let rows: Vec<[String; 8]> = self.candidates.iter().map(Considered::row).collect();
        if !rows.is_empty() {
            table(f, ["", "PROVIDER", "MODEL", "PAYS", "PRIO", "USD/1M", "MEDIAN", "STATE"], &rows)?;
        }
        match &self.refused {
            Some(refused) => writeln!(f, "refused: {refused}"),
            None => writeln!(f, "at most {} attempts", self.max_attempts),
        }
    }
}

impl Considered {
    fn row(&self) -> [String; 8] {
        let state = match (&self.dropped, self.state) {
            (Some(reason), _) => format!("dropped: {reason}"),
            (None, "cooling") => format!("cooling for {} s, a last resort", self.cooling_s),
            (None, "probing") => "being probed, a last resort".to_owned(),
            (None, state) => state.to_owned(),
        };
        [
            self.order.map_or_else(|| "-".to_owned(), |order| format!("{order}.")),
            self.provider.clone(),
            self.upstream_model.clone(),
            self.payer.to_owned(),
            self.priority.to_string(),
            self.price_per_1m.clone(),
            self.median_ms.map_or_else(|| "-".to_owned(), |median| format!("{median} ms")),
            state,
        ]
    }
}

/// Aligned columns; the last one is as long as it is.
fn table<const N: usize>(f: &mut fmt::Formatter<'_>, head: [&str; N], rows: &[[String; N]]) -> fmt::Result {
    let mut widths = head.map(|name| name.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        for (at, cell) in cells.enumerate() {
            if at + 1 == N {
                write!(f, "{cell}")?;
            } else {
                write!(f, "{cell:width$}  ", width = widths[at])?;
            }
        }
        writeln!(f)
    };
    line(&mut head.into_iter())?;
    for row in rows {
        line(&mut row.iter().map(String::as_str))?;
    }
    Ok(())
}
