//! Idle HTTP/1 connections to providers, kept by the core that used them last.
//!
//! Pingora's own pool watches every idle connection with a task of its own; starting and ending those took a tenth of a small
//! request's instructions. Here an idle connection is looked at when it is taken, and by [`Pool::sweep`] four times a second:
//! one that was closed, or on which something came that nobody asked for, is dropped.

use futures::FutureExt;
use parking_lot::Mutex;
use pingora_core::protocols::Stream;
use rustc_hash::FxHashMap;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;

/// An idle connection is closed after this. Below the 60 s of common load balancers, so that weir closes first.
pub const IDLE_MAX: Duration = Duration::from_secs(55);
/// Idle connections kept in all; one more is closed instead.
pub const CONNECTIONS_MAX: usize = 4096;
/// More threads than this share.
const SHARDS: usize = 64;

static NEXT_SHARD: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SHARD: Cell<usize> = Cell::new(NEXT_SHARD.fetch_add(1, Relaxed) % SHARDS);
}

/// Connections by the place they go to. Places that differ in anything (host, authority, name, certificate) have other keys.
pub struct Pool {
    shards: Box<[Shard]>,
    kept: AtomicUsize,
}

type Shard = Mutex<FxHashMap<u64, Vec<Idle>>>;

struct Idle {
    stream: Stream,
    since: Instant,
}

impl Default for Pool {
    fn default() -> Pool {
        Pool { shards: (0..SHARDS).map(|_| Shard::default()).collect(), kept: AtomicUsize::new(0) }
    }
}

impl Pool {
    /// A connection to `place`: the one this core used last, else another core's.
    pub fn take(&self, place: u64) -> Option<Stream> {
        let own = SHARD.get();
        if self.kept.load(Relaxed) == 0 {
            return None;
        }
        (0..SHARDS).find_map(|step| self.take_from(&self.shards[(own + step) % SHARDS], place))
    }

    fn take_from(&self, shard: &Shard, place: u64) -> Option<Stream> {
        loop {
            let mut idle = shard.lock().get_mut(&place)?.pop()?;
            self.kept.fetch_sub(1, Relaxed);
            if idle.is_usable() {
                return Some(idle.stream);
            }
        }
    }

    /// Keeps a connection whose last answer was read to its end.
    pub fn put(&self, place: u64, stream: Stream) {
        if self.kept.fetch_add(1, Relaxed) >= CONNECTIONS_MAX {
            self.kept.fetch_sub(1, Relaxed);
            return;
        }
        self.shards[SHARD.get()].lock().entry(place).or_default().push(Idle { stream, since: Instant::now() });
    }

    /// Closes what was idle for too long or is of no use any more.
    pub fn sweep(&self) {
        for shard in &*self.shards {
            let mut places = shard.lock();
            places.retain(|_, idle| {
                let before = idle.len();
                idle.retain_mut(Idle::is_usable);
                self.kept.fetch_sub(before - idle.len(), Relaxed);
                !idle.is_empty()
            });
        }
    }

    /// Connections kept.
    pub fn kept(&self) -> usize {
        self.kept.load(Relaxed)
    }
}

impl Idle {
    /// Not too old, not closed, and nothing has come. Whatever can be read now is one or the other.
    fn is_usable(&mut self) -> bool {
        // Without tokio's budget, which would make a connection that is due to be read look quiet.
        let mut byte = [0; 1];
        self.since.elapsed() < IDLE_MAX && tokio::task::unconstrained(self.stream.read(&mut byte)).now_or_never().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora_core::protocols::l4::stream::Stream as L4Stream;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    async fn pair(listener: &TcpListener) -> (Stream, TcpStream) {
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        (Box::new(L4Stream::from(ours.unwrap())), theirs.unwrap().0)
    }

    /// Until the kernel has told tokio what the other side did.
    async fn until(mut is_so: impl FnMut() -> bool) {
        for _ in 0..1000 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("not within a second");
    }

    #[tokio::test]
    async fn the_last_one_comes_first_and_places_do_not_mix() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pool = Pool::default();
        let mut theirs = Vec::new();
        let mut ids = Vec::new();
        for place in [1, 1, 2] {
            let (ours, other) = pair(&listener).await;
            ids.push(ours.id());
            theirs.push(other);
            pool.put(place, ours);
        }
        assert!(pool.take(3).is_none());
        let taken: Vec<_> = [1, 1, 1, 2].map(|place| pool.take(place).map(|stream| stream.id())).into();
        assert_eq!(taken, [Some(ids[1]), Some(ids[0]), None, Some(ids[2])]);
        assert_eq!(pool.kept(), 0);
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_or_spoke_is_not_given_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pool = Pool::default();
        let (quiet, _other) = pair(&listener).await;
        let id = quiet.id();
        pool.put(1, quiet);
        let (closed, other) = pair(&listener).await;
        pool.put(1, closed);
        drop(other);
        let (spoke, mut other) = pair(&listener).await;
        pool.put(2, spoke);
        other.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
        until(|| {
            pool.sweep();
            pool.kept() == 1
        })
        .await;
        assert!(pool.take(2).is_none());
        assert_eq!(pool.take(1).map(|stream| stream.id()), Some(id));
    }

    #[tokio::test]
    async fn one_connection_more_than_the_bound_is_closed() {
        let pool = Pool::default();
        let mut others = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let (ours, other) = tokio::io::duplex(16);
            others.push(other);
            pool.put(1, Box::new(ours));
        }
        let (ours, mut other) = tokio::io::duplex(16);
        pool.put(1, Box::new(ours));
        assert_eq!(pool.kept(), CONNECTIONS_MAX);
        assert_eq!(other.read(&mut [0; 1]).await.unwrap(), 0, "its other side sees the end");
        assert!(pool.take(1).is_some());
        let (ours, _other) = tokio::io::duplex(16);
        pool.put(1, Box::new(ours));
        assert_eq!(pool.kept(), CONNECTIONS_MAX);
    }
}
