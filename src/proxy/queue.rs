//! How many requests are served at once, and who is next when it is more than that.
//!
//! While there is room a request takes its place with one atomic step. When there is none it waits in its account's queue;
//! places that become free go round the accounts that wait, [`Weight`] requests at a time, so that one tenant's burst delays
//! that tenant. What cannot wait ([`QUEUE_LENGTH_MAX`]) or has waited too long ([`QUEUE_WAIT`]) is refused.

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::sync::oneshot;

/// A request waits this long for a place: a burst passes, and a client's own timeout is far off. Then it is refused.
pub const QUEUE_WAIT: Duration = Duration::from_secs(2);
/// Requests that wait at most, over all accounts: what a process that serves 500 a second gets done in [`QUEUE_WAIT`]. A
/// further one is refused at once.
pub const QUEUE_LENGTH_MAX: usize = 1024;
/// The most places in a row that go to one account while others wait, whatever its tier.
pub const WEIGHT_MAX: u32 = 16;

/// How many places an account gets in its turn: more for a higher tier, never none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight(u32);

impl Weight {
    /// The weight of a tier's rank; callers without a tier have rank 0.
    pub fn of_rank(rank: u32) -> Weight {
        Weight(rank.saturating_add(1).min(WEIGHT_MAX))
    }
}

/// No place, and none to wait for.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// The places of the process.
#[derive(Debug)]
pub struct Queue {
    most: u32,
    in_service: AtomicU32,
    waiting: AtomicUsize,
    lines: Mutex<Lines>,
}

/// A place; given on, or back, when it is dropped.
#[derive(Debug)]
pub struct Place {
    /// `None` once the place was given back.
    queue: Option<Arc<Queue>>,
}

/// Who waits.
#[derive(Debug, Default)]
struct Lines {
    by_account: FxHashMap<Arc<str>, Line>,
    /// The accounts that wait, in turn.
    turns: VecDeque<Arc<str>>,
    next_ticket: u64,
}

/// One account's queue.
#[derive(Debug)]
struct Line {
    waiters: VecDeque<(u64, oneshot::Sender<Place>)>,
    weight: Weight,
    /// Places it still gets in this turn.
    left: u32,
}

impl Queue {
    /// `most` places.
    pub fn new(most: u32) -> Arc<Queue> {
        Arc::new(Queue { most, in_service: AtomicU32::new(0), waiting: AtomicUsize::new(0), lines: Mutex::default() })
    }

    /// Requests in service.
    pub fn in_service(&self) -> u32 {
        self.in_service.load(SeqCst)
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    /// Takes a place, or waits for one in the account's queue, at most [`QUEUE_WAIT`].
    /// Cancel-safe: a dropped call leaves the queue, and a place that was just given to it goes to the next.
    pub async fn enter(self: &Arc<Queue>, account: &Arc<str>, weight: Weight) -> Result<Place, Full> {
        if self.waiting() == 0
            && let Some(place) = self.take()
        {
            return Ok(place);
        }
        let mut waiting = self.stand(account, weight)?;
        match tokio::time::timeout(QUEUE_WAIT, &mut waiting.place).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(Full),
        }
    }

    /// A place, if there is one, without asking who waits.
    fn take(self: &Arc<Queue>) -> Option<Place> {
        self.in_service.fetch_update(SeqCst, SeqCst, |now| (now < self.most).then_some(now + 1)).ok()?;
        Some(Place { queue: Some(self.clone()) })
    }

    fn stand(self: &Arc<Queue>, account: &Arc<str>, weight: Weight) -> Result<Waiting, Full> {
        let (give, place) = oneshot::channel();
        let ticket = {
            let mut lines = self.lines.lock();
            if self.waiting() >= QUEUE_LENGTH_MAX {
                return Err(Full);
            }
            self.waiting.fetch_add(1, SeqCst);
            lines.push(account, weight, give)
        };
        // A place that became free before anybody was seen to wait.
        self.hand_out();
        Ok(Waiting { queue: self.clone(), account: account.clone(), ticket, place })
    }

    /// Gives free places to those who wait. Whoever frees a place or begins to wait calls this afterwards, so none is missed.
    fn hand_out(self: &Arc<Queue>) {
        if self.waiting() == 0 {
            return;
        }
        let mut lines = self.lines.lock();
        while !lines.turns.is_empty() {
            let Some(place) = self.take() else { return };
            let Some(waiter) = lines.pop() else {
                place.undo();
                return;
            };
            self.waiting.fetch_sub(1, SeqCst);
            if let Err(place) = waiter.send(place) {
                // It has just given up. Dropping the place here would come back to this lock.
                place.undo();
            }
        }
    }
}

impl Place {
    /// Gives the place back without looking who waits: for the holder of the lock.
    fn undo(mut self) {
        if let Some(queue) = self.queue.take() {
            queue.in_service.fetch_sub(1, SeqCst);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            queue.in_service.fetch_sub(1, SeqCst);
            queue.hand_out();
        }
    }
}

impl Lines {
    fn push(&mut self, account: &Arc<str>, weight: Weight, give: oneshot::Sender<Place>) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let line = self.by_account.entry(account.clone()).or_insert_with(|| {
            self.turns.push_back(account.clone());
            Line { waiters: VecDeque::new(), weight, left: weight.0 }
        });
        line.weight = weight;
        line.waiters.push_back((ticket, give));
        ticket
    }

    /// The one whose turn it is.
    fn pop(&mut self) -> Option<oneshot::Sender<Place>> {
        let account = self.turns.front()?.clone();
        let line = self.by_account.get_mut(&account)?;
        let (_, waiter) = line.waiters.pop_front()?;
        line.left = line.left.saturating_sub(1);
        if line.waiters.is_empty() {
            self.turns.pop_front();
            self.by_account.remove(&account);
        } else if line.left == 0 {
            line.left = line.weight.0;
            self.turns.rotate_left(1);
        }
        Some(waiter)
    }

    /// Takes one out that waits no more. Whether it was still there.
    fn remove(&mut self, account: &Arc<str>, ticket: u64) -> bool {
        let Some(line) = self.by_account.get_mut(account) else { return false };
        let Some(at) = line.waiters.iter().position(|(one, _)| *one == ticket) else { return false };
        line.waiters.remove(at);
        if line.waiters.is_empty() {
            self.by_account.remove(account);
            self.turns.retain(|one| one != account);
        }
        true
    }
}

/// A place in a queue.
struct Waiting {
    queue: Arc<Queue>,
    account: Arc<str>,
    ticket: u64,
    place: oneshot::Receiver<Place>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.queue.lines.lock().remove(&self.account, self.ticket) {
            self.queue.waiting.fetch_sub(1, SeqCst);
        }
        // A place that was given in the meantime drops with the receiver, behind the lock, and goes on to the next.
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    type Entering = Pin<Box<dyn Future<Output = Result<Place, Full>>>>;

    fn enter(queue: &Arc<Queue>, account: &str, rank: u32) -> Entering {
        let (queue, account) = (queue.clone(), Arc::from(account));
        let mut entering: Entering = Box::pin(async move { queue.enter(&account, Weight::of_rank(rank)).await });
        // Takes its place in the queue now; a place taken at once would be a mistake of the test.
        assert!(poll(&mut entering).is_pending());
        entering
    }

    fn poll(entering: &mut Entering) -> Poll<Result<Place, Full>> {
        entering.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    /// Frees one place after another and notes who gets it.
    fn order(queue: &Arc<Queue>, first: Place, waiting: Vec<(&'static str, Entering)>) -> String {
        let (mut place, mut waiting, mut order) = (Some(first), waiting, String::new());
        while !waiting.is_empty() {
            drop(place.take());
            let at = waiting.iter_mut().position(|(_, entering)| match poll(entering) {
                Poll::Ready(got) => {
                    place = Some(got.unwrap());
                    true
                }
                Poll::Pending => false,
            });
            order.push_str(waiting.remove(at.unwrap()).0);
            assert_eq!(queue.in_service(), 1);
        }
        drop(place);
        assert_eq!((queue.in_service(), queue.waiting()), (0, 0));
        assert!(queue.lines.lock().by_account.is_empty() && queue.lines.lock().turns.is_empty());
        order
    }

    #[test]
    fn places_go_round_the_accounts_by_weight() {
        let check = |who: &[(&'static str, u32)], expected: &str| {
            let runtime = runtime();
            let _guard = runtime.enter();
            let queue = Queue::new(1);
            let first = queue.enter(&Arc::from("x"), Weight::of_rank(0)).now_or_never().unwrap().unwrap();
            let waiting = who.iter().map(|(account, rank)| (*account, enter(&queue, account, *rank))).collect();
            assert_eq!(order(&queue, first, waiting), expected);
        };
        check(&[("a", 0), ("a", 0), ("a", 0)], "aaa");
        check(&[("a", 0), ("a", 0), ("a", 0), ("b", 0), ("b", 0)], "ababa");
        check(&[("a", 0), ("a", 0), ("a", 0), ("b", 1), ("b", 1), ("b", 1), ("b", 1)], "abbabba");
        check(&[("a", 0), ("b", 0), ("c", 0), ("a", 0)], "abca");
    }

    #[test]
    fn a_waiter_that_leaves_takes_nothing_with_it() {
        let runtime = runtime();
        let _guard = runtime.enter();
        let queue = Queue::new(1);
        let first = queue.enter(&Arc::from("x"), Weight::of_rank(0)).now_or_never().unwrap().unwrap();
        let (gone, mut stays) = (enter(&queue, "a", 0), enter(&queue, "b", 0));
        assert_eq!(queue.waiting(), 2);
        drop(gone);
        assert_eq!(queue.waiting(), 1);
        drop(first);
        let Poll::Ready(Ok(place)) = poll(&mut stays) else { panic!("the place went nowhere") };
        // Given, not yet looked at, and dropped: it goes on.
        let (unread, mut last) = (enter(&queue, "c", 0), enter(&queue, "d", 0));
        drop(place);
        drop(unread);
        assert!(matches!(poll(&mut last), Poll::Ready(Ok(_))));
        drop(last);
        assert_eq!((queue.in_service(), queue.waiting()), (0, 0));
    }

    #[test]
    fn beyond_the_bound_nobody_waits() {
        let runtime = runtime();
        let _guard = runtime.enter();
        let queue = Queue::new(1);
        let first = queue.enter(&Arc::from("x"), Weight::of_rank(0)).now_or_never().unwrap().unwrap();
        let waiting: Vec<Entering> = (0..QUEUE_LENGTH_MAX).map(|_| enter(&queue, "a", 0)).collect();
        let refused = queue.enter(&Arc::from("b"), Weight::of_rank(0)).now_or_never();
        assert_eq!(refused.map(|result| result.is_err()), Some(true));
        drop(waiting);
        drop(first);
        assert!(queue.enter(&Arc::from("b"), Weight::of_rank(0)).now_or_never().unwrap().is_ok());
        assert_eq!((queue.in_service(), queue.waiting()), (0, 0));
    }

    #[test]
    fn many_at_once_are_never_more_than_there_are_places() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
        let queue = Queue::new(3);
        let served = Arc::new(AtomicU32::new(0));
        runtime.block_on(async {
            let tasks: Vec<_> = (0..400)
                .map(|number| {
                    let (queue, served) = (queue.clone(), served.clone());
                    tokio::spawn(async move {
                        let place = queue.enter(&Arc::from(format!("a{}", number % 7)), Weight::of_rank(number % 3)).await.unwrap();
                        assert!(queue.in_service() <= 3);
                        tokio::task::yield_now().await;
                        served.fetch_add(1, SeqCst);
                        drop(place);
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
        });
        assert_eq!((served.load(SeqCst), queue.in_service(), queue.waiting()), (400, 0, 0));
    }
}
