//! `/admin/v1`: what an operator may see and change. Its shape is described in `openapi.json`, which a test holds to the
//! table below.

use super::{config, error, providers, views};
use crate::engine::budget::MonthIndex;
use crate::engine::limit::Limits;
use crate::engine::money::Credits;
use crate::proxy::gateway::{Gateway, Reload};
use crate::proxy::respond;
use crate::store::audit::{self, Actor};
use crate::store::keys::{self, NewKey, Scopes};
use crate::store::{self, accounts, usage, vault};
use crate::telemetry::clock;
use http::header::{ALLOW, HeaderValue};
use http::{Method, StatusCode};
use pingora_core::protocols::http::ServerSession;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// An admin request's body at most.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Records of the audit log in one answer when none are asked for.
const AUDIT_PAGE: usize = 100;
/// Accounts in one answer when none are asked for, and at most: one page of a screen, and a megabyte.
const ACCOUNTS_PAGE: usize = 100;
const ACCOUNTS_PAGE_MAX: usize = 10_000;

/// What can be asked for. A route that the table does not name is never reached, and the compiler says so.
#[derive(Debug, Clone, Copy)]
enum Route {
    Reload,
    Config,
    Providers,
    Models,
    Keys,
    CreateKey,
    RevokeKey,
    RotateKey,
    Vault,
    Accounts,
    Account,
    Grant,
    Usage,
    Request,
    Audit,
}

/// Method and path of every endpoint; `{}` stands for one part of a path.
static ROUTES: [(Method, &str, Route); 15] = [
    (Method::POST, "/admin/v1/reload", Route::Reload),
    (Method::GET, "/admin/v1/config", Route::Config),
    (Method::GET, "/admin/v1/providers", Route::Providers),
    (Method::GET, "/admin/v1/models", Route::Models),
    (Method::GET, "/admin/v1/keys", Route::Keys),
    (Method::POST, "/admin/v1/keys", Route::CreateKey),
    (Method::DELETE, "/admin/v1/keys/{}", Route::RevokeKey),
    (Method::POST, "/admin/v1/keys/{}/rotate", Route::RotateKey),
    (Method::GET, "/admin/v1/vault", Route::Vault),
    (Method::GET, "/admin/v1/accounts", Route::Accounts),
    (Method::GET, "/admin/v1/accounts/{}", Route::Account),
    (Method::POST, "/admin/v1/accounts/{}/grants", Route::Grant),
    (Method::GET, "/admin/v1/usage", Route::Usage),
    (Method::GET, "/admin/v1/requests/{}", Route::Request),
    (Method::GET, "/admin/v1/audit", Route::Audit),
];

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
    #[serde(default)]
    limits: KeyLimits,
}

/// A key's own limits, beside its tier's.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct KeyLimits {
    rpm: Option<u64>,
    tpm: Option<u64>,
    rpd: Option<u64>,
    tpd: Option<u64>,
    concurrent: Option<u64>,
}

/// `POST /admin/v1/keys/{id}/rotate`
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Rotate {
    overlap_ms: u64,
}

/// `POST /admin/v1/accounts/{id}/grants`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Grant {
    credits: String,
    #[serde(default)]
    note: String,
}

type Answer = Result<(u16, Value), (u16, String)>;

/// Answers an authorised request. Returns whether the connection may be used again.
pub async fn serve(gateway: &Arc<Gateway>, session: &mut ServerSession) -> bool {
    let path = session.req_header().uri.path().to_string();
    let (status, document) = match find(&session.req_header().method, &path) {
        Found::Route(route, part) => {
            answer(gateway, session, route, part).await.unwrap_or_else(|(status, message)| (status, error(&message)))
        }
        Found::OtherMethod(allow) => return wrong_method(session, &allow).await,
        Found::Nothing => (404, error("There is no such endpoint; /admin/v1/openapi.json lists them.")),
    };
    respond::json(session, status, &document, None).await
}

/// What a method and a path lead to.
enum Found {
    /// A route and the part of its path that varies, decoded; empty where there is none.
    Route(Route, String),
    /// The path is there for these methods.
    OtherMethod(String),
    Nothing,
}

fn find(method: &Method, path: &str) -> Found {
    let mut allow = Vec::new();
    for (of_route, template, route) in &ROUTES {
        let Some(part) = part(template, path) else { continue };
        if of_route == method {
            return Found::Route(*route, part);
        }
        allow.push(of_route.as_str());
    }
    if allow.is_empty() { Found::Nothing } else { Found::OtherMethod(allow.join(", ")) }
}

/// What stands for `{}` when `path` is one of `template`.
fn part(template: &str, path: &str) -> Option<String> {
    let Some((before, after)) = template.split_once("{}") else { return (template == path).then(String::new) };
    let part = path.strip_prefix(before)?.strip_suffix(after)?;
    (!part.is_empty() && !part.contains('/')).then(|| respond::percent_decode(part))
}

async fn wrong_method(session: &mut ServerSession, allow: &str) -> bool {
    let body = error(&format!("This path takes {allow}.")).to_string();
    let Ok(allow) = HeaderValue::from_str(allow) else { return false };
    let mut header = respond::document(StatusCode::METHOD_NOT_ALLOWED.as_u16(), "application/json", body.len());
    header.headers.insert(ALLOW, allow);
    respond::write(session, header, body.into()).await
}

async fn answer(gateway: &Arc<Gateway>, session: &mut ServerSession, route: Route, part: String) -> Answer {
    let from = session.client_addr().map(|address| address.to_string()).unwrap_or_default();
    let now_ms = clock::now_ms();
    match route {
        Route::Reload => reload(gateway, from).await,
        Route::Config => Ok((200, config(gateway))),
        Route::Providers => list(providers(gateway)),
        Route::Models => list(views::models(&gateway.catalog.load(), now_ms)),
        Route::Keys => list(views::keys(&gateway.store.run(move |store| keys::list(store, now_ms)).await.map_err(plain)?)),
        Route::CreateKey => create_key(gateway, body(session).await?, from, now_ms).await,
        Route::RevokeKey => {
            let id = part.clone();
            gateway.store.run(move |store| keys::revoke(store, &id, admin(&from), now_ms)).await.map_err(plain)?;
            Ok((200, json!({"id": part, "revoked": true})))
        }
        Route::RotateKey => {
            let Rotate { overlap_ms } = body(session).await?;
            let created =
                gateway.store.run(move |store| keys::rotate(store, &part, overlap_ms, admin(&from), now_ms)).await.map_err(plain)?;
            Ok((201, views::created(&created)))
        }
        Route::Vault => list(views::vault(&gateway.store.run(|store| vault::list(store, None)).await.map_err(plain)?)),
        Route::Accounts => {
            let after = respond::query(session, "after").unwrap_or_default();
            let limit = number(session, "limit")?.unwrap_or(ACCOUNTS_PAGE).min(ACCOUNTS_PAGE_MAX);
            let ids =
                gateway.store.run(move |store| store.read(|connection| accounts::ids(connection, &after, limit))).await.map_err(plain)?;
            list(ids.iter().map(|id| account(gateway, id, now_ms)).collect())
        }
        Route::Account => Ok((200, account(gateway, &part, now_ms))),
        Route::Grant => grant(gateway, part, body(session).await?, from, now_ms).await,
        Route::Usage => used(gateway, session, now_ms).await,
        Route::Request => {
            gateway.ledger.flushed_soon().await;
            match gateway.store.run(move |store| usage::any_request(store, &part)).await.map_err(plain)? {
                Some(row) => serialized(&row),
                None => Err((404, "There is no such request.".into())),
            }
        }
        Route::Audit => {
            let (before, limit) = (number(session, "before")?, number(session, "limit")?.unwrap_or(AUDIT_PAGE));
            list(views::audit(&gateway.store.run(move |store| audit::read(store, before, limit)).await.map_err(plain)?))
        }
    }
}

fn admin(from: &str) -> Actor<'_> {
    Actor { who: "admin", from }
}

fn list(data: Value) -> Answer {
    Ok((200, json!({"data": data})))
}

fn serialized(value: &impl serde::Serialize) -> Answer {
    serde_json::to_value(value).map(|value| (200, value)).map_err(|error| (500, error.to_string()))
}

/// A number in the query; what is no number is refused rather than passed over.
fn number<T: std::str::FromStr>(session: &ServerSession, name: &str) -> Result<Option<T>, (u16, String)> {
    respond::query(session, name).map(|text| text.parse().map_err(|_| (400, format!("{name}: expected a whole number")))).transpose()
}

/// An empty body stands for an empty object.
async fn body<T: for<'a> Deserialize<'a>>(session: &mut ServerSession) -> Result<T, (u16, String)> {
    let body = respond::small_body(session, BODY_BYTES_MAX).await.ok_or((413, "The body is too large.".to_string()))?;
    let body: &[u8] = if body.is_empty() { b"{}" } else { &body };
    // serde's texts name fields and places, and quote no value but a wrong one's type.
    serde_json::from_slice(body).map_err(|error| (400, format!("The body cannot be read: {error}.")))
}

async fn reload(gateway: &Arc<Gateway>, from: String) -> Answer {
    let reloading = gateway.clone();
    let result = tokio::task::spawn_blocking(move || reloading.reload_for(Reload::Always, admin(&from)))
        .await
        .map_err(|_| (500, "The reload did not finish.".to_string()))?;
    let mut document = config(gateway);
    document["result"] = json!(if result.is_ok() { "ok" } else { "rejected" });
    Ok((if result.is_ok() { 200 } else { 422 }, document))
}

async fn create_key(gateway: &Gateway, new: CreateKey, from: String, now_ms: u64) -> Answer {
    if let Some(tier) = &new.tier
        && !gateway.catalog.load().tiers.contains_key(tier.as_str())
    {
        return Err((400, format!("There is no tier '{tier}' in routing.toml.")));
    }
    let credits = new.credits.as_deref().map(str::parse::<Credits>).transpose().map_err(|error| (400, format!("credits: {error}")))?;
    let KeyLimits { rpm, tpm, rpd, tpd, concurrent } = new.limits;
    let limits = Limits { rpm, tpm, rpd, tpd, concurrent };
    let key =
        NewKey { name: new.name, account: new.account, tier: new.tier, scopes: new.scopes, expires_ms: new.expires_at_ms, limits, credits };
    let created = gateway.store.run(move |store| keys::create(store, &key, admin(&from), now_ms)).await.map_err(plain)?;
    Ok((201, views::created(&created)))
}

/// An account as this process has it: rows on their way to the database are in it already.
fn account(gateway: &Gateway, id: &str, now_ms: u64) -> Value {
    let balances = gateway.accounts.of(id).balances(MonthIndex::of_ms(now_ms));
    json!({"account": id, "balance": balances.balance.map(|balance| balance.to_string()), "reserved": balances.reserved.to_string(), "used_this_month": balances.used_this_month.to_string()})
}

async fn grant(gateway: &Gateway, id: String, grant: Grant, from: String, now_ms: u64) -> Answer {
    let credits: Credits = grant.credits.parse().map_err(|error| (400, format!("credits: {error}")))?;
    let (granted, note, accounts) = (id.clone(), grant.note, gateway.accounts.clone());
    gateway
        .store
        .run(move |store| {
            audit::audited(store, admin(&from), "account.grant", &granted, now_ms, |tx| {
                accounts::grant(tx, &granted, credits, &note, now_ms)?;
                Ok(((), format!("{granted}: {credits} credits")))
            })?;
            // A follower would take it in a moment later; the answer already has it. Granted it is in any case.
            if let Err(error) = accounts.refresh(store, &[granted], now_ms) {
                log::warn!("a grant is not in the balance yet: {error}");
            }
            Ok(())
        })
        .await
        .map_err(plain)?;
    Ok((201, account(gateway, &id, now_ms)))
}

async fn used(gateway: &Gateway, session: &ServerSession, now_ms: u64) -> Answer {
    let by = respond::query(session, "by").unwrap_or_else(|| "day".into());
    let (since, account) = (respond::query(session, "since"), respond::query(session, "account"));
    gateway.ledger.flushed_soon().await;
    let report = gateway
        .store
        .run(move |store| usage::report(store, &usage::Question::parse(&by, since.as_deref(), account.as_deref(), now_ms)?, now_ms))
        .await
        .map_err(plain)?;
    serialized(&report)
}

fn plain(error: store::Error) -> (u16, String) {
    let status = if matches!(error, store::Error::Invalid(_)) { 400 } else { 500 };
    (status, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_document_describes_every_route_and_no_other() {
        let document: Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
        let described: BTreeSet<String> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
                methods.map(move |method| format!("{} {path}", method.to_uppercase()))
            })
            // Parameters have names there.
            .map(|line| match (line.find('{'), line.find('}')) {
                (Some(open), Some(close)) => format!("{}{}", &line[..=open], &line[close..]),
                _ => line,
            })
            .collect();
        let pages = ["/", "/livez", "/metrics", "/readyz", "/admin/v1/openapi.json"].map(|page| format!("GET {page}"));
        let routes = ROUTES.iter().map(|(method, path, _)| format!("{method} {path}")).chain(pages).collect();
        assert_eq!(described, routes);
    }

    #[test]
    fn a_path_leads_to_its_route_with_its_part_decoded() {
        for (method, path, expected) in [
            (Method::GET, "/admin/v1/keys", "Keys "),
            (Method::POST, "/admin/v1/keys", "CreateKey "),
            (Method::DELETE, "/admin/v1/keys/key_1", "RevokeKey key_1"),
            (Method::POST, "/admin/v1/keys/key_1/rotate", "RotateKey key_1"),
            (Method::GET, "/admin/v1/accounts/jwt%3Aa%2Fb", "Account jwt:a/b"),
            (Method::PUT, "/admin/v1/keys", "GET, POST"),
            (Method::GET, "/admin/v1/keys/key_1", "DELETE"),
            (Method::GET, "/admin/v1/keys/", "nothing"),
            (Method::GET, "/admin/v1/accounts//grants", "nothing"),
            (Method::POST, "/admin/v1/accounts/a/b/grants", "nothing"),
            (Method::GET, "/admin/v1/keysandmore", "nothing"),
        ] {
            let found = match find(&method, path) {
                Found::Route(route, part) => format!("{route:?} {part}"),
                Found::OtherMethod(allow) => allow,
                Found::Nothing => "nothing".into(),
            };
            assert_eq!(found, expected, "{method} {path}");
        }
    }
}
