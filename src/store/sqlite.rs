//! Opening the SQLite file, its schema, and the one writer.
//!
//! Every part keeps its tables in a const of its own; a schema version is a list of such consts, run in one transaction,
//! and `user_version` says how many versions a file has. A version that was released is never edited: add another one.

use super::{Error, Result, accounts, audit, keys, ledger, vault};
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a writer waits for another process's write transaction. Ours take milliseconds; a backup may take seconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Pages in the WAL at which they are copied into the database (16 MiB of them; SQLite's own number is 1000): a page that many rows
/// change is copied once for all of them, and the disk is waited for a quarter as often.
const CHECKPOINT_PAGES: u32 = 4000;

/// The change log that servers follow.
const CHANGES: &str = "
CREATE TABLE changes (
    seq   INTEGER PRIMARY KEY AUTOINCREMENT,
    topic INTEGER NOT NULL,
    id    TEXT NOT NULL
);
";

/// The schema, version by version.
const MIGRATIONS: &[&[&str]] = &[
    &[CHANGES, keys::TABLES, vault::TABLES, audit::TABLES, ledger::TABLES, accounts::TABLES],
    &[ledger::THROUGH],
    &[ledger::CHARGED_LATER],
    &[ledger::IN_PIECES],
];

/// The store. Cheap to clone; the file is closed with the last clone.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// The file, or `None` in memory.
    path: Option<PathBuf>,
    /// The one writer of this process: SQLite has one anyway, and waiting here is fairer than its busy loop.
    writer: Mutex<Connection>,
    /// A read connection beside it, so that polling never waits for a write. In memory there is only the writer.
    reader: Option<Mutex<Connection>>,
}

impl Store {
    /// Opens `sqlite:PATH` (made with its folder when missing, readable by the owner only) or `sqlite::memory:`, and brings
    /// its schema up to date.
    pub fn open(url: &str) -> Result<Store> {
        if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            return Err(Error::Url("store.url: postgres is not built yet: use \"sqlite:PATH\"".into()));
        }
        match url.strip_prefix("sqlite:") {
            Some(":memory:") => Store::in_memory(),
            Some(path) if !path.is_empty() => Store::open_file(Path::new(path)),
            // The URL itself is not repeated: it could hold a password.
            _ => Err(Error::Url("store.url: expected \"sqlite:PATH\"".into())),
        }
    }

    /// A throw-away store in this process's memory, for `weir demo` and tests.
    pub fn in_memory() -> Result<Store> {
        let mut writer = Connection::open_in_memory()?;
        configure(&writer)?;
        migrate(&mut writer)?;
        Ok(Store { inner: Arc::new(Inner { path: None, writer: Mutex::new(writer), reader: None }) })
    }

    fn open_file(path: &Path) -> Result<Store> {
        create_private(path).map_err(|error| Error::Io(path.to_owned(), error))?;
        let mut writer = Connection::open(path)?;
        configure(&writer)?;
        migrate(&mut writer)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let reader = Connection::open_with_flags(path, flags)?;
        reader.busy_timeout(BUSY_TIMEOUT)?;
        Ok(Store { inner: Arc::new(Inner { path: Some(path.to_owned()), writer: Mutex::new(writer), reader: Some(Mutex::new(reader)) }) })
    }

    /// The file; `None` for a store in memory. Files that belong to it (the journal) live beside it.
    pub fn path(&self) -> Option<&Path> {
        self.inner.path.as_deref()
    }

    /// Runs `work` in a write transaction: committed when it returns `Ok`, rolled back otherwise. Blocking.
    pub fn write<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut writer = self.inner.writer.lock();
        // Immediate: a transaction that reads first and then finds another writer before it would fail without a retry.
        let tx = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = work(&tx)?;
        tx.commit()?;
        Ok(value)
    }

    /// Runs `work` on a connection that sees everything committed. Blocking; do not write through it.
    pub fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        work(&self.inner.reader.as_ref().unwrap_or(&self.inner.writer).lock())
    }

    /// Runs blocking `work` off the async threads. Not cancelled when the future is dropped: the work runs to its end.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Store) -> Result<T> + Send + 'static) -> Result<T> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || work(&store)).await.map_err(|_| Error::Task)?
    }
}

fn configure(connection: &Connection) -> Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // WAL: readers and the writer do not wait for each other. NORMAL: a power cut may lose the last commits, never the file;
    // what must survive is in the journal first. A store in memory answers "memory" here, which is fine.
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    connection.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON;")?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    // Deleted sealed keys are overwritten, not just unlinked: in the file with the next checkpoint, in the WAL when it begins anew.
    connection.query_row("PRAGMA secure_delete = ON", [], |_| Ok(()))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn migrate(connection: &mut Connection) -> Result<()> {
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    // Immediate, so that two processes starting at once do not both migrate.
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: u32 = tx.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > known {
        return Err(Error::Newer { found, known });
    }
    for version in &MIGRATIONS[found as usize..] {
        for part in *version {
            tx.execute_batch(part)?;
        }
    }
    tx.execute_batch(&format!("PRAGMA user_version = {known}"))?;
    tx.commit()?;
    Ok(())
}

/// Makes the file (and its folder) readable by its owner alone before SQLite opens it; SQLite gives `-wal` and `-shm` the same mode.
fn create_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_cannot_be_opened_say_why() {
        for (url, expected) in [("postgres://u:hunter2@h/db", "not built yet"), ("mysql:x", "sqlite:PATH"), ("sqlite:", "sqlite:PATH")] {
            let message = Store::open(url).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
            assert!(!message.contains("hunter2"));
        }
    }

    #[test]
    fn the_wal_begins_anew_at_its_bound() {
        const BATCH_PAGES: u32 = 100;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weir.db");
        let store = Store::open(&format!("sqlite:{}", path.display())).unwrap();
        store.write(|tx| Ok(tx.execute_batch("CREATE TABLE filler (bytes BLOB)")?)).unwrap();
        for _ in 0..3 * CHECKPOINT_PAGES / BATCH_PAGES {
            store.write(|tx| Ok(tx.execute("INSERT INTO filler VALUES (zeroblob(?1))", [BATCH_PAGES * 4096])?)).unwrap();
        }
        // A frame is a page and 24 bytes (sqlite.org/fileformat2.html, 4.1); a commit may go past the bound.
        let frames = std::fs::metadata(folder.path().join("weir.db-wal")).unwrap().len() / (4096 + 24);
        let bound = u64::from(CHECKPOINT_PAGES);
        assert!((bound..bound + 2 * u64::from(BATCH_PAGES)).contains(&frames), "{frames}");
    }

    #[test]
    fn opening_twice_keeps_the_data_and_the_mode_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}/var/weir.db", folder.path().display());
        Store::open(&url).unwrap().write(|tx| super::super::changed(tx, super::super::Topic::Key, "k")).unwrap();
        let again = Store::open(&url).unwrap();
        assert_eq!(again.read(super::super::mark).unwrap(), 1);
        assert_eq!(std::fs::metadata(again.path().unwrap()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_newer_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}/weir.db", folder.path().display());
        drop(Store::open(&url).unwrap());
        Connection::open(folder.path().join("weir.db")).unwrap().execute_batch("PRAGMA user_version = 9999").unwrap();
        assert!(matches!(Store::open(&url), Err(Error::Newer { found: 9999, .. })));
    }

    /// A file as that version made it, and a connection of its server.
    fn of_version(version: usize) -> (tempfile::TempDir, PathBuf, Connection) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weir.db");
        let old = Connection::open(&path).unwrap();
        MIGRATIONS[..version].iter().flat_map(|parts| *parts).for_each(|part| old.execute_batch(part).unwrap());
        old.execute_batch(&format!("PRAGMA user_version = {version}")).unwrap();
        (folder, path, old)
    }

    #[test]
    fn what_an_older_version_rolled_up_is_not_rolled_up_again() {
        let (_folder, path, old) = of_version(1);
        let places = vec!["7"; 3 + ledger::store_rows::ROW_COLUMNS_COUNT].join(", ");
        old.execute_batch(&format!("INSERT INTO ledger VALUES ({places})")).unwrap();
        let store = Store::open(&format!("sqlite:{}", path.display())).unwrap();
        // A server that still runs cannot add its rows to sums that this one will add them to.
        assert!(old.execute_batch("UPDATE rollup SET rows = rows + 1").is_err());
        let found: (i64, i64) = store
            .read(|connection| {
                let query = "SELECT through, (SELECT count(*) FROM unrolled) FROM rolling";
                Ok(connection.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?)))?)
            })
            .unwrap();
        assert_eq!(found, (7, 0));
    }

    #[test]
    fn what_an_older_version_charged_is_not_charged_again() {
        use crate::engine::budget::MonthIndex;
        let (_folder, path, old) = of_version(2);
        // Three rows, the first of them rolled up: two of November and one of December 2026, the last without a budget.
        let (november, december) = (1_796_083_199_999_u64, 1_796_083_200_000_u64);
        let zeros = vec!["0"; ledger::store_rows::ROW_COLUMNS_COUNT - 22].join(", ");
        for (id, started_ms, reserved, charge) in [(1, november, "9", 5), (2, november, "9", 7), (3, december, "NULL", 11)] {
            let row = format!(
                "{id}, 'r{id}', 1, {id}, {started_ms}, 'acme', 'k', 'm', NULL, NULL, NULL, {reserved}, 'm', 'p', 0, 1, 0, 200, 0, 0,
                 NULL, 0, {charge}, NULL, 1, {zeros}"
            );
            old.execute_batch(&format!("INSERT INTO ledger VALUES ({row})")).unwrap();
        }
        let months = [MonthIndex::of_ms(november).0, MonthIndex::of_ms(december).0];
        old.execute_batch(&format!(
            "INSERT INTO accounts VALUES ('acme', 100, 12);
             INSERT INTO grants VALUES (NULL, 'acme', 100, '', 0);
             INSERT INTO account_months VALUES ('acme', {}, 12), ('acme', {}, 11);
             INSERT INTO totals (day, account, key_id, model, provider, level, {sums})
                SELECT day, account, key_id, model, provider, level, {sums} FROM unrolled WHERE charge = 5
                UNION ALL SELECT day, '', '', model, provider, level, {sums} FROM unrolled WHERE charge = 5;
             UPDATE rolled SET through = 1",
            months[0],
            months[1],
            sums = ledger::rollup::ROLLUP_SUMS.join(", "),
        ))
        .unwrap();
        let store = Store::open(&format!("sqlite:{}", path.display())).unwrap();
        // A server that still runs can neither charge rows that this one will charge, nor pass them over.
        assert!(old.execute_batch("UPDATE account_months SET charged = charged + 1").is_err());
        assert!(old.execute_batch("UPDATE rolled SET through = 3").is_err());
        let sums = |query: &str| store.read(|connection| Ok(connection.query_row(query, [], |row| row.get::<_, String>(0))?)).unwrap();
        let charged = "SELECT (SELECT charged FROM accounts) || ' ' || group_concat(charged) FROM (SELECT charged FROM months_charged ORDER BY month)";
        assert_eq!(sums(charged), "5 5,0");
        let balances = accounts::Accounts::load(&store, december).unwrap().of("acme").balances(MonthIndex(months[1]));
        assert_eq!((balances.balance.map(|balance| balance.0), balances.used_this_month.0), (Some(88), 11));
        assert_eq!(sums(charged), "12 12,11");
        assert_eq!(store.read(accounts::verify).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn an_older_version_stores_rows_but_rolls_none_up() {
        let (_folder, path, old) = of_version(3);
        let row = |id: u32| {
            let zeros = vec!["0"; ledger::store_rows::ROW_COLUMNS_COUNT - 3].join(", ");
            old.execute_batch(&format!("INSERT INTO ledger VALUES ({id}, 'r{id}', 1, {id}, 5, 'acme', {zeros})"))
        };
        (1..=3).for_each(|id| row(id).unwrap());
        old.execute_batch("UPDATE rolled_up SET through = 2").unwrap();
        let store = Store::open(&format!("sqlite:{}", path.display())).unwrap();
        row(4).unwrap();
        assert!(old.execute_batch("UPDATE rolled_up SET through = 4").is_err());
        let found: (i64, i64, i64) = store
            .read(|connection| {
                let query = "SELECT through, until, (SELECT sum(rows) FROM unrolled) FROM rolling";
                Ok(connection.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?)
            })
            .unwrap();
        assert_eq!(found, (2, 2, 2));
    }

    #[test]
    fn another_process_sees_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}/weir.db", folder.path().display());
        let (one, two) = (Store::open(&url).unwrap(), Store::open(&url).unwrap());
        one.write(|tx| super::super::changed(tx, super::super::Topic::Key, "k")).unwrap();
        assert!(matches!(two.changes_since(0).unwrap(), super::super::Changes::Rows { rows, until: 1 } if rows.len() == 1));
    }
}
