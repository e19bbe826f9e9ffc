//! `/v1/messages`: input usage in `message_start`, cumulative usage in `message_delta`, end at `message_stop`.
//!
//! The keys are unambiguous, so an event's type matters for the end mark and heartbeats only. `usage.iterations[]` (beta: an advisor
//! with a model of its own) is not read apart.

use super::reading::{Final, Reading};
use super::scan::Scan;

/// One event's data.
pub fn event(name: &[u8], data: &[u8], reading: &mut Reading) -> bool {
    let mut scan = Scan::new(data);
    let mut kind = name;
    scan.object(|key, scan| match key {
        b"type" => kind = scan.string().unwrap_or(kind),
        b"message" => scan.object(|key, scan| match key {
            b"model" => reading.model_here(scan),
            b"usage" => reading.cumulative_usage_here(scan, Final::No),
            _ => {}
        }),
        b"content_block" => scan.object(|key, scan| {
            if matches!(key, b"text" | b"thinking" | b"name") {
                reading.generated_here(scan);
            }
        }),
        b"delta" => scan.object(|key, scan| match key {
            b"text" | b"partial_json" | b"thinking" => reading.generated_here(scan),
            b"stop_reason" => reading.finished |= scan.here() == Some(b'"'),
            _ => {}
        }),
        b"usage" => reading.cumulative_usage_here(scan, Final::Yes),
        b"error" => reading.error_here(scan),
        _ => {}
    });
    if kind == b"message_stop" {
        reading.ended = true;
    }
    scan.is_whole()
}

/// Whether the event is a heartbeat and says nothing.
pub fn is_heartbeat(name: &[u8], data: &[u8]) -> bool {
    if !name.is_empty() {
        return name == b"ping";
    }
    // Without an `event:` line the type tells; a ping has little else.
    const LONGEST_PING_BYTES: usize = 64;
    let mut ping = false;
    if data.len() <= LONGEST_PING_BYTES {
        Scan::new(data).object(|key, scan| ping |= key == b"type" && scan.string() == Some(b"ping"));
    }
    ping
}

/// A whole answer.
pub fn answer(data: &[u8], reading: &mut Reading) -> bool {
    let mut scan = Scan::new(data);
    scan.object(|key, scan| match key {
        b"model" => reading.model_here(scan),
        b"usage" => reading.cumulative_usage_here(scan, Final::Yes),
        b"error" => reading.error_here(scan),
        b"content" => scan.array(|scan| {
            scan.object(|key, scan| match key {
                b"text" | b"thinking" | b"name" => reading.generated_here(scan),
                b"input" => reading.generated_plain(scan.raw()),
                _ => {}
            });
        }),
        _ => {}
    });
    scan.is_whole()
}
