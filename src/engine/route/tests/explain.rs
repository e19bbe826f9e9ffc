//! What `weir route` shows.

use super::*;

#[test]
fn every_candidate_has_its_place_or_its_reason() {
    let mut world = World::default();
    world
        .provider("first", |provider| provider.priority = 1)
        .provider("keyless", |provider| provider.key = None)
        .provider("messages", |provider| provider.kind = Kind::Anthropic)
        .model("m", &["messages", "keyless", "first", "second"], |model| model.fallback = vec!["gone".into(), "n".into()])
        .model("n", &["third"], |model| model.can = Some(Capabilities::STREAM));
    world.target("m", "second").state.on_failure(T0 - 20_000, &Retry::default());
    let asker = asks("m").with(|asker| asker.ask.needs = Capabilities::TOOLS);
    let mut explanation = Explanation::default();
    world.plan_explained(&asker, T0, Some(&mut explanation)).unwrap();
    assert_eq!(
        explanation.to_string(),
        "\"m\" is a configured model\n\
         \"gone\": no such model is configured\n    \
             PROVIDER  MODEL  PAYS      PRIO  USD/1M  MEDIAN  STATE\n\
         -   messages  m      platform  50    1       -       dropped: the provider does not speak this path's dialect\n\
         -   keyless   m      platform  50    1       -       dropped: the platform has no key here\n\
         1.  first     m      platform  1     1       -       healthy\n\
         2.  second    m      platform  50    1       -       cooling for 40 s, a last resort\n\
         -   third     n      platform  50    1       -       dropped: cannot do: tools\n\
         at most 2 attempts\n"
    );
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["attempts"][0]["provider"], "first");
    assert_eq!(json["candidates"][0]["dropped"], "the provider does not speak this path's dialect");
    assert_eq!(json["candidates"][2]["order"], 1);
}

#[test]
fn a_refusal_is_explained_too() {
    let mut world = World::default();
    world.model("gpt-4o", &["a"], |_| {});
    world.catalog.routing.infer = false;
    let mut explanation = Explanation::default();
    assert!(world.plan_explained(&asks("gpt-4"), T0, Some(&mut explanation)).is_err());
    assert_eq!(explanation.to_string(), "refused: no model is called \"gpt-4\"; nearest: gpt-4o\n");
}

#[test]
fn explaining_changes_nothing() {
    let mut world = World::default();
    world.catalog.retry = long_retry();
    world.model("m", &["a=3", "b=1", "c=1", "d=5"], |_| {});
    for draw in 0..50 {
        let asker = asks("m").with(|asker| asker.draw = draw);
        let explained = world.plan_explained(&asker, T0, Some(&mut Explanation::default())).unwrap();
        assert_eq!(explained.upcoming().map(shown).collect::<Vec<_>>().join(" "), world.order(&asker, T0));
    }
}
