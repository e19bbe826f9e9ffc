//! Azure OpenAI. Sources: Azure's REST reference for the inference API; the version-free `/openai/v1` form and key shapes are unchecked.

use super::check::{At, CheckRow, ProbeRow, valid};
use super::key::{claims_nothing, is_alphanumeric, is_hex};
use super::{Auth, Habits, Kind, Paths, Spec};
use crate::engine::dialect::Endpoint;

pub(super) static SPEC: Spec = Spec {
    kind: Kind::Azure,
    name: "azure",
    title: "Azure OpenAI",
    habits: Habits::OPENAI,
    needs_account: true,
    needs_key: true,
    // `account` is the resource.
    base: Some("https://{account}.openai.azure.com"),
    auth: Auth::Header("api-key"),
    default_headers: &[],
    endpoints: &[
        Endpoint::ChatCompletions,
        Endpoint::Completions,
        Endpoint::Responses,
        Endpoint::Embeddings,
        Endpoint::Images,
        Endpoint::Speech,
        Endpoint::Transcriptions,
        Endpoint::Translations,
    ],
    paths: Paths::Azure,
    asks_for_usage: super::CHAT_AND_COMPLETIONS,
    chat_cap: "max_completion_tokens",
    claims_key: claims_nothing,
    familiar_key: familiar,
    check: CheckRow { at: At::Azure("/models"), read_ok: valid, answers_anyone: false },
    probe: ProbeRow { at: At::Azure("/models"), with_key: true },
};

fn familiar(key: &str) -> bool {
    is_hex(key, 32) || is_alphanumeric(key, 84)
}
