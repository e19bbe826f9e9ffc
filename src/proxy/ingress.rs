//! From a request's head to an admitted request: who calls, what is asked, may it, can it be paid.

use super::body::{self, BodyError, Share};
use super::gateway::{Gateway, Owner};
use super::heap::boxed;
use super::idempotency::{self, Asked, Begun, Keeping, Kept};
use super::queue::{Place, Weight};
use super::settle::{Open, OpenRow, Settlement, Stage, Tariff};
use super::{denied, respond};
use crate::config::weir_toml::AuthMode;
use crate::engine::budget::{MonthIndex, Reservation, ShortBy, Terms};
use crate::engine::catalog::{Catalog, TargetPrice, Tier};
use crate::engine::dialect::Endpoint;
use crate::engine::id::{IdText, RequestId};
use crate::engine::limit::{self, Limited, Quota, Standings, Which};
use crate::engine::money::{Credits, Factor, Usd};
use crate::engine::outbound;
use crate::engine::peek::{self, Peek};
use crate::engine::policy::ByokWish;
use crate::engine::refusal::{RateLimit, Refusal};
use crate::engine::route::{self, Ask, Caller as RouteCaller, Draw, Payer, Plan};
use crate::engine::usage::Bucket;
use crate::store::callers::{CallerKey, Denied};
use crate::store::ledger::{Facts, LedgerFull};
use crate::telemetry::clock;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use pingora_core::protocols::http::ServerSession;
use std::sync::Arc;
use std::time::Instant;

/// Output tokens taken as the most when neither the request, the level nor the model says: the largest that common models
/// write by default is 16,384, most stop far below.
pub const UNSTATED_OUTPUT_TOKENS: u64 = 4096;
/// A whole answer that a balance cannot pay in full is capped to what it can, but not below this: less is no answer.
pub const AFFORDABLE_OUTPUT_TOKENS_MIN: u64 = 16;
/// A client's own request id is taken up to this length.
const CLIENT_ID_BYTES_MAX: usize = 128;
/// When to come again while the process is full: requests end by the second.
const RETRY_MS: u64 = 1_000;
/// Bytes that a second of uploaded speech has, for what it costs at the most (32 kbit/s, little for MP3 or Opus) and at the least
/// (16,000 samples of 16 bits, as plain WAV files have). What lies between is set aside as far as there is a balance.
const AUDIO_BYTES_PER_SECOND: [u64; 2] = [4_000, 32_000];
/// What a query may not carry: credentials end up in every log on the way.
const CREDENTIAL_PARAMETERS: &[&str] = &["access_token", "api-key", "api_key", "apikey", "authorization", "key", "token"];

/// What a query's values may not begin with, whatever they are called.
const CREDENTIAL_PREFIXES: &[&str] = &["wk_", "sk-", "gsk_", "AIza", "eyJ"];

/// A request as its head describes it.
#[derive(Debug, Clone)]
pub struct Head {
    /// weir's id: the row's.
    pub id: IdText,
    /// What the client calls it.
    pub client_id: Option<HeaderValue>,
    /// When the head was read.
    pub started: Instant,
    /// The same by the calendar.
    pub started_ms: u64,
    /// The path.
    pub endpoint: Endpoint,
}

/// Who calls.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The key, or what stands for one.
    pub key: Arc<CallerKey>,
    /// Its tier, if it has one.
    pub tier: Option<Arc<Tier>>,
}

/// A request that may be served.
pub struct Admitted {
    /// The snapshot it keeps.
    pub catalog: Arc<Catalog>,
    /// Who calls.
    pub caller: Caller,
    /// The body as it came.
    pub body: Bytes,
    /// The body's share of the memory budget.
    pub share: Share,
    /// What the body says.
    pub peek: Peek,
    /// What to try.
    pub plan: Plan,
    /// A cap on the output that the balance sets; the attempts have their own.
    pub output_cap: Option<u64>,
    /// Where the caller stands, for the rate-limit headers.
    pub standings: Standings,
    /// The account to settle.
    pub settlement: Settlement,
    /// Keeps the answer, when the client sent an idempotency key.
    pub keeping: Option<Keeping>,
    /// Its place among the requests in service.
    pub place: Place,
}

/// Why a request is not admitted.
pub enum Stopped {
    /// Say no.
    Refused(Box<Refused>),
    /// It was answered before: give that answer again.
    Answered(Box<Kept>, Caller),
    /// The operator's policy answers it.
    #[cfg(feature = "lua-policy")]
    Decided(super::policed::Decided, Caller),
    /// The client went away.
    Gone,
}

impl From<Refusal> for Stopped {
    fn from(refusal: Refusal) -> Stopped {
        Stopped::Refused(Box::new(Refused { refusal, caller: None, wanted: Wanted::default() }))
    }
}

/// A no, to whom, and to what.
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// Who asked, once that is known: then it leaves a row.
    pub caller: Option<Caller>,
    /// What was asked.
    pub wanted: Wanted,
}

/// What a refused request asked for, as far as it was read.
#[derive(Debug, Default)]
pub struct Wanted {
    model: Box<str>,
    level: Option<Arc<str>>,
    idempotency_key: Option<Box<str>>,
}

impl Wanted {
    /// As its headers and the body say.
    pub fn of(catalog: &Catalog, headers: &HeaderMap, peek: Option<&Peek>) -> Wanted {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        let model = peek.and_then(|peek| peek.model.as_deref()).unwrap_or_default();
        Wanted {
            // Of another name nobody knows what it is: people paste keys into the wrong field.
            model: if route::is_known(catalog, model) { model.into() } else { Box::default() },
            level: route::asked_level(catalog, model, text("x-power-level")).map(|level| level.name.clone()),
            idempotency_key: text("idempotency-key").filter(|key| key.len() <= idempotency::KEY_BYTES_MAX).map(Into::into),
        }
    }
}

impl Head {
    /// A request whose head was just read.
    pub fn new(endpoint: Endpoint, headers: &HeaderMap) -> Head {
        let started_ms = clock::now_ms();
        Head {
            id: RequestId::new(started_ms, rand::random()).text(),
            client_id: client_id(headers).cloned(),
            started: Instant::now(),
            started_ms,
            endpoint,
        }
    }
}

/// The credential a request presents, whichever of the three headers carries it. An `Authorization` of another scheme is for
/// somebody on the way (a proxy in front that asks for `Basic`), and the other places are looked at.
pub fn credential(headers: &HeaderMap) -> Option<&str> {
    let bearer = || {
        let (scheme, token) = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    };
    let bare = || ["x-api-key", "api-key"].iter().find_map(|name| headers.get(*name)?.to_str().ok());
    bearer().or_else(bare).map(str::trim)
}

/// Who calls. No lock, no database: a map in memory, or a signature that was verified before.
pub async fn authenticate(gateway: &Gateway, session: &ServerSession, catalog: &Catalog, now_ms: u64) -> Result<Caller, Refusal> {
    let header = session.req_header();
    if let Some(query) = header.uri.query() {
        let carries = query.split('&').any(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (respond::percent_decode(name), respond::percent_decode(value));
            CREDENTIAL_PARAMETERS.iter().any(|denied| name.eq_ignore_ascii_case(denied))
                || CREDENTIAL_PREFIXES.iter().any(|prefix| value.starts_with(prefix))
        });
        if carries {
            return Err(Refusal::KeyInQuery);
        }
    }
    authenticate_presented(gateway, credential(&header.headers), catalog, now_ms).await
}

/// Who presents this credential, wherever it was read from.
pub async fn authenticate_presented(gateway: &Gateway, presented: Option<&str>, catalog: &Catalog, now_ms: u64) -> Result<Caller, Refusal> {
    let mode = gateway.settings.auth.mode;
    let Some(presented) = presented.filter(|presented| !presented.is_empty()) else {
        if mode == AuthMode::Open {
            return with_tier(catalog, gateway.open_caller.clone());
        }
        return Err(Refusal::NoKey);
    };
    if mode == AuthMode::Open {
        return with_tier(catalog, gateway.open_caller.clone());
    }
    let mut denied = Denied::Unknown;
    if mode.takes_keys() {
        match gateway.callers.lookup(presented, now_ms) {
            Ok(key) => return with_tier(catalog, key),
            Err(why) => denied = why,
        }
    }
    if let Some(jwt) = gateway.jwt.as_ref().filter(|_| mode.takes_jwt() && presented.contains('.')) {
        let key = jwt.verify(presented, now_ms).await.map_err(Refusal::from)?;
        return with_tier(catalog, key);
    }
    Err(match denied {
        Denied::Unknown | Denied::Revoked => Refusal::UnknownKey,
        Denied::Expired => Refusal::ExpiredKey,
    })
}

/// The caller with its tier. A tier that is not configured (any more) is no tier at all, and opens nothing: the default one
/// takes its place, and without a default the caller is refused, for no tier would mean no restrictions.
fn with_tier(catalog: &Catalog, key: Arc<CallerKey>) -> Result<Caller, Refusal> {
    let default = catalog.routing.default_tier.as_ref();
    let tier = match (&key.tier, default) {
        (None, None) => None,
        (named, default) => {
            let found = named.iter().chain(default).find_map(|name| catalog.tiers.get(name).cloned());
            Some(found.ok_or_else(|| Refusal::UnknownTier { tier: named.as_deref().unwrap_or_default().into() })?)
        }
    };
    Ok(Caller { key, tier })
}

/// Reads, checks and reserves. What it takes from limits and balances is given back when the admitted request ends. `access`
/// looks at the request of a known caller before it is asked what it wants: it may change its headers and body, or stop it.
pub async fn admit<A>(
    gateway: &Arc<Gateway>,
    session: &mut ServerSession,
    head: &Head,
    catalog: Arc<Catalog>,
    access: A,
) -> Result<Box<Admitted>, Stopped>
where
    A: FnOnce(&mut ServerSession, &Caller, Bytes, &mut Share) -> Result<Bytes, Stopped>,
{
    let caller = authenticate(gateway, session, &catalog, head.started_ms).await?;
    let refused = |session: &ServerSession, peek: Option<&Peek>, refusal: Refusal| {
        let wanted = Wanted::of(&catalog, &session.req_header().headers, peek);
        Stopped::Refused(Box::new(Refused { refusal, caller: Some(caller.clone()), wanted }))
    };
    if let Some(client_id) = &head.client_id {
        gateway.client_ids.note(&caller.key.account_id, client_id.as_bytes(), head.id);
    }
    let weight = Weight::of_rank(caller.tier.as_ref().map_or(0, |tier| tier.rank));
    let place = gateway.queue.enter(&caller.key.account_id, weight).await;
    let place = place.map_err(|_| refused(session, None, Refusal::Overloaded { retry_after_ms: RETRY_MS }))?;
    let max_body = gateway.settings.limits.max_body_bytes;
    let (body, mut share) = match body::read(session, max_body, &gateway.bodies).await {
        Ok(read) => read,
        Err(BodyError::TooLarge) => return Err(refused(session, None, Refusal::BodyTooLarge { limit_bytes: max_body })),
        Err(BodyError::Overloaded) => return Err(refused(session, None, Refusal::Overloaded { retry_after_ms: RETRY_MS })),
        Err(BodyError::TooSlow) => return Err(refused(session, None, Refusal::BodyTooSlow)),
        Err(BodyError::Gone) => return Err(Stopped::Gone),
    };
    let body = access(session, &caller, body, &mut share)?;
    let peek = read_body(session, head.endpoint, &body).map_err(|refusal| refused(session, None, refusal))?;
    let refused = |refusal| refused(session, Some(&peek), refusal);
    let headers = &session.req_header().headers;
    let keeping = match begun(gateway, &caller, headers, head, &body).map_err(refused)? {
        None => None,
        Some(Begun::First(keeping)) => Some(keeping),
        Some(Begun::Again(kept)) => return Err(Stopped::Answered(kept, caller)),
        Some(Begun::Conflict(what, first)) => return Err(refused(Refusal::Conflict { what, request_id: first.as_str().into() })),
        Some(Begun::Full) => return Err(refused(Refusal::Overloaded { retry_after_ms: RETRY_MS })),
    };
    let opening = Opening { head, caller: &caller, headers, peek: &peek, draw: Draw(rand::random()), row: RowIn::Journal };
    let Opened { plan, output_cap, standings, settlement } = open_account(gateway, &catalog, &opening).map_err(refused)?;
    Ok(boxed(|| Admitted { catalog, caller, body, share, peek, plan, output_cap, standings, settlement, keeping, place }))
}

/// A request as it asks to be admitted.
pub struct Opening<'a> {
    /// Its id and path.
    pub head: &'a Head,
    /// Who calls.
    pub caller: &'a Caller,
    /// The headers that steer.
    pub headers: &'a HeaderMap,
    /// What the body says.
    pub peek: &'a Peek,
    /// The seed of the plan's choices.
    pub draw: Draw,
    /// Who keeps its row until it ends.
    pub row: RowIn,
}

/// Who keeps a request's row until it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowIn {
    /// This process: what a crash leaves open becomes a row.
    Journal,
    /// The proxy that serves it: its row comes with the settlement, after a crash of this process too.
    OtherProxy,
}

/// What was opened for a request that may be served.
pub struct Opened {
    /// What to try.
    pub plan: Plan,
    /// A cap on the output that the balance sets.
    pub output_cap: Option<u64>,
    /// Where the caller stands.
    pub standings: Standings,
    /// The account to settle.
    pub settlement: Settlement,
}

/// Plans, draws on the limits, reserves and journals that the request begins.
pub fn open_account(gateway: &Arc<Gateway>, catalog: &Catalog, opening: &Opening<'_>) -> Result<Opened, Refusal> {
    let Opening { head, caller, headers, peek, draw, row } = *opening;
    let (plan, prompt_tokens) = plan(gateway, catalog, caller, headers, head, peek, draw)?;
    let output_tokens = most_output(head.endpoint, peek, &plan);
    let estimated_tokens = prompt_tokens.saturating_add(output_tokens.min(peek.max_output.unwrap_or(0)));
    let limits = limit::admit_all(quotas(gateway, caller), head.started_ms, estimated_tokens).map_err(rate_limited)?;
    let standings = Standings::of(limits.iter().map(limit::Admitted::quota), head.started_ms);

    let tariff = tariff(gateway, caller, &plan);
    let priced = Priced { plan: &plan, endpoint: head.endpoint, peek, prompt_tokens, output_tokens, tariff };
    let reserved = match reserve(gateway, caller, &priced, head.started_ms) {
        Ok(reserved) => reserved,
        Err(refusal) => {
            limits.into_iter().for_each(limit::Admitted::release);
            return Err(refusal);
        }
    };
    let facts = facts(head, caller, peek, &plan, headers, &reserved);
    let opened = match row {
        RowIn::Journal => gateway.ledger.open(facts).map(OpenRow::Journal),
        RowIn::OtherProxy => Ok(OpenRow::OtherProxy(facts)),
    };
    let row = match opened {
        Ok(row) => row,
        Err(LedgerFull::Behind | LedgerFull::Disk) => {
            limits.into_iter().for_each(limit::Admitted::release);
            reserved.reservation.release();
            return Err(Refusal::LedgerStopped { retry_after_ms: RETRY_MS });
        }
    };
    let output_cap = reserved.output_cap;
    let settlement = Settlement::new(boxed(|| Open {
        gateway: gateway.clone(),
        row,
        reservation: reserved.reservation,
        limits,
        prompt_tokens,
        images: images_asked(head.endpoint, peek),
        tariff,
        endpoint: head.endpoint,
        started: head.started,
        current: None,
        beside: None,
        tried: Vec::new(),
        stage: Stage::Idle,
        series: None,
        first_event_ms: None,
        status: 200,
        covered_tokens: reserved.covered_tokens,
        count_at: reserved.covered_tokens,
        uncounted: Credits(0),
        seen_bytes: 0,
        progress_due_ms: head.started_ms + super::settle::PROGRESS_INTERVAL_MS,
    }));
    Ok(Opened { plan, output_cap, standings, settlement })
}

/// What the request's idempotency key means; `None`: it has none, or none are kept.
fn begun(gateway: &Gateway, caller: &Caller, headers: &HeaderMap, head: &Head, body: &[u8]) -> Result<Option<Begun>, Refusal> {
    let (Some(answers), Some(key)) = (&gateway.answers, headers.get("idempotency-key")) else { return Ok(None) };
    if key.is_empty() || key.len() > idempotency::KEY_BYTES_MAX {
        return Err(Refusal::BadHeader { name: "Idempotency-Key", expected: "1 to 255 characters" });
    }
    let asked =
        Asked { account: &caller.key.account_id, key_id: &caller.key.id, idempotency_key: key.as_bytes(), endpoint: head.endpoint, body };
    Ok(Some(answers.begin(asked, head.id, head.started_ms)))
}

fn read_body(session: &ServerSession, endpoint: Endpoint, body: &Bytes) -> Result<Peek, Refusal> {
    let content_type = session.req_header().headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let peek = if endpoint.is_multipart() { peek::multipart(content_type, body) } else { peek::json(endpoint, body) };
    let peek = peek.map_err(Refusal::BadBody)?;
    match peek.unsupported {
        Some(what) => Err(Refusal::Unsupported(what)),
        None => Ok(peek),
    }
}

/// The plan of attempts and the estimate of the prompt.
pub fn plan(
    gateway: &Gateway,
    catalog: &Catalog,
    caller: &Caller,
    headers: &HeaderMap,
    head: &Head,
    peek: &Peek,
    draw: Draw,
) -> Result<(Plan, u64), Refusal> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim).filter(|value| !value.is_empty());
    let byok = match text("x-weir-byok").map(str::to_ascii_lowercase).as_deref() {
        None => ByokWish::Unspecified,
        Some("prefer") => ByokWish::Prefer,
        Some("require") => ByokWish::Require,
        Some("never") => ByokWish::Never,
        Some(_) => return Err(Refusal::BadHeader { name: "X-Weir-Byok", expected: "prefer, require or never" }),
    };
    let model = peek.model.as_deref().unwrap_or_default();
    let prompt_tokens = outbound::prompt_tokens(model, peek);
    let own_key = |provider: &crate::engine::catalog::Provider| gateway.key_ring.own_state(&caller.key.account_id, &provider.name);
    let scopes = caller.key.scopes();
    let ask = Ask {
        model,
        level_header: text("x-power-level"),
        task: text("x-task-type"),
        endpoint: head.endpoint,
        needs: peek.needs,
        prompt_tokens,
        max_output: peek.max_output,
        byok,
        prefix_hash: peek.prefix_hash,
    };
    let route_caller = RouteCaller { tier: caller.tier.as_deref(), scopes, has_budget: is_budgeted(gateway, caller), own_key: &own_key };
    let plan = route::plan(catalog, &ask, &route_caller, head.started_ms, draw, None).map_err(|no| denied::refusal(no, model, None))?;
    Ok((plan, prompt_tokens))
}

fn rate_limited(limited: Limited) -> Refusal {
    let limit = match limited.which {
        Which::Rpm => RateLimit::RequestsPerMinute,
        Which::Tpm => RateLimit::TokensPerMinute,
        Which::Rpd => RateLimit::RequestsPerDay,
        Which::Tpd => RateLimit::TokensPerDay,
        Which::Concurrent => RateLimit::Concurrent,
    };
    Refusal::RateLimited { limit, allowed: limited.limit, retry_after_ms: limited.retry_after_ms }
}

/// Targets without a price are closed to the caller.
pub fn is_budgeted(gateway: &Gateway, caller: &Caller) -> bool {
    caller.key.has_budget || gateway.account(&caller.key).has_budget()
}

/// The most the answer can have: what the request, the level and the model allow, times the choices asked for. Nothing where nothing is
/// written.
fn most_output(endpoint: Endpoint, peek: &Peek, plan: &Plan) -> u64 {
    if matches!(endpoint, Endpoint::Embeddings | Endpoint::Moderations | Endpoint::CountTokens) {
        return 0;
    }
    let most =
        plan.upcoming().map(|attempt| attempt.output_at_most.unwrap_or(UNSTATED_OUTPUT_TOKENS)).max().unwrap_or(UNSTATED_OUTPUT_TOKENS);
    most.saturating_mul(peek.choices.max(1))
}

/// Where a caller stands, for the rate-limit headers of an answer or a refusal.
pub fn standing(gateway: &Gateway, caller: &Caller, now_ms: u64) -> Standings {
    Standings::of(quotas(gateway, caller), now_ms)
}

/// What limits key and tier; a tier's limits apply to each account.
fn quotas(gateway: &Gateway, caller: &Caller) -> impl Iterator<Item = Quota> {
    let key = gateway.limiters.of(Owner::Key(caller.key.id.clone()), caller.key.limits());
    let tier = caller.tier.as_ref().and_then(|tier| gateway.limiters.in_tier(&caller.key, tier));
    key.into_iter().chain(tier)
}

fn tariff(gateway: &Gateway, caller: &Caller, plan: &Plan) -> Tariff {
    Tariff {
        multiplier: plan.multiplier,
        markup: caller.tier.as_ref().map_or(Factor::ZERO, |tier| tier.markup),
        byok_fee: caller.tier.as_ref().map_or(Credits(0), |tier| tier.byok_fee),
        credit: gateway.settings.ledger.credit,
    }
}

/// Pictures that a request asks for.
fn images_asked(endpoint: Endpoint, peek: &Peek) -> u64 {
    if endpoint == Endpoint::Images { peek.choices.max(1) } else { 0 }
}

/// What a reservation is made from.
struct Priced<'a> {
    plan: &'a Plan,
    endpoint: Endpoint,
    peek: &'a Peek,
    prompt_tokens: u64,
    /// Of all choices together.
    output_tokens: u64,
    tariff: Tariff,
}

impl Priced<'_> {
    /// The most that so many output tokens can cost at the dearest target, with the images and the speech, which is as long as it is
    /// at so many bytes a second.
    fn most(&self, output_tokens: u64, audio_bytes_per_second: u64) -> Credits {
        self.plan.upcoming().map(|attempt| self.most_at(attempt, output_tokens, audio_bytes_per_second)).max().unwrap_or_default()
    }

    fn most_at(&self, attempt: &route::Attempt, output_tokens: u64, audio_bytes_per_second: u64) -> Credits {
        let price = match (&attempt.payer, &attempt.target.price) {
            (Payer::Own(_), _) => return self.tariff.byok_fee,
            (Payer::Platform, TargetPrice::Priced(price)) => price,
            (Payer::Platform, TargetPrice::Free | TargetPrice::Unpriced) => return Credits(0),
        };
        let milliseconds = self.peek.file_bytes.saturating_mul(1_000).div_ceil(audio_bytes_per_second);
        let units = price
            .most_of(Bucket::Images, images_asked(self.endpoint, self.peek))
            .0
            .saturating_add(price.most_of(Bucket::Milliseconds, milliseconds).0);
        let most = self.tariff.charge(Usd(price.most(self.prompt_tokens, output_tokens).0.saturating_add(units)), false);
        // What only the provider can say, or next to nothing, takes at least a balance that is not used up.
        let is_free = !price.may_cost() || self.tariff.multiplier == Factor::ZERO;
        if is_free { most } else { most.max(Credits(1)) }
    }

    /// Tokens that an answer must be able to have: a stream is counted as it runs, and a whole answer is capped to what the balance pays.
    /// One that cannot be capped (images, speech) may overdraw by what nobody knew beforehand.
    fn least_output(&self) -> u64 {
        AFFORDABLE_OUTPUT_TOKENS_MIN.saturating_mul(self.choices()).min(self.output_tokens)
    }

    fn choices(&self) -> u64 {
        self.peek.choices.max(1)
    }
}

/// What was set aside.
struct Reserved {
    reservation: Reservation,
    /// Output tokens it covers; all there can be where nothing bounds the account.
    covered_tokens: u64,
    /// A cap for each choice of a whole answer that the balance cannot pay in full.
    output_cap: Option<u64>,
}

/// Sets aside the most the request can cost at the dearest of its targets. A balance that has less lets a stream begin (it is
/// counted as it runs) and caps a whole answer; one that cannot pay the prompt and a little is a refusal.
fn reserve(gateway: &Gateway, caller: &Caller, priced: &Priced<'_>, now_ms: u64) -> Result<Reserved, Refusal> {
    let account = gateway.account(&caller.key);
    let cap = caller.tier.as_ref().and_then(|tier| tier.monthly_cap);
    if caller.key.has_budget && !account.has_budget() {
        // The key was made with credits and its account is not in memory yet: wait for it rather than spend what is not there.
        return Err(Refusal::CreditsUsedUp { upgrade_url: gateway.upgrade_url.clone() });
    }
    let [dense, plain] = AUDIO_BYTES_PER_SECOND;
    let cost = |output: u64| priced.most(output, dense);
    let most = cost(priced.output_tokens);
    let least = priced.most(priced.least_output(), plain);
    let is_bounded = account.has_budget() || cap.is_some();
    let terms = Terms { month: MonthIndex::of_ms(now_ms), monthly_cap: cap };
    let reservation = account.reserve_up_to(least, most, terms).map_err(|short| match short.by {
        ShortBy::Balance => Refusal::CreditsUsedUp { upgrade_url: gateway.upgrade_url.clone() },
        ShortBy::MonthlyCap => Refusal::CapUsedUp { upgrade_url: gateway.upgrade_url.clone() },
    })?;
    if !is_bounded || reservation.amount() >= most {
        let covered_tokens = if is_bounded { priced.output_tokens } else { u64::MAX };
        return Ok(Reserved { reservation, covered_tokens, output_cap: None });
    }
    let covered = affordable(reservation.amount(), &cost, priced.output_tokens);
    let output_cap = (!priced.peek.stream).then_some(covered / priced.choices());
    Ok(Reserved { reservation, covered_tokens: covered, output_cap })
}

/// The most output tokens whose cost stays within `amount`: cost never falls with tokens, so a bisection finds it.
fn affordable(amount: Credits, cost: &dyn Fn(u64) -> Credits, most: u64) -> u64 {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if cost(middle) <= amount { low = middle } else { high = middle - 1 }
    }
    low
}

fn facts(head: &Head, caller: &Caller, peek: &Peek, plan: &Plan, headers: &HeaderMap, reserved: &Reserved) -> Facts {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    Facts {
        request_id: head.id.as_str().into(),
        started_ms: head.started_ms,
        account: caller.key.account_id.clone(),
        key_id: caller.key.id.clone(),
        asked_model: peek.model.as_deref().unwrap_or_default().into(),
        level: plan.level.as_ref().map(|level| level.name.clone()),
        tier: caller.tier.as_ref().map(|tier| tier.name.clone()),
        idempotency_key: text("idempotency-key").map(Into::into),
        reserved: reserved.reservation.is_budgeted().then(|| reserved.reservation.amount()),
    }
}

/// The facts of a request that is refused before it has any.
pub fn refused_facts(head: &Head, caller: &Caller, wanted: Wanted) -> Facts {
    Facts {
        request_id: head.id.as_str().into(),
        started_ms: head.started_ms,
        account: caller.key.account_id.clone(),
        key_id: caller.key.id.clone(),
        asked_model: wanted.model,
        level: wanted.level,
        tier: caller.tier.as_ref().map(|tier| tier.name.clone()),
        idempotency_key: wanted.idempotency_key,
        reserved: None,
    }
}

/// The id a client gave its request, when it can be sent back as it came.
pub fn client_id(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get("x-request-id").filter(|value| {
        let bytes = value.as_bytes();
        !bytes.is_empty() && bytes.len() <= CLIENT_ID_BYTES_MAX && bytes.iter().all(|byte| byte.is_ascii_graphic())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_found_in_each_of_its_places() {
        let check = |name: &'static str, value: &str, expected: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            assert_eq!(credential(&headers), expected, "{name}: {value}");
        };
        check("authorization", "Bearer wk_1", Some("wk_1"));
        check("authorization", "bearer  wk_1 ", Some("wk_1"));
        check("authorization", "Basic wk_1", None);
        check("x-api-key", "wk_1", Some("wk_1"));
        check("api-key", "wk_1", Some("wk_1"));
        check("x-other", "wk_1", None);
    }

    #[test]
    fn an_authorization_that_is_no_bearer_is_passed_over() {
        for other in ["Basic dXNlcjpwYXNz", "Bearer", "x"] {
            for name in ["x-api-key", "api-key"] {
                let mut headers = HeaderMap::new();
                headers.insert("authorization", HeaderValue::from_static(other));
                headers.insert(name, HeaderValue::from_static("wk_1"));
                assert_eq!(credential(&headers), Some("wk_1"), "{other}, {name}");
            }
        }
        let mut both = HeaderMap::new();
        both.insert("x-api-key", HeaderValue::from_static("wk_2"));
        both.insert("authorization", HeaderValue::from_static("Bearer wk_1"));
        assert_eq!(credential(&both), Some("wk_1"));
    }

    #[test]
    fn what_an_amount_affords_is_found_exactly() {
        let cost = |tokens: u64| Credits(10 + 3 * tokens as i64);
        for (amount, expected) in [(9, 0), (10, 0), (12, 0), (13, 1), (40, 10), (1000, 20)] {
            assert_eq!(affordable(Credits(amount), &cost, 20), expected);
        }
    }
}
