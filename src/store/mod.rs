//! What weir keeps: callers' keys, sealed provider keys, accounts, the audit log.
//!
//! One SQLite file, several processes: `weir serve` and the commands open it at the same time (WAL). Nothing here is on a
//! request's path: requests read maps in memory ([`keys::CallerKeys`], [`vault::KeyRing`]) that [`Store::changes_since`]
//! keeps fresh. Whoever changes a row that a running server mirrors calls [`changed`] in the same transaction.

pub mod accounts;
pub mod audit;
pub mod calendar;
pub mod callers;
pub mod follow;
pub mod journal;
pub mod keys;
pub(crate) mod last_use;
pub mod ledger;
pub mod outbound;
pub mod scan;
pub mod secret;
pub mod sqlite;
pub mod usage;
pub mod vault;

use rusqlite::{Connection, Transaction, params};
pub use sqlite::Store;
use std::fmt;
use std::path::PathBuf;

/// How often a running server looks for changes that other processes made: a quarter of the second that is promised.
pub const POLL_INTERVAL: std::time::Duration = std::time::Duration::from_millis(250);

/// Rows of `changes` that are kept. A server that slept through more of them reloads everything.
pub const CHANGES_KEPT: i64 = 100_000;

/// Why the store did not do it.
#[derive(Debug)]
pub enum Error {
    /// SQLite's own.
    Sqlite(rusqlite::Error),
    /// The file or its folder.
    Io(PathBuf, std::io::Error),
    /// The URL is not one we can open; says what to write instead.
    Url(String),
    /// The file was written by a newer weir.
    Newer {
        /// The file's schema version.
        found: u32,
        /// The latest this program knows.
        known: u32,
    },
    /// The blocking task was cancelled or panicked.
    Task,
    /// A row cannot be read, or the request makes no sense; the text is for the operator and holds no secret.
    Invalid(String),
}

/// The store's result.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Sqlite(error) => write!(f, "store: {error}"),
            Error::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Error::Url(what) | Error::Invalid(what) => f.write_str(what),
            Error::Newer { found, known } => {
                write!(f, "the store has schema {found}, this weir knows {known}: use the weir that wrote it, or a newer one")
            }
            Error::Task => f.write_str("store: the task did not finish"),
        }
    }
}

impl std::error::Error for Error {}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Error {
        Error::Sqlite(error)
    }
}

/// What kind of row changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Topic {
    /// A caller's key; the id is the key's id.
    Key = 1,
    /// A sealed provider key; the id is the row's number.
    ProviderKey = 2,
    /// An account (grant, cap, budget); the id is the account.
    Account = 3,
}

impl Topic {
    fn from_number(number: i64) -> Option<Topic> {
        match number {
            1 => Some(Topic::Key),
            2 => Some(Topic::ProviderKey),
            3 => Some(Topic::Account),
            _ => None,
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What kind of row.
    pub topic: Topic,
    /// Which row.
    pub id: String,
}

/// What happened since a mark.
#[derive(Debug, PartialEq, Eq)]
pub enum Changes {
    /// These rows, oldest first (a row may be named more than once); read on from `until`.
    Rows {
        /// The changes.
        rows: Vec<Change>,
        /// The new mark.
        until: i64,
    },
    /// More than is remembered: load everything again, then go on from `until`.
    Lost {
        /// The new mark; take it before loading.
        until: i64,
    },
}

/// Notes that a row changed, so that every server mirrors it within [`POLL_INTERVAL`]. Part of the caller's transaction.
pub fn changed(tx: &Transaction<'_>, topic: Topic, id: &str) -> Result<()> {
    tx.prepare_cached("INSERT INTO changes (topic, id) VALUES (?1, ?2)")?.execute(params![topic as i64, id])?;
    let seq = tx.last_insert_rowid();
    if seq % 1000 == 0 {
        tx.execute("DELETE FROM changes WHERE seq <= ?1", [seq - CHANGES_KEPT])?;
    }
    Ok(())
}

/// The latest change's number: the mark to start from. Take it before loading, so that nothing is missed.
pub fn mark(connection: &Connection) -> Result<i64> {
    let seq = connection.prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'changes'")?.query_row([], |row| row.get(0));
    match seq {
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(0),
        other => Ok(other?),
    }
}

fn changes_since(connection: &Connection, since: i64) -> Result<Changes> {
    let until = mark(connection)?;
    if until == since {
        return Ok(Changes::Rows { rows: Vec::new(), until });
    }
    let mut statement = connection.prepare_cached("SELECT seq, topic, id FROM changes WHERE seq > ?1 AND seq <= ?2 ORDER BY seq")?;
    let mut found = statement.query(params![since, until])?;
    let (mut rows, mut count) = (Vec::new(), 0i64);
    while let Some(row) = found.next()? {
        count += 1;
        // An unknown topic is a newer weir's: not ours to mirror.
        if let Some(topic) = Topic::from_number(row.get(1)?) {
            rows.push(Change { topic, id: row.get(2)? });
        }
    }
    // AUTOINCREMENT leaves no gaps but for rows that were pruned (a rolled back transaction rolls the sequence back too).
    // A mark behind ours: the file was replaced by an older one.
    if until < since || count < until - since { Ok(Changes::Lost { until }) } else { Ok(Changes::Rows { rows, until }) }
}

impl Store {
    /// What changed since a mark, by whichever process. Blocking; microseconds when nothing did.
    pub fn changes_since(&self, since: i64) -> Result<Changes> {
        self.read(|connection| {
            // One snapshot for the mark and the rows.
            let tx = connection.unchecked_transaction()?;
            changes_since(&tx, since)
        })
    }
}

/// Milliseconds since the Unix epoch, by the system clock.
pub fn now_ms() -> u64 {
    // A clock before 1970 is a broken machine; zero makes every expiry lie in the future, which is the safe reading for data.
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_seen_once_and_in_order() {
        let store = Store::in_memory().unwrap();
        assert_eq!(store.changes_since(0).unwrap(), Changes::Rows { rows: vec![], until: 0 });
        store.write(|tx| changed(tx, Topic::Key, "a").and_then(|()| changed(tx, Topic::Account, "b"))).unwrap();
        let expected = vec![Change { topic: Topic::Key, id: "a".into() }, Change { topic: Topic::Account, id: "b".into() }];
        assert_eq!(store.changes_since(0).unwrap(), Changes::Rows { rows: expected, until: 2 });
        assert_eq!(store.changes_since(2).unwrap(), Changes::Rows { rows: vec![], until: 2 });
    }

    #[test]
    fn a_failed_transaction_changes_nothing() {
        let store = Store::in_memory().unwrap();
        let failed: Result<()> = store.write(|tx| {
            changed(tx, Topic::Key, "a")?;
            Err(Error::Invalid("no".into()))
        });
        assert!(failed.is_err());
        assert_eq!(store.changes_since(0).unwrap(), Changes::Rows { rows: vec![], until: 0 });
    }

    #[test]
    fn a_server_that_slept_reloads() {
        let store = Store::in_memory().unwrap();
        store.write(|tx| changed(tx, Topic::Key, "a").and_then(|()| changed(tx, Topic::Key, "b"))).unwrap();
        store.write(|tx| Ok(tx.execute("DELETE FROM changes WHERE seq = 1", [])?)).unwrap();
        assert_eq!(store.changes_since(0).unwrap(), Changes::Lost { until: 2 });
    }
}
