use super::*;

const WHOLE: &str = r#"
[listen]
proxy = ["127.0.0.1:8080", "[::1]:8080"]
admin = "127.0.0.1:8081"
plugin = "unix:/run/weir/plugin.sock"
tls = { cert = "cert.pem", key = "file:/etc/key.pem" }
[limits]
max_body = "10MiB"
max_body_in_flight = "2GiB"
max_streams = 100
threads = 4
drain = "1m"
[store]
url = "sqlite:var/weir.db"
[vault]
master_key = "env:WEIR_MASTER_KEY"
previous_key = "file:old.key"
[auth]
mode = "keys+jwt"
[auth.jwt]
issuer = "https://login.example.com/realms/x"
audience = "weir"
jwks = "https://login.example.com/certs?p=1"
claims = { user = "sub", tier = "subscription_tier", account = "org" }
leeway = "5s"
[admin]
token = "env:WEIR_ADMIN_TOKEN"
[ledger]
credit = "0.01"
retention = "100d"
commit = "strict"
upgrade_url = "https://example.com/upgrade?from=weir"
[export.lago]
url = "https://api.getlago.com"
api_key = "env:LAGO"
[export.openmeter]
url = "http://127.0.0.1:8888"
event_type = "tokens"
[files]
routing = "r.toml"
prices = "/etc/weir/p.toml"
[idempotency]
enabled = true
max_entries = 5
"#;

fn check_problems(text: &str, expected: &[&str]) {
    let problems = parse("conf/weir.toml", text).err().unwrap_or_default();
    let problems: Vec<String> = problems.iter().map(Problem::to_string).collect();
    assert_eq!(problems.len(), expected.len(), "{text}\n{problems:#?}");
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.contains(expected), "{problem}\nlacks {expected}");
    }
}

#[test]
fn everything_that_can_be_said_is_read() {
    let settings = parse("conf/weir.toml", WHOLE).unwrap();
    assert_eq!((settings.listen.proxy.len(), settings.listen.admin.port()), (2, 8081));
    assert_eq!(settings.listen.plugin, Some(PathBuf::from("/run/weir/plugin.sock")));
    assert_eq!(settings.listen.tls, Some(Tls { cert: "conf/cert.pem".into(), key: "/etc/key.pem".into() }));
    assert_eq!(
        settings.limits,
        Limits {
            max_body_bytes: 10 << 20,
            max_body_in_flight_bytes: 2 << 30,
            max_streams: 100,
            threads: Some(4),
            drain: Duration::from_secs(60)
        }
    );
    assert_eq!(settings.store, StoreUrl::Sqlite("conf/var/weir.db".into()));
    assert_eq!(settings.vault.master_key, Some(SecretRef::Env("WEIR_MASTER_KEY".into())));
    assert_eq!(settings.vault.previous_key, Some(SecretRef::File("conf/old.key".into())));
    let jwt = settings.auth.jwt.unwrap();
    assert!(settings.auth.mode.takes_jwt() && settings.auth.mode.takes_keys());
    assert_eq!((jwt.leeway.as_secs(), jwt.audience.as_slice()), (5, ["weir".into()].as_slice()));
    assert_eq!(jwt.claims, Claims { user: "sub".into(), account: Some("org".into()), tier: Some("subscription_tier".into()) });
    assert_eq!(jwt.keys, JwtKeys::Jwks("https://login.example.com/certs?p=1".into()));
    assert_eq!(settings.admin_token, Some(SecretRef::Env("WEIR_ADMIN_TOKEN".into())));
    assert_eq!((settings.ledger.credit, settings.ledger.strict), (Usd(10_000_000_000), true));
    assert_eq!(settings.ledger.retention, Duration::from_secs(100 * 86_400));
    assert_eq!(settings.lago.as_ref().map(|lago| &*lago.event), Some("llm_request"));
    assert_eq!(settings.openmeter.as_ref().map(|meter| (&*meter.event, meter.api_key.is_none())), Some(("tokens", true)));
    assert_eq!((settings.routing_file, settings.prices_file), ("conf/r.toml".into(), "/etc/weir/p.toml".into()));
    assert_eq!(settings.idempotency.map(|bounds| (bounds.max_entries, bounds.keep.as_secs())), Some((5, 86_400)));
}

#[test]
fn an_empty_file_is_the_defaults() {
    let settings = parse("weir.toml", "").unwrap();
    assert_eq!(
        (settings.listen.proxy[0].to_string().as_str(), settings.listen.admin.to_string().as_str()),
        ("127.0.0.1:8080", "127.0.0.1:8081")
    );
    assert_eq!((settings.auth.mode, settings.limits), (AuthMode::Keys, Limits::default()));
    assert_eq!((settings.store, settings.routing_file), (StoreUrl::Sqlite("var/weir.db".into()), "routing.toml".into()));
    assert_eq!(settings.ledger.credit, Usd::parse("0.001").unwrap());
    assert!(settings.idempotency.is_none() && settings.vault.master_key.is_none() && settings.lago.is_none());
}

#[test]
fn open_only_binds_to_loopback() {
    check_problems("[auth]\nmode = \"open\"\n", &[]);
    check_problems("[listen]\nproxy = [\"[::1]:80\", \"localhost:0\"]\n[auth]\nmode = \"open\"\n", &[]);
    check_problems("[listen]\nproxy = [\"0.0.0.0:8080\"]\n[auth]\nmode = \"open\"\n", &["auth.mode: \"open\" serves everybody"]);
}

#[test]
fn secrets_are_never_written_here() {
    let text = "[admin]\ntoken = \"verysecret\"\n[vault]\nmaster_key = \"verysecret\"\n[store]\nurl = \"postgres://u:verysecret@h/db\"\n[export.lago]\nurl = \"https://u:verysecret@h\"\napi_key = \"verysecret\"\n";
    check_problems(
        text,
        &[
            "admin.token: a secret is never",
            "vault.master_key: a secret",
            "store.url: a secret",
            "export.lago.url: the URL must not hold a user",
            "export.lago.api_key: a secret",
        ],
    );
    let problems = parse("w", text).unwrap_err();
    assert!(problems.iter().all(|problem| !problem.to_string().contains("verysecret")));
    check_problems("[vault]\nmaster_key = \"vault:x\"\n", &["cannot hold the key that opens it"]);
    check_problems("[store]\nurl = \"vault:x\"\n", &["the vault is in the store"]);
    check_problems("[listen]\ntls = { cert = \"c\", key = \"-----BEGIN PRIVATE KEY-----\" }\n", &["tls.key: must be the path"]);
}

#[test]
fn what_makes_no_sense_says_so() {
    check_problems(
        "[listen]\nproxy = [\"8080\"]\nadmin = \"here\"\nplugin = \"/run/x\"\n",
        &["\"8080\" is not an address", "\"here\"", "Unix socket"],
    );
    check_problems("[listen]\nproxy = []\n", &["at least one address"]);
    check_problems("[listen]\nproxy = [\"127.0.0.1:1\"]\nadmin = \"127.0.0.1:1\"\n", &["proxy listener too"]);
    check_problems("[listen]\nproxy = [\"127.0.0.1:0\"]\nadmin = \"127.0.0.1:0\"\n", &[]);
    check_problems("[listen]\ntls = { cert = \"c\" }\n", &["tls.key: missing"]);
    check_problems("[limits]\nmax_body = \"2GiB\"\nmax_body_in_flight = \"1GiB\"\n", &["could never be taken"]);
    check_problems("[limits]\nmax_body = \"2GiB\"\n", &[]);
    check_problems("[limits]\nmax_body = 64\nmax_streams = 0\n", &["a size with its unit", "between 1"]);
    check_problems("[vault]\n", &["master_key: missing"]);
    check_problems("[auth]\nmode = \"jwt\"\n", &["auth.jwt: missing"]);
    check_problems("[auth]\nmode = \"jwt\"\n[auth.jwt]\n", &["issuer: missing", "audience: missing", "jwks: missing"]);
    let jwt = |rest: &str| format!("[auth]\nmode = \"jwt\"\n[auth.jwt]\nissuer = \"i\"\naudience = [\"a\"]\n{rest}\n");
    check_problems(&jwt("secret = \"env:S\""), &[]);
    check_problems(&jwt("jwks = \"http://127.0.0.1:1/jwks\""), &[]);
    check_problems(&jwt("jwks = \"http://example.com/jwks\""), &["must be an https://"]);
    check_problems(&jwt("jwks = \"https://example.com/jwks\"\nsecret = \"env:S\""), &["one or the other"]);
    check_problems(&jwt("secret = \"env:S\"\nleeway = \"1h\""), &["leeway"]);
    check_problems(
        "[ledger]\ncredit = \"0\"\nretention = \"1d\"\nupgrade_url = \"example.com\"\n",
        &["worth something", "at least \"40d\"", "https://"],
    );
    check_problems("[export.lago]\n", &["api_key: missing", "url: missing"]);
    check_problems("[store]\nurl = \"mysql://x\"\n", &["must be \"sqlite:PATH\""]);
    check_problems("[idempotency]\nenabled = true\nmax_answer = \"2GiB\"\n", &["more than max_total"]);
    check_problems("[listne]\n", &["unknown key; did you mean listen?"]);
    check_problems("[listen\n", &["not TOML"]);
}

#[test]
fn the_shipped_example_is_accepted() {
    let settings = parse("conf/weir.toml", include_str!("../../../conf/weir.toml")).unwrap();
    assert_eq!(settings.routing_file, PathBuf::from("conf/routing.toml"));
}
