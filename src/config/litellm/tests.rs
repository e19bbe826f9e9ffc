use super::*;
use crate::config::{prices, routing};

const CONFIG: &str = r#"
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: azure/my-gpt-4o
      api_base: https://res.openai.azure.com/
      api_key: os.environ/AZURE_KEY
      api_version: "2024-10-21"
      rpm: 480
    model_info:
      mode: chat
      max_input_tokens: 128000
      max_output_tokens: 16384
      input_cost_per_token: 2.75e-06
      output_cost_per_token: 0.000011
  - model_name: gpt-4o
    litellm_params: {model: gpt-4o, api_key: sk-proj-SECRETSECRET, weight: 20, temperature: 0.2}
  - model_name: claude
    litellm_params: {model: anthropic/claude-sonnet-4, api_key: sk-ant-OTHERSECRET}
  - model_name: local
    litellm_params: {model: ollama_chat/llama3.2, api_base: "http://127.0.0.1:11434"}
  - model_name: local
    litellm_params: {model: openai/served, api_base: os.environ/SERVED_BASE, api_key: none}
  - model_name: bedrock-claude
    litellm_params: {model: bedrock/anthropic.claude-v2}
  - model_name: "openai/*"
    litellm_params: {model: "openai/*"}
litellm_settings:
  drop_params: true
  num_retries: 2
  request_timeout: 600
  fallbacks: [{gpt-4o: [claude, nowhere]}, {gone: [claude]}]
  context_window_fallbacks: [{local: [gpt-4o]}]
router_settings:
  routing_strategy: latency-based-routing
  cooldown_time: 30.5
  model_group_alias: {gpt-4: gpt-4o}
general_settings:
  master_key: sk-MASTERSECRET
  database_url: postgres://user:PASSWORDSECRET@db
environment_variables:
  LANGFUSE_KEY: LFSECRET
"#;

#[test]
fn a_configuration_becomes_files_that_load() {
    let import = import("config.yaml", CONFIG).unwrap();
    let routing_text = import.routing.as_deref().unwrap();
    let (prices, problems) = prices::parse("prices.toml", &import.prices);
    assert_eq!(problems, [], "{}", import.prices);
    let (catalog, problems) = routing::parse("routing.toml", routing_text, &prices);
    assert_eq!(problems, [], "{routing_text}");

    let gpt = &catalog.models["gpt-4o"];
    let targets: Vec<_> = gpt.targets.iter().map(|target| (&*target.provider.name, &*target.upstream_model, target.weight)).collect();
    assert_eq!(targets, [("azure", "my-gpt-4o", 480), ("openai", "gpt-4o", 20)]);
    assert_eq!((gpt.context_window, gpt.max_output), (Some(128_000), Some(16_384)));
    assert_eq!(gpt.fallback.iter().map(|name| &**name).collect::<Vec<_>>(), ["claude"]);
    assert_eq!(catalog.models["gpt-4"].targets.len(), 2);
    assert_eq!(catalog.models["local"].targets.len(), 2);
    assert_eq!(prices["azure/my-gpt-4o"].blended_per_1m().to_string(), "4.8125");
    assert_eq!((catalog.retry.max_attempts, catalog.retry.cooldown.as_millis()), (3, 30_500));
    assert!(routing_text.contains("key = \"env:AZURE_KEY\"") && routing_text.contains("key = \"vault:openai\""), "{routing_text}");
    assert!(routing_text.contains("base_url = \"http://127.0.0.1:11434/v1\""), "{routing_text}");
}

#[test]
fn what_is_left_is_listed_with_its_line_and_no_secret_is_quoted() {
    let import = import("config.yaml", CONFIG).unwrap();
    let left: Vec<String> = import.left.iter().map(Problem::to_string).collect();
    for expected in [
        "config.yaml:9: model_list.gpt-4o.rpm: became the target's share",
        "config.yaml:17: model_list.gpt-4o.api_key: a key in plain text",
        "config.yaml:17: model_list.gpt-4o.temperature: not carried over",
        "config.yaml:23: model_list.local: api_base is in the environment variable SERVED_BASE",
        "config.yaml:25: model_list.bedrock-claude: weir does not speak the API of bedrock",
        "model_list.openai/*: a pattern is not carried over",
        "litellm_settings.fallbacks: \"nowhere\", a fallback of \"gpt-4o\"",
        "litellm_settings.fallbacks: \"gone\" is no model",
        "litellm_settings.drop_params: not carried over",
        "router_settings.routing_strategy: not carried over",
        "general_settings.master_key: not carried over: make callers' keys",
        "general_settings.database_url: not carried over",
        "environment_variables.LANGFUSE_KEY: not carried over",
        "openai/gpt-4o: no price in the file",
    ] {
        assert!(left.iter().any(|line| line.contains(expected)), "{expected}\nis not in\n{}", left.join("\n"));
    }
    let all = format!("{import:?}");
    assert!(!all.contains("SECRET"), "{all}");
}

#[test]
fn a_price_table_is_read_exactly() {
    let table = r#"{
        "sample_spec": {"litellm_provider": "one of …", "input_cost_per_token": 0.0},
        "gpt-5.6": {"litellm_provider": "openai", "mode": "chat", "max_tokens": 128000,
            "input_cost_per_token": 4e-06, "input_cost_per_token_above_272k_tokens": 8e-06, "input_cost_per_token_flex": 2.0000000000000001e-06,
            "output_cost_per_token": 2e-05, "output_cost_per_token_batches": 1e-05, "cache_read_input_token_cost": 4e-07,
            "input_cost_per_token_above_272k_tokens_priority": 1.6e-05,
            "search_context_cost_per_query": {"search_context_size_low": 0.01, "search_context_size_medium": 0.025},
            "output_cost_per_token_ultrafast": 1e-04, "supports_vision": true},
        "openai/gpt-5.6": {"litellm_provider": "openai", "input_cost_per_token": 9},
        "deepseek/deepseek-chat": {"litellm_provider": "deepseek", "input_cost_per_token": 2.8e-07, "cache_read_input_token_cost": 3.625e-09, "output_cost_per_token": 4.2e-07},
        "whisper-1": {"litellm_provider": "openai", "input_cost_per_second": 0.0001, "output_cost_per_second": 0.0001},
        "free": {"litellm_provider": "groq", "input_cost_per_token": 0, "output_cost_per_token": 0.0, "input_cost_per_image": null},
        "odd\"name": {"litellm_provider": "groq", "input_cost_per_token": -1, "output_cost_per_token": 1e-06},
        "empty": {"litellm_provider": "openai", "mode": "chat"},
        "amazon.titan": {"litellm_provider": "bedrock", "input_cost_per_token": 1e-06}
    }"#;
    let import = import("prices.json", table).unwrap();
    assert_eq!(import.routing, None);
    let expected = r#"
[price."deepseek/deepseek-chat"]
cached_input = "0.003625"
input = "0.28"
output = "0.42"

[price."groq/free"]
input = "0"
output = "0"

[price."groq/odd\"name"]
output = "1"

[price."openai/gpt-5.6"]
cached_input = "0.4"
input = "4"
output = "20"
web_search = "0.025"
above = [{ input_tokens = 272000, input = "8" }]

[price."openai/gpt-5.6".batch]
output = "10"

[price."openai/gpt-5.6".flex]
input = "2"

[price."openai/gpt-5.6".priority]
above = [{ input_tokens = 272000, input = "16" }]

[price."openai/whisper-1"]
per_second = "0.0001"
"#;
    assert!(import.prices.ends_with(expected), "{}", import.prices);
    assert_eq!(prices::parse("prices.toml", &import.prices).1, []);
    let left: Vec<String> = import.left.iter().map(|problem| format!("{}: {}", problem.key, problem.what)).collect();
    assert_eq!(
        left,
        [
            "bedrock: 1 models of a provider whose API weir does not speak: not carried over",
            "input_cost_per_token: has no place in prices.toml: not carried over, 1 models",
            "output_cost_per_token_ultrafast: has no place in prices.toml: not carried over, 1 models",
            "empty: has no rate that can be carried over",
        ]
    );
}

#[test]
fn what_is_neither_is_refused() {
    let check = |text: &str, reason: &str| {
        let problem = import("f", text).unwrap_err().to_string();
        assert!(problem.contains(reason), "{problem}");
    };
    check("{\"a\": ", "f:1: not a price table");
    check("a: [", "not YAML");
    check("foo: 1", "no model_list in it");
    check("", "nothing in it");
}

/// The configuration of two models `a` and `b`, with `rest` behind it: what it becomes, and its notes.
fn with_rest(rest: &str) -> (crate::engine::catalog::Catalog, Vec<String>) {
    let models = ["a", "b"].map(|name| format!("  - model_name: {name}\n    litellm_params: {{model: openai/{name}}}\n")).concat();
    let import = import("config.yaml", &format!("model_list:\n{models}{rest}")).unwrap();
    let (prices, _) = prices::parse("prices.toml", &import.prices);
    let text = import.routing.unwrap();
    let (catalog, problems) = routing::parse("routing.toml", &text, &prices);
    assert_eq!(problems, [], "{text}");
    (catalog, import.left.iter().map(|problem| format!("{}: {}", problem.key, problem.what)).collect())
}

fn has(left: &[String], expected: &str) {
    assert!(left.iter().any(|line| line.contains(expected)), "{expected}\nis not in\n{}", left.join("\n"));
}

#[test]
fn timeouts_are_written_once_and_in_order() {
    let (catalog, left) =
        with_rest("litellm_settings: {request_timeout: 60, stream_timeout: 90.5}\nrouter_settings: {timeout: 30, stream_timeout: 20}\n");
    let timeouts = &catalog.providers["openai"].timeouts;
    assert_eq!((timeouts.total.as_secs(), timeouts.first_event.as_secs()), (60, 60));
    has(&left, "litellm_settings.stream_timeout: is longer than the whole request may take: lowered to \"60s\"");
    has(&left, "router_settings.stream_timeout: not carried over");
    has(&left, "router_settings.timeout: not carried over");
    // The whole may be told behind it, and in the other section.
    let (catalog, left) = with_rest("litellm_settings: {stream_timeout: 20.5}\nrouter_settings: {timeout: 60}\n");
    assert_eq!(catalog.providers["openai"].timeouts.first_event.as_millis(), 20_500);
    assert!(!left.iter().any(|line| line.contains("timeout")), "{left:?}");
}

#[test]
fn an_alias_has_a_models_name_and_its_fallbacks() {
    let rest = "router_settings:\n  model_group_alias: {\"c\": a, \"d\": a, \"with space\": a, \"weir/top\": a, \"\": a, e: gone}\n  \
                fallbacks: [{a: [b, c]}, {d: [c]}]\n";
    let (catalog, left) = with_rest(rest);
    let fallback = |name: &str| catalog.models[name].fallback.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    assert_eq!((fallback("a"), fallback("c"), fallback("d")), (vec!["b".into(), "c".into()], vec!["b".into()], vec!["c".into()]));
    assert_eq!(catalog.models.len(), 4);
    has(&left, "model_group_alias.with space: a model's name");
    has(&left, "model_group_alias.: a model's name");
    has(&left, "model_group_alias.weir/top: weir/… asks for a power level");
    has(&left, "model_group_alias.e: an alias of no model");
}

#[test]
fn fallbacks_of_another_meaning_are_listed() {
    let rest = "litellm_settings:\n  default_fallbacks: [b]\n  context_window_fallbacks: [{a: [c]}]\nrouter_settings:\n  \
                model_group_alias: {c: b}\n";
    let (catalog, left) = with_rest(rest);
    let fallback = |name: &str| catalog.models[name].fallback.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    assert_eq!((fallback("a"), fallback("b"), fallback("c")), (vec!["c".to_owned()], vec![], vec!["b".to_owned()]));
    has(&left, "litellm_settings.context_window_fallbacks: became fallbacks like any other");
    has(&left, "litellm_settings.default_fallbacks: became the fallbacks of every model without its own");
}
