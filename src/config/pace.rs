//! Long work in pieces, with a rest after each.
//!
//! A busy kernel lets even the nicest thread run until the next tick of its clock (4 ms at 250 Hz), and every request on that core waits
//! for it. A thread that sleeps is off the core at once, and a nice one is back in time for the share that it may have: on Linux
//! 6.18 pieces of this length had the same 9.5 % of a busy core as work without rests, and none held it for more than a millisecond.
//! What does not ask for a rest, as the TOML parser ([`unbroken`]), would run from tick to tick: a [`Metronome`] beside it makes the kernel
//! choose again.

use std::cell::RefCell;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is done without a rest, where the work asks for one often enough.
const PIECE: Duration = Duration::from_micros(200);
/// A rest; the kernel makes it 50 µs longer (`PR_SET_TIMERSLACK`).
const REST: Duration = Duration::from_micros(50);
/// How often a metronome beats. Shorter than the requests of a busy core wait for each other; at half of it the beats took as much of the
/// core as the work.
const BEAT: Duration = Duration::from_micros(400);

thread_local! {
    /// `None`: this thread does not work in pieces.
    static WORKING: RefCell<Option<Working>> = const { RefCell::new(None) };
}

struct Working {
    /// When the piece began.
    began: Instant,
    metronome: Option<Arc<Metronome>>,
}

/// What makes the kernel choose again between nice work that does not rest and a thread of requests that waits behind it. The kernel does
/// so whenever a thread wakes on that core, else at the ticks of its clock. Where there are other cores with nothing to do the metronome
/// may wake there, but so may the thread of requests.
#[derive(Debug, Default)]
pub struct Metronome {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Still,
    Beating,
    Ended,
}

impl Metronome {
    /// Beats whenever it is to, until [`Metronome::end`]. Blocking; on a thread that is not nice, or the kernel makes nothing of its waking.
    pub fn run(&self) {
        loop {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let state = self.changed.wait_while(state, |state| *state == State::Still).unwrap_or_else(PoisonError::into_inner);
            if *state == State::Ended {
                return;
            }
            drop(state);
            std::thread::sleep(BEAT);
        }
    }

    /// Ends [`Metronome::run`].
    pub fn end(&self) {
        self.set(State::Ended);
    }

    fn set(&self, to: State) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state != State::Ended {
            *state = to;
        }
        self.changed.notify_all();
    }
}

/// Does `work`, resting wherever it calls [`rest`] and has been at it for a piece (200 µs). `metronome`, if there is one, beats where it
/// cannot. Not to be nested.
pub fn in_pieces<T>(metronome: Option<Arc<Metronome>>, work: impl FnOnce() -> T) -> T {
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            WORKING.take();
        }
    }
    let _end = End;
    WORKING.set(Some(Working { began: Instant::now(), metronome }));
    work()
}

/// Does `work` that never calls [`rest`], beside the metronome if this thread works in pieces and has one. Not to be nested.
pub fn unbroken<T>(work: impl FnOnce() -> T) -> T {
    struct Beating(Option<Arc<Metronome>>);
    impl Drop for Beating {
        fn drop(&mut self) {
            if let Some(metronome) = &self.0 {
                metronome.set(State::Still);
            }
        }
    }
    let beating = Beating(WORKING.with_borrow(|working| working.as_ref()?.metronome.clone()));
    if let Some(metronome) = &beating.0 {
        metronome.set(State::Beating);
    }
    work()
}

/// A place to rest in work that takes long: between two entries of a file, say. Costs nothing where nobody works in pieces.
pub fn rest() {
    WORKING.with_borrow_mut(|working| {
        if let Some(working) = working
            && working.began.elapsed() >= PIECE
        {
            std::thread::sleep(REST);
            working.began = Instant::now();
        }
    });
}

/// Frees many things one by one.
pub fn free(many: impl IntoIterator) {
    for one in many {
        drop(one);
        rest();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::AssertUnwindSafe;

    fn began() -> Option<Instant> {
        WORKING.with_borrow(|working| Some(working.as_ref()?.began))
    }

    #[test]
    fn only_work_in_pieces_rests() {
        assert_eq!(began(), None);
        rest();
        assert_eq!(began(), None);
        in_pieces(None, || {
            let before = began().unwrap();
            while before.elapsed() < PIECE {
                std::hint::spin_loop();
            }
            rest();
            assert!(began().unwrap() >= before + PIECE + REST);
        });
        assert_eq!(began(), None);
    }

    #[test]
    fn the_metronome_beats_for_unbroken_work_in_pieces_only() {
        let metronome = Arc::<Metronome>::default();
        let state = || *metronome.state.lock().unwrap();
        unbroken(|| assert_eq!(state(), State::Still));
        in_pieces(Some(metronome.clone()), || {
            assert_eq!(state(), State::Still);
            unbroken(|| assert_eq!(state(), State::Beating));
            assert_eq!(state(), State::Still);
        });
        let fails = AssertUnwindSafe(|| in_pieces(Some(metronome.clone()), || unbroken(|| panic!("as asked"))));
        let panicked = std::panic::catch_unwind(fails);
        assert!(panicked.is_err());
        assert_eq!(state(), State::Still);
    }

    #[test]
    fn the_metronome_ends_whatever_it_was_at() {
        let metronome = Metronome::default();
        for at in [State::Still, State::Beating] {
            *metronome.state.lock().unwrap() = at;
            std::thread::scope(|scope| {
                let running = scope.spawn(|| metronome.run());
                // Until it waits or has beaten: it is at it then, and not ended before it began.
                std::thread::sleep(2 * BEAT);
                assert!(!running.is_finished());
                metronome.end();
            });
        }
        metronome.set(State::Beating);
        assert_eq!(*metronome.state.lock().unwrap(), State::Ended);
    }

    #[test]
    fn a_panic_ends_it() {
        let panicked = std::panic::catch_unwind(|| in_pieces(None, || panic!("as asked")));
        assert!(panicked.is_err());
        assert_eq!(began(), None);
    }
}
