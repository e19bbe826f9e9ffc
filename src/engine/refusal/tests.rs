use super::*;
use crate::engine::dialect::{Dialect, Endpoint};
use serde_json::{Value, json};

fn failure(message: &str) -> UpstreamFailure {
    UpstreamFailure::new("openai".into(), Some(500), message, None)
}

/// One of each variant.
fn all() -> Vec<Refusal> {
    let model = || Box::from("gpt-4o\"\n");
    let url = Some(Arc::from("https://example.com/upgrade?a=1"));
    vec![
        BadBody::Json(3, "a value").into(),
        BadBody::NotAnObject.into(),
        BadBody::NoModel.into(),
        BadBody::WrongType("stream").into(),
        BadBody::Multipart("no boundary").into(),
        Refusal::Unsupported(Unsupported::OtherModels),
        Refusal::Unsupported(Unsupported::Background),
        Refusal::Unsupported(Unsupported::Misspelt("model")),
        Refusal::BadHeader { name: "X-Weir-Byok", expected: "prefer, require or never" },
        Refusal::MediaType { expected: "application/json" },
        Refusal::KeyInQuery,
        Refusal::UnknownLevel { asked: "ecco".into(), known: vec!["eco".into(), "balanced".into()] },
        Refusal::CannotDo { model: model(), lacks: "tools" },
        Refusal::NotSpoken { model: model(), path: "/v1/messages" },
        Refusal::ContextTooLong { model: model(), tokens: 9, window: 8 },
        Refusal::NoKey,
        Refusal::UnknownKey,
        Refusal::ExpiredKey,
        Refusal::BadToken("it has expired"),
        Refusal::CreditsUsedUp { upgrade_url: url.clone() },
        Refusal::CapUsedUp { upgrade_url: None },
        Refusal::CreditsRanOut { upgrade_url: url },
        Refusal::ModelClosed { model: model(), needs: Some("professional".into()) },
        Refusal::ModelClosed { model: model(), needs: None },
        Refusal::LevelClosed { level: "precision".into() },
        Refusal::PathClosed { path: "/v1/embeddings" },
        Refusal::ByokClosed,
        Refusal::ByokMissing { model: model(), providers: vec!["openai".into()] },
        Refusal::ByokRefused(failure("no")),
        Refusal::ByokBroke(failure("")),
        Refusal::BaseUrlClosed("it is not a public address"),
        Refusal::Unpriced { model: model() },
        Refusal::LevelLimits { level: "eco".into(), limit: "max_cost_per_1m" },
        Refusal::UnknownModel { asked: "gpt-4p".into(), nearest: vec!["gpt-4o".into()] },
        Refusal::UnknownPath,
        Refusal::WrongMethod { allow: "POST" },
        Refusal::NotFound { what: "request" },
        Refusal::BodyTooSlow,
        Refusal::Conflict { what: "it is still running", request_id: "01ARZ3NDEKTSV4RRFFQ69G5FAV".into() },
        Refusal::BodyTooLarge { limit_bytes: 67_108_864 },
        Refusal::RateLimited { limit: RateLimit::RequestsPerMinute, allowed: 60, retry_after_ms: 1_001 },
        Refusal::RateLimited { limit: RateLimit::TokensPerMinute, allowed: 60, retry_after_ms: 20 },
        Refusal::RateLimited { limit: RateLimit::RequestsPerDay, allowed: 60, retry_after_ms: 200_000 },
        Refusal::RateLimited { limit: RateLimit::TokensPerDay, allowed: 60, retry_after_ms: 1 },
        Refusal::RateLimited { limit: RateLimit::Concurrent, allowed: 5, retry_after_ms: 1 },
        Refusal::AttemptsFailed { attempts: 3, last: failure("upstream says \"no\""), retry_after_ms: None },
        Refusal::StreamBroken(UpstreamFailure::new("openai".into(), None, "connection reset", None)),
        Refusal::NoFirstEvent { provider: "openai".into(), attempts: 2 },
        Refusal::NoTarget { model: model(), retry_after_ms: 30_000 },
        Refusal::NoPayer { model: model() },
        Refusal::Draining,
        Refusal::Overloaded { retry_after_ms: 500 },
        Refusal::LedgerStopped { retry_after_ms: 500 },
        Refusal::Policy { status: 403 },
        Refusal::Policy { status: 451 },
        Refusal::Policy { status: 503 },
        Refusal::PolicyFailed,
        Refusal::Internal,
    ]
}

#[test]
fn every_refusal_is_a_valid_body_in_both_dialects() {
    for refusal in all() {
        let row = refusal.row();
        let openai: Value = serde_json::from_str(&refusal.body(Dialect::OpenAi)).unwrap();
        let error = openai["error"].as_object().unwrap();
        assert_eq!(error["message"], refusal.to_string());
        assert_eq!(error["type"], row.openai_type);
        assert_eq!(error["code"], json!(row.code));
        assert_eq!(error["param"], json!(refusal.param()));
        let anthropic: Value = serde_json::from_str(&refusal.body(Dialect::Anthropic)).unwrap();
        assert_eq!(anthropic["type"], "error");
        assert_eq!(anthropic["error"]["type"], row.anthropic_type);
        assert_eq!(anthropic["error"]["message"], refusal.to_string());
        assert!((400..600).contains(&row.status) && refusal.to_string().len() > 20, "{refusal:?}");
    }
}

#[test]
fn what_the_clients_libraries_act_on() {
    for (refusal, status, openai_type, code, anthropic_type) in [
        (Refusal::NoKey, 401, "invalid_request_error", "invalid_api_key", "authentication_error"),
        (Refusal::CapUsedUp { upgrade_url: None }, 402, "insufficient_quota", "insufficient_quota", "billing_error"),
        (Refusal::UnknownModel { asked: "x".into(), nearest: vec![] }, 404, "invalid_request_error", "model_not_found", "not_found_error"),
        (
            Refusal::RateLimited { limit: RateLimit::TokensPerMinute, allowed: 1, retry_after_ms: 1 },
            429,
            "tokens",
            "rate_limit_exceeded",
            "rate_limit_error",
        ),
        (
            Refusal::ContextTooLong { model: "m".into(), tokens: 2, window: 1 },
            400,
            "invalid_request_error",
            "context_length_exceeded",
            "invalid_request_error",
        ),
    ] {
        assert_eq!(refusal.row(), Row { status, openai_type, code: Some(code), anthropic_type, reason: refusal.reason() });
    }
}

#[test]
fn waits_are_rounded_up_and_offers_are_made() {
    let limited = Refusal::RateLimited { limit: RateLimit::RequestsPerMinute, allowed: 60, retry_after_ms: 1_001 };
    assert_eq!(limited.retry_after_s(), Some(2));
    assert!(limited.to_string().ends_with("try again in 2s."));
    let unknown = Refusal::UnknownModel { asked: "gpt-4p".into(), nearest: vec!["gpt-4o".into(), "gpt-4".into()] };
    assert!(unknown.to_string().ends_with("Did you mean 'gpt-4o' or 'gpt-4'?"), "{unknown}");
    let paid = Refusal::CreditsUsedUp { upgrade_url: Some("https://x.example".into()) };
    assert!(paid.body(Dialect::OpenAi).contains(r#""upgrade_url":"https://x.example""#));
    assert!(paid.body(Dialect::Anthropic).contains(r#""upgrade_url":"https://x.example""#));
    assert!(Refusal::UnknownModel { asked: "x".repeat(10_000).into(), nearest: vec![] }.to_string().len() < 300);
}

#[test]
fn an_event_ends_a_stream_in_its_dialect() {
    let broken = Refusal::StreamBroken(failure("gone"));
    let event = |endpoint| {
        let mut out = String::new();
        broken.write_event(endpoint, &mut out);
        out
    };
    for (endpoint, lead) in [
        (Endpoint::ChatCompletions, "data: {\"error\":{"),
        (Endpoint::Messages, "event: error\ndata: {\"type\":\"error\","),
        (Endpoint::Responses, "event: error\ndata: {\"type\":\"error\",\"code\":\"stream_interrupted\","),
    ] {
        let event = event(endpoint);
        assert!(event.starts_with(lead) && event.ends_with("}\n\n"), "{event}");
        let data = event.split_once("data: ").unwrap().1.trim_end();
        let data: Value = serde_json::from_str(data).unwrap();
        assert!(data["error"]["message"].as_str().unwrap().contains("gone"));
        assert_eq!(event.matches('\n').count(), lead.matches('\n').count() + 2, "one event, whatever the text");
    }
}

fn check_scrub(text: &str, expected: &str) {
    assert_eq!(scrub(text), expected, "{text}");
}

#[test]
fn what_could_be_a_key_goes() {
    check_scrub("Incorrect API key provided: sk-proj-abcd1234************wxyz. You can", "Incorrect API key provided: *** You can");
    check_scrub("key sk-ant-api03-AbCdEfGh is bad", "key *** is bad");
    check_scrub("(gsk_0123456789abcdef)", "(***)");
    check_scrub("https://x.example/v1?key=AIzaSyD-123", "https://x.example/v1?key=***");
    check_scrub("Authorization: Bearer abc", "Authorization: Bearer ***");
    check_scrub("sent wk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA!", "sent ***!");
    check_scrub("0123456789abcdef0123456789abcdef", "***");
    check_scrub("token aBcDeFgHiJkLmNoPqRsTuVwXyZ012345678-_9ab", "token ***");
    check_scrub("api-key: plain", "api-key: ***");
    check_scrub("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", "***");
}

#[test]
fn what_reads_as_words_stays() {
    for text in [
        "The model `claude-3-5-sonnet-20241022` does not exist",
        "accounts/fireworks/models/llama-v3p1-405b-instruct is unknown",
        "@cf/meta/llama-3.1-8b-instruct",
        "context_length_exceeded",
        "This model's maximum context length is 128000 tokens.",
        "meta-llama/Llama-3.3-70B-Instruct-Turbo",
        "insufficient_quota; see https://platform.openai.com/docs/guides/error-codes/api-errors",
        "sk-learn and hf_hub",
    ] {
        check_scrub(text, text);
    }
}

#[test]
fn the_key_that_was_sent_goes_in_whole_and_in_part() {
    for text in ["no: my-plain-password", "no: plain-password!", "no: xxlain-passxx"] {
        let scrubbed = scrub_known(text, "my-plain-password");
        assert!(scrubbed.contains("***") && !scrubbed.contains("lain-pas"), "{scrubbed}");
    }
    assert_eq!(scrub_known("nothing of it", "my-plain-password"), "nothing of it");
    let failure = UpstreamFailure::new("openai".into(), Some(401), "bad key my-plain-password", Some("my-plain-password"));
    assert_eq!(failure.message(), "bad key ***");
}

#[test]
fn a_scrubbed_text_is_bounded_and_one_line() {
    assert_eq!(scrub("a\r\nb\0c"), "a  b c");
    assert!(scrub(&"é".repeat(10_000)).len() <= 4096);
    assert!(UpstreamFailure::new("p".into(), None, &"word ".repeat(1_000), None).message().len() <= 500);
}

proptest::proptest! {
    /// Wherever a secret stands, whole or cut, 8 characters in a row of it do not come through.
    #[test]
    fn no_eight_characters_of_a_secret_come_through(
        before in ".{0,20}", secret in "[ -~é]{8,40}", from in 0usize..40, after in "[a-z:/ é]{0,20}"
    ) {
        let part = &secret[secret.floor_char_boundary(from.min(secret.len()))..];
        let scrubbed = scrub_known(&format!("{before}{part}{after}{secret}"), &secret);
        for window in secret.as_bytes().windows(8).filter(|window| !window.contains(&b'*')) {
            proptest::prop_assert!(memchr::memmem::find(scrubbed.as_bytes(), window).is_none(), "{scrubbed}");
        }
    }

    /// Any text is scrubbed without a panic and stays bounded.
    #[test]
    fn any_text_is_scrubbed(text in ".*", secret in ".{0,20}") {
        let scrubbed = scrub_known(&text, &secret);
        proptest::prop_assert!(scrubbed.len() <= 3 * text.len().max(1) && !scrubbed.chars().any(char::is_control));
    }
}
