//! The two threads behind the ledger: one stores rows, one makes writes safe against power loss and tidies up.

use super::rollup::ROLL_INTERVAL;
use super::{BATCH_INTERVAL, BATCH_ROWS, Inner, Pending, recover, store_rows};
use crate::store::accounts::Flushing;
use crate::store::journal::SYNC_INTERVAL;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Pause after a write that failed.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// How often the last rows are tried again at shutdown; the journal has them anyway.
const SHUTDOWN_ATTEMPTS: u32 = 5;

/// How often the journals of processes that died meanwhile are looked for (an old server after an upgrade).
const ORPHANS_INTERVAL: Duration = Duration::from_secs(5);

pub(super) fn spawn(inner: &Arc<Inner>) -> io::Result<Vec<JoinHandle<()>>> {
    let (batching, syncing) = (inner.clone(), inner.clone());
    let batcher = std::thread::Builder::new().name("weir-ledger".into()).spawn(move || run_batches(&batching))?;
    let syncer = std::thread::Builder::new().name("weir-ledger-sync".into()).spawn(move || run_syncs(&syncing));
    match syncer {
        Ok(syncer) => Ok(vec![batcher, syncer]),
        Err(error) => {
            inner.batches.stop();
            let _ = batcher.join();
            Err(error)
        }
    }
}

fn run_batches(inner: &Inner) {
    let mut backlog = Vec::new();
    let mut rolling = Rolling { due: Instant::now() + ROLL_INTERVAL, more: false };
    while let Some(round) = inner.batches.begin(BATCH_INTERVAL) {
        collect(inner, &mut backlog);
        let idle = backlog.is_empty();
        if store_backlog(inner, &mut backlog, &mut rolling) {
            round.done();
        } else {
            round.failed();
            std::thread::sleep(RETRY_INTERVAL);
        }
        if idle {
            rolling.go_on(inner, &mut inner.accounts.flushing());
        }
    }
    for _ in 0..SHUTDOWN_ATTEMPTS {
        collect(inner, &mut backlog);
        if store_backlog(inner, &mut backlog, &mut rolling) {
            break;
        }
        std::thread::sleep(RETRY_INTERVAL);
    }
    if let Err(error) = inner.accounts.flushing().roll(&inner.store) {
        log::warn!("ledger: the roll-ups wait for the next start: {error}");
    }
    if let Some(shard) = inner.closed.first() {
        // Rows that are left keep their segments: the journal stays for the next start.
        shard.lock().append(&mut backlog);
    }
    inner.batches.stopped();
    inner.syncs.stop();
}

fn collect(inner: &Inner, backlog: &mut Vec<Pending>) {
    let before = backlog.len();
    for shard in &inner.closed {
        backlog.append(&mut shard.lock());
    }
    // In the order they ended, so that an account's rows are exported in that order.
    backlog[before..].sort_by_key(|pending| pending.row.facts.started_ms.saturating_add(pending.row.outcome.duration_ms));
}

/// Stores everything, batch by batch, and a piece of the roll-ups after each; `false`: the database did not take it and the rest is
/// kept.
fn store_backlog(inner: &Inner, backlog: &mut Vec<Pending>, rolling: &mut Rolling) -> bool {
    while !backlog.is_empty() {
        let count = backlog.len().min(BATCH_ROWS);
        let tell = inner.shared.load(Ordering::Relaxed);
        // Balances in memory and in the database are compared under the same lock (`Accounts::refresh`).
        let mut flushing = inner.accounts.flushing();
        let written = inner.store.write(|tx| store_rows::store(tx, &backlog[..count], &inner.settings.sinks, tell));
        match written {
            Ok(stored) => {
                // Now that they are committed: what was taken back is in no sum.
                let inserted = backlog.iter().zip(&stored.inserted).filter_map(|(pending, id)| Some(((*id)?, &pending.row)));
                flushing.stored(inserted, &stored.charges);
                inner.store_stuck.store(false, Ordering::Relaxed);
                inner.stored.lock().extend(backlog.drain(..count).flat_map(|pending| pending.segments).flatten());
                inner.pending.fetch_sub(count, Ordering::Relaxed);
                rolling.go_on(inner, &mut flushing);
            }
            Err(error) => {
                if !inner.store_stuck.swap(true, Ordering::Relaxed) {
                    log::error!("ledger: {error}; rows wait in the journal");
                }
                return false;
            }
        }
    }
    true
}

/// When the roll-ups take rows.
struct Rolling {
    /// When they begin anew.
    due: Instant,
    /// They are in the midst of it.
    more: bool,
}

impl Rolling {
    /// Brings a piece of what is due into the roll-ups. Nothing waits for it: what cannot be done now is done the next time.
    fn go_on(&mut self, inner: &Inner, flushing: &mut Flushing<'_>) {
        if flushing.is_full() || Instant::now() >= self.due {
            self.due = Instant::now() + ROLL_INTERVAL;
            self.more = true;
        }
        if self.more {
            self.more = flushing.roll_some(&inner.store).unwrap_or_else(|error| {
                log::warn!("ledger: the roll-ups wait: {error}");
                false
            });
        }
    }
}

fn run_syncs(inner: &Inner) {
    let mut orphans_due = Instant::now() + ORPHANS_INTERVAL;
    while let Some(round) = inner.syncs.begin(SYNC_INTERVAL) {
        let Some(journal) = &inner.journal else {
            round.done();
            retire(inner);
            continue;
        };
        let tidy = !round.asked;
        if let Err(error) = journal.sync() {
            if !inner.sync_stuck.swap(true, Ordering::Relaxed) {
                log::error!("ledger: the journal cannot be synced: {error}");
            }
            round.failed();
            std::thread::sleep(RETRY_INTERVAL);
            continue;
        }
        inner.sync_stuck.store(false, Ordering::Relaxed);
        round.done();
        if tidy || inner.stored.lock().len() > 4 * BATCH_ROWS {
            release(inner);
        }
        if tidy {
            retire(inner);
        }
        if Instant::now() >= orphans_due {
            orphans_due = Instant::now() + ORPHANS_INTERVAL;
            take_over(inner);
        }
    }
    if let Some(journal) = &inner.journal {
        let _ = journal.sync();
        release(inner);
        journal.finish();
    }
    inner.syncs.stopped();
}

/// Lets go of the segments whose rows the database has on disk.
fn release(inner: &Inner) {
    let Some(journal) = &inner.journal else { return };
    let stored = std::mem::take(&mut *inner.stored.lock());
    if !stored.is_empty()
        && let Err(error) = store_rows::sync_database(&inner.store)
    {
        log::error!("ledger: the database cannot be synced: {error}");
        inner.stored.lock().extend(stored);
        return;
    }
    drop(stored);
    journal.sweep();
    inner.shared.store(journal.is_shared(), Ordering::Relaxed);
}

/// One step of retention: a few thousand rows a second are more than come in, and a step holds nobody up.
fn retire(inner: &Inner) {
    let Some(retention) = inner.settings.retention else { return };
    let kept_ms = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX).max(crate::store::calendar::DAY_MS);
    let before_ms = crate::store::now_ms().saturating_sub(kept_ms);
    if let Err(error) = crate::store::usage::retire(&inner.store, before_ms, &inner.settings.sinks) {
        log::error!("ledger: old rows cannot be deleted: {error}");
    }
}

fn take_over(inner: &Inner) {
    let Some(journal) = &inner.journal else { return };
    let orphans = match journal.orphans() {
        Ok(orphans) => orphans,
        Err(error) => return log::error!("ledger: the journal's folder cannot be read: {error}"),
    };
    for orphan in orphans {
        match recover::replay(&inner.store, &inner.settings.sinks, orphan, crate::store::now_ms()) {
            Ok(replayed) => {
                inner.damaged_bytes.fetch_add(replayed.damaged_bytes, Ordering::Relaxed);
                inner.recovered_open.fetch_add(replayed.unfinished, Ordering::Relaxed);
            }
            // Not removed: the next look finds it again.
            Err(error) => log::error!("ledger: a journal cannot be taken over: {error}"),
        }
    }
}
