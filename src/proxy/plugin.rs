//! The plugin socket: another proxy on this host, with weir's engine in it, asks who calls and settles what was used.
//!
//! HTTP/1.1 over a Unix socket (`listen.plugin`, file mode 0660), JSON both ways:
//!
//! - `POST /plugin/v1/admit` `{key, path, headers, model, stream, max_output, choices, needs, text_bytes, token_ids, messages,
//!   images, file_bytes, prefix_hash}` → 200 `{request_id, account, key_id, tier, scopes, has_budget, draw, output_cap, covered_tokens, headers,
//!   keys: [{provider, own, key}]}`, or the refusal's status with `{headers, body}` as the caller is to get them.
//! - `POST /plugin/v1/extend` `{request_id, provider, upstream_model, byok, attempts, was_fallback, output_tokens}` → 200
//!   `{covered_tokens}`: a stream has come so far, and its reservation is to reach further. `null`: nothing bounds it. 404: there is
//!   no such admission (any more).
//! - `POST /plugin/v1/settle` a row → 200 `{settled}`, `false` where there is a row of that id. 400: not a row, and never will be.
//!   503: not now.
//! - `GET /plugin/v1/health` → 200.
//!
//! The prompt never comes here. An admission holds a reservation and its share of the rate limits, in memory only: the row is the
//! other proxy's until it settles, so that a restart of this process loses none and closes none too early. What is admitted and not
//! heard of within [`SETTLE_BY`] is settled as failed, with the prompt as used.
//!
//! A caller's own key with a base URL of its own is not handed out, for a proxy connects to configured hosts only. Such targets are
//! passed over; where there is no other, the refusal says so.

mod rows;
mod waiting;

use super::gateway::Gateway;
use super::ingress::{self, Caller, Head, Opened, Opening, RowIn, Wanted};
use super::settle::{Current, Settlement};
use super::{denied, finish, keep_alive, respond};
use crate::engine::catalog::{Capabilities, Target};
use crate::engine::dialect::{Dialect, Endpoint};
use crate::engine::limit::Standings;
use crate::engine::peek::Peek;
use crate::engine::refusal::Refusal;
use crate::engine::route::{Denied, Draw, Payer};
use crate::store::ledger::{End, Outcome};
use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use parking_lot::Mutex;
use pingora_core::apps::{HttpServerApp, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use waiting::Waiting;

/// A plugin's connection may be idle this long; plugins give theirs up after 30 s.
const IDLE_SECONDS: u64 = 60;
/// Rows and admissions are some hundred bytes; names and scopes may make a few thousand of them.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Requests admitted and not settled at most: as many as the ledger lets wait. Beyond it admission is refused.
const OPEN_MAX: usize = 65_536;
/// An exchange ends within 15 minutes unless a provider's total timeout says otherwise; a worker that is still silent has died.
const SETTLE_BY: Duration = Duration::from_secs(3600);
/// How often it is looked for admissions that were never settled.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// A stream's reservation reaches this far beyond what it has used when it was extended: some ten seconds of a fast model, so that
/// the next call comes long before it is used up.
const EXTEND_AHEAD_TOKENS: u64 = 2048;
/// Why a target is passed over whose own key has a base URL of its own.
const OWN_BASE: &str = "your own key here has one, and such requests are served by weir's own listener only, not through this proxy";

/// The plugin socket.
pub struct Plugin {
    admissions: Arc<Admissions>,
}

/// The requests that other proxies serve.
pub struct Admissions {
    gateway: Arc<Gateway>,
    open: Mutex<Waiting<Pending>>,
    /// Held while a row that nobody waits for is looked up and written: two of one id must not pass each other.
    recording: tokio::sync::Mutex<()>,
}

/// A request that was admitted and is not settled.
struct Pending {
    settlement: Settlement,
    /// What may be asked, and whether with the caller's own key.
    targets: Vec<(Arc<Target>, bool)>,
}

/// What a plugin asks.
#[derive(Deserialize)]
struct Admit {
    key: Option<String>,
    path: String,
    #[serde(default)]
    headers: HashMap<String, String>,
    model: Option<String>,
    stream: bool,
    max_output: Option<u64>,
    choices: u64,
    needs: u8,
    text_bytes: u64,
    token_ids: u64,
    messages: u64,
    images: u64,
    /// Absent from an older proxy.
    #[serde(default)]
    file_bytes: u64,
    prefix_hash: u64,
}

/// How far a stream has come.
#[derive(Deserialize)]
struct Extend {
    request_id: String,
    provider: String,
    upstream_model: String,
    byok: bool,
    attempts: u32,
    was_fallback: bool,
    output_tokens: u64,
}

/// A no, and to whom.
struct No {
    refusal: Refusal,
    caller: Option<Caller>,
    wanted: Wanted,
}

/// Why a key is not handed out.
enum Withheld {
    OwnBase,
    NotThere,
}

impl From<Refusal> for No {
    fn from(refusal: Refusal) -> No {
        No { refusal, caller: None, wanted: Wanted::default() }
    }
}

impl Plugin {
    /// Serves `admissions`.
    pub fn new(admissions: Arc<Admissions>) -> Plugin {
        Plugin { admissions }
    }

    async fn dispatch(&self, session: &mut ServerSession) -> bool {
        let path = session.req_header().uri.path().to_owned();
        let is_post = session.req_header().method == Method::POST;
        let admissions = &self.admissions;
        let (status, answer) = match path.as_str() {
            "/plugin/v1/health" => (200, json!({ "open": admissions.open.lock().len() })),
            "/plugin/v1/admit" | "/plugin/v1/extend" | "/plugin/v1/settle" if is_post => {
                let Some(body) = respond::small_body(session, BODY_BYTES_MAX).await else { return false };
                match path.as_str() {
                    "/plugin/v1/admit" => admissions.admit(&body).await,
                    "/plugin/v1/extend" => admissions.extend(&body),
                    _ => admissions.settle(&body).await,
                }
            }
            _ => (404, json!({ "error": "there is no such call" })),
        };
        respond::json(session, status, &answer, None).await
    }
}

impl Admissions {
    /// None yet.
    pub fn new(gateway: Arc<Gateway>) -> Admissions {
        Admissions { gateway, open: Mutex::default(), recording: tokio::sync::Mutex::new(()) }
    }

    /// Settles, for ever, what nobody has settled in time.
    pub async fn sweep(self: Arc<Admissions>) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            // A row that comes for one of these meanwhile waits, and finds it then.
            let _turn = self.recording.lock().await;
            let late = self.open.lock().silent(SETTLE_BY, Instant::now());
            for (id, pending) in late {
                self.expire(id, pending).await;
            }
        }
    }

    async fn admit(&self, body: &[u8]) -> (u16, Value) {
        let Ok(asked) = serde_json::from_slice::<Admit>(body) else { return (400, json!({ "error": "not an admission" })) };
        let mut headers = HeaderMap::new();
        for (name, value) in &asked.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
                headers.insert(name, value);
            }
        }
        let Some(endpoint) = Endpoint::of_path(&asked.path) else {
            return told_no(&self.gateway, &Refusal::UnknownPath, Dialect::OpenAi, &Standings::default());
        };
        let head = Head::new(endpoint, &headers);
        match self.admitted(&asked, &head, &headers).await {
            Ok(answer) => (200, answer),
            Err(no) => self.refuse(no, &head).await,
        }
    }

    /// A refusal, with the row that the caller's gets as it would from the gateway itself.
    async fn refuse(&self, no: No, head: &Head) -> (u16, Value) {
        let (gateway, refusal) = (&self.gateway, no.refusal);
        gateway.metrics.of_none().answered(head.endpoint, refusal.status());
        let mut standings = Standings::default();
        if let Some(caller) = no.caller {
            standings = ingress::standing(gateway, &caller, head.started_ms);
            let outcome = Outcome {
                status: refusal.status(),
                end: End::Refused,
                duration_ms: head.started.elapsed().as_millis() as u64,
                ..Outcome::default()
            };
            // A refusal costs nothing; when even its row finds no room the answer is the same.
            if let Ok(closed) = gateway.ledger.record(ingress::refused_facts(head, &caller, no.wanted), outcome) {
                closed.safe().await;
            }
        }
        told_no(gateway, &refusal, head.endpoint.dialect(), &standings)
    }

    async fn admitted(&self, asked: &Admit, head: &Head, headers: &HeaderMap) -> Result<Value, No> {
        let gateway = &self.gateway;
        if gateway.drain.is_draining() {
            return Err(Refusal::Draining.into());
        }
        if self.open.lock().len() >= OPEN_MAX {
            return Err(Refusal::Overloaded { retry_after_ms: 1_000 }.into());
        }
        let catalog = gateway.catalog.load_full();
        let caller = ingress::authenticate_presented(gateway, asked.key.as_deref(), &catalog, head.started_ms).await?;
        if let Some(client_id) = &head.client_id {
            gateway.client_ids.note(&caller.key.account_id, client_id.as_bytes(), head.id);
        }
        let peek = asked.peek();
        let no = |refusal: Refusal| No { refusal, caller: Some(caller.clone()), wanted: Wanted::of(&catalog, headers, Some(&peek)) };
        let draw: u64 = rand::random();
        let opening = Opening { head, caller: &caller, headers, peek: &peek, draw: Draw(draw), row: RowIn::OtherProxy };
        let Opened { plan, output_cap, standings, mut settlement } = ingress::open_account(gateway, &catalog, &opening).map_err(no)?;
        let (mut keys, mut targets, mut own_base) = (Vec::new(), Vec::new(), false);
        for attempt in plan.upcoming() {
            let target = &attempt.target;
            let own = matches!(attempt.payer, Payer::Own(_));
            match self.key(&caller, target, own, head.started_ms) {
                Ok(key) => {
                    let entry = json!({ "provider": &*target.provider.name, "own": own, "key": key });
                    if !keys.contains(&entry) {
                        keys.push(entry);
                    }
                    targets.push((target.clone(), own));
                }
                Err(withheld) => own_base |= matches!(withheld, Withheld::OwnBase),
            }
        }
        let Some((first, own_key)) = targets.first().cloned() else {
            // The reservation goes with the settlement.
            let model = asked.model.as_deref().unwrap_or_default();
            let refusal = if own_base {
                Refusal::BaseUrlClosed(OWN_BASE)
            } else {
                denied::refusal(Denied::NoKey { model: model.into() }, model, None)
            };
            return Err(no(refusal));
        };
        let covered = settlement.open().map(|open| {
            // Should nobody ever settle, the first target was asked.
            open.current = Some(Current { target: first, own_key, attempts: 1, was_fallback: false });
            open.covered_tokens
        });
        let answer = json!({
            "request_id": head.id.as_str(), "account": &*caller.key.account_id, "key_id": &*caller.key.id,
            "tier": caller.tier.as_ref().map(|tier| &*tier.name), "scopes": caller.key.scopes(), "has_budget": ingress::is_budgeted(gateway, &caller),
            "draw": draw, "output_cap": output_cap, "covered_tokens": covered.and_then(bounded), "headers": shown(&standings), "keys": keys,
        });
        self.open.lock().insert(head.id.as_str().into(), Pending { settlement, targets }, Instant::now());
        Ok(answer)
    }

    /// The key to hand out for a target; `None`: none is needed.
    fn key(&self, caller: &Caller, target: &Target, own: bool, now_ms: u64) -> Result<Option<String>, Withheld> {
        let ring = &self.gateway.key_ring;
        if own {
            let key = ring.own(&caller.key.account_id, &target.provider.name).ok_or(Withheld::NotThere)?;
            if key.base_url().is_some() {
                return Err(Withheld::OwnBase);
            }
            return key.open(now_ms).map(|secret| Some(secret.expose().to_owned())).map_err(|_| Withheld::NotThere);
        }
        match &target.provider.key {
            None => Ok(None),
            Some(reference) => ring.platform(reference).map(|secret| Some(secret.expose().to_owned())).ok_or(Withheld::NotThere),
        }
    }

    /// Reserves on for a running stream.
    fn extend(&self, body: &[u8]) -> (u16, Value) {
        let Ok(asked) = serde_json::from_slice::<Extend>(body) else { return (400, json!({ "error": "not an extension" })) };
        let mut open = self.open.lock();
        let Some(pending) = open.heard_of(&asked.request_id, Instant::now()) else { return (404, json!({ "error": "not open" })) };
        let target = pending.target(Some(&asked.provider), Some(&asked.upstream_model), asked.byok);
        if let (Some(account), Some(target)) = (pending.settlement.open(), target) {
            let (attempts, was_fallback) = (asked.attempts, asked.was_fallback);
            account.current = Some(Current { target, own_key: asked.byok, attempts, was_fallback });
        }
        let covered = pending.settlement.cover(asked.output_tokens.saturating_add(EXTEND_AHEAD_TOKENS));
        (200, json!({ "covered_tokens": bounded(covered) }))
    }
}

impl Pending {
    /// The target that a proxy names, if it may be asked.
    fn target(&self, provider: Option<&str>, upstream_model: Option<&str>, own: bool) -> Option<Arc<Target>> {
        let is_named = |target: &Target| Some(&*target.provider.name) == provider && Some(&*target.upstream_model) == upstream_model;
        self.targets.iter().find(|(target, own_key)| *own_key == own && is_named(target)).map(|(target, _)| target.clone())
    }
}

impl Admit {
    fn peek(&self) -> Peek {
        Peek {
            model: self.model.clone(),
            stream: self.stream,
            max_output: self.max_output,
            choices: self.choices,
            needs: Capabilities(self.needs),
            text_bytes: self.text_bytes,
            token_ids: self.token_ids,
            messages: self.messages,
            images: self.images,
            file_bytes: self.file_bytes,
            prefix_hash: self.prefix_hash,
            ..Peek::default()
        }
    }
}

/// Tokens as the protocol has them: `None` where nothing bounds them.
fn bounded(tokens: u64) -> Option<u64> {
    Some(tokens).filter(|tokens| *tokens != u64::MAX)
}

fn shown(standings: &Standings) -> Map<String, Value> {
    let mut headers = Map::new();
    standings.headers(|name, value| {
        headers.insert(name.to_owned(), value.into());
    });
    headers
}

fn told_no(gateway: &Gateway, refusal: &Refusal, dialect: Dialect, standings: &Standings) -> (u16, Value) {
    gateway.metrics.refusals.with_label_values(&[refusal.reason()]).inc();
    let mut headers = shown(standings);
    if let Some(wait) = refusal.retry_after_s() {
        headers.insert("retry-after".into(), wait.to_string().into());
    }
    (refusal.status(), json!({ "headers": headers, "body": refusal.body(dialect) }))
}

#[async_trait]
impl HttpServerApp for Plugin {
    async fn process_new_http(self: &Arc<Self>, mut session: ServerSession, _shutdown: &ShutdownWatch) -> Option<ReusedHttpStream> {
        if !matches!(session.read_request().await, Ok(true)) {
            return None;
        }
        keep_alive(&mut session, Some(IDLE_SECONDS));
        let reusable = self.dispatch(&mut session).await;
        finish(Box::new(session), reusable).await
    }
}
