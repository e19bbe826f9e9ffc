//! Log lines, one JSON object each, written off the path.
//!
//! A worker appends its line to its own shard, a writer thread takes the shards every [`FLUSH_INTERVAL`] and writes them to
//! standard error in one call. Nothing on the request path waits for the terminal or the disk. A shard that has grown to
//! [`SHARD_BYTES_MAX`] drops further lines and counts them; the next flush says how many.

use crate::store::calendar::put_rfc3339;
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

/// Logs `event`; `write` adds its fields.
pub fn line(severity: Severity, event: &str, at_ms: u64, write: impl FnOnce(&mut Fields<'_>)) {
    let mut buffer = BUFFERS[SHARD.get()].lock();
    if buffer.len() >= SHARD_BYTES_MAX {
        DROPPED.fetch_add(1, Relaxed);
        return;
    }
    buffer.extend_from_slice(b"{\"time\":\"");
    put_rfc3339(&mut buffer, at_ms);
    buffer.extend_from_slice(b"\"");
    let mut fields = Fields { out: &mut buffer };
    fields.text("level", severity.name());
    fields.text("event", event);
    write(&mut fields);
    buffer.extend_from_slice(b"}\n");
}

/// Logs something that happened to the program itself (not to a request).
pub fn event(severity: Severity, what: &str, detail: &str) {
    line(severity, what, super::clock::now_ms(), |fields| fields.text("detail", detail));
}

/// Logs what a policy of the operator's says about a request; without one (`""`), as it is loaded.
pub fn policy(severity: Severity, what: &str, request_id: &str, detail: &str) {
    line(severity, what, super::clock::now_ms(), |fields| {
        fields.text("request_id", request_id);
        fields.text("detail", detail);
    });
}

/// A line's fields. Written by hand: the formatting machinery took a twentieth of a small request's instructions.
#[derive(Debug)]
pub struct Fields<'a> {
    out: &'a mut Vec<u8>,
}

impl Fields<'_> {
    /// A text, escaped. `name` is not.
    pub fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        self.string(value);
    }

    /// A number.
    pub fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// A number, or `null`.
    pub fn number_or_null(&mut self, name: &str, value: Option<u64>) {
        match value {
            Some(value) => self.number(name, value),
            None => {
                self.name(name);
                self.out.extend_from_slice(b"null");
            }
        }
    }

    /// `true` or `false`.
    pub fn flag(&mut self, name: &str, value: bool) {
        self.name(name);
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    /// A list of objects; `write` adds the fields of one.
    pub fn list<T>(&mut self, name: &str, items: impl Iterator<Item = T>, mut write: impl FnMut(&mut Fields<'_>, T)) {
        self.name(name);
        self.out.push(b'[');
        for (at, item) in items.enumerate() {
            self.out.extend_from_slice(if at > 0 { b",{" } else { b"{" });
            write(&mut Fields { out: self.out }, item);
            self.out.push(b'}');
        }
        self.out.push(b']');
    }

    fn name(&mut self, name: &str) {
        if self.out.last() != Some(&b'{') {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn string(&mut self, text: &str) {
        self.out.push(b'"');
        let mut rest = text.as_bytes();
        while let Some(at) = rest.iter().position(|byte| matches!(byte, 0..=0x1f | b'"' | b'\\')) {
            self.out.extend_from_slice(&rest[..at]);
            match rest[at] {
                byte @ (b'"' | b'\\') => self.out.extend_from_slice(&[b'\\', byte]),
                byte => {
                    let _ = write!(self.out, "\\u{byte:04x}");
                }
            }
            rest = &rest[at + 1..];
        }
        self.out.extend_from_slice(rest);
        self.out.push(b'"');
    }
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
