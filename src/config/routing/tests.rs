use super::*;
use crate::config::prices;
use crate::engine::catalog::{Capabilities, SecretRef, Strategy, TargetPrice};
use crate::engine::money::{Credits, Factor, Usd};

const PRICES: &str = "
[price.\"openai/gpt-4o-mini\"]
input = \"0.15\"
output = \"0.60\"
[price.\"openrouter/openai/gpt-4o-mini\"]
input = \"0.15\"
output = \"0.60\"
";

const WHOLE: &str = r#"
[provider.openai]
kind = "openai"
key = "env:OPENAI_API_KEY"
priority = 40
probe = "30s"
heartbeat = "15s"
max_concurrent = 100
on_disconnect = "drain"
byok_falls_to_platform = true
http2 = false
ca = "ca.pem"
[provider.openrouter]
kind = "openrouter"
key = "file:secrets/openrouter"
[provider.edge]
kind = "cloudflare"
account = "acc"
key = "vault:cloudflare"
[provider.corp]
kind = "azure"
account = "res"
api_version = "2025-01-01-preview"
[provider.local]
kind = "ollama"
base_url = "http://127.0.0.1:11434/v1"
timeouts = { connect = "2s", first_event = "30s", between_events = "60s", total = "15m" }

[model."gpt-4o-mini"]
targets = [
  { provider = "openai", weight = 80 },
  { provider = "openrouter", model = "openai/gpt-4o-mini", weight = 20, priority = 7 },
]
fallback = ["llama-3.1-8b"]
min_tier = "starter"
context_window = 128000
max_output = 16384
can = ["stream", "tools"]
strategy = "least-latency"
stick = "prefix"
stick_margin = 25
hedge = true
[model."llama-3.1-8b"]
targets = [ { provider = "local", model = "llama3.1:8b", price = "free" }, { provider = "edge", model = "@cf/meta/llama-3.1-8b-instruct", price = "unpriced" } ]
fallback = ["gpt-4o-mini"]

[level.eco]
models = ["llama-3.1-8b", "gpt-4o-mini"]
cost_multiplier = "0.1"
max_cost_per_1m = "0.50"
max_latency = "10s"
max_output = 2000
tasks = { coding = ["gpt-4o-mini"] }
[level.precision]
models = ["gpt-4o-mini"]
fallback = false

[tier.starter]
rank = 1
[tier.professional]
rank = 2
markup = "0.6"
levels = ["eco", "precision"]
models = ["gpt-4o-mini", "claude-sonnet-4"]
byok = true
byok_fee = "0.5"
own_base_url = true
limits = { rpm = 600, tpm = 400000, concurrent = 50 }
monthly_cap = "200.00"

[retry]
max_attempts = 4
cooldown = "30s"
cooldown_after = { failures = 5, time = "10m" }
[routing]
infer = true
default_tier = "starter"
"#;

fn read(text: &str) -> (Catalog, Vec<String>) {
    let (prices, problems) = prices::parse("prices.toml", PRICES);
    assert_eq!(problems, []);
    let (catalog, problems) = parse("conf/routing.toml", text, &prices);
    (catalog, problems.iter().map(Problem::to_string).collect())
}

#[test]
fn everything_that_can_be_said_is_read() {
    let (catalog, problems) = read(WHOLE);
    assert_eq!(problems, [""; 0]);
    let openai = &catalog.providers["openai"];
    assert_eq!((openai.priority, openai.http2, openai.byok_falls_to_platform, openai.max_concurrent), (40, false, true, Some(100)));
    assert_eq!((openai.base.to_string().as_str(), openai.ca.as_deref()), ("https://api.openai.com/v1", Some("conf/ca.pem")));
    assert_eq!(openai.key, Some(SecretRef::Env("OPENAI_API_KEY".into())));
    assert_eq!((openai.probe, openai.heartbeat), (Some(Duration::from_secs(30)), Some(Duration::from_secs(15))));
    assert_eq!(catalog.providers["openrouter"].key, Some(SecretRef::File("conf/secrets/openrouter".into())));
    assert_eq!(&*catalog.providers["corp"].base.host, "res.openai.azure.com");
    assert_eq!(catalog.providers["local"].timeouts.total, Duration::from_secs(900));

    let model = &catalog.models["gpt-4o-mini"];
    let targets: Vec<_> =
        model.targets.iter().map(|target| (&*target.provider.name, &*target.upstream_model, target.weight, target.priority)).collect();
    assert_eq!(targets, [("openai", "gpt-4o-mini", 80, 40), ("openrouter", "openai/gpt-4o-mini", 20, 7)]);
    assert!(matches!(model.targets[0].price, TargetPrice::Priced(_)));
    assert_eq!(model.min_tier, Some((1, "starter".into())));
    assert_eq!(model.can, Some(Capabilities::STREAM.with(Capabilities::TOOLS)));
    assert_eq!((model.strategy, model.stick, model.hedge), (Strategy::LeastLatency, Some(25), true));
    assert_eq!(
        (model.context_window, model.max_output, model.fallback.as_slice()),
        (Some(128_000), Some(16_384), ["llama-3.1-8b".into()].as_slice())
    );
    let llama = &catalog.models["llama-3.1-8b"];
    assert!(matches!(llama.targets[0].price, TargetPrice::Free) && matches!(llama.targets[1].price, TargetPrice::Unpriced));

    let eco = &catalog.levels["eco"];
    assert_eq!((eco.cost_multiplier, eco.max_output, eco.fallback), (Factor { digits: 1, scale: 1 }, Some(2000), true));
    assert_eq!(eco.max_cost_per_1m, Usd::parse("0.50").ok());
    assert_eq!(eco.tasks["coding"], [Arc::from("gpt-4o-mini")]);
    assert!(!catalog.levels["precision"].fallback);

    let tier = &catalog.tiers["professional"];
    assert_eq!((tier.rank, tier.byok, tier.own_base_url), (2, true, true));
    assert_eq!((tier.byok_fee, tier.monthly_cap), (Credits::parse("0.5").unwrap(), Credits::parse("200").ok()));
    assert_eq!((tier.limits.rpm, tier.limits.tpm, tier.limits.rpd, tier.limits.concurrent), (Some(600), Some(400_000), None, Some(50)));
    assert_eq!(tier.models.as_ref().map(FxHashSet::len), Some(2));
    let retry = catalog.retry;
    assert_eq!((retry.max_attempts, retry.cooldown.as_secs(), retry.cooldown_failures, retry.cooldown_long.as_secs()), (4, 30, 5, 600));
    assert_eq!(catalog.routing.default_tier.as_deref(), Some("starter"));
}

/// Each expected text must be in the problem of the same place.
fn check_problems(text: &str, expected: &[&str]) {
    let (_, problems) = read(text);
    assert_eq!(problems.len(), expected.len(), "{text}\n{problems:#?}");
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.contains(expected), "{problem}\nlacks {expected}");
    }
}

#[test]
fn every_problem_is_reported_at_once_with_its_place() {
    check_problems(
        r#"
[provider.a]
kind = "opnai"
key = "sk-proj-verysecret"
[provider.b]
kind = "openai"
prioritty = 3
[model.m]
targets = [ { provider = "bb" }, { provider = "b", model = "gpt-4o" } ]
fallback = ["m", "n"]
min_tier = "strater"
[level.eco]
models = ["mm"]
[tier.starter]
rank = 1
levels = ["ecco"]
[retry]
max_attempts = 0
[routing]
default_tier = "startr"
[rooting]
"#,
        &[
            "conf/routing.toml:3: provider.a.kind: \"opnai\" is not one of",
            "conf/routing.toml:4: provider.a.key: a secret is never written here",
            "conf/routing.toml:7: provider.b.prioritty: unknown key; did you mean priority?",
            "conf/routing.toml:9: model.m.targets[0].provider: there is no provider \"bb\"; did you mean \"b\"?",
            "conf/routing.toml:9: model.m.targets[1]: no price: add [price.\"b/gpt-4o\"]",
            "conf/routing.toml:10: model.m.fallback: a model cannot fall back to itself",
            "conf/routing.toml:10: model.m.fallback: there is no model \"n\"; did you mean \"m\"?",
            "conf/routing.toml:11: model.m.min_tier: there is no tier \"strater\"; did you mean \"starter\"?",
            "conf/routing.toml:13: level.eco.models: there is no model \"mm\"; did you mean \"m\"?",
            "conf/routing.toml:16: tier.starter.levels: there is no level \"ecco\"; did you mean \"eco\"?",
            "conf/routing.toml:18: retry.max_attempts: must be between 1 and 20",
            "conf/routing.toml:20: routing.default_tier: there is no tier \"startr\"; did you mean \"starter\"?",
            "conf/routing.toml:21: rooting: unknown key; did you mean routing?",
        ],
    );
    let (_, problems) = read("[provider.a]\nkind = \"openai\"\nkey = \"sk-proj-verysecret\"\n");
    assert!(!problems.concat().contains("verysecret"));
}

#[test]
fn providers_that_lack_something_say_what() {
    check_problems("[provider.a]\n", &["kind: missing"]);
    check_problems("[provider.a]\nkind = \"vllm\"\n", &["base_url: missing"]);
    check_problems("[provider.a]\nkind = \"cloudflare\"\n", &["account: missing"]);
    check_problems("[provider.a]\nkind = \"azure\"\n", &["account: missing"]);
    check_problems("[provider.a]\nkind = \"cloudflare\"\nbase_url = \"http://127.0.0.1:1/v1\"\n", &[]);
    check_problems("[provider.a]\nkind = \"openai\"\nbase_url = \"127.0.0.1\"\n", &["base_url: the URL must begin with"]);
    check_problems("[provider.a]\nkind = \"openai\"\napi_version = \"1\"\n", &["only azure"]);
    check_problems("[provider.a]\nkind = \"ollama\"\nhttp2 = true\nca = \"x\"\n", &["http2: ", "ca: "]);
    check_problems("[provider.\"a/b\"]\nkind = \"openai\"\n", &["a provider's name"]);
    check_problems(
        "[provider.a]\nkind = \"openai\"\ntimeouts = { first_event = \"2m\", total = \"1m\" }\n",
        &["first_event: is longer than the total"],
    );
    check_problems(
        "[provider.a]\nkind = \"openai\"\ntimeouts = { connect = \"0s\", total = \"30d\" }\n",
        &["timeouts.total", "timeouts.connect"],
    );
    check_problems("[provider.a]\nkind = \"openai\"\nprobe = \"10ms\"\n", &["at least"]);
    check_problems("[provider.a]\nkind = 1\nbase_url = 2\n", &["kind: must be a string", "base_url: must be a string"]);
}

#[test]
fn models_levels_and_tiers_that_make_no_sense_say_so() {
    let with =
        |rest: &str| format!("[provider.p]\nkind = \"ollama\"\n[model.m]\ntargets = [ {{ provider = \"p\", price = \"free\" }} ]\n{rest}");
    check_problems(&with("context_window = 10\nmax_output = 20\n"), &["max_output: is more than the context_window"]);
    check_problems(&with("stick_margin = 20\n"), &["without stick"]);
    check_problems(&with("can = [\"fly\"]\n"), &["\"fly\" is not one of stream"]);
    check_problems(&with("strategy = \"random\"\n"), &["is not one of weighted"]);
    check_problems(&with("[model.\"weir/eco\"]\ntargets = [ { provider = \"p\", price = \"free\" } ]\n"), &["power level"]);
    check_problems(&with("[model.x]\n"), &["targets: missing"]);
    check_problems(&with("[model.x]\ntargets = []\n"), &["must have 1 to"]);
    check_problems(&with("[model.x]\ntargets = [ { provider = \"p\", price = \"fre\" } ]\n"), &["did you mean \"free\"?"]);
    check_problems(
        &with("[model.x]\ntargets = [ { provider = \"p\", price = \"free\" }, { provider = \"p\", price = \"free\" } ]\n"),
        &["listed twice"],
    );
    check_problems(&with("[level.eco]\n"), &["models: missing"]);
    check_problems(&with("[level.eco]\nmodels = []\n"), &["at least one"]);
    check_problems(&with("[level.eco]\nmodels = [\"m\", \"m\"]\n"), &["listed twice"]);
    check_problems(&with("[level.eco]\nmodels = [\"m\"]\ncost_multiplier = 0.1\n"), &["decimal string"]);
    check_problems(&with("[level.eco]\nmodels = [\"m\"]\ntasks = { coding = [\"mm\"] }\n"), &["tasks.coding: there is no model \"mm\""]);
    check_problems(&with("[tier.t]\n"), &["rank: missing"]);
    check_problems(&with("[tier.t]\nrank = 1\nbyok_fee = \"1\"\nown_base_url = true\n"), &["byok_fee", "own_base_url"]);
    check_problems(&with("[tier.t]\nrank = 1\nlimits = { rpm = 0, rps = 1 }\n"), &["rpm: must be at least 1", "rps: unknown key"]);
    check_problems(&with("[tier.t]\nrank = 1\nmodels = [\"mmm\"]\n[routing]\ninfer = false\n"), &["there is no model \"mmm\""]);
}

#[test]
fn a_reload_keeps_the_live_state_of_what_has_the_same_name() {
    let (old, _) = read(WHOLE);
    let (mut new, _) = read(&WHOLE.replace("priority = 40", "priority = 41").replace("weight = 20", "weight = 30"));
    new.adopt(&old, || {});
    for (name, provider) in &new.providers {
        assert!(Arc::ptr_eq(&provider.state, &old.providers[name].state), "{name}");
    }
    for (name, model) in &new.models {
        for (target, before) in model.targets.iter().zip(&old.models[name].targets) {
            assert!(Arc::ptr_eq(&target.state, &before.state), "{name}");
            assert!(Arc::ptr_eq(&target.provider, &new.providers[&target.provider.name]), "{name}");
        }
    }
    assert_eq!((new.models["gpt-4o-mini"].targets[0].priority, new.models["gpt-4o-mini"].targets[0].provider.priority), (41, 41));
}

#[test]
fn ten_thousand_models_are_read_and_checked() {
    let mut prices_text = String::new();
    let mut text = String::from("[provider.p]\nkind = \"openai\"\n");
    for number in 0..10_000 {
        prices_text.push_str(&format!("[price.\"p/m{number}\"]\ninput = \"0.{number}\"\noutput = \"1.5\"\n"));
        let next = (number + 1) % 10_000;
        text.push_str(&format!("[model.m{number}]\ntargets = [ {{ provider = \"p\", weight = 3 }} ]\nfallback = [\"m{next}\"]\n"));
    }
    let (prices, problems) = prices::parse("prices.toml", &prices_text);
    assert_eq!(problems, []);
    let (catalog, problems) = parse("routing.toml", &text, &prices);
    assert_eq!((problems.len(), catalog.models.len()), (0, 10_000));
    // A file in which every reference is wrong is still answered: hints are bounded.
    let (_, problems) = parse("routing.toml", &text.replace("provider = \"p\"", "provider = \"q\""), &prices);
    assert_eq!(problems.len(), 10_000);
}

#[test]
fn the_shipped_example_is_accepted() {
    let (prices, problems) = prices::parse("conf/prices.toml", include_str!("../../../conf/prices.toml"));
    assert_eq!(problems, []);
    let (catalog, problems) = parse("conf/routing.toml", include_str!("../../../conf/routing.toml"), &prices);
    assert_eq!(problems, []);
    // A price for a provider that is not there is a slip of the hand.
    for name in prices.keys() {
        let (provider, _) = name.split_once('/').unwrap();
        assert!(catalog.providers.contains_key(provider), "{name}");
    }
    for level in catalog.levels.values() {
        assert!(!level.models.is_empty(), "{}", level.name);
    }
}

#[test]
fn a_policy_is_named_with_its_folder_or_refused_where_it_cannot_run() {
    let read = |text: &str| {
        let (catalog, problems) = parse("conf/routing.toml", text, &Arc::default());
        (catalog.lua_policy, problems.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let (policy, problems) = read("[policy.lua]\nfile = \"rules/p.lua\"\non_error = \"pass\"\n");
    let policy = policy.unwrap();
    assert_eq!((&*policy.file, policy.on_error), ("conf/rules/p.lua", OnPolicyError::Pass));
    if cfg!(feature = "lua-policy") {
        assert!(problems.is_empty(), "{problems:?}");
    } else {
        assert!(
            problems[0].starts_with("conf/routing.toml:1: policy.lua:") && problems[0].contains("--features lua-policy"),
            "{problems:?}"
        );
    }
    for (text, expected) in [
        ("[policy.lua]\n", "policy.lua.file: missing"),
        ("[policy.lua]\nfile = \"p.lua\"\non_error = \"ignore\"\n", "is not one of refuse, pass"),
        ("[policy]\nfile = \"p.lua\"\n", "policy.file: unknown key"),
    ] {
        let problems = read(text).1;
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{text}: {problems:?}");
    }
}
