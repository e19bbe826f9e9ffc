//! A decision among ten thousand models with twenty targets each.

use rustc_hash::FxHashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;
use weir::engine::catalog::{
    BaseUrl, Capabilities, Catalog, Model, OnDisconnect, Provider, SecretRef, Strategy, Target, TargetId, TargetPrice, Timeouts,
};
use weir::engine::dialect::Endpoint;
use weir::engine::policy::{ByokWish, OPEN};
use weir::engine::provider::Kind;
use weir::engine::route::{Ask, Caller, Draw, plan};

const MODELS: usize = 10_000;
const TARGETS: usize = 20;
const NOW_MS: u64 = 1_700_000_000_000;

/// Plans one request, hands out its first attempt and tells that it went well.
pub fn decide(strategy: Strategy) -> Box<dyn FnMut()> {
    let catalog = catalog(strategy);
    let mut draw = 0;
    Box::new(move || {
        draw += 1;
        let ask = Ask {
            model: "model-4711",
            level_header: None,
            task: None,
            endpoint: Endpoint::ChatCompletions,
            needs: Capabilities::STREAM,
            prompt_tokens: 1_000,
            max_output: Some(500),
            byok: ByokWish::Unspecified,
            prefix_hash: 42,
        };
        let caller = Caller { tier: None, scopes: &OPEN, has_budget: true, own_key: &|_| None };
        let mut plan = black_box(plan(&catalog, black_box(&ask), &caller, NOW_MS, Draw(draw), None)).expect("the model is configured");
        let attempt = plan.next(NOW_MS).expect("every target is healthy");
        black_box(plan.after(&attempt, &weir::engine::route::Outcome::Ok, NOW_MS));
    })
}

fn catalog(strategy: Strategy) -> Catalog {
    let providers: Vec<Arc<Provider>> = (0..TARGETS).map(|at| Arc::new(provider(&format!("provider-{at}")))).collect();
    let models: FxHashMap<Arc<str>, Arc<Model>> = (0..MODELS)
        .map(|at| {
            let name: Arc<str> = format!("model-{at}").into();
            let targets = providers.iter().map(|provider| Arc::new(target(provider, &name))).collect();
            let model = Model {
                name: Arc::clone(&name),
                targets,
                fallback: Vec::new(),
                min_tier: None,
                context_window: Some(128_000),
                max_output: Some(16_384),
                can: Some(Capabilities::STREAM),
                strategy,
                stick: None,
                hedge: false,
            };
            (name, Arc::new(model))
        })
        .collect();
    Catalog { models, ..Catalog::default() }
}

fn provider(name: &str) -> Provider {
    let second = Duration::from_secs(1);
    Provider {
        name: name.into(),
        kind: Kind::OpenAi,
        base: BaseUrl::new(false, "127.0.0.1", 1, "/v1"),
        account: None,
        api_version: None,
        key: Some(SecretRef::Env("KEY".into())),
        priority: 50,
        timeouts: Timeouts { connect: second, first_event: second, between_events: second, total: second },
        on_disconnect: OnDisconnect::Cancel,
        heartbeat: None,
        max_concurrent: Some(1_000),
        probe: None,
        ca: None,
        http2: false,
        byok_falls_to_platform: false,
        state: Arc::default(),
    }
}

fn target(provider: &Arc<Provider>, model: &Arc<str>) -> Target {
    Target {
        id: TargetId::next(),
        provider: Arc::clone(provider),
        model: Arc::clone(model),
        upstream_model: Arc::clone(model),
        family: weir::engine::tokens::family(model),
        priority: 50,
        weight: 1,
        price: TargetPrice::Free,
        configured: true,
        state: Arc::default(),
    }
}
