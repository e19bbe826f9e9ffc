//! Accounts: balances in memory beside their rows in the database.
//!
//! A request reserves and settles in memory ([`Account`]); its row reaches the database a moment later, and with the next
//! [roll-up](store::ledger::rollup) it is charged in these tables. What the database holds beyond what this process put there itself
//! (grants by a command, charges of an old server that still drains) comes in with [`Accounts::refresh`], which compares what is stored
//! with what is known here and applies the difference.
//!
//! Invariant, checked by [`verify`]: balance = grants − charges of the rows that were taken from the balance.

use crate::engine::budget::{Account, MonthIndex};
use crate::engine::money::Credits;
use crate::store::follow::Mirror;
use crate::store::ledger::Row;
use crate::store::ledger::rollup::{self, Ahead};
use crate::store::ledger::store_rows::{Charged, Charges};
use crate::store::{self, Store, Topic};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// Tables of this part; `account_months` is `months_charged` by now. Amounts in 10⁻⁹ credits; `granted` is NULL for an account that was
/// never granted anything and so has no budget; `month` counts as [`MonthIndex`].
pub const TABLES: &str = "
CREATE TABLE accounts (
    id       TEXT PRIMARY KEY,
    granted  INTEGER,
    charged  INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE account_months (
    account  TEXT NOT NULL,
    month    INTEGER NOT NULL,
    charged  INTEGER NOT NULL,
    PRIMARY KEY (account, month)
) WITHOUT ROWID;
CREATE TABLE grants (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    account  TEXT NOT NULL,
    amount   INTEGER NOT NULL,
    note     TEXT NOT NULL,
    at_ms    INTEGER NOT NULL
);
CREATE INDEX grants_by_account ON grants (account);
";

/// Accounts that are compared under one lock, in which rows are not stored: some milliseconds, and some tens of them where a hundred
/// thousand cells are not rolled up.
pub(crate) const REFRESHED_AT_ONCE: usize = 1000;

/// How often rows are rolled up in transactions of their own before a question is asked in the same one: what takes long to read
/// should not keep others from writing.
const ROLLED_BEFORE: u32 = 3;

/// The accounts of this process.
pub struct Accounts {
    entries: papaya::HashMap<Arc<str>, Arc<Entry>>,
    /// The rows that this process stored and that are in no roll-up. Held while rows are stored and while balances are compared, so
    /// that no charge is seen on one side only.
    ahead: Mutex<Ahead>,
}

struct Entry {
    account: Arc<Account>,
    known: Mutex<Known>,
}

/// What of the database's sums is in the memory's balance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Known {
    granted: Option<i64>,
    charged: i64,
    /// This month's charges and the month's before.
    months: [(MonthIndex, i64); 2],
}

/// What the database has of some accounts.
type Found<'i> = HashMap<&'i str, store::Result<Known>>;

/// While this lives, this process stores no rows but its holder's ([`Accounts::flushing`]), and those of dead processes, which are in no
/// balance here.
pub(crate) struct Flushing<'a> {
    accounts: &'a Accounts,
    ahead: MutexGuard<'a, Ahead>,
}

/// Adds credits to an account (takes some, when negative), and tells running servers. Part of the caller's transaction, so
/// that a key and its first credits appear together; grant before the key is noted as changed.
pub fn grant(tx: &Transaction<'_>, account: &str, amount: Credits, note: &str, now_ms: u64) -> store::Result<()> {
    tx.prepare_cached("INSERT INTO grants (account, amount, note, at_ms) VALUES (?, ?, ?, ?)")?.execute(params![
        account,
        amount.0,
        note,
        i64::try_from(now_ms).unwrap_or(i64::MAX)
    ])?;
    tx.prepare_cached(
        "INSERT INTO accounts (id, granted, charged) VALUES (?1, ?2, 0)
         ON CONFLICT (id) DO UPDATE SET granted = coalesce(granted, 0) + ?2",
    )?
    .execute(params![account, amount.0])?;
    store::changed(tx, Topic::Account, account)
}

/// Books charges of rows that are being rolled up.
pub(crate) fn charge(tx: &Transaction<'_>, charges: &[(&str, Charged)]) -> store::Result<()> {
    // What is larger than 64 bits would become a floating-point number, which no integer is read from again.
    let mut balance = tx.prepare_cached(
        "INSERT INTO accounts (id, charged) VALUES (?1, ?2)
         ON CONFLICT (id) DO UPDATE SET charged = charged + min(?2, 9223372036854775807 - max(charged, 0))",
    )?;
    let mut of_month = tx.prepare_cached(
        "INSERT INTO months_charged (account, month, charged) VALUES (?1, ?2, ?3)
         ON CONFLICT (account, month) DO UPDATE SET charged = charged + min(?3, 9223372036854775807 - max(charged, 0))",
    )?;
    for (account, charged) in charges {
        balance.execute(params![account, charged.from_balance])?;
        for (month, amount) in &charged.months {
            of_month.execute(params![account, month.0, amount])?;
        }
    }
    Ok(())
}

/// Ids of the accounts that were granted or charged anything, in order, behind `after`, `limit` of them.
pub fn ids(connection: &Connection, after: &str, limit: usize) -> store::Result<Vec<String>> {
    let mut ids = connection.prepare_cached(
        "SELECT id FROM accounts WHERE id > ?1 UNION SELECT account FROM unrolled WHERE account > ?1 AND charge <> 0 ORDER BY 1 LIMIT ?2",
    )?;
    let ids = ids.query_map(params![after, i64::try_from(limit).unwrap_or(i64::MAX)], |row| row.get(0))?;
    Ok(ids.collect::<rusqlite::Result<_>>()?)
}

/// Recomputes every balance and month from grants and rows; the differences, as text. Reads the whole ledger: for tests and
/// after a disaster. Meaningful while retention has not deleted rows.
pub fn verify(connection: &Connection) -> store::Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut balances = connection.prepare(
        "SELECT id, granted, charged,
            (SELECT sum(amount) FROM grants WHERE account = accounts.id),
            (SELECT coalesce(sum(charge), 0) FROM ledger
             WHERE account = accounts.id AND reserved IS NOT NULL AND id NOT IN (SELECT id FROM unrolled_rows))
         FROM accounts",
    )?;
    let mut rows = balances.query([])?;
    while let Some(row) = rows.next()? {
        let (id, granted, charged): (String, Option<i64>, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let (grants, charges): (Option<i64>, i64) = (row.get(3)?, row.get(4)?);
        if (granted, charged) != (grants, charges) {
            wrong.push(format!("{id}: granted {granted:?}, its grants are {grants:?}; charged {charged}, its rows are {charges}"));
        }
    }
    let (months, all): (i64, i64) = connection.query_row(
        "SELECT (SELECT coalesce(sum(charged), 0) FROM months_charged),
            (SELECT coalesce(sum(charge), 0) FROM ledger WHERE id NOT IN (SELECT id FROM unrolled_rows))",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    if months != all {
        wrong.push(format!("months: {months}, rows: {all}"));
    }
    let sums = "coalesce(sum(charge), 0), coalesce(sum(cost), 0)";
    let rows: (i64, i64, i64) = connection.query_row(&format!("SELECT {sums}, count(*) FROM ledger"), [], three)?;
    for cells in ["account != ''", "account = ''"] {
        let parts = format!("SELECT charge, cost, rows FROM totals WHERE {cells} UNION ALL SELECT charge, cost, rows FROM unrolled");
        let query = format!("SELECT {sums}, coalesce(sum(rows), 0) FROM ({parts})");
        let rollups: (i64, i64, i64) = connection.query_row(&query, [], three)?;
        if rollups != rows {
            wrong.push(format!("roll-ups where {cells}: {rollups:?}, rows: {rows:?}"));
        }
    }
    Ok(wrong)
}

fn three(row: &rusqlite::Row<'_>) -> rusqlite::Result<(i64, i64, i64)> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

impl Accounts {
    /// Every account with its balance and what this month and the last have cost.
    pub(crate) fn load(store: &Store, now_ms: u64) -> store::Result<Accounts> {
        let accounts = Accounts { entries: papaya::HashMap::new(), ahead: Mutex::default() };
        let month = MonthIndex::of_ms(now_ms);
        accounts.flushing().rolled_up(store, |connection| {
            let mut ids = connection.prepare("SELECT id FROM accounts UNION SELECT account FROM months_charged WHERE month >= ?")?;
            let mut found = ids.query([month.0.saturating_sub(1)])?;
            let entries = accounts.entries.pin();
            while let Some(row) = found.next()? {
                let id: Arc<str> = row.get(0)?;
                let entry = Entry::restored(Known::read(connection, &id, month)?);
                entries.insert(id, Arc::new(entry));
            }
            Ok(())
        })?;
        Ok(accounts)
    }

    /// The account, made without a budget when nobody knows it; the same for as long as this lives. No lock, no database.
    pub fn of(&self, id: &str) -> Arc<Account> {
        self.entry(id).account.clone()
    }

    fn entry(&self, id: &str) -> Arc<Entry> {
        let entries = self.entries.pin();
        match entries.get(id) {
            Some(entry) => entry.clone(),
            None => entries.get_or_insert_with(Arc::from(id), || Arc::new(Entry::restored(Known::default()))).clone(),
        }
    }

    /// Takes in what the database has of some accounts and this process did not put there. Blocking: it waits for rows that are
    /// being stored, and rolls up what other processes stored. A [`Follower`](store::follow::Follower) calls it for every change.
    pub fn refresh<I: AsRef<str>>(&self, store: &Store, ids: &[I], now_ms: u64) -> store::Result<()> {
        let month = MonthIndex::of_ms(now_ms);
        let mut failed = Ok(());
        for ids in ids.chunks(REFRESHED_AT_ONCE) {
            let mut flushing = self.flushing();
            for (id, found) in flushing.known(store, ids, month)? {
                // The others are taken in all the same.
                failed = failed.and(found.map(|found| self.entry(id).take_in(found)));
            }
        }
        failed
    }

    /// [`Accounts::refresh`] for all of them: the change log was lost.
    pub fn refresh_all(&self, store: &Store, now_ms: u64) -> store::Result<()> {
        let ids: Vec<String> = self.flushing().rolled_up(store, |connection| {
            let mut ids = connection.prepare("SELECT id FROM accounts")?;
            Ok(ids.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
        })?;
        self.refresh(store, &ids, now_ms)
    }

    /// To be held while rows are stored.
    pub(crate) fn flushing(&self) -> Flushing<'_> {
        Flushing { accounts: self, ahead: self.ahead.lock() }
    }
}

impl Flushing<'_> {
    /// Rows of this process were stored, by their ids: its balances have these charges already.
    pub(crate) fn stored<'r>(&mut self, rows: impl Iterator<Item = (i64, &'r Row)>, charges: &Charges) {
        rows.for_each(|(id, row)| self.ahead.add(id, row));
        for (id, charged) in charges {
            let entry = self.accounts.entry(id);
            let mut known = entry.known.lock();
            known.charged = known.charged.saturating_add(charged.from_balance);
            for (month, amount) in &charged.months {
                known.add_to_month(*month, *amount);
            }
        }
    }

    /// More rows should not wait for a roll-up.
    pub(crate) fn is_full(&self) -> bool {
        self.ahead.is_full()
    }

    /// Brings the roll-ups, and with them the accounts, up to the last row.
    pub(crate) fn roll(&mut self, store: &Store) -> store::Result<()> {
        rollup::roll(store, &mut self.ahead)
    }

    /// A piece of [`Flushing::roll`]; whether another should follow soon.
    pub(crate) fn roll_some(&mut self, store: &Store) -> store::Result<bool> {
        rollup::roll_some(store, &mut self.ahead)
    }

    /// What was granted and charged to some accounts by all rows that are stored.
    fn known<'i, I: AsRef<str>>(&mut self, store: &Store, ids: &'i [I], month: MonthIndex) -> store::Result<Found<'i>> {
        let read = |connection: &Connection| -> Found<'i> {
            ids.iter().map(|id| (id.as_ref(), Known::read(connection, id.as_ref(), month))).collect()
        };
        let found = store.read(|connection| {
            let tx = connection.unchecked_transaction()?;
            let mut found = read(&tx);
            let Some(unrolled) = self.ahead.unrolled(&tx)? else { return Ok(None) };
            for cell in unrolled {
                if let Some(Ok(known)) = found.get_mut(cell.account()) {
                    known.charge(cell.month(), cell.charge(), cell.taken());
                }
            }
            Ok(Some(found))
        })?;
        match found {
            Some(found) => Ok(found),
            None => self.rolled_up(store, |connection| Ok(read(connection))),
        }
    }

    /// Asks the database when every row in it is rolled up. If that fails, the rows are read from the ledger the next time.
    fn rolled_up<T>(&mut self, store: &Store, ask: impl Fn(&Connection) -> store::Result<T>) -> store::Result<T> {
        let ask_when_done = |connection: &Connection| {
            let tx = connection.unchecked_transaction()?;
            rollup::is_done(&tx)?.then(|| ask(&tx)).transpose()
        };
        for _ in 0..ROLLED_BEFORE {
            if let Some(answer) = store.read(ask_when_done)? {
                return Ok(answer);
            }
            self.roll(store)?;
        }
        // Another process stores rows all the time.
        store.write(|tx| {
            rollup::roll_within(tx)?;
            ask(tx)
        })
    }
}

impl Mirror for Accounts {
    fn topic(&self) -> Topic {
        Topic::Account
    }

    fn reload(&self, store: &Store) -> store::Result<()> {
        self.refresh_all(store, store::now_ms())
    }

    fn refresh(&self, store: &Store, id: &str) -> store::Result<()> {
        self.refresh_each(store, &[id])
    }

    fn refresh_each(&self, store: &Store, ids: &[&str]) -> store::Result<()> {
        Accounts::refresh(self, store, ids, store::now_ms())
    }
}

impl Entry {
    fn restored(known: Known) -> Entry {
        let [(month, charged), (before, charged_before)] = known.months;
        let account = Account::restored(known.balance(), month, Credits(charged));
        if charged_before != 0 {
            // Requests of the last month may still run; `charge` also takes from the balance, which has it already.
            account.charge(Credits(charged_before), before);
            if known.granted.is_some() {
                account.grant(Credits(charged_before));
            }
        }
        Entry { account: Arc::new(account), known: Mutex::new(known) }
    }

    /// Applies the difference between what the database has and what is known here.
    fn take_in(&self, found: Known) {
        let mut known = self.known.lock();
        let granted = found.granted.unwrap_or(0).saturating_sub(known.granted.unwrap_or(0));
        let charged = found.charged.saturating_sub(known.charged);
        if found.granted.is_some() && (known.granted.is_none() || granted != charged) {
            self.account.grant(Credits(granted.saturating_sub(charged)));
        }
        for (month, sum) in found.months {
            let amount = sum.saturating_sub(known.month(month));
            if amount != 0 {
                // `charge` counts the month and takes from the balance; the balance was settled above.
                self.account.charge(Credits(amount), month);
                if self.account.has_budget() {
                    self.account.grant(Credits(amount));
                }
            }
        }
        // A month that began since the database was asked is not forgotten with that.
        let begun = known.months.map(|(month, sum)| (month, if found.months.iter().all(|(at, _)| *at < month) { sum } else { 0 }));
        *known = found;
        for (month, sum) in begun.into_iter().filter(|(_, sum)| *sum != 0) {
            known.add_to_month(month, sum);
        }
    }
}

impl Default for Entry {
    fn default() -> Entry {
        Entry::restored(Known::default())
    }
}

impl Known {
    fn read(connection: &Connection, id: &str, month: MonthIndex) -> store::Result<Known> {
        let sums: Option<(Option<i64>, i64)> = connection
            .prepare_cached("SELECT granted, charged FROM accounts WHERE id = ?")?
            .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let (granted, charged) = sums.unwrap_or_default();
        let mut months = [(month, 0), (MonthIndex(month.0.saturating_sub(1)), 0)];
        for (month, sum) in &mut months {
            *sum = connection
                .prepare_cached("SELECT charged FROM months_charged WHERE account = ? AND month = ?")?
                .query_row(params![id, month.0], |row| row.get(0))
                .optional()?
                .unwrap_or(0);
        }
        Ok(Known { granted, charged, months })
    }

    /// Adds what is not in the database's sums yet.
    fn charge(&mut self, month: MonthIndex, charge: i64, from_balance: i64) {
        self.charged = self.charged.saturating_add(from_balance);
        if let Some((_, sum)) = self.months.iter_mut().find(|(at, _)| *at == month) {
            *sum = sum.saturating_add(charge);
        }
    }

    fn balance(&self) -> Option<Credits> {
        self.granted.map(|granted| Credits(granted.saturating_sub(self.charged)))
    }

    fn month(&self, month: MonthIndex) -> i64 {
        self.months.iter().find(|(at, _)| *at == month).map_or(0, |(_, sum)| *sum)
    }

    fn add_to_month(&mut self, month: MonthIndex, amount: i64) {
        match self.months.iter_mut().find(|(at, _)| *at == month) {
            Some((_, sum)) => *sum = sum.saturating_add(amount),
            None => {
                // A new month takes the place of the older one.
                if let Some(oldest) = self.months.iter_mut().min_by_key(|(at, _)| *at).filter(|(at, _)| *at < month) {
                    *oldest = (month, amount);
                }
            }
        }
    }
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accounts").field("entries", &self.entries.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_that_began_meanwhile_is_counted_once() {
        let [old, this, next] = [10, 11, 12].map(MonthIndex);
        let entry = Entry::default();
        *entry.known.lock() = Known { granted: None, charged: 0, months: [(this, 3), (old, 0)] };
        entry.account.charge(Credits(3), this);
        // A row of the new month is stored between the question and its answer.
        entry.account.charge(Credits(5), next);
        entry.known.lock().add_to_month(next, 5);
        entry.take_in(Known { granted: None, charged: 0, months: [(this, 3), (old, 0)] });
        entry.take_in(Known { granted: None, charged: 0, months: [(next, 5), (this, 3)] });
        assert_eq!(entry.account.balances(next).used_this_month, Credits(5));
    }
}
