//! The plugin socket: another proxy on this host, with weir's engine in it, asks who calls and settles what was used.
//!
//! HTTP/1.1 over a Unix socket (`listen.plugin`, file mode 0660), JSON both ways:
//!
//! - `POST /plugin/v1/admit` `{key, path, headers, model, stream, max_output, choices, needs, text_bytes, token_ids, messages,
//!   images, prefix_hash}` → 200 `{request_id, account, key_id, tier, scopes, has_budget, draw, output_cap, covered_tokens, headers,
//!   keys: {provider: {key, own}}}`, or the refusal's status with `{headers, body}` as the caller is to get them.
//! - `POST /plugin/v1/settle` a row → 200. One row for each request id, however often it is sent.
//! - `GET /plugin/v1/health` → 200.
//!
//! The prompt never comes here. What is admitted and not settled within [`SETTLE_BY`] is settled as failed, with the prompt as
//! used. A caller's own key with a base URL of its own is not handed out: those go through the gateway.

use super::gateway::Gateway;
use super::ingress::{self, Caller, Head, Opened, Opening};
use super::settle::{Current, Ending, Settlement};
use super::{denied, finish, respond};
use crate::engine::catalog::{Capabilities, Target};
use crate::engine::dialect::{Dialect, Endpoint};
use crate::engine::id::RequestId;
use crate::engine::meter::Tally;
use crate::engine::money::{Credits, Usd};
use crate::engine::peek::Peek;
use crate::engine::refusal::Refusal;
use crate::engine::route::{Denied, Draw, Payer};
use crate::engine::usage::{Bucket, Source};
use crate::store::ledger::{self, End, Facts};
use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use parking_lot::Mutex;
use pingora_core::apps::{HttpServerApp, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A plugin's connection may be idle this long; plugins give theirs up after 30 s.
const IDLE_SECONDS: u64 = 60;
/// Rows and admissions are some hundred bytes; names and scopes may make a few thousand of them.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Requests admitted and not settled at most: as many as the ledger lets wait. Beyond it admission is refused.
const OPEN_MAX: usize = 65_536;
/// An exchange ends within 15 minutes unless a provider's total timeout says otherwise; a worker that is still silent has died.
const SETTLE_BY: Duration = Duration::from_secs(3600);

/// The plugin socket.
pub struct Plugin {
    gateway: Arc<Gateway>,
    open: Mutex<HashMap<Box<str>, Pending>>,
}

/// A request that was admitted and is not settled.
struct Pending {
    settlement: Settlement,
    targets: Vec<Arc<Target>>,
    since: Instant,
}

/// What a plugin asks.
#[derive(Deserialize)]
struct Admit {
    key: Option<String>,
    path: String,
    #[serde(default)]
    headers: HashMap<String, String>,
    model: Option<String>,
    stream: bool,
    max_output: Option<u64>,
    choices: u64,
    needs: u8,
    text_bytes: u64,
    token_ids: u64,
    messages: u64,
    images: u64,
    prefix_hash: u64,
}

/// What a plugin tells at the end.
#[derive(Deserialize)]
struct Settle {
    request_id: String,
    admitted: bool,
    started_ms: u64,
    account: String,
    key_id: String,
    asked_model: String,
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

impl Plugin {
    /// Serves `gateway`.
    pub fn new(gateway: Arc<Gateway>) -> Plugin {
        Plugin { gateway, open: Mutex::default() }
    }

    async fn dispatch(&self, session: &mut ServerSession) -> bool {
        let path = session.req_header().uri.path().to_owned();
        let is_post = session.req_header().method == Method::POST;
        let (status, answer) = match path.as_str() {
            "/plugin/v1/health" => (200, json!({ "open": self.open.lock().len() })),
            "/plugin/v1/admit" | "/plugin/v1/settle" if is_post => {
                let Some(body) = respond::small_body(session, BODY_BYTES_MAX).await else { return false };
                if path.ends_with("admit") { self.admit(&body).await } else { self.settle(&body).await }
            }
            _ => (404, json!({ "error": "there is no such call" })),
        };
        respond::json(session, status, &answer, None).await
    }

    async fn admit(&self, body: &[u8]) -> (u16, Value) {
        let Ok(asked) = serde_json::from_slice::<Admit>(body) else { return (400, json!({ "error": "not an admission" })) };
        let Some(endpoint) = Endpoint::of_path(&asked.path) else { return refused(&self.gateway, &Refusal::UnknownPath, Dialect::OpenAi) };
        match self.admitted(&asked, endpoint).await {
            Ok(answer) => (200, answer),
            Err(refusal) => refused(&self.gateway, &refusal, endpoint.dialect()),
        }
    }

    async fn admitted(&self, asked: &Admit, endpoint: Endpoint) -> Result<Value, Refusal> {
        let gateway = &self.gateway;
        if gateway.drain.is_draining() {
            return Err(Refusal::Draining);
        }
        self.expire().await;
        if self.open.lock().len() >= OPEN_MAX {
            return Err(Refusal::Overloaded { retry_after_ms: 1_000 });
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &asked.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
                headers.insert(name, value);
            }
        }
        let head = Head::new(endpoint, &headers);
        let catalog = gateway.catalog.load_full();
        let caller = ingress::authenticate_presented(gateway, asked.key.as_deref(), &catalog, head.started_ms).await?;
        let peek = Peek {
            model: asked.model.clone(),
            stream: asked.stream,
            max_output: asked.max_output,
            choices: asked.choices,
            needs: Capabilities(asked.needs),
            text_bytes: asked.text_bytes,
            token_ids: asked.token_ids,
            messages: asked.messages,
            images: asked.images,
            prefix_hash: asked.prefix_hash,
            ..Peek::default()
        };
        let draw: u64 = rand::random();
        let opening = Opening { head: &head, caller: &caller, headers: &headers, peek: &peek, draw: Draw(draw) };
        let Opened { plan, output_cap, standings, mut settlement } = ingress::open_account(gateway, &catalog, &opening)?;
        let mut keys = Map::new();
        let mut targets = Vec::new();
        for attempt in plan.upcoming() {
            let target = &attempt.target;
            let own = matches!(attempt.payer, Payer::Own(_));
            if let Some(key) = self.key(&caller, target, own, head.started_ms) {
                keys.entry(target.provider.name.to_string()).or_insert_with(|| json!({ "key": key, "own": own }));
                targets.push(target.clone());
            }
        }
        let Some(first) = targets.first().cloned() else {
            settlement.refuse(End::Failed, 403).await;
            let model = asked.model.as_deref().unwrap_or_default();
            return Err(denied::refusal(Denied::NoKey { model: model.into() }, model, None));
        };
        let covered = settlement.open().map(|open| {
            // Should nobody ever settle, the first target was asked.
            open.current = Some(Current { target: first, own_key: false, attempts: 1, was_fallback: false });
            open.covered_tokens
        });
        let mut told = Map::new();
        standings.headers(|name, value| {
            told.insert(name.to_owned(), value.into());
        });
        let answer = json!({
            "request_id": head.id.as_str(), "account": &*caller.key.account_id, "key_id": &*caller.key.id,
            "tier": caller.tier.as_ref().map(|tier| &*tier.name), "scopes": caller.key.scopes(), "has_budget": ingress::is_budgeted(gateway, &caller),
            "draw": draw, "output_cap": output_cap, "covered_tokens": covered.filter(|covered| *covered != u64::MAX), "headers": told, "keys": keys,
        });
        self.open.lock().insert(head.id.as_str().into(), Pending { settlement, targets, since: Instant::now() });
        Ok(answer)
    }

    /// The key to hand out for a target: `Some(None)` where none is needed, `None` where it cannot be used from here.
    fn key(&self, caller: &Caller, target: &Target, own: bool, now_ms: u64) -> Option<Option<String>> {
        let ring = &self.gateway.key_ring;
        if own {
            let key = ring.own(&caller.key.account_id, &target.provider.name).filter(|key| key.base_url().is_none())?;
            return Some(Some(key.open(now_ms).ok()?.expose().to_owned()));
        }
        match &target.provider.key {
            None => Some(None),
            Some(reference) => Some(Some(ring.platform(reference)?.expose().to_owned())),
        }
    }

    async fn settle(&self, body: &[u8]) -> (u16, Value) {
        let Ok(row) = serde_json::from_slice::<Settle>(body) else { return (400, json!({ "error": "not a row" })) };
        let Some(mut pending) = self.open.lock().remove(row.request_id.as_str()) else {
            return self.record(&row).await;
        };
        let target = pending.targets.iter().find(|target| {
            Some(&*target.provider.name) == row.provider.as_deref() && Some(&*target.upstream_model) == row.upstream_model.as_deref()
        });
        if let Some(open) = pending.settlement.open() {
            open.status = row.status;
            open.first_event_ms = row.first_event_ms;
            open.current = target.map(|target| Current {
                target: target.clone(),
                own_key: row.byok,
                attempts: row.attempts,
                was_fallback: row.was_fallback,
            });
            open.series = target.map(|target| self.gateway.metrics.of_target(target));
        }
        let ending = match row.end.as_str() {
            "complete" => Ending::Complete,
            "cancelled" => Ending::Cancelled,
            _ => Ending::Failed,
        };
        pending.settlement.settle_known(ending, row.tally()).await;
        (200, json!({ "settled": true }))
    }

    /// Takes a row nobody was asked about (the node was away). What was admitted and is not open any more has its row already:
    /// it was settled before, or closed by a restart.
    async fn record(&self, row: &Settle) -> (u16, Value) {
        if row.admitted {
            return (200, json!({ "settled": false }));
        }
        let (Ok(id), Ok(cost), Ok(charge)) = (RequestId::parse(&row.request_id), Usd::parse(&row.cost), Credits::parse(&row.charge)) else {
            return (400, json!({ "error": "not a row" }));
        };
        let facts = Facts {
            request_id: id.text().as_str().into(),
            started_ms: row.started_ms,
            account: row.account.as_str().into(),
            key_id: row.key_id.as_str().into(),
            asked_model: row.asked_model.as_str().into(),
            level: row.level.as_deref().map(Into::into),
            tier: row.tier.as_deref().map(Into::into),
            idempotency_key: None,
            reserved: None,
        };
        let tally = row.tally();
        let outcome = ledger::Outcome {
            model: row.model.as_deref().map(Into::into),
            provider: row.provider.as_deref().map(Into::into),
            byok: row.byok,
            attempts: row.attempts,
            was_fallback: row.was_fallback,
            status: row.status,
            end: match row.end.as_str() {
                "complete" => End::Complete,
                "cancelled" => End::Cancelled,
                "refused" => End::Refused,
                _ => End::Failed,
            },
            usage: tally.usage,
            usage_source: tally.source,
            price_id: row.price_id.as_deref().map(Into::into),
            cost,
            charge,
            first_event_ms: row.first_event_ms,
            duration_ms: row.duration_ms,
        };
        match self.gateway.ledger.record(facts, outcome) {
            Ok(closed) => {
                closed.safe().await;
                (200, json!({ "settled": true }))
            }
            // The plugin keeps it and comes again.
            Err(_) => (503, json!({ "error": "the ledger takes no more" })),
        }
    }

    /// Settles what nobody has settled in time.
    async fn expire(&self) {
        let late: Vec<Pending> =
            self.open.lock().extract_if(|_, pending| pending.since.elapsed() > SETTLE_BY).map(|(_, pending)| pending).collect();
        for mut pending in late {
            let mut tally = Tally { source: Source::Counted, ..Tally::default() };
            if let Some(open) = pending.settlement.open() {
                open.status = 504;
                tally.usage.set(Bucket::Input, open.prompt_tokens);
            }
            pending.settlement.settle_known(Ending::Failed, tally).await;
        }
    }
}

impl Settle {
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
}

fn refused(gateway: &Gateway, refusal: &Refusal, dialect: Dialect) -> (u16, Value) {
    gateway.metrics.refusals.with_label_values(&[refusal.reason()]).inc();
    let mut headers = Map::new();
    if let Some(wait) = refusal.retry_after_s() {
        headers.insert("retry-after".into(), wait.to_string().into());
    }
    (refusal.status(), json!({ "headers": headers, "body": refusal.body(dialect) }))
}

#[async_trait]
impl HttpServerApp for Plugin {
    async fn process_new_http(self: &Arc<Self>, mut session: ServerSession, _shutdown: &ShutdownWatch) -> Option<ReusedHttpStream> {
        if !matches!(session.read_request().await, Ok(true)) {
            return None;
        }
        session.set_keepalive(Some(IDLE_SECONDS));
        let reusable = self.dispatch(&mut session).await;
        finish(session, reusable).await
    }
}
