use super::*;
use crate::config::weir_toml::{Claims, JwtKeys};
use crate::engine::catalog::SecretRef;
use crate::store::vault::resolve_plain;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{LazyLock, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// 2026-01-01, in milliseconds.
const NOW: u64 = 1_767_225_600_000;
const ISSUER: &str = "https://login.example.com/realms/shop";

/// A key pair the test makes.
struct Pair {
    id: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Pair {
    fn rsa(id: &'static str) -> Pair {
        use rsa::pkcs1::EncodeRsaPrivateKey;
        // One for all tests: making it takes longer than all the rest.
        static DER: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
            key.to_pkcs1_der().unwrap().as_bytes().to_vec()
        });
        Pair { id, algorithm: Algorithm::RS256, key: EncodingKey::from_rsa_der(&DER) }
    }

    fn ec(id: &'static str) -> Pair {
        use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &ring::rand::SystemRandom::new()).unwrap();
        Pair { id, algorithm: Algorithm::ES256, key: EncodingKey::from_ec_der(der.as_ref()) }
    }

    fn ed(id: &'static str) -> Pair {
        // PKCS #8, version 1, around 32 random bytes (RFC 8410, section 7).
        let head = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        let der = [&head[..], &rand::random::<[u8; 32]>()].concat();
        Pair { id, algorithm: Algorithm::EdDSA, key: EncodingKey::from_ed_der(&der) }
    }

    fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.id.into()), ..Header::new(self.algorithm) };
        encode(&header, claims, &self.key).unwrap()
    }

    fn public(&self) -> Jwk {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.id.into());
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        jwk
    }
}

/// An issuer on this machine.
struct Issuer {
    url: String,
    body: Arc<Mutex<Option<String>>>,
    fetches: Arc<AtomicUsize>,
}

impl Issuer {
    async fn new(pairs: &[&Pair]) -> Issuer {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/certs", listener.local_addr().unwrap());
        let issuer = Issuer { url, body: Arc::default(), fetches: Arc::default() };
        issuer.publish(pairs);
        let (body, fetches) = (issuer.body.clone(), issuer.fetches.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                fetches.fetch_add(1, SeqCst);
                let answer = match body.lock().unwrap().clone() {
                    Some(body) => format!(
                        "HTTP/1.1 200 OK\r\ncache-control: max-age=3600\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    ),
                    None => "HTTP/1.1 503 Down\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_owned(),
                };
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        issuer
    }

    fn publish(&self, pairs: &[&Pair]) {
        let set = JwkSet { keys: pairs.iter().map(|pair| pair.public()).collect() };
        *self.body.lock().unwrap() = Some(serde_json::to_string(&set).unwrap());
    }

    fn goes_down(&self) {
        *self.body.lock().unwrap() = None;
    }

    fn jwt(&self) -> Jwt {
        let claims = Claims { user: "sub".into(), account: None, tier: Some("subscription_tier".into()) };
        Jwt::new(&settings(JwtKeys::Jwks(self.url.as_str().into()), claims), resolve_plain).unwrap()
    }

    fn fetches(&self) -> usize {
        self.fetches.load(SeqCst)
    }
}

fn settings(keys: JwtKeys, claims: Claims) -> weir_toml::Jwt {
    let leeway = std::time::Duration::from_secs(60);
    weir_toml::Jwt { issuer: ISSUER.into(), audience: vec!["weir".into()], keys, claims, leeway }
}

fn claims() -> Value {
    json!({ "iss": ISSUER, "aud": "weir", "sub": "user-1", "exp": NOW / 1000 + 300, "subscription_tier": "starter" })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

#[tokio::test]
async fn every_algorithm_is_verified() {
    let pairs = [Pair::rsa("r"), Pair::ec("e"), Pair::ed("d")];
    let issuer = Issuer::new(&[&pairs[0], &pairs[1], &pairs[2]]).await;
    let jwt = issuer.jwt();
    for pair in &pairs {
        let caller = jwt.verify(&pair.sign(&claims()), NOW).await.unwrap();
        assert_eq!((&*caller.id, &*caller.account_id, caller.tier.as_deref()), ("jwt:user-1", "user-1", Some("starter")));
        assert_eq!(caller.expires_ms, NOW + 360_000);
        // Another key under the same name.
        let forged = match pair.algorithm {
            Algorithm::ES256 => Pair::ec(pair.id),
            _ => Pair::ed(pair.id),
        };
        assert_eq!(jwt.verify(&forged.sign(&claims()), NOW).await.unwrap_err(), NotAccepted::Signature);
    }
    assert_eq!(issuer.fetches(), 1);
}

#[tokio::test]
async fn claims_are_checked() {
    let pair = Pair::ed("d");
    let issuer = Issuer::new(&[&pair]).await;
    let jwt = issuer.jwt();
    for (claims, expected) in [
        (claims(), None),
        (with("aud", json!(["account", "weir"])), None),
        (with("exp", json!(NOW / 1000 - 59)), None),
        (with("exp", json!((NOW / 1000) as f64 + 0.5)), None),
        (with("nbf", json!(NOW / 1000 + 60)), None),
        (with("sub", json!(42)), None),
        (without("subscription_tier"), None),
        (with("iss", json!("https://evil.example")), Some(NotAccepted::Issuer)),
        (without("iss"), Some(NotAccepted::Issuer)),
        (with("iss", json!([ISSUER])), Some(NotAccepted::Issuer)),
        (with("aud", json!("account")), Some(NotAccepted::Audience)),
        (with("aud", json!([])), Some(NotAccepted::Audience)),
        (without("aud"), Some(NotAccepted::Audience)),
        (with("exp", json!(NOW / 1000 - 60)), Some(NotAccepted::Expired)),
        (with("exp", json!("never")), Some(NotAccepted::Expired)),
        (without("exp"), Some(NotAccepted::Expired)),
        (with("nbf", json!(NOW / 1000 + 61)), Some(NotAccepted::NotYet)),
        (with("nbf", json!("x")), Some(NotAccepted::Malformed)),
        (without("sub"), Some(NotAccepted::NoUser)),
        (with("sub", json!("")), Some(NotAccepted::NoUser)),
        (with("sub", json!("a\nb")), Some(NotAccepted::NoUser)),
        (with("sub", json!(true)), Some(NotAccepted::NoUser)),
    ] {
        assert_eq!(jwt.verify(&pair.sign(&claims), NOW).await.err(), expected, "{claims}");
    }
}

#[tokio::test]
async fn a_token_is_no_way_around_its_signature() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let pair = Pair::rsa("r");
    let issuer = Issuer::new(&[&pair]).await;
    let jwt = issuer.jwt();
    let good = pair.sign(&claims());
    let parts: Vec<&str> = good.split('.').collect();
    let encoded = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let none = format!("{}.{}.", encoded(r#"{"alg":"none","kid":"r"}"#), parts[1]);
    // The published key, taken for an HMAC secret.
    let public = serde_json::to_string(&pair.public()).unwrap();
    let header = Header { kid: Some("r".into()), ..Header::new(Algorithm::HS256) };
    let confused = encode(&header, &claims(), &EncodingKey::from_secret(public.as_bytes())).unwrap();
    let changed = format!("{}.{}.{}", parts[0], encoded(&with("sub", json!("admin")).to_string()), parts[2]);
    for (token, expected) in [
        (none.as_str(), NotAccepted::Malformed),
        (&confused, NotAccepted::Algorithm),
        (&changed, NotAccepted::Signature),
        (&good[..good.len() - 4], NotAccepted::Signature),
        ("a.b.c", NotAccepted::Malformed),
        ("", NotAccepted::Malformed),
        (&"x".repeat(TOKEN_MAX + 1), NotAccepted::Malformed),
    ] {
        assert_eq!(jwt.verify(token, NOW).await.unwrap_err(), expected, "{token}");
    }
    assert!(jwt.verify(&good, NOW).await.is_ok());
}

#[tokio::test]
async fn a_verified_token_is_remembered_until_it_expires() {
    let pair = Pair::ed("d");
    let issuer = Issuer::new(&[&pair]).await;
    let jwt = issuer.jwt();
    let token = pair.sign(&claims());
    let first = jwt.verify(&token, NOW).await.unwrap();
    assert!(Arc::ptr_eq(&first, &jwt.verify(&token, NOW + 1).await.unwrap()));
    assert_eq!(jwt.verify(&token, NOW + 360_000).await.unwrap_err(), NotAccepted::Expired);
    assert!(!format!("{jwt:?}").contains(&token[..8]));
}

#[tokio::test]
async fn an_unknown_key_is_fetched_once_an_interval_and_a_withdrawn_one_stops() {
    let (old, new) = (Pair::ed("old"), Pair::ed("new"));
    let issuer = Issuer::new(&[&old]).await;
    let jwt = issuer.jwt();
    let token = old.sign(&claims());
    jwt.verify(&token, NOW).await.unwrap();
    issuer.publish(&[&new]);
    // Too soon after the first fetch.
    for _ in 0..5 {
        assert_eq!(jwt.verify(&new.sign(&claims()), NOW + 1).await.unwrap_err(), NotAccepted::Signature);
    }
    assert_eq!(issuer.fetches(), 1);
    let later = NOW + FETCH_INTERVAL_MS;
    jwt.verify(&new.sign(&claims()), later).await.unwrap();
    assert_eq!(issuer.fetches(), 2);
    // The token that was remembered under the old key is looked at again.
    assert_eq!(jwt.verify(&token, later).await.unwrap_err(), NotAccepted::Signature);
}

#[tokio::test]
async fn many_at_once_fetch_once() {
    let pair = Pair::ed("d");
    let issuer = Issuer::new(&[&pair]).await;
    let jwt = issuer.jwt();
    let token = pair.sign(&claims());
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (jwt, token) = (jwt.clone(), token.clone());
            tokio::spawn(async move { jwt.verify(&token, NOW).await.is_ok() })
        })
        .collect();
    for task in tasks {
        assert!(task.await.unwrap());
    }
    assert_eq!(issuer.fetches(), 1);
}

#[tokio::test]
async fn the_last_good_keys_stay_when_the_issuer_is_down() {
    let pair = Pair::ed("d");
    let issuer = Issuer::new(&[&pair]).await;
    let jwt = issuer.jwt();
    let token = |exp_s: u64| pair.sign(&with("exp", json!(exp_s)));
    jwt.verify(&token(NOW / 1000 + 1), NOW).await.unwrap();
    issuer.goes_down();
    let day = NOW + 24 * 3_600_000;
    jwt.verify(&token(day / 1000 + 1), day).await.unwrap();
    jwt.verify(&token(day / 1000 + 2), day + 1).await.unwrap();
    // Asked once a while, not with every token.
    assert_eq!(issuer.fetches(), 2);
    // An issuer that was never up is another matter.
    let jwt = issuer.jwt();
    assert_eq!(jwt.verify(&token(NOW / 1000 + 1), NOW).await.unwrap_err(), NotAccepted::NoKeys);
}

#[tokio::test]
async fn keys_are_renewed_ahead_of_time() {
    let pair = Pair::ed("d");
    let issuer = Issuer::new(&[&pair]).await;
    let jwt = issuer.jwt();
    jwt.verify(&pair.sign(&claims()), NOW).await.unwrap();
    let Keys::Published(jwks) = &jwt.inner.keys else { unreachable!() };
    let before = jwks.current().unwrap();
    // Within the last fifth of the hour the issuer gave: no token waits, and none asks.
    let late = NOW + 50 * 60_000;
    assert!(before.wants_renewal(late) && !before.is_old(late));
    jwt.verify(&pair.sign(&with("exp", json!(late / 1000 + 1))), late).await.unwrap();
    jwt.renew_due(late - 5 * 60_000).await;
    assert_eq!(issuer.fetches(), 1);
    jwt.renew_due(late).await;
    assert!(!jwks.current().unwrap().wants_renewal(late));
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test]
async fn a_withdrawn_key_ends_with_the_renewal_though_its_tokens_are_remembered() {
    let (old, new) = (Pair::ed("old"), Pair::ed("new"));
    let issuer = Issuer::new(&[&old, &new]).await;
    let jwt = issuer.jwt();
    let token = |pair: &Pair| pair.sign(&with("exp", json!(NOW / 1000 + 30 * 86_400)));
    let (withdrawn, kept) = (token(&old), token(&new));
    let caller = jwt.verify(&withdrawn, NOW).await.unwrap();
    jwt.verify(&kept, NOW).await.unwrap();
    let Keys::Published(jwks) = &jwt.inner.keys else { unreachable!() };
    let before = jwks.current().unwrap();
    issuer.publish(&[&new]);
    let hour = NOW + 3_600_000;
    // An issuer that is down changes nothing.
    let published = issuer.body.lock().unwrap().take();
    jwt.renew_due(hour).await;
    *issuer.body.lock().unwrap() = published;
    // What is remembered waits for nobody, and the issuer is not asked.
    assert!(Arc::ptr_eq(&caller, &jwt.verify(&withdrawn, hour).await.unwrap()));
    assert_eq!(issuer.fetches(), 2);
    let later = hour + FETCH_INTERVAL_MS;
    jwt.renew_due(later).await;
    assert_eq!(issuer.fetches(), 3);
    // One that was verified with the old keys while the new ones came.
    jwt.inner.remember(Sha256::digest(withdrawn.as_bytes()).into(), caller, Some(&before), later);
    assert_eq!(jwt.verify(&withdrawn, later).await.unwrap_err(), NotAccepted::Signature);
    jwt.verify(&kept, later).await.unwrap();
    assert_eq!(issuer.fetches(), 3);
}

/// The shape of a Keycloak access token (realm export defaults: `aud` a list, roles in `realm_access`, `azp`, `typ`).
fn keycloak() -> Value {
    json!({
        "exp": NOW / 1000 + 300, "iat": NOW / 1000, "auth_time": NOW / 1000 - 5, "jti": "onrtac:2a0fd4f5-9d8c", "iss": ISSUER,
        "aud": ["weir", "account"], "sub": "f3b0c1de-6a0f-4a6b-9b53-2a2b4d7f2a11", "typ": "Bearer", "azp": "shop-frontend",
        "sid": "9a1b", "acr": "1", "allowed-origins": ["https://shop.example.com"],
        "realm_access": { "roles": ["default-roles-shop", "offline_access", "starter", "professional", "uma_authorization"] },
        "resource_access": { "account": { "roles": ["manage-account"] } }, "scope": "openid profile email",
        "email_verified": true, "name": "A B", "preferred_username": "ab", "email": "ab@example.com",
        "organization": { "id": "org-7" }, "https://shop.example.com/plan": "basic"
    })
}

#[tokio::test]
async fn keycloak_tokens_are_mapped() {
    let pair = Pair::rsa("r");
    let issuer = Issuer::new(&[&pair]).await;
    let tiers = || vec![("starter".into(), 1), ("professional".into(), 2), ("enterprise".into(), 3)];
    for (user, account, tier, expected) in [
        ("sub", None, None, ("jwt:f3b0c1de-6a0f-4a6b-9b53-2a2b4d7f2a11", "f3b0c1de-6a0f-4a6b-9b53-2a2b4d7f2a11", None)),
        ("preferred_username", Some("organization.id"), Some("realm_access.roles"), ("jwt:ab", "org-7", Some("professional"))),
        ("email", Some("azp"), Some("https://shop.example.com/plan"), ("jwt:ab@example.com", "shop-frontend", Some("basic"))),
        ("sub", Some("azp"), Some("resource_access.account.roles"), ("jwt:f3b0c1de-6a0f-4a6b-9b53-2a2b4d7f2a11", "shop-frontend", None)),
    ] {
        let claims = Claims { user: user.into(), account: account.map(Box::from), tier: tier.map(Box::from) };
        let jwt = Jwt::new(&settings(JwtKeys::Jwks(issuer.url.as_str().into()), claims), resolve_plain).unwrap();
        jwt.use_tiers(tiers());
        let caller = jwt.verify(&pair.sign(&keycloak()), NOW).await.unwrap();
        assert_eq!((&*caller.id, &*caller.account_id, caller.tier.as_deref()), expected);
    }
}

#[tokio::test]
async fn a_shared_secret() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    let shared = || {
        let claims = Claims { user: "sub".into(), account: None, tier: None };
        Jwt::new(&settings(JwtKeys::Secret(SecretRef::File(path.display().to_string().into())), claims), resolve_plain)
    };
    std::fs::write(&path, "too short").unwrap();
    assert!(shared().unwrap_err().contains("at least 32"));
    let secret = "0123456789abcdef0123456789abcdef";
    std::fs::write(&path, secret).unwrap();
    let jwt = shared().unwrap();
    let sign = |algorithm, secret: &str| encode(&Header::new(algorithm), &claims(), &EncodingKey::from_secret(secret.as_bytes())).unwrap();
    assert!(jwt.verify(&sign(Algorithm::HS256, secret), NOW).await.is_ok());
    assert_eq!(jwt.verify(&sign(Algorithm::HS256, "other"), NOW).await.unwrap_err(), NotAccepted::Signature);
    assert_eq!(jwt.verify(&sign(Algorithm::HS512, secret), NOW).await.unwrap_err(), NotAccepted::Algorithm);
    assert_eq!(jwt.verify(&Pair::ed("d").sign(&claims()), NOW).await.unwrap_err(), NotAccepted::Algorithm);
}
