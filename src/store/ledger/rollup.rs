//! Roll-ups: sums of the ledger's rows by day, account, key, model, provider and level (the table `totals`), and what each account
//! was charged ([`accounts`](store::accounts)).
//!
//! A row is in the ledger a tenth of a second after its request; its sums go into the roll-ups with those of ten seconds, because a
//! cell then takes many rows at once: where requests are spread over thousands of models or keys, a tenth of a second has nearly as
//! many cells as rows, each on another page, and a page costs more than a row does. `rolled_up.through` is the last row that is in the
//! roll-ups. Those behind it are read from the ledger by whoever asks (the view `unrolled`), or rolled up first where an account is
//! looked at, so no answer lacks any, and whichever process rolls next finds them there, after a crash as well.

use super::store_rows::{self, Charges, ROW_COLUMNS, cost_of, integer, read_row};
use super::{BATCH_ROWS, End, Row};
use crate::engine::usage::Bucket;
use crate::store::{self, calendar};
use rusqlite::{Connection, Transaction, params};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// How often rows go into the roll-ups.
pub(super) const ROLL_INTERVAL: Duration = Duration::from_secs(10);

/// Cells that are summed in memory before they go into the roll-ups ahead of time: 12 MB, and a quarter of a second of the
/// database's time, for which accounts that were changed by others wait.
pub(super) const CELLS_MAX: usize = 32_768;

/// What came after [`TABLES`](super::TABLES). The sums have another name than there: a server of the version before, which still
/// runs while this one takes over, would add its rows itself, and they would be added again. So it cannot store them; they stay in
/// its journal, and are stored from there when it has gone.
pub const THROUGH: &str = "
ALTER TABLE rollup RENAME TO totals;
CREATE TABLE rolled (through INTEGER NOT NULL);
INSERT INTO rolled SELECT coalesce(max(id), 0) FROM ledger;
CREATE VIEW unrolled AS SELECT
    started_ms / 86400000 AS day, account, key_id, coalesce(model, '') AS model, coalesce(provider, '') AS provider,
    coalesce(level, '') AS level, 1 AS rows, \"end\" = 0 AS complete, \"end\" = 1 AS failed, \"end\" = 2 AS cancelled,
    \"end\" = 3 AS refused, was_fallback AS fallbacks, byok, cost, charge, coalesce(first_event_ms, 0) AS first_event_ms,
    first_event_ms IS NOT NULL AS first_events, duration_ms, input, image_input, audio_input, cached_input, cached_audio_input,
    cache_write_5m, cache_write_1h, output, reasoning, audio_output, image_output, milliseconds, images, requests, web_searches
    FROM ledger WHERE id > (SELECT through FROM rolled);
";

/// What came after [`THROUGH`]: accounts are charged with the roll-ups, too. What had been charged for rows that are not rolled up
/// is taken back, and charged with them. The months and the mark have other names than before, so that a server of the version before
/// can neither store rows, which it charged at once (they are stored from its journal, as above), nor move the mark past rows without
/// charging them.
pub const CHARGED_LATER: &str = "
ALTER TABLE account_months RENAME TO months_charged;
ALTER TABLE rolled RENAME TO rolled_up;
CREATE TABLE early AS SELECT account,
    strftime('%Y', started_ms / 1000, 'unixepoch') * 12 + strftime('%m', started_ms / 1000, 'unixepoch') - 1 AS month, charge,
    CASE WHEN reserved IS NULL THEN 0 ELSE charge END AS from_balance FROM ledger WHERE id > (SELECT through FROM rolled_up);
UPDATE accounts SET charged = charged - early.charge FROM
    (SELECT account, sum(from_balance) AS charge FROM early GROUP BY account) AS early WHERE id = early.account;
UPDATE months_charged SET charged = charged - early.charge FROM
    (SELECT account, month, sum(charge) AS charge FROM early GROUP BY account, month) AS early
    WHERE months_charged.account = early.account AND months_charged.month = early.month;
DROP TABLE early;
";

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
    let sums = ROLLUP_SUMS.map(|column| format!("{column} = {column} + excluded.{column}")).join(", ");
    format!("INSERT INTO totals ({columns}) VALUES ({marks}) ON CONFLICT ({}) DO UPDATE SET {sums}", KEYS.join(", "))
});

static READ: LazyLock<String> = LazyLock::new(|| format!("SELECT id, {ROW_COLUMNS} FROM ledger WHERE id > ? ORDER BY id LIMIT ?"));

type Sums = [i64; ROLLUP_SUMS.len()];

/// Sums of some rows, and what of their charges was taken from the account's balance.
#[derive(Debug)]
struct Cell {
    sums: Sums,
    from_balance: i64,
}

/// Sums by what they are about. In boxes: a hash table has twice the places that it uses.
type Cells = FxHashMap<Owned, Box<Cell>>;
/// Day, model, provider and level: a cell of all accounts and keys.
type Common = (i64, Option<Arc<str>>, Option<Arc<str>>, Option<Arc<str>>);
/// Account, key, and the rest: a cell of one key.
type Owned = (Arc<str>, Arc<str>, Common);

/// Sums of the rows that this process stored since it last rolled, so that they need not be read again.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    cells: Cells,
    first: i64,
    rows: i64,
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

    /// It has every row behind `through`, and no other: another process may have stored some between, or rolled these.
    fn is_all(&self, through: i64, last: i64) -> bool {
        self.first == through + 1 && last == through + self.rows
    }
}

/// The last row that is in the roll-ups, and the last there is.
fn marks(connection: &Connection) -> store::Result<(i64, i64)> {
    Ok(connection
        .prepare_cached("SELECT through, (SELECT coalesce(max(id), 0) FROM ledger) FROM rolled_up")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?)
}

/// Every row is in the roll-ups.
pub(crate) fn is_done(connection: &Connection) -> store::Result<bool> {
    let (through, last) = marks(connection)?;
    Ok(through == last)
}

/// Adds the rows that are in no roll-up yet: from `ahead`, if it has just these, else from the ledger.
pub(crate) fn roll(tx: &Transaction<'_>, ahead: &Ahead) -> store::Result<()> {
    let (mut through, last) = marks(tx)?;
    if through == last {
        return Ok(());
    }
    if ahead.is_all(through, last) {
        add(tx, &ahead.cells)?;
        through = last;
    }
    while through < last {
        let mut cells = Cells::default();
        let mut read = tx.prepare_cached(&READ)?;
        let mut rows = read.query(params![through, integer(BATCH_ROWS as u64)])?;
        while let Some(row) = rows.next()? {
            through = row.get(0)?;
            add_row(&mut cells, &read_row(row, 1)?);
        }
        add(tx, &cells)?;
    }
    tx.prepare_cached("UPDATE rolled_up SET through = ?")?.execute([through])?;
    Ok(())
}

fn add(tx: &Transaction<'_>, cells: &Cells) -> store::Result<()> {
    let mut everyone: BTreeMap<&Common, Sums> = BTreeMap::new();
    let mut charges = Charges::default();
    let mut statement = tx.prepare_cached(&ADD)?;
    let mut upsert = |account: &str, key_id: &str, common: &Common, sums: &Sums| {
        let (day, model, provider, level) = common;
        let [model, provider, level] = [model, provider, level].map(|text| text.as_deref().unwrap_or(""));
        statement.raw_bind_parameter(1, day)?;
        for (place, text) in [account, key_id, model, provider, level].into_iter().enumerate() {
            statement.raw_bind_parameter(2 + place, text)?;
        }
        for (place, sum) in sums.iter().enumerate() {
            statement.raw_bind_parameter(1 + KEYS.len() + place, sum)?;
        }
        statement.raw_execute()
    };
    // In the order of the table, so that a page of it is sought once.
    let mut cells: Vec<_> = cells.iter().collect();
    cells.sort_unstable_by_key(|((account, key_id, common), _)| (common.0, account, key_id));
    for ((account, key_id, common), cell) in cells {
        upsert(account, key_id, common, &cell.sums)?;
        add_sums(everyone.entry(common).or_insert([0; ROLLUP_SUMS.len()]), &cell.sums);
        store_rows::add_charge(&mut charges, account, calendar::month_of_day(common.0), cell.sums[CHARGE], cell.from_balance);
    }
    for (common, sums) in everyone {
        upsert("", "", common, &sums)?;
    }
    store::accounts::charge(tx, &charges)
}

fn add_row(cells: &mut Cells, row: &Row) {
    let Row { facts, outcome } = row;
    let common = (calendar::day_of(facts.started_ms), outcome.model.clone(), outcome.provider.clone(), facts.level.clone());
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
