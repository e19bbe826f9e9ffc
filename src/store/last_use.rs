//! Times of last use: noted by requests in memory, saved now and then.

use super::{Result, Store};
use parking_lot::Mutex;
use rusqlite::{ToSql, params};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How exact times of last use are, and how often they are looked for: a minute is enough to find unused keys.
const STEP_MS: u64 = 60_000;

/// Times that are saved at once, at each poll of the store: a few milliseconds of the database, which rows and revocations would
/// wait for. Four polls a second save 240,000 a minute; where more keys are in use, their times are older by as many minutes.
const SAVED_AT_ONCE: usize = 1000;

/// When a key was last used, in milliseconds since the Unix epoch; 0: never.
#[derive(Debug)]
pub(crate) struct LastUse {
    /// Written rarely (see [`STEP_MS`]), so that cores do not fight over the line.
    at_ms: AtomicU64,
    saved_ms: AtomicU64,
}

impl LastUse {
    /// As the store has it.
    pub(crate) fn stored(at_ms: u64) -> LastUse {
        LastUse { at_ms: AtomicU64::new(at_ms), saved_ms: AtomicU64::new(at_ms) }
    }

    /// It is used now.
    pub(crate) fn note(&self, now_ms: u64) {
        if now_ms >= self.at_ms.load(Relaxed).saturating_add(STEP_MS) {
            self.at_ms.store(now_ms, Relaxed);
        }
    }

    /// Takes over what was noted on the one that this replaces.
    pub(crate) fn follow(&self, before: &LastUse) {
        self.at_ms.fetch_max(before.at_ms.load(Relaxed), Relaxed);
    }

    fn unsaved(&self) -> Option<u64> {
        let at_ms = self.at_ms.load(Relaxed);
        (at_ms > self.saved_ms.load(Relaxed)).then_some(at_ms)
    }
}

/// A key whose last use is kept.
pub(crate) trait Used {
    /// Sets the time (`?2`) where the id is `?1`, unless the row has a later one.
    const SAVE: &'static str;
    /// The row's id.
    fn id(&self) -> &dyn ToSql;
    /// About where the row is in its table: in this order a page takes many times, in any other nearly each takes a page of its own.
    fn place(&self) -> i64;
    /// The time itself.
    fn last_use(&self) -> &LastUse;
}

/// What is to be saved of a map of keys.
#[derive(Debug)]
pub(crate) struct Saving<K> {
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    /// When to look for used ones again.
    next_ms: u64,
    waiting: Vec<Arc<K>>,
}

impl<K> Default for Saving<K> {
    fn default() -> Saving<K> {
        Saving { state: Mutex::new(State { next_ms: 0, waiting: Vec::new() }) }
    }
}

impl<K: Used> Saving<K> {
    /// Saves some of what is due ([`SAVED_AT_ONCE`]), at the end of time (`u64::MAX`) all of it. `each` calls back with every key.
    /// Blocking. What cannot be saved is looked for again a minute later.
    pub(crate) fn tick(&self, store: &Store, now_ms: u64, each: impl FnOnce(&mut dyn FnMut(&Arc<K>))) -> Result<()> {
        let mut state = self.state.lock();
        if now_ms == u64::MAX || (state.waiting.is_empty() && now_ms >= state.next_ms) {
            state.next_ms = now_ms.saturating_add(STEP_MS);
            let mut waiting: Vec<Arc<K>> = Vec::new();
            each(&mut |key| {
                if key.last_use().unsaved().is_some() {
                    waiting.push(key.clone());
                }
            });
            waiting.sort_by_cached_key(|key| key.place());
            state.waiting = waiting;
        }
        while !state.waiting.is_empty() {
            let rest = state.waiting.len().saturating_sub(SAVED_AT_ONCE);
            let piece = state.waiting.split_off(rest);
            if let Err(error) = save(store, &piece) {
                state.waiting.clear();
                return Err(error);
            }
            if now_ms != u64::MAX {
                break;
            }
        }
        Ok(())
    }
}

fn save<K: Used>(store: &Store, keys: &[Arc<K>]) -> Result<()> {
    let times: Vec<_> = keys.iter().filter_map(|key| Some((key, key.last_use().unsaved()?))).collect();
    store.write(|tx| {
        let mut update = tx.prepare_cached(K::SAVE)?;
        for (key, at_ms) in &times {
            update.execute(params![key.id(), i64::try_from(*at_ms).unwrap_or(i64::MAX)])?;
        }
        Ok(())
    })?;
    for (key, at_ms) in times {
        key.last_use().saved_ms.store(at_ms, Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Key(i64, LastUse);

    impl Used for Key {
        const SAVE: &'static str = "UPDATE used SET at_ms = ?2 WHERE id = ?1";
        fn id(&self) -> &dyn ToSql {
            &self.0
        }
        fn place(&self) -> i64 {
            self.0
        }
        fn last_use(&self) -> &LastUse {
            &self.1
        }
    }

    #[test]
    fn many_are_saved_in_pieces_and_all_at_the_end() {
        let store = Store::in_memory().unwrap();
        let count = 2 * SAVED_AT_ONCE + 1;
        store
            .write(|tx| {
                tx.execute_batch("CREATE TABLE used (id INTEGER PRIMARY KEY, at_ms INTEGER)")?;
                (0..count as i64).try_for_each(|id| Ok(tx.execute("INSERT INTO used VALUES (?, NULL)", [id]).map(drop)?))
            })
            .unwrap();
        let keys: Vec<_> = (0..count as i64).map(|id| Arc::new(Key(id, LastUse::stored(0)))).collect();
        let saving = Saving::default();
        let tick = |now_ms| saving.tick(&store, now_ms, |each| keys.iter().for_each(each)).unwrap();
        let saved = |at_ms: i64| -> usize {
            let count = |tx: &rusqlite::Transaction<'_>| {
                Ok(tx.query_row("SELECT count(*) FROM used WHERE at_ms = ?", [at_ms], |row| row.get::<_, i64>(0))?)
            };
            store.write(count).unwrap() as usize
        };
        let first = STEP_MS;
        keys.iter().for_each(|key| key.1.note(first));
        for pieces in 1..=2 {
            tick(first);
            assert_eq!(saved(first as i64), pieces * SAVED_AT_ONCE);
        }
        // Used again while it waits: saved once, with the later time.
        keys.iter().for_each(|key| key.1.note(2 * first));
        tick(first + 1);
        assert_eq!((saved(first as i64), saved(2 * first as i64)), (2 * SAVED_AT_ONCE, 1));
        // Not due again within the minute. What cannot be saved is tried in the next.
        tick(2 * first - 1);
        assert_eq!(saved(first as i64), 2 * SAVED_AT_ONCE);
        let rename = |to: &str| store.write(|tx| Ok(tx.execute_batch(to)?)).unwrap();
        rename("ALTER TABLE used RENAME TO away");
        saving.tick(&store, 2 * first, |each| keys.iter().for_each(each)).unwrap_err();
        rename("ALTER TABLE away RENAME TO used");
        tick(3 * first - 1);
        assert_eq!(saved(first as i64), 2 * SAVED_AT_ONCE);
        tick(3 * first);
        assert_eq!(saved(first as i64), SAVED_AT_ONCE);
        // All of it at the end.
        tick(u64::MAX);
        assert_eq!(saved(2 * first as i64), count);
    }
}
