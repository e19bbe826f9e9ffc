//! Append-only local files that hold what the database does not have yet.
//!
//! A record is one `pwrite` into a preallocated file: when the call returns it is in the page cache and survives any death
//! of the process. Power loss is bounded by [`SYNC_INTERVAL`], or zero for who waits for [`Journal::synced`].
//!
//! Room is promised before it is needed: who is admitted has the room for its closing record allocated already, so a disk
//! that fills up later stops admissions and loses nothing.
//!
//! Each process writes files of its own (an *epoch*), locked while it lives. Another process that finds an epoch without
//! its lock replays it; an old and a new server can therefore share the folder during an upgrade.
//!
//! There is no checkpoint: a segment is an [`Arc`], whoever still needs one of its records holds a clone, and a segment that
//! nobody holds is deleted. Replaying a segment that was already stored is harmless, because storing is idempotent.

mod epoch;
pub mod scan;
mod segment;
mod sync;

pub use epoch::Orphan;
pub use segment::Segment;
pub use sync::Rounds;

use epoch::Epoch;
use parking_lot::Mutex;
use segment::Shard;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// How often what was written is made safe against power loss. One second: a flush a second costs nothing measurable, and
/// it is the bound operators know from other stores.
pub const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of a segment. Small enough to be replayed in tens of milliseconds and to be allocated in microseconds; large
/// enough for thousands of requests.
pub const SEGMENT_BYTES: u64 = 4 << 20;

/// A record's frame never takes more; [`crate::store::ledger::codec`] proves its part.
pub const RECORD_BYTES_MAX: u64 = 4096;

/// Segments of one journal at most (4 GiB): reached when the database has not taken anything for very long. Admission
/// stops there.
pub const SEGMENTS_MAX: usize = 1024;

/// Write shards at most. More threads than this share.
const SHARDS_MAX: usize = 64;

/// How a journal is laid out. Tests use small ones.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Bytes of a segment; more than twice [`RECORD_BYTES_MAX`].
    pub segment_bytes: u64,
    /// Segments at most.
    pub segments_max: usize,
    /// Files written to at the same time.
    pub shards: usize,
}

impl Default for Layout {
    fn default() -> Layout {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Layout { segment_bytes: SEGMENT_BYTES, segments_max: SEGMENTS_MAX, shards: threads.min(SHARDS_MAX) }
    }
}

/// The journal of this process.
#[derive(Debug)]
pub struct Journal {
    epoch: Epoch,
    layout: Layout,
    shards: Box<[Mutex<Shard>]>,
    shared: Arc<Shared>,
}

/// What shards and segments count together.
#[derive(Debug, Default)]
struct Shared {
    /// Segments on disk.
    segments: AtomicUsize,
    /// A segment was made since the folder was last synced.
    folder_dirty: AtomicBool,
    /// Writes that failed since the start.
    faults: AtomicU64,
}

/// Room for a closing record, in bytes; given back when it is written or no longer needed.
#[derive(Debug)]
#[must_use]
pub struct Promise(u64);

impl Journal {
    /// Starts an epoch of this process in `folder` (made when missing, readable by the owner only), and takes over the
    /// epochs whose processes are gone.
    pub fn start(folder: &Path, layout: Layout, now_ms: u64) -> io::Result<(Journal, Vec<Orphan>)> {
        let (epoch, orphans) = Epoch::start(folder, now_ms)?;
        let shards = (0..layout.shards.max(1)).map(|number| Mutex::new(Shard::new(number as u32))).collect();
        Ok((Journal { epoch, layout, shards, shared: Arc::default() }, orphans))
    }

    /// The number of this process's epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch.number
    }

    /// The shard of the calling thread.
    pub fn shard_of_thread(&self) -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! { static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed); }
        MINE.with(|mine| *mine) % self.shards.len()
    }

    /// Writes a record that `put` appends, and promises `extra` bytes of room plus the record's own size for a later one.
    pub fn open(&self, shard: usize, extra: u64, put: impl FnOnce(&mut Vec<u8>)) -> io::Result<(Arc<Segment>, Promise)> {
        let mut shard = self.shards[shard].lock();
        let size = shard.frame(put);
        let promise = (size + extra).min(RECORD_BYTES_MAX);
        shard.make_room(self, size + promise)?;
        let segment = shard.write(self)?;
        shard.promised += promise;
        Ok((segment, Promise(promise)))
    }

    /// Writes a record in room that is not promised to anyone.
    pub fn append(&self, shard: usize, put: impl FnOnce(&mut Vec<u8>)) -> io::Result<Arc<Segment>> {
        let mut shard = self.shards[shard].lock();
        let size = shard.frame(put);
        shard.make_room(self, size)?;
        shard.write(self)
    }

    /// Writes a record in the room promised for it. The promise is used up even when the write fails.
    pub fn close(&self, shard: usize, promise: Promise, put: impl FnOnce(&mut Vec<u8>)) -> io::Result<Arc<Segment>> {
        let mut shard = self.shards[shard].lock();
        shard.frame(put);
        shard.promised -= promise.0;
        shard.write(self)
    }

    /// The segment a shard writes to, if it has one.
    pub fn active(&self, shard: usize) -> Option<Arc<Segment>> {
        self.shards[shard].lock().active.clone()
    }

    /// Makes everything written before this call safe against power loss. Blocking.
    pub fn sync(&self) -> io::Result<()> {
        if self.shared.folder_dirty.swap(false, Ordering::AcqRel)
            && let Err(error) = self.epoch.sync_folder()
        {
            self.shared.folder_dirty.store(true, Ordering::Release);
            return Err(error);
        }
        for shard in &self.shards {
            let dirty = std::mem::take(&mut shard.lock().dirty);
            for (done, segment) in dirty.iter().enumerate() {
                if let Err(error) = segment.sync() {
                    shard.lock().dirty.extend_from_slice(&dirty[done..]);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Deletes the segments that nobody needs any more, and closes half-used ones that idle, so that they can go too.
    pub fn sweep(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.retire_idle(&self.layout);
            shard.sweep(self);
        }
    }

    /// Segments on disk now.
    pub fn segments(&self) -> usize {
        self.shared.segments.load(Ordering::Relaxed)
    }

    /// Writes that failed since the start.
    pub fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::Relaxed)
    }

    /// Epochs whose processes have died since; nothing is taken over twice.
    pub fn orphans(&self) -> io::Result<Vec<Orphan>> {
        self.epoch.orphans()
    }

    /// Another process uses the folder at the same time.
    pub fn is_shared(&self) -> bool {
        self.epoch.is_shared()
    }

    /// Ends the epoch: what is still needed stays for the next process, else every trace goes.
    pub fn finish(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.retire_all();
            shard.sweep(self);
        }
        if self.segments() == 0 {
            self.epoch.remove();
        }
    }

    fn segment_path(&self, shard: u32, number: u32) -> PathBuf {
        self.epoch.segment_path(shard, number)
    }
}

#[cfg(test)]
mod tests;
