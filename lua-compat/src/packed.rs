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
        let body = self.body_bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
        let [connect, first_event, between] = self.timeouts_ms;
        let _ = writeln!(
            out,
            "try\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n{body}\n{connect}\n{first_event}\n{between}\n{}",
            self.request_id,
            self.provider,
            self.model,
            self.scheme,
            self.authority,
            self.host,
            self.port,
            self.uri,
            self.attempt,
            flag(self.own_key),
            flag(self.was_fallback),
            self.remove.len(),
        );
        for name in &self.remove {
            out.push_str(name);
            out.push('\n');
        }
        let _ = writeln!(out, "{}", self.set.len());
        put_headers(&self.set, out);
    }
}

/// Names and values, each on a line of its own.
pub fn put_headers(headers: &[(String, String)], out: &mut String) {
    for (name, value) in headers {
        let _ = writeln!(out, "{name}\n{value}");
    }
}
