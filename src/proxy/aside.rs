//! Work beside the requests that must not hold them up: on a thread that is nicer than theirs, in pieces ([`pace`]) where it says
//! where it can rest, and beside a metronome where it cannot.

use crate::config::pace::{self, Metronome};
use crate::telemetry::log_lines::{self, Severity};
use rustix::process::{getpriority_process, setpriority_process};
use std::sync::Arc;

/// How much nicer such work is: where everything is busy, a thread of requests gets nine times the time of it (sched(7), weights of nice
/// values). Any more, and a reload would take longer than the second in which it should hold.
const NICER: i32 = 10;

/// Does `work` on a thread of its own that gives way to the others, and waits for it. Blocking; not for a worker. Where no thread can be
/// had it is done on the caller's.
pub fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let mut work = Some(work);
    let mut done = None;
    let metronome = Arc::<Metronome>::default();
    let nicer = || {
        // On Linux a thread has a niceness of its own.
        if let Err(error) = getpriority_process(None).and_then(|now| setpriority_process(None, now + NICER)) {
            log_lines::event(Severity::Warn, "a reload does not give way to requests: setpriority(2) is refused", &error.to_string());
        }
        done = work.take().map(|work| pace::in_pieces(Some(metronome.clone()), work));
    };
    std::thread::scope(|scope| {
        let aside = std::thread::Builder::new().name("aside".into()).spawn_scoped(scope, nicer);
        // Where it cannot be had, what cannot rest runs until the clock's tick.
        let _ = std::thread::Builder::new().name("metronome".into()).spawn_scoped(scope, || metronome.run());
        let ended = aside.map(|aside| aside.join());
        metronome.end();
        if let Ok(Err(panic)) = ended {
            std::panic::resume_unwind(panic);
        }
    });
    match (done, work) {
        (Some(done), _) => done,
        (None, Some(work)) => work(),
        // Not reached: the work is taken only to be done, and what panics in a scope panics here.
        (None, None) => unreachable!("the work is done or still here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_way_and_nobody_else_does() {
        let before = getpriority_process(None).unwrap();
        let during = aside(|| getpriority_process(None).unwrap());
        assert_eq!(during, (before + NICER).min(19));
        assert_eq!(getpriority_process(None).unwrap(), before);
    }

    #[test]
    fn a_panic_is_the_callers() {
        assert!(std::panic::catch_unwind(|| aside(|| panic!("as asked"))).is_err());
        assert!(std::panic::catch_unwind(|| aside(|| pace::unbroken(|| panic!("as asked")))).is_err());
    }
}
