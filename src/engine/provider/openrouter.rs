//! OpenRouter. Sources: openrouter.ai/docs (usage accounting, limits).

use super::check::{At, CheckRow, ProbeRow, Verdict};
use super::{Auth, Habits, Kind, Paths, Spec};
use crate::engine::dialect::Endpoint;

pub(super) static SPEC: Spec = Spec {
    kind: Kind::OpenRouter,
    name: "openrouter",
    title: "OpenRouter",
    habits: Habits::OPENAI,
    needs_account: false,
    needs_key: true,
    base: Some("https://openrouter.ai/api/v1"),
    auth: Auth::Bearer,
    default_headers: &[],
    // Responses and embeddings are unchecked.
    endpoints: &[Endpoint::ChatCompletions, Endpoint::Completions, Endpoint::Responses, Endpoint::Embeddings],
    paths: Paths::Root("/api/v1"),
    // Usage comes always; `stream_options` is "deprecated and has no effect".
    asks_for_usage: &[],
    chat_cap: "max_tokens",
    claims_key: claims,
    familiar_key: claims,
    // The list of models is public there and large; this one is about the key.
    check: CheckRow { at: At::Prefix("/key"), read_ok: read_key, answers_anyone: false },
    probe: ProbeRow { at: At::Prefix("/key"), with_key: true },
};

fn claims(key: &str) -> bool {
    key.starts_with("sk-or-")
}

/// `{"data":{"limit_remaining":…}}`: `null` without a limit.
fn read_key(body: &[u8]) -> Verdict {
    #[derive(serde::Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        data: Data<'a>,
    }
    #[derive(serde::Deserialize)]
    struct Data<'a> {
        #[serde(borrow, default)]
        limit_remaining: Option<&'a serde_json::value::RawValue>,
    }
    match serde_json::from_slice::<Answer<'_>>(body) {
        Ok(Answer { data: Data { limit_remaining: Some(left) } })
            if left.get().starts_with('-') || left.get().trim_matches(['0', '.']).is_empty() =>
        {
            Verdict::NoCredit
        }
        Ok(_) => Verdict::Valid,
        Err(_) => Verdict::Unclear,
    }
}
