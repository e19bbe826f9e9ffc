//! Ollama's OpenAI-compatible API. Source: ollama `middleware/openai.go`, `docs/openai`.

use super::check::{At, CheckRow, ProbeRow, valid};
use super::key::{any_key, claims_nothing};
use super::{Auth, Habits, Kind, Paths, Spec};
use crate::engine::dialect::Endpoint;

pub(super) static SPEC: Spec = Spec {
    kind: Kind::Ollama,
    name: "ollama",
    title: "Ollama",
    habits: Habits::OPENAI,
    needs_account: false,
    // ollama.com takes one, a local server none.
    needs_key: false,
    base: Some("http://127.0.0.1:11434/v1"),
    auth: Auth::Bearer,
    default_headers: &[],
    // Responses: recent versions only; unchecked.
    endpoints: &[Endpoint::ChatCompletions, Endpoint::Completions, Endpoint::Responses, Endpoint::Embeddings],
    paths: Paths::Root("/v1"),
    asks_for_usage: super::CHAT_AND_COMPLETIONS,
    chat_cap: "max_tokens",
    claims_key: claims_nothing,
    familiar_key: any_key,
    check: CheckRow { at: At::Prefix("/models"), read_ok: valid, answers_anyone: true },
    probe: ProbeRow { at: At::Host("/api/version"), with_key: false },
};
