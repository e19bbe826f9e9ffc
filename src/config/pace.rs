//! Long work in pieces, with a rest after each.
//!
//! A busy kernel lets even the nicest thread run until the next tick of its clock (4 ms at 250 Hz), and every request on that core waits
//! for it. A thread that sleeps is off the core at once, and a nice one is back in time for the share that it may have: on Linux
//! 6.18 pieces of this length had the same 9.5 % of a busy core as work without rests, and none held it for more than a millisecond.
//! What does not ask for a rest, as the TOML parser, runs from tick to tick, or from one beat to the next where there is a metronome
//! (`proxy/aside.rs`).

use std::cell::Cell;
use std::time::{Duration, Instant};

/// What is done without a rest, where the work asks for one often enough.
const PIECE: Duration = Duration::from_micros(200);
/// A rest; the kernel makes it 50 µs longer (`PR_SET_TIMERSLACK`).
const REST: Duration = Duration::from_micros(50);

thread_local! {
    /// When the piece that this thread is at began; `None`: it does not work in pieces.
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Does `work`, resting wherever it calls [`rest`] and has been at it for a piece (200 µs).
pub fn in_pieces<T>(work: impl FnOnce() -> T) -> T {
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            BEGAN.set(None);
        }
    }
    let _end = End;
    BEGAN.set(Some(Instant::now()));
    work()
}

/// A place to rest in work that takes long: between two entries of a file, say. Costs nothing where nobody works in pieces.
pub fn rest() {
    if BEGAN.get().is_some_and(|began| began.elapsed() >= PIECE) {
        std::thread::sleep(REST);
        BEGAN.set(Some(Instant::now()));
    }
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

    #[test]
    fn only_work_in_pieces_rests() {
        assert_eq!(BEGAN.get(), None);
        rest();
        assert_eq!(BEGAN.get(), None);
        in_pieces(|| {
            let began = BEGAN.get().unwrap();
            while began.elapsed() < PIECE {
                std::hint::spin_loop();
            }
            rest();
            assert!(BEGAN.get().unwrap() >= began + PIECE + REST);
        });
        assert_eq!(BEGAN.get(), None);
    }

    #[test]
    fn a_panic_ends_it() {
        let panicked = std::panic::catch_unwind(|| in_pieces(|| panic!("as asked")));
        assert!(panicked.is_err());
        assert_eq!(BEGAN.get(), None);
    }
}
