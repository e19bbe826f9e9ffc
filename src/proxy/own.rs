//! Self-service under `/weir/v1`, with the caller's own key: who am I, what may I use, what did it cost, my provider keys.
//!
//! Every key may read, whatever paths its scopes name: it learns what concerns itself and its account. To change the account's provider
//! keys, which all keys of the account pay with, a key whose scopes name paths needs these among them.

use super::gateway::Gateway;
use super::ingress::{self, Caller};
use super::{models, refuse, respond};
use crate::engine::budget::MonthIndex;
use crate::engine::catalog::{Capabilities, Catalog, Model};
use crate::engine::dialect::Dialect;
use crate::engine::provider::spec;
use crate::engine::refusal::Refusal;
use crate::store::audit::Actor;
use crate::store::follow::Mirror;
use crate::store::secret::Secret;
use crate::store::usage;
use crate::store::vault::{self, Entry, NewEntry};
use crate::store::{self, Error};
use crate::telemetry::clock;
use http::Method;
use pingora_core::protocols::http::ServerSession;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// A self-service request's body at most; a provider key is far below.
const BODY_BYTES_MAX: usize = 64 << 10;

/// What a self-service endpoint answers.
type Answer = Result<(u16, Value), Refusal>;

/// `POST /weir/v1/keys`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewOwnKey {
    provider: String,
    key: String,
    name: Option<String>,
    base_url: Option<String>,
}

/// Answers. Returns whether the connection may be used again.
pub async fn serve(gateway: &Arc<Gateway>, session: &mut ServerSession) -> bool {
    let catalog = gateway.catalog.load_full();
    let now_ms = clock::now_ms();
    let answer = match ingress::authenticate(gateway, session, &catalog, now_ms).await {
        Ok(caller) => answer(gateway, session, &catalog, &caller, now_ms).await,
        Err(refusal) => Err(refusal),
    };
    match answer {
        Ok((status, document)) => respond::json(session, status, &document, None).await,
        Err(refusal) => refuse(gateway, session, Dialect::OpenAi, &refusal).await,
    }
}

async fn answer(gateway: &Arc<Gateway>, session: &mut ServerSession, catalog: &Catalog, caller: &Caller, now_ms: u64) -> Answer {
    let method = session.req_header().method.clone();
    let path = session.req_header().uri.path().to_string();
    let parts: Vec<&str> = path.trim_start_matches("/weir/v1/").split('/').collect();
    // What changes something must be within the key's scopes; reading the caller's own is open to every key.
    let within_scopes = |template: &'static str| match caller.key.scopes().allows_path(&path) {
        true => Ok(()),
        false => Err(Refusal::PathClosed { path: template }),
    };
    match (&method, parts.as_slice()) {
        (&Method::GET, ["me"]) => Ok((200, me(gateway, catalog, caller, now_ms))),
        (&Method::GET, ["models"]) => Ok((200, open_models(catalog, caller))),
        (&Method::GET, ["credits"]) => Ok((200, credits(gateway, caller, now_ms))),
        (&Method::GET, ["usage"]) => used(gateway, session, caller, now_ms).await,
        (&Method::GET, ["requests", id]) => request(gateway, caller, id).await,
        (&Method::GET, ["keys"]) => keys(gateway, caller).await,
        (&Method::POST, ["keys"]) => {
            within_scopes("/weir/v1/keys")?;
            let body =
                respond::small_body(session, BODY_BYTES_MAX).await.ok_or(Refusal::BodyTooLarge { limit_bytes: BODY_BYTES_MAX as u64 })?;
            set_key(gateway, session, catalog, caller, &body, now_ms).await
        }
        (&Method::DELETE, ["keys", provider]) => {
            within_scopes("/weir/v1/keys/{provider}")?;
            remove_key(gateway, session, caller, provider, now_ms).await
        }
        (&Method::POST, ["keys", provider, "check"]) => {
            within_scopes("/weir/v1/keys/{provider}/check")?;
            check_key(gateway, session, catalog, caller, provider, now_ms).await
        }
        (_, ["me" | "models" | "credits" | "usage"] | ["requests", _]) => Err(Refusal::WrongMethod { allow: "GET" }),
        (_, ["keys"]) => Err(Refusal::WrongMethod { allow: "GET, POST" }),
        (_, ["keys", _]) => Err(Refusal::WrongMethod { allow: "DELETE" }),
        (_, ["keys", _, "check"]) => Err(Refusal::WrongMethod { allow: "POST" }),
        _ => Err(Refusal::UnknownPath),
    }
}

fn me(gateway: &Gateway, catalog: &Catalog, caller: &Caller, now_ms: u64) -> Value {
    let tier = caller.tier.as_deref();
    let mut levels: Vec<&str> = catalog
        .levels
        .values()
        .filter(|level| crate::engine::policy::may_use_level(tier, caller.key.scopes(), level).is_ok())
        .map(|level| &*level.name)
        .collect();
    levels.sort_unstable();
    let limits = caller.key.limits();
    let tier_limits = tier.map(|tier| tier.limits).unwrap_or_default();
    let least = |one: Option<u64>, other: Option<u64>| [one, other].into_iter().flatten().min();
    json!({
        "key_id": &*caller.key.id,
        "name": &*caller.key.name,
        "account": &*caller.key.account_id,
        "tier": tier.map(|tier| &*tier.name),
        "levels": levels,
        "byok": tier.is_none_or(|tier| tier.byok),
        "expires_at": (caller.key.expires_ms != u64::MAX).then(|| clock::rfc3339(caller.key.expires_ms)),
        "limits": {
            "rpm": least(limits.rpm, tier_limits.rpm), "tpm": least(limits.tpm, tier_limits.tpm), "rpd": least(limits.rpd, tier_limits.rpd),
            "tpd": least(limits.tpd, tier_limits.tpd), "concurrent": least(limits.concurrent, tier_limits.concurrent),
        },
        "credits": credits(gateway, caller, now_ms),
    })
}

fn open_models(catalog: &Catalog, caller: &Caller) -> Value {
    let able = |model: &Model, one: Capabilities| model.can.is_none_or(|can| can.covers(one));
    let list: Vec<Value> = models::open(catalog, caller)
        .iter()
        .map(|model| {
            let can: Vec<&str> = [
                (Capabilities::STREAM, "stream"),
                (Capabilities::TOOLS, "tools"),
                (Capabilities::VISION, "vision"),
                (Capabilities::JSON, "json"),
            ]
            .into_iter()
            .filter(|(one, _)| able(model, *one))
            .map(|(_, name)| name)
            .collect();
            json!({"id": &*model.name, "context_window": model.context_window, "max_output": model.max_output, "can": can,
                   "providers": model.targets.iter().map(|target| &*target.provider.name).collect::<Vec<_>>()})
        })
        .collect();
    json!({"object": "list", "data": list})
}

/// Amounts as decimal strings of credits; null where there is no budget or cap.
fn credits(gateway: &Gateway, caller: &Caller, now_ms: u64) -> Value {
    let balances = gateway.account(&caller.key).balances(MonthIndex::of_ms(now_ms));
    json!({
        "balance": balances.balance.map(|balance| balance.to_string()),
        "reserved": balances.reserved.to_string(),
        "used_this_month": balances.used_this_month.to_string(),
        "monthly_cap": caller.tier.as_ref().and_then(|tier| tier.monthly_cap).map(|cap| cap.to_string()),
    })
}

async fn used(gateway: &Gateway, session: &ServerSession, caller: &Caller, now_ms: u64) -> Answer {
    let by = respond::query(session, "by").unwrap_or_else(|| "day".into());
    let since = respond::query(session, "since");
    let account = caller.key.account_id.to_string();
    gateway.ledger.flushed_soon().await;
    let report = gateway
        .store
        .run(move |store| usage::report(store, &usage::Question::parse(&by, since.as_deref(), Some(&account), now_ms)?, now_ms))
        .await;
    report.map_err(plain).and_then(|report| serde_json::to_value(report).map(|value| (200, value)).map_err(|_| Refusal::Internal))
}

/// The row of one of the caller's requests: of its account, by weir's id, or by the id the caller gave it lately.
async fn request(gateway: &Gateway, caller: &Caller, id: &str) -> Answer {
    let (id, account) = (respond::percent_decode(id), caller.key.account_id.to_string());
    let also = gateway.client_ids.find(&account, id.as_bytes());
    gateway.ledger.flushed_soon().await;
    let find = move |store: &crate::store::Store| match (usage::request(store, &id, &account)?, also) {
        (None, Some(also)) => usage::request(store, also.as_str(), &account),
        (found, _) => Ok(found),
    };
    match gateway.store.run(find).await.map_err(plain)? {
        Some(row) => serde_json::to_value(row).map(|value| (200, value)).map_err(|_| Refusal::Internal),
        None => Err(Refusal::NotFound { what: "request" }),
    }
}

fn shown(entry: &Entry) -> Value {
    json!({
        "provider": entry.provider, "name": entry.name, "base_url": entry.base_url, "key": entry.shown,
        "created_at": clock::rfc3339(entry.created_ms), "changed_at": clock::rfc3339(entry.changed_ms),
        "last_used_at": entry.last_used_ms.map(clock::rfc3339), "checked_at": entry.checked_ms.map(clock::rfc3339), "check": entry.verdict,
    })
}

async fn keys(gateway: &Gateway, caller: &Caller) -> Answer {
    let account = caller.key.account_id.to_string();
    let entries = gateway.store.run(move |store| vault::list(store, Some(&account))).await.map_err(plain)?;
    Ok((200, json!({"object": "list", "data": entries.iter().map(shown).collect::<Vec<_>>()})))
}

fn from(session: &ServerSession) -> String {
    session.client_addr().map(|address| address.to_string()).unwrap_or_default()
}

async fn set_key(gateway: &Arc<Gateway>, session: &ServerSession, catalog: &Catalog, caller: &Caller, body: &[u8], now_ms: u64) -> Answer {
    let tier = caller.tier.as_deref();
    if tier.is_some_and(|tier| !tier.byok) {
        return Err(Refusal::ByokClosed);
    }
    let new: NewOwnKey = serde_json::from_slice(body)
        .map_err(|_| Refusal::BadHeader { name: "body", expected: "{\"provider\", \"key\", \"name\"?, \"base_url\"?}" })?;
    let provider = catalog.providers.get(new.provider.as_str()).ok_or(Refusal::NotFound { what: "provider" })?;
    if let Some(url) = &new.base_url {
        if !tier.is_some_and(|tier| tier.own_base_url) {
            return Err(Refusal::BaseUrlClosed("your tier does not include own base URLs"));
        }
        own_base_url(gateway, url)?;
    }
    let kind = provider.kind;
    let Some(masters) = gateway.key_ring.masters() else {
        return Err(Refusal::BaseUrlClosed("this gateway has no vault for own keys"));
    };
    let (account, who, from, secret) = (caller.key.account_id.to_string(), caller.key.id.to_string(), from(session), Secret::new(new.key));
    let (provider, name, base_url) = (new.provider, new.name, new.base_url);
    let stored = gateway
        .store
        .run(move |store| {
            let entry = NewEntry {
                account: &account,
                provider: &provider,
                kind: Some(kind),
                name: name.as_deref(),
                base_url: base_url.as_deref(),
                key: &secret,
            };
            let stored = vault::set(store, &masters, &entry, Actor { who: &who, from: &from }, now_ms)?;
            let entry = vault::list(store, Some(&account))?.into_iter().find(|entry| entry.provider == provider);
            Ok((stored, entry))
        })
        .await
        .map_err(plain)?;
    refresh(gateway, caller).await?;
    let (stored, entry) = stored;
    let mut document = entry.as_ref().map(shown).unwrap_or_else(|| json!({}));
    document["replaced"] = json!(stored.replaced);
    if stored.unfamiliar {
        document["warning"] = json!(format!(
            "This does not look like the keys {} has given out so far. It is stored; check it with POST /weir/v1/keys/{{provider}}/check.",
            spec(kind).title
        ));
    }
    Ok((201, document))
}

/// The running server sees the change at once, not at the next poll.
async fn refresh(gateway: &Gateway, caller: &Caller) -> Result<(), Refusal> {
    let (ring, account) = (gateway.key_ring.clone(), caller.key.account_id.clone());
    gateway.store.run(move |store| ring.refresh(store, &account)).await.map_err(plain)
}

fn own_base_url(gateway: &Gateway, url: &str) -> Result<(), Refusal> {
    let base = crate::engine::catalog::BaseUrl::parse(url).map_err(Refusal::BaseUrlClosed)?;
    if gateway.settings.vault.allows_host(&base.host) {
        return Ok(());
    }
    let literal = base.host.parse::<std::net::IpAddr>().ok();
    let is_public = literal.is_none_or(crate::store::outbound::is_public) && !base.host.eq_ignore_ascii_case("localhost");
    if !is_public {
        return Err(Refusal::BaseUrlClosed("it points to an address that is not public"));
    }
    Ok(())
}

async fn remove_key(gateway: &Arc<Gateway>, session: &ServerSession, caller: &Caller, provider: &str, now_ms: u64) -> Answer {
    let (account, who, from, name) = (caller.key.account_id.to_string(), caller.key.id.to_string(), from(session), provider.to_string());
    gateway
        .store
        .run(move |store| vault::remove(store, &account, &name, Actor { who: &who, from: &from }, now_ms))
        .await
        .map_err(|_| Refusal::NotFound { what: "provider key" })?;
    refresh(gateway, caller).await?;
    Ok((200, json!({"provider": provider, "removed": true})))
}

async fn check_key(
    gateway: &Arc<Gateway>,
    session: &ServerSession,
    catalog: &Catalog,
    caller: &Caller,
    provider: &str,
    now_ms: u64,
) -> Answer {
    let known = catalog.providers.get(provider).ok_or(Refusal::NotFound { what: "provider" })?.clone();
    let Some(masters) = gateway.key_ring.masters() else { return Err(Refusal::NotFound { what: "provider key" }) };
    let (account, name) = (caller.key.account_id.to_string(), provider.to_string());
    let (entry, secret) = gateway
        .store
        .run(move |store| vault::open(store, &masters, &account, &name))
        .await
        .map_err(|_| Refusal::NotFound { what: "provider key" })?;
    let allows = |host: &str| gateway.settings.vault.allows_host(host);
    let checked = vault::check::ask(&known, &entry, &secret, allows).await;
    let (who, from) = (caller.key.id.to_string(), from(session));
    let verdict = checked.verdict;
    let noted = entry.clone();
    gateway
        .store
        .run(move |store| vault::checked(store, &noted, verdict, Actor { who: &who, from: &from }, now_ms))
        .await
        .map_err(plain)?;
    Ok((
        200,
        json!({"provider": provider, "key": entry.shown, "check": verdict.name(), "detail": checked.detail, "checked_at": clock::rfc3339(now_ms)}),
    ))
}

/// A store's no to a caller: its text is for people and holds no secret; its other failures are not the caller's business.
fn plain(error: store::Error) -> Refusal {
    match error {
        Error::Invalid(what) => Refusal::Invalid { what: what.into() },
        _ => Refusal::Internal,
    }
}
