//! The edits: slices of the original body and small inserts, in the order of their places.

use super::read::include_usage;
use super::{Edits, Peek};
use crate::engine::dialect::Endpoint;
use bytes::Bytes;
use std::ops::Range;

/// Edits of one body as a rule: the model's name and what is put in.
const CHANGES_USUAL: usize = 2;

/// Room for what is put in as a rule: `stream_options` and a cap.
const INSERTS_USUAL: usize = 80;

/// Bodies up to here are copied into one piece with their edits: that is less work than to hand several on.
pub(super) const JOINED_BYTES_MAX: usize = 64 << 10;

/// What asks an OpenAI-compatible upstream for usage.
const ASK_USAGE: &str = "\"include_usage\":true";

/// The body with the edits, as slices of the original and small inserts in order (a short one in one piece); every other byte is as it came.
/// Without an edit: the body alone. An edit that would change nothing is none.
pub fn edit(endpoint: Endpoint, body: &Bytes, peek: &Peek, edits: &Edits<'_>, out: &mut Vec<Bytes>) {
    let mut changes = Vec::with_capacity(CHANGES_USUAL);
    if let Some(model) = edits.model {
        let value = Bytes::from(if endpoint.is_multipart() { model.to_owned() } else { quoted(model) });
        changes.extend(peek.model_at.iter().map(|at| (at.clone(), value.clone())));
    }
    if !endpoint.is_multipart() {
        let mut inserts = String::with_capacity(INSERTS_USUAL);
        if edits.include_usage && matches!(endpoint, Endpoint::ChatCompletions | Endpoint::Completions) {
            ask_usage(body, peek, &mut changes, &mut inserts);
        }
        if let Some(limit) = edits.max_output {
            let field = if edits.cap_field.is_empty() { usual_cap(endpoint) } else { Some(edits.cap_field) };
            cap_output(peek, limit, field, &mut changes, &mut inserts);
        }
        if !inserts.is_empty() {
            // An object that was read has a model in it, so a comma is due behind what is put first.
            changes.push((peek.insert_at..peek.insert_at, Bytes::from(inserts)));
        }
    }
    changes.retain(|(at, value)| body[at.clone()] != value[..]);
    changes.sort_by_key(|(at, _)| at.start);
    if !changes.is_empty() && body.len() <= JOINED_BYTES_MAX {
        out.push(join(body, &changes));
    } else {
        splice(body, changes, out);
    }
}

/// A word as JSON has it. Names of models hardly ever hold what must be escaped.
fn quoted(word: &str) -> String {
    if word.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        return serde_json::Value::from(word).to_string();
    }
    let mut text = String::with_capacity(word.len() + 2);
    text.push('"');
    text.push_str(word);
    text.push('"');
    text
}

/// Sets `include_usage` in `stream_options`, which is made if need be.
fn ask_usage(body: &[u8], peek: &Peek, changes: &mut Vec<(Range<usize>, Bytes)>, inserts: &mut String) {
    let Some(at) = peek.stream_options_at.clone() else {
        for part in ["\"stream_options\":{", ASK_USAGE, "},"] {
            inserts.push_str(part);
        }
        return;
    };
    let options = &body[at.clone()];
    if options.first() != Some(&b'{') {
        changes.push((at, Bytes::from(format!("{{{ASK_USAGE}}}"))));
        return;
    }
    let asked = include_usage(options);
    for (value, _) in asked.iter().filter(|(_, is_on)| !is_on) {
        changes.push((at.start + value.start..at.start + value.end, Bytes::from_static(b"true")));
    }
    if asked.is_empty() {
        let comma = if options[1..].trim_ascii_start() == b"}" { "" } else { "," };
        changes.push((at.start + 1..at.start + 1, Bytes::from(format!("{ASK_USAGE}{comma}"))));
    }
}

/// Lowers the caps above `limit`; sets `field` if no cap holds.
fn cap_output(peek: &Peek, limit: u64, field: Option<&str>, changes: &mut Vec<(Range<usize>, Bytes)>, inserts: &mut String) {
    let holds = peek.effective_caps().next().is_some();
    let mut is_set = holds;
    for cap in &peek.caps {
        // `"max_tokens": null` means none; the number has to stand there, for a second one in front of it would not hold.
        let is_unset_field = !holds && cap.value.is_none() && Some(cap.name) == field;
        if is_unset_field || cap.value.is_some_and(|value| value > limit) {
            changes.push((cap.at.clone(), Bytes::from(limit.to_string())));
        }
        is_set |= is_unset_field;
    }
    if let Some(field) = field.filter(|_| !is_set) {
        inserts.push_str(&format!("{}:{limit},", serde_json::Value::from(field)));
    }
}

/// The cap every upstream of an endpoint understands; `None` where an answer has no cap.
fn usual_cap(endpoint: Endpoint) -> Option<&'static str> {
    match endpoint {
        Endpoint::ChatCompletions | Endpoint::Completions | Endpoint::Messages => Some("max_tokens"),
        Endpoint::Responses => Some("max_output_tokens"),
        _ => None,
    }
}

/// A short body with the changes, which are in order and do not overlap, in one piece.
fn join(body: &[u8], changes: &[(Range<usize>, Bytes)]) -> Bytes {
    let mut joined = Vec::with_capacity(body.len() + changes.iter().map(|(_, value)| value.len()).sum::<usize>());
    let mut from = 0;
    for (at, value) in changes {
        joined.extend_from_slice(&body[from..at.start]);
        joined.extend_from_slice(value);
        from = at.end;
    }
    joined.extend_from_slice(&body[from..]);
    joined.into()
}

/// Cuts the body at the changes, which are in order and do not overlap.
fn splice(body: &Bytes, changes: Vec<(Range<usize>, Bytes)>, out: &mut Vec<Bytes>) {
    let mut from = 0;
    for (at, value) in changes {
        if from < at.start {
            out.push(body.slice(from..at.start));
        }
        if !value.is_empty() {
            out.push(value);
        }
        from = at.end;
    }
    if from < body.len() || body.is_empty() {
        out.push(body.slice(from..));
    }
}
