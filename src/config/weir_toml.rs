//! `weir.toml`: text in, settings or problems out. Read once, at start.
//!
//! Settings are plain data with defaults filled in and paths taken from the file's folder. Nothing is opened, bound or looked
//! up here; secrets stay references.

mod auth;
mod listen;
mod store;

pub use auth::{Auth, AuthMode, Claims, Jwt, JwtKeys};
pub use listen::{Listen, Tls};
pub use store::StoreUrl;

use super::problem::Problem;
use super::routing::from_folder;
use super::walk::{File, Table};
use crate::engine::catalog::{BaseUrl, SecretRef};
use crate::engine::money::Usd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything `weir.toml` says.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The file, as the operator named it.
    pub file: PathBuf,
    /// The file's folder: relative paths are taken from it.
    pub folder: PathBuf,
    /// Where weir listens.
    pub listen: Listen,
    /// How much at once.
    pub limits: Limits,
    /// Where the store is.
    pub store: StoreUrl,
    /// What opens the vault.
    pub vault: Vault,
    /// Who may call.
    pub auth: Auth,
    /// The admin API's bearer token; `None`: the API is closed, metrics and health are not.
    pub admin_token: Option<SecretRef>,
    /// How the account is kept.
    pub ledger: Ledger,
    /// Lago, when configured.
    pub lago: Option<Export>,
    /// OpenMeter, when configured.
    pub openmeter: Option<Export>,
    /// `routing.toml`
    pub routing_file: PathBuf,
    /// `prices.toml`
    pub prices_file: PathBuf,
    /// Replays of answers by `Idempotency-Key`; `None`: off.
    pub idempotency: Option<Idempotency>,
}

/// Bounds of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// One request's body at most; larger is refused with 413.
    pub max_body_bytes: u64,
    /// All bodies in memory together; more wait or are refused with 503.
    pub max_body_in_flight_bytes: u64,
    /// Requests being answered at the same time; more are refused with 503.
    pub max_streams: u32,
    /// Worker threads of the proxy; `None`: one for each core.
    pub threads: Option<u32>,
    /// How long streams in flight may go on once the server is told to stop.
    pub drain: Duration,
}

/// What opens the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vault {
    /// The master key; `None`: there is no vault.
    pub master_key: Option<SecretRef>,
    /// The one before, while `weir vault rotate` has not re-sealed everything.
    pub previous_key: Option<SecretRef>,
    /// Host names (or addresses) that callers' own base URLs may name although they are not public.
    pub base_url_hosts: Vec<Box<str>>,
}

impl Vault {
    /// Whether a caller's own base URL may name this host wherever it points.
    pub fn allows_host(&self, host: &str) -> bool {
        self.base_url_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host))
    }
}

/// How the account is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    /// What a credit is worth.
    pub credit: Usd,
    /// Rows older than this are rolled up by day.
    pub retention: Duration,
    /// `strict`: a row is on the disk before its answer's end leaves (`journal`: in the journal, which survives the process).
    pub strict: bool,
    /// Told to callers whose credits are used up.
    pub upgrade_url: Option<Box<str>>,
}

/// Where usage is exported to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The service.
    pub url: BaseUrl,
    /// Its key (OpenMeter on one's own machine has none).
    pub api_key: Option<SecretRef>,
    /// Lago's event code, OpenMeter's event type.
    pub event: Box<str>,
}

/// Bounds of kept answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idempotency {
    /// Answers at most; the oldest go first.
    pub max_entries: u32,
    /// One answer at most; larger ones are not kept.
    pub max_answer_bytes: u64,
    /// All together at most.
    pub max_bytes: u64,
    /// How long.
    pub keep: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_body_bytes: 64 << 20,
            max_body_in_flight_bytes: 1 << 30,
            max_streams: 20_000,
            threads: None,
            drain: Duration::from_secs(30),
        }
    }
}

/// Reads `weir.toml`. `file` is its path as the operator named it.
///
/// Errors: every problem there is, in the order of the lines.
pub fn parse(file: &str, text: &str) -> Result<Settings, Vec<Problem>> {
    let (settings, problems) = survey(file, text);
    if problems.is_empty() { Ok(settings) } else { Err(problems) }
}

/// As [`parse`], with the settings beside the problems: what is wrong has its default there. They are good for finding further
/// problems, and for nothing else where there are any.
pub fn survey(file: &str, text: &str) -> (Settings, Vec<Problem>) {
    let reading = File::new(file, text);
    let Some(document) = reading.parse() else { return (survey(file, "").0, reading.into_problems()) };
    let mut root = reading.root(&document);
    let settings = read(&mut root, Path::new(file));
    root.finish();
    (settings, reading.into_problems())
}

fn read<'a>(root: &mut Table<'a>, file: &Path) -> Settings {
    let folder = file.parent().unwrap_or(Path::new("")).to_owned();
    let listen = listen::read(root, &folder);
    let auth = auth::read(root, &listen, &folder);
    let (routing_file, prices_file) = files(root, &folder);
    let (lago, openmeter) = exports(root, &folder);
    Settings {
        file: file.to_owned(),
        limits: limits(root),
        store: store::read(root, &folder),
        vault: vault(root, &folder),
        admin_token: admin(root, &folder),
        ledger: ledger(root),
        lago,
        openmeter,
        routing_file,
        prices_file,
        idempotency: idempotency(root),
        listen,
        auth,
        folder,
    }
}

fn limits(root: &mut Table<'_>) -> Limits {
    let mut limits = Limits::default();
    let Some(mut table) = root.table("limits") else { return limits };
    let body = bounded_size(&mut table, "max_body", 1 << 10);
    let in_flight = bounded_size(&mut table, "max_body_in_flight", 1 << 10);
    limits.max_body_bytes = body.unwrap_or(limits.max_body_bytes);
    limits.max_body_in_flight_bytes = in_flight.unwrap_or(limits.max_body_in_flight_bytes.max(limits.max_body_bytes));
    if limits.max_body_bytes > limits.max_body_in_flight_bytes {
        table.problem("max_body_in_flight", "is less than max_body: such a request could never be taken");
    }
    limits.max_streams = table.integer_in("max_streams", 1..=10_000_000).map_or(limits.max_streams, |most| most as u32);
    limits.threads = table.integer_in("threads", 1..=1_024).map(|threads| threads as u32);
    if let Some(drain) = table.duration("drain") {
        if drain > Duration::from_secs(24 * 60 * 60) {
            table.problem("drain", "is longer than a day");
        }
        limits.drain = drain;
    }
    table.finish();
    limits
}

fn vault(root: &mut Table<'_>, folder: &Path) -> Vault {
    let mut vault = Vault { master_key: None, previous_key: None, base_url_hosts: Vec::new() };
    let Some(mut table) = root.table("vault") else { return vault };
    table.require("master_key", "\"env:WEIR_MASTER_KEY\"");
    vault.base_url_hosts = table.strings("base_url_hosts").unwrap_or_default().into_iter().map(Into::into).collect();
    for (key, place) in [("master_key", &mut vault.master_key), ("previous_key", &mut vault.previous_key)] {
        *place = table.secret(key).map(|secret| from_folder(secret, folder));
        if matches!(place, Some(SecretRef::Vault(_))) {
            table.problem(key, "the vault cannot hold the key that opens it: use env:NAME or file:PATH");
        }
    }
    table.finish();
    vault
}

fn admin(root: &mut Table<'_>, folder: &Path) -> Option<SecretRef> {
    let mut table = root.table("admin")?;
    let token = table.secret("token").map(|secret| from_folder(secret, folder));
    table.finish();
    token
}

fn ledger(root: &mut Table<'_>) -> Ledger {
    /// A tenth of a cent: the contract's example.
    const CREDIT: Usd = Usd(1_000_000_000);
    let mut ledger = Ledger { credit: CREDIT, retention: Duration::from_secs(400 * 24 * 60 * 60), strict: false, upgrade_url: None };
    let Some(mut table) = root.table("ledger") else { return ledger };
    if let Some(credit) = table.usd("credit") {
        if credit == Usd::ZERO {
            table.problem("credit", "must be worth something, such as \"0.001\" (dollars)");
        } else {
            ledger.credit = credit;
        }
    }
    if let Some(retention) = table.duration("retention") {
        if retention < Duration::from_secs(40 * 24 * 60 * 60) {
            table.problem("retention", "must be at least \"40d\": monthly caps are counted from rows");
        }
        ledger.retention = retention;
    }
    ledger.strict = table.choice("commit", &[("journal", false), ("strict", true)]).unwrap_or(false);
    if let Some(url) = table.string("upgrade_url") {
        if !is_web_url(url) {
            table.problem("upgrade_url", "must begin with https:// or http:// and hold no spaces");
        }
        ledger.upgrade_url = Some(url.into());
    }
    table.finish();
    ledger
}

fn exports(root: &mut Table<'_>, folder: &Path) -> (Option<Export>, Option<Export>) {
    let Some(mut table) = root.table("export") else { return (None, None) };
    let lago = table.table("lago").and_then(|mut lago| {
        lago.require("api_key", "\"env:LAGO_API_KEY\"");
        let export = export(&mut lago, folder, "\"https://api.getlago.com\"", "event_code");
        lago.finish();
        export
    });
    let openmeter = table.table("openmeter").and_then(|mut openmeter| {
        let export = export(&mut openmeter, folder, "\"https://openmeter.cloud\"", "event_type");
        openmeter.finish();
        export
    });
    table.finish();
    (lago, openmeter)
}

fn export<'a>(table: &mut Table<'a>, folder: &Path, example: &str, event_key: &'a str) -> Option<Export> {
    table.require("url", example);
    let api_key = table.secret("api_key").map(|secret| from_folder(secret, folder));
    let event = table.string(event_key).unwrap_or("llm_request");
    if event.is_empty() {
        table.problem(event_key, "must not be empty");
    }
    let url = BaseUrl::parse(table.string("url")?).map_err(|why| table.problem("url", format!("the URL {why}"))).ok()?;
    Some(Export { url, api_key, event: event.into() })
}

fn files(root: &mut Table<'_>, folder: &Path) -> (PathBuf, PathBuf) {
    let (mut routing, mut prices) = ("routing.toml", "prices.toml");
    if let Some(mut table) = root.table("files") {
        routing = table.string("routing").unwrap_or(routing);
        prices = table.string("prices").unwrap_or(prices);
        table.finish();
    }
    (folder.join(routing), folder.join(prices))
}

fn idempotency(root: &mut Table<'_>) -> Option<Idempotency> {
    let mut table = root.table("idempotency")?;
    let enabled = table.flag("enabled").unwrap_or(false);
    let bounds = Idempotency {
        max_entries: table.integer_in("max_entries", 1..=10_000_000).map_or(10_000, |most| most as u32),
        max_answer_bytes: bounded_size(&mut table, "max_answer", 1 << 10).unwrap_or(1 << 20),
        max_bytes: bounded_size(&mut table, "max_total", 1 << 10).unwrap_or(256 << 20),
        keep: table.duration("keep").unwrap_or(Duration::from_secs(24 * 60 * 60)),
    };
    if bounds.max_answer_bytes > bounds.max_bytes {
        table.problem("max_answer", "is more than max_total");
    }
    table.finish();
    enabled.then_some(bounds)
}

/// A size of at least `least` bytes.
fn bounded_size<'a>(table: &mut Table<'a>, key: &'a str, least: u64) -> Option<u64> {
    let size = table.size(key)?;
    if size < least {
        table.problem(key, format!("must be at least {least} bytes"));
        return None;
    }
    Some(size)
}

/// A URL that is only shown or fetched: whatever stands behind the host is its own business, but for a password.
fn is_web_url(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|rest| {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        !authority.is_empty() && !authority.contains('@') && rest.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"')
    })
}

#[cfg(test)]
mod tests;
