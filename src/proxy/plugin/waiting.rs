//! What waits for a settlement, by request id, and since when nobody has been heard of it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Things that wait to be taken.
pub struct Waiting<T> {
    held: HashMap<Box<str>, (T, Instant)>,
}

impl<T> Default for Waiting<T> {
    fn default() -> Waiting<T> {
        Waiting { held: HashMap::new() }
    }
}

impl<T> Waiting<T> {
    /// How many.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Waits from `now` on.
    pub fn insert(&mut self, id: Box<str>, thing: T, now: Instant) {
        self.held.insert(id, (thing, now));
    }

    /// Its wait is over.
    pub fn take(&mut self, id: &str) -> Option<T> {
        self.held.remove(id).map(|(thing, _)| thing)
    }

    /// Whoever is to take it is alive.
    pub fn heard_of(&mut self, id: &str, now: Instant) -> Option<&mut T> {
        let (thing, heard) = self.held.get_mut(id)?;
        *heard = now;
        Some(thing)
    }

    /// Takes those that were not heard of for longer than `silence`.
    pub fn silent(&mut self, silence: Duration, now: Instant) -> Vec<(Box<str>, T)> {
        let late = self.held.extract_if(|_, (_, heard)| now.saturating_duration_since(*heard) > silence);
        late.map(|(id, (thing, _))| (id, thing)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_speaks_of_is_taken_away() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut waiting = Waiting::default();
        for id in ["settled", "running", "forgotten"] {
            waiting.insert(id.into(), id, start);
        }
        assert_eq!(waiting.take("settled"), Some("settled"));
        assert_eq!(waiting.heard_of("running", start + 8 * second), Some(&mut "running"));
        assert!(waiting.silent(10 * second, start + 10 * second).is_empty());
        assert_eq!(waiting.silent(10 * second, start + 11 * second), [("forgotten".into(), "forgotten")]);
        assert_eq!((waiting.len(), waiting.take("settled"), waiting.heard_of("forgotten", start)), (1, None, None));
    }
}
