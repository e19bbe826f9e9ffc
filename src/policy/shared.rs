//! `ngx.shared`: dictionaries that all workers share, bounded.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::LazyLock;

/// The process's dictionaries: they outlive a reload and belong to no version of a policy.
pub(super) static SHARED: LazyLock<Shared> = LazyLock::new(Shared::default);

/// Dictionaries at most; another one is an error in the policy.
const DICTIONARIES_MAX: usize = 16;
/// Bytes of keys, values and [`ENTRY_BYTES`] each in one dictionary. When it is full, what has expired goes; then writes are
/// refused with `no memory`, as ngx_lua's `safe_set` does.
const BYTES_MAX: usize = 4 << 20;
/// What an entry takes besides its key and value.
const ENTRY_BYTES: usize = 96;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Stored {
    Boolean(bool),
    Number(f64),
    Text(Box<[u8]>),
}

#[derive(Debug)]
struct Entry {
    value: Stored,
    /// Milliseconds since the epoch; 0: never.
    expires_ms: u64,
}

#[derive(Debug, Default)]
struct Dictionary {
    entries: HashMap<Box<[u8]>, Entry>,
    bytes: usize,
}

/// Dictionaries by name. The lock is held for one operation on memory.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<HashMap<Box<str>, Dictionary>>);

impl Entry {
    fn bytes(&self, key: &[u8]) -> usize {
        ENTRY_BYTES + key.len() + if let Stored::Text(text) = &self.value { text.len() } else { 0 }
    }

    fn is_alive(&self, now_ms: u64) -> bool {
        self.expires_ms == 0 || self.expires_ms > now_ms
    }
}

impl Dictionary {
    fn remove(&mut self, key: &[u8]) {
        if let Some((key, entry)) = self.entries.remove_entry(key) {
            self.bytes -= entry.bytes(&key);
        }
    }

    fn put(&mut self, key: &[u8], entry: Entry, now_ms: u64) -> Result<(), &'static str> {
        self.remove(key);
        let bytes = entry.bytes(key);
        if self.bytes + bytes > BYTES_MAX {
            self.entries.retain(|_, entry| entry.is_alive(now_ms));
            self.bytes = self.entries.iter().map(|(key, entry)| entry.bytes(key)).sum();
        }
        if self.bytes + bytes > BYTES_MAX {
            return Err("no memory");
        }
        self.bytes += bytes;
        self.entries.insert(key.into(), entry);
        Ok(())
    }
}

impl Shared {
    fn with<T>(&self, name: &str, act: impl FnOnce(&mut Dictionary) -> T) -> Result<T, &'static str> {
        let mut all = self.0.lock();
        if !all.contains_key(name) {
            if all.len() >= DICTIONARIES_MAX {
                return Err("there are too many shared dictionaries");
            }
            all.insert(name.into(), Dictionary::default());
        }
        all.get_mut(name).map(act).ok_or("no memory")
    }

    pub(super) fn get(&self, name: &str, key: &[u8], now_ms: u64) -> Result<Option<Stored>, &'static str> {
        self.with(name, |dictionary| dictionary.entries.get(key).filter(|entry| entry.is_alive(now_ms)).map(|entry| entry.value.clone()))
    }

    /// `value` `None` deletes. A `lifetime_ms` of 0 is for ever.
    pub(super) fn set(&self, name: &str, key: &[u8], value: Option<Stored>, lifetime_ms: u64, now_ms: u64) -> Result<(), &'static str> {
        let expires_ms = if lifetime_ms == 0 { 0 } else { now_ms.saturating_add(lifetime_ms) };
        self.with(name, |dictionary| match value {
            None => {
                dictionary.remove(key);
                Ok(())
            }
            Some(value) => dictionary.put(key, Entry { value, expires_ms }, now_ms),
        })?
    }

    /// Adds `by` to a number; one that is not there begins at `from`, if given. Returns the sum.
    pub(super) fn incr(
        &self,
        name: &str,
        key: &[u8],
        by: f64,
        from: Option<f64>,
        lifetime_ms: u64,
        now_ms: u64,
    ) -> Result<f64, &'static str> {
        self.with(name, |dictionary| {
            if let Some(entry) = dictionary.entries.get_mut(key).filter(|entry| entry.is_alive(now_ms)) {
                let Stored::Number(number) = &mut entry.value else { return Err("not a number") };
                *number += by;
                return Ok(*number);
            }
            let sum = from.ok_or("not found")? + by;
            let expires_ms = if lifetime_ms == 0 { 0 } else { now_ms.saturating_add(lifetime_ms) };
            dictionary.put(key, Entry { value: Stored::Number(sum), expires_ms }, now_ms).map(|()| sum)
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_live_as_long_as_they_should() {
        let shared = Shared::default();
        shared.set("d", b"a", Some(Stored::Number(1.0)), 100, 1_000).unwrap();
        assert_eq!(shared.get("d", b"a", 1_099).unwrap(), Some(Stored::Number(1.0)));
        assert_eq!(shared.get("d", b"a", 1_100).unwrap(), None);
        assert_eq!(shared.incr("d", b"a", 2.0, None, 0, 1_100), Err("not found"));
        assert_eq!(shared.incr("d", b"a", 2.0, Some(5.0), 0, 1_100), Ok(7.0));
        assert_eq!(shared.incr("d", b"a", 1.0, Some(5.0), 0, 9_999), Ok(8.0));
    }

    #[test]
    fn a_lifetime_without_end_does_not_run_over() {
        // What `math.huge` seconds come to.
        let (shared, huge) = (Shared::default(), u64::MAX);
        shared.set("d", b"a", Some(Stored::Number(1.0)), huge, 1_000).unwrap();
        assert_eq!(shared.incr("d", b"b", 2.0, Some(0.0), huge, 1_000), Ok(2.0));
        assert_eq!(shared.get("d", b"a", 1 << 60).unwrap(), Some(Stored::Number(1.0)));
        assert_eq!(shared.get("d", b"b", 1 << 60).unwrap(), Some(Stored::Number(2.0)));
    }

    #[test]
    fn a_full_dictionary_refuses_and_forgets_what_expired() {
        let shared = Shared::default();
        let large = || Some(Stored::Text(vec![0; BYTES_MAX / 2].into()));
        shared.set("d", b"a", large(), 10, 0).unwrap();
        assert_eq!(shared.set("d", b"b", large(), 0, 5), Err("no memory"));
        shared.set("d", b"b", large(), 0, 10).unwrap();
        shared.set("d", b"b", large(), 0, 10).unwrap();
        for index in 1..DICTIONARIES_MAX {
            shared.set(&format!("d{index}"), b"a", None, 0, 0).unwrap();
        }
        assert!(shared.get("one more", b"a", 0).is_err());
    }
}
