//! What goes to a provider and comes back, the same for whoever carries it (the gateway, or a library in another proxy): which
//! headers cross, what is changed in the body, and how many tokens the prompt is taken to have.

use super::dialect::Endpoint;
use super::peek::{Edits, Peek};
use super::provider::Spec;
use super::route::Attempt;
use super::tokens;

/// Tokens an image costs, roughly, where only its presence is known: a 1024 × 1024 picture in high detail is 765 at GPT-4o and
/// about 1,600 at Claude.
pub const IMAGE_TOKENS: u64 = 1600;
/// Framing tokens of a message (the OpenAI cookbook's count of 3 and one to spare).
pub const MESSAGE_TOKENS: u64 = 4;

/// Never sent upstream: credentials of any provider's shape, cookies, hop-by-hop fields (RFC 9110, 7.6.1), what weir sets
/// itself, and weir's own request headers.
fn is_denied_up(name: &str) -> bool {
    matches!(
        name,
        "accept-encoding"
            | "api-key"
            // Kong's and APISIX's own key.
            | "apikey"
            | "authorization"
            | "connection"
            | "content-length"
            | "cookie"
            | "expect"
            | "host"
            | "idempotency-key"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "x-api-key"
            | "x-goog-api-key"
            | "x-power-level"
            | "x-request-id"
            | "x-task-type"
    )
}

/// What begins the names of headers that are not sent to a provider: weir's own, and who the caller is to the proxy in front (Kong, APISIX).
const DENIED_UP_PREFIXES: [&str; 3] = ["x-consumer-", "x-credential-", "x-weir-"];

/// The platform's account decides these when its key pays; a caller's own key may name its own organisation.
fn is_the_platforms(name: &str) -> bool {
    matches!(name, "openai-organization" | "openai-project")
}

/// Never sent to the client: hop-by-hop fields, cookies, what names the platform's account with the provider, and what weir
/// states itself.
fn is_denied_down(name: &str) -> bool {
    matches!(
        name,
        "alt-svc"
            | "anthropic-organization-id"
            | "connection"
            | "content-length"
            | "keep-alive"
            | "openai-organization"
            | "openai-project"
            | "proxy-authenticate"
            | "proxy-connection"
            | "set-cookie"
            | "set-cookie2"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "x-cost-incurred"
            | "x-model-used"
            | "x-ms-deployment-name"
            | "x-ms-region"
            | "x-provider-used"
            | "x-request-id"
            | "x-used-byok"
            | "x-was-fallback"
    )
}

/// What begins the names of headers that stay here. A provider's tell the platform's allowance, which is not the caller's: rate-limit
/// headers are weir's own. Without a dash where there are `RateLimit` itself and Mistral's `ratelimitbysize-…`.
const DENIED_DOWN_PREFIXES: [&str; 7] =
    ["anthropic-priority-", "anthropic-ratelimit-", "ratelimit", "x-rate-limit", "x-ratelimit", "x-tokenlimit-", "x-weir-"];

/// Whether a client's header (its name in lower case) goes to the provider. What a `Connection` header names does not either.
pub fn crosses_up(name: &str, own_key: bool) -> bool {
    !(is_denied_up(name) || DENIED_UP_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || (!own_key && is_the_platforms(name)))
}

/// Whether a provider's header (its name in lower case) goes to the client. What a `Connection` header names does not either.
pub fn crosses_down(name: &str) -> bool {
    !(is_denied_down(name) || DENIED_DOWN_PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
}

/// Whether a `Connection` header's value says that this field goes no further than this hop (RFC 9110, 7.6.1). There may be
/// several such headers, and bytes in one that are no text: what else it names holds all the same.
pub fn nominates(connection: &[u8], name: &str) -> bool {
    connection.split(|byte| *byte == b',').any(|nominated| nominated.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
}

/// Tokens of the prompt, without tokenizing: deliberately cautious (see [`tokens::estimate`]).
pub fn prompt_tokens(model: &str, peek: &Peek) -> u64 {
    tokens::estimate(tokens::family(model), peek.text_bytes as usize)
        .saturating_add(peek.token_ids)
        .saturating_add(peek.messages.saturating_mul(MESSAGE_TOKENS))
        .saturating_add(peek.images.saturating_mul(IMAGE_TOKENS))
}

/// What is changed in a body for `attempt`; `output_cap` is a cap that the balance sets. Usage is asked for, and to be taken out
/// again, where the edits say `include_usage`.
pub fn edits<'a>(endpoint: Endpoint, peek: &Peek, row: &Spec, attempt: &'a Attempt, output_cap: Option<u64>) -> Edits<'a> {
    let upstream_model = &*attempt.target.upstream_model;
    Edits {
        model: (peek.model.as_deref() != Some(upstream_model)).then_some(upstream_model),
        include_usage: peek.stream && !peek.include_usage && row.asks_for_usage(endpoint),
        max_output: [output_cap, attempt.max_output].into_iter().flatten().min(),
        cap_field: row.output_cap_field(endpoint).unwrap_or(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nominated_fields_stay_here() {
        assert!(nominates(b"close, X-Foo", "x-foo"));
        assert!(nominates(b"\xff, X-Foo", "x-foo"));
        assert!(!nominates(b"close, X-Foo", "x-bar"));
    }

    #[test]
    fn credentials_stay_here_and_an_own_organisation_goes_with_an_own_key() {
        for name in [
            "authorization",
            "x-api-key",
            "api-key",
            "apikey",
            "cookie",
            "host",
            "x-weir-byok",
            "x-power-level",
            "x-consumer-username",
            "x-credential-identifier",
        ] {
            assert!(!crosses_up(name, true), "{name}");
        }
        assert!(crosses_up("openai-beta", false) && crosses_up("openai-organization", true) && !crosses_up("openai-organization", false));
    }

    #[test]
    fn the_platforms_account_and_allowance_stay_here() {
        for name in [
            "anthropic-organization-id",
            "anthropic-priority-input-tokens-limit",
            "anthropic-ratelimit-tokens-reset",
            "openai-organization",
            "ratelimit",
            "ratelimit-policy",
            "ratelimit-remaining",
            "ratelimitbysize-limit",
            "set-cookie",
            "set-cookie2",
            "x-ms-deployment-name",
            "x-ms-region",
            "x-rate-limit-reset",
            "x-ratelimit-remaining-requests",
            "x-tokenlimit-remaining",
            "x-weir-fake",
        ] {
            assert!(!crosses_down(name), "{name}");
        }
        for name in ["content-type", "openai-processing-ms", "openai-version", "retry-after", "x-ms-client-request-id"] {
            assert!(crosses_down(name), "{name}");
        }
    }
}
