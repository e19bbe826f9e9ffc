//! Anything else that speaks OpenAI's dialect. The base URL is used exactly as written, for some such servers have no `/v1`.

use super::check::{At, CheckRow, MODELS_PROBE, valid};
use super::key::{any_key, claims_nothing};
use super::{Auth, Habits, Kind, Paths, Spec};

pub(super) static SPEC: Spec = Spec {
    kind: Kind::OpenAiCompatible,
    name: "openai-compatible",
    title: "an OpenAI-compatible server",
    // xAI reports reasoning beside the output; whatever the total holds beyond the parts is then still counted.
    habits: Habits { hidden_from_total: true, ..Habits::OPENAI },
    needs_account: false,
    needs_key: false,
    base: None,
    auth: Auth::Bearer,
    default_headers: &[],
    endpoints: super::OPENAI_ENDPOINTS,
    paths: Paths::Root(""),
    asks_for_usage: super::CHAT_AND_COMPLETIONS,
    chat_cap: "max_tokens",
    claims_key: claims_nothing,
    familiar_key: any_key,
    check: CheckRow { at: At::Prefix("/models"), read_ok: valid, answers_anyone: true },
    probe: MODELS_PROBE,
};
