//! Rows from other proxies: of requests this process admitted, and of those it did not, because it was away or has been restarted.

use super::{Admissions, Pending};
use crate::engine::budget::{MonthIndex, Terms};
use crate::engine::catalog::Target;
use crate::engine::dialect::Endpoint;
use crate::engine::id::RequestId;
use crate::engine::meter::Tally;
use crate::engine::money::{Credits, Usd};
use crate::engine::usage::{Bucket, Source};
use crate::proxy::settle::{Current, Ending};
use crate::store::ledger::{End, Facts, Outcome};
use crate::store::usage;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::iter;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The status of a request that its proxy never settled.
const SILENT: u16 = 504;

/// A row, as `lua-compat` writes it.
#[derive(Deserialize)]
struct Row {
    request_id: String,
    started_ms: u64,
    account: String,
    key_id: String,
    asked_model: String,
    path: String,
    level: Option<String>,
    tier: Option<String>,
    model: Option<String>,
    price_id: Option<String>,
    cost: String,
    charge: String,
    duration_ms: u64,
    provider: Option<String>,
    upstream_model: Option<String>,
    byok: bool,
    attempts: u32,
    was_fallback: bool,
    status: u16,
    end: String,
    first_event_ms: Option<u64>,
    usage: HashMap<String, u64>,
    usage_source: String,
    service_tier: Option<String>,
    reported_cost: Option<String>,
}

/// What became of a row.
enum Taken {
    /// It is in the ledger now.
    Now,
    /// There was one.
    Before,
    /// It cannot be one, however often it comes.
    Never,
    /// It may come again.
    NotNow,
}

impl Taken {
    fn answer(self) -> (u16, Value) {
        match self {
            Taken::Now => (200, json!({ "settled": true })),
            Taken::Before => (200, json!({ "settled": false })),
            Taken::Never => (400, json!({ "error": "not a row" })),
            Taken::NotNow => (503, json!({ "error": "the ledger takes no more" })),
        }
    }
}

impl Admissions {
    /// Takes a row: once for each request id, however often it is sent.
    pub(super) async fn settle(&self, body: &[u8]) -> (u16, Value) {
        let Ok(row) = serde_json::from_slice::<Row>(body) else { return Taken::Never.answer() };
        let pending = self.open.lock().take(&row.request_id);
        let taken = match pending {
            Some(pending) => self.close(&row, pending).await,
            None => self.record(&row).await,
        };
        taken.answer()
    }

    /// The end of a request that was admitted here.
    async fn close(&self, row: &Row, mut pending: Pending) -> Taken {
        // The other proxy plans by what it has seen of the targets, and may have asked one that was not in the plan here.
        let target = pending.target(row.provider.as_deref(), row.upstream_model.as_deref(), row.byok).or_else(|| self.target(row));
        let Some(open) = pending.settlement.open() else { return Taken::Before };
        if open.journal().is_err() {
            self.open.lock().insert(row.request_id.as_str().into(), pending, Instant::now());
            return Taken::NotNow;
        }
        open.status = row.status;
        open.first_event_ms = row.first_event_ms;
        open.series = target.as_ref().map(|target| self.gateway.metrics.of_target(target));
        if let (Some(series), Some(first_event_ms)) = (&open.series, row.first_event_ms) {
            series.first_event.observe(Duration::from_millis(first_event_ms));
        }
        open.current = target.map(|target| Current { target, own_key: row.byok, attempts: row.attempts, was_fallback: row.was_fallback });
        // Without a price nobody answered: what the caller got was a refusal.
        match (&row.price_id, row.end()) {
            (None, _) => pending.settlement.refuse(End::Failed, row.status).await,
            (_, End::Complete) => pending.settlement.settle_known(Ending::Complete, row.tally()).await,
            (_, End::Cancelled) => pending.settlement.settle_known(Ending::Cancelled, row.tally()).await,
            (_, End::Failed | End::Refused) => pending.settlement.settle_known(Ending::Failed, row.tally()).await,
        }
        Taken::Now
    }

    /// Takes a row nobody waits for: this process was away when the request began, or has been started since. The amounts are the
    /// other proxy's, which has the same two files.
    async fn record(&self, row: &Row) -> Taken {
        let (Ok(id), Ok(cost), Ok(charge)) = (RequestId::parse(&row.request_id), Usd::parse(&row.cost), Credits::parse(&row.charge)) else {
            return Taken::Never;
        };
        let gateway = &self.gateway;
        let _turn = self.recording.lock().await;
        if !gateway.ledger.flushed().await {
            return Taken::NotNow;
        }
        let text = id.text();
        match gateway.store.run(move |store| usage::any_request(store, text.as_str())).await {
            Ok(None) => {}
            Ok(Some(_)) => return Taken::Before,
            Err(_) => return Taken::NotNow,
        }
        let target = self.target(row);
        let (facts, outcome) = row.recorded(&id, cost, charge, target.as_deref());
        // Nothing was set aside: it is taken from the balance as it is, below zero if need be.
        let terms = Terms { month: MonthIndex::of_ms(row.started_ms), monthly_cap: None };
        let Ok(reservation) = gateway.accounts.of(&row.account).reserve(Credits(0), terms) else { return Taken::NotNow };
        let facts = Facts { reserved: reservation.is_budgeted().then_some(Credits(0)), ..facts };
        if let Some(endpoint) = Endpoint::of_path(&row.path) {
            let series = target.as_ref().map_or_else(|| gateway.metrics.of_none(), |target| gateway.metrics.of_target(target));
            series.answered(endpoint, outcome.status);
            series.used(&outcome.usage, outcome.usage_source);
            series.cost(outcome.cost, outcome.byok);
            gateway.log_request(&facts, &outcome, endpoint, iter::empty());
        }
        match gateway.ledger.record(facts, outcome) {
            Ok(closed) => {
                reservation.settle(charge);
                closed.safe().await;
                Taken::Now
            }
            Err(_) => {
                reservation.release();
                Taken::NotNow
            }
        }
    }

    /// The configured target a row names.
    fn target(&self, row: &Row) -> Option<Arc<Target>> {
        let catalog = self.gateway.catalog.load();
        let model = catalog.models.get(row.model.as_deref()?)?;
        let is_named = |target: &&Arc<Target>| {
            Some(&*target.provider.name) == row.provider.as_deref() && Some(&*target.upstream_model) == row.upstream_model.as_deref()
        };
        model.targets.iter().find(is_named).cloned()
    }

    /// Settles a request that its proxy has not settled in time: as failed, with the prompt as used.
    pub(super) async fn expire(&self, id: Box<str>, mut pending: Pending) {
        let mut tally = Tally { source: Source::Counted, ..Tally::default() };
        let Some(open) = pending.settlement.open() else { return };
        if open.journal().is_err() {
            return self.open.lock().insert(id, pending, Instant::now());
        }
        open.status = SILENT;
        tally.usage.set(Bucket::Input, open.prompt_tokens);
        tally.usage.set(Bucket::Requests, 1);
        pending.settlement.settle_known(Ending::Failed, tally).await;
    }
}

impl Row {
    fn end(&self) -> End {
        match self.end.as_str() {
            "complete" => End::Complete,
            "cancelled" => End::Cancelled,
            "refused" => End::Refused,
            _ => End::Failed,
        }
    }

    fn tally(&self) -> Tally {
        let mut tally = Tally { service_tier: self.service_tier.clone(), ..Tally::default() };
        for bucket in Bucket::ALL {
            tally.usage.set(bucket, self.usage.get(bucket.name()).copied().unwrap_or(0));
        }
        tally.source = match self.usage_source.as_str() {
            "upstream" => Source::Upstream,
            "mixed" => Source::Mixed,
            _ => Source::Counted,
        };
        tally.reported_cost = self.reported_cost.as_deref().and_then(|cost| Usd::parse(cost).ok());
        tally
    }

    /// The ledger's row.
    fn recorded(&self, id: &RequestId, cost: Usd, charge: Credits, target: Option<&Target>) -> (Facts, Outcome) {
        let facts = Facts {
            request_id: id.text().as_str().into(),
            started_ms: self.started_ms,
            account: self.account.as_str().into(),
            key_id: self.key_id.as_str().into(),
            asked_model: self.asked_model.as_str().into(),
            level: self.level.as_deref().map(Into::into),
            tier: self.tier.as_deref().map(Into::into),
            idempotency_key: None,
            reserved: None,
        };
        let tally = self.tally();
        let outcome = Outcome {
            model: target.map(|target| target.model.clone()).or_else(|| self.model.as_deref().map(Into::into)),
            provider: self.provider.as_deref().map(Into::into),
            byok: self.byok,
            attempts: self.attempts,
            was_fallback: self.was_fallback,
            status: self.status,
            end: self.end(),
            usage: tally.usage,
            usage_source: tally.source,
            price_id: self.price_id.as_deref().map(Into::into),
            cost: Usd(cost.0.max(0)),
            charge: Credits(charge.0.max(0)),
            first_event_ms: self.first_event_ms,
            duration_ms: self.duration_ms,
        };
        (facts, outcome)
    }
}
