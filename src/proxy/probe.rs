//! Active health: providers that say so are asked their cheapest question now and then, with the platform's key or none, never
//! with a user's. What is learned goes where requests' outcomes go.

use super::gateway::Gateway;
use crate::engine::catalog::Provider;
use crate::engine::provider::{Auth, spec};
use crate::telemetry::clock;
use crate::telemetry::log_lines::{Severity, event};
use pingora_http::RequestHeader;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked which probes are due.
const TICK: Duration = Duration::from_millis(500);
/// Probes under way at once; the others wait for the next tick.
const PROBES_MAX: usize = 16;
/// A probe that takes longer has failed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Probes for ever. Each provider's interval is stretched by up to a fifth, so that many nodes do not ask at once.
pub async fn run(gateway: Arc<Gateway>) {
    let mut due: HashMap<Arc<str>, u64> = HashMap::new();
    let under_way = Arc::new(tokio::sync::Semaphore::new(PROBES_MAX));
    loop {
        tokio::time::sleep(TICK).await;
        let (catalog, now_ms) = (gateway.catalog.load_full(), clock::now_ms());
        due.retain(|name, _| catalog.providers.contains_key(name));
        for provider in catalog.providers.values() {
            let Some(interval) = provider.probe else { continue };
            let due_ms = due.entry(provider.name.clone()).or_insert(now_ms);
            if *due_ms > now_ms {
                continue;
            }
            let Ok(permit) = under_way.clone().try_acquire_owned() else { break };
            let interval_ms = interval.as_millis() as u64;
            *due_ms = now_ms + interval_ms + rand::random_range(0..=interval_ms / 5);
            let (gateway, provider, retry) = (gateway.clone(), provider.clone(), catalog.retry);
            tokio::spawn(async move {
                let _permit = permit;
                let is_up = matches!(tokio::time::timeout(PROBE_TIMEOUT, ask(&gateway, &provider)).await, Ok(true));
                let (before, now_ms) = (provider.state.gauge(clock::now_ms()), clock::now_ms());
                if is_up {
                    provider.state.on_probe_ok()
                } else {
                    provider.state.on_probe_failed(now_ms, &retry)
                }
                if before != provider.state.gauge(now_ms) {
                    event(
                        if is_up { Severity::Info } else { Severity::Warn },
                        if is_up { "provider is back" } else { "provider does not answer" },
                        &provider.name,
                    );
                }
            });
        }
    }
}

/// Whether the provider is there.
async fn ask(gateway: &Gateway, provider: &Arc<Provider>) -> bool {
    let row = spec(provider.kind);
    let (path, with_key) = row.probe(&provider.base, provider.account.as_deref(), provider.api_version.as_deref());
    let Ok(mut connected) = gateway.upstreams.connect(provider, false).await else { return false };
    let Ok(mut header) = RequestHeader::build_no_case("GET", path.as_bytes(), Some(4)) else { return false };
    let mut written = header.insert_header(http::header::HOST, &*provider.base.authority).is_ok();
    if let Some(key) = provider.key.as_ref().filter(|_| with_key).and_then(|reference| gateway.key_ring.platform(reference)) {
        written &= match row.auth() {
            Auth::Bearer => header.insert_header(http::header::AUTHORIZATION, format!("Bearer {}", key.expose())).is_ok(),
            Auth::Header(name) => header.insert_header(name, key.expose()).is_ok(),
        };
    }
    if !written
        || connected.session.write_request_header(Box::new(header)).await.is_err()
        || connected.session.finish_request_body().await.is_err()
    {
        return false;
    }
    if connected.session.read_response_header().await.is_err() {
        return false;
    }
    let Some(header) = connected.session.response_header().cloned() else { return false };
    while let Ok(Some(_)) = connected.session.read_response_body().await {}
    gateway.upstreams.release(connected).await;
    row.is_up(header.status.as_u16())
}
