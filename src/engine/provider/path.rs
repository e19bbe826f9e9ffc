//! Request targets: base path, endpoint tail, and what Azure and Cloudflare put between and behind them.
//!
//! A base URL is the prefix before the endpoint's tail (`/chat/completions`), as in OpenAI's SDKs, so one that ends in `/v1`
//! is taken as it is. One without any path gets the provider's usual path: a bare host is what people write for a mock or a mirror.

use super::Paths;
use crate::engine::catalog::BaseUrl;
use crate::engine::dialect::Endpoint;

/// What our own paths put before the tail.
const OURS: &str = "/v1";

/// Azure's general availability data-plane version; the deployments' paths need one. Unchecked against a live service.
pub(super) const AZURE_API_VERSION: &str = "2024-10-21";

/// The endpoint's path without our `/v1`.
pub(super) fn tail(endpoint: Endpoint) -> &'static str {
    let path = endpoint.path();
    path.strip_prefix(OURS).unwrap_or(path)
}

pub(super) fn write_endpoint(
    paths: Paths,
    base: &BaseUrl,
    account: Option<&str>,
    api_version: Option<&str>,
    endpoint: Endpoint,
    model: &str,
    out: &mut String,
) {
    let Paths::Azure = paths else {
        write_prefix(paths, base, account, out);
        out.push_str(tail(endpoint));
        return;
    };
    write_prefix(paths, base, account, out);
    if is_azure_v1(base) {
        out.push_str(tail(endpoint));
        if let Some(version) = api_version {
            write_version(version, out);
        }
    } else if endpoint == Endpoint::Responses {
        // The Responses API has no deployment in its path; its version-free form names the model in the body. Unchecked.
        out.push_str("/v1/responses");
    } else {
        out.push_str("/deployments/");
        write_segment(model, out);
        out.push_str(tail(endpoint));
        write_version(api_version.unwrap_or(AZURE_API_VERSION), out);
    }
}

/// Everything before the tail (for Azure: before `/deployments`, unless the base is its version-free API).
pub(super) fn write_prefix(paths: Paths, base: &BaseUrl, account: Option<&str>, out: &mut String) {
    let path = &*base.path;
    match paths {
        Paths::Root(root) => out.push_str(if path.is_empty() { root } else { path }),
        Paths::Versioned => {
            out.push_str(path);
            if !path.ends_with("/v1") {
                out.push_str("/v1");
            }
        }
        Paths::Azure => {
            out.push_str(path);
            if !path.ends_with("/openai") && !is_azure_v1(base) {
                out.push_str("/openai");
            }
        }
        Paths::Cloudflare => match account {
            // A base that ends in /v1 is whole: the account's own, a mirror, or an AI Gateway in front.
            Some(account) if !path.ends_with("/v1") => {
                out.push_str(if path.is_empty() { "/client/v4" } else { path });
                out.push_str("/accounts/");
                write_segment(account, out);
                out.push_str("/ai/v1");
            }
            _ => out.push_str(path),
        },
    }
}

pub(super) fn is_azure_v1(base: &BaseUrl) -> bool {
    base.path.ends_with("/v1")
}

pub(super) fn write_version(version: &str, out: &mut String) {
    out.push_str("?api-version=");
    write_segment(version, out);
}

/// Percent-encodes everything but RFC 3986's unreserved characters: a name can neither leave its segment nor begin a query.
pub(super) fn write_segment(text: &str, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => {
                out.push('%');
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
}
