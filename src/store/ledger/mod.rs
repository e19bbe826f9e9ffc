//! The ledger: every request ends in exactly one row.
//!
//! A request is admitted with [`Ledger::open`], which journals what is known of it and makes room for its row; it ends with
//! [`Ticket::close`], which journals the row. Both are one write into the page cache on the calling thread; the row is in
//! the database a moment later ([`store_rows`]), and whatever a crash leaves in the journal is stored at the next start
//! ([`recover`]): finished rows as they are, unfinished requests as `failed` with what their last progress record knew.
//!
//! What is absent on purpose: a way to drop a row. When neither journal nor database can take more, [`Ledger::open`]
//! refuses and the caller answers 503; what was admitted before has its room.

pub mod codec;
mod recover;
pub(crate) mod rollup;
pub mod row;
mod schema;
pub(crate) mod store_rows;
mod worker;

pub use row::{End, Facts, Outcome, Row};
pub use schema::{CHARGED_LATER, IN_PIECES, THROUGH};
pub use store_rows::TABLES;

use crate::store::accounts::Accounts;
use crate::store::journal::{Journal, Layout, Promise, Rounds, Segment};
use crate::store::{self, Store};
use parking_lot::Mutex;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Rows that may wait for the database: five seconds of all that a core can do, in which a disk may stand still. They are in
/// memory, about 1 KiB each, and in the journal. When as many wait, nobody is admitted any more; those who were add theirs, so
/// the true bound is this plus the requests in flight.
pub const LEDGER_PENDING_MAX: usize = 131_072;

/// A stream's progress is journalled at most this often.
pub const PROGRESS_INTERVAL_MS: u64 = 1000;

/// Rows wait at most this long before the database is asked to take them.
pub const BATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Rows in one database transaction at most: larger ones gain nothing and hold other writers up.
pub const BATCH_ROWS: usize = 2000;

/// How long a question waits for the rows that are on their way: twenty rounds, so only a database that takes nothing is not waited for.
pub const QUESTION_WAIT: Duration = Duration::from_secs(2);

/// When a row counts as safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Commit {
    /// Once it is in the page cache: no death of the process loses it; a power cut may lose the last second's.
    #[default]
    Journal,
    /// Once the disk has it.
    Strict,
}

/// Where rows are sent after they are stored; each has its own outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Sink {
    /// Lago.
    Lago = 1,
    /// OpenMeter.
    OpenMeter = 2,
}

impl Sink {
    /// Its name in the configuration, in commands and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Sink::Lago => "lago",
            Sink::OpenMeter => "openmeter",
        }
    }
}

/// How to run a ledger.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// When a row counts as safe.
    pub commit: Commit,
    /// Who gets the rows.
    pub sinks: Vec<Sink>,
    /// Rows that began longer ago are deleted once they are exported (roll-ups and balances stay); `None`: kept for ever.
    pub retention: Option<Duration>,
    /// The journal's layout.
    pub layout: Layout,
}

/// Why nobody can be admitted: answer 503.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerFull {
    /// [`LEDGER_PENDING_MAX`] rows wait for the database.
    Behind,
    /// The journal cannot get room: its disk is full, or broken, or it has reached its bound.
    Disk,
}

impl fmt::Display for LedgerFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LedgerFull::Behind => "the ledger's database does not keep up",
            LedgerFull::Disk => "the ledger's disk takes no more",
        })
    }
}

impl std::error::Error for LedgerFull {}

/// Numbers for metrics and health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    /// Rows closed and not yet in the database.
    pub pending: usize,
    /// The last attempt to write somewhere failed: admission is refused or soon will be. The alarm.
    pub stuck: bool,
    /// Failed writes to the journal since the start.
    pub journal_faults: u64,
    /// Segments of the journal on disk.
    pub journal_segments: usize,
    /// Bytes of other processes' journals that could not be read back; the files are kept as `….damaged`. An alarm when not 0.
    pub damaged_bytes: u64,
    /// Requests of dead processes that were closed as `failed`.
    pub recovered_open: u64,
    /// Tickets dropped without a close (a defect of the caller's); closed as `failed`.
    pub dropped: u64,
}

/// The ledger. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
    threads: Arc<Mutex<Vec<std::thread::JoinHandle<()>>>>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    accounts: Arc<Accounts>,
    settings: Settings,
    /// `None` for a store in memory: nothing survives such a process anyway.
    journal: Option<Journal>,
    /// Closed rows on their way to the database, by shard.
    closed: Box<[Mutex<Vec<Pending>>]>,
    pending: AtomicUsize,
    next_ticket: AtomicU64,
    /// The thread that stores rows.
    batches: Rounds,
    /// The thread that syncs.
    syncs: Rounds,
    /// Segments whose rows are stored, but not yet safe there against power loss.
    stored: Mutex<Vec<Arc<Segment>>>,
    /// Another process charges the same accounts: tell it.
    shared: AtomicBool,
    store_stuck: AtomicBool,
    sync_stuck: AtomicBool,
    damaged_bytes: AtomicU64,
    recovered_open: AtomicU64,
    dropped: AtomicU64,
}

/// A closed row on its way to the database.
#[derive(Debug)]
struct Pending {
    /// With the ticket, the row's identity: the same row replayed is the same pair.
    epoch: u64,
    ticket: u64,
    row: Row,
    /// What keeps its records on disk.
    segments: [Option<Arc<Segment>>; 2],
}

/// An admitted request. Ends by [`Ticket::close`]; dropped without one it is closed as `failed` with its last progress.
#[derive(Debug)]
#[must_use]
pub struct Ticket {
    inner: Arc<Inner>,
    number: u64,
    shard: usize,
    /// `None` once closed.
    live: Option<Live>,
}

#[derive(Debug)]
struct Live {
    facts: Facts,
    promise: Option<Promise>,
    /// Holds the facts' record.
    opened_in: Option<Arc<Segment>>,
    /// Holds the last progress record, when that is another one.
    progress_in: Option<Arc<Segment>>,
    progress_ms: u64,
    last: Option<Box<Outcome>>,
}

/// A row that was closed. Await [`Closed::safe`] before the answer's last byte leaves.
#[derive(Debug)]
#[must_use = "await `safe` before the last byte of the answer leaves"]
pub struct Closed {
    inner: Arc<Inner>,
    journalled: bool,
}

impl Ledger {
    /// Opens the ledger of a store: replays what dead processes left, loads the accounts, starts the two threads. Blocking.
    pub fn start(store: &Store, settings: Settings) -> store::Result<Ledger> {
        let now_ms = store::now_ms();
        let (journal, orphans) = match store.path() {
            None => (None, Vec::new()),
            Some(path) => {
                let folder = journal_folder(path);
                let started = Journal::start(&folder, settings.layout, now_ms).map_err(|error| store::Error::Io(folder, error))?;
                (Some(started.0), started.1)
            }
        };
        let mut replayed = recover::Replayed::default();
        for orphan in orphans {
            replayed.add(recover::replay(store, &settings.sinks, orphan, now_ms)?);
        }
        let accounts = Arc::new(Accounts::load(store, now_ms)?);
        let shards = settings.layout.shards.max(1);
        let inner = Arc::new(Inner {
            store: store.clone(),
            accounts,
            settings,
            journal,
            closed: (0..shards).map(|_| Mutex::default()).collect(),
            pending: AtomicUsize::new(0),
            next_ticket: AtomicU64::new(0),
            batches: Rounds::default(),
            syncs: Rounds::default(),
            stored: Mutex::default(),
            shared: AtomicBool::new(false),
            store_stuck: AtomicBool::new(false),
            sync_stuck: AtomicBool::new(false),
            damaged_bytes: AtomicU64::new(replayed.damaged_bytes),
            recovered_open: AtomicU64::new(replayed.unfinished),
            dropped: AtomicU64::new(0),
        });
        let threads = worker::spawn(&inner).map_err(|error| store::Error::Io(PathBuf::from("thread"), error))?;
        Ok(Ledger { inner, threads: Arc::new(Mutex::new(threads)) })
    }

    /// The accounts' balances in memory.
    pub fn accounts(&self) -> &Arc<Accounts> {
        &self.inner.accounts
    }

    /// Admits a request. Microseconds; does not wait for a disk.
    pub fn open(&self, mut facts: Facts) -> Result<Ticket, LedgerFull> {
        let inner = &self.inner;
        if inner.pending.load(Ordering::Relaxed) >= LEDGER_PENDING_MAX {
            return Err(LedgerFull::Behind);
        }
        facts.bound();
        let number = inner.next_ticket.fetch_add(1, Ordering::Relaxed);
        let (shard, opened_in, promise) = match &inner.journal {
            None => (number as usize % inner.closed.len(), None, None),
            Some(journal) => {
                let shard = journal.shard_of_thread();
                let put = |out: &mut Vec<u8>| codec::put_open(out, number, &facts);
                let (segment, promise) = journal.open(shard, codec::OUTCOME_BYTES_MAX as u64, put).map_err(|_| LedgerFull::Disk)?;
                (shard, Some(segment), Some(promise))
            }
        };
        let live = Live { facts, promise, opened_in, progress_in: None, progress_ms: 0, last: None };
        Ok(Ticket { inner: inner.clone(), number, shard, live: Some(live) })
    }

    /// Writes the row of a request that was never admitted (a refusal).
    pub fn record(&self, facts: Facts, outcome: Outcome) -> Result<Closed, LedgerFull> {
        Ok(self.open(facts)?.close(outcome))
    }

    /// Rows closed and not yet in the database.
    pub fn pending(&self) -> usize {
        self.inner.pending.load(Ordering::Relaxed)
    }

    /// Numbers for metrics and health.
    pub fn health(&self) -> Health {
        let inner = &self.inner;
        Health {
            pending: self.pending(),
            stuck: inner.store_stuck.load(Ordering::Relaxed) || inner.sync_stuck.load(Ordering::Relaxed),
            journal_faults: inner.journal.as_ref().map_or(0, Journal::faults),
            journal_segments: inner.journal.as_ref().map_or(0, Journal::segments),
            damaged_bytes: inner.damaged_bytes.load(Ordering::Relaxed),
            recovered_open: inner.recovered_open.load(Ordering::Relaxed),
            dropped: inner.dropped.load(Ordering::Relaxed),
        }
    }

    /// Every row closed before this call is in the database afterwards; `false`: the database does not take them now and the
    /// ledger is stopping. Cancel-safe.
    pub async fn flushed(&self) -> bool {
        let round = self.inner.batches.ask();
        self.inner.batches.done(round).await.is_ok()
    }

    /// [`Ledger::flushed`] for a question that is answered in any case, from what is stored: waits [`QUESTION_WAIT`] at most. `false`:
    /// rows may be missing, for the database does not take them now. Cancel-safe.
    pub async fn flushed_soon(&self) -> bool {
        tokio::time::timeout(QUESTION_WAIT, self.flushed()).await.unwrap_or(false)
    }

    /// [`Ledger::flushed`], blocking the thread.
    pub fn flush(&self) -> bool {
        let round = self.inner.batches.ask();
        self.inner.batches.wait(round).is_ok()
    }

    /// The last thing a server does: stores what is pending and ends the threads. What the database does not take stays in
    /// the journal for the next start. Blocking.
    pub fn shutdown(&self) {
        self.inner.batches.stop();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // A panicked worker has nothing to give back; the journal has its rows.
            let _ = thread.join();
        }
    }
}

/// The journal's folder beside a database file.
pub fn journal_folder(database: &std::path::Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".journal");
    PathBuf::from(name)
}

impl Inner {
    fn close(&self, number: u64, shard: usize, live: Live, mut outcome: Outcome) -> bool {
        outcome.bound();
        let Live { facts, promise, opened_in, .. } = live;
        let (mut epoch, mut closed_in, mut journalled) = (0, None, true);
        if let (Some(journal), Some(promise)) = (&self.journal, promise) {
            epoch = journal.epoch();
            // Failing here takes a broken disk, for the room is allocated. The row goes on to the database all the same.
            closed_in = journal.close(shard, promise, |out| codec::put_close(out, number, &facts, &outcome)).ok();
            journalled = closed_in.is_some();
        }
        let row = Row { facts, outcome };
        let pending = self.pending.fetch_add(1, Ordering::Relaxed) + 1;
        self.closed[shard].lock().push(Pending { epoch, ticket: number, row, segments: [opened_in, closed_in] });
        if pending.is_multiple_of(BATCH_ROWS / 2) {
            self.batches.ask();
        }
        journalled
    }
}

impl Ticket {
    /// What is known since admission.
    pub fn facts(&self) -> Option<&Facts> {
        self.live.as_ref().map(|live| &live.facts)
    }

    /// Journals what the request would come to if it ended now, at most every [`PROGRESS_INTERVAL_MS`]; `outcome` is only
    /// called when it is due. Best effort: a full disk costs a record, not the request.
    pub fn progress(&mut self, now_ms: u64, outcome: impl FnOnce() -> Outcome) {
        let (Some(live), Some(journal)) = (&mut self.live, &self.inner.journal) else { return };
        if live.last.is_some() && now_ms < live.progress_ms.saturating_add(PROGRESS_INTERVAL_MS) {
            return;
        }
        let mut outcome = outcome();
        outcome.bound();
        live.progress_ms = now_ms;
        // Facts in an old segment are repeated in the new one, so that one long stream does not keep the old one alive.
        let same = match (&live.opened_in, journal.active(self.shard)) {
            (Some(opened), Some(active)) => Arc::ptr_eq(opened, &active),
            _ => false,
        };
        if same {
            let put = |out: &mut Vec<u8>| codec::put_progress(out, self.number, &outcome);
            live.progress_in = journal.append(self.shard, put).ok().or(live.progress_in.take());
        } else {
            let put = |out: &mut Vec<u8>| codec::put_carried(out, self.number, &live.facts, &outcome);
            if let Ok(segment) = journal.append(self.shard, put) {
                live.opened_in = Some(segment);
                live.progress_in = None;
            }
        }
        live.last = Some(Box::new(outcome));
    }

    /// Ends the request with its row.
    pub fn close(mut self, outcome: Outcome) -> Closed {
        // Only `close` and `drop` take it, and both end the ticket.
        let journalled = match self.live.take() {
            Some(live) => self.inner.close(self.number, self.shard, live, outcome),
            None => true,
        };
        Closed { inner: self.inner.clone(), journalled }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(mut live) = self.live.take() {
            self.inner.dropped.fetch_add(1, Ordering::Relaxed);
            let mut outcome = live.last.take().map(|last| *last).unwrap_or_default();
            outcome.end = End::Failed;
            self.inner.close(self.number, self.shard, live, outcome);
        }
    }
}

impl Closed {
    /// Returns once the row is as safe as the settings promise: at once with [`Commit::Journal`], after a sync shared with
    /// others with [`Commit::Strict`]; if the journal's disk is broken, once the database has the row. Cancel-safe: the row
    /// is kept either way.
    pub async fn safe(self) {
        if !self.journalled {
            let round = self.inner.batches.ask();
            let _ = self.inner.batches.done(round).await;
        }
        if self.inner.settings.commit == Commit::Strict && self.inner.journal.is_some() {
            let round = self.inner.syncs.ask();
            let _ = self.inner.syncs.done(round).await;
        }
    }

    /// The row is safe against the death of the process already: [`Closed::safe`] has nothing to wait for.
    pub fn is_safe(&self) -> bool {
        self.journalled && self.inner.settings.commit == Commit::Journal
    }
}

#[cfg(test)]
mod tests;
