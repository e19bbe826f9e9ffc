//! Floor 4: where the parts are put together, once.

use crate::admin::Admin;
use crate::auth::jwks::FETCH_INTERVAL_MS;
use crate::auth::jwt::Jwt;
use crate::cli::Failure;
use crate::config::load::{Files, Fingerprint};
use crate::config::problem::Problem;
use crate::config::walk;
use crate::config::weir_toml::{Settings, StoreUrl};
use crate::engine::catalog::SecretRef;
use crate::proxy::Proxy;
use crate::proxy::body::InFlight;
use crate::proxy::client_ids::ClientIds;
use crate::proxy::cores::{Core, Sockets};
use crate::proxy::gateway::{self, Drain, Gateway, Limiters, Reload, Reloads};
use crate::proxy::idempotency::Answers;
use crate::proxy::plugin::{Admissions, Plugin};
use crate::proxy::queue::Queue;
use crate::proxy::upstream::Upstreams;
use crate::store::audit::Actor;
use crate::store::callers::{CallerKey, CallerKeys};
use crate::store::follow::{Follower, Mirror};
use crate::store::ledger::{self, Ledger};
use crate::store::secret::Secret;
use crate::store::vault::{self, KeyRing, MasterRefs, resolve_plain};
use crate::store::{self, Store};
use crate::telemetry::clock;
use crate::telemetry::log_lines::{self, Severity};
use crate::telemetry::metrics::Metrics;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_core::listeners::ListenerConfig;
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::protocols::l4::stream::L4BufferSettings;
use pingora_core::server::configuration::{Opt, ServerConf};
use pingora_core::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch};
use pingora_core::services::background::{BackgroundService, background_service};
use pingora_core::services::listening::Service;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How often the hot files are looked at: well inside the second in which a change should hold.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// Pingora waits this long between handing its sockets over and closing its own, so that no connection falls between.
const HAND_OVER_SECONDS: u64 = 5;
/// How often a drain looks whether everybody has gone.
const DRAIN_POLL: Duration = Duration::from_millis(50);

/// A gateway that is put together but not yet listening, with what must live as long as it.
pub struct App {
    /// The shared state.
    pub gateway: Arc<Gateway>,
    follower: Follower,
    admin_token: Option<Arc<Secret>>,
}

/// How to listen.
#[derive(Debug, Default)]
pub struct Listening {
    /// Take the sockets over from a running weir.
    pub upgrade: bool,
    /// Address of the built-in provider (`weir demo`).
    pub demo_provider: Option<String>,
    /// Printed once the server runs and its signals are watched.
    pub announcement: Option<String>,
}

/// Loads the hot files once. All problems are reported.
pub fn load_catalog(settings: &Settings) -> Result<crate::engine::catalog::Catalog, Vec<Problem>> {
    gateway::load(&files(settings), &mut Fingerprint::default())
}

/// Opens the store the settings name. Blocking.
pub fn open_store(settings: &Settings) -> Result<Store, Failure> {
    let StoreUrl::Secret(reference) = &settings.store else { return open_url(&settings.store) };
    let wrong = |what: &str| Failure::Failed(format!("store.url: {what}"));
    let text = resolve_plain(reference).map_err(|what| wrong(&what))?;
    // Read as if it were written out, so that every command opens the same file wherever it is started.
    open_url(&StoreUrl::parse(text.expose(), &settings.folder).map_err(|what| wrong(&format!("what it refers to {what}")))?)
}

fn open_url(url: &StoreUrl) -> Result<Store, Failure> {
    Ok(match url {
        StoreUrl::Memory => Store::in_memory()?,
        StoreUrl::Sqlite(path) => Store::open(&format!("sqlite:{}", path.display()))?,
        StoreUrl::Postgres(url) => Store::open(url)?,
        StoreUrl::Secret(_) => return Err(Failure::Failed("store.url: a reference cannot lead to another".into())),
    })
}

/// Every address can be had: Pingora would try for half a minute and then fail in a thread of its own.
fn can_listen(address: &std::net::SocketAddr) -> Result<(), Failure> {
    std::net::TcpListener::bind(address).map(drop).map_err(|error| Failure::Failed(format!("cannot listen on {address}: {error}")))
}

/// Loads all that serving would load and tells every problem with it, with what could be loaded beside them.
pub fn check(settings: &Settings) -> (crate::engine::catalog::Catalog, Vec<Problem>) {
    let (catalog, mut problems) = gateway::survey(&files(settings), &mut Fingerprint::default());
    problems.extend(check_files(settings, &catalog));
    (catalog, problems)
}

/// What is wrong with files that the configuration names and that are read later: the listeners' certificate, providers'
/// authorities. The place is that of the key that names the file.
fn check_files(settings: &Settings, catalog: &crate::engine::catalog::Catalog) -> Vec<Problem> {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let mut problems = Vec::new();
    let mut wrong = |file: &Path, keys: &[&str], what: String| {
        // What was read a moment ago can be read again, else the problem is told without its line.
        let (line, key) = walk::place(&std::fs::read_to_string(file).unwrap_or_default(), keys);
        problems.push(Problem { file: file.to_string_lossy().into_owned(), line, key, what });
    };
    if let Some(tls) = &settings.listen.tls {
        let chain = CertificateDer::pem_file_iter(&tls.cert)
            .and_then(|found| found.collect::<Result<Vec<_>, _>>())
            .map_err(|error| wrong(&settings.file, &["listen", "tls", "cert"], format!("{}: {error}", tls.cert.display())));
        let key = PrivateKeyDer::from_pem_file(&tls.key)
            .map_err(|error| wrong(&settings.file, &["listen", "tls", "key"], format!("{}: {error}", tls.key.display())));
        if let (Ok(chain), Ok(key)) = (chain, key) {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let server = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
            if let Err(error) = server {
                wrong(&settings.file, &["listen", "tls"], format!("certificate and key cannot be used together: {error}"));
            }
        }
    }
    let mut authorities: Vec<(&str, &str)> =
        catalog.providers.values().filter_map(|provider| Some((&*provider.name, provider.ca.as_deref()?))).collect();
    authorities.sort_unstable();
    for (provider, file) in authorities {
        let what = match CertificateDer::pem_file_iter(file).map(|found| found.filter(Result::is_ok).count()) {
            Ok(0) => format!("{file}: there is no certificate in it"),
            Err(error) => format!("{file}: {error}"),
            Ok(_) => continue,
        };
        wrong(&settings.routing_file, &["provider", provider, "ca"], what);
    }
    problems
}

/// Where the master keys come from; `None`: there is no vault.
pub fn master_refs(settings: &Settings) -> Option<MasterRefs> {
    settings.vault.master_key.as_ref().map(|current| MasterRefs { current: current.clone(), previous: settings.vault.previous_key.clone() })
}

/// Where a running weir hands its sockets to its successor: beside the store, which both have.
fn upgrade_socket(settings: &Settings) -> PathBuf {
    match &settings.store {
        StoreUrl::Sqlite(path) => path.with_extension("upgrade.sock"),
        _ => settings.folder.join("weir.upgrade.sock"),
    }
}

fn files(settings: &Settings) -> Files {
    Files::new(settings.routing_file.clone(), settings.prices_file.clone())
}

impl App {
    /// Opens the store, replays what a crash left, loads keys, accounts and configuration. Blocking.
    pub fn open(settings: Settings) -> Result<App, Failure> {
        // Another part of the process may have done so already, with the same provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store = open_store(&settings)?;
        let metrics = Metrics::new().map_err(|error| Failure::Failed(format!("metrics: {error}")))?;
        let key_ring = match master_refs(&settings) {
            Some(refs) => KeyRing::with_vault(refs).map_err(Failure::Failed)?,
            None => KeyRing::without_vault(),
        };
        let key_ring = Arc::new(key_ring);
        let secret = |reference: &SecretRef| resolve(&store, &key_ring, reference);
        let admin_token = settings.admin_token.as_ref().map(secret).transpose();
        let admin_token = admin_token.map_err(|what| Failure::Failed(format!("admin.token: {what}")))?.map(Arc::new);
        let jwt = settings.auth.jwt.as_ref().map(|jwt| Jwt::new(jwt, secret)).transpose().map_err(Failure::Failed)?.map(Arc::new);
        let ledger = Ledger::start(
            &store,
            ledger::Settings {
                commit: if settings.ledger.strict { ledger::Commit::Strict } else { ledger::Commit::Journal },
                sinks: crate::export::sinks(&settings),
                retention: Some(settings.ledger.retention),
                ..ledger::Settings::default()
            },
        )?;
        let accounts = ledger.accounts().clone();
        let callers = Arc::new(CallerKeys::default());
        let mirrors: Vec<Arc<dyn Mirror>> = vec![callers.clone(), key_ring.clone(), accounts.clone()];
        let follower = Follower::start(store.clone(), mirrors)?;
        let gateway = Arc::new(Gateway {
            catalog: ArcSwap::default(),
            files: files(&settings),
            reloads: Mutex::new(Reloads::default()),
            loading: Mutex::default(),
            store,
            callers,
            jwt,
            key_ring,
            ledger,
            accounts,
            limiters: Limiters::default(),
            upstreams: Arc::new(Upstreams::new()),
            queue: Queue::new(settings.limits.max_streams),
            client_ids: ClientIds::default(),
            answers: settings.idempotency.map(Answers::new),
            bodies: InFlight::new(settings.limits.max_body_in_flight_bytes),
            metrics,
            drain: Drain::default(),
            exports: Default::default(),
            upgrade_url: settings.ledger.upgrade_url.as_deref().map(Arc::from),
            open_caller: Arc::new(CallerKey::outside("open", "open", None, u64::MAX)),
            settings,
        });
        gateway.reload(Reload::Always).map_err(problems)?;
        let wrong = check_files(&gateway.settings, &gateway.catalog.load());
        if !wrong.is_empty() {
            return Err(problems(wrong));
        }
        Ok(App { gateway, follower, admin_token })
    }

    /// Serves until a signal ends it. SIGTERM drains, SIGHUP reloads, SIGQUIT hands the sockets over. The ledger is closed last.
    pub fn run(self, listening: Listening) -> Result<(), Failure> {
        // No core dump may hold a key. Where the kernel does not know the switch, deploy/ has the unit's own.
        let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
        let App { gateway, follower, admin_token } = self;
        let settings = &gateway.settings;
        let drain = settings.limits.drain;
        let threads =
            settings.limits.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), |threads| threads as usize);
        let conf = ServerConf {
            threads: 1,
            // Every service has one thread: see `proxy::cores`.
            work_stealing: false,
            upgrade_sock: upgrade_socket(settings).to_string_lossy().into_owned(),
            grace_period_seconds: Some(drain.as_secs()),
            graceful_shutdown_timeout_seconds: Some(1),
            ..ServerConf::default()
        };
        let opt = Opt { upgrade: listening.upgrade, ..Opt::default() };
        let sockets = if listening.upgrade {
            Sockets::default()
        } else {
            can_listen(&settings.listen.admin)?;
            Sockets::bind(&settings.listen.proxy).map_err(Failure::Failed)?
        };
        let mut server = Server::new_with_opt_and_conf(opt, conf);
        server.bootstrap();

        // Pingora's defaults would hold 66 KiB for every connection. The HTTP parser and TLS read into their own, and what is
        // written goes out together as it is (`proxy::together`).
        let buffers = L4BufferSettings::unbuffered();
        let sockets = Arc::new(sockets);
        for core in 0..threads {
            let core = Core::new(core, Proxy::new(gateway.clone()), &settings.listen.proxy, sockets.clone(), |address| {
                let listener = ListenerConfig::tcp(address).l4_buffer(buffers);
                let Some(tls) = &settings.listen.tls else { return Ok(listener) };
                let mut tls_settings = TlsSettings::intermediate(&tls.cert.to_string_lossy(), &tls.key.to_string_lossy())
                    .map_err(|error| format!("listen.tls: {error}"))?;
                tls_settings.enable_h2();
                Ok(listener.tls(tls_settings))
            });
            server.add_service(core.map_err(Failure::Failed)?);
        }
        let mut admin = Service::new("admin".into(), Admin::new(gateway.clone(), admin_token));
        admin.threads = Some(1);
        admin.add_tcp(&settings.listen.admin.to_string());
        server.add_service(admin);
        let admissions = settings.listen.plugin.as_ref().map(|_| Arc::new(Admissions::new(gateway.clone())));
        if let (Some(path), Some(admissions)) = (&settings.listen.plugin, &admissions) {
            let mut plugin = Service::new("plugin".into(), Plugin::new(admissions.clone()));
            // Owner and group: who may connect may spend.
            plugin.add_uds(&path.to_string_lossy(), Some(std::fs::Permissions::from_mode(0o660)));
            server.add_service(plugin);
        }
        if let Some(address) = &listening.demo_provider {
            let mut provider = Service::new("demo provider".into(), crate::cli::demo_provider::DemoProvider);
            provider.threads = Some(1);
            provider.add_tcp(address);
            server.add_service(provider);
        }
        let mut keeper = background_service("keeper", Keeper { gateway: gateway.clone(), admissions });
        keeper.threads = Some(1);
        server.add_service(keeper);

        log_lines::event(Severity::Info, "serving", &format!("{:?}", settings.listen.proxy));
        server.run(RunArgs { shutdown_signal: Box::new(Signals { gateway: gateway.clone(), announcement: listening.announcement }) });
        close(&gateway, follower);
        Ok(())
    }
}

/// The last thing: nobody is served any more, so every row is there.
fn close(gateway: &Gateway, follower: Follower) {
    drop(follower);
    gateway.ledger.shutdown();
    log_lines::event(Severity::Info, "stopped", "");
    log_lines::flush();
}

/// Every problem on a line of its own.
pub fn problems(problems: Vec<Problem>) -> Failure {
    Failure::Failed(problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))
}

/// What goes on beside the requests: hot files, SIGHUP, exports, retention, probes, an issuer's keys, admissions that nobody settles.
struct Keeper {
    gateway: Arc<Gateway>,
    admissions: Option<Arc<Admissions>>,
}

#[async_trait]
impl BackgroundService for Keeper {
    async fn start(&self, mut shutdown: pingora_core::server::ShutdownWatch) {
        let gateway = self.gateway.clone();
        let keys = gateway.clone();
        crate::export::start_with(&gateway.store, &gateway.settings, &gateway.exports, move |reference| {
            resolve(&keys.store, &keys.key_ring, reference)
        });
        tokio::spawn(crate::proxy::probe::run(gateway.clone()));
        if let Some(jwt) = &gateway.jwt {
            tokio::spawn(keep_keys(jwt.clone()));
        }
        if let Some(admissions) = &self.admissions {
            tokio::spawn(admissions.clone().sweep());
        }
        let mut hangup = signal(SignalKind::hangup()).ok();
        let mut watch = tokio::time::interval(WATCH_INTERVAL);
        loop {
            let (when, who) = tokio::select! {
                _ = shutdown.changed() => return,
                _ = watch.tick() => (Reload::IfChanged, "file"),
                _ = async { match hangup.as_mut() { Some(hangup) => { hangup.recv().await; } None => std::future::pending().await } } => (Reload::Always, "signal"),
            };
            gateway.upstreams.sweep();
            let gateway = gateway.clone();
            // Problems are logged and counted where they are found.
            let _ = tokio::task::spawn_blocking(move || gateway.reload_for(when, Actor { who, from: "local" })).await;
        }
    }
}

/// Keeps an issuer's keys up to date, for ever.
async fn keep_keys(jwt: Arc<Jwt>) {
    let mut watch = tokio::time::interval(Duration::from_millis(FETCH_INTERVAL_MS));
    loop {
        watch.tick().await;
        jwt.renew_due(clock::now_ms()).await;
    }
}

/// A secret of the program's own, wherever it is kept. Blocking. The error names the reference, never what it leads to.
fn resolve(store: &Store, key_ring: &KeyRing, reference: &SecretRef) -> Result<Secret, String> {
    let SecretRef::Vault(name) = reference else { return resolve_plain(reference) };
    let masters = key_ring.masters().ok_or_else(|| format!("vault:{name}: there is no vault: set [vault] master_key"))?;
    vault::open(store, &masters, vault::PLATFORM, name).map(|(_, secret)| secret).map_err(|error| format!("vault:{name}: {error}"))
}

/// What ends the server.
struct Signals {
    gateway: Arc<Gateway>,
    announcement: Option<String>,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let (Ok(mut terminate), Ok(mut quit), Ok(mut interrupt)) =
            (signal(SignalKind::terminate()), signal(SignalKind::quit()), signal(SignalKind::interrupt()))
        else {
            log_lines::event(Severity::Error, "signals", "cannot be watched; stopping");
            return ShutdownSignal::FastShutdown;
        };
        if let Some(text) = &self.announcement {
            // Nobody reads it: then nobody wanted it.
            let _ = std::io::stdout().lock().write_all(text.as_bytes());
        }
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
            _ = quit.recv() => {
                log_lines::event(Severity::Info, "handing the sockets over", "");
                let gateway = self.gateway.clone();
                std::thread::spawn(move || leave_after_hand_over(&gateway));
                return ShutdownSignal::GracefulUpgrade;
            }
        }
        log_lines::event(Severity::Info, "draining", "");
        self.gateway.drain.start();
        let until = tokio::time::Instant::now() + self.gateway.settings.limits.drain;
        // The first moments are for clients that are just sending: they get their 503 rather than a closed door.
        loop {
            tokio::time::sleep(DRAIN_POLL).await;
            if self.gateway.drain.active() == 0 || tokio::time::Instant::now() >= until {
                return ShutdownSignal::FastShutdown;
            }
            tokio::select! {
                _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
                _ = std::future::ready(()) => {}
            }
        }
    }
}

/// After a hand-over the old process serves what it has and leaves as soon as that is done.
fn leave_after_hand_over(gateway: &Gateway) {
    std::thread::sleep(Duration::from_secs(HAND_OVER_SECONDS + 1));
    gateway.drain.close_connections();
    let until_ms = clock::now_ms() + gateway.settings.limits.drain.as_millis() as u64;
    end_requests(&gateway.drain, until_ms);
    gateway.ledger.shutdown();
    // Those that were refused meanwhile have their 503.
    wait_until_idle(&gateway.drain, until_ms);
    log_lines::event(Severity::Info, "stopped", "the successor serves");
    log_lines::flush();
    std::process::exit(0);
}

/// Serves what comes until there is a moment without a request, then refuses: a client that kept its connection would begin one that
/// the process's end cuts, and connects to the successor instead. Nothing is under way afterwards, unless `until_ms` passed.
fn end_requests(drain: &Drain, until_ms: u64) {
    wait_until_idle(drain, until_ms);
    drain.start();
    wait_until_idle(drain, until_ms);
}

/// Waits until no request is under way, at the latest until `until_ms`. Blocking.
fn wait_until_idle(drain: &Drain, until_ms: u64) {
    while drain.active() > 0 && clock::now_ms() < until_ms {
        std::thread::sleep(DRAIN_POLL);
    }
}

impl From<store::Error> for Box<Failure> {
    fn from(error: store::Error) -> Box<Failure> {
        Box::new(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::weir_toml;

    fn settings(folder: &Path, text: &str) -> Settings {
        weir_toml::parse(&folder.join("weir.toml").to_string_lossy(), text).unwrap()
    }

    #[test]
    fn a_store_by_reference_is_the_one_written_out() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let absolute = format!("sqlite://{}/other/weir.db", folder.display());
        for (url, file) in [("sqlite:var/weir.db", "var/weir.db"), ("sqlite://var/weir.db", "var/weir.db"), (&absolute, "other/weir.db")] {
            std::fs::write(folder.join("url"), format!("{url}\n")).unwrap();
            for written in [url, "file:url"] {
                let store = open_store(&settings(folder, &format!("[store]\nurl = \"{written}\"\n"))).unwrap();
                assert_eq!(store.path(), Some(&*folder.join(file)), "{written} {url}");
            }
        }
        for (url, expected) in [("sqlite:", "no file"), ("mysql://u:hunter2@h", "sqlite:PATH"), ("file:url", "sqlite:PATH")] {
            std::fs::write(folder.join("url"), url).unwrap();
            let Err(Failure::Failed(what)) = open_store(&settings(folder, "[store]\nurl = \"file:url\"\n")) else { panic!("{url}") };
            assert!(what.starts_with("store.url: ") && what.contains(expected) && !what.contains("hunter2"), "{what}");
        }
    }

    #[test]
    fn the_programs_own_secrets_may_be_in_the_vault() {
        const TEXT: &str = "[vault]\nmaster_key = \"file:master\"\n[admin]\ntoken = \"vault:admin\"\n[auth]\nmode = \"jwt\"\n\
                            [auth.jwt]\nissuer = \"https://issuer.example\"\naudience = \"weir\"\nsecret = \"vault:shared\"\n";
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for (file, text) in [("master", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="), ("routing.toml", ""), ("prices.toml", "")] {
            std::fs::write(folder.join(file), text).unwrap();
        }
        let settings = || settings(folder, TEXT);
        let (store, ring) = (open_store(&settings()).unwrap(), KeyRing::with_vault(master_refs(&settings()).unwrap()).unwrap());
        let refused = |expected: &str| match App::open(settings()) {
            Err(Failure::Failed(what)) => assert!(what.starts_with(expected), "{what}"),
            _ => panic!("{expected}"),
        };
        let put = |name: &str, secret: &str| {
            let key = Secret::copied(secret);
            let entry = vault::NewEntry { account: vault::PLATFORM, provider: name, kind: None, name: None, base_url: None, key: &key };
            vault::set(&store, &ring.masters().unwrap(), &entry, Actor { who: "cli:test", from: "local" }, 1).unwrap();
        };
        refused("admin.token: vault:admin: ");
        put("admin", "token-0123456789abcdef0123456789abcdef");
        refused("auth.jwt.secret: vault:shared: ");
        put("shared", "shared-0123456789abcdef0123456789abcdef");
        let app = App::open(settings()).unwrap();
        assert_eq!(app.admin_token.as_ref().unwrap().expose(), "token-0123456789abcdef0123456789abcdef");
        assert!(app.gateway.jwt.is_some());
        app.gateway.ledger.shutdown();
    }

    #[test]
    fn nothing_begins_behind_the_last_request() {
        let drain = Drain::default();
        std::thread::scope(|scope| {
            let running = drain.begin();
            let leaving = scope.spawn(|| end_requests(&drain, u64::MAX));
            assert!(!drain.is_draining(), "it serves on beside a running stream");
            drop(running);
            leaving.join().unwrap();
        });
        assert!(drain.is_draining() && drain.active() == 0);
        // A request that does not end is not waited for beyond the limit, and no other joins it.
        let (drain, past) = (Drain::default(), 0);
        let _stuck = drain.begin();
        end_requests(&drain, past);
        assert!(drain.is_draining());
    }
}
