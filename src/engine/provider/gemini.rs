//! Gemini's OpenAI-compatible API. Sources: genai-prices `prices/providers/google.yml`; discuss.ai.google.dev/t/98760 (hidden reasoning).

use super::check::{MODELS_CHECK, MODELS_PROBE};
use super::{Auth, Habits, Kind, Paths, Spec};
use crate::engine::dialect::Endpoint;

pub(super) static SPEC: Spec = Spec {
    kind: Kind::Gemini,
    name: "gemini",
    title: "Gemini",
    // Thinking is in `total_tokens` and in neither part.
    habits: Habits { cached_in_input: true, cache_write_in_input: true, reasoning_in_output: false, hidden_from_total: true },
    needs_account: false,
    needs_key: true,
    base: Some("https://generativelanguage.googleapis.com/v1beta/openai"),
    auth: Auth::Bearer,
    default_headers: &[],
    endpoints: &[Endpoint::ChatCompletions, Endpoint::Embeddings, Endpoint::Images],
    paths: Paths::Root("/v1beta/openai"),
    asks_for_usage: super::CHAT_AND_COMPLETIONS,
    chat_cap: "max_tokens",
    claims_key: claims,
    familiar_key: claims,
    check: MODELS_CHECK,
    probe: MODELS_PROBE,
};

fn claims(key: &str) -> bool {
    key.starts_with("AIza")
}
