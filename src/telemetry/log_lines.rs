//! Log lines, one JSON object each, written off the path.
//!
//! A worker appends its line to its own shard, a writer thread takes the shards every [`FLUSH_INTERVAL`] and writes them to
//! standard error in one call. Nothing on the request path waits for the terminal or the disk. A shard that has grown to
//! [`SHARD_BYTES_MAX`] drops further lines and counts them; the next flush says how many.

use parking_lot::Mutex;
use std::cell::Cell;
use std::io::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// How long a line may wait before it is written.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// Bytes a shard holds at most: half a second of 10,000 lines a second of 800 bytes. Beyond it lines are dropped and counted.
pub const SHARD_BYTES_MAX: usize = 4 << 20;
const SHARDS: usize = 16;

static BUFFERS: [Mutex<Vec<u8>>; SHARDS] = [const { Mutex::new(Vec::new()) }; SHARDS];
static DROPPED: AtomicU64 = AtomicU64::new(0);
static NEXT_SHARD: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SHARD: Cell<usize> = Cell::new(NEXT_SHARD.fetch_add(1, Relaxed) % SHARDS);
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Nothing to do.
    Info,
    /// Somebody should look.
    Warn,
    /// Somebody must look.
    Error,
}

impl Severity {
    const fn name(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warn => "warn",
            Severity::Error => "error",
        }
    }
}

/// Appends a line; `write` adds it (without the line end) to the buffer it is given.
pub fn line(write: impl FnOnce(&mut Vec<u8>)) {
    let mut buffer = BUFFERS[SHARD.get()].lock();
    if buffer.len() >= SHARD_BYTES_MAX {
        DROPPED.fetch_add(1, Relaxed);
        return;
    }
    write(&mut buffer);
    buffer.push(b'\n');
}

/// Logs something that happened to the program itself (not to a request).
pub fn event(severity: Severity, what: &str, detail: &str) {
    line(|out| {
        out.extend_from_slice(b"{\"time\":\"");
        out.extend_from_slice(super::clock::rfc3339(super::clock::now_ms()).as_bytes());
        out.extend_from_slice(b"\",\"level\":\"");
        out.extend_from_slice(severity.name().as_bytes());
        out.extend_from_slice(b"\",\"event\":");
        string(out, what);
        out.extend_from_slice(b",\"detail\":");
        string(out, detail);
        out.push(b'}');
    });
}

/// Logs what a policy of the operator's says about a request; without one (`""`), as it is loaded.
pub fn policy(severity: Severity, what: &str, request_id: &str, detail: &str) {
    line(|out| {
        let time = super::clock::rfc3339(super::clock::now_ms());
        let _ = write!(out, "{{\"time\":\"{time}\",\"level\":\"{}\",\"event\":\"{what}\",\"request_id\":", severity.name());
        string(out, request_id);
        out.extend_from_slice(b",\"detail\":");
        string(out, detail);
        out.push(b'}');
    });
}

/// Appends `text` as a JSON string.
pub fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0..=0x1f => {
                let _ = write!(out, "\\u{byte:04x}");
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// Writes what waits. Called by the writer thread and once more before the process ends.
pub fn flush() {
    let mut all = Vec::new();
    for buffer in &BUFFERS {
        let mut lines = buffer.lock();
        if !lines.is_empty() {
            if all.is_empty() {
                std::mem::swap(&mut all, &mut lines);
            } else {
                all.append(&mut lines);
            }
        }
    }
    let dropped = DROPPED.swap(0, Relaxed);
    if dropped > 0 {
        let _ = writeln!(all, "{{\"level\":\"warn\",\"event\":\"log lines dropped\",\"detail\":\"{dropped}\"}}");
    }
    if !all.is_empty() {
        let _ = std::io::stderr().write_all(&all);
    }
}

/// Starts the writer thread and sends the libraries' warnings the same way.
pub fn start() {
    let _ = log::set_logger(&Libraries);
    log::set_max_level(log::LevelFilter::Warn);
    let _ = std::thread::Builder::new().name("log".into()).spawn(|| {
        loop {
            std::thread::sleep(FLUSH_INTERVAL);
            flush();
        }
    });
}

/// The libraries' log records, scrubbed: an error text of theirs may quote a header.
struct Libraries;

impl log::Log for Libraries {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }
    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let severity = if record.level() == log::Level::Error { Severity::Error } else { Severity::Warn };
            event(severity, record.target(), &crate::engine::refusal::scrub(&record.args().to_string()));
        }
    }
    fn flush(&self) {
        flush();
    }
}
