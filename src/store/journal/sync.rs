//! Rounds: many ask, one does, and everyone whose question came before the doing began is answered by it.

use parking_lot::{Condvar, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// A worker thread's rounds, and who waits for them.
#[derive(Debug)]
pub struct Rounds {
    state: Mutex<State>,
    /// Wakes the worker.
    wake: Condvar,
    /// Wakes the threads that wait.
    finished: Condvar,
    done: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    started: u64,
    wanted: u64,
    stopped: bool,
}

/// The worker ended before the round was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

impl Default for Rounds {
    fn default() -> Rounds {
        Rounds { state: Mutex::default(), wake: Condvar::new(), finished: Condvar::new(), done: watch::Sender::new(0) }
    }
}

impl Rounds {
    /// Asks for a round that begins after this call; its number.
    pub fn ask(&self) -> u64 {
        let mut state = self.state.lock();
        let round = state.started + 1;
        if state.wanted < round {
            state.wanted = round;
            self.wake.notify_one();
        }
        round
    }

    /// Waits until a round is done. Cancel-safe.
    pub async fn done(&self, round: u64) -> Result<(), Stopped> {
        let mut done = self.done.subscribe();
        match done.wait_for(|last| *last >= round).await {
            // A worker that stops answers everyone with the largest number.
            Ok(last) if *last != u64::MAX => Ok(()),
            _ => Err(Stopped),
        }
    }

    /// Waits until a round is done, blocking the thread.
    pub fn wait(&self, round: u64) -> Result<(), Stopped> {
        // The worker notifies under the state's lock, so no answer falls between the check and the wait.
        let mut state = self.state.lock();
        loop {
            // Copied out: the borrow is a lock that the worker needs.
            let last = *self.done.borrow();
            match last {
                u64::MAX => return Err(Stopped),
                last if last >= round => return Ok(()),
                _ => self.finished.wait(&mut state),
            }
        }
    }

    /// The worker: waits for a question, or `interval`; `None` when it is to stop.
    pub fn begin(&self, interval: Duration) -> Option<Round<'_>> {
        let mut state = self.state.lock();
        let deadline = std::time::Instant::now() + interval;
        while state.wanted <= state.started && !state.stopped && !self.wake.wait_until(&mut state, deadline).timed_out() {}
        if state.stopped {
            return None;
        }
        let asked = state.wanted > state.started;
        state.started += 1;
        Some(Round { rounds: self, number: state.started, asked })
    }

    /// Tells the worker to stop before its next round.
    pub fn stop(&self) {
        self.state.lock().stopped = true;
        self.wake.notify_all();
    }

    /// The worker has stopped: nobody waits any longer.
    pub fn stopped(&self) {
        let _state = self.state.lock();
        self.done.send_replace(u64::MAX);
        self.finished.notify_all();
    }
}

/// A round that has begun.
#[derive(Debug)]
pub struct Round<'a> {
    rounds: &'a Rounds,
    number: u64,
    /// Somebody waits for it.
    pub asked: bool,
}

impl Round<'_> {
    /// Everything asked before it began is done. A round that failed is dropped instead: who waits goes on waiting for the
    /// next, which is due at once.
    pub fn done(self) {
        let _state = self.rounds.state.lock();
        self.rounds.done.send_replace(self.number);
        self.rounds.finished.notify_all();
    }

    /// It failed: another is due.
    pub fn failed(self) {
        let mut state = self.rounds.state.lock();
        let next = state.started + 1;
        state.wanted = state.wanted.max(next);
    }
}
