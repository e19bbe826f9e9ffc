//! Lago's events: `POST /api/v1/events/batch`, at most 100 a call (getlago/lago-openapi).
//!
//! `transaction_id` and `timestamp` are the same at every repeat: Lago ignores or overwrites by them. The subscription is
//! the account, the code is configured, and `precise_total_amount_cents` is the charge in cents for Lago's dynamic charge model.

use super::{Destination, Letter, ended_ms};
use crate::engine::money::{Usd, div_half_even};
use serde_json::{Map, Value, json};

/// Nano-credits in a credit.
const NANO: i128 = 1_000_000_000;

pub(super) fn request(client: &reqwest::Client, to: &Destination, letters: &[Letter]) -> reqwest::RequestBuilder {
    let events: Vec<Value> = letters.iter().map(|letter| event(to, letter)).collect();
    client.post(format!("{}/events/batch", base(&to.url))).json(&json!({ "events": events }))
}

/// The API's base is accepted with or without its `/api/v1`.
fn base(url: &str) -> String {
    let url = url.trim_end_matches('/');
    if url.ends_with("/api/v1") { url.to_owned() } else { format!("{url}/api/v1") }
}

fn event(to: &Destination, letter: &Letter) -> Value {
    let row = &letter.row;
    let ended_ms = ended_ms(row);
    let pico = i128::from(row.outcome.charge.0).saturating_mul(to.credit.0);
    json!({
        "transaction_id": row.facts.request_id,
        "external_subscription_id": &*row.facts.account,
        "code": to.event,
        // Seconds with a fraction, as text: exact.
        "timestamp": format!("{}.{:03}", ended_ms / 1000, ended_ms % 1000),
        "precise_total_amount_cents": Usd(div_half_even(pico, NANO)).cents(),
        "properties": properties(row),
    })
}

/// The row without what the event says already.
fn properties(row: &crate::store::ledger::Row) -> Value {
    let mut properties = match serde_json::to_value(row) {
        Ok(Value::Object(map)) => map,
        // A row is always an object.
        _ => Map::new(),
    };
    for key in ["request_id", "account", "idempotency_key"] {
        properties.remove(key);
    }
    properties.retain(|_, value| !value.is_null());
    Value::Object(properties)
}

/// A single event that Lago has already: the answer to an earlier call was lost. (`value_already_exist` under
/// `transaction_id` is how Lago names it as far as we know; an unknown text would make a dead letter, not a double charge.)
pub(super) fn is_duplicate(status: u16, body: &str) -> bool {
    if status != 422 {
        return false;
    }
    let Ok(body) = serde_json::from_str::<Value>(body) else { return false };
    // By field, or for a batch by index and then by field.
    let details = &body["error_details"];
    let nested = details.as_object().into_iter().flat_map(|map| map.values()).map(|inner| &inner["transaction_id"]);
    std::iter::once(&details["transaction_id"])
        .chain(nested)
        .any(|reasons| reasons.as_array().is_some_and(|reasons| reasons.iter().any(|reason| reason == "value_already_exist")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ledger::Sink;
    use crate::store::ledger::row::tests::full_row;

    #[test]
    fn an_event_is_the_row() {
        let to =
            Destination { sink: Sink::Lago, url: "http://lago/".into(), event: "llm_request".into(), credit: Usd::parse("0.001").unwrap() };
        let event = event(&to, &Letter { seq: 1, ledger_id: 1, row: full_row("01J") });
        assert_eq!(event["transaction_id"], "01J");
        assert_eq!(event["external_subscription_id"], "acme");
        assert_eq!(event["code"], "llm_request");
        assert_eq!(event["timestamp"], "1795313295.745");
        // 5.500000001 credits of 0.1 cents.
        assert_eq!(event["precise_total_amount_cents"], "0.5500000001");
        assert_eq!(event["properties"]["model"], "gpt-4o-mini");
        assert_eq!(event["properties"]["cost"], "1.234000000001");
        assert_eq!(event["properties"]["input"], 1500);
        assert!(event["properties"].get("request_id").is_none());
        assert_eq!(base("http://lago/"), "http://lago/api/v1");
        assert_eq!(base("http://lago/api/v1"), "http://lago/api/v1");
    }

    #[test]
    fn duplicates() {
        for (status, body, expected) in [
            (422, r#"{"status":422,"code":"validation_errors","error_details":{"transaction_id":["value_already_exist"]}}"#, true),
            (422, r#"{"error_details":{"0":{"transaction_id":["value_already_exist"]}}}"#, true),
            (422, r#"{"error_details":{"code":["value_already_exist"]}}"#, false),
            (422, r#"{"error_details":{"transaction_id":["value_is_mandatory"]}}"#, false),
            (400, r#"{"error_details":{"transaction_id":["value_already_exist"]}}"#, false),
            (422, "value_already_exist", false),
            (422, r#"{"error_details":null}"#, false),
        ] {
            assert_eq!(is_duplicate(status, body), expected, "{body}");
        }
    }
}
