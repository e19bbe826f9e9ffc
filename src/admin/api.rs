//! `/admin/v1`: what an operator may see and change. Its shape is described in `openapi.json`.

use super::{config, error, providers};
use crate::engine::money::Credits;
use crate::proxy::gateway::{Gateway, Reload};
use crate::proxy::respond;
use crate::store::accounts;
use crate::store::audit::{self, Actor};
use crate::store::keys::{self, NewKey, Scopes};
use crate::store::{self, Topic, usage, vault};
use crate::telemetry::clock;
use http::Method;
use pingora_core::protocols::http::ServerSession;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// An admin request's body at most.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Records of the audit log in one answer when none are asked for.
const AUDIT_PAGE: usize = 100;

/// `POST /admin/v1/keys`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateKey {
    name: String,
    account: Option<String>,
    tier: Option<String>,
    credits: Option<String>,
    expires_at_ms: Option<u64>,
    #[serde(default)]
    scopes: Scopes,
}

/// `POST /admin/v1/accounts/{id}/grants`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Grant {
    credits: String,
    #[serde(default)]
    note: String,
}

/// Answers an authorised request. Returns whether the connection may be used again.
pub async fn serve(gateway: &Arc<Gateway>, session: &mut ServerSession) -> bool {
    let (status, document) = match answer(gateway, session).await {
        Ok(answer) => answer,
        Err((status, message)) => (status, error(&message)),
    };
    respond::json(session, status, &document, None).await
}

type Answer = Result<(u16, Value), (u16, String)>;

async fn answer(gateway: &Arc<Gateway>, session: &mut ServerSession) -> Answer {
    let method = session.req_header().method.clone();
    let path = session.req_header().uri.path().to_string();
    let parts: Vec<&str> = path.trim_start_matches("/admin/v1/").split('/').collect();
    let from = session.client_addr().map(|address| address.to_string()).unwrap_or_default();
    let now_ms = clock::now_ms();
    match (&method, parts.as_slice()) {
        (&Method::POST, ["reload"]) => reload(gateway, from, now_ms).await,
        (&Method::GET, ["config"]) => Ok((200, config(gateway))),
        (&Method::GET, ["providers"]) => Ok((200, json!({"data": providers(gateway)}))),
        (&Method::GET, ["keys"]) => {
            let listed = gateway.store.run(move |store| keys::list(store, now_ms)).await.map_err(plain)?;
            let data: Vec<Value> = listed
                .iter()
                .map(|key| json!({"id": key.id, "name": key.name, "key": key.shown, "account": key.account, "tier": key.tier, "scopes": key.scopes, "state": key.state, "has_budget": key.has_budget,
                                  "created_at": clock::rfc3339(key.created_ms), "expires_at": key.expires_ms.map(clock::rfc3339), "revoked_at": key.revoked_ms.map(clock::rfc3339), "last_used_at": key.last_used_ms.map(clock::rfc3339)}))
                .collect();
            Ok((200, json!({"data": data})))
        }
        (&Method::POST, ["keys"]) => {
            let new: CreateKey = body(session).await?;
            create_key(gateway, new, from, now_ms).await
        }
        (&Method::DELETE, ["keys", id]) => {
            let id = id.to_string();
            let revoked = id.clone();
            gateway.store.run(move |store| keys::revoke(store, &id, Actor { who: "admin", from: &from }, now_ms)).await.map_err(plain)?;
            Ok((200, json!({"id": revoked, "revoked": true})))
        }
        (&Method::GET, ["vault"]) => {
            let entries = gateway.store.run(|store| vault::list(store, None)).await.map_err(plain)?;
            let data: Vec<Value> = entries
                .iter()
                .map(|entry| json!({"account": entry.account, "provider": entry.provider, "name": entry.name, "key": entry.shown, "master_id": entry.master_id, "check": entry.verdict}))
                .collect();
            Ok((200, json!({"data": data})))
        }
        (&Method::GET, ["accounts", id]) => {
            let balances = gateway.accounts.of(id).balances(crate::engine::budget::MonthIndex::of_ms(now_ms));
            Ok((200, json!({"account": id, "balance": balances.balance.map(|balance| balance.to_string()), "reserved": balances.reserved.to_string(), "used_this_month": balances.used_this_month.to_string()})))
        }
        (&Method::POST, ["accounts", id, "grants"]) => {
            let grant: Grant = body(session).await?;
            let id = id.to_string();
            granted(gateway, id, grant, from, now_ms).await
        }
        (&Method::GET, ["usage"]) => {
            let by = respond::query(session, "by").unwrap_or_else(|| "day".into());
            let (since, account) = (respond::query(session, "since"), respond::query(session, "account"));
            gateway.ledger.flushed().await;
            let report = gateway.store.run(move |store| usage::report(store, &usage::Question::parse(&by, since.as_deref(), account.as_deref(), now_ms)?, now_ms)).await.map_err(plain)?;
            serde_json::to_value(report).map(|value| (200, value)).map_err(|error| (500, error.to_string()))
        }
        (&Method::GET, ["requests", id]) => {
            let id = id.to_string();
            gateway.ledger.flushed().await;
            match gateway.store.run(move |store| usage::any_request(store, &id)).await.map_err(plain)? {
                Some(row) => serde_json::to_value(row).map(|value| (200, value)).map_err(|error| (500, error.to_string())),
                None => Err((404, "There is no such request.".into())),
            }
        }
        (&Method::GET, ["audit"]) => {
            let before = respond::query(session, "before").and_then(|text| text.parse().ok());
            let limit = respond::query(session, "limit").and_then(|text| text.parse().ok()).unwrap_or(AUDIT_PAGE);
            let records = gateway.store.run(move |store| audit::read(store, before, limit)).await.map_err(plain)?;
            let data: Vec<Value> = records
                .iter()
                .map(|record| json!({"seq": record.seq, "at": clock::rfc3339(record.at_ms), "who": record.who, "from": record.from, "action": record.action, "subject": record.subject, "result": record.result}))
                .collect();
            Ok((200, json!({"data": data})))
        }
        _ => Err((404, "There is no such endpoint; /admin/v1/openapi.json lists them.".into())),
    }
}

async fn body<T: for<'a> Deserialize<'a>>(session: &mut ServerSession) -> Result<T, (u16, String)> {
    let body = respond::small_body(session, BODY_BYTES_MAX).await.ok_or((413, "The body is too large.".to_string()))?;
    // serde's texts name fields and places, and quote no value but a wrong one's type.
    serde_json::from_slice(&body).map_err(|error| (400, format!("The body cannot be read: {error}.")))
}

async fn reload(gateway: &Arc<Gateway>, from: String, now_ms: u64) -> Answer {
    let reloading = gateway.clone();
    let result = tokio::task::spawn_blocking(move || reloading.reload(Reload::Always)).await.map_err(|_| (500, "The reload did not finish.".to_string()))?;
    let told = if result.is_ok() { "ok" } else { "rejected" };
    let _ = gateway.store.run(move |store| store.write(|tx| audit::record(tx, Actor { who: "admin", from: &from }, "config.reload", "", told, now_ms))).await;
    let status = if result.is_ok() { 200 } else { 422 };
    let mut document = config(gateway);
    document["result"] = json!(told);
    Ok((status, document))
}

async fn create_key(gateway: &Gateway, new: CreateKey, from: String, now_ms: u64) -> Answer {
    if let Some(tier) = &new.tier
        && !gateway.catalog.load().tiers.contains_key(tier.as_str())
    {
        return Err((400, format!("There is no tier '{tier}' in routing.toml.")));
    }
    let credits = new.credits.as_deref().map(str::parse::<Credits>).transpose().map_err(|error| (400, format!("credits: {error}")))?;
    let key = NewKey { name: new.name, account: new.account, tier: new.tier, scopes: new.scopes, expires_ms: new.expires_at_ms, limits: Default::default(), credits };
    let created = gateway.store.run(move |store| keys::create(store, &key, Actor { who: "admin", from: &from }, now_ms)).await.map_err(plain)?;
    Ok((201, json!({"id": created.id, "account": created.account, "key": created.key.expose()})))
}

async fn granted(gateway: &Gateway, account: String, grant: Grant, from: String, now_ms: u64) -> Answer {
    let credits: Credits = grant.credits.parse().map_err(|error| (400, format!("credits: {error}")))?;
    let (id, note) = (account.clone(), grant.note);
    gateway
        .store
        .run(move |store| {
            audit::audited(store, Actor { who: "admin", from: &from }, "account.grant", &id, now_ms, |tx| {
                accounts::grant(tx, &id, credits, &note, now_ms)?;
                store::changed(tx, Topic::Account, &id)?;
                Ok(((), format!("{credits} credits")))
            })
        })
        .await
        .map_err(plain)?;
    gateway.accounts.refresh(&gateway.store, &account, now_ms).map_err(plain)?;
    let balances = gateway.accounts.of(&account).balances(crate::engine::budget::MonthIndex::of_ms(now_ms));
    Ok((201, json!({"account": account, "balance": balances.balance.map(|balance| balance.to_string())})))
}

fn plain(error: store::Error) -> (u16, String) {
    let status = if matches!(error, store::Error::Invalid(_)) { 400 } else { 500 };
    (status, error.to_string())
}
