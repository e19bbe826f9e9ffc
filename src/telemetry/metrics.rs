//! Prometheus metrics. Labels come from the configuration, never from a request: a model nobody configured is `other`.
//!
//! Each `(model, provider)` pair has one [`Series`] whose counters and histograms are resolved when the pair is first used;
//! after that an observation is an atomic add, not a look-up by label.

use crate::engine::catalog::Target;
use crate::engine::dialect::Endpoint;
use crate::engine::money::{Credits, Usd};
use crate::engine::usage::{Bucket, Source, Usage};
use prometheus::{
    Counter, CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::sync::{Arc, OnceLock};

/// Buckets in seconds, from what a gateway adds to what a reasoning model takes.
const SECONDS: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];
/// Buckets for weir's own time.
const OVERHEAD_SECONDS: &[f64] = &[0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 1.0];
/// Statuses with a counter slot of their own; others fall into the last slot, `other`.
const STATUSES: [u16; 18] = [200, 400, 401, 402, 403, 404, 408, 409, 413, 415, 422, 429, 499, 500, 502, 503, 504, 529];

/// All of weir's metrics.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    /// By provider and outcome class.
    pub attempts: IntCounterVec,
    /// By reason.
    pub refusals: IntCounterVec,
    tokens: IntCounterVec,
    cost: CounterVec,
    charge: CounterVec,
    first_event: HistogramVec,
    request_seconds: HistogramVec,
    overhead: HistogramVec,
    between_events: HistogramVec,
    /// Streams that are being passed on.
    pub streams_active: IntGauge,
    /// Requests in service.
    pub requests_in_service: IntGauge,
    /// Requests that wait for a place.
    pub requests_queued: IntGauge,
    /// Bytes of request bodies held.
    pub body_bytes_in_flight: IntGauge,
    /// 0 cooling, 1 probing, 2 healthy.
    pub provider_state: IntGaugeVec,
    /// By result: `ok`, `rejected`.
    pub config_reloads: IntCounterVec,
    /// When the snapshot in use was loaded.
    pub config_loaded: Gauge,
    /// The files as they are now do not check (1): an older snapshot is in use.
    pub config_rejected: IntGauge,
    /// Rows not yet in the store.
    pub ledger_pending: IntGauge,
    /// The journal cannot be written (1): admission has stopped.
    pub ledger_stuck: IntGauge,
    /// Rows not yet exported.
    pub export_pending: IntGauge,
    /// Age of the oldest row not yet exported.
    pub export_oldest: Gauge,
    series: papaya::HashMap<(Arc<str>, Arc<str>), Arc<Series>>,
}

/// The handles of one `(model, provider)` pair.
pub struct Series {
    model: Arc<str>,
    provider: Arc<str>,
    requests: [[OnceLock<IntCounter>; STATUSES.len() + 1]; Endpoint::ALL.len()],
    tokens: [[OnceLock<IntCounter>; 3]; Bucket::ALL.len()],
    cost: [OnceLock<Counter>; 2],
    attempts_ok: OnceLock<IntCounter>,
    /// Headers in to first event out.
    pub first_event: Histogram,
    /// Headers in to the end of the answer.
    pub request_seconds: Histogram,
    /// weir's own share of the time to the first byte.
    pub overhead: Histogram,
    /// Between two reads of a stream.
    pub between_events: Histogram,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl std::fmt::Debug for Series {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Series({}, {})", self.model, self.provider)
    }
}

impl Metrics {
    /// Registers everything. Fails only if two metrics had one name.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok(vec)
        };
        let amounts = |name: &str, help: &str, labels: &[&str]| -> Result<CounterVec, prometheus::Error> {
            let vec = CounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok(vec)
        };
        let histograms = |name: &str, help: &str, buckets: &[f64]| -> Result<HistogramVec, prometheus::Error> {
            let vec = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), &["model", "provider"])?;
            registry.register(Box::new(vec.clone()))?;
            Ok(vec)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let seconds = |name: &str, help: &str| -> Result<Gauge, prometheus::Error> {
            let gauge = Gauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let provider_state = IntGaugeVec::new(Opts::new("weir_provider_state", "0 cooling, 1 probing, 2 healthy"), &["provider"])?;
        registry.register(Box::new(provider_state.clone()))?;
        let build_info = GaugeVec::new(Opts::new("weir_build_info", "Always 1; the labels tell the build"), &["version"])?;
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        registry.register(Box::new(build_info))?;
        Ok(Metrics {
            requests: counters(
                "weir_requests_total",
                "Requests by path, model, provider and status",
                &["path", "model", "provider", "status"],
            )?,
            attempts: counters("weir_attempts_total", "Attempts by provider and outcome", &["provider", "outcome"])?,
            refusals: counters("weir_refusals_total", "Requests refused by weir itself, by reason", &["reason"])?,
            tokens: counters("weir_tokens_total", "Tokens (and other units) by kind and source", &["model", "provider", "kind", "source"])?,
            cost: amounts("weir_cost_usd_total", "What providers ask, in US dollars", &["model", "provider", "payer"])?,
            charge: amounts("weir_charge_credits_total", "What callers were charged, in credits", &["level", "tier"])?,
            first_event: histograms("weir_first_event_seconds", "Request headers in to first event out", SECONDS)?,
            request_seconds: histograms("weir_request_seconds", "Request headers in to the end of the answer", SECONDS)?,
            overhead: histograms(
                "weir_overhead_seconds",
                "Time weir itself added: headers in to first byte out, less upstream wait",
                OVERHEAD_SECONDS,
            )?,
            between_events: histograms("weir_between_events_seconds", "Between two reads of a stream", SECONDS)?,
            streams_active: gauge("weir_streams_active", "Streams being passed on")?,
            requests_in_service: gauge("weir_requests_in_service", "Requests in service")?,
            requests_queued: gauge("weir_requests_queued", "Requests that wait for a place")?,
            body_bytes_in_flight: gauge("weir_body_bytes_in_flight", "Bytes of request bodies held")?,
            provider_state,
            config_reloads: counters("weir_config_reloads_total", "Reloads of routing and prices by result", &["result"])?,
            config_loaded: seconds("weir_config_loaded_timestamp_seconds", "When the snapshot in use was loaded")?,
            config_rejected: gauge("weir_config_rejected", "1: the files as they are now do not check, an older snapshot is in use")?,
            ledger_pending: gauge("weir_ledger_pending", "Rows in the journal that the store does not have yet")?,
            ledger_stuck: gauge("weir_ledger_stuck", "1: the journal cannot be written and admission has stopped")?,
            export_pending: gauge("weir_export_pending", "Rows waiting for export")?,
            export_oldest: seconds("weir_export_oldest_seconds", "Age of the oldest row waiting for export")?,
            series: papaya::HashMap::new(),
            registry,
        })
    }

    /// The handles of a target's pair.
    pub fn of_target(&self, target: &Target) -> Arc<Series> {
        thread_local! {
            static OTHER: Arc<str> = Arc::from("other");
        }
        let model = if target.configured { target.model.clone() } else { OTHER.with(Arc::clone) };
        self.of(model, target.provider.name.clone())
    }

    /// The handles of requests that reached no target.
    pub fn of_none(&self) -> Arc<Series> {
        thread_local! {
            static NONE: (Arc<str>, Arc<str>) = (Arc::from("other"), Arc::from("none"));
        }
        NONE.with(|(model, provider)| self.of(model.clone(), provider.clone()))
    }

    fn of(&self, model: Arc<str>, provider: Arc<str>) -> Arc<Series> {
        let series = self.series.pin();
        let key = (model, provider);
        if let Some(found) = series.get(&key) {
            return found.clone();
        }
        let labels = [key.0.as_ref(), key.1.as_ref()];
        let made = Arc::new(Series {
            first_event: self.first_event.with_label_values(&labels),
            request_seconds: self.request_seconds.with_label_values(&labels),
            overhead: self.overhead.with_label_values(&labels),
            between_events: self.between_events.with_label_values(&labels),
            model: key.0.clone(),
            provider: key.1.clone(),
            requests: std::array::from_fn(|_| std::array::from_fn(|_| OnceLock::new())),
            tokens: std::array::from_fn(|_| std::array::from_fn(|_| OnceLock::new())),
            cost: [const { OnceLock::new() }; 2],
            attempts_ok: OnceLock::new(),
        });
        series.get_or_insert(key, made).clone()
    }

    /// Counts an answered request.
    pub fn request(&self, series: &Series, endpoint: Endpoint, status: u16) {
        let slot = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len());
        series.requests[endpoint as usize][slot]
            .get_or_init(|| {
                let text = STATUSES.get(slot).map_or_else(|| "other".to_string(), u16::to_string);
                self.requests.with_label_values(&[endpoint.path(), &series.model, &series.provider, &text])
            })
            .inc();
    }

    /// Counts an attempt that committed.
    pub fn attempt_ok(&self, series: &Series) {
        series.attempts_ok.get_or_init(|| self.attempts.with_label_values(&[&series.provider, "ok"])).inc();
    }

    /// Counts what was used.
    pub fn used(&self, series: &Series, usage: &Usage, source: Source) {
        for (bucket, count) in usage.iter().filter(|(_, count)| *count > 0) {
            series.tokens[bucket as usize][source as usize]
                .get_or_init(|| self.tokens.with_label_values(&[&series.model, &series.provider, bucket.name(), source.name()]))
                .inc_by(count);
        }
    }

    /// Counts what it cost. Prometheus counts in floats; the account does not.
    pub fn cost(&self, series: &Series, cost: Usd, own_key: bool) {
        series.cost[usize::from(own_key)]
            .get_or_init(|| {
                let payer = if own_key { "own" } else { "platform" };
                self.cost.with_label_values(&[&series.model, &series.provider, payer])
            })
            .inc_by(cost.0 as f64 / 1e12);
    }

    /// Counts what the caller was charged.
    pub fn charge(&self, level: &str, tier: &str, charge: Credits) {
        if charge.0 > 0 {
            self.charge.with_label_values(&[level, tier]).inc_by(charge.0 as f64 / 1e9);
        }
    }

    /// The page that Prometheus scrapes.
    pub fn page(&self) -> Vec<u8> {
        let mut page = Vec::with_capacity(16 << 10);
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut page) {
            super::log_lines::event(super::log_lines::Severity::Error, "metrics page", &error.to_string());
        }
        page
    }
}
