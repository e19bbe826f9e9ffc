//! Questions about use: by day, model, provider, key, level or account; this month and where it is heading; one request.
//!
//! Sums come from the roll-ups (a row for each day, account, key, model, provider and level, and one for all accounts
//! together), so ten million requests are thousands of rows to read; they outlive the ledger's rows. What the last seconds added
//! comes from the ledger itself. A roll-up's day is the UTC day a request began.

use crate::engine::budget::MonthIndex;
use crate::engine::money::{Credits, Usd};
use crate::engine::usage::{Bucket, Usage};
use crate::store::ledger::rollup::ROLLUP_SUMS;
use crate::store::ledger::row::serialize_usage;
use crate::store::ledger::store_rows::{ROW_COLUMNS, read_row};
use crate::store::ledger::{Row, Sink};
use crate::store::{self, Store, calendar};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::time::Duration;

/// Rows that one step of retention looks at: a few milliseconds of the database's time.
const RETENTION_STEP_ROWS: i64 = 5000;

/// The oldest row that waits for a sink: an outbox is in the order of the ledger
/// ([`revive`](crate::export::revive) puts rows back where they were).
const FIRST_WAITING: &str = "SELECT ledger_id FROM outbox WHERE sink = ?1 ORDER BY seq LIMIT 1";

/// Days that the weekly rate looks back.
const WEEK_DAYS: i64 = 7;

/// How long a report waits for the database: as the store does.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// What lines a report has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum By {
    /// The day a request began, UTC.
    #[default]
    Day,
    /// The callers' name of the model that answered.
    Model,
    /// The provider that answered.
    Provider,
    /// The caller's key.
    Key,
    /// The power level.
    Level,
    /// The account.
    Account,
}

/// What a report is about.
#[derive(Debug, Clone, Copy, Default)]
pub struct Question<'a> {
    /// One account, or all of them.
    pub account: Option<&'a str>,
    /// What the lines are.
    pub by: By,
    /// First day (since 1970-01-01); `None`: the first of this month.
    pub since: Option<i64>,
}

/// Sums of many requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Rows of the ledger.
    pub rows: u64,
    /// Ended by their normal end.
    pub complete: u64,
    /// Ended by an error.
    pub failed: u64,
    /// Ended by the client.
    pub cancelled: u64,
    /// Never tried.
    pub refused: u64,
    /// Answered by another target than the first.
    pub fallbacks: u64,
    /// Paid with the caller's own provider key.
    pub byok: u64,
    /// What the providers ask.
    pub cost: Usd,
    /// What the accounts pay, nano-credits (the sum of all accounts may be larger than one balance).
    pub charge: i128,
    /// Sum of the times to the first event.
    pub first_event_ms: u64,
    /// Requests that had one.
    pub first_events: u64,
    /// Sum of the durations.
    pub duration_ms: u64,
    /// Buckets.
    pub usage: Usage,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Day, model, …; empty for requests that have none.
    pub name: String,
    /// Its sums.
    pub totals: Totals,
}

/// An amount in both currencies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// What the providers ask.
    pub cost: Usd,
    /// What the accounts pay, nano-credits.
    pub charge: i128,
}

/// The running calendar month, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Month {
    /// So far.
    pub to_date: Amount,
    /// To date, and for the rest of the month the rate of the seven whole days before today (or of as many as there are
    /// since the first use); `None` before the first whole day.
    pub projected_by_week: Option<Amount>,
    /// The month so far, stretched to the whole month; `None` in its first millisecond.
    pub projected_by_month: Option<Amount>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What the lines are.
    pub by: By,
    /// First day.
    pub since: i64,
    /// Last day: today.
    pub until: i64,
    /// Days in order; everything else by charge, then cost, the largest first.
    pub lines: Vec<Line>,
    /// All lines together.
    pub total: Totals,
    /// This month, whatever `since` says.
    pub month: Month,
}

impl<'a> Question<'a> {
    /// From a query's parameters; the error says what is expected.
    pub fn parse(by: &str, since: Option<&str>, account: Option<&'a str>, now_ms: u64) -> store::Result<Question<'a>> {
        let by =
            By::from_name(by).ok_or_else(|| store::Error::Invalid("by: expected day, model, provider, key, level or account".into()))?;
        let day = |text| {
            calendar::parse_since(text, now_ms)
                .ok_or_else(|| store::Error::Invalid("since: expected a day such as 2026-11-01, or 30d".into()))
        };
        Ok(Question { account, by, since: since.map(day).transpose()? })
    }
}

impl By {
    /// The name in commands, queries and reports.
    pub const fn name(self) -> &'static str {
        match self {
            By::Day => "day",
            By::Model => "model",
            By::Provider => "provider",
            By::Key => "key",
            By::Level => "level",
            By::Account => "account",
        }
    }

    /// From a query parameter.
    pub fn from_name(name: &str) -> Option<By> {
        [By::Day, By::Model, By::Provider, By::Key, By::Level, By::Account].into_iter().find(|by| by.name() == name)
    }

    const fn column(self) -> &'static str {
        match self {
            By::Day => "day",
            By::Model => "model",
            By::Provider => "provider",
            By::Key => "key_id",
            By::Level => "level",
            By::Account => "account",
        }
    }
}

impl Totals {
    /// Complete ones of those that were tried and not broken off by the client; `None` when there are none.
    pub fn success_rate(&self) -> Option<f64> {
        let tried = self.complete + self.failed;
        (tried > 0).then(|| self.complete as f64 / tried as f64)
    }

    fn add(&mut self, other: &Totals) {
        self.rows += other.rows;
        self.complete += other.complete;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.refused += other.refused;
        self.fallbacks += other.fallbacks;
        self.byok += other.byok;
        self.cost = self.cost.saturating_add(other.cost);
        self.charge += other.charge;
        self.first_event_ms += other.first_event_ms;
        self.first_events += other.first_events;
        self.duration_ms += other.duration_ms;
        self.usage.add(&other.usage);
    }

    /// Key and value of everything a line shows, for JSON.
    fn serialize_into<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        map.serialize_entry("rows", &self.rows)?;
        map.serialize_entry("complete", &self.complete)?;
        map.serialize_entry("failed", &self.failed)?;
        map.serialize_entry("cancelled", &self.cancelled)?;
        map.serialize_entry("refused", &self.refused)?;
        map.serialize_entry("success_rate", &self.success_rate())?;
        map.serialize_entry("fallbacks", &self.fallbacks)?;
        map.serialize_entry("byok", &self.byok)?;
        serialize_usage(map, &self.usage)?;
        map.serialize_entry("cost", &self.cost.to_string())?;
        map.serialize_entry("charge", &credits_text(self.charge))?;
        map.serialize_entry("mean_first_event_ms", &self.first_event_ms.checked_div(self.first_events))?;
        map.serialize_entry("mean_duration_ms", &self.duration_ms.checked_div(self.rows))
    }
}

/// A sum of credits as a decimal string. One account's fits [`Credits`]; all accounts' may not.
pub fn credits_text(nano: i128) -> String {
    match i64::try_from(nano) {
        Ok(nano) => Credits(nano).to_string(),
        // The same digits in the finer currency's type: nano-credits printed with nine decimals.
        Err(_) => Usd(nano.saturating_mul(1000)).to_string(),
    }
}

impl Serialize for Totals {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.serialize_into(&mut map)?;
        map.end()
    }
}

impl Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &self.name)?;
        self.totals.serialize_into(&mut map)?;
        map.end()
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("cost", &self.cost.to_string())?;
        map.serialize_entry("charge", &credits_text(self.charge))?;
        map.end()
    }
}

impl Serialize for Month {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("to_date", &self.to_date)?;
        map.serialize_entry("projected_by_week", &self.projected_by_week)?;
        map.serialize_entry("projected_by_month", &self.projected_by_month)?;
        map.end()
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(6))?;
        map.serialize_entry("by", self.by.name())?;
        map.serialize_entry("since", &calendar::iso_day(self.since))?;
        map.serialize_entry("until", &calendar::iso_day(self.until))?;
        map.serialize_entry("lines", &self.lines)?;
        map.serialize_entry("total", &self.total)?;
        map.serialize_entry("month", &self.month)?;
        map.end()
    }
}

/// Answers a question. Rows that are on their way to the database are not in it yet (a tenth of a second). Blocking.
pub fn report(store: &Store, question: &Question<'_>, now_ms: u64) -> store::Result<Report> {
    let until = calendar::day_of(now_ms);
    let since = question.since.unwrap_or_else(|| calendar::first_day_of_month(MonthIndex::of_ms(now_ms)));
    with_reader(store, |connection| {
        // One snapshot for all parts of the answer.
        let tx = connection.unchecked_transaction()?;
        let mut lines = sums(&tx, question.account, since, until, question.by)?;
        if question.by != By::Day {
            lines.sort_by(|a, b| (b.totals.charge, b.totals.cost, &a.name).cmp(&(a.totals.charge, a.totals.cost, &b.name)));
        }
        let mut total = Totals::default();
        lines.iter().for_each(|line| total.add(&line.totals));
        let month = month(&tx, question.account, now_ms)?;
        Ok(Report { by: question.by, since, until, lines, total, month })
    })
}

/// The row of a request of this account, if it is in the database; [`Ledger::flushed_soon`](crate::store::ledger::Ledger::flushed_soon)
/// brings those there that have just ended. Blocking.
pub fn request(store: &Store, request_id: &str, account: &str) -> store::Result<Option<Row>> {
    Ok(any_request(store, request_id)?.filter(|row| *row.facts.account == *account))
}

/// The row of a request, whoever made it. Blocking.
pub fn any_request(store: &Store, request_id: &str) -> store::Result<Option<Row>> {
    store.read(|connection| {
        let row = connection
            .prepare_cached(&format!("SELECT {ROW_COLUMNS} FROM ledger WHERE request_id = ?"))?
            .query_row([request_id], |row| read_row(row, 0));
        Ok(row.optional()?)
    })
}

/// Deletes rows that began before `before_ms`, oldest first, a few thousand at a time; roll-ups, balances and rows that are
/// still to be rolled up, or exported to one of these sinks, stay. Returns how many went: 0 when there is nothing left to do.
/// Blocking.
///
/// A sink that is no longer configured holds nothing back. What waits for it stays in its outbox; should it come back, it gets
/// those rows that the ledger still has.
pub fn retire(store: &Store, before_ms: u64, sinks: &[Sink]) -> store::Result<usize> {
    let before = i64::try_from(before_ms).unwrap_or(i64::MAX);
    let due = store.read(|connection| {
        let oldest: Option<i64> =
            connection.prepare_cached("SELECT started_ms FROM ledger ORDER BY id LIMIT 1")?.query_row([], |row| row.get(0)).optional()?;
        Ok(oldest.is_some_and(|started| started < before))
    })?;
    if !due {
        return Ok(0);
    }
    store.write(|tx| {
        let mut waits = i64::MAX;
        for sink in sinks {
            let first = tx.prepare_cached(FIRST_WAITING)?.query_row([*sink as i64], |row| row.get(0)).optional()?;
            waits = waits.min(first.unwrap_or(i64::MAX));
        }
        let gone = tx
            .prepare_cached(
                "DELETE FROM ledger WHERE id IN (SELECT id FROM ledger ORDER BY id LIMIT ?1) AND started_ms < ?2
                 AND id < ?3 AND id <= (SELECT through FROM rolling)",
            )?
            .execute(params![RETENTION_STEP_ROWS, before, waits])?;
        // Ids are given anew from the largest on that is left: what waits under one of them would become another row.
        let last: i64 = tx.prepare_cached("SELECT coalesce(max(id), 0) FROM ledger")?.query_row([], |row| row.get(0))?;
        let through: i64 = tx.prepare_cached("SELECT through FROM rolling")?.query_row([], |row| row.get(0))?;
        if through > last {
            tx.execute("DELETE FROM outbox WHERE ledger_id > ?1", [last])?;
        }
        tx.prepare_cached("UPDATE rolling SET through = min(through, ?1), until = min(until, ?1)")?.execute([last])?;
        Ok(gone)
    })
}

/// A connection of its own, so that a long report delays neither writers nor who follows changes.
fn with_reader<T>(store: &Store, work: impl FnOnce(&Connection) -> store::Result<T>) -> store::Result<T> {
    let Some(path) = store.path() else { return store.read(work) };
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    work(&connection)
}

/// Amounts are summed in two halves: SQLite's sums end with an error at 2^63, which is 9.2 million USD.
const HALF: i64 = 1_000_000_000;

/// The days from `?1` to `?2` that roll-ups are looked up for: none before their first, however far back a question goes.
const DAYS: &str = "WITH RECURSIVE days (at) AS (
    SELECT max(?1, coalesce(min(?2, (SELECT min(day) FROM totals)), ?2)) UNION ALL SELECT at + 1 FROM days WHERE at < ?2)";

fn sums(connection: &Connection, account: Option<&str>, since: i64, until: i64, by: By) -> store::Result<Vec<Line>> {
    let columns: Vec<String> = ROLLUP_SUMS
        .iter()
        .map(|column| match *column {
            "cost" | "charge" => format!("sum({column} / {HALF}), sum({column} % {HALF})"),
            column => format!("sum({column})"),
        })
        .collect();
    let (name, columns) = (by.column(), columns.join(", "));
    // The cells with an empty account sum all accounts and keys; only a question that tells those apart reads the others.
    let account = match (account, by) {
        (None, By::Account | By::Key) => None,
        (account, _) => Some(account.unwrap_or("")),
    };
    // With an account: one look-up for each day, for the roll-ups are ordered by day and account.
    let rolled = match account {
        None => "SELECT * FROM totals WHERE day BETWEEN ?1 AND ?2 AND account != ''",
        Some(_) => "SELECT totals.* FROM days CROSS JOIN totals ON totals.day = days.at AND totals.account = ?3",
    };
    // The rows that are in no roll-up yet are those of single accounts.
    let of_account = if account.is_some_and(|account| !account.is_empty()) { "AND account = ?3" } else { "" };
    let query = format!(
        "{DAYS} SELECT {name}, {columns} FROM ({rolled} UNION ALL SELECT * FROM unrolled WHERE day BETWEEN ?1 AND ?2 {of_account})
         GROUP BY {name} ORDER BY {name}"
    );
    let mut statement = connection.prepare(&query)?;
    let mut rows = match account {
        None => statement.query(params![since, until])?,
        Some(account) => statement.query(params![since, until, account])?,
    };
    let mut lines = Vec::new();
    while let Some(row) = rows.next()? {
        let name = if by == By::Day { calendar::iso_day(row.get(0)?) } else { row.get(0)? };
        lines.push(Line { name, totals: read_totals(row, 1)? });
    }
    Ok(lines)
}

fn read_totals(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Totals> {
    let count = |index: usize| row.get::<_, i64>(first + index).map(|count| u64::try_from(count).unwrap_or(0));
    let halves = |index: usize| -> rusqlite::Result<i128> {
        let (high, low): (i64, i64) = (row.get(first + index)?, row.get(first + index + 1)?);
        Ok(i128::from(high) * i128::from(HALF) + i128::from(low))
    };
    let mut usage = Usage::default();
    for (index, bucket) in Bucket::ALL.into_iter().enumerate() {
        usage.set(bucket, count(14 + index)?);
    }
    Ok(Totals {
        rows: count(0)?,
        complete: count(1)?,
        failed: count(2)?,
        cancelled: count(3)?,
        refused: count(4)?,
        fallbacks: count(5)?,
        byok: count(6)?,
        cost: Usd(halves(7)?),
        charge: halves(9)?,
        first_event_ms: count(11)?,
        first_events: count(12)?,
        duration_ms: count(13)?,
        usage,
    })
}

fn month(connection: &Connection, account: Option<&str>, now_ms: u64) -> store::Result<Month> {
    let today = calendar::day_of(now_ms);
    let month = MonthIndex::of_ms(now_ms);
    let first = calendar::first_day_of_month(month);
    let next = calendar::first_day_of_month(MonthIndex(month.0.saturating_add(1)));
    let days = sums(connection, account, first.min(today - WEEK_DAYS), today, By::Day)?;
    let between = |from: i64, to: i64| {
        let (from, to) = (calendar::iso_day(from), calendar::iso_day(to));
        let mut sum = Amount::default();
        // ISO days sort as they follow each other.
        for line in days.iter().filter(|line| line.name >= from && line.name < to) {
            sum.cost = sum.cost.saturating_add(line.totals.cost);
            sum.charge += line.totals.charge;
        }
        sum
    };
    let to_date = between(first, today + 1);
    let (now, day) = (i128::from(now_ms), i128::from(calendar::DAY_MS));
    let (begins, ends) = (i128::from(first) * day, i128::from(next) * day);
    let elapsed = now - begins;
    let projected_by_month = (elapsed > 0).then(|| scale(to_date, ends - begins, elapsed));
    let known_days = today - first_use(connection, account)?.unwrap_or(today);
    let week_days = known_days.clamp(0, WEEK_DAYS);
    let projected_by_week = (week_days > 0).then(|| {
        let rest = scale(between(today - week_days, today), ends - now, i128::from(week_days) * day);
        Amount { cost: to_date.cost.saturating_add(rest.cost), charge: to_date.charge + rest.charge }
    });
    Ok(Month { to_date, projected_by_week, projected_by_month })
}

/// The first day with any use; for an account found by one look-up for each day.
fn first_use(connection: &Connection, account: Option<&str>) -> store::Result<Option<i64>> {
    let Some(account) = account else {
        let all = "SELECT min(day) FROM (SELECT min(day) AS day FROM totals UNION ALL SELECT min(day) FROM unrolled)";
        return Ok(connection.query_row(all, [], |row| row.get(0))?);
    };
    let first = connection.query_row(
        "WITH RECURSIVE days (at) AS (SELECT min(day) FROM totals UNION ALL SELECT at + 1 FROM days WHERE at < (SELECT max(day) FROM totals))
         SELECT min(day) FROM (
            SELECT * FROM (SELECT at AS day FROM days WHERE EXISTS (SELECT 1 FROM totals WHERE day = at AND account = ?1) LIMIT 1)
            UNION ALL SELECT min(day) FROM unrolled WHERE account = ?1)",
        [account],
        |row| row.get(0),
    );
    Ok(first?)
}

/// `amount × by / of`, rounded half to even.
fn scale(amount: Amount, by: i128, of: i128) -> Amount {
    let part = |number: i128| crate::engine::money::div_half_even(number.saturating_mul(by), of);
    Amount { cost: Usd(part(amount.cost.0)), charge: part(amount.charge) }
}

#[cfg(test)]
mod tests;
