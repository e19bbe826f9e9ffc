//! Groq. Sources: groq-python `chat_completion_chunk.py`; the list of endpoints is unchecked.

use super::check::{MODELS_CHECK, MODELS_PROBE};
use super::{Auth, Habits, Kind, Paths, Spec};
use crate::engine::dialect::Endpoint;

pub(super) static SPEC: Spec = Spec {
    kind: Kind::Groq,
    name: "groq",
    title: "Groq",
    habits: Habits::OPENAI,
    needs_account: false,
    needs_key: true,
    base: Some("https://api.groq.com/openai/v1"),
    auth: Auth::Bearer,
    default_headers: &[],
    endpoints: &[
        Endpoint::ChatCompletions,
        Endpoint::Responses,
        Endpoint::Embeddings,
        Endpoint::Speech,
        Endpoint::Transcriptions,
        Endpoint::Translations,
    ],
    paths: Paths::Root("/openai/v1"),
    // `x_groq.usage` comes unasked; asking puts it where every other provider has it.
    asks_for_usage: &[Endpoint::ChatCompletions],
    // `max_tokens` is deprecated there.
    chat_cap: "max_completion_tokens",
    claims_key: claims,
    familiar_key: claims,
    check: MODELS_CHECK,
    probe: MODELS_PROBE,
};

fn claims(key: &str) -> bool {
    key.starts_with("gsk_")
}
