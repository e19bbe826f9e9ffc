//! What dead processes left in their journals becomes rows.

use super::codec::{self, Record};
use super::{End, Outcome, Pending, Row, Sink, store_rows};
use crate::store::journal::{Orphan, scan};
use crate::store::{self, Store};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Rows stored in one transaction.
const REPLAY_ROWS: usize = 5000;

/// What a replay came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Replayed {
    /// Rows that the database did not have.
    pub(super) stored: u64,
    /// Requests that had no end and were closed as `failed`.
    pub(super) unfinished: u64,
    /// Bytes that no record could be made of.
    pub(super) damaged_bytes: u64,
}

impl Replayed {
    pub(super) fn add(&mut self, other: Replayed) {
        self.stored += other.stored;
        self.unfinished += other.unfinished;
        self.damaged_bytes += other.damaged_bytes;
    }
}

/// Stores what a dead process's journal holds and deletes it. Idempotent: interrupted anywhere, it can be run again.
pub(super) fn replay(store: &Store, sinks: &[Sink], orphan: Orphan, now_ms: u64) -> store::Result<Replayed> {
    let mut replayed = Replayed::default();
    let mut damaged = Vec::new();
    for segments in &orphan.shards {
        let shard = read_shard(segments, &mut damaged, &mut replayed.damaged_bytes)?;
        let unfinished = shard.open.into_iter().map(|(ticket, row)| (ticket, as_failed(row, now_ms), true));
        let mut rows = shard.closed.into_iter().map(|(ticket, row)| (ticket, row, false)).chain(unfinished).peekable();
        while rows.peek().is_some() {
            let (mut batch, mut was_open) = (Vec::new(), Vec::new());
            for (ticket, row, open) in rows.by_ref().take(REPLAY_ROWS) {
                batch.push(Pending { epoch: orphan.epoch, ticket, row, segments: [None, None] });
                was_open.push(open);
            }
            // Nobody has these charges in memory: tell every process that runs.
            let inserted = store.write(|tx| store_rows::store(tx, &batch, sinks, true))?.inserted;
            replayed.stored += inserted.iter().filter(|inserted| inserted.is_some()).count() as u64;
            replayed.unfinished += was_open.iter().zip(&inserted).filter(|(open, inserted)| **open && inserted.is_some()).count() as u64;
        }
    }
    store_rows::sync_database(store)?;
    let folder = orphan.shards.iter().flatten().next().cloned().unwrap_or_default();
    orphan.remove(&damaged).map_err(|error| store::Error::Io(folder, error))?;
    if replayed.damaged_bytes > 0 {
        log::error!("ledger: {} bytes of a journal could not be read; the segments are kept as .damaged", replayed.damaged_bytes);
    }
    if replayed.stored > 0 {
        log::warn!(
            "ledger: {} rows of a process that ended early were stored, {} of them unfinished",
            replayed.stored,
            replayed.unfinished
        );
    }
    Ok(replayed)
}

#[derive(Default)]
struct Shard {
    closed: Vec<(u64, Row)>,
    /// Admitted without an end so far, by ticket.
    open: BTreeMap<u64, Row>,
}

fn read_shard(segments: &[PathBuf], damaged: &mut Vec<PathBuf>, damaged_bytes: &mut u64) -> store::Result<Shard> {
    let mut shard = Shard::default();
    for path in segments {
        let bytes = std::fs::read(path).map_err(|error| store::Error::Io(path.clone(), error))?;
        let found = scan::scan(&bytes);
        let mut lost = found.skipped_bytes + if found.bad_header { bytes.len() as u64 } else { 0 };
        for payload in found.payloads {
            match codec::read(&bytes[payload.clone()]) {
                Some(record) => shard.add(record),
                None => lost += payload.len() as u64,
            }
        }
        if lost > 0 {
            damaged.push(path.clone());
            *damaged_bytes += lost;
        }
    }
    Ok(shard)
}

impl Shard {
    fn add(&mut self, record: Record) {
        match record {
            Record::Open(ticket, facts) => {
                self.open.insert(ticket, Row { facts, outcome: Outcome::default() });
            }
            Record::Progress(ticket, outcome) => {
                // Its facts were lost with a damaged page: nobody can be charged for it.
                if let Some(row) = self.open.get_mut(&ticket) {
                    row.outcome = outcome;
                }
            }
            Record::Carried(ticket, row) => {
                self.open.insert(ticket, row);
            }
            Record::Close(ticket, row) => {
                self.open.remove(&ticket);
                self.closed.push((ticket, row));
            }
        }
    }
}

fn as_failed(mut row: Row, now_ms: u64) -> Row {
    row.outcome.end = End::Failed;
    if row.outcome.duration_ms == 0 {
        // Without progress nobody knows when it ended; it is over by now.
        row.outcome.duration_ms = now_ms.saturating_sub(row.facts.started_ms);
    }
    row
}
