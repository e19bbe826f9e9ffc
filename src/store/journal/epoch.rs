//! Epochs: the files of one process, and taking over those of a dead one.
//!
//! `EPOCH.lock` is locked (`flock`) as long as its process lives; the kernel lets go of it however the process ends. While
//! epochs are made or taken over, `folder.lock` is held, so that nobody sees a half-made one.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// This process's epoch.
#[derive(Debug)]
pub(super) struct Epoch {
    folder: PathBuf,
    pub(super) number: u64,
    /// Locked; never read.
    _lock: File,
}

/// The segments of a process that is gone. Ours while this value lives.
#[derive(Debug)]
pub struct Orphan {
    /// Its epoch.
    pub epoch: u64,
    folder: PathBuf,
    _lock: File,
    /// Segments by shard, in the order they were written.
    pub shards: Vec<Vec<PathBuf>>,
}

impl Epoch {
    pub(super) fn start(folder: &Path, now_ms: u64) -> io::Result<(Epoch, Vec<Orphan>)> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let _guard = guard(folder)?;
        let mut number = now_ms;
        let lock = loop {
            // Two processes in one millisecond, or a clock that was put back: take the next number.
            match lock_options().create_new(true).open(lock_path(folder, number)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                other => break other?,
            }
        };
        // Nobody else can hold it: it is new and the folder is ours.
        lock.lock()?;
        let epoch = Epoch { folder: folder.to_owned(), number, _lock: lock };
        let orphans = epoch.orphans_guarded()?;
        Ok((epoch, orphans))
    }

    pub(super) fn orphans(&self) -> io::Result<Vec<Orphan>> {
        let _guard = guard(&self.folder)?;
        self.orphans_guarded()
    }

    fn orphans_guarded(&self) -> io::Result<Vec<Orphan>> {
        let mut orphans = Vec::new();
        for number in epochs(&self.folder)? {
            if number == self.number {
                continue;
            }
            let lock = lock_options().create(true).truncate(false).open(lock_path(&self.folder, number))?;
            match lock.try_lock() {
                Ok(()) => orphans.push(Orphan {
                    epoch: number,
                    folder: self.folder.clone(),
                    _lock: lock,
                    shards: segments(&self.folder, number)?,
                }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(orphans)
    }

    /// Another epoch has files here.
    pub(super) fn is_shared(&self) -> bool {
        // Unreadable folder: assume company; it only costs a note to the others.
        epochs(&self.folder).map_or(true, |found| found.iter().any(|number| *number != self.number))
    }

    pub(super) fn segment_path(&self, shard: u32, number: u32) -> PathBuf {
        self.folder.join(format!("{:016x}-{shard:04x}-{number:08x}.seg", self.number))
    }

    pub(super) fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    pub(super) fn remove(&self) {
        // A leftover lock file is an orphan without segments: the next process removes it.
        let _ = std::fs::remove_file(lock_path(&self.folder, self.number));
    }
}

impl Orphan {
    /// Everything it held is stored: deletes its files, but for those in `keep`, which are renamed to `….damaged`.
    pub fn remove(self, keep: &[PathBuf]) -> io::Result<()> {
        for path in self.shards.iter().flatten() {
            if keep.contains(path) { std::fs::rename(path, path.with_extension("damaged"))? } else { std::fs::remove_file(path)? }
        }
        std::fs::remove_file(lock_path(&self.folder, self.epoch))
    }
}

fn guard(folder: &Path) -> io::Result<File> {
    let file = lock_options().create(true).truncate(false).open(folder.join("folder.lock"))?;
    file.lock()?;
    Ok(file)
}

fn lock_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

fn lock_path(folder: &Path, epoch: u64) -> PathBuf {
    folder.join(format!("{epoch:016x}.lock"))
}

/// Epochs with a lock or a segment, in order.
fn epochs(folder: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|name| name.ends_with(".lock") || name.ends_with(".seg")) else { continue };
        found.extend(name.get(..16).and_then(|hex| u64::from_str_radix(hex, 16).ok()));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn segments(folder: &Path, epoch: u64) -> io::Result<Vec<Vec<PathBuf>>> {
    let prefix = format!("{epoch:016x}-");
    let mut shards: BTreeMap<u32, BTreeMap<u32, PathBuf>> = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let numbers = name.to_str().and_then(|name| name.strip_prefix(&prefix)?.strip_suffix(".seg")?.split_once('-'));
        if let Some((shard, number)) = numbers
            && let (Ok(shard), Ok(number)) = (u32::from_str_radix(shard, 16), u32::from_str_radix(number, 16))
        {
            shards.entry(shard).or_default().insert(number, entry.path());
        }
    }
    Ok(shards.into_values().map(|segments| segments.into_values().collect()).collect())
}
