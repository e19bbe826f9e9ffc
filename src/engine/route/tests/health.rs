//! Cooldowns, probes and last resorts as plans see them.

use super::*;

fn fail(world: &World, provider: &str, at_ms: u64) {
    world.target("m", provider).state.on_failure(at_ms, &Retry::default());
}

#[test]
fn cooling_targets_come_last_the_one_due_first_first() {
    let mut world = World::default();
    world.catalog.retry = long_retry();
    world.model("m", &["a", "b", "c"], |_| {});
    fail(&world, "a", T0 + 5_000);
    fail(&world, "b", T0);
    let now = T0 + 6_000;
    assert_eq!(world.order(&asks("m"), now), "c/m b/m a/m");
    fail(&world, "c", now);
    assert_eq!(world.order(&asks("m"), now), "b/m a/m c/m", "all cool: the one due first is tried rather than refusing");
    let mut plan = world.plan(&asks("m"), now).unwrap();
    assert_eq!(plan.next(now).map(|attempt| shown(&attempt)).as_deref(), Some("b/m"));
}

#[test]
fn a_fallback_that_is_ready_comes_before_a_cooling_target() {
    let mut world = World::default();
    world.model("m", &["a"], |model| model.fallback = vec!["n".into()]).model("n", &["b"], |_| {});
    fail(&world, "a", T0);
    assert_eq!(world.order(&asks("m"), T0), "b/n~ a/m");
    assert_eq!(world.order(&asks("m"), T0 + 60_000), "a/m b/n~");
}

#[test]
fn what_began_to_cool_after_the_plan_is_put_off() {
    let mut world = World::default();
    world.provider("a", |provider| provider.priority = 1).provider("b", |provider| provider.priority = 2).model(
        "m",
        &["a", "b", "c"],
        |_| {},
    );
    let mut plan = world.plan(&asks("m"), T0).unwrap();
    fail(&world, "b", T0);
    let order: Vec<String> = std::iter::from_fn(|| plan.next(T0)).map(|attempt| shown(&attempt)).collect();
    assert_eq!(order, ["a/m", "c/m", "b/m"]);
}

#[test]
fn one_request_probes_and_the_others_go_elsewhere() {
    let mut world = World::default();
    world.provider("a", |provider| provider.priority = 1).model("m", &["a", "b"], |_| {});
    fail(&world, "a", T0);
    let due = T0 + 60_000;
    let mut plans: Vec<Plan> = (0..3).map(|_| world.plan(&asks("m"), due).unwrap()).collect();
    let firsts: Vec<Attempt> = plans.iter_mut().map(|plan| plan.next(due).unwrap()).collect();
    assert_eq!(firsts.iter().map(shown).collect::<Vec<_>>(), ["a/m?", "b/m", "b/m"]);
    assert_eq!(world.order(&asks("m"), due), "b/m a/m");
    assert_eq!(world.target("m", "a").state.gauge(due), 1);
    // Given up without an outcome, the place is free for the next.
    plans[0].after(&firsts[0], &Outcome::Cancelled, due);
    let mut plan = world.plan(&asks("m"), due).unwrap();
    let probe = plan.next(due).unwrap();
    assert_eq!(shown(&probe), "a/m?");
    // An answer that blames the caller says nothing about health: the next request probes again.
    plan.after(&probe, &status(400), due);
    let mut plan = world.plan(&asks("m"), due).unwrap();
    let probe = plan.next(due).unwrap();
    assert_eq!(shown(&probe), "a/m?");
    plan.after(&probe, &Outcome::Ok, due);
    assert_eq!(world.target("m", "a").state.gauge(due), 2);
    assert_eq!(world.plan(&asks("m"), due).unwrap().next(due).map(|attempt| shown(&attempt)).as_deref(), Some("a/m"));
}

#[test]
fn a_lone_target_that_is_being_probed_is_asked_all_the_same() {
    let mut world = World::default();
    world.model("m", &["a"], |_| {});
    fail(&world, "a", T0);
    let due = T0 + 60_000;
    let mut plans: Vec<Plan> = (0..2).map(|_| world.plan(&asks("m"), due).unwrap()).collect();
    let order: Vec<String> = plans.iter_mut().map(|plan| shown(&plan.next(due).unwrap())).collect();
    assert_eq!(order, ["a/m?", "a/m"]);
}

#[test]
fn a_probe_of_target_and_key_takes_both_places_or_none() {
    let mut world = World::default();
    world.model("m", &["a"], |_| {});
    let state = Arc::clone(&world.target("m", "a").state);
    fail(&world, "a", T0);
    state.platform_key.on_rate_limited(T0, Some(60_000), &Retry::default());
    let due = T0 + 60_000;
    assert!(state.platform_key.breaker.claim_probe(due));
    let mut plan = world.plan(&asks("m"), due).unwrap();
    assert_eq!(shown(&plan.next(due).unwrap()), "a/m", "the only target is tried, though not as a probe");
    assert!(state.breaker.claim_probe(due), "the target's place was not taken");
}

#[test]
fn retry_after_is_kept_for_that_key_at_that_target() {
    let mut world = World::default();
    world.model("m", &["a", "b"], |_| {}).model("n", &["a"], |_| {});
    let mut plan = world.plan(&asks("m"), T0).unwrap();
    let attempt = plan.next(T0).unwrap();
    let provider = attempt.target.provider.name.to_string();
    plan.after(&attempt, &Outcome::Status { code: 429, retry_after_ms: Some(3_000), error_code: "", message: "" }, T0);
    let state = &attempt.target.state;
    assert_eq!((state.platform_key.breaker.gauge(T0 + 2_999), state.platform_key.breaker.gauge(T0 + 3_000)), (0, 1));
    assert_eq!(state.breaker.gauge(T0), 2, "the target itself is well");
    // With a key of one's own it is asked as before.
    let asker = asks("m").with(|asker| asker.own_keys = vec![(&provider, Arc::default())]);
    assert!(world.order(&asker, T0).starts_with(&format!("{provider}/m+")));
    assert_eq!(world.order(&asks("n"), T0), "a/n", "another model of the provider is not held back");
}

#[test]
fn an_unreachable_provider_holds_back_all_of_its_targets() {
    let mut world = World::default();
    world.provider("a", |provider| provider.priority = 1).model("m", &["a", "b"], |_| {});
    let state = Arc::clone(&world.catalog.providers["a"].state);
    state.on_probe_failed(T0, &Retry::default());
    assert_eq!(state.gauge(T0), 0);
    assert_eq!(world.order(&asks("m"), T0), "b/m a/m");
    state.on_probe_ok();
    assert_eq!((state.gauge(T0), world.order(&asks("m"), T0).as_str()), (2, "a/m b/m"));
}

#[test]
fn the_gauge_of_a_provider_follows_its_latest_request() {
    let mut world = World::default();
    world.model("m", &["a"], |_| {});
    let state = Arc::clone(&world.catalog.providers["a"].state);
    let mut plan = world.plan(&asks("m"), T0).unwrap();
    let attempt = plan.next(T0).unwrap();
    plan.after(&attempt, &Outcome::Connect, T0);
    assert_eq!((state.gauge(T0), state.gauge(T0 + 60_000)), (0, 1));
    plan.after(&attempt, &Outcome::Ok, T0);
    assert_eq!(state.gauge(T0), 2);
}

#[test]
fn in_flight_is_counted_and_bounded() {
    let mut world = World::default();
    world.provider("a", |provider| provider.max_concurrent = Some(2)).model("m", &["a"], |_| {});
    let target = world.target("m", "a");
    let first = target.begin();
    let second = target.try_begin();
    assert!(second.is_some() && target.try_begin().is_none());
    assert_eq!((target.state.in_flight(), target.provider.state.in_flight()), (2, 2));
    assert_eq!(world.order(&asks("m"), T0), "refused: every target serves as many requests as it may");
    drop(first);
    assert_eq!(world.order(&asks("m"), T0), "a/m");
    drop(second);
    assert_eq!((target.state.in_flight(), target.provider.state.in_flight()), (0, 0));
}

#[test]
fn a_full_target_is_passed_over_without_counting() {
    let mut world = World::default();
    world.catalog.retry.max_attempts = 2;
    world.provider("a", |provider| provider.max_concurrent = Some(1)).model("m", &["a", "b", "c"], |_| {});
    let mut plan = world.plan(&asks("m").with(|asker| asker.draw = 0), T0).unwrap();
    let first = plan.next(T0).unwrap();
    plan.pass_over(&first, T0);
    assert_eq!((plan.attempts(), plan.has_next()), (0, true));
    let others: Vec<_> = std::iter::from_fn(|| plan.next(T0)).map(|attempt| attempt.target.provider.name.clone()).collect();
    assert_eq!((others.len(), plan.attempts()), (2, 2));
    assert!(!others.contains(&first.target.provider.name));
}

#[test]
fn hedging_waits_for_the_usual_p95() {
    let check = |hedge: bool, measured: u64, targets: &[&str], expected: Option<u64>| {
        let mut world = World::default();
        world.model("m", targets, |model| model.hedge = hedge);
        let mut plan = world.plan(&asks("m"), T0).unwrap();
        let attempt = plan.next(T0).unwrap();
        for sample in 1..=measured {
            attempt.record_first_event(T0, sample * 1000);
        }
        assert_eq!(plan.hedge_after_us(&attempt, T0), expected);
    };
    check(true, 20, &["a", "b"], Some(19_000));
    check(true, 9, &["a", "b"], None);
    check(false, 20, &["a", "b"], None);
    check(true, 20, &["a"], None);
}

#[test]
fn inferred_targets_keep_their_health_between_requests() {
    let mut world = World::default();
    world.provider("a", |_| {});
    let mut plan = world.plan(&asks("gpt-unheard-of"), T0).unwrap();
    let attempt = plan.next(T0).unwrap();
    plan.after(&attempt, &status(500), T0);
    let again = world.plan(&asks("gpt-unheard-of"), T0).unwrap().next(T0).unwrap();
    assert_eq!(again.target.state.gauge(T0), 0);
    assert!(!again.target.configured);
}
