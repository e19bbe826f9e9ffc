use super::seal::MasterKey;
use super::*;

const ACTOR: Actor<'static> = Actor { who: "cli:test", from: "local" };
const OPENAI: &str = "sk-proj-0123456789abcdefT3BlbkFJxyz";

fn masters(current: u8, previous: Option<u8>) -> Masters {
    Masters { current: MasterKey::new(&[current; 32]), previous: previous.map(|byte| MasterKey::new(&[byte; 32])) }
}

fn put(store: &Store, account: &str, provider: &str, name: Option<&str>, key: &str) -> Result<Stored> {
    let key = Secret::copied(key);
    let new = NewEntry { account, provider, kind: Kind::of_name(provider), name, base_url: None, key: &key };
    set(store, &masters(1, None), &new, ACTOR, 1)
}

#[test]
fn keys_are_sealed_listed_masked_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("sqlite:{}/weir.db", folder.path().display())).unwrap();
    let stored = put(&store, PLATFORM, "openai", None, OPENAI).unwrap();
    assert_eq!(stored, Stored { name: "openai".into(), shown: "sk-p…Jxyz".into(), replaced: false, unfamiliar: false });
    assert_eq!(open(&store, &masters(1, None), PLATFORM, "openai").unwrap().1.expose(), OPENAI);
    let listed = list(&store, None).unwrap();
    assert!(!format!("{listed:?}").contains(&OPENAI[4..12]));
    drop(store);
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(OPENAI.as_bytes()[4..OPENAI.len() - 4].windows(8).all(|part| memchr::memmem::find(&bytes, part).is_none()));
    }
    let store = Store::open(&format!("sqlite:{}/weir.db", folder.path().display())).unwrap();
    remove(&store, PLATFORM, "openai", ACTOR, 2).unwrap();
    remove(&store, PLATFORM, "openai", ACTOR, 2).unwrap_err();
}

#[test]
fn what_is_clearly_wrong_is_refused_and_what_is_odd_is_stored() {
    let store = Store::in_memory().unwrap();
    for (provider, key, expected) in [
        ("openai", "", "1 to 4096"),
        ("openai", "sk-ant-api03-0123456789", "key of Anthropic"),
        ("anthropic", OPENAI, "key of OpenAI"),
        ("openai", "wk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "weir's own"),
        ("openai", "sk-proj 0123", "printable"),
        ("openai", "sk-proj-0123\n", "printable"),
        (OPENAI, OPENAI, "names are shown"),
        ("a\nb", OPENAI, "control"),
    ] {
        let why = put(&store, PLATFORM, provider, None, key).unwrap_err().to_string();
        assert!(why.contains(expected), "{why}");
        assert!(key.len() < 12 || !why.contains(&key[4..12]));
    }
    assert!(put(&store, PLATFORM, "openai", None, "a-shape-of-next-year").unwrap().unfamiliar);
    let audit = super::super::audit::read(&store, None, 100).unwrap();
    assert_eq!(audit.len(), 9);
    assert!(!format!("{audit:?}").contains(&OPENAI[8..16]));
}

#[test]
fn the_platform_has_many_names_a_user_one_key_each_provider() {
    let store = Store::in_memory().unwrap();
    put(&store, PLATFORM, "openai", None, OPENAI).unwrap();
    put(&store, PLATFORM, "openai", Some("eu"), OPENAI).unwrap();
    put(&store, "a", "openai", None, OPENAI).unwrap();
    assert!(put(&store, "a", "openai", Some("mine"), OPENAI).unwrap().replaced);
    put(&store, "b", "openai", None, OPENAI).unwrap();
    let names: Vec<_> = list(&store, None).unwrap().into_iter().map(|entry| (entry.account, entry.name)).collect();
    let expected = [("", "eu"), ("", "openai"), ("a", "mine"), ("b", "openai")];
    assert_eq!(names, expected.map(|(account, name)| (account.to_owned(), name.to_owned())));
    assert_eq!(list(&store, Some("a")).unwrap().len(), 1);
}

#[test]
fn a_rotation_resumes_where_it_was_cut() {
    let store = Store::in_memory().unwrap();
    for account in ["a", "b", "c", "d"] {
        put(&store, account, "openai", None, OPENAI).unwrap();
    }
    let both = masters(2, Some(1));
    // Cut after two rows.
    let (first, _) = rotate_next(&store, &both, 0).unwrap().unwrap();
    rotate_next(&store, &both, first).unwrap().unwrap();
    for account in ["a", "b", "c", "d"] {
        assert!(open(&store, &both, account, "openai").is_ok());
    }
    assert_eq!(rotate(&store, &both, ACTOR, 2).unwrap(), Rotated { resealed: 2, already: 2, failed: 0 });
    assert_eq!(rotate(&store, &both, ACTOR, 3).unwrap(), Rotated { resealed: 0, already: 4, failed: 0 });
    assert!(open(&store, &masters(2, None), "a", "openai").is_ok());
    assert_eq!(masters_in_use(&store).unwrap(), [(both.current.id().to_owned(), 4)]);
    // Without the old master key nothing is lost, and it is said.
    assert_eq!(rotate(&store, &masters(3, None), ACTOR, 4).unwrap(), Rotated { resealed: 0, already: 0, failed: 4 });
    assert!(open(&store, &masters(2, None), "a", "openai").is_ok());
}

#[test]
fn a_key_moved_to_another_account_does_not_open() {
    let store = Store::in_memory().unwrap();
    put(&store, "a", "openai", None, OPENAI).unwrap();
    store.write(|tx| Ok(tx.execute("UPDATE vault SET account = 'b'", [])?)).unwrap();
    assert!(open(&store, &masters(1, None), "b", "openai").unwrap_err().to_string().contains("moved"));
}

#[test]
fn a_verdict_is_kept_until_the_key_changes() {
    let store = Store::in_memory().unwrap();
    put(&store, "a", "openai", None, OPENAI).unwrap();
    let entry = list(&store, Some("a")).unwrap().remove(0);
    checked(&store, &entry, Verdict::Expired, ACTOR, 7).unwrap();
    let entry = list(&store, Some("a")).unwrap().remove(0);
    assert_eq!((entry.checked_ms, entry.verdict.as_deref()), (Some(7), Some("expired")));
    put(&store, "a", "openai", None, OPENAI).unwrap();
    assert_eq!(list(&store, Some("a")).unwrap()[0].verdict, None);
}
