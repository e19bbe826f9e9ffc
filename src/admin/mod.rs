//! Floor 3: operators. Metrics, health, the admin API and its console, on a listener of their own that the proxy's paths never
//! reach.

mod api;
mod console;
mod views;

use crate::proxy::gateway::Gateway;
use crate::proxy::{finish, keep_alive, respond};
use crate::store::secret::same;
use crate::telemetry::clock;
use async_trait::async_trait;
use http::Method;
use pingora_core::apps::{HttpServerApp, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// An idle admin connection is kept this long.
const IDLE_SECONDS: u64 = 60;

/// The admin listener.
pub struct Admin {
    gateway: Arc<Gateway>,
    token: Option<Arc<crate::store::secret::Secret>>,
}

impl Admin {
    /// Shows `gateway`; `token` opens `/admin/v1`. Without one it stays shut.
    pub fn new(gateway: Arc<Gateway>, token: Option<Arc<crate::store::secret::Secret>>) -> Admin {
        Admin { gateway, token }
    }
}

#[async_trait]
impl HttpServerApp for Admin {
    async fn process_new_http(self: &Arc<Self>, mut session: ServerSession, _shutdown: &ShutdownWatch) -> Option<ReusedHttpStream> {
        match session.read_request().await {
            Ok(true) => {}
            Ok(false) => return None,
            Err(_) => {
                let _ = session.respond_error(400).await;
                return None;
            }
        }
        keep_alive(&mut session, Some(IDLE_SECONDS));
        let reusable = self.dispatch(&mut session).await;
        finish(Box::new(session), reusable).await
    }
}

impl Admin {
    async fn dispatch(&self, session: &mut ServerSession) -> bool {
        let path = session.req_header().uri.path().to_string();
        let is_get = matches!(session.req_header().method, Method::GET | Method::HEAD);
        match path.as_str() {
            "/metrics" if is_get => {
                refresh_gauges(&self.gateway);
                respond::text(session, 200, "text/plain; version=0.0.4", self.gateway.metrics.page().into(), None).await
            }
            "/livez" if is_get => respond::text(session, 200, "text/plain", "ok\n".into(), None).await,
            "/readyz" if is_get => self.ready(session).await,
            "/" if is_get => console::serve(session).await,
            "/admin/v1/openapi.json" if is_get => {
                respond::text(session, 200, "application/json", include_bytes!("openapi.json").as_slice().into(), None).await
            }
            path if path.starts_with("/admin/v1/") => match &self.token {
                Some(token) if self.is_authorised(session, token) => api::serve(&self.gateway, session).await,
                Some(_) => respond::json(session, 401, &error("Send the admin token as 'Authorization: Bearer TOKEN'."), None).await,
                None => {
                    respond::json(
                        session,
                        403,
                        &error("The admin API is shut: set [admin] token in weir.toml to a reference (env:NAME or file:PATH)."),
                        None,
                    )
                    .await
                }
            },
            _ => respond::json(session, 404, &error("There is no such page here."), None).await,
        }
    }

    fn is_authorised(&self, session: &ServerSession, token: &crate::store::secret::Secret) -> bool {
        crate::proxy::ingress::credential(&session.req_header().headers)
            .is_some_and(|presented| same(token.expose().as_bytes(), presented.as_bytes()))
    }

    /// Ready: takes requests and can account for them.
    async fn ready(&self, session: &mut ServerSession) -> bool {
        let gateway = &self.gateway;
        let health = gateway.ledger.health();
        let is_ready = !gateway.drain.is_draining() && !health.stuck;
        let status = if is_ready { 200 } else { 503 };
        let verbose =
            session.req_header().uri.query().is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some("verbose")));
        if !verbose {
            return respond::text(session, status, "text/plain", if is_ready { "ok\n".into() } else { "not ready\n".into() }, None).await;
        }
        let document = json!({
            "ready": is_ready,
            "draining": gateway.drain.is_draining(),
            "active_requests": gateway.drain.active(),
            "config": config(gateway),
            "providers": providers(gateway),
            "ledger": {
                "pending": health.pending, "stuck": health.stuck, "journal_faults": health.journal_faults, "journal_segments": health.journal_segments,
                "damaged_bytes": health.damaged_bytes, "recovered_open": health.recovered_open, "dropped": health.dropped,
            },
        });
        respond::json(session, status, &document, None).await
    }
}

/// An error in the admin API's shape.
fn error(message: &str) -> Value {
    json!({"error": {"message": message}})
}

/// How the hot files were taken.
fn config(gateway: &Gateway) -> Value {
    let reloads = gateway.reloads.lock().clone();
    let catalog = gateway.catalog.load();
    json!({
        "generation": reloads.generation,
        "loaded_at": clock::rfc3339(reloads.loaded_ms),
        "status": if reloads.problems.is_empty() { "ok" } else { "rejected" },
        "problems": reloads.problems.iter().map(|problem| json!({"file": problem.file, "line": problem.line, "key": problem.key, "what": problem.what})).collect::<Vec<_>>(),
        "files": {"routing": gateway.files.routing(), "prices": gateway.files.prices()},
        "providers": catalog.providers.len(), "models": catalog.models.len(), "levels": catalog.levels.len(), "tiers": catalog.tiers.len(), "prices": catalog.prices.len(),
    })
}

/// The state of each provider and of the targets that were used.
fn providers(gateway: &Gateway) -> Value {
    let catalog = gateway.catalog.load();
    let now_ms = clock::now_ms();
    let mut list: Vec<Value> = catalog
        .providers
        .values()
        .map(|provider| {
            let mut targets: Vec<Value> = catalog
                .models
                .values()
                .flat_map(|model| model.targets.iter())
                .filter(|target| Arc::ptr_eq(&target.provider, provider))
                .filter(|target| target.state.first_event.median_us(now_ms).is_some() || target.state.gauge(now_ms) != 2)
                .map(|target| views::target(target, now_ms))
                .collect();
            targets.sort_by_key(|target| target["model"].as_str().map(str::to_string));
            json!({"name": &*provider.name, "kind": provider.kind.name(), "state": views::state(provider.state.gauge(now_ms)), "in_flight": provider.state.in_flight(), "targets": targets})
        })
        .collect();
    list.sort_by_key(|provider| provider["name"].as_str().map(str::to_string));
    Value::Array(list)
}

/// Gauges are read when they are asked for.
fn refresh_gauges(gateway: &Gateway) {
    let (metrics, health, now_ms) = (&gateway.metrics, gateway.ledger.health(), clock::now_ms());
    metrics.requests_in_service.set(i64::from(gateway.queue.in_service()));
    metrics.requests_queued.set(gateway.queue.waiting() as i64);
    metrics.body_bytes_in_flight.set(gateway.bodies.held() as i64);
    metrics.config_rejected.set(i64::from(!gateway.reloads.lock().problems.is_empty()));
    metrics.ledger_pending.set(health.pending as i64);
    metrics.ledger_stuck.set(i64::from(health.stuck));
    metrics.export_pending.set(gateway.exports.pending.load(Ordering::Relaxed) as i64);
    for sink in crate::export::sinks(&gateway.settings) {
        metrics.export_dead.with_label_values(&[sink.name()]).set(gateway.exports.lag(sink).dead() as i64);
    }
    let oldest_ms = gateway.exports.oldest_ms.load(Ordering::Relaxed);
    metrics.export_oldest.set(if oldest_ms == 0 { 0.0 } else { now_ms.saturating_sub(oldest_ms) as f64 / 1000.0 });
    for provider in gateway.catalog.load().providers.values() {
        metrics.provider_state.with_label_values(&[&provider.name]).set(i64::from(provider.state.gauge(now_ms)));
    }
}
