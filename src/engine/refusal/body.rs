//! Refusals as bodies and as events in a running stream, in each dialect.

use super::Refusal;
use crate::engine::dialect::{Dialect, Endpoint};
use std::fmt::Write;

impl Refusal {
    /// The JSON body in `dialect`.
    pub fn body(&self, dialect: Dialect) -> String {
        let mut out = String::with_capacity(256);
        self.write_body(dialect, &mut out);
        out
    }

    /// Appends the JSON body in `dialect`.
    pub fn write_body(&self, dialect: Dialect, out: &mut String) {
        match dialect {
            Dialect::OpenAi => {
                out.push_str(r#"{"error":"#);
                self.write_openai_error(out);
                out.push('}');
            }
            Dialect::Anthropic => {
                out.push_str(r#"{"type":"error","error":{"type":"#);
                string(self.row().anthropic_type, out);
                out.push_str(r#","message":"#);
                self.write_message(out);
                self.write_upgrade_url(out);
                out.push_str("}}");
            }
        }
    }

    /// Appends the event that ends a running stream of `endpoint`; no end mark follows it, so that clients raise.
    ///
    /// `/v1/responses` has events with the fields beside each other; the `error` object beside them is what openai-python's
    /// stream raises on.
    pub fn write_event(&self, endpoint: Endpoint, out: &mut String) {
        match endpoint {
            Endpoint::Messages | Endpoint::CountTokens => {
                out.push_str("event: error\ndata: ");
                self.write_body(Dialect::Anthropic, out);
            }
            Endpoint::Responses => {
                out.push_str("event: error\ndata: {\"type\":\"error\",\"code\":");
                optional(self.row().code, out);
                out.push_str(r#","message":"#);
                self.write_message(out);
                out.push_str(r#","param":"#);
                optional(self.param(), out);
                out.push_str(r#","sequence_number":0,"error":"#);
                self.write_openai_error(out);
                out.push('}');
            }
            _ => {
                out.push_str("data: ");
                self.write_body(Dialect::OpenAi, out);
            }
        }
        out.push_str("\n\n");
    }

    fn write_openai_error(&self, out: &mut String) {
        let row = self.row();
        out.push_str(r#"{"message":"#);
        self.write_message(out);
        out.push_str(r#","type":"#);
        string(row.openai_type, out);
        out.push_str(r#","param":"#);
        optional(self.param(), out);
        out.push_str(r#","code":"#);
        optional(row.code, out);
        self.write_upgrade_url(out);
        out.push('}');
    }

    fn write_message(&self, out: &mut String) {
        out.push('"');
        // Writing to a string does not fail.
        let _ = write!(Escaping(out), "{self}");
        out.push('"');
    }

    fn write_upgrade_url(&self, out: &mut String) {
        if let Some(url) = self.upgrade_url() {
            out.push_str(r#","upgrade_url":"#);
            string(url, out);
        }
    }
}

/// Writes text as the inside of a JSON string.
struct Escaping<'a>(&'a mut String);

impl Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for char in text.chars() {
            match char {
                '"' => self.0.push_str("\\\""),
                '\\' => self.0.push_str("\\\\"),
                '\n' => self.0.push_str("\\n"),
                '\r' => self.0.push_str("\\r"),
                '\t' => self.0.push_str("\\t"),
                '\0'..='\x1f' | '\x7f' => write!(self.0, "\\u{:04x}", u32::from(char))?,
                other => self.0.push(other),
            }
        }
        Ok(())
    }
}

fn string(text: &str, out: &mut String) {
    out.push('"');
    // Writing to a string does not fail.
    let _ = Escaping(out).write_str(text);
    out.push('"');
}

fn optional(text: Option<&str>, out: &mut String) {
    match text {
        Some(text) => string(text, out),
        None => out.push_str("null"),
    }
}
