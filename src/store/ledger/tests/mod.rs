//! Real files and a real database; a process that dies is a real child process that is killed.

use super::rollup::Ahead;
use super::row::tests::full_row;
use super::*;
use crate::engine::budget::{MonthIndex, Terms};
use crate::engine::money::{Credits, Usd};
use crate::store::accounts::{self, grant};
use crate::store::journal::RECORD_BYTES_MAX;
use std::path::Path;

const SMALL: Layout = Layout { segment_bytes: 4 * RECORD_BYTES_MAX, segments_max: 64, shards: 2 };

fn settings() -> Settings {
    Settings { layout: SMALL, ..Settings::default() }
}

fn store_in(folder: &Path) -> Store {
    Store::open(&format!("sqlite:{}/weir.db", folder.display())).unwrap()
}

fn row(id: &str, account: &str, charge: i64) -> Row {
    let mut row = full_row(id);
    row.facts.account = account.into();
    row.outcome.charge = Credits(charge);
    row
}

/// Closes a row and waits until it counts as safe.
fn write(ledger: &Ledger, row: Row) {
    let closed = ledger.open(row.facts).unwrap().close(row.outcome);
    futures_block(closed.safe());
}

fn futures_block(future: impl Future) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future);
}

fn rows_in(store: &Store) -> Vec<Row> {
    store
        .read(|connection| {
            let mut query = connection.prepare(&format!("SELECT {} FROM ledger ORDER BY id", store_rows::ROW_COLUMNS))?;
            Ok(query.query_map([], |row| store_rows::read_row(row, 0))?.collect::<rusqlite::Result<_>>()?)
        })
        .unwrap()
}

fn assert_consistent(store: &Store) {
    assert_eq!(store.read(accounts::verify).unwrap(), Vec::<String>::new());
}

fn balance(store: &Store, account: &str) -> Option<i64> {
    Accounts::load(store, 0).unwrap().of(account).balances(MonthIndex(0)).balance.map(|balance| balance.0)
}

/// A copy of everything on disk at this moment, as a killed process would leave it.
fn image(store: &Store) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    // Inside a transaction nobody else writes to the database.
    store
        .write(|_| {
            copy_folder(store.path().unwrap().parent().unwrap(), copy.path());
            Ok(())
        })
        .unwrap();
    copy
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy_folder(&entry.path(), &to);
        } else if !entry.file_name().to_str().unwrap().ends_with("-shm") {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn a_row_comes_back_whole_and_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = store_in(folder.path());
    let ledger = Ledger::start(&store, settings()).unwrap();
    let expected = full_row("01J");
    write(&ledger, expected.clone());
    assert!(ledger.flush());
    assert_eq!(rows_in(&store), [expected]);
    assert_eq!(ledger.pending(), 0);
    ledger.shutdown();
    // Nothing is left to replay, and nothing on disk but the folder's lock.
    let left: Vec<_> = std::fs::read_dir(folder.path().join("weir.db.journal")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["folder.lock"]);
    assert_consistent(&store);
}

#[test]
fn a_store_in_memory_keeps_rows_without_a_journal() {
    let store = Store::in_memory().unwrap();
    let ledger = Ledger::start(&store, settings()).unwrap();
    write(&ledger, full_row("a"));
    assert!(ledger.flush());
    assert_eq!(rows_in(&store), [full_row("a")]);
    ledger.shutdown();
}

#[test]
fn what_a_crash_leaves_in_the_journal_is_stored_once() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::start(&store_in(folder.path()), settings()).unwrap();
    for n in 0..200 {
        write(&ledger, row(&format!("r{n}"), "acme", 3));
    }
    let mut open = ledger.open(full_row("with progress").facts).unwrap();
    let mut progress = full_row("").outcome;
    progress.charge = Credits(11);
    open.progress(1000, || progress.clone());
    let silent = ledger.open(full_row("silent").facts).unwrap();
    let crashed = image(&ledger.inner.store);
    let store = store_in(crashed.path());
    for _ in 0..2 {
        // The second start finds nothing left to do.
        let ledger = Ledger::start(&store, settings()).unwrap();
        let rows = rows_in(&store);
        assert_eq!(rows.len(), 202);
        let failed: Vec<_> = rows.iter().filter(|row| row.outcome.end == End::Failed).collect();
        assert_eq!(failed.len(), 2);
        let known = failed.iter().find(|row| &*row.facts.request_id == "with progress").unwrap();
        assert_eq!((known.outcome.charge, known.outcome.usage), (Credits(11), progress.usage));
        assert!(failed.iter().any(|row| &*row.facts.request_id == "silent" && row.outcome.cost == Usd(0)));
        assert_consistent(&store);
        ledger.shutdown();
    }
    drop((open, silent));
    ledger.shutdown();
}

#[test]
fn two_requests_with_one_id_are_two_rows() {
    let store = Store::in_memory().unwrap();
    let ledger = Ledger::start(&store, settings()).unwrap();
    write(&ledger, row("same", "acme", 1));
    write(&ledger, row("same", "acme", 2));
    assert!(ledger.flush());
    let ids: Vec<_> = rows_in(&store).into_iter().map(|row| row.facts.request_id).collect();
    assert_eq!(ids.len(), 2);
    assert!(&*ids[0] == "same" && ids[1].starts_with("same~"), "{ids:?}");
    ledger.shutdown();
}

#[test]
fn accounts_are_charged_with_the_roll_ups_and_by_whoever_comes_next() {
    let folder = tempfile::tempdir().unwrap();
    let store = store_in(folder.path());
    store.write(|tx| grant(tx, "acme", Credits(500), "first", 1)).unwrap();
    let ledger = Ledger::start(&store, settings()).unwrap();
    write(&ledger, row("r1", "acme", 40));
    write(&ledger, row("r2", "other", 2));
    assert!(ledger.flush());
    let charged = |store: &Store| -> (i64, i64) {
        let query = "SELECT coalesce(sum(charged), 0), (SELECT count(*) FROM unrolled) FROM accounts";
        store.read(|connection| Ok(connection.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?)))?)).unwrap()
    };
    assert_eq!(charged(&store), (0, 2));
    assert_eq!(store.read(|connection| accounts::ids(connection, "", 9)).unwrap(), ["acme", "other"]);
    assert_eq!(store.read(|connection| accounts::ids(connection, "acme", 9)).unwrap(), ["other"]);
    assert_eq!(store.read(|connection| accounts::ids(connection, "", 1)).unwrap(), ["acme"]);
    assert_consistent(&store);
    // Killed now: the next process charges before it reads the balances.
    let crashed = image(&store);
    let left = store_in(crashed.path());
    assert_eq!(charged(&left), (0, 2));
    let next = Ledger::start(&left, settings()).unwrap();
    assert_eq!(charged(&left), (42, 0));
    assert_eq!(next.accounts().of("acme").balances(MonthIndex(0)).balance, Some(Credits(460)));
    assert_consistent(&left);
    next.shutdown();
    // What another process rolled up meanwhile is not charged again by the one that stored it.
    assert_eq!(balance(&store, "acme"), Some(460));
    write(&ledger, row("r3", "acme", 1));
    ledger.shutdown();
    assert_eq!(charged(&store), (43, 0));
    assert_consistent(&store);
}

#[test]
fn more_accounts_than_are_refreshed_at_once_are_all_refreshed() {
    let folder = tempfile::tempdir().unwrap();
    let store = store_in(folder.path());
    let ledger = Ledger::start(&store, settings()).unwrap();
    let ids: Vec<String> = (0..accounts::REFRESHED_AT_ONCE + 1).map(|n| format!("account{n}")).collect();
    store.write(|tx| ids.iter().try_for_each(|id| grant(tx, id, Credits(5), "", 1))).unwrap();
    ledger.accounts().refresh(&store, &ids, 0).unwrap();
    for id in &ids {
        assert_eq!(ledger.accounts().of(id).balances(MonthIndex(0)).balance, Some(Credits(5)), "{id}");
    }
    ledger.shutdown();
}

#[test]
fn balances_follow_grants_and_rows() {
    let folder = tempfile::tempdir().unwrap();
    let store = store_in(folder.path());
    let ledger = Ledger::start(&store, settings()).unwrap();
    // Before it has a budget, charges are counted in the month alone.
    let mut free = row("r0", "acme", 1_000);
    free.facts.reserved = None;
    let month = MonthIndex::of_ms(free.facts.started_ms);
    ledger.accounts().of("acme").reserve(Credits(0), Terms { month, monthly_cap: None }).unwrap().settle(Credits(1_000));
    write(&ledger, free);
    assert!(ledger.flush());
    assert_eq!(balance(&store, "acme"), None);
    // As `weir key create --credits` in another process would.
    let other = store_in(folder.path());
    other.write(|tx| grant(tx, "acme", Credits(500), "first", 1)).unwrap();
    let now_ms = full_row("").facts.started_ms;
    ledger.accounts().refresh(&store, &["acme"], now_ms).unwrap();
    let account = ledger.accounts().of("acme");
    let memory = || account.balances(month).balance.map(|balance| balance.0);
    assert_eq!((memory(), balance(&store, "acme")), (Some(500), Some(500)));
    // Reserved and settled in memory, stored a moment later; refreshing at any time changes nothing.
    let reservation = account.reserve(Credits(300), Terms { month, monthly_cap: None }).unwrap();
    let ticket = ledger.open(row("r1", "acme", 0).facts).unwrap();
    let _ = ticket.close(row("r1", "acme", 120).outcome);
    reservation.settle(Credits(120));
    ledger.accounts().refresh(&store, &["acme"], now_ms).unwrap();
    assert!(ledger.flush());
    ledger.accounts().refresh(&store, &["acme"], now_ms).unwrap();
    assert_eq!((memory(), balance(&store, "acme")), (Some(380), Some(380)));
    // Taking credits away, and a charge that another process stored (an old server that drains).
    other.write(|tx| grant(tx, "acme", Credits(-80), "refund", 2)).unwrap();
    let old = Ledger::start(&other, settings()).unwrap();
    write(&old, row("r2", "acme", 40));
    assert!(old.flush());
    ledger.accounts().refresh(&store, &["acme"], now_ms).unwrap();
    assert_eq!((memory(), balance(&store, "acme")), (Some(260), Some(260)));
    assert_eq!(account.balances(month).used_this_month, Credits(1_160));
    assert_consistent(&store);
    old.shutdown();
    ledger.shutdown();
    // After a restart the memory is the same.
    let again = Accounts::load(&store, now_ms).unwrap();
    let balances = again.of("acme").balances(month);
    assert_eq!((balances.balance, balances.used_this_month), (Some(Credits(260)), Credits(1_160)));
}

#[test]
fn strict_rows_wait_for_the_disk_together() {
    let folder = tempfile::tempdir().unwrap();
    let store = store_in(folder.path());
    let ledger = Ledger::start(&store, Settings { commit: Commit::Strict, ..settings() }).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let ledger = &ledger;
            scope.spawn(move || {
                for n in 0..10 {
                    let row = row(&format!("{thread}.{n}"), "acme", 1);
                    let closed = ledger.open(row.facts).unwrap().close(row.outcome);
                    assert!(!closed.is_safe());
                    futures_block(closed.safe());
                }
            });
        }
    });
    ledger.shutdown();
    assert_eq!(rows_in(&store).len(), 40);
}

#[test]
fn a_dropped_ticket_is_a_failed_row() {
    let store = Store::in_memory().unwrap();
    let ledger = Ledger::start(&store, settings()).unwrap();
    drop(ledger.open(full_row("r").facts).unwrap());
    assert!(ledger.flush());
    assert_eq!(rows_in(&store)[0].outcome.end, End::Failed);
    assert_eq!(ledger.health().dropped, 1);
    ledger.shutdown();
}

#[test]
fn a_long_stream_does_not_keep_old_segments() {
    let folder = tempfile::tempdir().unwrap();
    let store = store_in(folder.path());
    let layout = Layout { shards: 1, ..SMALL };
    let ledger = Ledger::start(&store, Settings { layout, ..Settings::default() }).unwrap();
    let mut stream = ledger.open(full_row("stream").facts).unwrap();
    for n in 0..400u64 {
        write(&ledger, row(&format!("r{n}"), "acme", 1));
        if n % 20 == 0 {
            stream.progress(n * 1000, || full_row("").outcome);
        }
    }
    assert!(ledger.flush());
    let journal = ledger.inner.journal.as_ref().unwrap();
    ledger.inner.stored.lock().clear();
    journal.sync().unwrap();
    journal.sweep();
    assert!(journal.segments() <= 4, "{}", journal.segments());
    // And yet its facts are there for a recovery.
    let crashed = image(&store);
    let recovered = Ledger::start(&store_in(crashed.path()), settings()).unwrap();
    assert_eq!(recovered.health().recovered_open, 1);
    recovered.shutdown();
    let _ = stream.close(full_row("").outcome);
    ledger.shutdown();
    assert_consistent(&store);
}

/// Nanoseconds on a processor: of this thread, and of all threads of the process.
fn cpu_ns() -> (u64, u64) {
    let of = |path: &Path| std::fs::read_to_string(path).unwrap().split(' ').next().unwrap().parse::<u64>().unwrap();
    let all = std::fs::read_dir("/proc/self/task").unwrap().map(|entry| of(&entry.unwrap().path().join("schedstat"))).sum();
    (of(Path::new("/proc/thread-self/schedstat")), all)
}

/// What the ledger costs a request: `cargo test --release --lib cost_of_a_request -- --ignored --nocapture`
#[test]
#[ignore = "measures; takes a while"]
fn cost_of_a_request() {
    let folder = tempfile::tempdir().unwrap();
    let store = store_in(folder.path());
    let ledger = Ledger::start(&store, Settings::default()).unwrap();
    let template = full_row("");
    const COUNT: u64 = 60_000;
    let requests: Vec<Row> = (0..COUNT)
        .map(|n| {
            let mut row = template.clone();
            row.facts.request_id = format!("01JD{n:022}").into();
            row
        })
        .collect();
    let before = cpu_ns();
    for row in requests {
        let _ = ledger.open(row.facts).unwrap().close(row.outcome);
    }
    let closed = cpu_ns();
    assert!(ledger.flush());
    let stored = cpu_ns();
    println!(
        "a request's own thread: {} ns; all threads until it is stored: {} ns",
        (closed.0 - before.0) / COUNT,
        (stored.1 - before.1) / COUNT
    );
    ledger.shutdown();
}

/// Stores rows as a process does that has `ahead`.
fn store_rows_of(store: &Store, ahead: &mut Ahead, ids: &[&str]) {
    store_all_of(store, ahead, ids.iter().map(|id| pending(id, 3)));
    assert_consistent(store);
}

/// Returns how many of them the database did not have.
fn store_all_of(store: &Store, ahead: &mut Ahead, rows: impl Iterator<Item = Pending>) -> usize {
    let rows: Vec<_> = rows.collect();
    let stored = store.write(|tx| store_rows::store(tx, &rows, &[], false)).unwrap();
    let inserted = rows.iter().zip(stored.inserted).filter_map(|(pending, id)| Some((id?, &pending.row)));
    inserted.inspect(|(id, row)| ahead.add(*id, row)).count()
}

fn pending(id: &str, charge: i64) -> Pending {
    Pending { row: row(id, "acme", charge), epoch: 1, ticket: id.len() as u64, segments: Default::default() }
}

/// Rows in the roll-ups, and rows that are not.
fn rolled(store: &Store) -> (i64, i64) {
    let query = "SELECT (SELECT coalesce(sum(rows), 0) FROM totals WHERE account = ''), (SELECT count(*) FROM unrolled)";
    store.read(|connection| Ok(connection.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?)))?)).unwrap()
}

#[test]
fn sums_that_are_too_large_stay_the_largest() {
    let store = Store::in_memory().unwrap();
    let mut ahead = Ahead::default();
    for id in ["one", "two"] {
        let mut large = pending(id, 0);
        large.row.outcome.cost = Usd(i128::MAX);
        large.row.outcome.charge = Credits(i64::MAX);
        store_all_of(&store, &mut ahead, [large].into_iter());
        super::rollup::roll(&store, &mut ahead).unwrap();
    }
    let sums = "SELECT min(typeof(cost)), max(typeof(charge)), min(cost), max(charge) FROM totals";
    let found: (String, String, i64, i64) =
        store.read(|c| Ok(c.query_row(sums, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?)).unwrap();
    assert_eq!(found, ("integer".into(), "integer".into(), i64::MAX, i64::MAX));
}

#[test]
fn each_row_is_rolled_up_once_whoever_stored_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = store_in(folder.path());
    let roll = |ahead: &mut Ahead| {
        rollup::roll(&store, ahead).unwrap();
        assert_consistent(&store);
    };
    let (mut one, mut other) = (Ahead::default(), Ahead::default());
    // Alone: from memory.
    store_rows_of(&store, &mut one, &["a", "b"]);
    store_rows_of(&store, &mut one, &["c"]);
    assert_eq!(rolled(&store), (0, 3));
    roll(&mut one);
    assert_eq!(rolled(&store), (3, 0));
    // Two processes, one between the other's: read from the ledger, and by the first of them for both.
    store_rows_of(&store, &mut one, &["d"]);
    store_rows_of(&store, &mut other, &["e"]);
    store_rows_of(&store, &mut one, &["f", "a"]);
    roll(&mut one);
    assert_eq!(rolled(&store), (6, 0));
    roll(&mut other);
    assert_eq!(rolled(&store), (6, 0));
    // One that died before it rolled.
    store_rows_of(&store, &mut other, &["g", "h"]);
    store_rows_of(&store, &mut one, &["i"]);
    roll(&mut one);
    assert_eq!(rolled(&store), (9, 0));
    // A transaction that was taken back, whose ids another row has then.
    let lost = store.write(|tx| {
        store_rows::store(tx, &[pending("j", 5)], &[], false)?;
        Err::<(), _>(store::Error::Task)
    });
    assert!(lost.is_err());
    store_rows_of(&store, &mut one, &["k"]);
    roll(&mut one);
    assert_eq!(rolled(&store), (10, 0));
}

/// Stores a row of each of `count` keys as a process does that has `ahead`.
fn store_keys_of(store: &Store, ahead: &mut Ahead, name: &str, count: usize) {
    let rows = (0..count).map(|n| {
        let mut pending = pending(&format!("{name}{n}"), 3);
        pending.row.facts.key_id = format!("{name}{n}").into();
        // Alike for longer than what is compared first, and on two days.
        pending.row.facts.account = format!("{}{}", "account".repeat(9), n % 3).into();
        pending.row.facts.started_ms += (n as u64 % 2) * store::calendar::DAY_MS;
        // Empty and absent are one cell of the table.
        pending.row.facts.level = (n % 2 == 0).then(|| "".into());
        pending
    });
    assert_eq!(store_all_of(store, ahead, rows), count);
}

#[test]
fn many_cells_go_in_piece_by_piece_whoever_goes_on() {
    const PIECE: i64 = rollup::PIECE_CELLS as i64;
    let folder = tempfile::tempdir().unwrap();
    let store = store_in(folder.path());
    let (mut one, mut other) = (Ahead::default(), Ahead::default());
    store_keys_of(&store, &mut one, "a", 4 * rollup::PIECE_CELLS + 1);
    let piece = |ahead: &mut Ahead, expected: (bool, i64, i64)| {
        let more = rollup::roll_some(&store, ahead).unwrap();
        let (within, waiting) = rolled(&store);
        assert_eq!((more, within, waiting), expected);
        assert_consistent(&store);
    };
    piece(&mut one, (true, PIECE, 3 * PIECE + 1));
    // A process that starts when another has died; here it has not, and goes on behind what the other did.
    piece(&mut other, (true, 2 * PIECE, 2 * PIECE + 1));
    piece(&mut one, (true, 3 * PIECE, PIECE + 1));
    // What comes meanwhile waits for its own turn: it is known to who stored it, and read by who did not.
    store_keys_of(&store, &mut one, "b", 2);
    piece(&mut other, (true, 4 * PIECE, 3));
    piece(&mut one, (false, 4 * PIECE + 1, 2));
    piece(&mut other, (false, 4 * PIECE + 3, 0));
    piece(&mut one, (false, 4 * PIECE + 3, 0));
    // Everything at once, from the midst of a range on.
    store_keys_of(&store, &mut one, "c", 2 * rollup::PIECE_CELLS);
    piece(&mut one, (true, 5 * PIECE + 3, PIECE));
    rollup::roll(&store, &mut other).unwrap();
    piece(&mut one, (false, 6 * PIECE + 3, 0));
    // A piece that was not committed.
    store_keys_of(&store, &mut one, "d", 2 * rollup::PIECE_CELLS);
    piece(&mut one, (true, 7 * PIECE + 3, PIECE));
    store.write(|tx| Ok(tx.execute_batch("CREATE TRIGGER full BEFORE UPDATE ON rolling BEGIN SELECT RAISE(ABORT, 'full'); END")?)).unwrap();
    assert!(rollup::roll_some(&store, &mut one).is_err());
    store.write(|tx| Ok(tx.execute_batch("DROP TRIGGER full")?)).unwrap();
    piece(&mut one, (false, 8 * PIECE + 3, 0));
}

#[test]
fn an_accounts_rows_that_are_in_no_roll_up_are_found_from_the_mark_on() {
    let store = Store::in_memory().unwrap();
    for query in
        ["SELECT min(day) FROM unrolled WHERE account = ?", "SELECT sum(charge) FROM unrolled WHERE day BETWEEN 1 AND 2 AND account = ?"]
    {
        let plan: Vec<String> = store
            .read(|connection| {
                let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {query}"))?;
                Ok(plan.query_map(["acme"], |row| row.get("detail"))?.collect::<rusqlite::Result<_>>()?)
            })
            .unwrap();
        // An index made for the question would read the whole ledger.
        assert!(plan.iter().any(|step| step.contains("rowid>?")), "{plan:?}");
        assert!(!plan.iter().any(|step| step.contains("AUTOMATIC")), "{plan:?}");
    }
}

#[test]
fn what_others_left_is_rolled_up_without_waiting_for_more() {
    let store = Store::in_memory().unwrap();
    let (mut one, mut other) = (Ahead::default(), Ahead::default());
    for batch in 0..5 {
        let rows = (0..10_000).map(|n| pending(&format!("{batch}-{n}"), 3));
        assert_eq!(store_all_of(&store, &mut one, rows), 10_000);
    }
    // What it stored itself stands behind what it did not.
    store_rows_of(&store, &mut other, &["own"]);
    let mut pieces = 1;
    while rollup::roll_some(&store, &mut other).unwrap() {
        pieces += 1;
    }
    assert_eq!((pieces, rolled(&store)), (2, (50_001, 0)));
    assert_consistent(&store);
}

#[test]
fn an_account_is_refreshed_without_a_roll_up_where_all_rows_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let store = store_in(folder.path());
    let ledger = Ledger::start(&store, settings()).unwrap();
    let accounts = ledger.accounts();
    let granted = |account: &str, expected: i64| {
        store.write(|tx| grant(tx, account, Credits(100), "", 1)).unwrap();
        // Twice the same: as if it had changed twice.
        accounts.refresh(&store, &[account, account, "nobody"], 0).unwrap();
        assert_eq!(accounts.of(account).balances(MonthIndex(0)).balance, Some(Credits(expected)), "{account}");
        assert_eq!(balance(&store_in(image(&store).path()), account), Some(expected), "{account}");
    };
    granted("acme", 100);
    settle(&ledger, row("r1", "acme", 40));
    granted("acme", 160);
    // Before it had a budget.
    let mut free = row("r2", "other", 2);
    free.facts.reserved = None;
    settle(&ledger, free);
    granted("other", 100);
    granted("acme", 260);
    assert_eq!(rolled(&store), (0, 2));
    // In the midst of it: some of the range is in, and another row came.
    for n in 0..rollup::PIECE_CELLS {
        let mut row = row(&format!("k{n}"), "many", 1);
        row.facts.key_id = format!("k{n}").into();
        let _ = ledger.open(row.facts).unwrap().close(row.outcome);
    }
    assert!(ledger.flush());
    assert!(accounts.flushing().roll_some(&store).unwrap());
    settle(&ledger, row("r3", "acme", 7));
    granted("acme", 353);
    granted("other", 200);
    assert_eq!(rolled(&store).1, 3);
    // Another process stored a row: it is rolled up with the others first.
    let mut another = Ahead::default();
    store_rows_of(&store, &mut another, &["elsewhere"]);
    granted("acme", 450);
    assert_eq!(rolled(&store).1, 0);
    assert_consistent(&store);
    ledger.shutdown();
}

/// Takes what a row charges from its account's balance, as its request did, and stores the row.
fn settle(ledger: &Ledger, row: Row) {
    let account = ledger.accounts().of(&row.facts.account);
    let month = MonthIndex::of_ms(row.facts.started_ms);
    account.charge(row.outcome.charge, month);
    write(ledger, row);
    assert!(ledger.flush());
}

#[test]
fn as_many_cells_as_may_wait_do_not_wait_longer() {
    let store = Store::in_memory().unwrap();
    let ledger = Ledger::start(&store, settings()).unwrap();
    for n in 0..rollup::CELLS_MAX {
        let mut row = row(&format!("r{n}"), "acme", 1);
        row.facts.key_id = format!("k{n}").into();
        let _ = ledger.open(row.facts).unwrap().close(row.outcome);
    }
    assert!(ledger.flush());
    let all = rollup::CELLS_MAX as i64;
    let (in_totals, waiting) = rolled(&store);
    assert!(in_totals > 0 && in_totals + waiting == all, "{in_totals} {waiting}");
    assert_consistent(&store);
    ledger.shutdown();
    assert_eq!(rolled(&store), (all, 0));
}

mod crash;
mod disk;
mod money;
