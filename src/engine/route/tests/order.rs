//! Orders with fixed draws.

use super::*;

/// How often each provider is first in `draws` draws.
fn firsts(world: &World, draws: u64, change: impl Fn(&mut Asker<'_>)) -> FxHashMap<String, u64> {
    let mut counts = FxHashMap::default();
    for draw in 0..draws {
        let asker = asks("m").with(|asker| {
            asker.draw = draw;
            change(asker);
        });
        let first = world.plan(&asker, T0).unwrap().next(T0).unwrap();
        *counts.entry(first.target.provider.name.to_string()).or_insert(0) += 1;
    }
    counts
}

#[test]
fn the_same_draw_gives_the_same_order() {
    let mut world = World::default();
    world.model("m", &["a=80", "b=20", "c=50"], |_| {});
    let orders: Vec<String> = (0..100).map(|draw| world.order(&asks("m").with(|asker| asker.draw = draw), T0)).collect();
    let again: Vec<String> = (0..100).map(|draw| world.order(&asks("m").with(|asker| asker.draw = draw), T0)).collect();
    assert_eq!(orders, again);
    let different: std::collections::BTreeSet<&String> = orders.iter().collect();
    assert_eq!(different.len(), 6, "every order of three occurs");
}

#[test]
fn weights_are_kept() {
    let mut world = World::default();
    world.model("m", &["a=80", "b=20", "never=0"], |_| {});
    let counts = firsts(&world, 10_000, |_| {});
    assert!((7_800..=8_200).contains(&counts["a"]), "{counts:?}");
    assert_eq!(counts["a"] + counts["b"], 10_000, "a target of weight 0 is only asked after the others");
    assert!(world.order(&asks("m"), T0).ends_with("never/m"));
}

#[test]
fn groups_come_in_order() {
    let mut world = World::default();
    world.catalog.retry = long_retry();
    world
        .provider("first", |provider| provider.priority = 10)
        .provider("last", |provider| provider.priority = 90)
        .model("m", &["last", "second", "first"], |model| model.fallback = vec!["n".into(), "o".into()])
        .model("n", &["last", "first"], |_| {})
        .model("o", &["first"], |_| {});
    assert_eq!(world.order(&asks("m"), T0), "first/m second/m last/m first/n~ last/n~ first/o~");
    let owner = asks("m").with(|asker| asker.own_keys = vec![("last", Arc::default())]);
    assert_eq!(world.order(&owner, T0), "last/m+ first/m second/m last/n+~ first/n~ first/o~");
    let never = owner.with(|asker| asker.ask.byok = ByokWish::Never);
    assert_eq!(world.order(&never, T0), "first/m second/m last/m first/n~ last/n~ first/o~");
    let require = never.with(|asker| asker.ask.byok = ByokWish::Require);
    assert_eq!(world.order(&require, T0), "last/m+ last/n+~");
}

#[test]
fn the_same_target_stands_once() {
    let mut world = World::default();
    world.model("m", &["a", "a", "b"], |model| model.fallback = vec!["m".into()]);
    assert_eq!(world.plan(&asks("m"), T0).unwrap().upcoming().count(), 2);
}

fn measured(world: &World, provider: &str, median_ms: u64) {
    for _ in 0..3 {
        world.target("m", provider).state.first_event.record(T0, median_ms * 1000);
    }
}

#[test]
fn strategies() {
    let world = |strategy| {
        let mut world = World::default();
        world.model("m", &["a", "b", "c"], |model| model.strategy = strategy);
        world
    };
    let latency = world(Strategy::LeastLatency);
    measured(&latency, "a", 300);
    measured(&latency, "b", 100);
    assert_eq!(latency.order(&asks("m"), T0), "c/m b/m a/m", "the one not measured yet is tried first");
    measured(&latency, "c", 200);
    assert_eq!(latency.order(&asks("m"), T0), "b/m c/m a/m");
    assert_eq!(firsts(&latency, 100, |_| {})["b"], 100);

    let busy = world(Strategy::LeastBusy);
    let guards = [busy.target("m", "a").begin(), busy.target("m", "a").begin(), busy.target("m", "b").begin()];
    assert_eq!(busy.order(&asks("m"), T0), "c/m b/m a/m");
    drop(guards);
    assert_eq!(firsts(&busy, 100, |_| {}).len(), 3, "equals are drawn");

    let mut cost = World::default();
    cost.model("m", &["a", "b", "c", "d"], |model| {
        model.strategy = Strategy::LeastCost;
        for (target, price) in model.targets.iter_mut().zip([price(9), TargetPrice::Unpriced, TargetPrice::Free, price(2)]) {
            Arc::get_mut(target).unwrap().price = price;
        }
    });
    cost.catalog.retry = long_retry();
    assert_eq!(cost.order(&asks("m"), T0), "c/m d/m a/m b/m");

    let mut reported = World::default();
    reported.model("m", &["a", "b"], |model| {
        model.strategy = Strategy::LeastCost;
        for (target, price) in model.targets.iter_mut().zip([only_reported(), price(9)]) {
            Arc::get_mut(target).unwrap().price = price;
        }
    });
    assert_eq!(reported.order(&asks("m"), T0), "b/m a/m");
}

#[test]
fn a_prefix_keeps_its_target() {
    let names: Vec<String> = (0..8).map(|at| format!("p{at}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::default();
    world.model("m", &names, |model| model.stick = Some(50));
    let first = |world: &World, prefix: u64, draw: u64| {
        let asker = asks("m").with(|asker| {
            asker.ask.prefix_hash = prefix;
            asker.draw = draw;
        });
        world.plan(&asker, T0).unwrap().next(T0).unwrap().target.provider.name.to_string()
    };
    let homes: Vec<String> = (1..=200).map(|prefix| first(&world, prefix, prefix)).collect();
    for (prefix, home) in (1..=200).zip(&homes) {
        assert_eq!(&first(&world, prefix, 7 * prefix), home, "the draw does not matter");
    }
    assert_eq!(homes.iter().collect::<std::collections::BTreeSet<_>>().len(), 8, "prefixes spread over all targets");
    // A target that cools down loses its prefixes; the others keep theirs, and it gets them back.
    world.target("m", "p3").state.on_failure(T0, &Retry::default());
    for (prefix, home) in (1..=200).zip(&homes) {
        let now = first(&world, prefix, 0);
        assert_eq!(home == "p3", &now != home);
    }
    world.target("m", "p3").state.on_success();
    assert_eq!((1..=200).map(|prefix| first(&world, prefix, 0)).collect::<Vec<_>>(), homes);
    // Without a prefix there is nothing to stick to.
    assert!(firsts(&world, 100, |asker| asker.ask.prefix_hash = 0).len() > 4);
}

#[test]
fn sticking_ends_where_the_target_is_worse_by_the_margin() {
    let mut world = World::default();
    world.model("m", &["a", "b"], |model| model.stick = Some(50));
    let home = |world: &World| firsts(world, 1, |asker| asker.ask.prefix_hash = 42).into_keys().next().unwrap();
    let before = home(&world);
    let other = if before == "a" { "b" } else { "a" };
    measured(&world, other, 100);
    assert_eq!(home(&world), before, "nothing is known of it");
    measured(&world, &before, 150);
    assert_eq!(home(&world), before, "half as slow again is within the margin");
    for _ in 0..10 {
        measured(&world, &before, 151);
    }
    assert_eq!(home(&world), other);
}

#[test]
fn more_candidates_than_are_considered() {
    let names: Vec<String> = (0..CANDIDATES_MAX + 10).map(|at| format!("p{at}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::default();
    world.model("m", &names, |_| {});
    let mut explanation = Explanation::default();
    world.plan_explained(&asks("m"), T0, Some(&mut explanation)).unwrap();
    let beyond = explanation.candidates.iter().filter(|candidate| candidate.dropped.as_deref() == Some("behind the first 64 candidates"));
    assert_eq!(beyond.count(), 10);
}
