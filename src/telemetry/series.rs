//! What is counted of each `(model, provider)` pair, in one block of memory, and how Prometheus collects it.
//!
//! The `prometheus` crate keeps a description, labels and an allocation for each counter: with some sixteen of them a pair, ten
//! thousand pairs took 90 MB, and a request touched about forty cache lines where it touches ten here.

use crate::engine::dialect::Endpoint;
use crate::engine::money::Usd;
use crate::engine::usage::{Bucket, Source, Usage};
use prometheus::core::{Atomic, AtomicF64, Collector, Desc};
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Bounds of buckets in seconds, from what a gateway adds to what a reasoning model takes.
const SECONDS: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];
/// Bounds for weir's own time.
const OVERHEAD_SECONDS: &[f64] = &[0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 1.0];
/// The most bounds a histogram has here.
const BOUNDS_MAX: usize = SECONDS.len();
/// Statuses with a count of their own; others are counted together, as `other`.
const STATUSES: [u16; 18] = [200, 400, 401, 402, 403, 404, 408, 409, 413, 415, 422, 429, 499, 500, 502, 503, 504, 529];
/// The sources of a count of tokens, by number.
const SOURCES: [Source; 3] = [Source::Upstream, Source::Counted, Source::Mixed];
/// Who pays, by number.
const PAYERS: [&str; 2] = ["platform", "own"];

/// Requests of each endpoint that did not end with 200.
type Failed = [[AtomicU64; STATUSES.len()]; Endpoint::ALL.len()];

/// How long something took. Observing is two atomic additions, and a scrape reads them one after the other: a sum may know of an
/// observation more or less than its buckets.
#[derive(Debug)]
pub struct Durations {
    bounds: &'static [f64],
    /// Up to each bound, and above the last.
    counts: [AtomicU64; BOUNDS_MAX + 1],
    sum_seconds: AtomicF64,
}

impl Durations {
    fn new(bounds: &'static [f64]) -> Durations {
        Durations { bounds, counts: Default::default(), sum_seconds: AtomicF64::new(0.0) }
    }

    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self.bounds.iter().position(|bound| seconds <= *bound).unwrap_or(self.bounds.len());
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum_seconds.inc_by(seconds);
    }

    fn collect(&self) -> proto::Histogram {
        let mut count = 0;
        let mut buckets = Vec::with_capacity(self.bounds.len());
        for (bound, counted) in self.bounds.iter().zip(&self.counts) {
            count += counted.load(Relaxed);
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(count);
            buckets.push(bucket);
        }
        let mut histogram = proto::Histogram::default();
        histogram.set_sample_count(count + self.counts[self.bounds.len()].load(Relaxed));
        histogram.set_sample_sum(self.sum_seconds.get());
        histogram.set_bucket(buckets);
        histogram
    }
}

/// The counts of one `(model, provider)` pair.
pub struct Series {
    pub(super) model: Arc<str>,
    pub(super) provider: Arc<str>,
    /// Requests that ended with 200, by endpoint.
    ok: [AtomicU64; Endpoint::ALL.len()],
    /// The others, once there is one.
    failed: OnceLock<Box<Failed>>,
    /// In the buckets' own units: audio in milliseconds.
    tokens: [[AtomicU64; SOURCES.len()]; Bucket::ALL.len()],
    /// By payer, once there was a cost, be it nothing.
    cost: [OnceLock<AtomicF64>; PAYERS.len()],
    /// Its provider's count of attempts that committed.
    pub(super) attempts_ok: OnceLock<prometheus::IntCounter>,
    /// Headers in to first event out.
    pub first_event: Durations,
    /// Headers in to the end of the answer.
    pub request: Durations,
    /// weir's own share of the time to the first byte.
    pub overhead: Durations,
    /// Between two reads of a stream.
    pub between_events: Durations,
}

impl std::fmt::Debug for Series {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Series({}, {})", self.model, self.provider)
    }
}

impl Series {
    fn new(model: Arc<str>, provider: Arc<str>) -> Series {
        Series {
            model,
            provider,
            ok: Default::default(),
            failed: OnceLock::new(),
            tokens: Default::default(),
            cost: Default::default(),
            attempts_ok: OnceLock::new(),
            first_event: Durations::new(SECONDS),
            request: Durations::new(SECONDS),
            overhead: Durations::new(OVERHEAD_SECONDS),
            between_events: Durations::new(SECONDS),
        }
    }

    /// Counts an answered request.
    pub fn answered(&self, endpoint: Endpoint, status: u16) {
        let count = match STATUSES.iter().position(|known| *known == status) {
            Some(0) => &self.ok[endpoint as usize],
            // The place of 200 is free there: that of all others.
            place => &self.failed.get_or_init(Box::default)[endpoint as usize][place.unwrap_or(0)],
        };
        count.fetch_add(1, Relaxed);
    }

    /// Counts what was used.
    pub fn used(&self, usage: &Usage, source: Source) {
        for (bucket, count) in usage.iter().filter(|(_, count)| *count > 0) {
            self.tokens[bucket as usize][source as usize].fetch_add(count, Relaxed);
        }
    }

    /// Counts what it cost. Prometheus counts in floats; the account does not.
    pub fn cost(&self, cost: Usd, own_key: bool) {
        self.cost[usize::from(own_key)].get_or_init(|| AtomicF64::new(0.0)).inc_by(cost.0 as f64 / 1e12);
    }

    fn labels(&self) -> [(&'static str, &str); 2] {
        [("model", &self.model), ("provider", &self.provider)]
    }
}

/// Model and provider.
type Pair = (Arc<str>, Arc<str>);

/// All pairs there were. Cheap to clone.
#[derive(Clone, Default)]
pub struct AllSeries(Arc<papaya::HashMap<Pair, Arc<Series>>>);

impl AllSeries {
    /// The one of a pair.
    pub fn of(&self, model: Arc<str>, provider: Arc<str>) -> Arc<Series> {
        let series = self.0.pin();
        let pair = (model, provider);
        match series.get(&pair) {
            Some(found) => found.clone(),
            None => {
                let made = Arc::new(Series::new(pair.0.clone(), pair.1.clone()));
                series.get_or_insert(pair, made).clone()
            }
        }
    }

    /// As a collector for a registry.
    pub fn collector(&self) -> Result<Box<dyn Collector>, prometheus::Error> {
        let descriptions: Result<Vec<Desc>, prometheus::Error> = FAMILIES
            .iter()
            .map(|family| {
                let labels = family.labels.iter().map(|label| label.to_string()).collect();
                Desc::new(family.name.into(), family.help.into(), labels, HashMap::new())
            })
            .collect();
        Ok(Box::new(SeriesCollector { all: self.clone(), descriptions: descriptions? }))
    }
}

/// One metric of all pairs.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
    collect: fn(&Series, &mut Vec<Metric>),
}

const FAMILIES: [Family; 7] = [
    Family {
        name: "weir_requests_total",
        help: "Requests by path, model, provider and status",
        kind: MetricType::COUNTER,
        labels: &["model", "path", "provider", "status"],
        collect: requests,
    },
    Family {
        name: "weir_tokens_total",
        help: "Tokens (and other units) by kind and source",
        kind: MetricType::COUNTER,
        labels: &["kind", "model", "provider", "source"],
        collect: tokens,
    },
    Family {
        name: "weir_cost_usd_total",
        help: "What providers ask, in US dollars",
        kind: MetricType::COUNTER,
        labels: &["model", "payer", "provider"],
        collect: costs,
    },
    Family {
        name: "weir_first_event_seconds",
        help: "Request headers in to first event out",
        kind: MetricType::HISTOGRAM,
        labels: &["model", "provider"],
        collect: |series, out| durations(series, &series.first_event, out),
    },
    Family {
        name: "weir_request_seconds",
        help: "Request headers in to the end of the answer",
        kind: MetricType::HISTOGRAM,
        labels: &["model", "provider"],
        collect: |series, out| durations(series, &series.request, out),
    },
    Family {
        name: "weir_overhead_seconds",
        help: "Time weir itself added: headers in to first byte out, less upstream wait",
        kind: MetricType::HISTOGRAM,
        labels: &["model", "provider"],
        collect: |series, out| durations(series, &series.overhead, out),
    },
    Family {
        name: "weir_between_events_seconds",
        help: "Between two reads of a stream",
        kind: MetricType::HISTOGRAM,
        labels: &["model", "provider"],
        collect: |series, out| durations(series, &series.between_events, out),
    },
];

struct SeriesCollector {
    all: AllSeries,
    descriptions: Vec<Desc>,
}

impl Collector for SeriesCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let all = self.all.0.pin();
        FAMILIES
            .iter()
            .map(|family| {
                let mut metrics = Vec::new();
                all.values().for_each(|series| (family.collect)(series, &mut metrics));
                let mut collected = MetricFamily::default();
                collected.set_name(family.name.into());
                collected.set_help(family.help.into());
                collected.set_field_type(family.kind);
                collected.set_metric(metrics);
                collected
            })
            .collect()
    }
}

fn requests(series: &Series, out: &mut Vec<Metric>) {
    for endpoint in Endpoint::ALL {
        let failed = series.failed.get().map(|failed| &failed[endpoint as usize]);
        let counts = std::iter::once((Some(0), &series.ok[endpoint as usize]))
            .chain(failed.into_iter().flatten().enumerate().map(|(place, count)| (Some(place).filter(|place| *place > 0), count)));
        for (place, count) in counts {
            let status = place.map_or_else(|| "other".to_string(), |place| STATUSES[place].to_string());
            if let count @ 1.. = count.load(Relaxed) {
                out.push(counter(series, &[("path", endpoint.path()), ("status", &status)], count as f64));
            }
        }
    }
}

fn tokens(series: &Series, out: &mut Vec<Metric>) {
    for bucket in Bucket::ALL {
        // Counted in whole milliseconds, which add up exactly, and shown in the unit its name says.
        let in_one = if bucket == Bucket::Milliseconds { 1000.0 } else { 1.0 };
        for source in SOURCES {
            if let count @ 1.. = series.tokens[bucket as usize][source as usize].load(Relaxed) {
                out.push(counter(series, &[("kind", bucket.name()), ("source", source.name())], count as f64 / in_one));
            }
        }
    }
}

fn costs(series: &Series, out: &mut Vec<Metric>) {
    for (payer, cost) in PAYERS.into_iter().zip(&series.cost) {
        if let Some(cost) = cost.get() {
            out.push(counter(series, &[("payer", payer)], cost.get()));
        }
    }
}

fn counter(series: &Series, labels: &[(&'static str, &str)], value: f64) -> Metric {
    let mut counter = proto::Counter::default();
    counter.set_value(value);
    let mut metric = Metric::from_label(label_pairs(series, labels));
    metric.set_counter(counter);
    metric
}

fn durations(series: &Series, durations: &Durations, out: &mut Vec<Metric>) {
    let mut metric = Metric::from_label(label_pairs(series, &[]));
    metric.set_histogram(durations.collect());
    out.push(metric);
}

/// In the order of their names, as a registry has them.
fn label_pairs(series: &Series, more: &[(&'static str, &str)]) -> Vec<LabelPair> {
    let mut pairs: Vec<LabelPair> = series
        .labels()
        .iter()
        .chain(more)
        .map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_string());
            pair.set_value(value.to_string());
            pair
        })
        .collect();
    pairs.sort_by(|a, b| a.name().cmp(b.name()));
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::{Encoder, Registry, TextEncoder};

    fn page(all: &AllSeries) -> String {
        let registry = Registry::new();
        registry.register(all.collector().unwrap()).unwrap();
        let mut page = Vec::new();
        TextEncoder::new().encode(&registry.gather(), &mut page).unwrap();
        String::from_utf8(page).unwrap()
    }

    #[test]
    fn sources_and_statuses_are_in_their_places() {
        for (place, source) in SOURCES.into_iter().enumerate() {
            assert_eq!(source as usize, place);
        }
        for (place, bucket) in Bucket::ALL.into_iter().enumerate() {
            assert_eq!(bucket as usize, place);
        }
        for (place, endpoint) in Endpoint::ALL.into_iter().enumerate() {
            assert_eq!(endpoint as usize, place);
        }
        assert_eq!(STATUSES[0], 200);
    }

    #[test]
    fn a_pair_is_shown_as_it_was_counted() {
        let all = AllSeries::default();
        let series = all.of("m".into(), "p".into());
        series.answered(Endpoint::ChatCompletions, 200);
        series.answered(Endpoint::ChatCompletions, 200);
        series.answered(Endpoint::Messages, 529);
        series.answered(Endpoint::Messages, 418);
        let mut usage = Usage::default();
        usage.set(Bucket::Input, 7);
        usage.set(Bucket::Milliseconds, 1_250);
        series.used(&usage, Source::Counted);
        series.cost(Usd(2_500_000_000_000), true);
        for ms in [9, 10, 11, 1_000_000] {
            series.request.observe(Duration::from_millis(ms));
        }
        // The same one again.
        all.of("m".into(), "p".into()).answered(Endpoint::Embeddings, 200);
        let page = page(&all);
        for line in [
            r#"weir_requests_total{model="m",path="/v1/chat/completions",provider="p",status="200"} 2"#,
            r#"weir_requests_total{model="m",path="/v1/embeddings",provider="p",status="200"} 1"#,
            r#"weir_requests_total{model="m",path="/v1/messages",provider="p",status="529"} 1"#,
            r#"weir_requests_total{model="m",path="/v1/messages",provider="p",status="other"} 1"#,
            r#"weir_tokens_total{kind="input",model="m",provider="p",source="counted"} 7"#,
            r#"weir_tokens_total{kind="seconds",model="m",provider="p",source="counted"} 1.25"#,
            r#"weir_cost_usd_total{model="m",payer="own",provider="p"} 2.5"#,
            r#"weir_request_seconds_bucket{model="m",provider="p",le="0.01"} 2"#,
            r#"weir_request_seconds_bucket{model="m",provider="p",le="0.025"} 3"#,
            r#"weir_request_seconds_bucket{model="m",provider="p",le="900"} 3"#,
            r#"weir_request_seconds_bucket{model="m",provider="p",le="+Inf"} 4"#,
            r#"weir_request_seconds_count{model="m",provider="p"} 4"#,
            r#"weir_request_seconds_sum{model="m",provider="p"} 1000.03"#,
            r#"weir_overhead_seconds_bucket{model="m",provider="p",le="0.00005"} 0"#,
            "# TYPE weir_requests_total counter",
            "# TYPE weir_between_events_seconds histogram",
        ] {
            assert!(page.lines().any(|shown| shown == line), "{line}\n{page}");
        }
        assert_eq!(page.lines().filter(|line| line.starts_with("weir_requests_total")).count(), 4, "{page}");
        assert_eq!(page.lines().filter(|line| line.starts_with("weir_tokens_total")).count(), 2, "{page}");
    }
}
