//! Keeping maps in memory fresh: one thread that asks the store what changed, four times a second.
//!
//! A thread of its own, not a task: a revoked key must stop within a second however busy the async threads are.

use super::{Changes, POLL_INTERVAL, Result, Store, Topic, mark, now_ms};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// A failing poll is logged at the first failure and then at every so many (a minute's worth).
const LOG_EVERY: u32 = 240;

/// Something in memory that mirrors rows of the store.
pub trait Mirror: Send + Sync {
    /// The rows it mirrors.
    fn topic(&self) -> Topic;
    /// Loads everything; forgets what the store no longer has. Blocking.
    fn reload(&self, store: &Store) -> Result<()>;
    /// Loads one changed row. Blocking.
    fn refresh(&self, store: &Store, id: &str) -> Result<()>;
    /// Loads several, all that can be loaded even if one cannot. Blocking.
    fn refresh_each(&self, store: &Store, ids: &[&str]) -> Result<()> {
        let mut failed = Ok(());
        for id in ids {
            failed = failed.and(self.refresh(store, id));
        }
        failed
    }
    /// Called after every poll, for what goes the other way (times of last use). By the clock it decides what is due, and after a failure
    /// when to try again; a failure holds up nothing else. The last call of all has the end of time for a clock: everything is due.
    fn tick(&self, _store: &Store, _now_ms: u64) -> Result<()> {
        Ok(())
    }
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Follower {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Loads every mirror, then follows. Blocking until everything is loaded.
    pub fn start(store: Store, mirrors: Vec<Arc<dyn Mirror>>) -> Result<Follower> {
        // The mark first: what changes while we load is read again.
        let mut since = store.read(mark)?;
        for mirror in &mirrors {
            mirror.reload(&store)?;
        }
        // Nothing is ever sent: the drop of the sender ends the thread.
        let (stop, stopped) = sync_channel(0);
        let run = move || {
            let mut failures = 0u32;
            loop {
                let last = match stopped.recv_timeout(POLL_INTERVAL) {
                    Err(RecvTimeoutError::Timeout) => false,
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
                };
                match poll(&store, &mirrors, since) {
                    Ok(until) => (since, failures) = (until, 0),
                    Err(error) => {
                        if failures.is_multiple_of(LOG_EVERY) {
                            log::error!("cannot follow changes in the store (revoked keys keep working): {error}");
                        }
                        failures = failures.saturating_add(1);
                    }
                }
                let now_ms = if last { u64::MAX } else { now_ms() };
                for mirror in &mirrors {
                    if let Err(error) = mirror.tick(&store, now_ms) {
                        log::error!("times of last use cannot be saved: {error}");
                    }
                }
                if last {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("weir-store".into()).spawn(run);
        let thread = thread.map_err(|error| super::Error::Io("thread weir-store".into(), error))?;
        Ok(Follower { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panicked thread has nothing left to wait for.
            let _ = thread.join();
        }
    }
}

/// One poll; the new mark. When a row fails the others are still applied, and all of them again at the next poll: one that
/// cannot be read must not keep a revocation behind it from taking effect.
fn poll(store: &Store, mirrors: &[Arc<dyn Mirror>], since: i64) -> Result<i64> {
    match store.changes_since(since)? {
        Changes::Rows { mut rows, until } => {
            let mut failed = Ok(());
            // Accounts at once, for one costs as much as many; and first, so that an account's credits are there before the key that came
            // with them. The others in their order.
            rows.sort_by_key(|change| change.topic != Topic::Account);
            for run in rows.chunk_by(|one, next| one.topic == next.topic) {
                let ids: Vec<_> = run.iter().map(|change| change.id.as_str()).collect();
                for mirror in mirrors.iter().filter(|mirror| mirror.topic() == run[0].topic) {
                    failed = failed.and(mirror.refresh_each(store, &ids));
                }
            }
            failed.map(|()| until)
        }
        Changes::Lost { until } => {
            for mirror in mirrors {
                mirror.reload(store)?;
            }
            Ok(until)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[derive(Default)]
    struct Seen(Mutex<Vec<String>>);

    impl Mirror for Seen {
        fn topic(&self) -> Topic {
            Topic::Key
        }
        fn reload(&self, _: &Store) -> Result<()> {
            self.0.lock().push("all".into());
            Ok(())
        }
        fn refresh(&self, _: &Store, id: &str) -> Result<()> {
            self.0.lock().push(id.into());
            if id == "bad" { Err(super::super::Error::Task) } else { Ok(()) }
        }
    }

    struct Told(Topic, Arc<Mutex<Vec<String>>>);

    impl Mirror for Told {
        fn topic(&self) -> Topic {
            self.0
        }
        fn reload(&self, _: &Store) -> Result<()> {
            Ok(())
        }
        fn refresh(&self, store: &Store, id: &str) -> Result<()> {
            self.refresh_each(store, &[id])
        }
        fn refresh_each(&self, _: &Store, ids: &[&str]) -> Result<()> {
            self.1.lock().push(ids.join(" "));
            Ok(())
        }
    }

    #[test]
    fn accounts_come_first_and_at_once() {
        let store = Store::in_memory().unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let mirrors = [Topic::Key, Topic::Account].map(|topic| Arc::new(Told(topic, told.clone())) as Arc<dyn Mirror>);
        store
            .write(|tx| {
                [(Topic::Account, "a"), (Topic::Key, "k"), (Topic::Account, "b"), (Topic::Key, "l")]
                    .into_iter()
                    .try_for_each(|(topic, id)| super::super::changed(tx, topic, id))
            })
            .unwrap();
        assert_eq!(poll(&store, &mirrors, 0).unwrap(), 4);
        assert_eq!(*told.lock(), ["a b", "k l"]);
    }

    #[test]
    fn a_mirror_sees_its_own_topic() {
        let store = Store::in_memory().unwrap();
        let seen = Arc::new(Seen::default());
        let mirrors: Vec<Arc<dyn Mirror>> = vec![seen.clone()];
        let follower = Follower::start(store.clone(), mirrors.clone()).unwrap();
        store
            .write(|tx| {
                super::super::changed(tx, Topic::Account, "a")?;
                super::super::changed(tx, Topic::Key, "k")
            })
            .unwrap();
        // The drop polls a last time, so nothing has to be waited for.
        drop(follower);
        assert_eq!(*seen.0.lock(), ["all", "k"]);
        // One that cannot be read does not hold up the next.
        store
            .write(|tx| super::super::changed(tx, Topic::Key, "bad").and_then(|()| super::super::changed(tx, Topic::Key, "good")))
            .unwrap();
        poll(&store, &mirrors, 2).unwrap_err();
        assert_eq!(seen.0.lock().split_off(2), ["bad", "good"]);
        store.write(|tx| Ok(tx.execute("DELETE FROM changes", [])?)).unwrap();
        assert_eq!(poll(&store, &mirrors, 0).unwrap(), 4);
        assert_eq!(*seen.0.lock(), ["all", "k", "all"]);
    }
}
