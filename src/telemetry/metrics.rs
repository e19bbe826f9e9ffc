//! Prometheus metrics. Labels come from the configuration, never from a request: a model nobody configured is `other`.
//!
//! Each `(model, provider)` pair has a [`Series`] of its own, where an observation is an atomic addition, not a look-up by label.

use super::series::{AllSeries, Series};
use crate::engine::catalog::Target;
use crate::engine::money::Credits;
use prometheus::{CounterVec, Encoder, Gauge, GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use std::sync::Arc;

/// All of weir's metrics.
pub struct Metrics {
    registry: Registry,
    /// By provider and outcome class.
    pub attempts: IntCounterVec,
    /// By reason.
    pub refusals: IntCounterVec,
    charge: CounterVec,
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
    /// Rows that a billing system refused for good, by sink.
    pub export_dead: IntGaugeVec,
    series: AllSeries,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
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
        let series = AllSeries::default();
        registry.register(series.collector()?)?;
        let provider_state = IntGaugeVec::new(Opts::new("weir_provider_state", "0 cooling, 1 probing, 2 healthy"), &["provider"])?;
        registry.register(Box::new(provider_state.clone()))?;
        let export_dead =
            IntGaugeVec::new(Opts::new("weir_export_dead", "Rows refused for good; `weir export revive` sends them again"), &["sink"])?;
        registry.register(Box::new(export_dead.clone()))?;
        let build_info = GaugeVec::new(Opts::new("weir_build_info", "Always 1; the labels tell the build"), &["version"])?;
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        registry.register(Box::new(build_info))?;
        Ok(Metrics {
            attempts: counters("weir_attempts_total", "Attempts by provider and outcome", &["provider", "outcome"])?,
            refusals: counters("weir_refusals_total", "Requests refused by weir itself, by reason", &["reason"])?,
            charge: amounts("weir_charge_credits_total", "What callers were charged, in credits", &["level", "tier"])?,
            streams_active: gauge("weir_streams_active", "Streams being passed on")?,
            requests_in_service: gauge("weir_requests_in_service", "Requests in service")?,
            requests_queued: gauge("weir_requests_queued", "Requests that wait for a place")?,
            body_bytes_in_flight: gauge("weir_body_bytes_in_flight", "Bytes of request bodies and of whole answers held")?,
            provider_state,
            config_reloads: counters("weir_config_reloads_total", "Reloads of routing and prices by result", &["result"])?,
            config_loaded: seconds("weir_config_loaded_timestamp_seconds", "When the snapshot in use was loaded")?,
            config_rejected: gauge("weir_config_rejected", "1: the files as they are now do not check, an older snapshot is in use")?,
            ledger_pending: gauge("weir_ledger_pending", "Rows in the journal that the store does not have yet")?,
            ledger_stuck: gauge("weir_ledger_stuck", "1: the journal cannot be written and admission has stopped")?,
            export_pending: gauge("weir_export_pending", "Rows waiting for export")?,
            export_oldest: seconds("weir_export_oldest_seconds", "Age of the oldest row waiting for export")?,
            export_dead,
            series,
            registry,
        })
    }

    /// The series of a target's pair.
    pub fn of_target(&self, target: &Target) -> Arc<Series> {
        thread_local! {
            static OTHER: Arc<str> = Arc::from("other");
        }
        let model = if target.configured { target.model.clone() } else { OTHER.with(Arc::clone) };
        self.series.of(model, target.provider.name.clone())
    }

    /// The series of requests that reached no target.
    pub fn of_none(&self) -> Arc<Series> {
        thread_local! {
            static NONE: (Arc<str>, Arc<str>) = (Arc::from("other"), Arc::from("none"));
        }
        NONE.with(|(model, provider)| self.series.of(model.clone(), provider.clone()))
    }

    /// Counts an attempt that committed.
    pub fn attempt_ok(&self, series: &Series) {
        series.attempts_ok.get_or_init(|| self.attempts.with_label_values(&[&series.provider, "ok"])).inc();
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
