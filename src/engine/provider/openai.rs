//! OpenAI. Sources: openai-python (`types/completion_usage.py`), gitleaks' openai rule.

use super::check::{MODELS_CHECK, MODELS_PROBE};
use super::{Auth, Habits, Kind, Paths, Spec};

pub(super) static SPEC: Spec = Spec {
    kind: Kind::OpenAi,
    name: "openai",
    title: "OpenAI",
    habits: Habits::OPENAI,
    needs_account: false,
    needs_key: true,
    base: Some("https://api.openai.com/v1"),
    auth: Auth::Bearer,
    default_headers: &[],
    endpoints: super::OPENAI_ENDPOINTS,
    paths: Paths::Root("/v1"),
    asks_for_usage: super::CHAT_AND_COMPLETIONS,
    // `max_tokens` is refused by the reasoning models.
    chat_cap: "max_completion_tokens",
    claims_key: claims,
    familiar_key: familiar,
    check: MODELS_CHECK,
    probe: MODELS_PROBE,
};

/// Project, service account and admin keys; the infix is base64 of "OpenAI" and is in every key of the last years.
fn claims(key: &str) -> bool {
    ["sk-proj-", "sk-svcacct-", "sk-admin-"].iter().any(|prefix| key.starts_with(prefix))
        || (key.starts_with("sk-") && key.contains("T3BlbkFJ"))
}

fn familiar(key: &str) -> bool {
    key.starts_with("sk-")
}
