//! `[provider.…]`

use super::{check_name, is_plain, time};
use crate::config::walk::Table;
use crate::engine::catalog::{BaseUrl, OnDisconnect, Provider, SecretRef, Timeouts};
use crate::engine::provider::{Kind, SPECS, Spec, spec};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Where nothing is said: in the middle, so that one can be put before or behind.
const PRIORITY: u32 = 50;

/// A whole answer's first byte comes when all of it was made, so this is minutes: OpenAI's own clients wait ten. Streams and
/// quick models are given less in the configuration.
const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(5),
    first_event: Duration::from_secs(300),
    between_events: Duration::from_secs(120),
    total: Duration::from_secs(900),
};

/// A probe more often than this is load, not a question.
const MIN_PROBE: Duration = Duration::from_secs(1);

pub(super) fn read(name: &str, mut table: Table<'_>, folder: &Path) -> Provider {
    check_name(&table, "provider", name, is_plain);
    let kinds: Vec<(&str, Kind)> = SPECS.iter().map(|spec| (spec.name, spec.kind)).collect();
    table.require("kind", "\"openai\"");
    let known_kind = table.choice("kind", &kinds);
    // Any kind will do to read on and find further problems.
    let kind = known_kind.unwrap_or(Kind::OpenAiCompatible);
    let account = table.string("account").map(Box::from);
    let base = base(&mut table, spec(kind), account.as_deref(), known_kind.is_some());
    let http2 = table.flag("http2");
    if http2 == Some(true) && !base.tls {
        table.problem("http2", "is offered in the TLS handshake, and this base_url is plain http");
    }
    let ca = table.string("ca");
    if ca.is_some() && !base.tls {
        table.problem("ca", "is for TLS, and this base_url is plain http");
    }
    let provider = Provider {
        name: name.into(),
        kind,
        key: table.secret("key").map(|key| from_folder(key, folder)),
        account,
        api_version: table.string("api_version").map(Box::from),
        priority: table.integer_in("priority", 0..=1_000_000).map_or(PRIORITY, |priority| priority as u32),
        timeouts: timeouts(&mut table),
        on_disconnect: table
            .choice("on_disconnect", &[("cancel", OnDisconnect::Cancel), ("drain", OnDisconnect::Drain)])
            .unwrap_or_default(),
        heartbeat: time(&mut table, "heartbeat"),
        max_concurrent: table.integer_in("max_concurrent", 1..=1_000_000).map(|most| most as u32),
        probe: probe(&mut table),
        ca: ca.map(|ca| folder.join(ca).to_string_lossy().into()),
        http2: http2.unwrap_or(base.tls),
        byok_falls_to_platform: table.flag("byok_falls_to_platform").unwrap_or(false),
        base,
        state: Arc::default(),
    };
    if provider.api_version.is_some() && provider.kind != Kind::Azure {
        table.problem("api_version", "only azure has API versions in its paths");
    }
    table.finish();
    provider
}

/// The configured base URL or the kind's own.
fn base(table: &mut Table<'_>, spec: &Spec, account: Option<&str>, kind_is_known: bool) -> BaseUrl {
    const NOWHERE: &str = "http://0.0.0.0";
    if account.is_some_and(|account| account.is_empty() || !account.bytes().all(is_plain)) {
        table.problem("account", "has letters, digits, '.', '_' and '-' only");
    }
    let text = match table.string("base_url") {
        Some(text) => text.to_owned(),
        None if table.has("base_url") || !kind_is_known => NOWHERE.to_owned(),
        None => match spec.default_base(account) {
            Some(_) if spec.needs_account && account.is_none() => {
                table.problem("account", format!("missing; {} needs the account's id here (or a base_url that ends in /v1)", spec.title));
                NOWHERE.to_owned()
            }
            Some(text) => text,
            None if spec.needs_account => {
                table.problem("account", format!("missing; {} needs the resource's name here (or a base_url)", spec.title));
                NOWHERE.to_owned()
            }
            None => {
                table.problem(
                    "base_url",
                    format!("missing; the kind {} has no usual place: write base_url = \"http://127.0.0.1:8000/v1\"", spec.name),
                );
                NOWHERE.to_owned()
            }
        },
    };
    let text = account.map_or(text.clone(), |account| text.replace("{account}", account));
    BaseUrl::parse(&text).unwrap_or_else(|why| {
        // A URL may hold a password, so it is not quoted.
        table.problem("base_url", format!("the URL {why}"));
        BaseUrl::new(false, "0.0.0.0", 80, "")
    })
}

fn timeouts(table: &mut Table<'_>) -> Timeouts {
    let mut timeouts = TIMEOUTS;
    let Some(mut own) = table.table("timeouts") else { return timeouts };
    let total = time(&mut own, "total");
    timeouts.total = total.unwrap_or(timeouts.total);
    for (key, phase) in
        [("connect", &mut timeouts.connect), ("first_event", &mut timeouts.first_event), ("between_events", &mut timeouts.between_events)]
    {
        match time(&mut own, key) {
            Some(set) if total.is_some_and(|total| set > total) => own.problem(key, "is longer than the total"),
            Some(set) => *phase = set,
            None => {}
        }
        *phase = (*phase).min(timeouts.total);
    }
    own.finish();
    timeouts
}

fn probe(table: &mut Table<'_>) -> Option<Duration> {
    let interval = time(table, "probe")?;
    if interval < MIN_PROBE {
        table.problem("probe", "must be at least \"1s\"");
    }
    Some(interval.max(MIN_PROBE))
}

/// A file reference taken from the configuration's folder.
pub(crate) fn from_folder(secret: SecretRef, folder: &Path) -> SecretRef {
    match secret {
        SecretRef::File(path) => SecretRef::File(folder.join(&*path).to_string_lossy().into()),
        other => other,
    }
}
