//! What LiteLLM users bring along: a proxy `config.yaml` becomes routing.toml and prices.toml, and LiteLLM's public price table
//! (`model_prices_and_context_window.json`) becomes prices.toml.
//!
//! Text in, text out. What cannot be carried over is listed with its line, never dropped in silence; a secret is never carried over and never
//! quoted. Formats: docs.litellm.ai `proxy/configs`, `proxy/config_settings`, `proxy/reliability`; field names of the table as in its `sample_spec`.

mod gateway;
mod rates;
mod yaml;

use super::problem::Problem;

/// The files an import makes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Import {
    /// `routing.toml`; `None` when a price table was imported.
    pub routing: Option<String>,
    /// `prices.toml`.
    pub prices: String,
    /// What was not carried over or needs a hand, in the order of the file's lines.
    pub left: Vec<Problem>,
}

/// Imports a `config.yaml` or a price table, whichever `text` is. `file` is the name problems are reported under.
/// `Err`: it is neither; says why.
pub fn import(file: &str, text: &str) -> Result<Import, Problem> {
    let mut import = if text.trim_start().starts_with('{') {
        let (prices, left) = rates::table(file, text)?;
        Import { routing: None, prices, left }
    } else {
        gateway::config(file, &yaml::parse(file, text)?)?
    };
    import.left.sort_by_key(|problem| problem.line);
    Ok(import)
}

/// How one of LiteLLM's providers is called here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    /// LiteLLM's name: `litellm_provider`, and the first part of `model`.
    theirs: &'static str,
    /// The name a provider table gets when there is one of its sort.
    name: &'static str,
    /// `kind` in routing.toml.
    kind: &'static str,
    /// Where it is, for a kind without a usual place.
    base_url: Option<&'static str>,
    /// The environment variable LiteLLM reads the key from when `api_key` is missing.
    key_variable: Option<&'static str>,
}

const fn known(theirs: &'static str, name: &'static str, kind: &'static str, key_variable: Option<&'static str>) -> Known {
    Known { theirs, name, kind, base_url: None, key_variable }
}

const fn compatible(theirs: &'static str, base_url: Option<&'static str>, key_variable: Option<&'static str>) -> Known {
    Known { theirs, name: theirs, kind: "openai-compatible", base_url, key_variable }
}

/// LiteLLM's providers that speak an API weir knows (LiteLLM's provider pages; base URLs and variables as stated there). The others
/// (bedrock, vertex_ai, sagemaker, cohere, …) have formats of their own.
const PROVIDERS: [Known; 27] = [
    known("openai", "openai", "openai", Some("OPENAI_API_KEY")),
    known("text-completion-openai", "openai", "openai", Some("OPENAI_API_KEY")),
    known("anthropic", "anthropic", "anthropic", Some("ANTHROPIC_API_KEY")),
    known("azure", "azure", "azure", Some("AZURE_API_KEY")),
    known("azure_text", "azure", "azure", Some("AZURE_API_KEY")),
    known("gemini", "gemini", "gemini", Some("GEMINI_API_KEY")),
    known("openrouter", "openrouter", "openrouter", Some("OPENROUTER_API_KEY")),
    known("together_ai", "together", "together", Some("TOGETHERAI_API_KEY")),
    known("cloudflare", "cloudflare", "cloudflare", Some("CLOUDFLARE_API_KEY")),
    known("ollama", "ollama", "ollama", None),
    known("ollama_chat", "ollama", "ollama", None),
    known("groq", "groq", "groq", Some("GROQ_API_KEY")),
    known("mistral", "mistral", "mistral", Some("MISTRAL_API_KEY")),
    known("deepseek", "deepseek", "deepseek", Some("DEEPSEEK_API_KEY")),
    known("hosted_vllm", "vllm", "vllm", None),
    known("vllm", "vllm", "vllm", None),
    compatible("openai_like", None, None),
    compatible("custom_openai", None, None),
    compatible("litellm_proxy", None, None),
    compatible("lm_studio", None, None),
    compatible("llamafile", None, None),
    compatible("xai", Some("https://api.x.ai/v1"), Some("XAI_API_KEY")),
    compatible("perplexity", Some("https://api.perplexity.ai"), Some("PERPLEXITYAI_API_KEY")),
    compatible("fireworks_ai", Some("https://api.fireworks.ai/inference/v1"), Some("FIREWORKS_AI_API_KEY")),
    compatible("cerebras", Some("https://api.cerebras.ai/v1"), Some("CEREBRAS_API_KEY")),
    compatible("nvidia_nim", Some("https://integrate.api.nvidia.com/v1"), Some("NVIDIA_NIM_API_KEY")),
    compatible("deepinfra", Some("https://api.deepinfra.com/v1/openai"), Some("DEEPINFRA_API_KEY")),
];

fn provider(theirs: &str) -> Option<&'static Known> {
    PROVIDERS.iter().find(|known| known.theirs == theirs)
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            char if char.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(char))),
            char => out.push(char),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests;
