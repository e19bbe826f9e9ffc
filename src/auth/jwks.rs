//! An issuer's published keys: fetched when first needed, by the clock again before they are old, never twice at the same time,
//! and kept when the issuer is down.

use crate::store::outbound::{Clients, Reach, body};
use arc_swap::ArcSwapOption;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use reqwest::header::CACHE_CONTROL;
use std::sync::Arc;
use tokio::sync::Mutex;

/// How long keys are good when the issuer does not say; issuers announce new keys at least that long before they use them.
const DEFAULT_TTL_MS: u64 = 60 * 60 * 1000;

/// Bounds of what the issuer says: not a fetch for every other request, and not a withdrawn key for longer than a day.
const TTL_MS: std::ops::RangeInclusive<u64> = 5 * 60 * 1000..=24 * 60 * 60 * 1000;

/// At most one fetch in this time, whatever tokens come in: an unknown key id costs an attacker nothing to make up.
pub const FETCH_INTERVAL_MS: u64 = 30_000;

/// Keys of one issuer at most; the rest is not looked at. Issuers publish two to five.
const KEYS_MAX: usize = 64;

/// One key.
pub struct Key {
    /// Its id; `None`: the issuer gives none.
    pub id: Option<Box<str>>,
    /// The one algorithm it is good for.
    pub algorithm: Algorithm,
    /// The key.
    pub key: DecodingKey,
}

/// What an issuer published at one time.
pub struct KeySet {
    /// The keys.
    pub keys: Vec<Key>,
    /// From then on it is fetched again, beside the requests.
    renew_ms: u64,
    /// From then on a token waits for the fetch.
    old_ms: u64,
    /// The text they were read from, to see whether they changed.
    text: Vec<u8>,
}

/// The issuer's keys and how they are kept.
pub struct Jwks {
    url: Box<str>,
    current: ArcSwapOption<KeySet>,
    /// When the latest fetch began; held while one is under way.
    fetching: Mutex<Option<u64>>,
}

/// What became of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// Other keys than before: what was verified with the old ones must be verified again.
    Changed,
    /// The same, or the last good ones.
    Same,
}

impl Jwks {
    /// Keys to be fetched from a URL.
    pub fn new(url: &str) -> Jwks {
        Jwks { url: url.into(), current: ArcSwapOption::empty(), fetching: Mutex::new(None) }
    }

    /// The keys in memory, if any were ever fetched.
    pub fn current(&self) -> Option<Arc<KeySet>> {
        self.current.load_full()
    }

    /// Fetches unless somebody else just did: whoever waited for another's fetch, or comes within [`FETCH_INTERVAL_MS`] of the
    /// last one, gets what there is. `seen` is what the caller found wanting. Cancel-safe: a dropped fetch changes nothing.
    pub async fn renew(&self, seen: Option<&Arc<KeySet>>, now_ms: u64) -> Renewed {
        let mut last = self.fetching.lock().await;
        let current = self.current.load_full();
        let same = match (&current, seen) {
            (Some(current), Some(seen)) => Arc::ptr_eq(current, seen),
            (None, None) => true,
            _ => false,
        };
        if !same || last.is_some_and(|last_ms| now_ms < last_ms.saturating_add(FETCH_INTERVAL_MS)) {
            return Renewed::Same;
        }
        *last = Some(now_ms);
        match self.fetch(now_ms).await {
            Ok(fresh) => {
                let changed = current.is_some_and(|current| current.text != fresh.text);
                self.current.store(Some(Arc::new(fresh)));
                if changed { Renewed::Changed } else { Renewed::Same }
            }
            Err(why) => {
                log::warn!("{}: {why}; the keys there were before stay in use", self.url);
                Renewed::Same
            }
        }
    }

    async fn fetch(&self, now_ms: u64) -> Result<KeySet, String> {
        let clients = Clients::shared().map_err(Clone::clone)?;
        let response =
            clients.of(Reach::Any).get(&*self.url).send().await.map_err(|error| crate::store::outbound::why(&error).to_owned())?;
        if !response.status().is_success() {
            return Err(format!("status {}", response.status().as_u16()));
        }
        let said = response.headers().get(CACHE_CONTROL).and_then(|value| value.to_str().ok()).and_then(max_age_ms);
        let ttl_ms = said.unwrap_or(DEFAULT_TTL_MS).clamp(*TTL_MS.start(), *TTL_MS.end());
        let text = body(response).await.map_err(|_| "the answer broke off".to_owned())?;
        let keys = read(&text)?;
        // Renewed at four fifths of its time, so that usually no token waits.
        Ok(KeySet { keys, renew_ms: now_ms + ttl_ms / 5 * 4, old_ms: now_ms + ttl_ms, text })
    }
}

impl KeySet {
    /// It should be fetched again, beside the requests.
    pub fn wants_renewal(&self, now_ms: u64) -> bool {
        now_ms >= self.renew_ms
    }

    /// It is so old that a token should wait for the fetch.
    pub fn is_old(&self, now_ms: u64) -> bool {
        now_ms >= self.old_ms
    }

    /// The keys a token may be signed with: the one it names, or all of its algorithm when it names none.
    pub fn candidates<'a>(&'a self, id: Option<&'a str>, algorithm: Algorithm) -> impl Iterator<Item = &'a Key> {
        self.keys.iter().filter(move |key| key.algorithm == algorithm && (id.is_none() || key.id.as_deref() == id))
    }
}

/// The keys weir can verify with; others (encryption keys, symmetric ones, other curves) are left out.
fn read(text: &[u8]) -> Result<Vec<Key>, String> {
    // One by one: a key of a kind that does not parse must not hide the others.
    #[derive(serde::Deserialize)]
    struct Loose {
        keys: Vec<serde_json::Value>,
    }
    let loose: Loose = serde_json::from_slice(text).map_err(|_| "not a JWKS".to_owned())?;
    let set = JwkSet { keys: loose.keys.into_iter().take(KEYS_MAX).filter_map(|key| serde_json::from_value(key).ok()).collect() };
    let keys: Vec<Key> = set.keys.iter().filter_map(usable).collect();
    if keys.is_empty() { Err("no RS256, ES256 or EdDSA key in it".into()) } else { Ok(keys) }
}

fn usable(jwk: &Jwk) -> Option<Key> {
    // By the key's type, never by what a token says: a public key must not become an HMAC secret.
    let (algorithm, named) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => (Algorithm::ES256, KeyAlgorithm::ES256),
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => (Algorithm::EdDSA, KeyAlgorithm::EdDSA),
        _ => return None,
    };
    let common = &jwk.common;
    let signs = common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature);
    if !signs || common.key_algorithm.is_some_and(|stated| stated != named) {
        return None;
    }
    Some(Key { id: common.key_id.as_deref().map(Box::from), algorithm, key: DecodingKey::from_jwk(jwk).ok()? })
}

fn max_age_ms(header: &str) -> Option<u64> {
    let seconds = header.split(',').find_map(|part| part.trim().strip_prefix("max-age="))?;
    seconds.trim_matches('"').parse::<u64>().ok()?.checked_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_read() {
        for (header, expected) in
            [("max-age=600", Some(600_000)), ("public, max-age=1, x", Some(1_000)), ("no-cache", None), ("max-age=x", None), ("", None)]
        {
            assert_eq!(max_age_ms(header), expected, "{header}");
        }
    }

    #[test]
    fn only_signing_keys_of_known_kinds_are_taken() {
        let rsa = r#""kty":"RSA","n":"sXchDaQebHnPiGvyDOAT4saGEUetSyo9MKLOoWFsueri23bOdgWp4Dy1WlUzewbgBHod5pcM9H95GQRV3JDXboIRROSBigeC5yjU1hGzHHyXss8UDprecbAYxknTcQkhslANGRUZmdTOQ5qTRsLAt6BTYuyvVRdhS8exSZEy_c4gs_7svlJJQ4H9_NxsiIoLwAEk7-Q3UXERGYw_75IDrGA84-lA_-Ct4eTlXHBIY2EaV7t7LjJaynVJCpkv4LKjTTAumiGUIuQhrNhZLuF_RJLqHpM2kgWFLU7-VTdL1VbC2tejvcI2BlMkEpk1BzBZI0KQB0GaDWFLN-aEAw3vRw","e":"AQAB""#;
        let keys = |list: &str| read(format!("{{\"keys\":[{list}]}}").as_bytes()).map(|keys| keys.len());
        for (list, expected) in [
            (format!("{{{rsa}}}"), Ok(1)),
            (format!("{{{rsa},\"use\":\"sig\",\"alg\":\"RS256\",\"kid\":\"a\"}}"), Ok(1)),
            (format!("{{{rsa},\"use\":\"enc\"}}"), Err(())),
            (format!("{{{rsa},\"alg\":\"RSA-OAEP\"}}"), Err(())),
            ("{\"kty\":\"oct\",\"k\":\"AAAA\"}".to_owned(), Err(())),
            (format!("{{\"kty\":\"new\"}},{{{rsa}}}"), Ok(1)),
            (String::new(), Err(())),
        ] {
            assert_eq!(keys(&list).map_err(|_| ()), expected, "{list}");
        }
        assert!(read(b"<html>").is_err());
    }
}
