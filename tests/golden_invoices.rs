//! Golden invoices: what providers report, in disjoint buckets, at a cost computed by hand. Data: `data/golden_invoices.toml`.

// What a test cannot go on without fails it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use std::collections::BTreeMap;
use weir::config::prices;
use weir::engine::dialect::Endpoint;
use weir::engine::meter::{StreamMeter, Tally, Watch, whole};
use weir::engine::provider::Kind;
use weir::engine::tokens::family;
use weir::engine::usage::Bucket;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Invoices {
    invoice: Vec<Invoice>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Invoice {
    name: String,
    source: String,
    path: String,
    kind: String,
    price: String,
    body: Option<String>,
    stream: Option<String>,
    buckets: BTreeMap<String, u64>,
    sum: String,
    cost: String,
}

/// Pieces a stream arrives in: byte by byte, sizes that cut events in the middle, whole.
const CUTS: [usize; 5] = [1, 7, 61, 512, usize::MAX];

#[test]
fn every_invoice_is_exact() {
    let (prices, problems) = prices::parse("golden_prices.toml", include_str!("data/golden_prices.toml"));
    assert!(problems.is_empty(), "{problems:?}");
    let invoices: Invoices = toml::from_str(include_str!("data/golden_invoices.toml")).unwrap();
    assert!(invoices.invoice.len() >= 40);
    let mut wrong = Vec::new();
    for invoice in &invoices.invoice {
        assert!(!invoice.source.is_empty() && !invoice.sum.is_empty(), "{}", invoice.name);
        let price = &prices[invoice.price.as_str()];
        for tally in tallies(invoice) {
            let seen: BTreeMap<String, u64> = tally
                .usage
                .iter()
                .filter(|(bucket, count)| *count > 0 && *bucket != Bucket::Requests)
                .map(|(bucket, count)| (bucket.name().to_owned(), count))
                .collect();
            let cost = price.cost(&tally.usage, tally.service_tier.as_deref(), tally.reported_cost).to_string();
            let right = seen == invoice.buckets && cost == invoice.cost && tally.usage.of(Bucket::Requests) == 1;
            let covered = price.covers(&tally.usage, tally.service_tier.as_deref(), tally.reported_cost);
            if !right || !covered {
                let (buckets, expected) = (&invoice.buckets, &invoice.cost);
                wrong.push(format!("{}: {seen:?} at {cost}, not {buckets:?} at {expected} (priced whole: {covered})", invoice.name));
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// A whole answer once; a stream once for each way to cut it.
fn tallies(invoice: &Invoice) -> Vec<Tally> {
    let watch = Watch {
        endpoint: Endpoint::of_path(&invoice.path).expect("a known path"),
        kind: Kind::of_name(&invoice.kind).expect("a known kind"),
        family: family("gpt-4o"),
        strip_usage: false,
    };
    match (&invoice.body, &invoice.stream) {
        (Some(body), None) => vec![whole(&watch, body.as_bytes()).expect("an answer").0],
        (None, Some(stream)) => CUTS.iter().map(|size| streamed(watch, stream.as_bytes(), *size)).collect(),
        _ => panic!("{}: either a body or a stream", invoice.name),
    }
}

fn streamed(watch: Watch, stream: &[u8], size: usize) -> Tally {
    let mut meter = StreamMeter::new(watch);
    let mut passed = Vec::new();
    for piece in stream.chunks(size.min(stream.len())) {
        meter.feed(Bytes::copy_from_slice(piece), &mut passed);
    }
    meter.flush(&mut passed);
    assert_eq!(passed.concat(), stream, "every byte goes on to the client");
    assert!(meter.ended() && meter.error().is_none());
    meter.finish().0
}
