//! A real process that is killed with SIGKILL, again and again, on one set of files.

use super::*;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

/// Where the child works; set, the child's test is not a test.
const FOLDER: &str = "WEIR_TEST_CRASH_FOLDER";
const KILLS: u64 = 15;
const THREADS: u64 = 3;

/// What the parent knows from the child's lines.
#[derive(Default)]
struct Told {
    opened: BTreeSet<String>,
    closed: BTreeMap<String, i64>,
}

fn say(line: String) {
    // One write a line, so that a kill cuts only the last.
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).unwrap();
    out.flush().unwrap();
}

/// The child: requests without end. A line is what a client would have seen: `O id` after admission, `C id charge` after
/// the row counted as safe.
#[test]
#[ignore = "run by the parent test"]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let store = store_in(Path::new(&folder));
    let ledger = Ledger::start(&store, settings()).unwrap();
    let run = store::now_ms();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let ledger = &ledger;
            scope.spawn(move || {
                // Some stay open for a while, with progress, as streams do.
                let mut streams = Vec::new();
                for n in 0u64.. {
                    let id = format!("{run}.{thread}.{n}");
                    let charge = (n % 97) as i64 + 1;
                    let row = row(&id, &format!("account{}", n % 4), charge);
                    let account = ledger.accounts().of(&row.facts.account);
                    let terms = Terms { month: MonthIndex::of_ms(row.facts.started_ms), monthly_cap: None };
                    let reservation = account.reserve(Credits(100), terms).unwrap();
                    let mut ticket = ledger.open(row.facts).unwrap();
                    say(format!("O {id}\n"));
                    if n % 5 == 0 {
                        let outcome = row.outcome;
                        ticket.progress(n * 2000, || outcome.clone());
                        streams.push((ticket, reservation, outcome, id, charge));
                        if streams.len() < 20 {
                            continue;
                        }
                        let (mut ticket, reservation, outcome, id, charge) = streams.remove(0);
                        ticket.progress(u64::MAX, || outcome.clone());
                        finish(ticket, reservation, outcome, &id, charge);
                    } else {
                        finish(ticket, reservation, row.outcome, &id, charge);
                    }
                }
            });
        }
    });
}

fn finish(ticket: Ticket, reservation: crate::engine::budget::Reservation, outcome: Outcome, id: &str, charge: i64) {
    reservation.settle(Credits(charge));
    futures_block(ticket.close(outcome).safe());
    say(format!("C {id} {charge}\n"));
}

/// Lets a child run until it has said so many lines, then kills it; what it said.
fn run_and_kill(folder: &Path, lines: u64, told: &mut Told) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::ledger::tests::crash::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = Vec::new();
    let mut count = 0;
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).unwrap() == 0 {
            break;
        }
        let Ok(text) = std::str::from_utf8(&line) else { continue };
        // A line that a kill cut says nothing; libtest's own lines are none of ours.
        let Some(text) = text.strip_suffix('\n') else { continue };
        let mut words = text.split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some("O"), Some(id), None) => {
                told.opened.insert(id.into());
            }
            (Some("C"), Some(id), Some(charge)) => {
                told.closed.insert(id.into(), charge.parse().unwrap());
            }
            _ => continue,
        }
        count += 1;
        if count == lines {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(count >= lines, "the child ended by itself after {count} lines");
}

#[test]
fn every_answered_request_has_one_row_however_often_the_process_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    {
        let store = store_in(folder.path());
        for account in 0..4 {
            store.write(|tx| grant(tx, &format!("account{account}"), Credits(1_000_000_000), "test", 1)).unwrap();
        }
    }
    let mut told = Told::default();
    for kill in 0..KILLS {
        run_and_kill(folder.path(), 50 + kill * 211 % 1700, &mut told);
    }
    let store = store_in(folder.path());
    let ledger = Ledger::start(&store, settings()).unwrap();
    let mut rows = BTreeMap::new();
    for row in rows_in(&store) {
        assert!(!row.facts.request_id.contains('~'), "stored twice: {}", row.facts.request_id);
        rows.insert(row.facts.request_id.to_string(), row);
    }
    assert_eq!(rows.len(), rows_in(&store).len());
    for (id, charge) in &told.closed {
        let row = &rows[id];
        assert_eq!((row.outcome.end, row.outcome.charge.0), (End::Complete, *charge), "{id}");
    }
    for id in &told.opened {
        assert!(rows.contains_key(id), "admitted and gone: {id}");
    }
    assert!(told.closed.len() > 1000 && rows.values().any(|row| row.outcome.end == End::Failed));
    assert_consistent(&store);
    // In memory as in the database, and nothing is left reserved.
    for account in 0..4 {
        let id = format!("account{account}");
        let now = MonthIndex::of_ms(store::now_ms());
        let balances = ledger.accounts().of(&id).balances(now);
        assert_eq!(balances.balance.map(|balance| balance.0), balance(&store, &id));
        assert_eq!(balances.reserved, Credits(0));
        let spent: i64 = rows.values().filter(|row| *row.facts.account == *id).map(|row| row.outcome.charge.0).sum();
        assert_eq!(balance(&store, &id), Some(1_000_000_000 - spent));
    }
    assert_eq!(ledger.health().damaged_bytes, 0);
    ledger.shutdown();
}
