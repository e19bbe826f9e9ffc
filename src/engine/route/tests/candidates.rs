//! Names, levels, tiers, capabilities and payers: what is kept and why the rest is not.

use super::*;

/// A model at three providers, two levels, and a few names to infer.
fn world() -> World {
    let mut world = World::default();
    world
        .provider("openai", |_| {})
        .provider("router", |provider| provider.kind = Kind::OpenRouter)
        .provider("claude", |provider| provider.kind = Kind::Anthropic)
        .provider("ollama", |provider| {
            provider.kind = Kind::Ollama;
            provider.key = None;
        })
        .model("small", &["openai"], |model| {
            model.can = Some(Capabilities::STREAM.with(Capabilities::TOOLS));
            model.context_window = Some(10_000);
            model.max_output = Some(1_000);
        })
        .model("large", &["router"], |model| {
            model.min_tier = Some((2, "pro".into()));
            Arc::get_mut(&mut model.targets[0]).unwrap().price = price(20);
        })
        .model("odd", &["openai"], |model| Arc::get_mut(&mut model.targets[0]).unwrap().price = TargetPrice::Unpriced)
        .level("eco", &["small", "odd"], |level| {
            level.max_cost_per_1m = Some(Usd(5 * Usd::ONE.0));
            level.max_output = Some(500);
        })
        .level("best", &["large", "small"], |level| {
            level.fallback = false;
            level.tasks.insert("code".into(), vec!["small".into()]);
        });
    world
}

fn check(change: impl FnOnce(&mut Asker<'_>), model: &str, expected: &str) {
    let asker = asks(model).with(change);
    assert_eq!(world().order(&asker, T0), expected, "{model}");
}

#[test]
fn names() {
    check(|_| {}, "small", "openai/small");
    check(|_| {}, "weir/best", "router/large");
    check(|asker| asker.ask.level_header = Some("best"), "auto", "router/large");
    check(|asker| asker.ask.level_header = Some("eco"), "weir/best", "router/large");
    check(|_| {}, "auto", "refused: the model `auto` needs a level: send X-Power-Level, or ask for weir/<level>");
    check(|_| {}, "weir/ecco", "refused: no level is called \"ecco\"; nearest: eco");
    check(|_| {}, "weir/none", "refused: no level is called \"none\"; nearest: best, eco");
    check(|asker| asker.ask.level_header = Some("none"), "small", "refused: no level is called \"none\"; nearest: best, eco");
    check(|_| {}, "smal", "refused: no model is called \"smal\"; nearest: small");
    check(|asker| asker.tier = Some(tier(1)), "larg", "refused: no model is called \"larg\"");
    check(|asker| asker.tier = Some(tier(2)), "larg", "refused: no model is called \"larg\"; nearest: large");
}

#[test]
fn inferred_names() {
    check(|_| {}, "gpt-9", "openai/gpt-9");
    check(|_| {}, "someone/some-model", "router/someone/some-model");
    check(|_| {}, "llama3:8b", "ollama/llama3:8b");
    check(|_| {}, "claude-9", "refused: no provider of claude-9 speaks /v1/chat/completions");
    check(|asker| asker.ask.endpoint = Endpoint::Messages, "claude-9", "claude/claude-9");
    check(|_| {}, "@cf/meta/llama", "refused: no model is called \"@cf/meta/llama\"");
    check(|asker| asker.has_budget = true, "gpt-9", "refused: gpt-9 has no price, and this key has a budget");
    check(|asker| asker.ask.level_header = Some("eco"), "gpt-9", "refused: the level eco has no target for this within its limits");

    let mut world = world();
    world.provider("cheaper", |provider| provider.priority = 10);
    let TargetPrice::Priced(known) = price(3) else { unreachable!() };
    Arc::make_mut(&mut world.catalog.prices).insert("openai/gpt-9".into(), known);
    let asker = asks("gpt-9").with(|asker| asker.has_budget = true);
    assert_eq!(world.order(&asks("gpt-9"), T0), "cheaper/gpt-9 openai/gpt-9");
    assert_eq!(world.order(&asker, T0), "openai/gpt-9", "the price table knows it at one provider");
    world.catalog.routing.infer = false;
    assert_eq!(world.order(&asks("gpt-9"), T0), "refused: no model is called \"gpt-9\"");
}

#[test]
fn tiers_and_scopes() {
    check(|asker| asker.tier = Some(tier(1)), "large", "refused: large is open from the tier pro on");
    check(|asker| asker.tier = Some(tier(2)), "large", "router/large");
    let listed = |models: &[&str]| Tier { models: Some(models.iter().map(|name| Arc::from(*name)).collect()), ..tier(9) };
    check(|asker| asker.tier = Some(listed(&["small"])), "large", "refused: large is not open to this key");
    check(|asker| asker.tier = Some(listed(&["small"])), "gpt-9", "refused: gpt-9 is not open to this key");
    check(|asker| asker.tier = Some(listed(&["small"])), "small", "openai/small");
    check(
        |asker| asker.tier = Some(Tier { levels: Some(vec!["eco".into()]), ..tier(1) }),
        "weir/best",
        "refused: the level best is not open to this key",
    );
    check(|asker| asker.scopes.levels = Some(vec!["eco".into()]), "weir/best", "refused: the level best is not open to this key");
    check(|asker| asker.scopes.models = Some(vec!["sm*".into()]), "small", "openai/small");
    check(|asker| asker.scopes.models = Some(vec!["sm*".into()]), "large", "refused: large is not open to this key");
    check(|asker| asker.scopes.paths = Some(vec!["/v1/embeddings".into()]), "small", "refused: this key may not use /v1/chat/completions");
    check(|asker| asker.scopes.paths = Some(vec!["/v1/*".into()]), "small", "openai/small");
    // A level's closed model is passed over, and what serves instead is no fallback.
    check(|asker| asker.tier = Some(tier(1)), "weir/best", "openai/small");
}

#[test]
fn levels() {
    let limited = "refused: the level eco has no target for this within its limits";
    check(|_| {}, "weir/eco", "openai/small");
    check(|asker| asker.ask.task = Some("code"), "weir/best", "openai/small");
    check(|asker| asker.ask.task = Some("poems"), "weir/best", "router/large");
    check(|asker| asker.ask.level_header = Some("eco"), "small", "openai/small");
    check(|asker| asker.ask.level_header = Some("eco"), "large", limited);
    check(|asker| asker.ask.level_header = Some("eco"), "odd", limited);
    // A level without a bound on the price takes no model it does not list.
    check(|asker| asker.ask.level_header = Some("best"), "odd", "refused: the level best has no target for this within its limits");

    let mut world = world();
    world.model("reported", &["router"], |model| Arc::get_mut(&mut model.targets[0]).unwrap().price = only_reported());
    let asker = asks("reported").with(|asker| asker.ask.level_header = Some("eco"));
    assert_eq!(world.order(&asker, T0), limited, "what nobody knows beforehand is within no bound");
}

#[test]
fn a_level_without_fallback_means_the_first_target_alone_once() {
    let mut world = world();
    world.model("large", &["router", "openai"], |model| model.fallback = vec!["small".into()]);
    for asker in [asks("weir/best"), asks("large").with(|asker| asker.ask.level_header = Some("best"))] {
        let mut plan = world.plan(&asker, T0).unwrap();
        let attempt = plan.next(T0).unwrap();
        assert!(!plan.has_next());
        assert!(matches!(plan.after(&attempt, &Outcome::Connect, T0), Verdict::Refuse(Denied::Failed { attempts: 1, .. })));
        attempt.target.state.on_success();
    }
}

#[test]
fn a_level_measures_latency() {
    let mut world = World::default();
    world.model("m", &["a", "b"], |_| {}).level("fast", &["m"], |level| level.max_latency = Some(Duration::from_secs(1)));
    let order = |world: &World| {
        world.order(&asks("weir/fast"), T0).split(' ').collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(order(&world), "a/m b/m");
    for provider in ["a", "b"] {
        for _ in 0..3 {
            world.target("m", provider).state.first_event.record(T0, if provider == "a" { 1_000_001 } else { 1_000_000 });
        }
    }
    assert_eq!(order(&world), "b/m");
    for _ in 0..4 {
        world.target("m", "b").state.first_event.record(T0, 2_000_000);
    }
    assert_eq!(world.order(&asks("weir/fast"), T0), "refused: no target is as fast as the level fast asks for at the moment");
    assert_eq!(world.plan(&asks("m"), T0).unwrap().upcoming().count(), 2, "without the level it does not matter");
}

#[test]
fn output_caps() {
    let check = |model: &str, level: Option<&str>, asked: Option<u64>, expected: Result<(Option<u64>, Option<u64>), &str>| {
        let asker = asks(model).with(|asker| {
            asker.ask.level_header = level.map(|level| if level == "eco" { "eco" } else { "best" });
            asker.ask.max_output = asked;
        });
        let found =
            world().plan(&asker, T0).map(|mut plan| plan.next(T0).map(|attempt| (attempt.max_output, attempt.output_at_most)).unwrap());
        assert_eq!(found.map_err(|denied| denied.to_string()), expected.map_err(str::to_owned), "{model} {level:?} {asked:?}");
    };
    // Written into the request, and the most the answer can hold.
    check("small", None, None, Ok((None, Some(1_000))));
    check("small", None, Some(900), Ok((None, Some(900))));
    check("small", None, Some(1_001), Err("the model writes 1000 tokens at most"));
    check("small", Some("eco"), None, Ok((Some(500), Some(500))));
    check("small", Some("eco"), Some(100), Ok((None, Some(100))));
    check("small", Some("eco"), Some(2_000), Ok((Some(500), Some(500))));
    check("large", Some("best"), None, Ok((None, None)));
    check("large", None, Some(7), Ok((None, Some(7))));
}

#[test]
fn a_cap_that_a_level_sets_is_within_the_models_own() {
    let mut world = world();
    world.level("wide", &["small"], |level| level.max_output = Some(16_000));
    let attempt = world.plan(&asks("weir/wide"), T0).unwrap().next(T0).unwrap();
    assert_eq!((attempt.max_output, attempt.output_at_most), (Some(1_000), Some(1_000)));
}

#[test]
fn capabilities_windows_and_dialects() {
    check(|asker| asker.ask.needs = Capabilities::TOOLS.with(Capabilities::STREAM), "small", "openai/small");
    check(
        |asker| asker.ask.needs = Capabilities::VISION.with(Capabilities::JSON),
        "small",
        "refused: small lacks what the request uses: vision, json",
    );
    check(|asker| asker.ask.needs = Capabilities::VISION, "large", "router/large");
    check(|asker| asker.ask.prompt_tokens = 15_000, "small", "openai/small");
    check(|asker| asker.ask.prompt_tokens = 15_003, "small", "refused: the request needs 10002 tokens, the context window has 10000");
    check(
        |asker| {
            asker.ask.prompt_tokens = 14_000;
            asker.ask.max_output = Some(900);
        },
        "small",
        "refused: the request needs 10233 tokens, the context window has 10000",
    );
    check(|asker| asker.ask.endpoint = Endpoint::Messages, "small", "refused: no provider of small speaks /v1/messages");
}

#[test]
fn who_can_pay() {
    check(|asker| asker.has_budget = true, "odd", "refused: odd has no price, and this key has a budget");
    check(|asker| asker.has_budget = false, "odd", "openai/odd");
    check(
        |asker| {
            asker.has_budget = true;
            asker.own_keys = vec![("openai", Arc::default())];
        },
        "odd",
        "openai/odd+",
    );
    check(
        |asker| asker.ask.byok = ByokWish::Require,
        "small",
        "refused: own keys were required, and there is none where this model is served",
    );
    let without = || Some(Tier { byok: false, ..tier(1) });
    check(
        |asker| {
            asker.tier = without();
            asker.ask.byok = ByokWish::Require;
        },
        "small",
        "refused: own provider keys are not part of this key's tier",
    );
    check(
        |asker| {
            asker.tier = without();
            asker.ask.byok = ByokWish::Prefer;
            asker.own_keys = vec![("openai", Arc::default())];
        },
        "small",
        "openai/small",
    );
    let mut world = World::default();
    world.provider("keyless", |provider| provider.key = None).model("m", &["keyless"], |_| {});
    assert_eq!(world.order(&asks("m"), T0), "refused: there is no provider key for m");
    assert_eq!(world.order(&asks("m").with(|asker| asker.own_keys = vec![("keyless", Arc::default())]), T0), "keyless/m+");
}

#[test]
fn the_reason_that_got_furthest_is_told() {
    let mut world = World::default();
    world
        .provider("messages", |provider| provider.kind = Kind::Anthropic)
        .provider("keyless", |provider| provider.key = None)
        .model("m", &["messages", "keyless"], |model| model.fallback = vec!["gone".into(), "narrow".into()])
        .model("narrow", &["a"], |model| model.context_window = Some(10));
    assert_eq!(world.order(&asks("m"), T0), "refused: there is no provider key for m");
}
