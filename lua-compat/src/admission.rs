//! What a node says about a caller, and what is remembered of it for the times when the node is away.

use serde_json::Value;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use weir::engine::policy::{self, Scopes};
use zeroize::Zeroizing;

/// Who calls, as far as a plan must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// Who pays.
    pub account: Cow<'static, str>,
    /// Which of its keys.
    pub key_id: Cow<'static, str>,
    /// The tier, if there is one.
    pub tier: Option<String>,
    /// What the key was cut down to.
    pub scopes: Scopes,
    /// Targets without a price are closed to it.
    pub has_budget: bool,
}

/// A caller the node admitted.
#[derive(Debug, Clone)]
pub struct Remembered {
    /// Who it was.
    pub who: Who,
    /// Until when the node's word holds.
    pub until_ms: u64,
}

/// Who pays at a provider.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Payment {
    /// The provider.
    pub provider: Arc<str>,
    /// With the caller's own key.
    pub own: bool,
}

/// The node's yes.
pub struct Admission {
    /// The node's id of the request: the row's.
    pub request_id: String,
    /// Who calls.
    pub who: Who,
    /// The seed of the plan's choices: the node planned with it, too.
    pub draw: u64,
    /// A cap on the output that the balance sets.
    pub output_cap: Option<u64>,
    /// Output tokens the reservation covers; `None`: no bound.
    pub covered_tokens: Option<u64>,
    /// Rate-limit headers for the client.
    pub headers: Vec<(String, String)>,
    /// The keys of the providers that may be asked; `None`: that provider needs none.
    pub keys: HashMap<Payment, Option<Arc<Zeroizing<String>>>>,
}

impl Who {
    /// A caller nobody vouches for beyond the proxy that let it in.
    pub fn of_proxy(account: Option<&str>, tier: Option<&str>) -> Who {
        Who {
            account: account.map_or(Cow::Borrowed("proxy"), |account| account.to_owned().into()),
            key_id: "proxy".into(),
            tier: tier.map(Into::into),
            scopes: policy::OPEN,
            has_budget: false,
        }
    }
}

impl Admission {
    /// Reads the node's answer. `None`: it is not one.
    pub fn parse(body: &[u8]) -> Option<Admission> {
        let mut document: Value = serde_json::from_slice(body).ok()?;
        let text = |name: &str| document.get(name).and_then(Value::as_str).map(str::to_owned);
        let who = Who {
            account: text("account")?.into(),
            key_id: text("key_id")?.into(),
            tier: text("tier"),
            scopes: serde_json::from_value(document.get("scopes")?.clone()).ok()?,
            has_budget: document.get("has_budget")?.as_bool()?,
        };
        let headers = document
            .get("headers")
            .and_then(Value::as_object)
            .map(|map| map.iter().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect());
        let (request_id, draw) = (text("request_id")?, document.get("draw")?.as_u64()?);
        let (output_cap, covered_tokens) =
            (document.get("output_cap").and_then(Value::as_u64), document.get("covered_tokens").and_then(Value::as_u64));
        let mut keys = HashMap::new();
        for entry in document.get_mut("keys")?.as_array_mut()? {
            let payment = Payment { provider: entry.get("provider")?.as_str()?.into(), own: entry.get("own")?.as_bool()? };
            let key = match entry.get_mut("key").map(Value::take) {
                Some(Value::String(key)) => Some(Arc::new(Zeroizing::new(key))),
                _ => None,
            };
            keys.insert(payment, key);
        }
        Some(Admission { request_id, who, draw, output_cap, covered_tokens, headers: headers.unwrap_or_default(), keys })
    }
}

/// Reads the node's answer to an extension: output tokens that are covered now, all there can be where nothing bounds them.
/// `None`: it is no yes.
pub fn covered(status: u16, body: &[u8]) -> Option<u64> {
    let document: Value = serde_json::from_slice(body).ok()?;
    (status == 200).then(|| document.get("covered_tokens"))?.map(|tokens| tokens.as_u64().unwrap_or(u64::MAX))
}

/// What a credential is remembered by.
pub fn digest(credential: &str) -> [u8; 32] {
    Sha256::digest(credential.as_bytes()).into()
}
