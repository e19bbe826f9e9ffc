//! Segments and the shard that fills them.

use super::{Journal, Layout, RECORD_BYTES_MAX, scan};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A preallocated file of records. Whoever needs one of its records holds a clone of the `Arc`.
#[derive(Debug)]
pub struct Segment {
    path: PathBuf,
    file: File,
    salt: u32,
}

impl Segment {
    fn create(path: PathBuf, epoch: u64, shard: u32, number: u32, bytes: u64) -> io::Result<Segment> {
        let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path)?;
        let header = scan::header(epoch, shard, number);
        match allocate(&file, bytes).and_then(|()| file.write_all_at(&header, 0)) {
            Ok(()) => Ok(Segment { path, file, salt: scan::salt(&header) }),
            Err(error) => {
                // What could not be filled holds no records; leaving it would fill the disk further.
                let _ = std::fs::remove_file(&path);
                Err(error)
            }
        }
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Claims the disk blocks now, so that no later write can meet a full disk.
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    use rustix::{fs, io::Errno};
    match fs::fallocate(file, fs::FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        // A file system without preallocation: write zeros.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            let zeros = [0; 1 << 16];
            let mut at = 0;
            while at < bytes {
                let length = zeros.len().min((bytes - at) as usize);
                file.write_all_at(&zeros[..length], at)?;
                at += length as u64;
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// The files that the threads of one shard write to.
#[derive(Debug)]
pub(super) struct Shard {
    number: u32,
    /// The segment written to.
    pub(super) active: Option<Arc<Segment>>,
    /// Bytes of it in use.
    used: u64,
    /// Allocated and still empty.
    spares: VecDeque<Arc<Segment>>,
    /// Full; kept until nobody holds them.
    retired: Vec<Arc<Segment>>,
    /// Written to since the last sync.
    pub(super) dirty: Vec<Arc<Segment>>,
    /// Bytes promised to admitted requests.
    pub(super) promised: u64,
    /// The next segment's number.
    next: u32,
    /// The frame being written, its memory kept.
    frame: Vec<u8>,
    /// Bytes in use at the last sweep: an unchanged one idles.
    used_at_sweep: u64,
}

impl Shard {
    pub(super) fn new(number: u32) -> Shard {
        Shard {
            number,
            active: None,
            used: 0,
            spares: VecDeque::new(),
            retired: Vec::new(),
            dirty: Vec::new(),
            promised: 0,
            next: 0,
            frame: Vec::with_capacity(1024),
            used_at_sweep: 0,
        }
    }

    /// Builds the next frame; its size in bytes.
    pub(super) fn frame(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> u64 {
        scan::start_frame(&mut self.frame);
        put(&mut self.frame);
        debug_assert!(self.frame.len() as u64 <= RECORD_BYTES_MAX);
        self.frame.len() as u64
    }

    /// Room for `bytes` beyond what is promised, allocating when there is not.
    pub(super) fn make_room(&mut self, journal: &Journal, bytes: u64) -> io::Result<()> {
        let layout = &journal.layout;
        // A record does not straddle segments: up to a record's size at the end of each is lost.
        let usable = layout.segment_bytes.saturating_sub(scan::SEGMENT_HEADER_BYTES as u64 + RECORD_BYTES_MAX);
        loop {
            let active = if self.active.is_some() { layout.segment_bytes.saturating_sub(self.used + RECORD_BYTES_MAX) } else { 0 };
            if active + usable * self.spares.len() as u64 >= self.promised + bytes {
                return Ok(());
            }
            let spare = self.allocate(journal)?;
            self.spares.push_back(spare);
        }
    }

    fn allocate(&mut self, journal: &Journal) -> io::Result<Arc<Segment>> {
        let shared = &journal.shared;
        if shared.segments.load(Ordering::Relaxed) >= journal.layout.segments_max {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let path = journal.segment_path(self.number, self.next);
        let segment = Segment::create(path, journal.epoch(), self.number, self.next, journal.layout.segment_bytes).inspect_err(|_| {
            shared.faults.fetch_add(1, Ordering::Relaxed);
        })?;
        self.next += 1;
        shared.segments.fetch_add(1, Ordering::Relaxed);
        shared.folder_dirty.store(true, Ordering::Release);
        Ok(Arc::new(segment))
    }

    /// Writes the frame. A failed write leaves no record: the next one goes to the same place.
    pub(super) fn write(&mut self, journal: &Journal) -> io::Result<Arc<Segment>> {
        let size = self.frame.len() as u64;
        let segment = match &self.active {
            Some(active) if self.used + size <= journal.layout.segment_bytes => active.clone(),
            _ => self.rotate(journal)?,
        };
        scan::finish_frame(&mut self.frame, segment.salt);
        if let Err(error) = segment.file.write_all_at(&self.frame, self.used) {
            journal.shared.faults.fetch_add(1, Ordering::Relaxed);
            return Err(error);
        }
        self.used += size;
        if !self.dirty.last().is_some_and(|last| Arc::ptr_eq(last, &segment)) {
            self.dirty.push(segment.clone());
        }
        Ok(segment)
    }

    fn rotate(&mut self, journal: &Journal) -> io::Result<Arc<Segment>> {
        let next = match self.spares.pop_front() {
            Some(spare) => spare,
            None => self.allocate(journal)?,
        };
        self.retired.extend(self.active.replace(next.clone()));
        self.used = scan::SEGMENT_HEADER_BYTES as u64;
        Ok(next)
    }

    /// Retires an active segment that is more than half full and was not written to since the last sweep, if the spares
    /// have room for what is promised: an idle server does not keep old records.
    pub(super) fn retire_idle(&mut self, layout: &Layout) {
        let idles = self.active.is_some() && self.used == self.used_at_sweep && self.promised == 0;
        self.used_at_sweep = self.used;
        if idles && self.used > layout.segment_bytes / 2 {
            self.retired.extend(self.active.take());
            self.used = 0;
        }
    }

    pub(super) fn retire_all(&mut self) {
        self.retired.extend(self.active.take());
        self.retired.extend(self.spares.drain(..));
        self.used = 0;
        self.dirty.clear();
    }

    /// Deletes retired segments that nobody else holds.
    pub(super) fn sweep(&mut self, journal: &Journal) {
        self.retired.retain(|segment| {
            // Clones are only made of the active segment, or by who holds one: a count of one cannot rise again.
            if Arc::strong_count(segment) > 1 {
                return true;
            }
            match std::fs::remove_file(&segment.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => true,
                _ => {
                    journal.shared.segments.fetch_sub(1, Ordering::Relaxed);
                    false
                }
            }
        });
    }
}
