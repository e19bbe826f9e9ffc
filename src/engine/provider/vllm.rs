//! vLLM's server. Source: vllm `entrypoints/openai`.

use super::check::{At, CheckRow, ProbeRow, valid};
use super::key::{any_key, claims_nothing};
use super::{Auth, Habits, Kind, Paths, Spec};
use crate::engine::dialect::Endpoint;

pub(super) static SPEC: Spec = Spec {
    kind: Kind::Vllm,
    name: "vllm",
    title: "vLLM",
    habits: Habits::OPENAI,
    needs_account: false,
    needs_key: false,
    base: None,
    auth: Auth::Bearer,
    default_headers: &[],
    endpoints: &[
        Endpoint::ChatCompletions,
        Endpoint::Completions,
        Endpoint::Responses,
        Endpoint::Embeddings,
        Endpoint::Transcriptions,
        Endpoint::Translations,
    ],
    paths: Paths::Root("/v1"),
    asks_for_usage: super::CHAT_AND_COMPLETIONS,
    chat_cap: "max_tokens",
    claims_key: claims_nothing,
    familiar_key: any_key,
    check: CheckRow { at: At::Prefix("/models"), read_ok: valid, answers_anyone: true },
    probe: ProbeRow { at: At::Host("/health"), with_key: false },
};
