//! A worker's engine: the configuration, kept up to date by a thread, and the numbers of its requests.

use crate::admission::Remembered;
use crate::settings::{Away, Settings};
use arc_swap::ArcSwap;
use rustc_hash::FxHashMap;
use std::collections::HashMap;
use std::fmt::Write;
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use weir::config::load::Fingerprint;
use weir::config::pace;
use weir::config::problem::Problem;
use weir::engine::catalog::{Catalog, SecretRef};
use zeroize::Zeroizing;

/// How often the files are looked at: well inside the second in which a change should hold.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(200);
/// Without a look for so long the thread is taken to be gone: several intervals, and still a second from a fork to the next change.
const UNWATCHED_MS: u64 = 800;
/// A key file is read up to here; a larger one is no key.
const KEY_FILE_BYTES_MAX: u64 = 64 << 10;
/// Callers remembered for the times when the node is away. At the bound all are forgotten and learned again.
const REMEMBERED_MAX: usize = 10_000;

/// A worker's engine. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

/// One state of the configuration. A request keeps the one it began with.
pub struct Snapshot {
    /// What the files say.
    pub catalog: Catalog,
    /// The platform's keys by provider, from the environment and files.
    pub keys: FxHashMap<Arc<str>, Arc<Zeroizing<String>>>,
}

pub(crate) struct Inner {
    pub settings: Settings,
    pub snapshot: ArcSwap<Snapshot>,
    pub remembered: Mutex<HashMap<[u8; 32], Remembered>>,
    pub counts: Counts,
    seen: Mutex<Seen>,
    generation: AtomicU64,
    /// The process whose thread watches the files. After a fork there is none in the child.
    watched_by: AtomicU32,
    /// When that thread looked last, milliseconds since the Unix epoch.
    watched_ms: AtomicU64,
    /// Drawn when a process takes the engine over, so that two workers forked with one engine draw differently.
    salt: AtomicU64,
    random: RandomState,
    drawn: AtomicU64,
}

/// Totals since the engine was opened.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests ended, by how.
    pub ended: [AtomicU64; 4],
    /// Attempts made.
    pub attempts: AtomicU64,
    /// Input tokens.
    pub input_tokens: AtomicU64,
    /// Output tokens.
    pub output_tokens: AtomicU64,
    /// Requests that have not ended.
    pub open: AtomicU64,
    /// Sets of files that were refused.
    pub rejected: AtomicU64,
}

/// What the loaded snapshot came from.
#[derive(Default)]
struct Seen {
    files: Fingerprint,
    keys: Vec<(PathBuf, Option<(SystemTime, u64)>)>,
    problems: Vec<Problem>,
}

impl Engine {
    /// Loads the files. Errors: every problem, a line each.
    pub fn open(settings: Settings) -> Result<Engine, String> {
        let mut files = settings.files.fingerprint(&Fingerprint::default());
        let catalog = settings.files.load(&mut files).map_err(|problems| lines(&problems))?;
        let (keys, watched) = read_keys(&catalog);
        let inner = Inner {
            settings,
            snapshot: ArcSwap::from_pointee(Snapshot { catalog, keys }),
            remembered: Mutex::default(),
            counts: Counts::default(),
            seen: Mutex::new(Seen { files, keys: watched, problems: Vec::new() }),
            generation: AtomicU64::new(1),
            watched_by: AtomicU32::new(0),
            watched_ms: AtomicU64::new(0),
            salt: AtomicU64::new(0),
            random: RandomState::new(),
            drawn: AtomicU64::new(0),
        };
        Ok(Engine { inner: Arc::new(inner) })
    }

    /// Snapshots loaded since the engine was opened, the first included.
    pub fn generation(&self) -> u64 {
        self.inner.generation.load(Relaxed)
    }

    /// What is wrong with the files as they are now, a line each; empty when the snapshot in use is theirs.
    pub fn problems(&self) -> String {
        lines(&self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner).problems)
    }

    /// Begins to watch the files in this process, unless it does already. Called with every request: an engine that was made
    /// before a fork finds itself without its thread in the child. Asks which process this is only when nobody has looked at the
    /// files for a while.
    pub fn arm(&self, now_ms: u64) {
        if now_ms.saturating_sub(self.inner.watched_ms.load(Relaxed)) < UNWATCHED_MS {
            return;
        }
        let pid = std::process::id();
        let before = self.inner.watched_by.load(Relaxed);
        if before == pid || self.inner.watched_by.compare_exchange(before, pid, Relaxed, Relaxed).is_err() {
            return;
        }
        self.inner.watched_ms.store(now_ms, Relaxed);
        self.inner.salt.store(self.inner.random.hash_one((pid, now_ms)), Relaxed);
        let inner = Arc::downgrade(&self.inner);
        // Never joined: it holds nothing but a weak reference, and ends when the engine has.
        let spawned = std::thread::Builder::new().name("weir-watch".into()).spawn(move || watch(&inner, pid));
        if spawned.is_err() {
            self.inner.watched_by.store(0, Relaxed);
        }
    }

    /// Loads the files again if one of them changed. A set with a problem changes nothing.
    pub fn reload_if_changed(&self) {
        self.inner.reload_if_changed();
    }

    /// Prometheus text.
    pub fn metrics(&self) -> String {
        let counts = &self.inner.counts;
        let mut out = String::with_capacity(1024);
        let _ = writeln!(out, "# TYPE weir_plugin_requests_total counter");
        for (end, count) in ["complete", "failed", "cancelled", "refused"].iter().zip(&counts.ended) {
            let _ = writeln!(out, "weir_plugin_requests_total{{end=\"{end}\"}} {}", count.load(Relaxed));
        }
        let counters = [
            ("weir_plugin_attempts_total", &counts.attempts),
            ("weir_plugin_input_tokens_total", &counts.input_tokens),
            ("weir_plugin_output_tokens_total", &counts.output_tokens),
            ("weir_plugin_config_rejected_total", &counts.rejected),
        ];
        for (name, count) in counters {
            let _ = writeln!(out, "# TYPE {name} counter\n{name} {}", count.load(Relaxed));
        }
        let _ = writeln!(out, "# TYPE weir_plugin_requests_open gauge\nweir_plugin_requests_open {}", counts.open.load(Relaxed));
        let _ = writeln!(out, "# TYPE weir_plugin_config_generation gauge\nweir_plugin_config_generation {}", self.generation());
        out
    }

    pub(crate) fn away(&self) -> Option<Away> {
        self.inner.settings.node
    }

    /// 64 bits nobody can foresee: SipHash of a counter under a key the system drew.
    pub(crate) fn random(&self) -> u64 {
        let mut hasher = self.inner.random.build_hasher();
        hasher.write_u64(self.inner.drawn.fetch_add(1, Relaxed));
        hasher.write_u64(self.inner.salt.load(Relaxed));
        hasher.finish()
    }

    pub(crate) fn remember(&self, digest: [u8; 32], caller: Remembered) {
        let mut remembered = self.inner.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED_MAX && !remembered.contains_key(&digest) {
            remembered.clear();
        }
        remembered.insert(digest, caller);
    }

    pub(crate) fn recall(&self, digest: &[u8; 32]) -> Option<Remembered> {
        self.inner.remembered.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    pub(crate) fn forget(&self, digest: &[u8; 32]) {
        self.inner.remembered.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
    }
}

impl Inner {
    fn reload_if_changed(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut files = self.settings.files.fingerprint(&seen.files);
        let keys_same = seen.keys.iter().all(|(path, was)| stamp(path) == *was);
        if files == seen.files && keys_same {
            return;
        }
        let loaded = self.settings.files.load(&mut files);
        seen.files = files;
        match loaded {
            Ok(mut catalog) => {
                catalog.adopt(&self.snapshot.load().catalog, pace::rest);
                let (keys, watched) = read_keys(&catalog);
                seen.keys = watched;
                seen.problems.clear();
                self.snapshot.store(Arc::new(Snapshot { catalog, keys }));
                self.generation.fetch_add(1, Relaxed);
            }
            Err(problems) => {
                // The keys' files are looked at again with the next good set.
                seen.keys.iter_mut().for_each(|(path, was)| *was = stamp(path));
                seen.problems = problems;
                self.counts.rejected.fetch_add(1, Relaxed);
            }
        }
    }
}

fn watch(engine: &Weak<Inner>, pid: u32) {
    loop {
        std::thread::sleep(WATCH_INTERVAL);
        let Some(inner) = engine.upgrade() else { return };
        if inner.watched_by.load(Relaxed) != pid {
            return;
        }
        inner.watched_ms.store(now_ms(), Relaxed);
        pace::in_pieces(None, || inner.reload_if_changed());
    }
}

/// Key files and their versions when they were read.
type KeyFiles = Vec<(PathBuf, Option<(SystemTime, u64)>)>;

/// The keys a catalog refers to, as far as they are here, and the files they came from. Keys in the vault are the node's.
fn read_keys(catalog: &Catalog) -> (FxHashMap<Arc<str>, Arc<Zeroizing<String>>>, KeyFiles) {
    let mut keys = FxHashMap::default();
    let mut watched = Vec::new();
    for (name, provider) in &catalog.providers {
        let text = match &provider.key {
            Some(SecretRef::Env(variable)) => std::env::var(&**variable).ok().map(Zeroizing::new),
            Some(SecretRef::File(path)) => {
                let path = PathBuf::from(&**path);
                watched.push((path.clone(), stamp(&path)));
                read_key(&path)
            }
            Some(SecretRef::Vault(_)) | None => None,
        };
        if let Some(text) = text.filter(|text| !text.trim().is_empty()) {
            keys.insert(name.clone(), Arc::new(Zeroizing::new(text.trim().to_owned())));
        }
    }
    (keys, watched)
}

fn read_key(path: &PathBuf) -> Option<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    let read = fs::File::open(path).ok()?.take(KEY_FILE_BYTES_MAX + 1).read_to_string(&mut text).ok()?;
    (read as u64 <= KEY_FILE_BYTES_MAX).then_some(text)
}

fn stamp(path: &PathBuf) -> Option<(SystemTime, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.ino()))
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
