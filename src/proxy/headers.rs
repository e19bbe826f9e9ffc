//! Which headers cross: a deny list for credentials, hop-by-hop fields and what is weir's own; everything else passes.

use super::heap::boxed;
use super::respond;
use crate::engine::outbound::{crosses_down, crosses_up, nominates};
use crate::engine::provider::{Auth, Spec};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::response::Parts;
use pingora_http::{RequestHeader, ResponseHeader};

/// Fields that weir adds to an answer at most.
pub const OWN_HEADERS: usize = 16;

/// The request's id: the caller's if it sent one, else weir's.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// weir's own id of the request, whatever the caller calls it.
pub const X_WEIR_REQUEST_ID: HeaderName = HeaderName::from_static("x-weir-request-id");
/// The name of the provider that answered.
pub const X_PROVIDER_USED: HeaderName = HeaderName::from_static("x-provider-used");
/// The provider's name of the model that answered.
pub const X_MODEL_USED: HeaderName = HeaderName::from_static("x-model-used");
/// `true`: with the caller's own provider key.
pub const X_USED_BYOK: HeaderName = HeaderName::from_static("x-used-byok");
/// `true`: not the first choice.
pub const X_WAS_FALLBACK: HeaderName = HeaderName::from_static("x-was-fallback");
/// How many attempts it took.
pub const X_WEIR_ATTEMPTS: HeaderName = HeaderName::from_static("x-weir-attempts");
/// US dollars, decimal; whole answers only.
pub const X_COST_INCURRED: HeaderName = HeaderName::from_static("x-cost-incurred");

/// What an upstream request is made of.
pub struct Outbound<'a> {
    /// The client's request.
    pub client: &'a RequestHeader,
    /// The provider's row.
    pub spec: &'a Spec,
    /// Path and query.
    pub path: &'a str,
    /// `host` or `host:port`.
    pub authority: &'a str,
    /// The provider's key.
    pub key: Option<&'a str>,
    /// The caller's own key pays.
    pub own_key: bool,
    /// Bytes of the body.
    pub length: usize,
    /// weir's id of the request.
    pub request_id: &'a str,
}

/// The header of an upstream request. `None`: the key or path cannot be sent as a header (control characters).
///
/// Made as a plain map: Pingora's own setters look each name up by its bytes again.
pub fn outbound(out: &Outbound<'_>) -> Option<Box<RequestHeader>> {
    let client = &out.client.headers;
    let mut headers = HeaderMap::with_capacity(client.len() + 6);
    copy(client, &mut headers, |name| crosses_up(name, out.own_key));
    headers.insert(header::HOST, HeaderValue::from_str(out.authority).ok()?);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(out.length));
    headers.insert(X_REQUEST_ID, HeaderValue::from_str(out.request_id).ok()?);
    for (name, value) in out.spec.default_headers() {
        if !client.contains_key(*name) {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
    }
    if let Some(key) = out.key {
        let (name, value) = match out.spec.auth() {
            Auth::Bearer => (header::AUTHORIZATION, HeaderValue::from_maybe_shared(["Bearer ", key].concat())),
            Auth::Header(name) => (HeaderName::from_static(name), HeaderValue::from_str(key)),
        };
        let mut value = value.ok()?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    let (mut parts, ()) = http::Request::new(()).into_parts();
    (parts.method, parts.uri, parts.headers) = (http::Method::POST, out.path.parse().ok()?, headers);
    Some(boxed(|| parts.into()))
}

/// What of an upstream's header goes to the client, with room for weir's own fields.
pub fn passing(upstream: &ResponseHeader) -> Parts {
    let mut header = respond::header(upstream.status.as_u16(), upstream.headers.len() + OWN_HEADERS);
    copy(&upstream.headers, &mut header.headers, crosses_down);
    header
}

fn copy(from: &HeaderMap, to: &mut HeaderMap, crosses: impl Fn(&str) -> bool) {
    let connections = from.get_all(header::CONNECTION);
    for (name, value) in from {
        let text = name.as_str();
        if crosses(text) && !connections.iter().any(|connection| nominates(connection.as_bytes(), text)) {
            // As many as came in, of which Pingora takes 256: far below the map's bound, beyond which the rest stays behind.
            let _ = to.try_append(name, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::provider::{Kind, spec};

    #[test]
    fn organisation_cookies_and_rate_limits_of_the_provider_are_dropped() {
        let (mut upstream, ()) = http::Response::new(()).into_parts();
        for (name, value) in
            [("openai-organization", "acme"), ("set-cookie", "a=b"), ("x-ratelimit-limit-requests", "1"), ("openai-version", "x")]
        {
            upstream.headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let to = passing(&upstream.into()).headers;
        assert_eq!(to.len(), 1);
        assert!(to.contains_key("openai-version"));
    }

    #[test]
    fn what_any_connection_header_names_stays_here() {
        let mut from = HeaderMap::new();
        for value in [&b"close, X-One"[..], b"\xff, X-Two", b"keep-alive", b"x-three"] {
            from.append(header::CONNECTION, HeaderValue::from_bytes(value).unwrap());
        }
        for name in ["x-one", "x-two", "x-three", "x-four"] {
            from.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        let only_four =
            |to: &HeaderMap| ["x-one", "x-two", "x-three", "x-four"].map(|name| to.contains_key(name)) == [false, false, false, true];
        let (mut upstream, ()) = http::Response::new(()).into_parts();
        upstream.headers = from.clone();
        assert!(only_four(&passing(&upstream.into()).headers));
        let (mut client, ()) = http::Request::new(()).into_parts();
        client.headers = from;
        let out = Outbound {
            client: &client.into(),
            spec: spec(Kind::OpenAi),
            path: "/v1/chat/completions",
            authority: "api.example.com",
            key: None,
            own_key: false,
            length: 0,
            request_id: "r",
        };
        assert!(only_four(&outbound(&out).unwrap().headers));
    }
}
