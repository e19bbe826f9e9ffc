//! Results as text that Lua takes apart in one pass: a line for each field, then whatever is not text.
//!
//! The first line names the step. Fields hold no line feed: names, numbers and headers cannot, and what could is refused.

use std::fmt::Write;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Ask the node: the body of `POST /plugin/v1/admit`.
    Admit(String),
    /// Send the request there.
    Try(Box<Try>),
    /// Answer with this.
    Refuse {
        /// The status.
        status: u16,
        /// Headers.
        headers: Vec<(String, String)>,
        /// The body, in the dialect of the path.
        body: String,
    },
    /// Pass the upstream's answer on as it came.
    Pass,
}

/// One attempt as a proxy needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Try {
    /// weir's id of the request.
    pub request_id: String,
    /// The provider's name in `routing.toml`.
    pub provider: String,
    /// The provider's name of the model.
    pub model: String,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The `Host` header.
    pub authority: String,
    /// The name to connect to and to check the certificate against.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Path and query.
    pub uri: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// With the caller's own key.
    pub own_key: bool,
    /// Not the first choice.
    pub was_fallback: bool,
    /// Bytes of the edited body; `None`: as it came.
    pub body_bytes: Option<usize>,
    /// How long to connect, to wait for the first event and between two, milliseconds.
    pub timeouts_ms: [u64; 3],
    /// The client's headers that stay here.
    pub remove: Vec<String>,
    /// Headers to set, the provider's key among them.
    pub set: Vec<(String, String)>,
}

impl Step {
    /// The packed form.
    pub fn pack(&self) -> Vec<u8> {
        let mut out = String::with_capacity(512);
        match self {
            Step::Admit(body) => {
                out.push_str("admit\n");
                out.push_str(body);
            }
            Step::Try(attempt) => attempt.pack(&mut out),
            Step::Refuse { status, headers, body } => {
                let _ = writeln!(out, "refuse\n{status}\n{}", headers.len());
                put_headers(headers, &mut out);
                out.push_str(body);
            }
            Step::Pass => out.push_str("pass\n"),
        }
        out.into_bytes()
    }
}

impl Try {
    fn pack(&self, out: &mut String) {
        let flag = |is: bool| if is { "true" } else { "false" };
        line(out, "try");
        for text in [&self.request_id, &self.provider, &self.model] {
            line(out, text);
        }
        for text in [self.scheme, &self.authority, &self.host] {
            line(out, text);
        }
        number(out, self.port.into());
        line(out, &self.uri);
        number(out, self.attempt.into());
        line(out, flag(self.own_key));
        line(out, flag(self.was_fallback));
        match self.body_bytes {
            Some(bytes) => number(out, bytes as u64),
            None => line(out, "-"),
        }
        self.timeouts_ms.into_iter().for_each(|time| number(out, time));
        number(out, self.remove.len() as u64);
        for name in &self.remove {
            line(out, name);
        }
        number(out, self.set.len() as u64);
        put_headers(&self.set, out);
    }
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

/// A number on a line. Without the formatter, which took a good part of a decision's time.
fn number(out: &mut String, number: u64) {
    let mut digits = [b'0'; 20];
    let (mut at, mut rest) = (digits.len(), number);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    digits[at..].iter().for_each(|digit| out.push(char::from(*digit)));
    out.push('\n');
}

/// Names and values, each on a line of its own.
pub fn put_headers(headers: &[(String, String)], out: &mut String) {
    for (name, value) in headers {
        line(out, name);
        line(out, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_they_are() {
        for value in [0, 7, 10, 65_535, u64::MAX] {
            let mut out = String::new();
            number(&mut out, value);
            assert_eq!(out, format!("{value}\n"));
        }
    }
}
