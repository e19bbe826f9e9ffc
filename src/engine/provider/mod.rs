//! The providers: one file and one row each. A `match` on the provider anywhere else is a defect.
//!
//! A row is data: where the API is, how a key travels and looks, which endpoints it has, how its paths are built, how it
//! counts, and which call checks a key. Facts whose source is the provider's own documentation or SDK are plain; those that
//! are common knowledge and were not checked against a live provider are marked "unchecked" in the row.
//!
//! Translation between dialects is deliberately absent: a provider that lacks an endpoint does not speak it.

mod anthropic;
mod azure;
mod base;
mod check;
mod cloudflare;
mod compatible;
mod deepseek;
mod gemini;
mod groq;
mod infer;
mod key;
mod mistral;
mod ollama;
mod openai;
mod openrouter;
mod path;
mod together;
mod vllm;

pub use check::{Check, Verdict};
pub use infer::infer;
pub use key::{Shape, foreign_shape, is_familiar, key_shape};

use super::catalog::{BaseUrl, Provider};
use super::dialect::Endpoint;

/// Which API a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// OpenAI.
    OpenAi,
    /// Anthropic's Messages API.
    Anthropic,
    /// OpenRouter.
    OpenRouter,
    /// Together AI.
    Together,
    /// Cloudflare Workers AI.
    Cloudflare,
    /// Ollama's OpenAI-compatible API.
    Ollama,
    /// Azure OpenAI.
    Azure,
    /// Gemini's OpenAI-compatible API.
    Gemini,
    /// Groq.
    Groq,
    /// Mistral.
    Mistral,
    /// DeepSeek.
    DeepSeek,
    /// vLLM's server.
    Vllm,
    /// Anything else that speaks OpenAI's dialect.
    OpenAiCompatible,
}

/// How a key travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// `Authorization: Bearer KEY`
    Bearer,
    /// The header, with the key as its whole value.
    Header(&'static str),
}

/// How a provider's usage document is to be read (the totals are the billing truth, the details are parts of them or not).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Habits {
    /// Tokens read from the prompt cache are inside the input total.
    pub cached_in_input: bool,
    /// Tokens written to the prompt cache are inside the input total.
    pub cache_write_in_input: bool,
    /// Reasoning tokens are inside the output total.
    pub reasoning_in_output: bool,
    /// What `total_tokens` holds beyond input and output is reasoning that is reported nowhere else.
    pub hidden_from_total: bool,
}

impl Habits {
    /// OpenAI's: every detail is a part of its total, and the total hides nothing.
    pub const OPENAI: Habits =
        Habits { cached_in_input: true, cache_write_in_input: true, reasoning_in_output: true, hidden_from_total: false };
}

/// How paths are built from a base URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paths {
    /// Base path and tail; an empty base path stands for the given one.
    Root(&'static str),
    /// As [`Paths::Root`] with `/v1`, which is also put behind any other base path that does not end in it.
    Versioned,
    /// Azure OpenAI: the deployment stands in the path and the API version in the query.
    Azure,
    /// Cloudflare: the account stands in the path.
    Cloudflare,
}

/// What is known about a kind.
#[derive(Debug)]
pub struct Spec {
    /// The kind.
    pub kind: Kind,
    /// Its name in `routing.toml`, the vault and the self-service API.
    pub name: &'static str,
    /// Its name in texts for people.
    pub title: &'static str,
    /// How its usage is to be read.
    pub habits: Habits,
    /// `account` must be configured (or a `base_url` that makes it unnecessary).
    pub needs_account: bool,
    /// A key is normally needed: without one requests are refused by the provider.
    pub needs_key: bool,
    /// Default base URL; `{account}` stands for the configured account. `None`: `base_url` must be configured.
    base: Option<&'static str>,
    auth: Auth,
    default_headers: &'static [(&'static str, &'static str)],
    endpoints: &'static [Endpoint],
    paths: Paths,
    /// Endpoints whose streams carry usage only when asked.
    asks_for_usage: &'static [Endpoint],
    /// The field that caps the output of a chat completion.
    chat_cap: &'static str,
    /// Whether a key is clearly this provider's.
    claims_key: fn(&str) -> bool,
    /// Whether a key looks as this provider's keys are known to look. Only ever a warning: shapes change.
    familiar_key: fn(&str) -> bool,
    check: check::CheckRow,
    probe: check::ProbeRow,
}

/// Every row, in the order of [`Kind`].
pub static SPECS: [&Spec; 13] = [
    &openai::SPEC,
    &anthropic::SPEC,
    &openrouter::SPEC,
    &together::SPEC,
    &cloudflare::SPEC,
    &ollama::SPEC,
    &azure::SPEC,
    &gemini::SPEC,
    &groq::SPEC,
    &mistral::SPEC,
    &deepseek::SPEC,
    &vllm::SPEC,
    &compatible::SPEC,
];

/// The row of `kind`.
pub fn spec(kind: Kind) -> &'static Spec {
    SPECS[kind as usize]
}

impl Kind {
    /// The kind `routing.toml` calls `name`.
    pub fn of_name(name: &str) -> Option<Kind> {
        SPECS.iter().find(|spec| spec.name == name).map(|spec| spec.kind)
    }

    /// The name in `routing.toml`.
    pub fn name(self) -> &'static str {
        spec(self).name
    }
}

/// OpenAI's stream option exists for these two; every other endpoint reports usage without being asked.
pub(crate) const CHAT_AND_COMPLETIONS: &[Endpoint] = &[Endpoint::ChatCompletions, Endpoint::Completions];

/// Everything in OpenAI's dialect.
pub(crate) const OPENAI_ENDPOINTS: &[Endpoint] = &[
    Endpoint::ChatCompletions,
    Endpoint::Completions,
    Endpoint::Responses,
    Endpoint::Embeddings,
    Endpoint::Moderations,
    Endpoint::Images,
    Endpoint::Speech,
    Endpoint::Transcriptions,
    Endpoint::Translations,
];

impl Spec {
    /// Whether the provider has this endpoint in its own dialect.
    pub fn speaks(&self, endpoint: Endpoint) -> bool {
        self.endpoints.contains(&endpoint)
    }

    /// How the key travels.
    pub fn auth(&self) -> Auth {
        self.auth
    }

    /// Headers to add when the caller sent none of that name (`anthropic-version`).
    pub fn default_headers(&self) -> &'static [(&'static str, &'static str)] {
        self.default_headers
    }

    /// The base URL when none is configured. `None`: one must be, or the account it is made of is missing.
    pub fn default_base(&self, account: Option<&str>) -> Option<String> {
        let base = self.base?;
        if base.contains("{account}") { account.map(|account| base.replace("{account}", account)) } else { Some(base.to_owned()) }
    }

    /// Writes the path and query of `endpoint` for `model` to `out` (Azure and Cloudflare put more than a path there).
    pub fn write_path(&self, provider: &Provider, endpoint: Endpoint, model: &str, out: &mut String) {
        self.write_path_at(&provider.base, provider.account.as_deref(), provider.api_version.as_deref(), endpoint, model, out);
    }

    /// As [`Spec::write_path`] for a place that is not the configured one: a caller's own base URL or account.
    pub fn write_path_at(
        &self,
        base: &BaseUrl,
        account: Option<&str>,
        api_version: Option<&str>,
        endpoint: Endpoint,
        model: &str,
        out: &mut String,
    ) {
        path::write_endpoint(self.paths, base, account, api_version, endpoint, model, out);
    }

    /// Whether `stream_options.include_usage` may be (and must be) sent to get usage in a stream of this endpoint.
    pub fn asks_for_usage(&self, endpoint: Endpoint) -> bool {
        self.speaks(endpoint) && self.asks_for_usage.contains(&endpoint)
    }

    /// The request field that caps an answer's tokens on this endpoint; `None`: it has no such cap.
    pub fn output_cap_field(&self, endpoint: Endpoint) -> Option<&'static str> {
        match endpoint {
            Endpoint::ChatCompletions => Some(self.chat_cap),
            Endpoint::Completions | Endpoint::Messages => Some("max_tokens"),
            Endpoint::Responses => Some("max_output_tokens"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
