//! Anthropic. Sources: anthropic-sdk-python (`_client.py`, `types/usage.py`), gitleaks' anthropic rule.

use super::check::{MODELS_CHECK, MODELS_PROBE};
use super::{Auth, Habits, Kind, Paths, Spec};
use crate::engine::dialect::Endpoint;

pub(super) static SPEC: Spec = Spec {
    kind: Kind::Anthropic,
    name: "anthropic",
    title: "Anthropic",
    // `input_tokens`, `cache_read_input_tokens` and `cache_creation_input_tokens` stand side by side.
    habits: Habits { cached_in_input: false, cache_write_in_input: false, reasoning_in_output: true, hidden_from_total: false },
    needs_account: false,
    needs_key: true,
    base: Some("https://api.anthropic.com"),
    auth: Auth::Header("x-api-key"),
    default_headers: &[("anthropic-version", "2023-06-01")],
    endpoints: &[Endpoint::Messages, Endpoint::CountTokens],
    paths: Paths::Versioned,
    asks_for_usage: &[],
    chat_cap: "max_tokens",
    claims_key: claims,
    familiar_key: claims,
    check: MODELS_CHECK,
    probe: MODELS_PROBE,
};

/// API (`sk-ant-api03-`), admin and OAuth keys alike.
fn claims(key: &str) -> bool {
    key.starts_with("sk-ant-")
}
