//! Mistral. Sources: openai-agents-python#442 and avante.nvim#2347 (include_usage refused with 422); key shape unchecked.

use super::check::{MODELS_CHECK, MODELS_PROBE};
use super::key::{claims_nothing, is_alphanumeric};
use super::{Auth, Habits, Kind, Paths, Spec};
use crate::engine::dialect::Endpoint;

pub(super) static SPEC: Spec = Spec {
    kind: Kind::Mistral,
    name: "mistral",
    title: "Mistral",
    habits: Habits::OPENAI,
    needs_account: false,
    needs_key: true,
    base: Some("https://api.mistral.ai/v1"),
    auth: Auth::Bearer,
    default_headers: &[],
    endpoints: &[Endpoint::ChatCompletions, Endpoint::Embeddings, Endpoint::Moderations, Endpoint::Transcriptions],
    paths: Paths::Root("/v1"),
    // Usage comes in the last chunk by itself, and asking for it is refused.
    asks_for_usage: &[],
    chat_cap: "max_tokens",
    claims_key: claims_nothing,
    familiar_key: familiar,
    check: MODELS_CHECK,
    probe: MODELS_PROBE,
};

fn familiar(key: &str) -> bool {
    is_alphanumeric(key, 32)
}
