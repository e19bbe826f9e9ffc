//! `/v1/audio/*`: speech (binary, or `speech.audio.*` events) and transcriptions (JSON, plain text, or `transcript.text.*` events).
//!
//! Transcriptions are billed by tokens or by time; what a verbose answer calls `duration` is the time when nothing else says it.

use super::reading::Reading;
use super::reported::Field;
use super::scan::{Scan, decimal};

/// One event's data.
pub fn event(name: &[u8], data: &[u8], reading: &mut Reading) -> bool {
    if data == b"[DONE]" {
        reading.ended = true;
        return true;
    }
    let mut scan = Scan::new(data);
    let mut kind = name;
    let mut written: Option<&[u8]> = None;
    scan.object(|key, scan| match key {
        b"type" => kind = scan.string().unwrap_or(kind),
        b"delta" => written = scan.string(),
        b"usage" => reading.usage_here(scan),
        b"error" => reading.error_here(scan),
        _ => {}
    });
    if let Some(raw) = written {
        reading.generated(raw);
    }
    if matches!(kind, b"speech.audio.done" | b"transcript.text.done") {
        reading.ended = true;
    }
    scan.is_whole()
}

/// A whole JSON answer.
pub fn answer(data: &[u8], reading: &mut Reading) -> bool {
    let mut scan = Scan::new(data);
    let mut duration = None;
    scan.object(|key, scan| match key {
        b"text" => reading.generated_here(scan),
        // A number, or a number in quotes.
        b"duration" => duration = scan.number().or_else(|| scan.string()).and_then(|number| decimal(number, 3)),
        b"usage" => reading.usage_here(scan),
        b"model" => reading.model_here(scan),
        b"error" => reading.error_here(scan),
        _ => {}
    });
    if let Some(milliseconds) = duration
        && reading.reported.is_zero()
    {
        reading.reported.set(Field::Milliseconds, u64::try_from(milliseconds).unwrap_or(0));
        reading.reports_output();
    }
    scan.is_whole()
}
