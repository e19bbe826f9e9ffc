//! From the configuration to running exports.

use super::{Destination, Exporter, FindKey, Lag};
use crate::config::weir_toml::{Export, Settings};
use crate::engine::catalog::{BaseUrl, SecretRef};
use crate::store::Store;
use crate::store::ledger::Sink;
use crate::store::outbound::{self, Reach};
use crate::store::secret::Secret;
use crate::store::vault::resolve_plain;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How far behind all exports are together, for metrics.
#[derive(Debug, Clone, Default)]
pub struct Exports {
    /// Events that wait (`weir_export_pending`).
    pub pending: Arc<AtomicU64>,
    /// When the oldest of them was stored, milliseconds since the Unix epoch; 0: none waits (`weir_export_oldest_seconds`).
    pub oldest_ms: Arc<AtomicU64>,
    /// Lago's and OpenMeter's parts.
    lags: [Arc<Lag>; 2],
}

impl Exports {
    /// The part of one sink.
    pub fn lag(&self, sink: Sink) -> &Arc<Lag> {
        match sink {
            Sink::Lago => &self.lags[0],
            Sink::OpenMeter => &self.lags[1],
        }
    }

    pub(super) fn sum(&self) {
        self.pending.store(self.lags.iter().map(|lag| lag.pending()).sum(), Ordering::Relaxed);
        let oldest = self.lags.iter().map(|lag| lag.oldest_ms.load(Ordering::Relaxed)).filter(|oldest| *oldest > 0).min();
        self.oldest_ms.store(oldest.unwrap_or(0), Ordering::Relaxed);
    }
}

/// Where rows go, for [`crate::store::ledger::Settings::sinks`].
pub fn sinks(settings: &Settings) -> Vec<Sink> {
    destinations(settings).map(|(sink, _)| sink).collect()
}

/// Starts a task for each configured export; its key comes from the environment or a file. See [`start_with`].
pub fn start(store: &Store, settings: &Settings, exports: &Exports) {
    start_with(store, settings, exports, resolve_plain);
}

/// Starts a task for each configured export. `resolve` finds a key (it may block); an export whose key is not found says so in
/// the log and looks for it again, its events wait. Must be called inside a tokio runtime.
pub fn start_with<R>(store: &Store, settings: &Settings, exports: &Exports, resolve: R)
where
    R: Fn(&SecretRef) -> Result<Secret, String> + Send + Sync + 'static,
{
    let resolve = Arc::new(resolve);
    for (sink, export) in destinations(settings) {
        let client = match outbound::client(Reach::Any, None) {
            Ok(client) => client,
            Err(what) => {
                log::error!("export to {sink:?} does not run: {what}");
                continue;
            }
        };
        let find_key = export.api_key.clone().map(|reference| {
            let resolve = resolve.clone();
            Arc::new(move || resolve(&reference)) as FindKey
        });
        let to = Destination { sink, url: url_text(&export.url), event: export.event.clone(), credit: settings.ledger.credit };
        tokio::spawn(Exporter::new(store, client, to, find_key, exports.clone()).run());
    }
}

fn destinations(settings: &Settings) -> impl Iterator<Item = (Sink, &Export)> {
    let lago = settings.lago.iter().map(|export| (Sink::Lago, export));
    lago.chain(settings.openmeter.iter().map(|export| (Sink::OpenMeter, export)))
}

fn url_text(url: &BaseUrl) -> String {
    let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.to_string() };
    format!("{}://{host}:{}{}", if url.tls { "https" } else { "http" }, url.port, url.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (text, expected) in
            [("https://api.getlago.com/api/v1", "https://api.getlago.com:443/api/v1"), ("http://[::1]:3000", "http://[::1]:3000")]
        {
            assert_eq!(url_text(&BaseUrl::parse(text).unwrap()), expected);
        }
    }
}
