//! Rows into the database: the ledger and the outboxes in one transaction, each row once. Sums and balances follow ([`rollup`](super::rollup)).

use super::codec::source_from_number;
use super::{End, Facts, Outcome, Pending, Row, Sink};
use crate::engine::budget::MonthIndex;
use crate::engine::money::{Credits, Usd};
use crate::engine::usage::{Bucket, Usage};
use crate::store::{self, Store, Topic};
use rusqlite::{CachedStatement, OptionalExtension, Transaction, params};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::fs::File;
use std::sync::{Arc, LazyLock};

/// Tables of this part.
///
/// `ledger.id` counts rows in the order they were stored: retention and export follow it, so no index on a time is kept.
/// `(epoch, ticket)` tells a row that is replayed from another one that claims the same id. `cost` is in 10⁻¹² USD,
/// `charge` and `reserved` in 10⁻⁹ credits. 64 bits hold 9.2 million USD (9.2 billion credits) per row and per roll-up cell.
/// In roll-ups an empty text stands for "none", for a primary key has no NULL; cells with an empty account hold the sums of
/// all accounts and keys, so that questions about everyone read few of them. `day` counts from 1970-01-01 and is the day
/// a request began, UTC.
pub const TABLES: &str = "
CREATE TABLE ledger (
    id                  INTEGER PRIMARY KEY,
    request_id          TEXT NOT NULL UNIQUE,
    epoch               INTEGER NOT NULL,
    ticket              INTEGER NOT NULL,
    started_ms          INTEGER NOT NULL,
    account             TEXT NOT NULL,
    key_id              TEXT NOT NULL,
    asked_model         TEXT NOT NULL,
    level               TEXT,
    tier                TEXT,
    idempotency_key     TEXT,
    reserved            INTEGER,
    model               TEXT,
    provider            TEXT,
    byok                INTEGER NOT NULL,
    attempts            INTEGER NOT NULL,
    was_fallback        INTEGER NOT NULL,
    status              INTEGER NOT NULL,
    \"end\"             INTEGER NOT NULL,
    usage_source        INTEGER NOT NULL,
    price_id            TEXT,
    cost                INTEGER NOT NULL,
    charge              INTEGER NOT NULL,
    first_event_ms      INTEGER,
    duration_ms         INTEGER NOT NULL,
    input               INTEGER NOT NULL,
    image_input         INTEGER NOT NULL,
    audio_input         INTEGER NOT NULL,
    cached_input        INTEGER NOT NULL,
    cached_audio_input  INTEGER NOT NULL,
    cache_write_5m      INTEGER NOT NULL,
    cache_write_1h      INTEGER NOT NULL,
    output              INTEGER NOT NULL,
    reasoning           INTEGER NOT NULL,
    audio_output        INTEGER NOT NULL,
    image_output        INTEGER NOT NULL,
    milliseconds        INTEGER NOT NULL,
    images              INTEGER NOT NULL,
    requests            INTEGER NOT NULL,
    web_searches        INTEGER NOT NULL
);
CREATE TABLE rollup (
    day                 INTEGER NOT NULL,
    account             TEXT NOT NULL,
    key_id              TEXT NOT NULL,
    model               TEXT NOT NULL,
    provider            TEXT NOT NULL,
    level               TEXT NOT NULL,
    rows                INTEGER NOT NULL,
    complete            INTEGER NOT NULL,
    failed              INTEGER NOT NULL,
    cancelled           INTEGER NOT NULL,
    refused             INTEGER NOT NULL,
    fallbacks           INTEGER NOT NULL,
    byok                INTEGER NOT NULL,
    cost                INTEGER NOT NULL,
    charge              INTEGER NOT NULL,
    first_event_ms      INTEGER NOT NULL,
    first_events        INTEGER NOT NULL,
    duration_ms         INTEGER NOT NULL,
    input               INTEGER NOT NULL,
    image_input         INTEGER NOT NULL,
    audio_input         INTEGER NOT NULL,
    cached_input        INTEGER NOT NULL,
    cached_audio_input  INTEGER NOT NULL,
    cache_write_5m      INTEGER NOT NULL,
    cache_write_1h      INTEGER NOT NULL,
    output              INTEGER NOT NULL,
    reasoning           INTEGER NOT NULL,
    audio_output        INTEGER NOT NULL,
    image_output        INTEGER NOT NULL,
    milliseconds        INTEGER NOT NULL,
    images              INTEGER NOT NULL,
    requests            INTEGER NOT NULL,
    web_searches        INTEGER NOT NULL,
    PRIMARY KEY (day, account, key_id, model, provider, level)
) WITHOUT ROWID;
CREATE TABLE outbox (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    sink       INTEGER NOT NULL,
    ledger_id  INTEGER NOT NULL,
    stored_ms  INTEGER NOT NULL
);
CREATE INDEX outbox_by_sink ON outbox (sink, seq);
CREATE TABLE export_dead (
    sink        INTEGER NOT NULL,
    ledger_id   INTEGER NOT NULL,
    request_id  TEXT NOT NULL,
    account     TEXT NOT NULL,
    reason      TEXT NOT NULL,
    at_ms       INTEGER NOT NULL,
    PRIMARY KEY (sink, ledger_id)
) WITHOUT ROWID;
";

/// Columns of the ledger but for `id`, `epoch` and `ticket`, in the order of [`read_row`].
pub(crate) const ROW_COLUMNS: &str = "request_id, started_ms, account, key_id, asked_model, level, tier, idempotency_key, reserved, model, \
    provider, byok, attempts, was_fallback, status, \"end\", usage_source, price_id, cost, charge, first_event_ms, duration_ms, \
    input, image_input, audio_input, cached_input, cached_audio_input, cache_write_5m, cache_write_1h, output, reasoning, \
    audio_output, image_output, milliseconds, images, requests, web_searches";

/// Columns of [`ROW_COLUMNS`].
pub(crate) const ROW_COLUMNS_COUNT: usize = 22 + Bucket::ALL.len();

static INSERT_ROW: LazyLock<String> = LazyLock::new(|| {
    let marks = vec!["?"; 2 + ROW_COLUMNS_COUNT].join(", ");
    format!("INSERT INTO ledger (epoch, ticket, {ROW_COLUMNS}) VALUES ({marks}) ON CONFLICT (request_id) DO NOTHING")
});

/// What a batch came to.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// For each row the id that it was given; `None`: the database had it.
    pub(super) inserted: Vec<Option<i64>>,
    /// What the inserted rows charged.
    pub(super) charges: Charges,
}

/// Charges by account.
pub(crate) type Charges = FxHashMap<Arc<str>, Charged>;

/// What one account was charged by a batch of rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Charged {
    /// Taken from its balance, nano-credits.
    pub(crate) from_balance: i64,
    /// By month the requests began in, nano-credits, budget or not.
    pub(crate) months: SmallVec<[(MonthIndex, i64); 1]>,
}

impl Charged {
    /// Adds what some rows of one month were charged.
    pub(super) fn add(&mut self, month: MonthIndex, charge: i64, from_balance: i64) {
        self.from_balance = self.from_balance.saturating_add(from_balance);
        match self.months.iter_mut().find(|(at, _)| *at == month) {
            Some((_, sum)) => *sum = sum.saturating_add(charge),
            None => self.months.push((month, charge)),
        }
    }
}

/// Stores the rows that the database does not have, with everything that follows from them but the roll-ups. `tell`: note the charged
/// accounts as changed, for processes that do not have these charges in memory.
pub(super) fn store(tx: &Transaction<'_>, rows: &[Pending], sinks: &[Sink], tell: bool) -> store::Result<Stored> {
    let mut stored = Stored::default();
    let stored_ms = integer(store::now_ms());
    let mut insertion = Insertion::new(tx)?;
    for pending in rows {
        if !insertion.insert(pending)? {
            stored.inserted.push(None);
            continue;
        }
        let id = tx.last_insert_rowid();
        stored.inserted.push(Some(id));
        if pending.row.outcome.end != End::Refused {
            for sink in sinks {
                tx.prepare_cached("INSERT INTO outbox (sink, ledger_id, stored_ms) VALUES (?, ?, ?)")?.execute(params![
                    *sink as i64,
                    id,
                    stored_ms
                ])?;
            }
        }
        let Row { facts, outcome } = &pending.row;
        if outcome.charge != Credits::ZERO {
            let charged = stored.charges.entry(facts.account.clone()).or_default();
            charged.add(MonthIndex::of_ms(facts.started_ms), outcome.charge.0, from_balance(&pending.row));
        }
    }
    if tell {
        for account in stored.charges.keys() {
            store::changed(tx, Topic::Account, account)?;
        }
    }
    Ok(stored)
}

/// Rows on their way into the table. A statement keeps what was bound to it, so what is as in the row before is not bound again:
/// of 41 columns a dozen differ.
struct Insertion<'tx> {
    tx: &'tx Transaction<'tx>,
    statement: CachedStatement<'tx>,
    /// The integers bound last, by their place; `None`: not bound yet, or no integer.
    bound: [Option<i64>; 2 + ROW_COLUMNS_COUNT],
}

impl<'tx> Insertion<'tx> {
    fn new(tx: &'tx Transaction<'tx>) -> store::Result<Insertion<'tx>> {
        Ok(Insertion { tx, statement: tx.prepare_cached(&INSERT_ROW)?, bound: [None; 2 + ROW_COLUMNS_COUNT] })
    }

    /// Stores a row unless it is there already; whether it was not.
    fn insert(&mut self, pending: &Pending) -> store::Result<bool> {
        let (epoch, ticket) = (integer(pending.epoch), integer(pending.ticket));
        let id = &pending.row.facts.request_id;
        if self.insert_as(epoch, ticket, id, &pending.row)? {
            return Ok(true);
        }
        let found: Option<(i64, i64)> = self
            .tx
            .prepare_cached("SELECT epoch, ticket FROM ledger WHERE request_id = ?")?
            .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        if found == Some((epoch, ticket)) {
            return Ok(false);
        }
        // Two requests with one id: a defect of whoever makes ids, but no reason to lose a row.
        self.insert_as(epoch, ticket, &format!("{id}~{epoch:x}.{ticket:x}"), &pending.row)
    }

    fn insert_as(&mut self, epoch: i64, ticket: i64, id: &str, row: &Row) -> store::Result<bool> {
        let Row { facts, outcome } = row;
        self.integers(0, &[epoch, ticket])?;
        self.text(2, Some(id))?;
        self.integers(3, &[integer(facts.started_ms)])?;
        self.text(4, Some(&facts.account))?;
        self.text(5, Some(&facts.key_id))?;
        self.text(6, Some(&facts.asked_model))?;
        self.text(7, facts.level.as_deref())?;
        self.text(8, facts.tier.as_deref())?;
        self.text(9, facts.idempotency_key.as_deref())?;
        self.maybe(10, facts.reserved.map(|reserved| reserved.0))?;
        self.text(11, outcome.model.as_deref())?;
        self.text(12, outcome.provider.as_deref())?;
        self.integers(13, &[i64::from(outcome.byok), i64::from(outcome.attempts), i64::from(outcome.was_fallback)])?;
        self.integers(16, &[i64::from(outcome.status), outcome.end as i64, outcome.usage_source as i64])?;
        self.text(19, outcome.price_id.as_deref())?;
        self.integers(20, &[cost_of(outcome), outcome.charge.0])?;
        self.maybe(22, outcome.first_event_ms.map(integer))?;
        self.integers(23, &[integer(outcome.duration_ms)])?;
        self.integers(24, &outcome.usage.counts().map(integer))?;
        Ok(self.statement.raw_execute()? == 1)
    }

    fn text(&mut self, place: usize, text: Option<&str>) -> store::Result<()> {
        Ok(self.statement.raw_bind_parameter(place + 1, text)?)
    }

    fn integers(&mut self, place: usize, integers: &[i64]) -> store::Result<()> {
        integers.iter().enumerate().try_for_each(|(at, integer)| self.maybe(place + at, Some(*integer)))
    }

    fn maybe(&mut self, place: usize, integer: Option<i64>) -> store::Result<()> {
        if integer.is_none() || self.bound[place] != integer {
            self.statement.raw_bind_parameter(place + 1, integer)?;
            self.bound[place] = integer;
        }
        Ok(())
    }
}

/// What of a row's charge was taken from the account's balance, nano-credits.
pub(super) fn from_balance(row: &Row) -> i64 {
    if row.facts.reserved.is_some() { row.outcome.charge.0 } else { 0 }
}

/// Reads a row from a query whose columns from `first` on are [`ROW_COLUMNS`].
pub(crate) fn read_row(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Row> {
    let mut usage = Usage::default();
    for (index, bucket) in Bucket::ALL.into_iter().enumerate() {
        usage.set(bucket, natural(row.get(first + 22 + index)?));
    }
    let text = |index: usize| row.get::<_, Option<String>>(first + index).map(|text| text.map(Arc::from));
    Ok(Row {
        facts: Facts {
            request_id: row.get(first)?,
            started_ms: natural(row.get(first + 1)?),
            account: row.get(first + 2)?,
            key_id: row.get(first + 3)?,
            asked_model: row.get(first + 4)?,
            level: text(5)?,
            tier: text(6)?,
            idempotency_key: row.get(first + 7)?,
            reserved: row.get::<_, Option<i64>>(first + 8)?.map(Credits),
        },
        outcome: Outcome {
            model: text(9)?,
            provider: text(10)?,
            byok: row.get(first + 11)?,
            attempts: row.get(first + 12)?,
            was_fallback: row.get(first + 13)?,
            status: row.get(first + 14)?,
            end: End::from_number(row.get(first + 15)?).unwrap_or(End::Failed),
            usage_source: source_from_number(row.get(first + 16)?).unwrap_or_default(),
            price_id: text(17)?,
            cost: Usd(i128::from(row.get::<_, i64>(first + 18)?)),
            charge: Credits(row.get(first + 19)?),
            first_event_ms: row.get::<_, Option<i64>>(first + 20)?.map(natural),
            duration_ms: natural(row.get(first + 21)?),
            usage,
        },
    })
}

/// Makes what was committed safe against power loss: with WAL and `synchronous = NORMAL` a commit is in the WAL file's
/// pages, and SQLite itself syncs the WAL before it copies pages from it and the database before it starts the WAL anew
/// (<https://www.sqlite.org/pragma.html#pragma_synchronous>). So one sync of the WAL file is enough, and far cheaper than
/// one for each commit.
pub(super) fn sync_database(store: &Store) -> store::Result<()> {
    let Some(path) = store.path() else { return Ok(()) };
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    // The store holds the database open, so its WAL file exists as long as something was written.
    match File::open(&wal).and_then(|file| file.sync_data()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(store::Error::Io(wal.into(), error)),
        _ => Ok(()),
    }
}

/// SQLite's integers are signed; counts and times beyond them do not occur and stop there.
pub(super) fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn natural(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

pub(super) fn cost_of(outcome: &Outcome) -> i64 {
    i64::try_from(outcome.cost.0).unwrap_or(if outcome.cost.0 < 0 { i64::MIN } else { i64::MAX })
}
