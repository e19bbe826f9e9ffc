//! Together AI. Key shape, list of endpoints and rate-limit headers are unchecked.

use super::check::{MODELS_CHECK, MODELS_PROBE};
use super::key::is_hex;
use super::{Auth, Habits, Kind, Paths, Spec};
use crate::engine::dialect::Endpoint;

pub(super) static SPEC: Spec = Spec {
    kind: Kind::Together,
    name: "together",
    title: "Together AI",
    habits: Habits::OPENAI,
    needs_account: false,
    needs_key: true,
    base: Some("https://api.together.xyz/v1"),
    auth: Auth::Bearer,
    default_headers: &[],
    endpoints: &[
        Endpoint::ChatCompletions,
        Endpoint::Completions,
        Endpoint::Embeddings,
        Endpoint::Images,
        Endpoint::Speech,
        Endpoint::Transcriptions,
        Endpoint::Translations,
    ],
    paths: Paths::Root("/v1"),
    asks_for_usage: super::CHAT_AND_COMPLETIONS,
    chat_cap: "max_tokens",
    claims_key: claims,
    familiar_key: familiar,
    check: MODELS_CHECK,
    probe: MODELS_PROBE,
};

fn claims(key: &str) -> bool {
    key.starts_with("tgp_v1_")
}

/// The older keys.
fn familiar(key: &str) -> bool {
    is_hex(key, 64)
}
