//! The end of a request as JSON: what `POST /plugin/v1/settle` takes, and a line of the journal while the node is away.

use serde_json::{Map, Value, json};
use weir::engine::meter::Tally;
use weir::engine::money::{Credits, Usd};
use weir::engine::usage::Usage;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// With the answer's normal end.
    Complete = 0,
    /// By an error.
    Failed = 1,
    /// By the client, or by its balance.
    Cancelled = 2,
    /// Before anybody was asked.
    Refused = 3,
}

impl End {
    /// Its name in rows.
    pub const fn name(self) -> &'static str {
        match self {
            End::Complete => "complete",
            End::Failed => "failed",
            End::Cancelled => "cancelled",
            End::Refused => "refused",
        }
    }
}

/// Everything a row says.
pub struct Row<'a> {
    /// weir's id of the request.
    pub request_id: &'a str,
    /// The node knows this request and holds its reservation.
    pub admitted: bool,
    /// Milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// Who pays.
    pub account: &'a str,
    /// Which of its keys.
    pub key_id: &'a str,
    /// The model as asked.
    pub asked_model: &'a str,
    /// The path.
    pub path: &'a str,
    /// The level.
    pub level: Option<&'a str>,
    /// The tier.
    pub tier: Option<&'a str>,
    /// The callers' name of the model that answered.
    pub model: Option<&'a str>,
    /// The provider that answered, or was asked last.
    pub provider: Option<&'a str>,
    /// The provider's name of the model.
    pub upstream_model: Option<&'a str>,
    /// The caller's own key paid.
    pub byok: bool,
    /// Attempts made.
    pub attempts: u32,
    /// Not the first choice.
    pub was_fallback: bool,
    /// What the client got.
    pub status: u16,
    /// How it ended.
    pub end: End,
    /// Milliseconds to the first event.
    pub first_event_ms: Option<u64>,
    /// Milliseconds to the end.
    pub duration_ms: u64,
    /// The counts.
    pub tally: &'a Tally,
    /// Which price was applied.
    pub price_id: Option<&'a str>,
    /// What the provider asks.
    pub cost: Usd,
    /// What the account pays.
    pub charge: Credits,
}

impl Row<'_> {
    /// The JSON text, without a line feed.
    pub fn json(&self) -> String {
        json!({
            "request_id": self.request_id, "admitted": self.admitted, "started_ms": self.started_ms, "account": self.account,
            "key_id": self.key_id, "asked_model": self.asked_model, "path": self.path, "level": self.level, "tier": self.tier,
            "model": self.model, "provider": self.provider, "upstream_model": self.upstream_model, "byok": self.byok,
            "attempts": self.attempts, "was_fallback": self.was_fallback, "status": self.status, "end": self.end.name(),
            "first_event_ms": self.first_event_ms, "duration_ms": self.duration_ms, "usage": usage(&self.tally.usage),
            "usage_source": self.tally.source.name(), "service_tier": self.tally.service_tier,
            "reported_cost": self.tally.reported_cost.map(|cost| cost.to_string()), "price_id": self.price_id,
            "cost": self.cost.to_string(), "charge": self.charge.to_string(),
        })
        .to_string()
    }
}

/// The buckets that are not empty, by name; time in milliseconds (`seconds` holds them, as the engine does).
fn usage(usage: &Usage) -> Value {
    let counts: Map<String, Value> =
        usage.iter().filter(|(_, count)| *count > 0).map(|(bucket, count)| (bucket.name().to_owned(), count.into())).collect();
    counts.into()
}
