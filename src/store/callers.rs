//! Callers' keys in memory: a map from a secret's hash to its key, read without a lock.

use super::accounts::Accounts;
use super::follow::Mirror;
use super::keys::{self, LENGTH, Loaded, PREFIX};
use super::last_use::{LastUse, Saving, Used};
use super::{Result, Store, Topic};
use crate::engine::budget::Account;
use crate::engine::limit::{Limiter, Limits};
use crate::engine::policy::{OPEN, Scopes};
use parking_lot::Mutex;
use rusqlite::ToSql;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, OnceLock};

/// A caller's key, or what stands for one (a verified token, the open mode).
#[derive(Debug)]
pub struct CallerKey {
    /// Its id: `key_…`, `jwt:USER` or `open`.
    pub id: Arc<str>,
    /// For people.
    pub name: Box<str>,
    /// Who pays. The account's live state is in the ledger's map, by this name.
    pub account_id: Arc<str>,
    /// Its tier; `None`: the default tier.
    pub tier: Option<Arc<str>>,
    /// `None`: everything its tier opens.
    scopes: Option<Box<Scopes>>,
    /// When the secret it was found by stops, in milliseconds since the Unix epoch; `u64::MAX`: never.
    pub expires_ms: u64,
    /// It was made with credits: its account must exist in the ledger's map, or it must not spend.
    pub has_budget: bool,
    limits: Option<Box<Limits>>,
    /// Its account's live state, once it was looked for.
    account: OnceLock<Arc<Account>>,
    /// The first tier that it was in with limits, and its account's limiter there. 32 bytes.
    in_tier: OnceLock<(Arc<str>, Arc<Limiter>)>,
    revoked: bool,
    /// Its row's place in the table ([`Used::place`]). In 32 bits it takes no room of its own here.
    place: u32,
    last_use: LastUse,
}

impl CallerKey {
    /// A caller that is not in the store (a verified token, the open mode).
    pub fn outside(id: &str, account: &str, tier: Option<&str>, expires_ms: u64) -> CallerKey {
        let id: Arc<str> = id.into();
        CallerKey {
            name: Box::from(&*id),
            account_id: if *account == *id { id.clone() } else { account.into() },
            id,
            tier: tier.map(Arc::from),
            scopes: None,
            expires_ms,
            has_budget: false,
            limits: None,
            account: OnceLock::new(),
            in_tier: OnceLock::new(),
            revoked: false,
            place: 0,
            last_use: LastUse::stored(0),
        }
    }

    /// Its own limits, beside its tier's.
    pub fn limits(&self) -> Limits {
        self.limits.as_deref().copied().unwrap_or_default()
    }

    /// The account it draws on. Looked for once: there are few places in main memory then that a request of a rare caller waits for.
    pub fn account(&self, accounts: &Accounts) -> &Arc<Account> {
        self.account.get_or_init(|| accounts.of(&self.account_id))
    }

    /// What [`CallerKey::is_in_tier`] was told.
    pub fn in_tier(&self) -> Option<&(Arc<str>, Arc<Limiter>)> {
        self.in_tier.get()
    }

    /// Keeps its account's limiter in a tier, unless it has one already.
    pub fn is_in_tier(&self, tier: Arc<str>, limiter: Arc<Limiter>) {
        let _ = self.in_tier.set((tier, limiter));
    }

    /// What it may be used for.
    pub fn scopes(&self) -> &Scopes {
        self.scopes.as_deref().unwrap_or(&OPEN)
    }
}

/// Why a presented key does not open the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// Not a key of ours.
    Unknown,
    /// Its time is over, or it was rotated and the overlap is.
    Expired,
    /// It was revoked.
    Revoked,
}

/// All callers' keys.
pub struct CallerKeys {
    by_hash: papaya::HashMap<[u8; 32], Held, BuildHasherDefault<FirstBytes>>,
    saving: Saving<CallerKey>,
    /// One writer at a time: a reload and a refresh must not interleave. Never taken by a lookup.
    writing: Mutex<()>,
}

#[derive(Clone)]
struct Held {
    key: Arc<CallerKey>,
    /// This secret's own end; an old secret ends before its key.
    until_ms: u64,
}

impl Default for CallerKeys {
    fn default() -> CallerKeys {
        CallerKeys { by_hash: papaya::HashMap::default(), saving: Saving::default(), writing: Mutex::new(()) }
    }
}

impl fmt::Debug for CallerKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallerKeys").field("secrets", &self.len()).finish()
    }
}

impl CallerKeys {
    /// Secrets in memory.
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    /// No secret in memory.
    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }

    /// The key behind a presented secret. No lock, no allocation, no I/O.
    ///
    /// What is compared is a SHA-256, not the secret: how long it takes tells a guesser nothing that helps to guess.
    pub fn lookup(&self, presented: &str, now_ms: u64) -> std::result::Result<Arc<CallerKey>, Denied> {
        if presented.len() != LENGTH || !presented.starts_with(PREFIX) {
            return Err(Denied::Unknown);
        }
        let map = self.by_hash.pin();
        let held = map.get(&keys::hash(presented)).ok_or(Denied::Unknown)?;
        if held.key.revoked {
            return Err(Denied::Revoked);
        }
        if held.until_ms <= now_ms {
            return Err(Denied::Expired);
        }
        held.key.last_use.note(now_ms);
        Ok(held.key.clone())
    }

    /// The key of an id. Looks at every one: for commands.
    pub fn by_id(&self, id: &str) -> Option<Arc<CallerKey>> {
        self.by_hash.pin().values().find(|held| *held.key.id == *id).map(|held| held.key.clone())
    }

    /// Takes a key in, in the place of what was known of it.
    fn put(&self, hash: [u8; 32], held: Held) {
        let map = self.by_hash.pin();
        if let Some(before) = map.get(&hash) {
            held.key.last_use.follow(&before.key.last_use);
        }
        map.insert(hash, held);
    }
}

impl Mirror for CallerKeys {
    fn topic(&self) -> Topic {
        Topic::Key
    }

    fn reload(&self, store: &Store) -> Result<()> {
        let _one = self.writing.lock();
        let mut names = Names::default();
        // Nothing to forget in an empty map, so the first load of a million keys does without a second set of hashes.
        let mut seen = (!self.is_empty()).then(HashSet::<[u8; 32], BuildHasherDefault<FirstBytes>>::default);
        store.read(|connection| {
            let tx = connection.unchecked_transaction()?;
            let count: usize = tx.query_row("SELECT count(*) FROM keys", [], |row| row.get::<_, i64>(0))?.try_into().unwrap_or(0);
            self.by_hash.pin().reserve(count);
            keys::load(&tx, None, |loaded| {
                if let Some(seen) = &mut seen {
                    seen.insert(loaded.hash);
                }
                let (hash, held) = names.held(loaded);
                self.put(hash, held);
            })
        })?;
        if let Some(seen) = seen {
            self.by_hash.pin().retain(|hash, _| seen.contains(hash));
        }
        Ok(())
    }

    fn refresh(&self, store: &Store, id: &str) -> Result<()> {
        let _one = self.writing.lock();
        let mut names = Names::default();
        store.read(|connection| {
            let tx = connection.unchecked_transaction()?;
            keys::load(&tx, Some(id), |loaded| {
                let (hash, held) = names.held(loaded);
                self.put(hash, held);
            })
        })
    }

    fn tick(&self, store: &Store, now_ms: u64) -> Result<()> {
        self.saving.tick(store, now_ms, |each| self.by_hash.pin().values().for_each(|held| each(&held.key)))
    }
}

impl Used for CallerKey {
    const SAVE: &'static str = "UPDATE keys SET last_used_ms = max(coalesce(last_used_ms, 0), ?2) WHERE id = ?1";

    fn id(&self) -> &dyn ToSql {
        &self.id
    }

    fn place(&self) -> i64 {
        self.place.into()
    }

    fn last_use(&self) -> &LastUse {
        &self.last_use
    }
}

/// Texts that many keys share, once in memory.
#[derive(Default)]
struct Names {
    texts: HashMap<String, Arc<str>>,
}

impl Names {
    fn shared(&mut self, text: String) -> Arc<str> {
        if let Some(shared) = self.texts.get(&text) {
            return shared.clone();
        }
        let shared: Arc<str> = text.as_str().into();
        self.texts.insert(text, shared.clone());
        shared
    }

    fn held(&mut self, loaded: Loaded) -> ([u8; 32], Held) {
        let id: Arc<str> = loaded.id.into();
        let key = CallerKey {
            name: loaded.name.into(),
            // Most keys without a named account: one text for both.
            account_id: if *loaded.account == *id { id.clone() } else { self.shared(loaded.account) },
            id,
            tier: loaded.tier.map(|tier| self.shared(tier)),
            scopes: loaded.scopes.map(Box::new),
            expires_ms: loaded.until_ms,
            has_budget: loaded.has_budget,
            limits: if loaded.limits == Limits::default() { None } else { Some(Box::new(loaded.limits)) },
            account: OnceLock::new(),
            in_tier: OnceLock::new(),
            revoked: loaded.revoked,
            place: u32::try_from(loaded.place).unwrap_or(u32::MAX),
            last_use: LastUse::stored(loaded.last_used_ms),
        };
        (loaded.hash, Held { key: Arc::new(key), until_ms: loaded.until_ms })
    }
}

/// The map's keys are SHA-256 values: their first eight bytes are as good a hash as any.
#[derive(Default)]
struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*first);
        }
    }
    // The array's length prefix adds nothing.
    fn write_usize(&mut self, _: usize) {}
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::audit::Actor;
    use crate::store::follow::Follower;
    use crate::store::keys::{Created, NewKey, create, list, revoke, rotate};
    use rusqlite::params;

    const ACTOR: Actor<'static> = Actor { who: "cli:test", from: "local" };

    fn made(store: &Store, expires_ms: Option<u64>) -> Created {
        create(store, &NewKey { name: "a".into(), expires_ms, ..NewKey::default() }, ACTOR, 1).unwrap()
    }

    fn seen(keys: &CallerKeys, key: &Created, now_ms: u64) -> std::result::Result<String, Denied> {
        keys.lookup(key.key.expose(), now_ms).map(|found| found.id.to_string())
    }

    #[test]
    fn a_key_opens_until_it_expires_or_is_revoked() {
        let store = Store::in_memory().unwrap();
        let (forever, short) = (made(&store, None), made(&store, Some(100)));
        let keys = CallerKeys::default();
        keys.reload(&store).unwrap();
        assert_eq!(seen(&keys, &forever, u64::MAX - 1), Ok(forever.id.clone()));
        assert_eq!(seen(&keys, &short, 99), Ok(short.id.clone()));
        assert_eq!(seen(&keys, &short, 100), Err(Denied::Expired));
        revoke(&store, &forever.id, ACTOR, 5).unwrap();
        keys.refresh(&store, &forever.id).unwrap();
        assert_eq!(seen(&keys, &forever, 6), Err(Denied::Revoked));
    }

    #[test]
    fn strangers_are_unknown() {
        let store = Store::in_memory().unwrap();
        let key = made(&store, None);
        let keys = CallerKeys::default();
        keys.reload(&store).unwrap();
        let text = key.key.expose();
        let changed = format!("{}{}", &text[..LENGTH - 1], if text.ends_with('A') { 'B' } else { 'A' });
        for presented in ["", "wk_", &text[1..], &text[..LENGTH - 1], &format!("{text}A"), &changed, &"é".repeat(23)] {
            assert_eq!(keys.lookup(presented, 1).unwrap_err(), Denied::Unknown);
        }
    }

    #[test]
    fn rotation_overlaps() {
        let store = Store::in_memory().unwrap();
        let first = made(&store, Some(1000));
        let keys = CallerKeys::default();
        keys.reload(&store).unwrap();
        let second = rotate(&store, &first.id, 50, ACTOR, 100).unwrap();
        keys.refresh(&store, &first.id).unwrap();
        assert_eq!(seen(&keys, &first, 149), Ok(first.id.clone()));
        assert_eq!(seen(&keys, &first, 150), Err(Denied::Expired));
        assert_eq!(seen(&keys, &second, 999), Ok(first.id.clone()));
        assert_eq!(seen(&keys, &second, 1000), Err(Denied::Expired));
        // A second rotation without overlap ends all before it, and an overlap never outlives the key.
        let third = rotate(&store, &first.id, 0, ACTOR, 110).unwrap();
        let fourth = rotate(&store, &first.id, 5000, ACTOR, 120).unwrap();
        for keys in [keys, CallerKeys::default()] {
            keys.reload(&store).unwrap();
            assert_eq!(seen(&keys, &first, 120), Err(Denied::Expired));
            assert_eq!(seen(&keys, &second, 120), Err(Denied::Expired));
            assert_eq!(seen(&keys, &third, 999), Ok(first.id.clone()));
            assert_eq!(seen(&keys, &third, 1000), Err(Denied::Expired));
            assert_eq!(seen(&keys, &fourth, 999), Ok(first.id.clone()));
        }
        revoke(&store, &first.id, ACTOR, 5).unwrap();
        let keys = CallerKeys::default();
        keys.reload(&store).unwrap();
        assert_eq!((seen(&keys, &third, 6), seen(&keys, &fourth, 6)), (Err(Denied::Revoked), Err(Denied::Revoked)));
    }

    #[test]
    fn a_reload_forgets_what_the_store_lost() {
        let store = Store::in_memory().unwrap();
        let (kept, lost) = (made(&store, None), made(&store, None));
        let keys = CallerKeys::default();
        keys.reload(&store).unwrap();
        store.write(|tx| Ok(tx.execute("DELETE FROM keys WHERE id = ?1", [&lost.id])?)).unwrap();
        keys.reload(&store).unwrap();
        assert_eq!((seen(&keys, &kept, 1).is_ok(), seen(&keys, &lost, 1)), (true, Err(Denied::Unknown)));
    }

    #[test]
    fn another_process_revokes() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}/weir.db", folder.path().display());
        let (server, command) = (Store::open(&url).unwrap(), Store::open(&url).unwrap());
        let keys = Arc::new(CallerKeys::default());
        let follower = Follower::start(server, vec![keys.clone()]).unwrap();
        let key = made(&command, None);
        let id = key.id.clone();
        revoke(&command, &id, ACTOR, 2).unwrap();
        // The drop polls a last time.
        drop(follower);
        assert_eq!(seen(&keys, &key, 3), Err(Denied::Revoked));
    }

    #[test]
    fn last_use_is_saved_and_survives_a_refresh_and_a_reload() {
        let store = Store::in_memory().unwrap();
        let key = made(&store, None);
        let keys = CallerKeys::default();
        keys.reload(&store).unwrap();
        for now_ms in [70_000, 80_000] {
            seen(&keys, &key, now_ms).unwrap();
        }
        keys.refresh(&store, &key.id).unwrap();
        keys.reload(&store).unwrap();
        keys.tick(&store, 90_000).unwrap();
        assert_eq!(list(&store, 90_000).unwrap()[0].last_used_ms, Some(70_000));
    }

    /// Run by hand: `cargo test --release --lib a_million_keys -- --ignored --nocapture`.
    #[test]
    #[ignore = "measures; takes a minute"]
    fn a_million_keys() {
        const COUNT: u64 = 1_000_000;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}/weir.db", folder.path().display())).unwrap();
        let text = |number: u64| format!("{PREFIX}{number:043}");
        store
            .write(|tx| {
                let sql = "INSERT INTO keys (id, hash, shown, name, account, tier, has_budget, created_ms) VALUES (?1, ?2, '', ?3, ?1, 'starter', 0, 0)";
                let mut insert = tx.prepare(sql)?;
                for number in 0..COUNT {
                    insert.execute(params![format!("key_{number:012}"), keys::hash(&text(number)), format!("customer {number}")])?;
                }
                Ok(())
            })
            .unwrap();
        let resident = || -> u64 {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
        };
        let before = resident();
        let start = std::time::Instant::now();
        let keys = CallerKeys::default();
        keys.reload(&store).unwrap();
        eprintln!("load {:?}, {} bytes a key", start.elapsed(), (resident() - before) / COUNT);
        let texts: Vec<_> = (0..COUNT).step_by(7).map(text).collect();
        let start = std::time::Instant::now();
        for text in &texts {
            keys.lookup(text, 1).unwrap();
        }
        eprintln!("lookup {:?}", start.elapsed() / texts.len() as u32);
    }
}
