//! JWTs: a token of a trusted issuer stands for a caller. Verified once, then remembered by its hash until it expires or the
//! issuer's keys change, so that a request costs a hash and a look-up. The keys are renewed by the clock ([`Jwt::renew_due`]), for
//! a remembered token does not look at them.
//!
//! Every claim is checked here rather than by the library, for the clock is passed in.

use super::jwks::{FETCH_INTERVAL_MS, Jwks, KeySet, Renewed};
use crate::config::weir_toml;
use crate::engine::catalog::SecretRef;
use crate::engine::refusal::Refusal;
use crate::store::callers::CallerKey;
use crate::store::secret::Secret;
use arc_swap::ArcSwap;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;

/// Longest token that is looked at. Keycloak's with many roles have 4 KiB.
const TOKEN_MAX: usize = 16 * 1024;

/// Verified tokens that are remembered. Beyond, those that expired are forgotten, and if none has, all: verifying again is
/// only slower.
const REMEMBERED_MAX: usize = 100_000;

/// Longest user, account or tier, in bytes.
const NAME_MAX: usize = 256;

/// Shortest HS256 secret: RFC 7518, section 3.2, wants at least the hash's length.
const SECRET_MIN: usize = 32;

/// Keys tried for a token that names none.
const TRIED_MAX: usize = 8;

/// Why a token does not open the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAccepted {
    /// It is not a JWT, or too long for one.
    Malformed,
    /// Its algorithm is not taken.
    Algorithm,
    /// No key of the issuer's verifies it.
    Signature,
    /// Another issuer made it.
    Issuer,
    /// It is for somebody else.
    Audience,
    /// Its time is over, or it has no end.
    Expired,
    /// Its time has not come.
    NotYet,
    /// The claim that names the user or the account is missing or no usable name.
    NoUser,
    /// The issuer's keys were never reached.
    NoKeys,
}

impl NotAccepted {
    /// For the caller.
    pub const fn text(self) -> &'static str {
        match self {
            NotAccepted::Malformed => "it is not a JWT",
            NotAccepted::Algorithm => "its algorithm is not accepted here",
            NotAccepted::Signature => "its signature is not the issuer's",
            NotAccepted::Issuer => "it is from another issuer",
            NotAccepted::Audience => "it is for another audience",
            NotAccepted::Expired => "it has expired",
            NotAccepted::NotYet => "it is not valid yet",
            NotAccepted::NoUser => "it does not say who the user is",
            NotAccepted::NoKeys => "the issuer's keys cannot be fetched",
        }
    }
}

impl From<NotAccepted> for Refusal {
    fn from(why: NotAccepted) -> Refusal {
        match why {
            // Not the caller's fault, and it passes.
            NotAccepted::NoKeys => Refusal::Overloaded { retry_after_ms: FETCH_INTERVAL_MS },
            why => Refusal::BadToken(why.text()),
        }
    }
}

/// Checks tokens.
#[derive(Clone)]
pub struct Jwt {
    inner: Arc<Inner>,
}

struct Inner {
    issuer: Box<str>,
    audience: Vec<Box<str>>,
    claims: weir_toml::Claims,
    leeway_ms: u64,
    keys: Keys,
    /// Tiers by name and rank: a list of roles means the highest tier among them.
    tiers: ArcSwap<Vec<(Arc<str>, u32)>>,
    verified: papaya::HashMap<[u8; 32], Arc<CallerKey>>,
}

enum Keys {
    Published(Jwks),
    Shared(DecodingKey),
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwt").field("issuer", &self.inner.issuer).field("remembered", &self.inner.verified.len()).finish()
    }
}

impl Jwt {
    /// Reads the secret, when there is one, by `resolve`; an issuer's keys are fetched with the first token. `Err`: the secret cannot be
    /// read or is too short; names its key.
    pub fn new(settings: &weir_toml::Jwt, resolve: impl FnOnce(&SecretRef) -> Result<Secret, String>) -> Result<Jwt, String> {
        let keys = match &settings.keys {
            weir_toml::JwtKeys::Jwks(url) => Keys::Published(Jwks::new(url)),
            weir_toml::JwtKeys::Secret(reference) => {
                let secret = resolve(reference).map_err(|why| format!("auth.jwt.secret: {why}"))?;
                if secret.expose().len() < SECRET_MIN {
                    return Err(format!(
                        "auth.jwt.secret: must have at least {SECRET_MIN} bytes: a shorter one can be guessed from a token"
                    ));
                }
                Keys::Shared(DecodingKey::from_secret(secret.expose().as_bytes()))
            }
        };
        Ok(Jwt {
            inner: Arc::new(Inner {
                issuer: settings.issuer.clone(),
                audience: settings.audience.clone(),
                claims: settings.claims.clone(),
                leeway_ms: u64::try_from(settings.leeway.as_millis()).unwrap_or(u64::MAX),
                keys,
                tiers: ArcSwap::default(),
                verified: papaya::HashMap::new(),
            }),
        })
    }

    /// The tiers there are, with their ranks; call it with every reload. A tier claim that is a list (`realm_access.roles`)
    /// means the highest of these in it; the list's other entries mean nothing.
    pub fn use_tiers(&self, tiers: Vec<(Arc<str>, u32)>) {
        self.inner.tiers.store(Arc::new(tiers));
        self.inner.verified.pin().clear();
    }

    /// The caller a token stands for. Without I/O for a token that was seen before, or whose key is known; else it may wait for
    /// the issuer. Cancel-safe.
    pub async fn verify(&self, token: &str, now_ms: u64) -> Result<Arc<CallerKey>, NotAccepted> {
        if token.len() > TOKEN_MAX {
            return Err(NotAccepted::Malformed);
        }
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(caller) = self.inner.verified.pin().get(&hash) {
            return if now_ms < caller.expires_ms { Ok(caller.clone()) } else { Err(NotAccepted::Expired) };
        }
        let (claims, keys) = match &self.inner.keys {
            Keys::Shared(key) => (with_secret(token, key)?, None),
            Keys::Published(jwks) => self.with_published(token, jwks, now_ms).await.map(|(claims, keys)| (claims, Some(keys)))?,
        };
        let caller = Arc::new(self.inner.caller(&claims, now_ms)?);
        self.inner.remember(hash, caller.clone(), keys.as_ref(), now_ms);
        Ok(caller)
    }

    /// The claims, and the keys they were verified with.
    async fn with_published(&self, token: &str, jwks: &Jwks, now_ms: u64) -> Result<(Map<String, Value>, Arc<KeySet>), NotAccepted> {
        let header = decode_header(token).map_err(|_| NotAccepted::Malformed)?;
        if !matches!(header.alg, Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA) {
            return Err(NotAccepted::Algorithm);
        }
        let id = header.kid.as_deref();
        let mut keys = jwks.current();
        let unknown = keys.as_ref().is_none_or(|keys| keys.candidates(id, header.alg).next().is_none());
        if unknown || keys.as_ref().is_some_and(|keys| keys.is_old(now_ms)) {
            self.renew(jwks, keys.as_ref(), now_ms).await;
            keys = jwks.current();
        }
        let keys = keys.ok_or(NotAccepted::NoKeys)?;
        let verified = keys.candidates(id, header.alg).take(TRIED_MAX).find_map(|key| signed(token, &key.key, key.algorithm).ok());
        Ok((verified.ok_or(NotAccepted::Signature)?, keys))
    }

    /// Fetches the issuer's keys again when it is time, and forgets what was verified if they changed; requests go on with what
    /// there is meanwhile. Call it every [`FETCH_INTERVAL_MS`], whether there are requests or not. Cancel-safe.
    pub async fn renew_due(&self, now_ms: u64) {
        if let Keys::Published(jwks) = &self.inner.keys
            && let Some(keys) = jwks.current().filter(|keys| keys.wants_renewal(now_ms))
        {
            self.renew(jwks, Some(&keys), now_ms).await;
        }
    }

    async fn renew(&self, jwks: &Jwks, seen: Option<&Arc<KeySet>>, now_ms: u64) {
        if jwks.renew(seen, now_ms).await == Renewed::Changed {
            // A key may have been withdrawn: tokens it signed must not go on.
            self.inner.verified.pin().clear();
        }
    }
}

impl Inner {
    /// Remembers whom a token stands for that was verified with `keys` (`None`: the secret).
    fn remember(&self, hash: [u8; 32], caller: Arc<CallerKey>, keys: Option<&Arc<KeySet>>, now_ms: u64) {
        let map = self.verified.pin();
        if map.len() >= REMEMBERED_MAX {
            map.retain(|_, caller| now_ms < caller.expires_ms);
            if map.len() >= REMEMBERED_MAX {
                map.clear();
            }
        }
        map.insert(hash, caller);
        // Keys that changed meanwhile may have been forgotten before this came in; those that change from here on take it with them.
        if let (Keys::Published(jwks), Some(keys)) = (&self.keys, keys)
            && jwks.current().is_none_or(|current| !Arc::ptr_eq(&current, keys))
        {
            map.remove(&hash);
        }
    }

    /// What the claims of a verified token say, if they are for us and now.
    fn caller(&self, claims: &Map<String, Value>, now_ms: u64) -> Result<CallerKey, NotAccepted> {
        if claims.get("iss").and_then(Value::as_str) != Some(&*self.issuer) {
            return Err(NotAccepted::Issuer);
        }
        if !self.is_audience(claims.get("aud")) {
            return Err(NotAccepted::Audience);
        }
        // A token without an end would be good for ever.
        let expires_ms = claims.get("exp").and_then(date_ms).ok_or(NotAccepted::Expired)?.saturating_add(self.leeway_ms);
        if expires_ms <= now_ms {
            return Err(NotAccepted::Expired);
        }
        if let Some(not_before) = claims.get("nbf") {
            let from_ms = date_ms(not_before).ok_or(NotAccepted::Malformed)?;
            if from_ms > now_ms.saturating_add(self.leeway_ms) {
                return Err(NotAccepted::NotYet);
            }
        }
        let user = find(claims, &self.claims.user).and_then(name).ok_or(NotAccepted::NoUser)?;
        let account = match &self.claims.account {
            Some(path) => find(claims, path).and_then(name).ok_or(NotAccepted::NoUser)?,
            None => user.clone(),
        };
        let tier = self.claims.tier.as_ref().and_then(|path| find(claims, path)).and_then(|value| self.tier(value));
        Ok(CallerKey::outside(&format!("jwt:{user}"), &account, tier.as_deref(), expires_ms))
    }

    fn is_audience(&self, claim: Option<&Value>) -> bool {
        let ours = |value: &Value| value.as_str().is_some_and(|text| self.audience.iter().any(|own| **own == *text));
        match claim {
            Some(Value::Array(list)) => list.iter().any(ours),
            Some(one) => ours(one),
            None => false,
        }
    }

    /// A text is the tier; of a list the highest known tier in it.
    fn tier(&self, value: &Value) -> Option<String> {
        let Value::Array(list) = value else { return name(value) };
        let tiers = self.tiers.load();
        let known = tiers.iter().filter(|(tier, _)| list.iter().any(|entry| entry.as_str() == Some(&**tier)));
        known.max_by_key(|(_, rank)| *rank).map(|(tier, _)| tier.to_string())
    }
}

fn with_secret(token: &str, key: &DecodingKey) -> Result<Map<String, Value>, NotAccepted> {
    let header = decode_header(token).map_err(|_| NotAccepted::Malformed)?;
    if header.alg != Algorithm::HS256 {
        return Err(NotAccepted::Algorithm);
    }
    signed(token, key, Algorithm::HS256)
}

/// The claims, if the signature is the key's by that very algorithm. Nothing else is looked at here.
fn signed(token: &str, key: &DecodingKey, algorithm: Algorithm) -> Result<Map<String, Value>, NotAccepted> {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    decode::<Map<String, Value>>(token, key, &validation).map(|token| token.claims).map_err(|_| NotAccepted::Signature)
}

/// A claim by its name (which may hold dots, as in `https://example.com/tier`), or by a path into objects.
fn find<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    let (first, rest) = path.split_once('.')?;
    find(claims.get(first)?.as_object()?, rest)
}

/// A text or number that can name something. Never empty: the empty account is the platform's.
fn name(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let fits = !text.is_empty() && text.len() <= NAME_MAX && !text.chars().any(char::is_control);
    fits.then_some(text)
}

/// A NumericDate (seconds, possibly with a fraction) in milliseconds.
fn date_ms(value: &Value) -> Option<u64> {
    match value.as_u64() {
        Some(seconds) => Some(seconds.saturating_mul(1000)),
        None => value.as_f64().filter(|seconds| *seconds >= 0.0).map(|seconds| (seconds * 1000.0) as u64),
    }
}

#[cfg(test)]
#[path = "jwt_tests.rs"]
mod tests;
