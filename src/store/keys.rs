//! Callers' keys: made, listed, revoked, rotated in the store; looked up in memory.
//!
//! A key is `wk_` and 32 random bytes in url-safe base64; only its SHA-256 is kept. A fast hash is right here: there is
//! nothing to guess in 256 random bits, and every request pays for it. Rotating gives a key a second secret and lets the old
//! one live on for a while; its id, limits and account stay.
//!
//! Memory: about 300 bytes a key (see the ignored test `a_million_keys`).

use super::audit::{Actor, audited};
use super::secret::{Secret, mask};
use super::{Error, Result, Store, Topic, accounts, changed};
use crate::engine::limit::Limits;
use crate::engine::money::Credits;
use crate::engine::refusal::scrub;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rusqlite::{Connection, Row, params};

pub use super::callers::{CallerKey, CallerKeys, Denied};
pub use crate::engine::policy::Scopes;

/// Tables of this part. Rows are never deleted: usage and audit rows name them.
pub const TABLES: &str = "
CREATE TABLE keys (
    id           TEXT PRIMARY KEY NOT NULL,
    hash         BLOB NOT NULL UNIQUE,
    shown        TEXT NOT NULL,
    name         TEXT NOT NULL,
    account      TEXT NOT NULL,
    tier         TEXT,
    scopes       TEXT,
    expires_ms   INTEGER,
    rpm          INTEGER,
    tpm          INTEGER,
    rpd          INTEGER,
    tpd          INTEGER,
    concurrent   INTEGER,
    has_budget   INTEGER NOT NULL,
    created_ms   INTEGER NOT NULL,
    revoked_ms   INTEGER,
    last_used_ms INTEGER
);
CREATE INDEX keys_by_account ON keys (account);
CREATE TABLE rotated_secrets (
    hash     BLOB PRIMARY KEY NOT NULL,
    key_id   TEXT NOT NULL REFERENCES keys (id),
    until_ms INTEGER NOT NULL
);
CREATE INDEX rotated_secrets_by_key ON rotated_secrets (key_id);
";

/// What every key begins with.
pub const PREFIX: &str = "wk_";

/// Characters of a key: the prefix and 32 bytes in base64 without padding.
pub const LENGTH: usize = PREFIX.len() + 43;

/// Longest name, account, tier or scope entry, in bytes; longer is refused.
const NAME_MAX: usize = 256;

/// Entries of one scope list at most; more is refused (a tier is the tool for that).
const SCOPE_MAX: usize = 1000;

/// A key to make.
#[derive(Debug, Clone, Default)]
pub struct NewKey {
    /// For people.
    pub name: String,
    /// Who pays; `None`: an account of its own, named by the key's id.
    pub account: Option<String>,
    /// The tier; `None`: the default tier.
    pub tier: Option<String>,
    /// What it may be used for.
    pub scopes: Scopes,
    /// When it stops, in milliseconds since the Unix epoch; `None`: never.
    pub expires_ms: Option<u64>,
    /// Its own limits, beside its tier's.
    pub limits: Limits,
    /// Granted to its account, which from then on pays from a balance; `None`: no budget.
    pub credits: Option<Credits>,
}

/// A secret, shown once.
#[derive(Debug)]
pub struct Created {
    /// The key's id.
    pub id: String,
    /// Who pays.
    pub account: String,
    /// The key itself. It is nowhere else.
    pub key: Secret,
}

/// A key as its operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// First and last four characters.
    pub shown: String,
    /// Who pays.
    pub account: String,
    /// Its tier.
    pub tier: Option<String>,
    /// What it may be used for.
    pub scopes: Scopes,
    /// Its own limits.
    pub limits: Limits,
    /// `active`, `expired` or `revoked`.
    pub state: &'static str,
    /// Whether it was made with credits.
    pub has_budget: bool,
    /// When it was made.
    pub created_ms: u64,
    /// When it stops.
    pub expires_ms: Option<u64>,
    /// When it was revoked.
    pub revoked_ms: Option<u64>,
    /// When it was last used, to the minute.
    pub last_used_ms: Option<u64>,
}

/// Makes a key. Its secret is in the answer and nowhere else.
pub fn create(store: &Store, new: &NewKey, actor: Actor<'_>, now_ms: u64) -> Result<Created> {
    audited(store, actor, "key.create", &new.name, now_ms, |tx| {
        check(new, now_ms)?;
        let (key, hash) = fresh_secret();
        let id = fresh_id();
        let account = new.account.clone().unwrap_or_else(|| id.clone());
        let scopes = if new.scopes.is_open() { None } else { Some(scopes_text(&new.scopes)?) };
        let limits = &new.limits;
        tx.execute(
            "INSERT INTO keys (id, hash, shown, name, account, tier, scopes, expires_ms, rpm, tpm, rpd, tpd, concurrent, has_budget, created_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            params![
                id, hash, mask(key.expose()), new.name, account, new.tier, scopes, new.expires_ms.map(signed), limits.rpm.map(signed),
                limits.tpm.map(signed), limits.rpd.map(signed), limits.tpd.map(signed), limits.concurrent.map(signed),
                new.credits.is_some(), signed(now_ms)
            ],
        )?;
        if let Some(credits) = new.credits {
            // Before the key is noted as changed: a server that knows the key must find its budget.
            accounts::grant(tx, &account, credits, &format!("key {id}"), now_ms)?;
        }
        changed(tx, Topic::Key, &id)?;
        Ok((Created { id: id.clone(), account, key }, id))
    })
}

/// All keys, oldest first.
pub fn list(store: &Store, now_ms: u64) -> Result<Vec<Listed>> {
    store.read(|connection| {
        let mut statement = connection.prepare(
            "SELECT id, name, shown, account, tier, scopes, has_budget, created_ms, expires_ms, revoked_ms, last_used_ms,
             rpm, tpm, rpd, tpd, concurrent FROM keys ORDER BY created_ms, id",
        )?;
        let mut rows = statement.query([])?;
        let mut keys = Vec::new();
        while let Some(row) = rows.next()? {
            let (expires_ms, revoked_ms) = (optional(row, 8)?, optional(row, 9)?);
            let state = match (revoked_ms, expires_ms) {
                (Some(_), _) => "revoked",
                (None, Some(expires_ms)) if expires_ms <= now_ms => "expired",
                _ => "active",
            };
            keys.push(Listed {
                id: row.get(0)?,
                name: row.get(1)?,
                shown: row.get(2)?,
                account: row.get(3)?,
                tier: row.get(4)?,
                scopes: scopes(row.get(5)?)?.unwrap_or_default(),
                limits: limits(row, 11)?,
                state,
                has_budget: row.get(6)?,
                created_ms: row.get::<_, i64>(7)?.max(0) as u64,
                expires_ms,
                revoked_ms,
                last_used_ms: optional(row, 10)?,
            });
        }
        Ok(keys)
    })
}

/// Stops a key, its rotated secrets too. Revoking a revoked key changes nothing and is not an error.
pub fn revoke(store: &Store, id: &str, actor: Actor<'_>, now_ms: u64) -> Result<()> {
    audited(store, actor, "key.revoke", id, now_ms, |tx| {
        let rows = tx.execute("UPDATE keys SET revoked_ms = coalesce(revoked_ms, ?2) WHERE id = ?1", params![id, signed(now_ms)])?;
        if rows == 0 {
            return Err(no_such_key(id));
        }
        changed(tx, Topic::Key, id)?;
        Ok(((), id.to_owned()))
    })
}

/// Gives a key a new secret; the old ones work for `overlap_ms` longer (0: not at all).
pub fn rotate(store: &Store, id: &str, overlap_ms: u64, actor: Actor<'_>, now_ms: u64) -> Result<Created> {
    audited(store, actor, "key.rotate", id, now_ms, |tx| {
        let row = tx.query_row("SELECT hash, account, revoked_ms FROM keys WHERE id = ?1", [id], |row| {
            Ok((row.get::<_, [u8; 32]>(0)?, row.get::<_, String>(1)?, row.get::<_, Option<i64>>(2)?))
        });
        let (old_hash, account) = match row {
            Err(rusqlite::Error::QueryReturnedNoRows) => return Err(no_such_key(id)),
            Ok((_, _, Some(_))) => return Err(Error::Invalid(format!("{id} is revoked: make a new key"))),
            other => other.map(|(hash, account, _)| (hash, account))?,
        };
        let (key, hash) = fresh_secret();
        let until_ms = signed(now_ms.saturating_add(overlap_ms));
        tx.execute("UPDATE rotated_secrets SET until_ms = min(until_ms, ?2) WHERE key_id = ?1", params![id, until_ms])?;
        tx.execute("INSERT INTO rotated_secrets (hash, key_id, until_ms) VALUES (?1, ?2, ?3)", params![old_hash, id, until_ms])?;
        tx.execute("UPDATE keys SET hash = ?2, shown = ?3 WHERE id = ?1", params![id, hash, mask(key.expose())])?;
        changed(tx, Topic::Key, id)?;
        Ok((Created { id: id.to_owned(), account, key }, id.to_owned()))
    })
}

/// The SHA-256 a key is kept and looked up by.
pub fn hash(presented: &str) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(presented.as_bytes()).into()
}

/// A secret of a key as the store has it.
pub(super) struct Loaded {
    pub hash: [u8; 32],
    /// When this secret stops; `u64::MAX`: never.
    pub until_ms: u64,
    pub id: String,
    pub name: String,
    pub account: String,
    pub tier: Option<String>,
    pub scopes: Option<Scopes>,
    pub limits: Limits,
    pub has_budget: bool,
    pub revoked: bool,
    pub last_used_ms: u64,
    /// Its row's place in the table, while nobody rebuilds the table.
    pub place: i64,
}

const LOAD: &str = "SELECT k.hash, k.expires_ms, k.id, k.name, k.account, k.tier, k.scopes, k.rpm, k.tpm, k.rpd, k.tpd, k.concurrent,
    k.has_budget, k.revoked_ms, k.last_used_ms, k.rowid FROM keys k";
const LOAD_ROTATED: &str =
    "SELECT r.hash, min(r.until_ms, coalesce(k.expires_ms, r.until_ms)), k.id, k.name, k.account, k.tier, k.scopes, k.rpm,
    k.tpm, k.rpd, k.tpd, k.concurrent, k.has_budget, k.revoked_ms, k.last_used_ms, k.rowid FROM rotated_secrets r JOIN keys k ON k.id = r.key_id";

/// Every secret of one key, or of all, handed over one by one: current ones first.
pub(super) fn load(connection: &Connection, id: Option<&str>, mut each: impl FnMut(Loaded)) -> Result<()> {
    for query in [LOAD, LOAD_ROTATED] {
        let mut statement = match id {
            Some(_) => connection.prepare_cached(&format!("{query} WHERE k.id = ?1"))?,
            None => connection.prepare_cached(query)?,
        };
        let mut rows = match id {
            Some(id) => statement.query([id])?,
            None => statement.query([])?,
        };
        while let Some(row) = rows.next()? {
            match loaded(row) {
                Ok(loaded) => each(loaded),
                // A key whose restrictions cannot be read opens nothing; the others are not held up by it.
                Err(Error::Invalid(why)) => log::error!("key {}: {why}; it is not taken", row.get::<_, String>(2)?),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn loaded(row: &Row<'_>) -> Result<Loaded> {
    Ok(Loaded {
        hash: row.get(0)?,
        until_ms: optional(row, 1)?.unwrap_or(u64::MAX),
        id: row.get(2)?,
        name: row.get(3)?,
        account: row.get(4)?,
        tier: row.get(5)?,
        scopes: scopes(row.get(6)?)?,
        limits: limits(row, 7)?,
        has_budget: row.get(12)?,
        revoked: row.get::<_, Option<i64>>(13)?.is_some(),
        last_used_ms: optional(row, 14)?.unwrap_or(0),
        place: row.get(15)?,
    })
}

/// Five columns in the order of the struct.
fn limits(row: &Row<'_>, first: usize) -> rusqlite::Result<Limits> {
    Ok(Limits {
        rpm: optional(row, first)?,
        tpm: optional(row, first + 1)?,
        rpd: optional(row, first + 2)?,
        tpd: optional(row, first + 3)?,
        concurrent: optional(row, first + 4)?,
    })
}

fn check(new: &NewKey, now_ms: u64) -> Result<()> {
    let invalid = |what: &str| Err(Error::Invalid(what.to_owned()));
    let bad = |text: &str| text.is_empty() || text.len() > NAME_MAX || text.chars().any(char::is_control);
    if bad(&new.name) || new.account.as_deref().is_some_and(bad) || new.tier.as_deref().is_some_and(bad) {
        return invalid("a name, account or tier is 1 to 256 bytes without control characters");
    }
    // Someone pastes a key where its name belongs: names are shown and logged.
    if new.name.contains(PREFIX) && new.name.len() >= LENGTH {
        return invalid("the name looks like a key; give it a name for people");
    }
    for list in [&new.scopes.paths, &new.scopes.models, &new.scopes.levels].into_iter().flatten() {
        if list.len() > SCOPE_MAX || list.iter().any(|entry| bad(entry)) {
            return invalid("a scope is up to 1000 entries of 1 to 256 bytes");
        }
    }
    if new.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms) {
        return invalid("the key would be expired at once");
    }
    if new.credits.is_some_and(|credits| credits.0 < 0) {
        return invalid("credits cannot be negative");
    }
    Ok(())
}

fn no_such_key(id: &str) -> Error {
    // The id is a user's input: what looks like a key is not repeated.
    if id.starts_with(PREFIX) {
        Error::Invalid("expected a key's id (key_…), not the key itself: see `weir key list`".into())
    } else {
        Error::Invalid(format!("no key has the id {:?}: see `weir key list`", scrub(id)))
    }
}

fn fresh_secret() -> (Secret, [u8; 32]) {
    let bytes = zeroize::Zeroizing::new(rand::random::<[u8; 32]>());
    let mut text = String::with_capacity(LENGTH);
    text.push_str(PREFIX);
    URL_SAFE_NO_PAD.encode_string(*bytes, &mut text);
    let key = Secret::new(text);
    let hash = hash(key.expose());
    (key, hash)
}

/// `key_` and 60 random bits; a collision among a million keys has a chance of 4 in ten million, and the store refuses it.
fn fresh_id() -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let bits = rand::random::<u64>();
    let mut id = String::from("key_");
    id.extend((0..12).map(|digit| char::from(DIGITS[(bits >> (5 * digit) & 31) as usize])));
    id
}

fn scopes_text(scopes: &Scopes) -> Result<String> {
    serde_json::to_string(scopes).map_err(|error| Error::Invalid(format!("scopes: {error}")))
}

fn scopes(text: Option<String>) -> Result<Option<Scopes>> {
    // A scope that cannot be read must not open everything.
    text.map(|text| serde_json::from_str(&text).map_err(|error| Error::Invalid(format!("a key's scopes cannot be read: {error}"))))
        .transpose()
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn optional(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<u64>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(|number| number.max(0) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTOR: Actor<'static> = Actor { who: "cli:test", from: "local" };

    #[test]
    fn keys_are_well_formed_and_stored_as_a_hash() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}/weir.db", folder.path().display())).unwrap();
        let created = create(&store, &NewKey { name: "a".into(), ..NewKey::default() }, ACTOR, 1).unwrap();
        let key = created.key.expose();
        assert_eq!(key.len(), LENGTH);
        assert_eq!(URL_SAFE_NO_PAD.decode(&key[3..]).unwrap().len(), 32);
        drop(store);
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            for part in key.as_bytes()[4..].windows(8) {
                assert!(memchr::memmem::find(&bytes, part).is_none());
            }
        }
    }

    #[test]
    fn what_cannot_be_a_key_is_refused() {
        let store = Store::in_memory().unwrap();
        let named = |name: &str| NewKey { name: name.into(), ..NewKey::default() };
        let pasted = format!("{PREFIX}{}", "A".repeat(43));
        for new in [
            named(""),
            named("a\nb"),
            named(&pasted),
            NewKey { expires_ms: Some(5), ..named("a") },
            NewKey { credits: Some(Credits(-1)), ..named("a") },
            NewKey { tier: Some(String::new()), ..named("a") },
            NewKey { scopes: Scopes { models: Some(vec!["".into()]), ..Scopes::default() }, ..named("a") },
        ] {
            create(&store, &new, ACTOR, 5).unwrap_err();
        }
        assert!(list(&store, 5).unwrap().is_empty());
    }

    #[test]
    fn credits_go_to_the_account_with_the_key() {
        let store = Store::in_memory().unwrap();
        let named = |credits| NewKey { name: "a".into(), credits, account: Some("shop".into()), ..NewKey::default() };
        create(&store, &named(Some(Credits::parse("12.5").unwrap())), ACTOR, 5).unwrap();
        create(&store, &named(None), ACTOR, 5).unwrap();
        let budgets: Vec<bool> = list(&store, 5).unwrap().into_iter().map(|key| key.has_budget).collect();
        assert_eq!(budgets.iter().filter(|has| **has).count(), 1);
        let balances = accounts::Accounts::load(&store, 5).unwrap().of("shop").balances(crate::engine::budget::MonthIndex::default());
        assert_eq!(balances.balance, Credits::parse("12.5").ok());
    }

    #[test]
    fn a_key_with_unreadable_scopes_opens_nothing() {
        use crate::store::follow::Mirror;
        let store = Store::in_memory().unwrap();
        let named = |name: &str| NewKey { name: name.into(), ..NewKey::default() };
        let (bad, good) = (create(&store, &named("bad"), ACTOR, 5).unwrap(), create(&store, &named("good"), ACTOR, 5).unwrap());
        store.write(|tx| Ok(tx.execute("UPDATE keys SET scopes = '{\"model\":[]}' WHERE id = ?1", [&bad.id])?)).unwrap();
        let keys = CallerKeys::default();
        keys.reload(&store).unwrap();
        assert_eq!(keys.lookup(bad.key.expose(), 6).unwrap_err(), Denied::Unknown);
        assert!(keys.lookup(good.key.expose(), 6).is_ok());
    }

    #[test]
    fn a_revoked_key_stays_revoked() {
        let store = Store::in_memory().unwrap();
        let id = create(&store, &NewKey { name: "a".into(), expires_ms: Some(10), ..NewKey::default() }, ACTOR, 1).unwrap().id;
        assert_eq!(list(&store, 9).unwrap()[0].state, "active");
        assert_eq!(list(&store, 10).unwrap()[0].state, "expired");
        revoke(&store, &id, ACTOR, 3).unwrap();
        revoke(&store, &id, ACTOR, 4).unwrap();
        assert_eq!(list(&store, 5).unwrap()[0].revoked_ms, Some(3));
        rotate(&store, &id, 0, ACTOR, 5).unwrap_err();
    }
}
