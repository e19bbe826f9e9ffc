use super::*;
use clap::Parser;

const OPENAI: &str = "sk-proj-aB3dE6gH9jK2mN5pQ8sT1vW4";

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: VaultArgs,
}

struct Vault {
    folder: tempfile::TempDir,
    store: Store,
}

impl Vault {
    fn new() -> Vault {
        Vault { folder: tempfile::tempdir().unwrap(), store: Store::in_memory().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A vault with a master key.
    fn ready() -> Vault {
        let vault = Vault::new();
        std::fs::write(vault.path("current"), MasterKey::generate().expose()).unwrap();
        vault
    }

    fn run(&self, words: &str, input: &str) -> (String, Result<(), String>) {
        let args = match Cli::try_parse_from(std::iter::once("vault").chain(words.split(' '))) {
            Ok(cli) => cli.args,
            Err(error) => return (String::new(), Err(error.to_string())),
        };
        let previous = self.folder.path().join("previous");
        let reference = |name: &str| SecretRef::File(self.path(name).into());
        let masters = MasterRefs { current: reference("current"), previous: previous.exists().then(|| reference("previous")) };
        let context = Context { store: &self.store, masters: Some(masters), catalog: None };
        let mut out = Vec::new();
        let done = run(args, &context, &mut input.as_bytes(), &mut out).map_err(|failure| failure.to_string());
        (String::from_utf8(out).unwrap(), done)
    }

    fn ok(&self, words: &str, input: &str) -> String {
        let (out, done) = self.run(words, input);
        done.unwrap();
        out
    }
}

#[test]
fn init_prints_a_master_key_once() {
    let vault = Vault::new();
    let printed = vault.ok("init", "");
    let key = printed.lines().next().unwrap();
    assert!(MasterKey::parse(key).is_ok() && printed.contains("current, readable by weir alone"), "{printed}");
    let (_, refused) = vault.run("set openai", OPENAI);
    assert!(refused.unwrap_err().contains("weir vault init"));
    std::fs::write(vault.path("current"), key).unwrap();
    vault.ok("set openai", OPENAI);
    let (out, refused) = vault.run("init", "");
    assert!(out.is_empty() && refused.unwrap_err().contains("--next"));
    // Keys sealed under a master key that is lost are no reason to overwrite it either.
    std::fs::remove_file(vault.path("current")).unwrap();
    vault.run("init", "").1.unwrap_err();
    assert!(vault.ok("init --next", "").contains("previous_key"));
}

#[test]
fn set_list_remove() {
    let vault = Vault::ready();
    let said = vault.ok("set openai --name eu", &format!("{OPENAI}\r\n"));
    assert!(said.contains("vault:eu") && said.contains("sk-p…1vW4"), "{said}");
    vault.ok("set openai --account a --base-url https://own.example/v1", OPENAI);
    for words in ["list", "list --json", "list --account a"] {
        let listed = vault.ok(words, "");
        assert!(!listed.contains(&OPENAI[8..16]) && listed.contains("sk-p…1vW4"), "{listed}");
    }
    let listed: serde_json::Value = serde_json::from_str(&vault.ok("list --json", "")).unwrap();
    assert_eq!((&listed[0]["account"], &listed[0]["name"]), (&serde_json::Value::Null, &"eu".into()));
    assert_eq!((&listed[1]["account"], &listed[1]["base_url"]), (&"a".into(), &"https://own.example/v1".into()));
    vault.ok("remove eu", "");
    vault.ok("remove openai --account a", "");
    assert!(vault.run("remove eu", "").1.unwrap_err().contains("weir vault list"));
}

#[test]
fn mistakes_are_explained_without_the_key() {
    let vault = Vault::ready();
    for (words, input, expected) in [
        ("set anthropic", OPENAI, "key of OpenAI"),
        ("set openai", "", "1 to 4096"),
        ("set nobody", OPENAI, "no provider has that name"),
        ("set", "", "<PROVIDER>"),
        ("check", "", "no such key"),
        (&format!("set {OPENAI}"), "", "read from stdin"),
        (&format!("remove {OPENAI}"), "", "***"),
    ] {
        let (out, refused) = vault.run(words, input);
        let why = refused.unwrap_err();
        assert!(why.contains(expected), "{words}: {why}");
        assert!(!why.contains(&OPENAI[8..16]) && !out.contains(&OPENAI[8..16]));
    }
}

#[test]
fn rotate_goes_over_to_the_next_master_key() {
    let vault = Vault::ready();
    vault.ok("set openai", OPENAI);
    std::fs::rename(vault.path("current"), vault.path("previous")).unwrap();
    std::fs::write(vault.path("current"), MasterKey::generate().expose()).unwrap();
    assert!(vault.ok("rotate", "").starts_with("1 sealed again"));
    std::fs::remove_file(vault.path("previous")).unwrap();
    assert!(vault.ok("rotate --json", "").contains("\"already\":1"));
    std::fs::write(vault.path("current"), MasterKey::generate().expose()).unwrap();
    assert!(vault.run("rotate", "").1.unwrap_err().contains("1 could not be opened"));
}

#[test]
fn files_are_imported_and_named_for_deletion() {
    let vault = Vault::ready();
    let file = vault.path("keys.env");
    std::fs::write(&file, format!("OPENAI_API_KEY={OPENAI}\nANTHROPIC_API_KEY={OPENAI}\nDEBUG=1\n")).unwrap();
    let (out, done) = vault.run(&format!("import {file}"), "");
    assert!(done.unwrap_err().contains("1 keys were refused"));
    assert!(out.contains("delete them") && out.contains("skipped") && out.contains("key of OpenAI"), "{out}");
    assert!(!out.contains(&OPENAI[8..16]));
    assert!(vault.ok("list", "").contains("sk-p…1vW4"));
}

#[test]
fn a_scan_fails_on_what_it_finds() {
    let vault = Vault::new();
    let file = vault.path("a.log");
    std::fs::write(&file, format!("x\n{OPENAI}\n")).unwrap();
    let (out, done) = vault.run(&format!("scan {file}"), "");
    assert!(out.contains("a.log:2: sk-p…1vW4 (OpenAI)") && done.unwrap_err().contains("1 keys"), "{out}");
    assert!(vault.ok(&format!("scan {file} --redact --no-backup --json"), "").contains("\"backups\":[]"));
    assert_eq!(vault.ok(&format!("scan {file}"), ""), "0 keys in 1 files\n");
    assert!(vault.run(&format!("scan {file} --no-backup"), "").1.is_err());
}
