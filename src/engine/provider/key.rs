//! What keys look like. A key that is clearly another provider's is a mistake worth refusing; an unfamiliar one is only worth
//! a warning, for shapes change.
//!
//! Shapes: the provider rules of gitleaks (openai, anthropic) and the providers' documentation; per row where unchecked.

use super::{Kind, SPECS, spec};

/// Whose key a text looks to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Clearly this provider's.
    Of(Kind),
    /// One of weir's own, which opens weir and nothing upstream.
    Weir,
    /// Clearly that of a provider weir has no kind for.
    Other(&'static str),
    /// Nothing clear.
    Unclear,
}

/// Prefixes of providers that have no kind of their own, and of things that are often pasted by mistake. Unchecked but for
/// their long use in secret scanners.
const OTHERS: &[(&str, &str)] = &[
    ("xai-", "xAI"),
    ("hf_", "Hugging Face"),
    ("nvapi-", "NVIDIA"),
    ("pplx-", "Perplexity"),
    ("r8_", "Replicate"),
    ("fw_", "Fireworks"),
    ("AKIA", "AWS"),
    ("ghp_", "GitHub"),
    ("github_pat_", "GitHub"),
    ("sk_live_", "Stripe"),
];

/// What begins every key weir gives out.
pub const WEIR_PREFIX: &str = "wk_";

/// Whose key this looks to be.
pub fn key_shape(key: &str) -> Shape {
    if key.starts_with(WEIR_PREFIX) {
        return Shape::Weir;
    }
    if let Some(spec) = SPECS.iter().find(|spec| (spec.claims_key)(key)) {
        return Shape::Of(spec.kind);
    }
    OTHERS.iter().find(|(prefix, _)| key.starts_with(prefix)).map_or(Shape::Unclear, |(_, name)| Shape::Other(name))
}

/// The name of the provider a key clearly belongs to, when that is not `kind`. Kinds whose keys are made up by whoever runs
/// the server (Ollama, vLLM, OpenAI-compatible) take any.
pub fn foreign_shape(kind: Kind, key: &str) -> Option<&'static str> {
    if !spec(kind).needs_key {
        return None;
    }
    match key_shape(key) {
        Shape::Of(owner) if owner != kind => Some(spec(owner).title),
        Shape::Of(_) | Shape::Unclear => None,
        Shape::Weir => Some("weir"),
        Shape::Other(name) => Some(name),
    }
}

/// Whether a key looks as this provider's are known to look; `false` is worth a warning and no more.
pub fn is_familiar(kind: Kind, key: &str) -> bool {
    let spec = spec(kind);
    (spec.claims_key)(key) || (spec.familiar_key)(key)
}

pub(super) fn claims_nothing(_key: &str) -> bool {
    false
}

pub(super) fn any_key(_key: &str) -> bool {
    true
}

pub(super) fn is_hex(key: &str, length: usize) -> bool {
    key.len() == length && key.bytes().all(|byte| byte.is_ascii_hexdigit())
}

pub(super) fn is_alphanumeric(key: &str, length: usize) -> bool {
    key.len() == length && key.bytes().all(|byte| byte.is_ascii_alphanumeric())
}
