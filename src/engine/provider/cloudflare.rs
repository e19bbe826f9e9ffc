//! Cloudflare Workers AI. Sources: cloudflare-docs `workers-ai/configuration/open-ai-compatibility`, `workers-ai/platform/errors`.

use super::check::{At, CheckRow, ProbeRow, Verdict};
use super::key::claims_nothing;
use super::{Auth, Habits, Kind, Paths, Spec};
use crate::engine::dialect::Endpoint;

pub(super) static SPEC: Spec = Spec {
    kind: Kind::Cloudflare,
    name: "cloudflare",
    title: "Cloudflare",
    habits: Habits::OPENAI,
    needs_account: true,
    needs_key: true,
    base: Some("https://api.cloudflare.com/client/v4"),
    auth: Auth::Bearer,
    default_headers: &[],
    endpoints: &[Endpoint::ChatCompletions, Endpoint::Embeddings, Endpoint::Responses],
    paths: Paths::Cloudflare,
    // Whether usage comes unasked is unchecked; asking is the documented dialect.
    asks_for_usage: super::CHAT_AND_COMPLETIONS,
    chat_cap: "max_tokens",
    claims_key: claims_nothing,
    familiar_key: familiar,
    // Tells that the token is active, not that it may run models.
    check: CheckRow { at: At::Host("/client/v4/user/tokens/verify"), read_ok: read_verify, answers_anyone: false },
    probe: ProbeRow { at: At::Host("/client/v4/user/tokens/verify"), with_key: true },
};

/// 40 characters; unchecked.
fn familiar(key: &str) -> bool {
    key.len() == 40 && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// `{"result":{"status":"active"|"disabled"|"expired"}}`
fn read_verify(body: &[u8]) -> Verdict {
    #[derive(serde::Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        result: Result<'a>,
    }
    #[derive(serde::Deserialize)]
    struct Result<'a> {
        status: &'a str,
    }
    match serde_json::from_slice::<Answer<'_>>(body).map(|answer| answer.result.status) {
        Ok("active") => Verdict::Valid,
        Ok("expired") => Verdict::Expired,
        Ok("disabled") => Verdict::Invalid,
        _ => Verdict::Unclear,
    }
}
