//! A disk that is really full: a small file system in memory. Needs the right to mount; skipped without it.

use super::*;
use std::process::Command;

struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(size: &str) -> Option<Mounted> {
        let folder = tempfile::tempdir().unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "weir-test"])
            .arg(folder.path())
            .stderr(std::process::Stdio::null())
            .status();
        status.is_ok_and(|status| status.success()).then(|| Mounted(folder))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_stops_admission_and_loses_nothing() {
    let Some(mounted) = Mounted::new("4m") else {
        eprintln!("skipped: no right to mount a file system");
        return;
    };
    let folder = mounted.0.path();
    let store = store_in(folder);
    let ledger = Ledger::start(&store, settings()).unwrap();
    write(&ledger, row("before", "acme", 1));
    assert!(ledger.flush());
    // Fill it to the last byte.
    let ballast = folder.join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    let chunk = [0u8; 4096];
    while std::io::Write::write_all(&mut file, &chunk).is_ok() {}
    drop(file);
    let mut tickets = Vec::new();
    let refused = loop {
        match ledger.open(row(&format!("r{}", tickets.len()), "acme", 0).facts) {
            Ok(ticket) => tickets.push(ticket),
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, LedgerFull::Disk);
    assert!(!tickets.is_empty());
    // Who was admitted has room, so its row is safe at once.
    let admitted = tickets.len();
    for (n, ticket) in tickets.into_iter().enumerate() {
        let closed = ticket.close(row("", "acme", n as i64).outcome);
        assert!(closed.is_safe());
    }
    assert_eq!(ledger.pending() + rows_in(&store).len(), admitted + 1);
    assert!(ledger.health().journal_faults > 0);
    // Room again: everything arrives, and admission goes on.
    std::fs::remove_file(&ballast).unwrap();
    assert!(ledger.flush());
    assert_eq!(rows_in(&store).len(), admitted + 1);
    assert_consistent(&store);
    write(&ledger, row("after", "acme", 1));
    ledger.shutdown();
    assert_eq!(rows_in(&store).len(), admitted + 2);
}

#[test]
fn at_the_journals_bound_admission_stops_until_rows_are_stored() {
    let folder = tempfile::tempdir().unwrap();
    let store = store_in(folder.path());
    let layout = Layout { segments_max: 2, shards: 1, ..SMALL };
    let ledger = Ledger::start(&store, Settings { layout, ..Settings::default() }).unwrap();
    let mut tickets = Vec::new();
    while let Ok(ticket) = ledger.open(row(&format!("r{}", tickets.len()), "acme", 0).facts) {
        tickets.push(ticket);
    }
    let admitted = tickets.len();
    assert!(admitted > 3);
    for ticket in tickets {
        let _ = ticket.close(row("", "acme", 1).outcome);
    }
    assert!(ledger.flush());
    // The next round of the sync thread lets the segments go; asked for instead of waited for.
    while ledger.open(row("again", "acme", 1).facts).is_err() {
        let round = ledger.inner.syncs.ask();
        ledger.inner.syncs.wait(round).unwrap();
    }
    ledger.shutdown();
    assert_eq!(rows_in(&store).len(), admitted + 1);
    assert_consistent(&store);
}

#[test]
fn a_question_does_not_wait_for_a_database_that_stands_still() {
    let folder = tempfile::tempdir().unwrap();
    let store = store_in(folder.path());
    let ledger = Ledger::start(&store, settings()).unwrap();
    // The clock goes on by itself whenever nothing else is to do.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    store
        .write(|_| {
            write(&ledger, row("r", "acme", 1));
            let waited = runtime.block_on(async {
                let began = tokio::time::Instant::now();
                assert!(!ledger.flushed_soon().await);
                began.elapsed()
            });
            assert!(waited >= QUESTION_WAIT && waited < QUESTION_WAIT * 2, "{waited:?}");
            Ok(())
        })
        .unwrap();
    // What was given up is not lost.
    assert!(ledger.flush());
    assert_eq!(rows_in(&store).len(), 1);
    ledger.shutdown();
}

#[test]
fn while_the_database_stands_still_rows_wait_and_then_admission_stops() {
    let folder = tempfile::tempdir().unwrap();
    let store = store_in(folder.path());
    let ledger = Ledger::start(&store, Settings::default()).unwrap();
    let Row { facts, outcome } = row("r", "a", 1);
    store
        .write(|_| {
            // Nobody else writes to it in here.
            for _ in 0..LEDGER_PENDING_MAX {
                let _ = ledger.open(facts.clone()).unwrap().close(outcome.clone());
            }
            assert_eq!(ledger.open(facts.clone()).err(), Some(LedgerFull::Behind));
            Ok(())
        })
        .unwrap();
    assert!(ledger.flush());
    assert_eq!(ledger.pending(), 0);
    let _ = ledger.open(facts).unwrap().close(outcome);
    assert!(ledger.flush());
    let stored: i64 = store.read(|connection| Ok(connection.query_row("SELECT count(*) FROM ledger", [], |row| row.get(0))?)).unwrap();
    assert_eq!(stored, LEDGER_PENDING_MAX as i64 + 1);
    ledger.shutdown();
}
