//! Roll-ups: sums of the ledger's rows by day, account, key, model, provider and level (the table `totals`), and what each account
//! was charged ([`accounts`](store::accounts)).
//!
//! A row is in the ledger a tenth of a second after its request; its sums go into the roll-ups with those of ten seconds, because a
//! cell then takes many rows at once, and a page many cells: where requests are spread over thousands of models or keys, a tenth of a
//! second has nearly as many cells as rows, each on another page, and a page costs more than a row does. They go in piece by piece, in
//! the order of the table, so that nobody waits for the database longer than a piece takes.
//!
//! The one row of `rolling` is where that stands: the rows up to `through` are in the roll-ups, those behind it up to `until` are
//! going in, and of these the ones whose cell is not behind the named one are in. The others (the view `unrolled`) are read from the
//! ledger by whoever asks, or known here ([`Ahead`]) where an account is looked at, so no answer lacks any; and whichever process rolls
//! next finds them there, after a crash in the midst of it as well.

use super::store_rows::{self, Charged, ROW_COLUMNS, cost_of, integer, read_row};
use super::{End, Row};
use crate::engine::budget::MonthIndex;
use crate::engine::usage::Bucket;
use crate::store::{self, Store, calendar};
use rusqlite::{Connection, Transaction, params};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// How often rows go into the roll-ups.
pub(super) const ROLL_INTERVAL: Duration = Duration::from_secs(10);

/// Cells that are summed in memory before they go into the roll-ups ahead of time: 56 MB, and as much again while those before are
/// still going in.
pub(super) const CELLS_MAX: usize = 131_072;

/// Cells that go into the roll-ups in one transaction: some hundredths of a second of the database's time. More than a batch has rows
/// ([`BATCH_ROWS`](super::BATCH_ROWS)), so that with one piece after each batch all are in before as many wait again.
pub(super) const PIECE_CELLS: usize = 4096;

/// Rows that are read from the ledger at once where they are not known here, unless another process has begun with more.
const READ_ROWS: i64 = 32_768;

const KEYS: [&str; 6] = ["day", "account", "key_id", "model", "provider", "level"];

/// Columns of a roll-up that are summed, in the order of [`Sums`].
pub(crate) const ROLLUP_SUMS: [&str; 12 + Bucket::ALL.len()] = [
    "rows",
    "complete",
    "failed",
    "cancelled",
    "refused",
    "fallbacks",
    "byok",
    "cost",
    "charge",
    "first_event_ms",
    "first_events",
    "duration_ms",
    "input",
    "image_input",
    "audio_input",
    "cached_input",
    "cached_audio_input",
    "cache_write_5m",
    "cache_write_1h",
    "output",
    "reasoning",
    "audio_output",
    "image_output",
    "milliseconds",
    "images",
    "requests",
    "web_searches",
];

/// The place of `charge` in [`ROLLUP_SUMS`].
const CHARGE: usize = 8;

static ADD: LazyLock<String> = LazyLock::new(|| {
    let columns = KEYS.iter().chain(&ROLLUP_SUMS).copied().collect::<Vec<_>>().join(", ");
    let marks = vec!["?"; KEYS.len() + ROLLUP_SUMS.len()].join(", ");
    let sums = ROLLUP_SUMS.map(|column| match column {
        // What is larger than 64 bits would become a floating-point number, which no integer is read from again.
        "cost" | "charge" => format!("{column} = {column} + min(excluded.{column}, {} - max({column}, 0))", i64::MAX),
        _ => format!("{column} = {column} + excluded.{column}"),
    });
    let sums = sums.join(", ");
    format!("INSERT INTO totals ({columns}) VALUES ({marks}) ON CONFLICT ({}) DO UPDATE SET {sums}", KEYS.join(", "))
});

static READ: LazyLock<String> = LazyLock::new(|| format!("SELECT {ROW_COLUMNS} FROM ledger WHERE id > ? AND id <= ?"));

type Sums = [i64; ROLLUP_SUMS.len()];

/// Sums of some rows, and what of their charges was taken from the account's balance.
#[derive(Debug)]
struct Cell {
    sums: Sums,
    from_balance: i64,
}

/// Sums by what they are about. In boxes: a hash table has twice the places that it uses.
type Cells = FxHashMap<Owned, Box<Cell>>;
/// Day, model, provider and level (no empty texts): a cell of all accounts and keys.
type Common = (i64, Option<Arc<str>>, Option<Arc<str>>, Option<Arc<str>>);
/// Account, key, and the rest: a cell of one key.
type Owned = (Arc<str>, Arc<str>, Common);

/// The columns [`KEYS`] of a cell; in their order the table's is.
type Place<'a> = (i64, [&'a str; 5]);

fn place_of((account, key_id, (day, model, provider, level)): &Owned) -> Place<'_> {
    let [model, provider, level] = [model, provider, level].map(|text| text.as_deref().unwrap_or(""));
    (*day, [account, key_id, model, provider, level])
}

/// Day and the account's first bytes: whichever of two cells has the lower is the first of them in the table.
fn beginning((account, _, (day, ..)): &Owned) -> (i64, [u8; 32]) {
    let mut bytes = [0; 32];
    let length = account.len().min(bytes.len());
    bytes[..length].copy_from_slice(&account.as_bytes()[..length]);
    (*day, bytes)
}

/// What this process knows of the rows that are in no roll-up, so that they need not be read again.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// What is going in.
    going: Option<Range>,
    /// Sums of the rows that this process stored since then.
    cells: Cells,
    first: i64,
    rows: i64,
}

/// Every row behind `through` and up to `until`, as cells in the table's order.
#[derive(Debug)]
struct Range {
    through: i64,
    until: i64,
    cells: Vec<(Owned, Box<Cell>)>,
}

/// Where the roll-ups stand: the row of `rolling`, and the ledger's last.
#[derive(Debug)]
struct Mark {
    through: i64,
    until: i64,
    day: i64,
    texts: [String; 5],
    last: i64,
}

impl Mark {
    fn read(connection: &Connection) -> store::Result<Mark> {
        let query = "SELECT *, (SELECT coalesce(max(id), 0) FROM ledger) FROM rolling";
        Ok(connection.prepare_cached(query)?.query_row([], |row| {
            let texts = [row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?, row.get(7)?];
            Ok(Mark { through: row.get(0)?, until: row.get(1)?, day: row.get(2)?, texts, last: row.get(8)? })
        })?)
    }

    /// Sets all but `last`.
    fn write(tx: &Transaction<'_>, through: i64, until: i64, (day, texts): Place<'_>) -> store::Result<()> {
        let [account, key_id, model, provider, level] = texts;
        tx.prepare_cached(
            "UPDATE rolling SET through = ?, until = ?, at_day = ?, at_account = ?, at_key_id = ?, at_model = ?, at_provider = ?, at_level = ?",
        )?
        .execute(params![through, until, day, account, key_id, model, provider, level])?;
        Ok(())
    }

    /// Some cells of a range are in and others are not.
    fn is_amid(&self) -> bool {
        self.until > self.through
    }

    fn is_done(&self) -> bool {
        self.through == self.last
    }

    fn place(&self) -> Place<'_> {
        (self.day, self.texts.each_ref().map(String::as_str))
    }
}

impl Range {
    fn new(through: i64, until: i64, cells: Cells) -> Range {
        // Compared by their beginnings, which are beside each other: the texts of a hundred thousand keys are all over the memory.
        let mut cells: Vec<_> = cells.into_iter().map(|(of, cell)| (beginning(&of), of, cell)).collect();
        cells.sort_unstable_by(|one, other| one.0.cmp(&other.0).then_with(|| place_of(&one.1).cmp(&place_of(&other.1))));
        Range { through, until, cells: cells.into_iter().map(|(_, of, cell)| (of, cell)).collect() }
    }

    fn read(connection: &Connection, through: i64, until: i64) -> store::Result<Range> {
        let mut cells = Cells::default();
        let mut read = connection.prepare_cached(&READ)?;
        let mut rows = read.query([through, until])?;
        while let Some(row) = rows.next()? {
            add_row(&mut cells, &read_row(row, 0)?);
        }
        Ok(Range::new(through, until, cells))
    }

    /// It is what goes in next.
    fn is_next(&self, mark: &Mark) -> bool {
        self.through == mark.through && (self.until == mark.until || !mark.is_amid())
    }

    /// The cells that are not in.
    fn rest(&self, mark: &Mark) -> &[(Owned, Box<Cell>)] {
        let begin = if mark.is_amid() { self.cells.partition_point(|(cell, _)| place_of(cell) <= mark.place()) } else { 0 };
        &self.cells[begin..]
    }
}

impl Ahead {
    /// A row that was stored as `id`, and committed.
    pub(crate) fn add(&mut self, id: i64, row: &Row) {
        if self.rows == 0 {
            self.first = id;
        }
        self.rows += 1;
        add_row(&mut self.cells, row);
    }

    /// It has as many cells as it may have ([`CELLS_MAX`]).
    pub(crate) fn is_full(&self) -> bool {
        self.cells.len() >= CELLS_MAX
    }

    /// Its own rows are those behind `through` and no others: another process may have stored some between, or rolled these.
    fn is_all(&self, through: i64, last: i64) -> bool {
        last == through + self.rows && (self.rows == 0 || self.first == through + 1)
    }

    /// Has ready what goes in next, if anything does: from memory, or from the ledger (`read`) where it is not known here.
    fn prepare(&mut self, mark: &Mark, read: impl FnOnce(i64, i64) -> store::Result<Range>) -> store::Result<()> {
        if self.going.as_ref().is_some_and(|range| range.is_next(mark)) {
            return Ok(());
        }
        let known = std::mem::take(self);
        self.going = if mark.is_amid() {
            // Somebody ended in the midst of it, or is still at it: then both go on from wherever the other is.
            Some(read(mark.through, mark.until)?)
        } else if mark.is_done() {
            None
        } else if known.is_all(mark.through, mark.last) {
            Some(Range::new(mark.through, mark.last, known.cells))
        } else {
            Some(read(mark.through, mark.last.min(mark.through + READ_ROWS))?)
        };
        Ok(())
    }

    /// Brings the next piece into the roll-ups. After an error, or when the transaction is not committed, it is to be dropped.
    fn step(&mut self, tx: &Transaction<'_>) -> store::Result<Step> {
        let mark = Mark::read(tx)?;
        self.prepare(&mark, |through, until| Range::read(tx, through, until))?;
        let Some(range) = self.going.take() else {
            return Ok(Step { more: false, through: mark.through, last: mark.last });
        };
        let rest = range.rest(&mark);
        let piece = &rest[..rest.len().min(PIECE_CELLS)];
        add(tx, piece)?;
        if let Some((cell, _)) = piece.last().filter(|_| piece.len() < rest.len()) {
            Mark::write(tx, range.through, range.until, place_of(cell))?;
            let through = range.through;
            self.going = Some(range);
            return Ok(Step { more: true, through, last: mark.last });
        }
        Mark::write(tx, range.until, range.until, Place::default())?;
        Ok(Step { more: !self.is_all(range.until, mark.last), through: range.until, last: mark.last })
    }

    /// Everything that is in no roll-up, cell by cell; `None`: not all of that is known here.
    pub(crate) fn unrolled(&self, connection: &Connection) -> store::Result<Option<impl Iterator<Item = Unrolled<'_>>>> {
        let mark = Mark::read(connection)?;
        let (going, through) = match &self.going {
            Some(range) if range.is_next(&mark) => (range.rest(&mark), range.until),
            _ if mark.is_amid() => return Ok(None),
            _ => (&[][..], mark.through),
        };
        let cells = going.iter().map(|(of, cell)| (of, cell)).chain(&self.cells);
        Ok(self.is_all(through, mark.last).then(|| cells.map(|(of, cell)| Unrolled { of, cell })))
    }
}

/// A cell of rows that are in no roll-up.
pub(crate) struct Unrolled<'a> {
    of: &'a Owned,
    cell: &'a Cell,
}

impl Unrolled<'_> {
    /// Whose it is.
    pub(crate) fn account(&self) -> &str {
        &self.of.0
    }

    /// The month its requests began in.
    pub(crate) fn month(&self) -> MonthIndex {
        calendar::month_of_day(self.of.2.0)
    }

    /// What they were charged, nano-credits.
    pub(crate) fn charge(&self) -> i64 {
        self.cell.sums[CHARGE]
    }

    /// What of it was taken from the balance.
    pub(crate) fn taken(&self) -> i64 {
        self.cell.from_balance
    }
}

/// What a piece came to.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// There are others that should not wait until more rows came: cells of the same rows, or rows that are not known here.
    more: bool,
    /// The rows up to this one are in.
    through: i64,
    /// The last there is.
    last: i64,
}

/// Every row is in the roll-ups.
pub(crate) fn is_done(connection: &Connection) -> store::Result<bool> {
    Ok(Mark::read(connection)?.is_done())
}

/// Adds some of the rows that are in no roll-up yet, in a transaction of its own; whether more should follow soon.
pub(crate) fn roll_some(store: &Store, ahead: &mut Ahead) -> store::Result<bool> {
    Ok(step(store, ahead)?.more)
}

/// Adds every row that is there now and in no roll-up yet, in as many transactions as it takes.
pub(crate) fn roll(store: &Store, ahead: &mut Ahead) -> store::Result<()> {
    let first = step(store, ahead)?;
    let mut at = first;
    // Retention may have taken them meanwhile.
    while at.through < first.last && at.through < at.last {
        at = step(store, ahead)?;
    }
    Ok(())
}

/// The same in one transaction.
pub(crate) fn roll_within(tx: &Transaction<'_>) -> store::Result<()> {
    let mut ahead = Ahead::default();
    loop {
        let step = ahead.step(tx)?;
        if step.through == step.last {
            return Ok(());
        }
    }
}

fn step(store: &Store, ahead: &mut Ahead) -> store::Result<Step> {
    // Ready before the transaction, in which others cannot write: rows that are stored do not change.
    let ready = store
        .read(Mark::read)
        .and_then(|mark| ahead.prepare(&mark, |through, until| store.read(|connection| Range::read(connection, through, until))));
    let step = ready.and_then(|()| store.write(|tx| ahead.step(tx)));
    if step.is_err() {
        *ahead = Ahead::default();
    }
    step
}

fn add(tx: &Transaction<'_>, cells: &[(Owned, Box<Cell>)]) -> store::Result<()> {
    let mut everyone: BTreeMap<&Common, Sums> = BTreeMap::new();
    // In the order of the accounts' table, as the cells are. On the border of two days an account may come twice.
    let mut charges: Vec<(&str, Charged)> = Vec::with_capacity(cells.len());
    let mut statement = tx.prepare_cached(&ADD)?;
    let mut upsert = |(day, texts): Place<'_>, sums: &Sums| {
        statement.raw_bind_parameter(1, day)?;
        for (place, text) in texts.into_iter().enumerate() {
            statement.raw_bind_parameter(2 + place, text)?;
        }
        for (place, sum) in sums.iter().enumerate() {
            statement.raw_bind_parameter(1 + KEYS.len() + place, sum)?;
        }
        statement.raw_execute()
    };
    for (of, cell) in cells {
        let (account, _, common) = of;
        upsert(place_of(of), &cell.sums)?;
        add_sums(everyone.entry(common).or_insert([0; ROLLUP_SUMS.len()]), &cell.sums);
        if cell.sums[CHARGE] != 0 {
            if charges.last().is_none_or(|(last, _)| *last != &**account) {
                charges.push((account, Charged::default()));
            }
            if let Some((_, charged)) = charges.last_mut() {
                charged.add(calendar::month_of_day(common.0), cell.sums[CHARGE], cell.from_balance);
            }
        }
    }
    let nobody: Arc<str> = Arc::from("");
    for (common, sums) in everyone {
        upsert(place_of(&(nobody.clone(), nobody.clone(), common.clone())), &sums)?;
    }
    store::accounts::charge(tx, &charges)
}

fn add_row(cells: &mut Cells, row: &Row) {
    let Row { facts, outcome } = row;
    // In the table an empty text is none.
    let [model, provider, level] =
        [&outcome.model, &outcome.provider, &facts.level].map(|text| text.clone().filter(|text| !text.is_empty()));
    let common = (calendar::day_of(facts.started_ms), model, provider, level);
    let is = |end: End| i64::from(outcome.end == end);
    let head = [
        1,
        is(End::Complete),
        is(End::Failed),
        is(End::Cancelled),
        is(End::Refused),
        i64::from(outcome.was_fallback),
        i64::from(outcome.byok),
        cost_of(outcome),
        outcome.charge.0,
        outcome.first_event_ms.map_or(0, integer),
        i64::from(outcome.first_event_ms.is_some()),
        integer(outcome.duration_ms),
    ];
    let mut values: Sums = [0; ROLLUP_SUMS.len()];
    for (value, count) in values.iter_mut().zip(head.into_iter().chain(outcome.usage.counts().map(integer))) {
        *value = count;
    }
    let owned = (facts.account.clone(), facts.key_id.clone(), common);
    let cell = cells.entry(owned).or_insert_with(|| Box::new(Cell { sums: [0; ROLLUP_SUMS.len()], from_balance: 0 }));
    add_sums(&mut cell.sums, &values);
    cell.from_balance = cell.from_balance.saturating_add(store_rows::from_balance(row));
}

fn add_sums(sums: &mut Sums, more: &Sums) {
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum = sum.saturating_add(*more);
    }
}
