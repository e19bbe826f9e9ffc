//! Which provider a name nobody configured belongs to.

use super::Kind;
use crate::engine::catalog::is_of_a_name;

/// Prefixes that name a provider and are no part of the model's name there.
const VENDORS: &[(&str, Kind)] =
    &[("openrouter/", Kind::OpenRouter), ("together/", Kind::Together), ("groq/", Kind::Groq), ("ollama/", Kind::Ollama)];

/// Prefixes of model families that belong to one provider. `ft:gpt-` is how OpenAI names fine-tuned models; without it their
/// colons would read as Ollama tags.
const FAMILIES: &[(&str, Kind)] = &[
    ("gpt-", Kind::OpenAi),
    ("ft:gpt-", Kind::OpenAi),
    ("o1", Kind::OpenAi),
    ("o3", Kind::OpenAi),
    ("o4", Kind::OpenAi),
    ("claude-", Kind::Anthropic),
    ("gemini-", Kind::Gemini),
];

/// The provider and its name for `model`; `None`: nothing can be said. `weir/…` is never sent anywhere: levels are weir's own. Nor is
/// what could not be configured: a name goes into headers, paths and the results of the library for other proxies.
pub fn infer(model: &str) -> Option<(Kind, &str)> {
    if !model.bytes().all(is_of_a_name) {
        return None;
    }
    if let Some(rest) = model.strip_prefix("@cf/") {
        return (!rest.is_empty()).then_some((Kind::Cloudflare, model));
    }
    for (prefix, kind) in VENDORS {
        if let Some(rest) = model.strip_prefix(prefix) {
            return (!rest.is_empty()).then_some((*kind, rest));
        }
    }
    if let Some((_, kind)) = FAMILIES.iter().find(|(prefix, _)| model.starts_with(prefix)) {
        return Some((*kind, model));
    }
    if let Some((vendor, name)) = model.split_once('/') {
        return (!vendor.is_empty() && vendor != "weir" && !name.is_empty()).then_some((Kind::OpenRouter, model));
    }
    let (name, tag) = model.split_once(':')?;
    (!name.is_empty() && !tag.is_empty()).then_some((Kind::Ollama, model))
}
