//! The table of outcomes: each one, on the first and on the last attempt, with each kind of key: who is blamed, what follows.
//! Whole answers and streams differ only in which outcome the proxy reports; what it means is the same.

use super::*;

/// Who holds a grudge afterwards.
fn blamed(world: &World, key: &KeyState) -> &'static str {
    let target = world.target("m", "a");
    let provider = &target.provider.state;
    let now = T0 + 1;
    let all = [
        ("target", target.state.breaker.gauge(now)),
        ("platform key here", target.state.platform_key.breaker.gauge(now)),
        ("platform key", provider.platform_key.breaker.gauge(now)),
        ("own key", key.breaker.gauge(now)),
    ];
    let mut cooling = all.iter().filter(|(_, gauge)| *gauge != 2).map(|(name, _)| *name);
    let first = cooling.next().unwrap_or("nobody");
    assert_eq!(cooling.next(), None, "one party is blamed at most");
    let other = world.target("m", "b");
    assert_eq!((other.state.gauge(now), other.provider.state.gauge(now)), (2, 2), "nobody else is");
    first
}

fn verdict(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Committed => "committed",
        Verdict::TryNext => "next",
        Verdict::ReturnUpstream => "returned",
        Verdict::Refuse(Denied::Failed { .. }) => "failed",
        Verdict::Refuse(Denied::TooLate { .. }) => "too late",
        Verdict::Refuse(Denied::OwnKeyRefused { .. }) => "own key refused",
        Verdict::Refuse(_) => "refused otherwise",
        Verdict::EndStream => "end",
        Verdict::Drop => "drop",
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Pays {
    Platform,
    Own,
    /// The caller's own, and the platform stands behind it.
    OwnThenPlatform,
}

/// One cell: `outcome` at provider `a`, which is asked first; `b` is left or not.
fn cell(outcome: &Outcome<'_>, is_last: bool, pays: Pays) -> (&'static str, &'static str) {
    let mut world = World::default();
    world
        .provider("a", |provider| {
            provider.priority = 1;
            provider.byok_falls_to_platform = pays == Pays::OwnThenPlatform;
        })
        .model("m", &["a", "b"], |_| {});
    if is_last {
        world.catalog.retry.max_attempts = 1;
    }
    let key = Arc::new(KeyState::default());
    let asker = asks("m").with(|asker| {
        if pays != Pays::Platform {
            asker.own_keys = vec![("a", Arc::clone(&key))];
        }
    });
    let mut plan = world.plan(&asker, T0).unwrap();
    let attempt = plan.next(T0).unwrap();
    assert_eq!((&*attempt.target.provider.name, attempt.payer.own().is_some()), ("a", pays != Pays::Platform));
    let result = plan.after(&attempt, outcome, T0);
    assert!(result != Verdict::TryNext || plan.next(T0).is_some(), "a next one that is promised is there");
    (verdict(&result), blamed(&world, &key))
}

/// Verdict on the first and on the last attempt, and who is blamed, with the platform's key; then the same with an own one.
fn check(outcome: Outcome<'_>, platform: [&str; 3], own: [&str; 3]) {
    for (pays, [first, last, blame]) in [(Pays::Platform, platform), (Pays::Own, own)] {
        assert_eq!(cell(&outcome, false, pays), (first, blame), "{outcome:?}, first");
        assert_eq!(cell(&outcome, true, pays), (last, blame), "{outcome:?}, last");
    }
}

#[test]
fn the_target_is_blamed_and_the_next_one_tried() {
    let all = [
        Outcome::Connect,
        Outcome::Tls,
        Outcome::Reset,
        Outcome::Timeout(TimeoutPhase::Connect),
        Outcome::EmptyOrNotJson,
        Outcome::ErrorFirstEvent { error_code: "server_error", message: "" },
        Outcome::ErrorFirstEvent { error_code: "", message: "" },
        status(408),
        status(500),
        status(502),
        status(503),
        status(504),
        status(529),
        status(302),
    ];
    for outcome in all {
        check(outcome, ["next", "failed", "target"], ["next", "failed", "target"]);
    }
    for phase in [TimeoutPhase::FirstEvent, TimeoutPhase::Total] {
        check(Outcome::Timeout(phase), ["next", "too late", "target"], ["next", "too late", "target"]);
    }
}

#[test]
fn the_key_is_blamed() {
    check(status(429), ["next", "failed", "platform key here"], ["next", "failed", "own key"]);
    for code in [402, 403] {
        check(status(code), ["next", "failed", "platform key here"], ["own key refused", "own key refused", "own key"]);
    }
    check(status(401), ["next", "failed", "platform key"], ["own key refused", "own key refused", "own key"]);
    let quota = Outcome::Status { code: 429, retry_after_ms: Some(1000), error_code: "insufficient_quota", message: "" };
    check(quota, ["next", "failed", "platform key"], ["own key refused", "own key refused", "own key"]);
    let event = Outcome::ErrorFirstEvent { error_code: "insufficient_quota", message: "" };
    check(event, ["next", "failed", "platform key"], ["own key refused", "own key refused", "own key"]);
}

#[test]
fn the_caller_is_blamed() {
    for code in [400, 404, 409, 413, 415, 422] {
        check(status(code), ["returned", "returned", "nobody"], ["returned", "returned", "nobody"]);
    }
    let long = Outcome::Status { code: 400, retry_after_ms: None, error_code: "context_length_exceeded", message: "" };
    check(long, ["returned", "returned", "nobody"], ["returned", "returned", "nobody"]);
}

#[test]
fn after_the_first_event() {
    check(Outcome::BrokenOff, ["end", "end", "target"], ["end", "end", "target"]);
    check(Outcome::Timeout(TimeoutPhase::BetweenEvents), ["end", "end", "target"], ["end", "end", "target"]);
    check(Outcome::Ok, ["committed", "committed", "nobody"], ["committed", "committed", "nobody"]);
    check(Outcome::Cancelled, ["drop", "drop", "nobody"], ["drop", "drop", "nobody"]);
}

#[test]
fn the_platform_pays_for_a_refused_own_key_where_policy_lets_it() {
    for outcome in [status(401), status(402), status(403), status(429)] {
        assert_eq!(cell(&outcome, false, Pays::OwnThenPlatform), ("next", "own key"));
        assert_eq!(cell(&outcome, true, Pays::OwnThenPlatform), ("failed", "own key"));
    }
    let mut world = World::default();
    world.provider("a", |provider| provider.byok_falls_to_platform = true).model("m", &["a"], |_| {});
    let key = Arc::new(KeyState::default());
    let asker = asks("m").with(|asker| asker.own_keys = vec![("a", Arc::clone(&key))]);
    let mut plan = world.plan(&asker, T0).unwrap();
    let first = plan.next(T0).unwrap();
    assert_eq!(plan.after(&first, &status(401), T0), Verdict::TryNext);
    assert_eq!(plan.next(T0).as_ref().map(shown).as_deref(), Some("a/m"));
    // While the key is in doubt the platform is asked first.
    assert_eq!(world.order(&asker, T0 + 1), "a/m a/m+");
    // Where own keys are required, the platform never is.
    let asker = asker.with(|asker| asker.ask.byok = ByokWish::Require);
    assert_eq!(world.order(&asker, T0 + 1), "a/m+");
}

#[test]
fn a_refused_own_key_is_told_each_time_and_concerns_its_owner_alone() {
    let mut world = World::default();
    world.model("m", &["a", "b"], |_| {});
    let key = Arc::new(KeyState::default());
    let owner = asks("m").with(|asker| asker.own_keys = vec![("a", Arc::clone(&key))]);
    for now in [T0, T0 + 1, T0 + 100_000] {
        let mut plan = world.plan(&owner, now).unwrap();
        let attempt = plan.next(now).unwrap();
        assert_eq!(shown(&attempt), "a/m+");
        assert_eq!(verdict(&plan.after(&attempt, &status(401), now)), "own key refused");
    }
    let other = world.target("m", "a");
    assert_eq!((other.state.gauge(T0), other.provider.state.gauge(T0)), (2, 2));
    // A rate limited own key is another matter: the next target is asked, also by the next request.
    let key = Arc::new(KeyState::default());
    key.on_rate_limited(T0, Some(5000), &Retry::default());
    let owner = owner.with(|asker| asker.own_keys = vec![("a", key)]);
    assert_eq!(world.order(&owner, T0), "b/m a/m+");
}

#[test]
fn a_users_own_base_url_fails_for_that_user_alone() {
    let mut world = World::default();
    world.model("m", &["a"], |_| {});
    let key = Arc::new(KeyState::with_own_base());
    let owner = asks("m").with(|asker| asker.own_keys = vec![("a", Arc::clone(&key))]);
    let mut plan = world.plan(&owner, T0).unwrap();
    let attempt = plan.next(T0).unwrap();
    for _ in 0..5 {
        attempt.record_first_event(T0, 9_000_000);
    }
    plan.after(&attempt, &Outcome::Connect, T0);
    let target = world.target("m", "a");
    assert_eq!((target.state.gauge(T0), target.provider.state.gauge(T0)), (2, 2));
    assert_eq!(key.own_base().unwrap().gauge(T0), 0);
    assert_eq!(target.state.first_event.median_us(T0), None);
    assert_eq!(key.own_base().unwrap().first_event.median_us(T0), Some(9_000_000));
}

#[test]
fn a_long_prompt_goes_to_a_wider_window_or_back() {
    let long = Outcome::Status { code: 400, retry_after_ms: None, error_code: "context_length_exceeded", message: "" };
    let check = |asked: Option<u64>, narrow: Option<u64>, wide: Option<u64>, expected: &str| {
        let mut world = World::default();
        world
            .model("m", &["a", "b"], |model| {
                model.context_window = asked;
                model.fallback = vec!["narrow".into(), "wide".into()];
            })
            .model("narrow", &["c"], |model| model.context_window = narrow)
            .model("wide", &["d"], |model| model.context_window = wide);
        let mut plan = world.plan(&asks("m"), T0).unwrap();
        let attempt = plan.next(T0).unwrap();
        let verdict = plan.after(&attempt, &long, T0);
        let next = plan.next(T0).map(|attempt| shown(&attempt)).unwrap_or_default();
        assert_eq!(verdict, if expected.is_empty() { Verdict::ReturnUpstream } else { Verdict::TryNext });
        assert_eq!(next, expected);
        assert_eq!(attempt.target.state.gauge(T0), 2);
    };
    check(Some(1000), Some(500), Some(2000), "d/wide~");
    check(Some(1000), Some(1000), Some(1000), "");
    check(Some(1000), None, None, "");
    check(None, Some(500), Some(2000), "");
    check(Some(1000), Some(1001), Some(2000), "c/narrow~");
}

#[test]
fn the_wider_window_is_kept_when_many_targets_stand_before_it() {
    let mut world = World::default();
    let names: Vec<String> = (0..30).map(|at| format!("p{at}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    world
        .model("m", &names, |model| {
            model.context_window = Some(1000);
            model.fallback = vec!["wide".into()];
        })
        .model("wide", &["w"], |model| model.context_window = Some(2000));
    let plan = world.plan(&asks("m"), T0).unwrap();
    assert_eq!(plan.upcoming().count(), ATTEMPTS_KEPT);
    assert_eq!(plan.upcoming().last().map(shown).as_deref(), Some("w/wide~"));
}

#[test]
fn the_end_of_the_attempts() {
    let mut world = World::default();
    world.model("m", &["a", "b", "c", "d"], |_| {});
    let mut plan = world.plan(&asks("m"), T0).unwrap();
    let limited = |wait| Outcome::Status { code: 429, retry_after_ms: Some(wait), error_code: "", message: "" };
    for (outcome, expected) in [(limited(90_000_000), "next"), (limited(7_000), "next"), (status(500), "failed")] {
        let attempt = plan.next(T0).unwrap();
        let result = plan.after(&attempt, &outcome, T0);
        assert_eq!(verdict(&result), expected);
        if let Verdict::Refuse(denied) = result {
            let expected = Denied::Failed { attempts: 3, last: Class::TargetFailed, status: Some(500), retry_after_ms: Some(7_000) };
            assert_eq!(denied, expected);
        }
    }
    assert!(plan.next(T0).is_none(), "max_attempts is 3");
    assert_eq!(plan.attempts(), 3);
}

#[test]
fn max_attempts_is_at_least_one_and_bounded() {
    let names: Vec<String> = (0..40).map(|at| format!("p{at}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (configured, expected) in [(0, 1), (1, 1), (5, 5), (1000, ATTEMPTS_KEPT as u32)] {
        let mut world = World::default();
        world.model("m", &names, |_| {});
        world.catalog.retry.max_attempts = configured;
        let mut plan = world.plan(&asks("m"), T0).unwrap();
        assert_eq!(plan.most_attempts(), expected);
        while let Some(attempt) = plan.next(T0) {
            plan.after(&attempt, &Outcome::Connect, T0);
        }
        assert_eq!(plan.attempts(), expected);
    }
}
