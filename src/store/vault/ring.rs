//! The keys requests are sent with, in memory.
//!
//! The platform's keys are opened when they are loaded: a handful, used by nearly every request, and in the environment of
//! this process anyway when they are `env:`. The users' own stay sealed and are opened for each use into a buffer that is
//! zeroed when it drops. There is deliberately no cache of opened ones: opening costs under a microsecond (AES in hardware),
//! and what is not kept open need not be evicted.

use super::seal::{Belongs, CannotOpen, Masters, Sealed, named, resolve_plain};
use super::{PLATFORM, ROW, SealedRow, row};
use crate::engine::catalog::{BaseUrl, SecretRef};
use crate::engine::health::KeyState;
use crate::store::follow::Mirror;
use crate::store::last_use::{LastUse, Saving, Used};
use crate::store::secret::Secret;
use crate::store::{Result, Store, Topic};
use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use rusqlite::ToSql;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

/// Where the master keys come from.
#[derive(Debug, Clone)]
pub struct MasterRefs {
    /// `vault.master_key`.
    pub current: SecretRef,
    /// `vault.previous_key`, while a rotation is under way.
    pub previous: Option<SecretRef>,
}

/// All keys that requests are sent with.
pub struct KeyRing {
    /// `None`: no vault is configured.
    refs: Option<MasterRefs>,
    masters: ArcSwapOption<Masters>,
    platform: ArcSwap<HashMap<SecretRef, Arc<Secret>>>,
    own: papaya::HashMap<Arc<str>, Arc<[Arc<OwnRow>]>>,
    /// One writer at a time; what `platform` should hold, found or not. Never taken by a request.
    wanted: Mutex<Vec<SecretRef>>,
    saving: Saving<OwnRow>,
}

/// A user's own key at a provider.
#[derive(Clone)]
pub struct OwnKey {
    row: Arc<OwnRow>,
    masters: Arc<Masters>,
}

struct OwnRow {
    id: i64,
    changed_ms: u64,
    account: Arc<str>,
    provider: Box<str>,
    name: Box<str>,
    /// As stored (it is authenticated) and as parsed.
    base_url: Option<(Box<str>, BaseUrl)>,
    shown: Box<str>,
    sealed: Sealed,
    /// Survives a fresh sealing, not a fresh key.
    state: Arc<KeyState>,
    last_use: LastUse,
}

impl OwnKey {
    /// Opens the key for one use and notes the time. The secret is zeroed when it drops: do not keep it.
    pub fn open(&self, now_ms: u64) -> std::result::Result<Secret, CannotOpen> {
        let row = &*self.row;
        row.last_use.note(now_ms);
        let base_url = row.base_url.as_ref().map(|(text, _)| &**text);
        self.masters.open(Belongs { account: &row.account, provider: &row.provider, name: &row.name, base_url }, &row.sealed)
    }

    /// Its live state: this user's cooldowns, nobody else's.
    pub fn state(&self) -> &Arc<KeyState> {
        &self.row.state
    }

    /// The owner's own base URL. It may only be followed to public addresses, and only where the tier allows it.
    pub fn base_url(&self) -> Option<&BaseUrl> {
        self.row.base_url.as_ref().map(|(_, base)| base)
    }

    /// Its name, for refusals that say which key.
    pub fn name(&self) -> &str {
        &self.row.name
    }

    /// First and last four characters, for its owner.
    pub fn shown(&self) -> &str {
        &self.row.shown
    }
}

impl KeyRing {
    /// A ring without a vault: `env:` and `file:` references only.
    pub fn without_vault() -> KeyRing {
        KeyRing::new(None, None)
    }

    /// A ring over the vault. The error names what is wrong with which reference.
    pub fn with_vault(refs: MasterRefs) -> std::result::Result<KeyRing, String> {
        let masters = Masters::resolve(&refs.current, refs.previous.as_ref())?;
        Ok(KeyRing::new(Some(refs), Some(Arc::new(masters))))
    }

    /// A ring with a master key that is nowhere else, for `weir demo`.
    pub fn throw_away(masters: Masters) -> KeyRing {
        KeyRing::new(None, Some(Arc::new(masters)))
    }

    fn new(refs: Option<MasterRefs>, masters: Option<Arc<Masters>>) -> KeyRing {
        KeyRing {
            refs,
            masters: ArcSwapOption::new(masters),
            platform: ArcSwap::default(),
            own: papaya::HashMap::new(),
            wanted: Mutex::default(),
            saving: Saving::default(),
        }
    }

    /// The master keys, for storing and checking keys; `None`: no vault is configured.
    pub fn masters(&self) -> Option<Arc<Masters>> {
        self.masters.load_full()
    }

    /// The platform's key behind a reference. No lock, no I/O.
    pub fn platform(&self, reference: &SecretRef) -> Option<Arc<Secret>> {
        self.platform.load().get(reference).cloned()
    }

    /// A user's own key at a provider (by its name in `routing.toml`). No lock, no I/O, not opened yet.
    pub fn own(&self, account: &str, provider: &str) -> Option<OwnKey> {
        let map = self.own.pin();
        let row = map.get(account)?.iter().find(|row| *row.provider == *provider)?;
        Some(OwnKey { row: row.clone(), masters: self.masters.load_full()? })
    }

    /// The state of a user's own key at a provider, for planning.
    pub fn own_state(&self, account: &str, provider: &str) -> Option<Arc<KeyState>> {
        let map = self.own.pin();
        map.get(account)?.iter().find(|row| *row.provider == *provider).map(|row| row.state.clone())
    }

    /// Reads references and uses what they lead to in the place of those before. Returns what could not be read, and why: references by
    /// name, never a key. With an error of the store all stays as it was. Blocking.
    pub fn load(&self, store: &Store, references: impl IntoIterator<Item = SecretRef>) -> Result<Vec<(SecretRef, String)>> {
        // From before the first read: a change that is followed meanwhile would be replaced by what was read before it.
        let mut wanted = self.wanted.lock();
        let (mut keys, mut problems) = (HashMap::new(), Vec::new());
        let mut unique = HashSet::new();
        let references: Vec<SecretRef> = references.into_iter().filter(|reference| unique.insert(reference.clone())).collect();
        for reference in &references {
            let found = match reference {
                SecretRef::Vault(name) => self.vaulted(store, name)?,
                plain => resolve_plain(plain),
            };
            match found {
                Ok(secret) => drop(keys.insert(reference.clone(), Arc::new(secret))),
                Err(why) => problems.push((reference.clone(), why)),
            }
        }
        *wanted = references;
        self.platform.store(Arc::new(keys));
        Ok(problems)
    }

    /// The platform's key of a name.
    fn vaulted(&self, store: &Store, name: &str) -> Result<std::result::Result<Secret, String>> {
        let rows = rows(store, "account = '' AND name = ?1", name)?;
        let Some(found) = rows.first() else {
            return Ok(Err(format!("vault:{name} is not in the vault: `weir vault set {name}` puts it there")));
        };
        self.learn_masters(&rows);
        let Some(masters) = self.masters.load_full() else {
            return Ok(Err(format!("vault:{name} needs vault.master_key")));
        };
        Ok(masters.open(found.belongs(), &found.sealed).map_err(|why| format!("vault:{name}: {why}")))
    }

    /// Reads the master keys again when a row names one that is not known: a `file:` may hold the new one by now.
    fn learn_masters(&self, rows: &[SealedRow]) {
        let strange = |masters: &Masters| rows.iter().any(|row| !masters.knows(&row.sealed.master_id));
        if let Some(refs) = &self.refs
            && self.masters.load().as_ref().is_none_or(|masters| strange(masters))
            && let Ok(masters) = Masters::resolve(&refs.current, refs.previous.as_ref())
        {
            self.masters.store(Some(Arc::new(masters)));
        }
    }

    /// Puts the rows of one account in the place of those before; states, and sealings that still open, are carried over.
    fn put(&self, account: &Arc<str>, rows: Vec<SealedRow>) {
        let map = self.own.pin();
        if rows.is_empty() {
            map.remove(account);
            return;
        }
        let before = map.get(account).cloned();
        let masters = self.masters.load_full();
        let fresh = |row: SealedRow| {
            let old = before.iter().flat_map(|rows| rows.iter()).find(|old| old.id == row.entry.id);
            Arc::new(OwnRow::new(account, row, old, masters.as_deref()))
        };
        let rows: Arc<[Arc<OwnRow>]> = rows.into_iter().map(fresh).collect();
        map.insert(account.clone(), rows);
    }

    fn reload_own(&self, store: &Store) -> Result<()> {
        let all = rows(store, "account <> ?1", PLATFORM)?;
        self.learn_masters(&all);
        let mut by_account: HashMap<Arc<str>, Vec<SealedRow>> = HashMap::new();
        for row in all {
            by_account.entry(row.entry.account.as_str().into()).or_default().push(row);
        }
        self.own.pin().retain(|account, _| by_account.contains_key(account));
        for (account, rows) in by_account {
            self.put(&account, rows);
        }
        Ok(())
    }

    /// Reads the vault's part of the platform's keys again. One that cannot be opened any more stays as it is: during a rotation
    /// a server that does not have the new master key yet goes on with what it has; one that was removed goes.
    fn reload_platform(&self, store: &Store) -> Result<()> {
        let wanted = self.wanted.lock();
        let mut keys = HashMap::clone(&self.platform.load());
        for reference in wanted.iter() {
            let SecretRef::Vault(name) = reference else { continue };
            match self.vaulted(store, name)? {
                Ok(secret) => drop(keys.insert(reference.clone(), Arc::new(secret))),
                Err(why) => {
                    log::warn!("{}: {why}", named(reference));
                    if rows(store, "account = '' AND name = ?1", name)?.is_empty() {
                        keys.remove(reference);
                    }
                }
            }
        }
        self.platform.store(Arc::new(keys));
        Ok(())
    }
}

impl Mirror for KeyRing {
    fn topic(&self) -> Topic {
        Topic::ProviderKey
    }

    fn reload(&self, store: &Store) -> Result<()> {
        self.reload_own(store)?;
        self.reload_platform(store)
    }

    fn refresh(&self, store: &Store, account: &str) -> Result<()> {
        if account == PLATFORM {
            return self.reload_platform(store);
        }
        let rows = rows(store, "account = ?1", account)?;
        self.learn_masters(&rows);
        self.put(&account.into(), rows);
        Ok(())
    }

    fn tick(&self, store: &Store, now_ms: u64) -> Result<()> {
        self.saving.tick(store, now_ms, |each| self.own.pin().values().flat_map(|rows| rows.iter()).for_each(each))
    }
}

impl Used for OwnRow {
    const SAVE: &'static str = "UPDATE vault SET last_used_ms = max(coalesce(last_used_ms, 0), ?2) WHERE id = ?1";

    fn id(&self) -> &dyn ToSql {
        &self.id
    }

    fn place(&self) -> i64 {
        self.id
    }

    fn last_use(&self) -> &LastUse {
        &self.last_use
    }
}

impl OwnRow {
    fn new(account: &Arc<str>, row: SealedRow, old: Option<&Arc<OwnRow>>, masters: Option<&Masters>) -> OwnRow {
        let SealedRow { entry, sealed } = row;
        // Sealed under a master key that this server does not have, but otherwise the row we hold: ours still opens.
        let kept = old.filter(|old| old.changed_ms == entry.changed_ms && masters.is_some_and(|known| !known.knows(&sealed.master_id)));
        let base_url = entry.base_url.and_then(|text| BaseUrl::parse(&text).ok().map(|base| (text.into(), base)));
        let state = match (old, &base_url) {
            (Some(old), _) => old.state.clone(),
            (None, Some(_)) => Arc::new(KeyState::with_own_base()),
            (None, None) => Arc::default(),
        };
        let last_use = LastUse::stored(entry.last_used_ms.unwrap_or(0));
        if let Some(old) = old {
            last_use.follow(&old.last_use);
        }
        OwnRow {
            id: entry.id,
            changed_ms: entry.changed_ms,
            account: account.clone(),
            provider: entry.provider.into(),
            name: entry.name.into(),
            base_url,
            shown: entry.shown.into(),
            sealed: kept.map_or(sealed, |old| old.sealed.clone()),
            state,
            last_use,
        }
    }
}

fn rows(store: &Store, condition: &'static str, value: &str) -> Result<Vec<SealedRow>> {
    store.read(|connection| {
        let mut statement = connection.prepare_cached(&format!("{ROW} WHERE {condition}"))?;
        let rows = statement.query_map([value], row)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    })
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("platform", &self.platform.load().len()).field("accounts", &self.own.len()).finish()
    }
}

impl fmt::Debug for OwnKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnKey({} {})", self.row.provider, self.row.name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::seal::MasterKey;
    use super::super::{NewEntry, remove, rotate, set};
    use super::*;
    use crate::store::audit::Actor;

    const ACTOR: Actor<'static> = Actor { who: "cli:test", from: "local" };
    const KEY: &str = "sk-proj-0123456789abcdefghij";

    fn masters(current: u8, previous: Option<u8>) -> Masters {
        Masters { current: MasterKey::new(&[current; 32]), previous: previous.map(|byte| MasterKey::new(&[byte; 32])) }
    }

    fn put(store: &Store, account: &str, key: &str, base_url: Option<&str>, now_ms: u64) {
        let key = Secret::copied(key);
        let new = NewEntry { account, provider: "openai", kind: None, name: None, base_url, key: &key };
        set(store, &masters(1, None), &new, ACTOR, now_ms).unwrap();
    }

    fn opened(ring: &KeyRing, account: &str) -> Option<String> {
        ring.own(account, "openai").map(|own| own.open(1).unwrap().expose().to_owned())
    }

    #[test]
    fn own_keys_are_found_by_account_and_provider() {
        let store = Store::in_memory().unwrap();
        put(&store, "a", KEY, Some("https://own.example/v1"), 1);
        let ring = KeyRing::throw_away(masters(1, None));
        ring.reload(&store).unwrap();
        assert_eq!(opened(&ring, "a").as_deref(), Some(KEY));
        assert_eq!(&*ring.own("a", "openai").unwrap().base_url().unwrap().host, "own.example");
        assert!(ring.own("a", "groq").is_none() && ring.own("b", "openai").is_none() && ring.own("", "openai").is_none());
        assert_eq!(format!("{:?}", ring.own("a", "openai").unwrap()), "OwnKey(openai openai)");
        remove(&store, "a", "openai", ACTOR, 2).unwrap();
        ring.refresh(&store, "a").unwrap();
        assert!(ring.own("a", "openai").is_none());
    }

    #[test]
    fn a_new_key_has_a_new_state_and_a_new_sealing_has_not() {
        let store = Store::in_memory().unwrap();
        put(&store, "a", KEY, None, 1);
        let ring = KeyRing::throw_away(masters(2, Some(1)));
        ring.reload(&store).unwrap();
        let state = ring.own_state("a", "openai").unwrap();
        assert_eq!(rotate(&store, &masters(2, Some(1)), ACTOR, 2).unwrap().resealed, 1);
        ring.refresh(&store, "a").unwrap();
        assert!(Arc::ptr_eq(&state, &ring.own_state("a", "openai").unwrap()));
        put(&store, "a", "sk-proj-another-key-0123456789", None, 3);
        ring.refresh(&store, "a").unwrap();
        assert!(!Arc::ptr_eq(&state, &ring.own_state("a", "openai").unwrap()));
    }

    #[test]
    fn a_server_without_the_new_master_key_goes_on_with_what_it_has() {
        let store = Store::in_memory().unwrap();
        put(&store, "a", KEY, None, 1);
        put(&store, PLATFORM, KEY, None, 1);
        let reference = SecretRef::Vault("openai".into());
        let ring = KeyRing::throw_away(masters(1, None));
        ring.reload(&store).unwrap();
        ring.load(&store, [reference.clone()]).unwrap();
        rotate(&store, &masters(2, Some(1)), ACTOR, 2).unwrap();
        for _ in 0..2 {
            ring.refresh(&store, "a").unwrap();
            ring.refresh(&store, PLATFORM).unwrap();
            ring.reload(&store).unwrap();
        }
        assert_eq!(opened(&ring, "a").as_deref(), Some(KEY));
        assert_eq!(ring.platform(&reference).unwrap().expose(), KEY);
    }

    #[test]
    fn a_master_key_in_a_file_is_learned_without_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (MasterKey::generate(), MasterKey::generate());
        let path = |name: &str| SecretRef::File(folder.path().join(name).display().to_string().into());
        let write = |name: &str, key: &Secret| std::fs::write(folder.path().join(name), key.expose()).unwrap();
        write("current", &one);
        write("previous", &one);
        let refs = MasterRefs { current: path("current"), previous: Some(path("previous")) };
        let store = Store::in_memory().unwrap();
        let ring = KeyRing::with_vault(refs).unwrap();
        let key = Secret::copied(KEY);
        let new = |provider| NewEntry { account: "a", provider, kind: None, name: None, base_url: None, key: &key };
        set(&store, &ring.masters().unwrap(), &new("openai"), ACTOR, 1).unwrap();
        write("current", &two);
        let both = Masters { current: MasterKey::parse(two.expose()).unwrap(), previous: Some(MasterKey::parse(one.expose()).unwrap()) };
        set(&store, &both, &new("groq"), ACTOR, 1).unwrap();
        ring.refresh(&store, "a").unwrap();
        assert_eq!(ring.own("a", "groq").unwrap().open(1).unwrap(), key);
        assert_eq!(ring.own("a", "openai").unwrap().open(1).unwrap(), key);
    }

    #[test]
    fn platform_keys_are_read_and_follow() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), "from a file\n").unwrap();
        let file = SecretRef::File(folder.path().join("key").display().to_string().into());
        let (vault, missing) = (SecretRef::Vault("openai".into()), SecretRef::Env("WEIR_TEST_NO_SUCH_VARIABLE".into()));
        let store = Store::in_memory().unwrap();
        put(&store, PLATFORM, KEY, None, 1);
        let ring = KeyRing::throw_away(masters(1, None));
        let problems = ring.load(&store, [file.clone(), vault.clone(), missing.clone(), file.clone()]).unwrap();
        assert_eq!(problems.len(), 1);
        assert_eq!(ring.platform(&file).unwrap().expose(), "from a file");
        assert_eq!(ring.platform(&vault).unwrap().expose(), KEY);
        assert!(ring.platform(&missing).is_none());
        // A key that is set again, or removed, follows without a reload of the configuration.
        put(&store, PLATFORM, "sk-proj-another-key-0123456789", None, 2);
        ring.refresh(&store, PLATFORM).unwrap();
        assert_eq!(ring.platform(&vault).unwrap().expose(), "sk-proj-another-key-0123456789");
        remove(&store, PLATFORM, "openai", ACTOR, 3).unwrap();
        ring.refresh(&store, PLATFORM).unwrap();
        assert!(ring.platform(&vault).is_none() && ring.platform(&file).is_some());
        assert!(KeyRing::without_vault().load(&store, [vault]).unwrap()[0].1.contains("weir vault set"));
    }

    #[test]
    fn a_change_waits_for_what_is_being_loaded() {
        let store = Store::in_memory().unwrap();
        put(&store, PLATFORM, KEY, None, 1);
        let (ring, reference) = (KeyRing::throw_away(masters(1, None)), SecretRef::Vault("openai".into()));
        let references = std::iter::once_with(|| {
            assert!(ring.wanted.is_locked(), "what is read here could be installed behind a later change");
            reference.clone()
        });
        assert!(ring.load(&store, references).unwrap().is_empty());
        assert!(!ring.wanted.is_locked());
        assert_eq!(ring.platform(&reference).unwrap().expose(), KEY);
    }

    #[test]
    fn last_use_is_saved() {
        let store = Store::in_memory().unwrap();
        put(&store, "a", KEY, None, 1);
        let ring = KeyRing::throw_away(masters(1, None));
        ring.reload(&store).unwrap();
        ring.own("a", "openai").unwrap().open(70_000).unwrap();
        ring.tick(&store, 70_001).unwrap();
        assert_eq!(super::super::list(&store, Some("a")).unwrap()[0].last_used_ms, Some(70_000));
    }
}
