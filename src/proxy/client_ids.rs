//! The request ids that clients chose, so that a row can be asked for by them. In memory, of this process, the latest only:
//! the ledger knows weir's own ids.

use crate::engine::id::IdText;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::hash::BuildHasher;

/// Ids kept; the oldest goes first. Some 5 MiB when full.
pub const CLIENT_IDS_KEPT: usize = 65_536;
/// Workers that note an id at the same moment seldom meet.
const SHARDS: usize = 16;

/// From `(account, client's id)` to weir's.
#[derive(Debug)]
pub struct ClientIds {
    hasher: std::hash::RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    ids: FxHashMap<u64, IdText>,
    order: VecDeque<u64>,
}

impl Default for ClientIds {
    fn default() -> ClientIds {
        ClientIds { hasher: std::hash::RandomState::new(), shards: [const { Mutex::new(Shard::new()) }; SHARDS] }
    }
}

impl Shard {
    const fn new() -> Shard {
        Shard { ids: FxHashMap::with_hasher(rustc_hash::FxBuildHasher), order: VecDeque::new() }
    }
}

impl ClientIds {
    /// Notes that `client_id` of `account` is weir's `id`. A repeated one means the latest request.
    pub fn note(&self, account: &str, client_id: &[u8], id: IdText) {
        let hash = self.hasher.hash_one((account, client_id));
        let mut shard = self.shards[hash as usize % SHARDS].lock();
        if shard.ids.insert(hash, id).is_none() {
            shard.order.push_back(hash);
            if shard.order.len() > CLIENT_IDS_KEPT / SHARDS
                && let Some(oldest) = shard.order.pop_front()
            {
                shard.ids.remove(&oldest);
            }
        }
    }

    /// weir's id of the request that `account` called `client_id`, while it is known.
    pub fn find(&self, account: &str, client_id: &[u8]) -> Option<IdText> {
        // Of two names with one hash the later would win; the row is looked up under the account all the same.
        let hash = self.hasher.hash_one((account, client_id));
        self.shards[hash as usize % SHARDS].lock().ids.get(&hash).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::id::RequestId;

    #[test]
    fn the_latest_are_found_by_their_account_alone() {
        let ids = ClientIds::default();
        let id = |number: u64| RequestId::new(number, 1).text();
        for number in 0..2 * CLIENT_IDS_KEPT as u64 {
            ids.note("a", number.to_string().as_bytes(), id(number));
        }
        let last = 2 * CLIENT_IDS_KEPT as u64 - 1;
        assert_eq!(ids.find("a", last.to_string().as_bytes()), Some(id(last)));
        assert_eq!(ids.find("b", last.to_string().as_bytes()), None);
        assert_eq!(ids.find("a", b"0"), None);
        let kept: usize = ids.shards.iter().map(|shard| shard.lock().ids.len()).sum();
        assert!(kept <= CLIENT_IDS_KEPT);
        ids.note("a", last.to_string().as_bytes(), id(7));
        assert_eq!(ids.find("a", last.to_string().as_bytes()), Some(id(7)));
    }
}
