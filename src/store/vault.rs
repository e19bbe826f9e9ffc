//! The vault: provider keys at rest, the platform's and the users' own.
//!
//! Two kinds of rows. The platform's (`account` empty) are found by name: `key = "vault:NAME"` in `routing.toml`, the name
//! being the provider's unless another was given. A user's are found by account and provider, one each.
//!
//! Nothing here opens a key for a request: that is [`ring::KeyRing`], from memory.

pub mod check;
pub mod import;
pub mod ring;
pub mod seal;

pub use ring::{KeyRing, MasterRefs, OwnKey};
pub use seal::{Masters, resolve_plain};

use super::audit::{Actor, audited};
use super::secret::{Secret, mask};
use super::{Error, Result, Store, Topic, changed};
use crate::engine::catalog::BaseUrl;
use crate::engine::provider::{Kind, Shape, Verdict, foreign_shape, is_familiar, key_shape, spec};
use crate::engine::refusal::scrub;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use seal::{Belongs, Sealed};

/// Tables of this part.
pub const TABLES: &str = "
CREATE TABLE vault (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    account      TEXT NOT NULL,
    provider     TEXT NOT NULL,
    name         TEXT NOT NULL,
    base_url     TEXT,
    master_id    TEXT NOT NULL,
    nonce        BLOB NOT NULL,
    sealed       BLOB NOT NULL,
    shown        TEXT NOT NULL,
    created_ms   INTEGER NOT NULL,
    changed_ms   INTEGER NOT NULL,
    last_used_ms INTEGER,
    checked_ms   INTEGER,
    verdict      TEXT
);
CREATE UNIQUE INDEX vault_platform ON vault (name) WHERE account = '';
CREATE UNIQUE INDEX vault_own ON vault (account, provider) WHERE account <> '';
CREATE INDEX vault_by_master ON vault (master_id);
";

/// The platform's rows have this as their account.
pub const PLATFORM: &str = "";

/// Longest provider key, in bytes. The longest known are Google's service tokens, under 2 KiB.
const KEY_MAX: usize = 4096;

/// Longest name, account or provider, in bytes.
const NAME_MAX: usize = 256;

/// Own keys of one account at most: there are not that many providers.
const OWN_MAX: i64 = 100;

/// A key to store.
#[derive(Debug)]
pub struct NewEntry<'a> {
    /// The account; [`PLATFORM`] for the platform.
    pub account: &'a str,
    /// The provider, as `routing.toml` names it.
    pub provider: &'a str,
    /// Its kind; `None`: not known here, and then the key's shape is not looked at.
    pub kind: Option<Kind>,
    /// The key's name; `None`: the provider's.
    pub name: Option<&'a str>,
    /// The owner's own base URL.
    pub base_url: Option<&'a str>,
    /// The key.
    pub key: &'a Secret,
}

/// What storing a key came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// First and last four characters.
    pub shown: String,
    /// It replaced another key.
    pub replaced: bool,
    /// It does not look like that provider's keys; it is stored all the same, for shapes change.
    pub unfamiliar: bool,
}

/// A stored key as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The row.
    pub id: i64,
    /// The account; empty: the platform.
    pub account: String,
    /// The provider.
    pub provider: String,
    /// Its name.
    pub name: String,
    /// The owner's own base URL.
    pub base_url: Option<String>,
    /// First and last four characters.
    pub shown: String,
    /// Which master key seals it.
    pub master_id: String,
    /// When it was first stored.
    pub created_ms: u64,
    /// When the key was last replaced.
    pub changed_ms: u64,
    /// When it was last used, to the minute (own keys).
    pub last_used_ms: Option<u64>,
    /// When it was last checked.
    pub checked_ms: Option<u64>,
    /// What the provider said then.
    pub verdict: Option<String>,
}

/// What a rotation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rotated {
    /// Sealed again under the current master key.
    pub resealed: u64,
    /// Were sealed under it already.
    pub already: u64,
    /// Could not be opened: their master key is not here, or they were changed.
    pub failed: u64,
}

/// Stores a key, replacing the one in its place.
///
/// Errors: the key is empty, unprintable or clearly another provider's; the base URL is not one.
pub fn set(store: &Store, masters: &Masters, new: &NewEntry<'_>, actor: Actor<'_>, now_ms: u64) -> Result<Stored> {
    let name = new.name.unwrap_or(new.provider);
    audited(store, actor, "vault.set", &subject(new.account, new.provider, name), now_ms, |tx| {
        let unfamiliar = look_at(new, name)?;
        let belongs = Belongs { account: new.account, provider: new.provider, name, base_url: new.base_url };
        let sealed = masters.seal(belongs, new.key).map_err(|why| Error::Invalid(why.to_string()))?;
        let shown = mask(new.key.expose());
        let before = place(tx, new.account, new.provider, name)?;
        if before.is_none() && new.account != PLATFORM {
            let held: i64 = tx.query_row("SELECT count(*) FROM vault WHERE account = ?1", [new.account], |row| row.get(0))?;
            if held >= OWN_MAX {
                return Err(Error::Invalid(format!("an account holds up to {OWN_MAX} keys: remove one first")));
            }
        }
        let created_ms = before.map_or(now_ms, |(_, created_ms)| created_ms);
        if let Some((id, _)) = before {
            // A new row, so that a verdict or a state of the old key does not stick to the new one.
            tx.execute("DELETE FROM vault WHERE id = ?1", [id])?;
        }
        tx.execute(
            "INSERT INTO vault (account, provider, name, base_url, master_id, nonce, sealed, shown, created_ms, changed_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                new.account,
                new.provider,
                name,
                new.base_url,
                sealed.master_id,
                sealed.nonce,
                sealed.bytes,
                shown,
                created_ms as i64,
                now_ms as i64
            ],
        )?;
        changed(tx, Topic::ProviderKey, new.account)?;
        let stored = Stored { name: name.to_owned(), shown, replaced: before.is_some(), unfamiliar };
        Ok((stored, subject(new.account, new.provider, name)))
    })
}

/// The keys of an account ([`PLATFORM`]: the platform's), or of all with `None`.
pub fn list(store: &Store, account: Option<&str>) -> Result<Vec<Entry>> {
    store.read(|connection| {
        let mut statement = connection.prepare_cached(
            "SELECT id, account, provider, name, base_url, shown, master_id, created_ms, changed_ms, last_used_ms, checked_ms, verdict
             FROM vault WHERE ?1 IS NULL OR account = ?1 ORDER BY account, provider, name",
        )?;
        let rows = statement.query_map([account], entry)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    })
}

/// Removes a user's key at a provider, or the platform's key of that name.
pub fn remove(store: &Store, account: &str, provider_or_name: &str, actor: Actor<'_>, now_ms: u64) -> Result<()> {
    audited(store, actor, "vault.remove", &subject(account, provider_or_name, provider_or_name), now_ms, |tx| {
        let Some((id, _)) = place(tx, account, provider_or_name, provider_or_name)? else {
            return Err(not_stored(account, provider_or_name));
        };
        tx.execute("DELETE FROM vault WHERE id = ?1", [id])?;
        changed(tx, Topic::ProviderKey, account)?;
        Ok(((), subject(account, provider_or_name, provider_or_name)))
    })
}

/// Opens a key for a command (a check). Requests use [`ring::KeyRing`].
pub fn open(store: &Store, masters: &Masters, account: &str, provider_or_name: &str) -> Result<(Entry, Secret)> {
    let found = store.read(|connection| {
        let tx = connection.unchecked_transaction()?;
        let Some((id, _)) = place(&tx, account, provider_or_name, provider_or_name)? else { return Ok(None) };
        Ok(Some(tx.query_row(&format!("{ROW} WHERE id = ?1"), [id], row)?))
    })?;
    let row = found.ok_or_else(|| not_stored(account, provider_or_name))?;
    let key = masters.open(row.belongs(), &row.sealed).map_err(|why| Error::Invalid(format!("{}: {why}", row.entry.name)))?;
    Ok((row.entry, key))
}

/// Notes what a provider said about a key.
pub fn checked(store: &Store, entry: &Entry, verdict: Verdict, actor: Actor<'_>, now_ms: u64) -> Result<()> {
    audited(store, actor, "vault.check", &subject(&entry.account, &entry.provider, &entry.name), now_ms, |tx| {
        tx.execute("UPDATE vault SET checked_ms = ?2, verdict = ?3 WHERE id = ?1", params![entry.id, now_ms as i64, verdict.name()])?;
        Ok(((), format!("{} {}", subject(&entry.account, &entry.provider, &entry.name), verdict.name())))
    })
}

/// Seals every key again under the current master key, one transaction a row: a crash half way loses nothing, and running it
/// again does the rest. Servers that have both master keys go on all the while.
pub fn rotate(store: &Store, masters: &Masters, actor: Actor<'_>, now_ms: u64) -> Result<Rotated> {
    let mut done = Rotated::default();
    let mut after = 0i64;
    while let Some((id, result)) = rotate_next(store, masters, after)? {
        after = id;
        match result {
            Reseal::Done => done.resealed += 1,
            Reseal::Already => done.already += 1,
            Reseal::Failed => done.failed += 1,
        }
    }
    let told = format!("{} sealed again, {} were, {} failed", done.resealed, done.already, done.failed);
    store.write(|tx| super::audit::record(tx, actor, "vault.rotate", masters.current.id(), &told, now_ms))?;
    Ok(done)
}

/// Rows sealed under each master key, for `weir vault list` and `init`.
pub fn masters_in_use(store: &Store) -> Result<Vec<(String, u64)>> {
    store.read(|connection| {
        let mut statement = connection.prepare_cached("SELECT master_id, count(*) FROM vault GROUP BY master_id ORDER BY 2 DESC")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.max(0) as u64)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    })
}

enum Reseal {
    Done,
    Already,
    Failed,
}

/// The row after `after`, sealed again when it must be.
fn rotate_next(store: &Store, masters: &Masters, after: i64) -> Result<Option<(i64, Reseal)>> {
    store.write(|tx| {
        let Some(row) = tx.query_row(&format!("{ROW} WHERE id > ?1 ORDER BY id LIMIT 1"), [after], row).optional()? else {
            return Ok(None);
        };
        let id = row.entry.id;
        if *row.sealed.master_id == *masters.current.id() {
            return Ok(Some((id, Reseal::Already)));
        }
        let sealed = masters.open(row.belongs(), &row.sealed).and_then(|key| masters.seal(row.belongs(), &key));
        let Ok(sealed) = sealed else { return Ok(Some((id, Reseal::Failed))) };
        tx.execute(
            "UPDATE vault SET master_id = ?2, nonce = ?3, sealed = ?4 WHERE id = ?1",
            params![id, sealed.master_id, sealed.nonce, sealed.bytes],
        )?;
        changed(tx, Topic::ProviderKey, &row.entry.account)?;
        Ok(Some((id, Reseal::Done)))
    })
}

/// A row with its sealed key.
struct SealedRow {
    entry: Entry,
    sealed: Sealed,
}

impl SealedRow {
    fn belongs(&self) -> Belongs<'_> {
        let entry = &self.entry;
        Belongs { account: &entry.account, provider: &entry.provider, name: &entry.name, base_url: entry.base_url.as_deref() }
    }
}

/// The columns of [`entry`] and [`row`].
const ROW: &str =
    "SELECT id, account, provider, name, base_url, shown, master_id, created_ms, changed_ms, last_used_ms, checked_ms, verdict,
    nonce, sealed FROM vault";

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let moment = |column| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.map(|ms| ms.max(0) as u64));
    Ok(Entry {
        id: row.get(0)?,
        account: row.get(1)?,
        provider: row.get(2)?,
        name: row.get(3)?,
        base_url: row.get(4)?,
        shown: row.get(5)?,
        master_id: row.get(6)?,
        created_ms: moment(7)?.unwrap_or(0),
        changed_ms: moment(8)?.unwrap_or(0),
        last_used_ms: moment(9)?,
        checked_ms: moment(10)?,
        verdict: row.get(11)?,
    })
}

fn row(row: &Row<'_>) -> rusqlite::Result<SealedRow> {
    let entry = entry(row)?;
    let master_id = entry.master_id.as_str().into();
    Ok(SealedRow { entry, sealed: Sealed { master_id, nonce: row.get(12)?, bytes: row.get::<_, Vec<u8>>(13)?.into() } })
}

/// Number and age of the row in a place: a user's by provider, the platform's by name.
fn place(tx: &Transaction<'_>, account: &str, provider: &str, name: &str) -> Result<Option<(i64, u64)>> {
    let found = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?.max(0) as u64));
    let found = if account == PLATFORM {
        tx.query_row("SELECT id, created_ms FROM vault WHERE account = '' AND name = ?1", [name], found)
    } else {
        tx.query_row("SELECT id, created_ms FROM vault WHERE account = ?1 AND provider = ?2", [account, provider], found)
    };
    Ok(found.optional()?)
}

/// Refuses what cannot be a key of that provider; `true`: it is odd all the same.
fn look_at(new: &NewEntry<'_>, name: &str) -> Result<bool> {
    let invalid = |what: String| Err(Error::Invalid(what));
    let key = new.key.expose();
    if key.is_empty() || key.len() > KEY_MAX {
        return invalid(format!("a key is 1 to {KEY_MAX} bytes"));
    }
    // It becomes a header's value.
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return invalid("a key is printable ASCII without spaces; this is not (was more than the key pasted?)".into());
    }
    for part in [new.provider, name, new.account] {
        if part.len() > NAME_MAX || part.chars().any(char::is_control) || (part.is_empty() && part != new.account) {
            return invalid(format!("a provider or name is 1 to {NAME_MAX} bytes without control characters"));
        }
    }
    if [name, new.provider].into_iter().any(|part| part.contains(key) || key_shape(part) != Shape::Unclear) {
        return invalid("the key stands where its name belongs; names are shown".into());
    }
    if let Some(base_url) = new.base_url {
        BaseUrl::parse(base_url).map_err(|why| Error::Invalid(format!("base_url {why}")))?;
    }
    if key_shape(key) == Shape::Weir {
        return invalid("this is one of weir's own keys; a provider's key belongs here".into());
    }
    let Some(kind) = new.kind else { return Ok(false) };
    // At one's own base URL anything may be behind the dialect.
    if new.base_url.is_none()
        && let Some(owner) = foreign_shape(kind, key)
    {
        return invalid(format!("this looks like a key of {owner}, not of {}", spec(kind).title));
    }
    Ok(!is_familiar(kind, key))
}

fn not_stored(account: &str, provider_or_name: &str) -> Error {
    let whose = if account == PLATFORM { "the platform".to_owned() } else { format!("account {account:?}") };
    Error::Invalid(format!("no key for {:?} of {whose} is stored: see `weir vault list`", scrub(provider_or_name)))
}

fn subject(account: &str, provider: &str, name: &str) -> String {
    if account == PLATFORM { format!("platform {provider} {name}") } else { format!("account {account} {provider} {name}") }
}

#[cfg(test)]
mod tests;
