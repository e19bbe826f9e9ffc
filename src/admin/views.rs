//! What the admin API shows of models, keys, sealed keys and the audit log, as JSON. Secrets are not in what it is given.

use crate::engine::catalog::{Capabilities, Catalog, Model, Strategy, Target, TargetPrice};
use crate::store::audit::Record;
use crate::store::keys::{Created, Listed};
use crate::store::vault::Entry;
use crate::telemetry::clock::rfc3339;
use serde_json::{Value, json};
use std::sync::Arc;

/// What a state's gauge is called.
pub fn state(gauge: u8) -> &'static str {
    ["cooling", "probing", "healthy"].get(usize::from(gauge)).copied().unwrap_or("unknown")
}

/// A target with its state and what was measured; times are absent until there are enough measurements.
pub fn target(target: &Target, now_ms: u64) -> Value {
    let ms = |us: Option<u64>| us.map(|us| us / 1000);
    json!({
        "model": &*target.model, "upstream_model": &*target.upstream_model, "state": state(target.state.gauge(now_ms)), "in_flight": target.state.in_flight(),
        "median_first_event_ms": ms(target.state.first_event.median_us(now_ms)), "p95_first_event_ms": ms(target.state.first_event.p95_us(now_ms)),
    })
}

/// Every configured model by name, with its targets.
pub fn models(catalog: &Catalog, now_ms: u64) -> Value {
    let mut models: Vec<&Arc<Model>> = catalog.models.values().collect();
    models.sort_by(|one, other| one.name.cmp(&other.name));
    models.into_iter().map(|each| model(each, now_ms)).collect()
}

fn model(model: &Model, now_ms: u64) -> Value {
    let targets: Vec<Value> = model
        .targets
        .iter()
        .map(|each| {
            let mut document = target(each, now_ms);
            document["provider"] = json!(&*each.provider.name);
            document["priority"] = json!(each.priority);
            document["weight"] = json!(each.weight);
            document["price"] = match &each.price {
                // USD for a million tokens, three parts input and one part output.
                TargetPrice::Priced(price) if price.is_only_reported() => json!("unknown"),
                TargetPrice::Priced(price) => json!(price.blended_per_1m().to_string()),
                TargetPrice::Free => json!("free"),
                TargetPrice::Unpriced => json!("unpriced"),
            };
            document
        })
        .collect();
    let can = model.can.map(|can| {
        let names = [
            (Capabilities::STREAM, "stream"),
            (Capabilities::TOOLS, "tools"),
            (Capabilities::VISION, "vision"),
            (Capabilities::JSON, "json"),
        ];
        names.into_iter().filter(|(one, _)| can.covers(*one)).map(|(_, name)| name).collect::<Vec<_>>()
    });
    let strategy = match model.strategy {
        Strategy::WeightedRandom => "weighted",
        Strategy::LeastLatency => "least-latency",
        Strategy::LeastCost => "least-cost",
        Strategy::LeastBusy => "least-busy",
    };
    json!({
        "name": &*model.name, "targets": targets, "fallback": model.fallback.iter().map(|name| &**name).collect::<Vec<_>>(),
        "min_tier": model.min_tier.as_ref().map(|(_, name)| &**name), "context_window": model.context_window, "max_output": model.max_output,
        "can": can, "strategy": strategy,
    })
}

/// Callers' keys.
pub fn keys(keys: &[Listed]) -> Value {
    keys.iter()
        .map(|key| {
            let limits = key.limits;
            json!({
                "id": key.id, "name": key.name, "key": key.shown, "account": key.account, "tier": key.tier, "scopes": key.scopes, "state": key.state, "has_budget": key.has_budget,
                "limits": {"rpm": limits.rpm, "tpm": limits.tpm, "rpd": limits.rpd, "tpd": limits.tpd, "concurrent": limits.concurrent},
                "created_at": rfc3339(key.created_ms), "expires_at": key.expires_ms.map(rfc3339), "revoked_at": key.revoked_ms.map(rfc3339), "last_used_at": key.last_used_ms.map(rfc3339),
            })
        })
        .collect()
}

/// The one answer that has a key in it.
pub fn created(created: &Created) -> Value {
    json!({"id": created.id, "account": created.account, "key": created.key.expose()})
}

/// Sealed provider keys; the platform's have an empty account.
pub fn vault(entries: &[Entry]) -> Value {
    entries
        .iter()
        .map(|entry| {
            json!({
                "account": entry.account, "provider": entry.provider, "name": entry.name, "key": entry.shown, "base_url": entry.base_url, "master_id": entry.master_id,
                "check": entry.verdict, "checked_at": entry.checked_ms.map(rfc3339), "created_at": rfc3339(entry.created_ms), "changed_at": rfc3339(entry.changed_ms),
                "last_used_at": entry.last_used_ms.map(rfc3339),
            })
        })
        .collect()
}

/// The audit log.
pub fn audit(records: &[Record]) -> Value {
    records
        .iter()
        .map(|record| json!({"seq": record.seq, "at": rfc3339(record.at_ms), "who": record.who, "from": record.from, "action": record.action, "subject": record.subject, "result": record.result}))
        .collect()
}
