//! The operators' page: one file without outside resources. It asks the admin API with the token that its reader enters.

use crate::proxy::respond;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS};
use pingora_core::protocols::http::ServerSession;
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

const PAGE: &str = include_str!("console.html");

/// Nothing from anywhere but this page: its one script and its one style sheet by their hashes, requests to this listener alone.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash_of("<script>", "</script>"),
        hash_of("<style>", "</style>"),
    )
});

/// Answers. Returns whether the connection may be used again.
pub async fn serve(session: &mut ServerSession) -> bool {
    let Ok(policy) = HeaderValue::from_str(&POLICY) else { return false };
    let mut header = respond::document(200, "text/html; charset=utf-8", PAGE.len());
    for (name, value) in [
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    ] {
        header.headers.insert(name, value);
    }
    respond::write(session, header, Bytes::from_static(PAGE.as_bytes())).await
}

/// The hash that lets what stands between two tags run (CSP level 2, section 4.2.5: the element's text, exactly).
fn hash_of(open: &str, close: &str) -> String {
    let text = PAGE.split_once(open).and_then(|(_, rest)| rest.split_once(close)).map_or("", |(text, _)| text);
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_script_and_one_style_sheet_and_nothing_from_outside() {
        for tag in ["<script", "<style", "</script>", "</style>"] {
            assert_eq!(PAGE.matches(tag).count(), 1, "{tag}");
        }
        for outside in ["http://", "https://", "src=", "<link", "@import", "url(", " style=", " onclick=", "innerHTML", "eval("] {
            // The namespace of SVG is a name, not an address.
            assert!(!PAGE.replace("http://www.w3.org/2000/svg", "").contains(outside), "{outside}");
        }
        assert_ne!(hash_of("<script>", "</script>"), hash_of("<style>", "</style>"));
    }
}
