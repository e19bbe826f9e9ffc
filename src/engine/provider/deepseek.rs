//! DeepSeek. Sources: genai-prices `prices/providers/deepseek.yml`; key shape unchecked.

use super::check::{MODELS_CHECK, MODELS_PROBE};
use super::key::{claims_nothing, is_hex};
use super::{Auth, Habits, Kind, Paths, Spec};
use crate::engine::dialect::Endpoint;

pub(super) static SPEC: Spec = Spec {
    kind: Kind::DeepSeek,
    name: "deepseek",
    title: "DeepSeek",
    habits: Habits::OPENAI,
    needs_account: false,
    needs_key: true,
    base: Some("https://api.deepseek.com"),
    auth: Auth::Bearer,
    default_headers: &[],
    // Its completions are another, beta base URL.
    endpoints: &[Endpoint::ChatCompletions],
    paths: Paths::Root(""),
    asks_for_usage: &[Endpoint::ChatCompletions],
    chat_cap: "max_tokens",
    claims_key: claims_nothing,
    familiar_key: familiar,
    check: MODELS_CHECK,
    probe: MODELS_PROBE,
};

/// Others give out keys of this shape too, so it is no claim.
fn familiar(key: &str) -> bool {
    key.strip_prefix("sk-").is_some_and(|rest| is_hex(rest, 32))
}
