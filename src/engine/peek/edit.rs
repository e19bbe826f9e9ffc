//! The edits: a short body is copied with them into one piece; a long one is cut into slices with small inserts between them.

use super::read::include_usage;
use super::{Edits, Peek, Pieces};
use crate::engine::dialect::Endpoint;
use bytes::Bytes;
use smallvec::SmallVec;
use std::ops::Range;

/// Edits of one body as a rule: the model's name and what is put in.
const CHANGES_USUAL: usize = 2;

/// Room for their texts as a rule: a name, `stream_options` and a cap.
const TEXTS_USUAL: usize = 128;

/// Bodies up to here are copied into one piece with their edits: that is less work than to hand several on.
pub(super) const JOINED_BYTES_MAX: usize = 64 << 10;

/// What asks an OpenAI-compatible upstream for usage.
const ASK_USAGE: &str = "\"include_usage\":true";

/// The body with the edits, as slices of the original and small inserts in order (a short one in one piece); every other byte is as it came.
/// Without an edit: the body alone. An edit that would change nothing is none.
pub fn edit(endpoint: Endpoint, body: &Bytes, peek: &Peek, edits: &Edits<'_>) -> Pieces {
    let mut changes = Changes { places: SmallVec::new(), texts: String::with_capacity(TEXTS_USUAL) };
    if let Some(model) = edits.model {
        let value = changes.text(|text| if endpoint.is_multipart() { text.push_str(model) } else { write_quoted(model, text) });
        changes.places.extend(peek.model_at.iter().map(|at| (at.clone(), value.clone())));
    }
    if !endpoint.is_multipart() {
        let asks_usage = edits.include_usage && matches!(endpoint, Endpoint::ChatCompletions | Endpoint::Completions);
        let adds_options = asks_usage && ask_usage(body, peek, &mut changes);
        let field = if edits.cap_field.is_empty() { usual_cap(endpoint) } else { Some(edits.cap_field) };
        let adds_cap = edits.max_output.filter(|limit| !cap_output(peek, *limit, field, &mut changes)).zip(field);
        if adds_options || adds_cap.is_some() {
            // An object that was read has a model in it, so a comma is due behind what is put first.
            changes.push(peek.insert_at..peek.insert_at, |text| {
                if adds_options {
                    write_all(text, &["\"stream_options\":{", ASK_USAGE, "},"]);
                }
                if let Some((limit, field)) = adds_cap {
                    write_all(text, &["\"", field, "\":", itoa::Buffer::new().format(limit), ","]);
                }
            });
        }
    }
    changes.places.retain(|(at, value)| body[at.clone()] != changes.texts.as_bytes()[value.clone()]);
    changes.places.sort_by_key(|(at, _)| at.start);
    if changes.places.is_empty() {
        Pieces::from_buf([body.clone()])
    } else if body.len() <= JOINED_BYTES_MAX {
        Pieces::from_buf([changes.join(body)])
    } else {
        changes.splice(body)
    }
}

/// What is put where.
struct Changes {
    /// The place in the body, the place in the texts.
    places: SmallVec<[(Range<usize>, Range<usize>); CHANGES_USUAL]>,
    /// Behind one another.
    texts: String,
}

impl Changes {
    /// A new text.
    fn text(&mut self, write: impl FnOnce(&mut String)) -> Range<usize> {
        let from = self.texts.len();
        write(&mut self.texts);
        from..self.texts.len()
    }

    fn push(&mut self, at: Range<usize>, write: impl FnOnce(&mut String)) {
        let value = self.text(write);
        self.places.push((at, value));
    }

    /// The body with the changes, which are in order and do not overlap, in one piece.
    fn join(&self, body: &[u8]) -> Bytes {
        let mut joined = Vec::with_capacity(body.len() + self.places.iter().map(|(_, value)| value.len()).sum::<usize>());
        let mut from = 0;
        for (at, value) in &self.places {
            joined.extend_from_slice(&body[from..at.start]);
            joined.extend_from_slice(&self.texts.as_bytes()[value.clone()]);
            from = at.end;
        }
        joined.extend_from_slice(&body[from..]);
        joined.into()
    }

    /// The same, cut out of the body.
    fn splice(self, body: &Bytes) -> Pieces {
        let text = Bytes::from(self.texts);
        let mut out = Pieces::with_capacity(2 * self.places.len() + 1);
        let mut from = 0;
        for (at, value) in self.places {
            if from < at.start {
                out.push(body.slice(from..at.start));
            }
            if !value.is_empty() {
                out.push(text.slice(value));
            }
            from = at.end;
        }
        if from < body.len() {
            out.push(body.slice(from..));
        }
        out
    }
}

fn write_all(text: &mut String, parts: &[&str]) {
    parts.iter().for_each(|part| text.push_str(part));
}

/// A word as JSON has it. Names of models hardly ever hold what must be escaped.
fn write_quoted(word: &str, text: &mut String) {
    if word.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        text.push_str(&serde_json::Value::from(word).to_string());
    } else {
        write_all(text, &["\"", word, "\""]);
    }
}

/// Sets `include_usage` in `stream_options`; `true`: there is none, one is to be added.
fn ask_usage(body: &[u8], peek: &Peek, changes: &mut Changes) -> bool {
    let Some(at) = peek.stream_options_at.clone() else { return true };
    let options = &body[at.clone()];
    if options.first() != Some(&b'{') {
        changes.push(at, |text| write_all(text, &["{", ASK_USAGE, "}"]));
        return false;
    }
    let asked = include_usage(options);
    for (value, _) in asked.iter().filter(|(_, is_on)| !is_on) {
        changes.push(at.start + value.start..at.start + value.end, |text| text.push_str("true"));
    }
    if asked.is_empty() {
        let comma = if options[1..].trim_ascii_start() == b"}" { "" } else { "," };
        changes.push(at.start + 1..at.start + 1, |text| write_all(text, &[ASK_USAGE, comma]));
    }
    false
}

/// Lowers the caps above `limit`; `false`: none holds, `field` is to be added.
fn cap_output(peek: &Peek, limit: u64, field: Option<&str>, changes: &mut Changes) -> bool {
    let holds = peek.effective_caps().next().is_some();
    let mut is_set = holds;
    for cap in &peek.caps {
        // `"max_tokens": null` means none; the number has to stand there, for a second one in front of it would not hold.
        let is_unset_field = !holds && cap.value.is_none() && Some(cap.name) == field;
        if is_unset_field || cap.value.is_some_and(|value| value > limit) {
            changes.push(cap.at.clone(), |text| text.push_str(itoa::Buffer::new().format(limit)));
        }
        is_set |= is_unset_field;
    }
    is_set
}

/// The cap every upstream of an endpoint understands; `None` where an answer has no cap.
fn usual_cap(endpoint: Endpoint) -> Option<&'static str> {
    match endpoint {
        Endpoint::ChatCompletions | Endpoint::Completions | Endpoint::Messages => Some("max_tokens"),
        Endpoint::Responses => Some("max_output_tokens"),
        _ => None,
    }
}
