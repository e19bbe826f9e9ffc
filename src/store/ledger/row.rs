//! The ledger row: what is known of a request when it is admitted ([`Facts`]) and what it came to ([`Outcome`]).

use crate::engine::money::{Credits, Usd};
use crate::engine::usage::{Bucket, Source, Usage};
use crate::store::calendar;
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::sync::Arc;

/// Bytes of any text in a row at most; longer ones are cut. Names from a configuration and ids are far shorter; what a
/// caller sends (the asked model, its idempotency key) could be anything, and the journal keeps room for each row in advance.
pub const TEXT_BYTES_MAX: usize = 256;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum End {
    /// With the answer's normal end.
    Complete = 0,
    /// By an error, upstream's or ours.
    Failed = 1,
    /// By the client going away.
    Cancelled = 2,
    /// Before any attempt.
    Refused = 3,
}

impl End {
    /// The name in rows and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            End::Complete => "complete",
            End::Failed => "failed",
            End::Cancelled => "cancelled",
            End::Refused => "refused",
        }
    }

    /// From its number in the journal and the table.
    pub const fn from_number(number: u8) -> Option<End> {
        match number {
            0 => Some(End::Complete),
            1 => Some(End::Failed),
            2 => Some(End::Cancelled),
            3 => Some(End::Refused),
            _ => None,
        }
    }
}

/// What is known when a request is admitted. None of it changes afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The row's key. Unique: the proxy's own, not the caller's `X-Request-Id` as it came.
    pub request_id: Box<str>,
    /// When the request's head was read, milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// Who pays.
    pub account: Arc<str>,
    /// Which caller's key.
    pub key_id: Arc<str>,
    /// The model as the caller wrote it.
    pub asked_model: Box<str>,
    /// The power level, if one was asked for.
    pub level: Option<Arc<str>>,
    /// The key's tier, if it has one.
    pub tier: Option<Arc<str>>,
    /// The caller's `Idempotency-Key`.
    pub idempotency_key: Option<Box<str>>,
    /// Credits set aside at admission; `None`: not from a balance (the account had no budget), and then the charge counts in
    /// the month but is not taken from a balance either.
    pub reserved: Option<Credits>,
}

/// What a request came to; or, in the journal's progress records, what it would come to if it ended now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The callers' name of the model that answered (of the last attempt when none did).
    pub model: Option<Arc<str>>,
    /// The provider that answered (of the last attempt when none did).
    pub provider: Option<Arc<str>>,
    /// The caller's own provider key paid.
    pub byok: bool,
    /// Attempts made.
    pub attempts: u32,
    /// The answering target was not the plan's first.
    pub was_fallback: bool,
    /// HTTP status the client got (or would have got; 200 for a stream that broke later).
    pub status: u16,
    /// How it ended.
    pub end: End,
    /// Disjoint counts.
    pub usage: Usage,
    /// Where they came from.
    pub usage_source: Source,
    /// Which price was applied.
    pub price_id: Option<Arc<str>>,
    /// What the provider asks.
    pub cost: Usd,
    /// What the account pays.
    pub charge: Credits,
    /// Request read to first event sent.
    pub first_event_ms: Option<u64>,
    /// Request read to end.
    pub duration_ms: u64,
}

impl Default for Outcome {
    /// Nothing happened yet: no attempt, nothing used; as a crash would leave it.
    fn default() -> Outcome {
        Outcome {
            model: None,
            provider: None,
            byok: false,
            attempts: 0,
            was_fallback: false,
            status: 500,
            end: End::Failed,
            usage: Usage::default(),
            usage_source: Source::Counted,
            price_id: None,
            cost: Usd(0),
            charge: Credits(0),
            first_event_ms: None,
            duration_ms: 0,
        }
    }
}

/// A complete row. Its JSON form has exactly the contract's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Known at admission.
    pub facts: Facts,
    /// Known at the end.
    pub outcome: Outcome,
}

impl Facts {
    /// Cuts every text to [`TEXT_BYTES_MAX`].
    pub(crate) fn bound(&mut self) {
        bound_box(&mut self.request_id);
        bound_arc(&mut self.account);
        bound_arc(&mut self.key_id);
        bound_box(&mut self.asked_model);
        self.level.as_mut().map(bound_arc);
        self.tier.as_mut().map(bound_arc);
        self.idempotency_key.as_mut().map(bound_box);
    }
}

impl Outcome {
    /// Cuts every text to [`TEXT_BYTES_MAX`].
    pub(crate) fn bound(&mut self) {
        self.model.as_mut().map(bound_arc);
        self.provider.as_mut().map(bound_arc);
        self.price_id.as_mut().map(bound_arc);
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

fn bound_box(text: &mut Box<str>) {
    if text.len() > TEXT_BYTES_MAX {
        *text = cut(text).into();
    }
}

fn bound_arc(text: &mut Arc<str>) {
    if text.len() > TEXT_BYTES_MAX {
        *text = cut(text).into();
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Row { facts, outcome } = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("request_id", &facts.request_id)?;
        map.serialize_entry("started_at", &calendar::rfc3339(facts.started_ms))?;
        map.serialize_entry("account", &*facts.account)?;
        map.serialize_entry("key_id", &*facts.key_id)?;
        map.serialize_entry("asked_model", &facts.asked_model)?;
        map.serialize_entry("model", &outcome.model.as_deref())?;
        map.serialize_entry("provider", &outcome.provider.as_deref())?;
        map.serialize_entry("level", &facts.level.as_deref())?;
        map.serialize_entry("tier", &facts.tier.as_deref())?;
        map.serialize_entry("byok", &outcome.byok)?;
        map.serialize_entry("attempts", &outcome.attempts)?;
        map.serialize_entry("was_fallback", &outcome.was_fallback)?;
        map.serialize_entry("status", &outcome.status)?;
        map.serialize_entry("end", outcome.end.name())?;
        serialize_usage(&mut map, &outcome.usage)?;
        map.serialize_entry("usage_source", outcome.usage_source.name())?;
        map.serialize_entry("price_id", &outcome.price_id.as_deref())?;
        map.serialize_entry("cost", &outcome.cost.to_string())?;
        map.serialize_entry("charge", &outcome.charge.to_string())?;
        map.serialize_entry("first_event_ms", &outcome.first_event_ms)?;
        map.serialize_entry("duration_ms", &outcome.duration_ms)?;
        map.serialize_entry("idempotency_key", &facts.idempotency_key)?;
        map.end()
    }
}

/// Every bucket as a key of its own: integers, seconds as a decimal number.
pub(crate) fn serialize_usage<M: SerializeMap>(map: &mut M, usage: &Usage) -> Result<(), M::Error> {
    for (bucket, count) in usage.iter() {
        if bucket == Bucket::Milliseconds {
            // Shortest decimal that reads back the same: exact to the millisecond below 2^53. A duration, not money.
            map.serialize_entry(bucket.name(), &(count as f64 / 1000.0))?;
        } else {
            map.serialize_entry(bucket.name(), &count)?;
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A row with something in every field.
    pub(crate) fn full_row(id: &str) -> Row {
        let mut usage = Usage::default();
        for (index, bucket) in Bucket::ALL.into_iter().enumerate() {
            usage.set(bucket, 1500 + index as u64);
        }
        Row {
            facts: Facts {
                request_id: id.into(),
                started_ms: 1_795_313_292_345,
                account: "acme".into(),
                key_id: "k1".into(),
                asked_model: "auto".into(),
                level: Some("eco".into()),
                tier: Some("professional".into()),
                idempotency_key: Some("once".into()),
                reserved: Some(Credits(7_000_000_000)),
            },
            outcome: Outcome {
                model: Some("gpt-4o-mini".into()),
                provider: Some("openai".into()),
                byok: true,
                attempts: 2,
                was_fallback: true,
                status: 200,
                end: End::Complete,
                usage,
                usage_source: Source::Mixed,
                price_id: Some("openai/gpt-4o-mini".into()),
                cost: Usd(1_234_000_000_001),
                charge: Credits(5_500_000_001),
                first_event_ms: Some(120),
                duration_ms: 3400,
            },
        }
    }

    #[test]
    fn the_json_form_has_the_contracts_names_in_order() {
        let json = serde_json::to_string(&full_row("01J")).unwrap();
        let expected = concat!(
            r#"{"request_id":"01J","started_at":"2026-11-22T02:08:12.345Z","account":"acme","key_id":"k1","asked_model":"auto","#,
            r#""model":"gpt-4o-mini","provider":"openai","level":"eco","tier":"professional","byok":true,"attempts":2,"#,
            r#""was_fallback":true,"status":200,"end":"complete","input":1500,"image_input":1501,"audio_input":1502,"#,
            r#""cached_input":1503,"cached_audio_input":1504,"cache_write_5m":1505,"cache_write_1h":1506,"output":1507,"#,
            r#""reasoning":1508,"audio_output":1509,"image_output":1510,"seconds":1.511,"images":1512,"requests":1513,"#,
            r#""web_searches":1514,"usage_source":"mixed","price_id":"openai/gpt-4o-mini","cost":"1.234000000001","#,
            r#""charge":"5.500000001","first_event_ms":120,"duration_ms":3400,"idempotency_key":"once"}"#,
        );
        assert_eq!(json, expected);
    }

    #[test]
    fn what_is_not_known_is_null() {
        let mut row = full_row("01J");
        row.facts.level = None;
        row.outcome = Outcome::default();
        let json = serde_json::to_value(&row).unwrap();
        for key in ["model", "provider", "level", "price_id", "first_event_ms"] {
            assert!(json[key].is_null(), "{key}");
        }
        assert_eq!((json["cost"].as_str(), json["end"].as_str()), (Some("0"), Some("failed")));
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let mut row = full_row("01J");
        row.facts.asked_model = "é".repeat(200).into();
        row.facts.bound();
        assert_eq!(row.facts.asked_model.len(), TEXT_BYTES_MAX);
        row.facts.asked_model = format!("x{}", "é".repeat(200)).into();
        row.facts.bound();
        assert_eq!(row.facts.asked_model.len(), TEXT_BYTES_MAX - 1);
    }
}
