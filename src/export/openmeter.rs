//! OpenMeter's events: CloudEvents 1.0 in JSON, `POST /api/v1/events` (<https://openmeter.io/docs/concepts/usage-events>).
//!
//! A repeat has the same `id` and `source`, by which OpenMeter drops it. The subject is the account, the data is the row.

use super::{Destination, Letter, ended_ms};
use crate::store::calendar;
use serde_json::{Value, json};

/// Every event's `source`.
const SOURCE: &str = "weir";

pub(super) fn request(client: &reqwest::Client, to: &Destination, letters: &[Letter]) -> reqwest::RequestBuilder {
    let request = client.post(format!("{}/events", base(&to.url)));
    // One event goes in the plain form, which every version takes; several in the CloudEvents batch form.
    let (kind, body) = match letters {
        [letter] => ("application/cloudevents+json", event(to, letter)),
        letters => ("application/cloudevents-batch+json", letters.iter().map(|letter| event(to, letter)).collect()),
    };
    request.header("content-type", kind).body(body.to_string())
}

/// The API's base is accepted with or without its `/api/v1`.
fn base(url: &str) -> String {
    let url = url.trim_end_matches('/');
    if url.ends_with("/api/v1") { url.to_owned() } else { format!("{url}/api/v1") }
}

fn event(to: &Destination, letter: &Letter) -> Value {
    let row = &letter.row;
    json!({
        "specversion": "1.0",
        "id": row.facts.request_id,
        "source": SOURCE,
        "type": to.event,
        "subject": &*row.facts.account,
        "time": calendar::rfc3339(ended_ms(row)),
        "data": row,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::money::Usd;
    use crate::store::ledger::Sink;
    use crate::store::ledger::row::tests::full_row;

    #[test]
    fn an_event_is_the_row() {
        let to = Destination { sink: Sink::OpenMeter, url: "http://om".into(), event: "request".into(), credit: Usd::ONE };
        let event = event(&to, &Letter { seq: 1, ledger_id: 1, row: full_row("01J") });
        assert_eq!((event["specversion"].as_str(), event["id"].as_str()), (Some("1.0"), Some("01J")));
        assert_eq!((event["subject"].as_str(), event["type"].as_str()), (Some("acme"), Some("request")));
        assert_eq!(event["time"], "2026-11-22T02:08:15.745Z");
        assert_eq!((event["data"]["output"].as_u64(), event["data"]["charge"].as_str()), (Some(1507), Some("5.500000001")));
    }
}
