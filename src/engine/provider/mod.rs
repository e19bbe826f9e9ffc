//! The providers: one row each. A `match` on the provider anywhere else is a defect.

use super::catalog::Provider;
use super::dialect::Endpoint;

/// Which API a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Kind {
    OpenAi, Anthropic, OpenRouter, Together, Cloudflare, Ollama, Azure, Gemini, Groq, Mistral, DeepSeek, Vllm, OpenAiCompatible,
}

/// How a key travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// `Authorization: Bearer KEY`
    Bearer,
    /// The header, with the key as its whole value.
    Header(&'static str),
}

/// What is known about a kind.
#[derive(Debug)]
pub struct Spec {
    /// The kind.
    pub kind: Kind,
    /// Its name in `routing.toml`.
    pub name: &'static str,
}

/// The row of `kind`.
pub fn spec(_kind: Kind) -> &'static Spec {
    todo!()
}

impl Spec {
    /// Whether the provider has this endpoint in its own dialect.
    pub fn speaks(&self, _endpoint: Endpoint) -> bool {
        todo!()
    }
    /// How the key travels.
    pub fn auth(&self) -> Auth {
        todo!()
    }
    /// Headers to add when the caller sent none of that name (`anthropic-version`).
    pub fn default_headers(&self) -> &'static [(&'static str, &'static str)] {
        todo!()
    }
    /// Writes the path and query of `endpoint` for `model` to `out` (Azure and Cloudflare put more than a path there).
    pub fn write_path(&self, _provider: &Provider, _endpoint: Endpoint, _model: &str, _out: &mut String) {
        todo!()
    }
    /// Whether `stream_options.include_usage` may be (and must be) sent to get usage in a stream of this endpoint.
    pub fn asks_for_usage(&self, _endpoint: Endpoint) -> bool {
        todo!()
    }
}
