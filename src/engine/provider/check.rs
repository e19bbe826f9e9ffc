//! The cheapest call that tells whether a key works, and the one that tells whether a provider is up.

use super::path::{self, AZURE_API_VERSION};
use super::{Paths, Spec};
use crate::engine::catalog::BaseUrl;

/// What a provider says about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It works.
    Valid,
    /// It is not known there.
    Invalid,
    /// It was, and is not any more.
    Expired,
    /// It is known but may not do this.
    WrongPermissions,
    /// It is known and its account cannot pay.
    NoCredit,
    /// The answer says nothing about the key (the provider is down, limits the rate, or has no such call).
    Unclear,
}

/// A `GET` that checks a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Path and query.
    pub path: String,
    /// Anyone gets the same answer, so only a refusal means something.
    pub answers_anyone: bool,
}

/// Where the check is and what its answers mean beyond the status.
#[derive(Debug)]
pub(crate) struct CheckRow {
    /// Where it is.
    pub at: At,
    /// Reads what a 200 says about the key.
    pub read_ok: fn(&[u8]) -> Verdict,
    /// See [`Check::answers_anyone`].
    pub answers_anyone: bool,
}

/// Where the probe is.
#[derive(Debug)]
pub(crate) struct ProbeRow {
    /// Where it is.
    pub at: At,
    /// Sent with the platform's key when there is one (never a user's).
    pub with_key: bool,
}

/// A place on the provider's host.
#[derive(Debug)]
pub(crate) enum At {
    /// Behind the prefix the endpoints' tails stand behind.
    Prefix(&'static str),
    /// From the root of the host.
    Host(&'static str),
    /// Azure: `/openai…` with the API version.
    Azure(&'static str),
}

/// `GET {prefix}/models`, which every OpenAI-compatible provider has and which costs nothing.
pub(crate) const MODELS_CHECK: CheckRow = CheckRow { at: At::Prefix("/models"), read_ok: valid, answers_anyone: false };

/// The same as a probe.
pub(crate) const MODELS_PROBE: ProbeRow = ProbeRow { at: At::Prefix("/models"), with_key: true };

impl Spec {
    /// The call that checks a key: `GET`, with the key as [`Spec::auth`] says and [`Spec::default_headers`].
    pub fn check(&self, base: &BaseUrl, account: Option<&str>, api_version: Option<&str>) -> Check {
        let mut path = String::new();
        write_at(&self.check.at, self.paths, base, account, api_version, &mut path);
        Check { path, answers_anyone: self.check.answers_anyone }
    }

    /// What the answer to [`Spec::check`] means. The body is read only for words that tell refusals apart.
    pub fn read_check(&self, status: u16, body: &[u8]) -> Verdict {
        match status {
            200..=299 => (self.check.read_ok)(body),
            402 => Verdict::NoCredit,
            400 | 401 | 403 if says(body, "expired") => Verdict::Expired,
            // Gemini answers an unknown key with 400, others with 401; Cloudflare with 400 when it is not even shaped as one.
            400 if says(body, "api key not valid") || says(body, "api_key_invalid") || says(body, "invalid request headers") => {
                Verdict::Invalid
            }
            401 if says(body, "insufficient permissions") || says(body, "missing scopes") => Verdict::WrongPermissions,
            401 => Verdict::Invalid,
            403 if says(body, "invalid api token") || says(body, "invalid api key") => Verdict::Invalid,
            403 => Verdict::WrongPermissions,
            429 if says(body, "insufficient_quota") => Verdict::NoCredit,
            _ => Verdict::Unclear,
        }
    }

    /// Path and query of the probe (`GET`, with [`Spec::default_headers`]), and whether it is sent with the platform's key.
    pub fn probe(&self, base: &BaseUrl, account: Option<&str>, api_version: Option<&str>) -> (String, bool) {
        let mut path = String::new();
        write_at(&self.probe.at, self.paths, base, account, api_version, &mut path);
        (path, self.probe.with_key)
    }

    /// Whether a probe's status means the provider is up: anything but a failure of its own. A 401 to a probe without a key is up.
    pub fn is_up(&self, status: u16) -> bool {
        status < 500
    }
}

impl Verdict {
    /// The name in answers and the audit log.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Valid => "valid",
            Verdict::Invalid => "invalid",
            Verdict::Expired => "expired",
            Verdict::WrongPermissions => "wrong_permissions",
            Verdict::NoCredit => "no_credit",
            Verdict::Unclear => "unclear",
        }
    }
}

/// A 200 is all there is to say.
pub(super) fn valid(_body: &[u8]) -> Verdict {
    Verdict::Valid
}

/// Whether `body` holds `word` (lower case) in any case.
pub(super) fn says(body: &[u8], word: &str) -> bool {
    /// Refusals are short; what stands behind this is not looked at.
    const LOOKED_AT_BYTES: usize = 4096;
    let body = &body[..body.len().min(LOOKED_AT_BYTES)];
    body.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word.as_bytes()))
}

fn write_at(at: &At, paths: Paths, base: &BaseUrl, account: Option<&str>, api_version: Option<&str>, out: &mut String) {
    match at {
        At::Prefix(tail) => {
            path::write_prefix(paths, base, account, out);
            out.push_str(tail);
        }
        At::Host(path) => out.push_str(path),
        At::Azure(tail) => {
            path::write_prefix(paths, base, account, out);
            out.push_str(tail);
            match api_version {
                Some(version) => path::write_version(version, out),
                None if path::is_azure_v1(base) => {}
                None => path::write_version(AZURE_API_VERSION, out),
            }
        }
    }
}
