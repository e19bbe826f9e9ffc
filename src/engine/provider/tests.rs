use super::*;

fn base(url: &str) -> BaseUrl {
    BaseUrl::parse(url).unwrap()
}

#[test]
fn every_kind_has_its_own_row_and_name() {
    for (place, spec) in SPECS.iter().enumerate() {
        assert_eq!(spec.kind as usize, place, "{}", spec.name);
        assert_eq!(Kind::of_name(spec.name), Some(spec.kind));
        assert!(!spec.endpoints.is_empty(), "{}", spec.name);
        if let Some(url) = spec.default_base(Some("acc")) {
            BaseUrl::parse(&url).unwrap();
        }
    }
    assert_eq!(Kind::of_name("OpenAI"), None);
}

/// `base` of `""` means the default one.
fn check_path(kind: Kind, url: &str, account: Option<&str>, endpoint: Endpoint, model: &str, expected: &str) {
    let spec = spec(kind);
    let url = if url.is_empty() { spec.default_base(account).unwrap() } else { url.to_owned() };
    let mut path = String::new();
    spec.write_path_at(&base(&url), account, None, endpoint, model, &mut path);
    assert_eq!(path, expected, "{} at {url}", spec.name);
}

#[test]
fn every_kind_s_paths() {
    use Endpoint::*;
    let chat = ChatCompletions;
    for (kind, expected) in [
        (Kind::OpenAi, "/v1/chat/completions"),
        (Kind::OpenRouter, "/api/v1/chat/completions"),
        (Kind::Together, "/v1/chat/completions"),
        (Kind::Ollama, "/v1/chat/completions"),
        (Kind::Gemini, "/v1beta/openai/chat/completions"),
        (Kind::Groq, "/openai/v1/chat/completions"),
        (Kind::Mistral, "/v1/chat/completions"),
        (Kind::DeepSeek, "/chat/completions"),
    ] {
        check_path(kind, "", None, chat, "m", expected);
    }
    for (kind, url, expected) in [
        (Kind::OpenAi, "http://127.0.0.1:9000", "/v1/chat/completions"),
        (Kind::OpenAi, "http://127.0.0.1:9000/v1", "/v1/chat/completions"),
        (Kind::OpenAi, "http://127.0.0.1:9000/v1/", "/v1/chat/completions"),
        (Kind::OpenAi, "https://mirror.example/openai/v2", "/openai/v2/chat/completions"),
        (Kind::Ollama, "http://127.0.0.1:11434/v1", "/v1/chat/completions"),
        (Kind::Vllm, "http://gpu:8000", "/v1/chat/completions"),
        (Kind::OpenAiCompatible, "https://api.example.com", "/chat/completions"),
        (Kind::OpenAiCompatible, "https://api.example.com/v1", "/v1/chat/completions"),
        (Kind::Cloudflare, "https://gateway.ai.cloudflare.com/v1/acc/gw/workers-ai/v1", "/v1/acc/gw/workers-ai/v1/chat/completions"),
        (Kind::Cloudflare, "http://127.0.0.1:9000", "/client/v4/accounts/acc/ai/v1/chat/completions"),
    ] {
        check_path(kind, url, Some("acc"), chat, "m", expected);
    }
    check_path(Kind::Cloudflare, "", Some("ab/c"), chat, "@cf/meta/llama", "/client/v4/accounts/ab%2Fc/ai/v1/chat/completions");
    check_path(Kind::OpenAi, "", None, Images, "m", "/v1/images/generations");
    check_path(Kind::OpenAi, "", None, Transcriptions, "m", "/v1/audio/transcriptions");
}

#[test]
fn anthropic_s_paths() {
    for (url, expected) in
        [("", "/v1/messages"), ("http://127.0.0.1:9000/v1", "/v1/messages"), ("https://mirror.example/anthropic", "/anthropic/v1/messages")]
    {
        check_path(Kind::Anthropic, url, None, Endpoint::Messages, "claude", expected);
    }
    check_path(Kind::Anthropic, "", None, Endpoint::CountTokens, "claude", "/v1/messages/count_tokens");
}

#[test]
fn azure_s_paths() {
    let chat = Endpoint::ChatCompletions;
    check_path(Kind::Azure, "", Some("res"), chat, "my gpt?x", "/openai/deployments/my%20gpt%3Fx/chat/completions?api-version=2024-10-21");
    check_path(
        Kind::Azure,
        "https://res.openai.azure.com/openai",
        None,
        chat,
        "d",
        "/openai/deployments/d/chat/completions?api-version=2024-10-21",
    );
    check_path(Kind::Azure, "https://res.openai.azure.com/openai/v1", None, chat, "d", "/openai/v1/chat/completions");
    check_path(Kind::Azure, "", Some("res"), Endpoint::Responses, "d", "/openai/v1/responses");
    assert_eq!(spec(Kind::Azure).default_base(Some("res")).as_deref(), Some("https://res.openai.azure.com"));
    assert_eq!(spec(Kind::Azure).default_base(None), None);
    let mut path = String::new();
    spec(Kind::Azure).write_path_at(&base("https://a.example"), None, Some("2025-01-01-preview"), chat, "d", &mut path);
    assert_eq!(path, "/openai/deployments/d/chat/completions?api-version=2025-01-01-preview");
}

#[test]
fn only_anthropic_speaks_messages_and_it_speaks_nothing_else() {
    for spec in SPECS {
        for endpoint in Endpoint::ALL {
            let is_anthropic = spec.kind == Kind::Anthropic;
            if spec.speaks(endpoint) {
                assert_eq!(endpoint.dialect() == crate::engine::dialect::Dialect::Anthropic, is_anthropic, "{} {endpoint:?}", spec.name);
            }
        }
    }
}

#[test]
fn usage_is_asked_for_where_it_must_be_and_may_be() {
    use Endpoint::*;
    for (kind, endpoint, expected) in [
        (Kind::OpenAi, ChatCompletions, true),
        (Kind::OpenAi, Completions, true),
        (Kind::OpenAi, Responses, false),
        (Kind::Mistral, ChatCompletions, false),
        (Kind::OpenRouter, ChatCompletions, false),
        (Kind::Anthropic, Messages, false),
        (Kind::Groq, ChatCompletions, true),
        (Kind::Gemini, ChatCompletions, true),
    ] {
        assert_eq!(spec(kind).asks_for_usage(endpoint), expected, "{kind:?} {endpoint:?}");
    }
}

#[test]
fn output_caps() {
    use Endpoint::*;
    for (kind, endpoint, expected) in [
        (Kind::OpenAi, ChatCompletions, Some("max_completion_tokens")),
        (Kind::Azure, ChatCompletions, Some("max_completion_tokens")),
        (Kind::Ollama, ChatCompletions, Some("max_tokens")),
        (Kind::OpenAi, Completions, Some("max_tokens")),
        (Kind::OpenAi, Responses, Some("max_output_tokens")),
        (Kind::Anthropic, Messages, Some("max_tokens")),
        (Kind::OpenAi, Embeddings, None),
    ] {
        assert_eq!(spec(kind).output_cap_field(endpoint), expected, "{kind:?} {endpoint:?}");
    }
}

#[test]
fn names_nobody_configured() {
    for (model, expected) in [
        ("@cf/meta/llama-3.1-8b-instruct", Some((Kind::Cloudflare, "@cf/meta/llama-3.1-8b-instruct"))),
        ("openrouter/openai/gpt-4o", Some((Kind::OpenRouter, "openai/gpt-4o"))),
        ("together/meta-llama/Llama-3", Some((Kind::Together, "meta-llama/Llama-3"))),
        ("groq/llama-3.1-8b-instant", Some((Kind::Groq, "llama-3.1-8b-instant"))),
        ("ollama/llama3:8b", Some((Kind::Ollama, "llama3:8b"))),
        ("gpt-4o-mini", Some((Kind::OpenAi, "gpt-4o-mini"))),
        ("o1", Some((Kind::OpenAi, "o1"))),
        ("o3-mini", Some((Kind::OpenAi, "o3-mini"))),
        ("o4-mini", Some((Kind::OpenAi, "o4-mini"))),
        ("ft:gpt-4o-mini:org::id", Some((Kind::OpenAi, "ft:gpt-4o-mini:org::id"))),
        ("claude-sonnet-4", Some((Kind::Anthropic, "claude-sonnet-4"))),
        ("gemini-2.5-flash", Some((Kind::Gemini, "gemini-2.5-flash"))),
        ("meta-llama/llama-3:free", Some((Kind::OpenRouter, "meta-llama/llama-3:free"))),
        ("llama3:8b", Some((Kind::Ollama, "llama3:8b"))),
        ("llama3", None),
        ("weir/eco", None),
        ("", None),
        ("/", None),
        ("a/", None),
        ("/b", None),
        (":", None),
        ("groq/", None),
        ("@cf/", None),
        ("gpt-4o\nhttp\nevil.test", None),
        ("gpt-4o\0", None),
        ("meta/llama 3", None),
        ("openrouter/\u{e9}", None),
        ("gpt-4o\"", None),
    ] {
        assert_eq!(infer(model), expected, "{model}");
    }
}

#[test]
fn keys_of_another_provider() {
    let openai = format!("sk-proj-{}T3BlbkFJ{}", "a".repeat(20), "b".repeat(20));
    for (kind, key, expected) in [
        (Kind::OpenAi, openai.as_str(), None),
        (Kind::Anthropic, openai.as_str(), Some("OpenAI")),
        (Kind::OpenAi, "sk-ant-api03-abc", Some("Anthropic")),
        (Kind::OpenAi, "sk-or-v1-abc", Some("OpenRouter")),
        (Kind::Groq, "AIzaabc", Some("Gemini")),
        (Kind::Gemini, "gsk_abc", Some("Groq")),
        (Kind::Mistral, "xai-abc", Some("xAI")),
        (Kind::Cloudflare, "wk_abc", Some("weir")),
        // Only looks like one, so it passes with a warning.
        (Kind::OpenAi, "brand-new-shape", None),
        (Kind::Mistral, "sk-0123456789abcdef0123456789abcdef", None),
        // Whoever runs the server makes the keys up.
        (Kind::OpenAiCompatible, "sk-ant-api03-abc", None),
        (Kind::Vllm, "wk_abc", None),
    ] {
        assert_eq!(foreign_shape(kind, key), expected, "{kind:?}");
    }
    assert!(is_familiar(Kind::DeepSeek, "sk-0123456789abcdef0123456789abcdef") && !is_familiar(Kind::DeepSeek, "sk-short"));
    assert!(!is_familiar(Kind::OpenAi, "brand-new-shape") && is_familiar(Kind::Vllm, "anything"));
}

#[test]
fn checks_and_probes() {
    for (kind, url, account, expected) in [
        (Kind::OpenAi, "https://api.openai.com/v1", None, "/v1/models"),
        (Kind::Anthropic, "https://api.anthropic.com", None, "/v1/models"),
        (Kind::OpenRouter, "https://openrouter.ai/api/v1", None, "/api/v1/key"),
        (Kind::Cloudflare, "https://api.cloudflare.com/client/v4", Some("a"), "/client/v4/user/tokens/verify"),
        (Kind::Azure, "https://r.openai.azure.com", Some("r"), "/openai/models?api-version=2024-10-21"),
        (Kind::Azure, "https://r.openai.azure.com/openai/v1", Some("r"), "/openai/v1/models"),
    ] {
        assert_eq!(spec(kind).check(&base(url), account, None).path, expected);
    }
    assert_eq!(spec(Kind::Vllm).probe(&base("http://gpu:8000/v1"), None, None), ("/health".to_owned(), false));
    assert_eq!(spec(Kind::OpenAi).probe(&base("http://x/v1"), None, None), ("/v1/models".to_owned(), true));
}

#[test]
fn what_a_check_s_answer_means() {
    for (kind, status, body, expected) in [
        (Kind::OpenAi, 200, "{}", Verdict::Valid),
        (Kind::OpenAi, 401, r#"{"error":{"code":"invalid_api_key"}}"#, Verdict::Invalid),
        (
            Kind::OpenAi,
            401,
            r#"{"error":{"message":"You have insufficient permissions for this operation. Missing scopes: api.model.read"}}"#,
            Verdict::WrongPermissions,
        ),
        (Kind::OpenAi, 403, "", Verdict::WrongPermissions),
        (Kind::OpenAi, 429, r#"{"error":{"code":"insufficient_quota"}}"#, Verdict::NoCredit),
        (Kind::OpenAi, 429, "slow down", Verdict::Unclear),
        (Kind::OpenAi, 503, "", Verdict::Unclear),
        (Kind::Gemini, 400, r#"[{"error":{"message":"API key not valid. Please pass a valid API key."}}]"#, Verdict::Invalid),
        (Kind::Gemini, 400, r#"[{"error":{"message":"API key expired. Please renew the API key."}}]"#, Verdict::Expired),
        (Kind::Cloudflare, 200, r#"{"result":{"id":"x","status":"active"},"success":true}"#, Verdict::Valid),
        (Kind::Cloudflare, 200, r#"{"result":{"id":"x","status":"expired"},"success":true}"#, Verdict::Expired),
        (Kind::Cloudflare, 200, r#"{"result":{"status":"disabled"}}"#, Verdict::Invalid),
        (Kind::Cloudflare, 401, r#"{"success":false,"errors":[{"code":1000,"message":"Invalid API Token"}]}"#, Verdict::Invalid),
        (Kind::OpenRouter, 200, r#"{"data":{"label":"x","limit":10,"limit_remaining":9.5}}"#, Verdict::Valid),
        (Kind::OpenRouter, 200, r#"{"data":{"label":"x","limit":null,"limit_remaining":null}}"#, Verdict::Valid),
        (Kind::OpenRouter, 200, r#"{"data":{"limit_remaining":0.00}}"#, Verdict::NoCredit),
        (Kind::OpenRouter, 200, r#"{"data":{"limit_remaining":-1.5}}"#, Verdict::NoCredit),
        (Kind::OpenRouter, 200, "<html>", Verdict::Unclear),
    ] {
        assert_eq!(spec(kind).read_check(status, body.as_bytes()), expected, "{kind:?} {status} {body}");
    }
}
