//! Every answer that is a no: which status, which code in which dialect, what the caller reads and what the metric counts.
//!
//! A refusal carries what happened as data; one table turns the variant into status, types and codes, and one text says what to
//! do about it. What the log says is the caller's floor's business. Codes and types are those OpenAI's and Anthropic's own
//! client libraries know (openai-python `_exceptions.py`, anthropic-sdk-python `types/shared/error_*`).
//!
//! A refusal never holds a key: upstream messages come in through [`UpstreamFailure::new`], which scrubs them.

mod body;
pub mod denied;
mod scrub;
mod text;

pub use scrub::{scrub, scrub_known};

use super::peek::{BadBody, Unsupported};
use std::fmt;
use std::sync::Arc;

/// A no, with what the caller needs to turn it into a yes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The body cannot be read.
    BadBody(BadBody),
    /// A request header has a value weir does not know; the values it knows.
    BadHeader {
        /// The header.
        name: &'static str,
        /// What it may be, for people.
        expected: &'static str,
    },
    /// A body of a type the path does not take.
    MediaType {
        /// What it takes.
        expected: &'static str,
    },
    /// A credential stands in the query string, where it would be logged.
    KeyInQuery,
    /// `weir/<level>` or the level header names no level.
    UnknownLevel {
        /// What was asked.
        asked: Box<str>,
        /// The levels there are, for this caller.
        known: Vec<Arc<str>>,
    },
    /// No target of the model can do what the request needs.
    CannotDo {
        /// The model.
        model: Box<str>,
        /// What it cannot do (`tools`, `vision`, …).
        lacks: &'static str,
    },
    /// No provider of the model speaks the path's dialect.
    NotSpoken {
        /// The model.
        model: Box<str>,
        /// The path.
        path: &'static str,
    },
    /// The prompt and the answer's cap are more than the model's window.
    ContextTooLong {
        /// The model.
        model: Box<str>,
        /// Tokens the request needs, by our count.
        tokens: u64,
        /// Tokens the model has.
        window: u64,
    },
    /// More output is asked than the model can write.
    OutputTooLong {
        /// The model.
        model: Box<str>,
        /// Tokens it writes at most.
        most: u64,
    },
    /// The body asks what cannot be had through here.
    Unsupported(Unsupported),
    /// A self-service request cannot be carried out; why. Never holds a secret.
    Invalid {
        /// For people.
        what: Box<str>,
    },
    /// No credential was sent.
    NoKey,
    /// The credential is not known, or was revoked.
    UnknownKey,
    /// The key is known and past its date.
    ExpiredKey,
    /// The JWT does not pass; why.
    BadToken(&'static str),
    /// The account has no credits left.
    CreditsUsedUp {
        /// Where to get more.
        upgrade_url: Option<Arc<str>>,
    },
    /// The month's cap is reached.
    CapUsedUp {
        /// Where to raise it.
        upgrade_url: Option<Arc<str>>,
    },
    /// What was left did not reach to the end of a running stream.
    CreditsRanOut {
        /// Where to get more.
        upgrade_url: Option<Arc<str>>,
    },
    /// The tier or the key's scopes do not open the model.
    ModelClosed {
        /// The model.
        model: Box<str>,
        /// The tier that opens it, where that is known.
        needs: Option<Arc<str>>,
    },
    /// The tier or the key's scopes do not open the level.
    LevelClosed {
        /// The level.
        level: Box<str>,
    },
    /// The key's tier is not configured, and there is no default.
    UnknownTier {
        /// The tier.
        tier: Box<str>,
    },
    /// The key's scopes do not open the path.
    PathClosed {
        /// The path.
        path: &'static str,
    },
    /// The tier has no own provider keys.
    ByokClosed,
    /// `X-Weir-Byok: require`, and the caller has no own key at any provider of the model.
    ByokMissing {
        /// The model.
        model: Box<str>,
        /// The providers a key would help at.
        providers: Vec<Arc<str>>,
    },
    /// The provider refused the caller's own key.
    ByokRefused(UpstreamFailure),
    /// The provider says the account of the caller's own key cannot pay.
    ByokBroke(UpstreamFailure),
    /// The tier may not set base URLs, or this one is not allowed.
    BaseUrlClosed(&'static str),
    /// Only targets without a price could serve it, and the key has a budget.
    Unpriced {
        /// The model.
        model: Box<str>,
    },
    /// No model of the level stays inside the level's limits.
    LevelLimits {
        /// The level.
        level: Box<str>,
        /// Which limit ruled the last one out.
        limit: &'static str,
    },
    /// Nobody configured the model and no provider can be inferred.
    UnknownModel {
        /// What was asked.
        asked: Box<str>,
        /// Configured names near it that the caller may use.
        nearest: Vec<Arc<str>>,
    },
    /// There is no such path.
    UnknownPath,
    /// The path takes another method.
    WrongMethod {
        /// The methods it takes, as `Allow` lists them.
        allow: &'static str,
    },
    /// The caller has no such request, key or other thing.
    NotFound {
        /// What was looked for (`request`, `provider key`).
        what: &'static str,
    },
    /// The body came too slowly.
    BodyTooSlow,
    /// The same idempotency key with another body, or its first request is still running or no longer replayable.
    Conflict {
        /// Which of them, and what to do.
        what: &'static str,
        /// The first request's id.
        request_id: Box<str>,
    },
    /// The body is over the limit.
    BodyTooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// A limit of the key, account or tier is reached.
    RateLimited {
        /// Which.
        limit: RateLimit,
        /// How many are allowed.
        allowed: u64,
        /// When to come again.
        retry_after_ms: u64,
    },
    /// Every attempt failed.
    AttemptsFailed {
        /// How many there were.
        attempts: u32,
        /// The last.
        last: UpstreamFailure,
        /// When one of them is due again, if it said so.
        retry_after_ms: Option<u64>,
    },
    /// The upstream broke off after the first event went out.
    StreamBroken(UpstreamFailure),
    /// No provider sent a first event in time.
    NoFirstEvent {
        /// The provider asked last.
        provider: Arc<str>,
        /// How many attempts there were.
        attempts: u32,
    },
    /// No target of the model is healthy.
    NoTarget {
        /// The model.
        model: Box<str>,
        /// When the first is due again.
        retry_after_ms: u64,
    },
    /// The platform has no key that could pay, and neither has the caller.
    NoPayer {
        /// The model.
        model: Box<str>,
    },
    /// The server is going down.
    Draining,
    /// Too much is in flight.
    Overloaded {
        /// When to come again.
        retry_after_ms: u64,
    },
    /// The ledger cannot take another row (disk full or too slow): nothing is served that could not be accounted.
    LedgerStopped {
        /// When to come again.
        retry_after_ms: u64,
    },
    /// The operator's policy says no.
    Policy {
        /// The status it chose, 400 to 599.
        status: u16,
    },
    /// The operator's policy failed, so that nobody knows what it would have said.
    PolicyFailed,
    /// A defect or a failed disk; nothing the caller could do.
    Internal,
}

/// What a caller may do only so often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateLimit {
    /// Requests a minute.
    RequestsPerMinute,
    /// Tokens a minute.
    TokensPerMinute,
    /// Requests a day.
    RequestsPerDay,
    /// Tokens a day.
    TokensPerDay,
    /// Requests at the same time.
    Concurrent,
}

/// What a provider said, or that it said nothing, scrubbed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamFailure {
    /// The provider.
    provider: Arc<str>,
    /// Its status; `None`: there was no answer.
    status: Option<u16>,
    /// Its message or what broke.
    message: Box<str>,
}

/// How a refusal is told, whatever its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// HTTP status.
    pub status: u16,
    /// OpenAI's `type`.
    pub openai_type: &'static str,
    /// OpenAI's `code`.
    pub code: Option<&'static str>,
    /// Anthropic's `error.type`.
    pub anthropic_type: &'static str,
    /// The metric's `reason` label.
    pub reason: &'static str,
}

impl UpstreamFailure {
    /// What `provider` answered. The message is scrubbed of anything like a key, and of `secret` (the key that was sent) in
    /// whole or in part.
    pub fn new(provider: Arc<str>, status: Option<u16>, message: &str, secret: Option<&str>) -> UpstreamFailure {
        let message = secret.map_or_else(|| scrub(message), |secret| scrub_known(message, secret));
        UpstreamFailure { provider, status, message: text::clip(&message, text::MAX_UPSTREAM_CHARS).into() }
    }

    /// The provider.
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// Its status; `None`: there was no answer.
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// Its message, scrubbed and bounded.
    pub fn message(&self) -> &str {
        &self.message
    }
}

const fn row(
    status: u16,
    openai_type: &'static str,
    code: Option<&'static str>,
    anthropic_type: &'static str,
    reason: &'static str,
) -> Row {
    Row { status, openai_type, code, anthropic_type, reason }
}

impl Refusal {
    /// Status, types, code and metric label.
    pub fn row(&self) -> Row {
        const INVALID: &str = "invalid_request_error";
        const PERMISSION: &str = "permission_error";
        const SERVER: &str = "server_error";
        match self {
            Refusal::BadBody(BadBody::Json(..) | BadBody::NotAnObject) => row(400, INVALID, None, INVALID, "bad_json"),
            Refusal::BadBody(BadBody::Multipart(_)) => row(400, INVALID, None, INVALID, "bad_multipart"),
            Refusal::BadBody(BadBody::NoModel) => row(400, INVALID, Some("missing_required_parameter"), INVALID, "no_model"),
            Refusal::BadBody(BadBody::WrongType(_)) => row(400, INVALID, Some("invalid_type"), INVALID, "wrong_type"),
            Refusal::BadHeader { .. } => row(400, INVALID, Some("invalid_value"), INVALID, "bad_header"),
            Refusal::MediaType { .. } => row(415, INVALID, Some("unsupported_media_type"), INVALID, "media_type"),
            Refusal::KeyInQuery => row(400, INVALID, Some("key_in_query"), INVALID, "key_in_query"),
            Refusal::UnknownLevel { .. } => row(400, INVALID, Some("unknown_level"), INVALID, "unknown_level"),
            Refusal::CannotDo { .. } => row(400, INVALID, Some("unsupported_parameter"), INVALID, "cannot_do"),
            Refusal::NotSpoken { .. } => row(400, INVALID, Some("unsupported_endpoint"), INVALID, "not_spoken"),
            Refusal::ContextTooLong { .. } => row(400, INVALID, Some("context_length_exceeded"), INVALID, "context_too_long"),
            Refusal::OutputTooLong { .. } => row(400, INVALID, Some("invalid_value"), INVALID, "output_too_long"),
            Refusal::Unsupported(what) => {
                let reason = match what {
                    Unsupported::OtherModels => "other_models",
                    Unsupported::Background => "background",
                    Unsupported::Misspelt(_) => "misspelt",
                };
                row(400, INVALID, Some("unsupported_parameter"), INVALID, reason)
            }
            Refusal::Invalid { .. } => row(400, INVALID, None, INVALID, "invalid"),
            Refusal::NoKey => row(401, INVALID, Some("invalid_api_key"), "authentication_error", "no_key"),
            Refusal::UnknownKey => row(401, INVALID, Some("invalid_api_key"), "authentication_error", "unknown_key"),
            Refusal::ExpiredKey => row(401, INVALID, Some("invalid_api_key"), "authentication_error", "expired_key"),
            Refusal::BadToken(_) => row(401, INVALID, Some("invalid_api_key"), "authentication_error", "bad_token"),
            Refusal::CreditsUsedUp { .. } => payment("credits_used_up"),
            Refusal::CapUsedUp { .. } => payment("cap_used_up"),
            Refusal::CreditsRanOut { .. } => payment("credits_ran_out"),
            Refusal::ModelClosed { .. } => row(403, PERMISSION, Some("model_not_allowed"), PERMISSION, "model_closed"),
            Refusal::LevelClosed { .. } => row(403, PERMISSION, Some("level_not_allowed"), PERMISSION, "level_closed"),
            Refusal::UnknownTier { .. } => row(403, PERMISSION, Some("unknown_tier"), PERMISSION, "unknown_tier"),
            Refusal::PathClosed { .. } => row(403, PERMISSION, Some("path_not_allowed"), PERMISSION, "path_closed"),
            Refusal::ByokClosed => row(403, PERMISSION, Some("byok_not_allowed"), PERMISSION, "byok_closed"),
            Refusal::ByokMissing { .. } => row(403, PERMISSION, Some("byok_key_missing"), PERMISSION, "byok_missing"),
            Refusal::ByokRefused(_) => row(403, PERMISSION, Some("byok_key_refused"), PERMISSION, "byok_refused"),
            Refusal::ByokBroke(_) => row(402, "insufficient_quota", Some("insufficient_quota"), "billing_error", "byok_broke"),
            Refusal::BaseUrlClosed(_) => row(403, PERMISSION, Some("base_url_not_allowed"), PERMISSION, "base_url_closed"),
            Refusal::Unpriced { .. } => row(403, PERMISSION, Some("model_unpriced"), PERMISSION, "unpriced"),
            Refusal::LevelLimits { .. } => row(403, PERMISSION, Some("level_limits"), PERMISSION, "level_limits"),
            Refusal::UnknownModel { .. } => row(404, INVALID, Some("model_not_found"), "not_found_error", "unknown_model"),
            Refusal::UnknownPath => row(404, INVALID, Some("unknown_url"), "not_found_error", "unknown_path"),
            Refusal::WrongMethod { .. } => row(405, INVALID, Some("method_not_supported"), INVALID, "wrong_method"),
            Refusal::NotFound { .. } => row(404, INVALID, Some("not_found"), "not_found_error", "not_found"),
            Refusal::BodyTooSlow => row(408, INVALID, Some("request_timeout"), INVALID, "body_too_slow"),
            Refusal::Conflict { .. } => row(409, INVALID, Some("idempotency_conflict"), INVALID, "conflict"),
            Refusal::BodyTooLarge { .. } => row(413, INVALID, Some("request_too_large"), "request_too_large", "body_too_large"),
            Refusal::RateLimited { limit, .. } => {
                row(429, limit.openai_type(), Some("rate_limit_exceeded"), "rate_limit_error", limit.reason())
            }
            Refusal::AttemptsFailed { .. } => row(502, SERVER, Some("upstream_failed"), "api_error", "attempts_failed"),
            Refusal::StreamBroken(_) => row(502, SERVER, Some("stream_interrupted"), "api_error", "stream_broken"),
            Refusal::NoFirstEvent { .. } => row(504, SERVER, Some("upstream_timeout"), "timeout_error", "no_first_event"),
            Refusal::NoTarget { .. } => row(503, SERVER, Some("no_healthy_target"), "overloaded_error", "no_target"),
            Refusal::NoPayer { .. } => row(503, SERVER, Some("no_provider_key"), "api_error", "no_payer"),
            Refusal::Draining => row(503, SERVER, Some("draining"), "overloaded_error", "draining"),
            Refusal::Overloaded { .. } => row(503, SERVER, Some("overloaded"), "overloaded_error", "overloaded"),
            Refusal::LedgerStopped { .. } => row(503, SERVER, Some("ledger_unavailable"), "api_error", "ledger_stopped"),
            Refusal::Policy { status } => policy(*status),
            Refusal::PolicyFailed => row(500, SERVER, Some("policy_failed"), "api_error", "policy_failed"),
            Refusal::Internal => row(500, SERVER, None, "api_error", "internal"),
        }
    }

    /// HTTP status.
    pub fn status(&self) -> u16 {
        self.row().status
    }

    /// The `reason` label of `weir_refusals_total`.
    pub fn reason(&self) -> &'static str {
        self.row().reason
    }

    /// OpenAI's `param`: the request field that is at fault.
    pub fn param(&self) -> Option<&'static str> {
        match self {
            Refusal::BadBody(BadBody::NoModel)
            | Refusal::UnknownModel { .. }
            | Refusal::ModelClosed { .. }
            | Refusal::NotSpoken { .. }
            | Refusal::Unpriced { .. } => Some("model"),
            Refusal::BadBody(BadBody::WrongType(field)) | Refusal::Unsupported(Unsupported::Misspelt(field)) => Some(field),
            Refusal::Unsupported(Unsupported::OtherModels) => Some("models"),
            Refusal::Unsupported(Unsupported::Background) => Some("background"),
            Refusal::BadHeader { name, .. } => Some(name),
            _ => None,
        }
    }

    /// When to come again, for `Retry-After`, in milliseconds.
    pub fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Refusal::AttemptsFailed { retry_after_ms, .. } => *retry_after_ms,
            Refusal::RateLimited { retry_after_ms, .. }
            | Refusal::NoTarget { retry_after_ms, .. }
            | Refusal::Overloaded { retry_after_ms }
            | Refusal::LedgerStopped { retry_after_ms } => Some(*retry_after_ms),
            // Another node takes over within a second of this one draining.
            Refusal::Draining => Some(1_000),
            _ => None,
        }
    }

    /// `Retry-After` in whole seconds, rounded up: coming a moment early would be refused again.
    pub fn retry_after_s(&self) -> Option<u64> {
        self.retry_after_ms().map(|ms| ms.div_ceil(1000).max(1))
    }

    /// Where to buy more, when configured.
    pub fn upgrade_url(&self) -> Option<&str> {
        match self {
            Refusal::CreditsUsedUp { upgrade_url } | Refusal::CapUsedUp { upgrade_url } | Refusal::CreditsRanOut { upgrade_url } => {
                upgrade_url.as_deref()
            }
            _ => None,
        }
    }

    /// The methods for `Allow`.
    pub fn allow(&self) -> Option<&'static str> {
        match self {
            Refusal::WrongMethod { allow } => Some(allow),
            _ => None,
        }
    }

    /// The rest of the request's body is not read: the connection must be closed behind the answer.
    pub fn closes_connection(&self) -> bool {
        matches!(self, Refusal::Draining | Refusal::BodyTooLarge { .. } | Refusal::BodyTooSlow)
    }
}

const fn payment(reason: &'static str) -> Row {
    row(402, "insufficient_quota", Some("insufficient_quota"), "billing_error", reason)
}

/// A status that a policy chose, in the types that clients know for it.
const fn policy(status: u16) -> Row {
    const INVALID: &str = "invalid_request_error";
    let (openai_type, anthropic_type) = match status {
        401 => (INVALID, "authentication_error"),
        402 => ("insufficient_quota", "billing_error"),
        403 => ("permission_error", "permission_error"),
        404 => (INVALID, "not_found_error"),
        413 => (INVALID, "request_too_large"),
        429 => ("requests", "rate_limit_error"),
        503 | 529 => ("server_error", "overloaded_error"),
        504 => ("server_error", "timeout_error"),
        500.. => ("server_error", "api_error"),
        _ => (INVALID, INVALID),
    };
    row(status, openai_type, Some("policy_refused"), anthropic_type, "policy")
}

impl RateLimit {
    /// OpenAI's `type` of a rate limit error says what ran out.
    const fn openai_type(self) -> &'static str {
        match self {
            RateLimit::TokensPerMinute | RateLimit::TokensPerDay => "tokens",
            RateLimit::RequestsPerMinute | RateLimit::RequestsPerDay | RateLimit::Concurrent => "requests",
        }
    }

    /// The metric's label.
    const fn reason(self) -> &'static str {
        match self {
            RateLimit::RequestsPerMinute => "requests_per_minute",
            RateLimit::TokensPerMinute => "tokens_per_minute",
            RateLimit::RequestsPerDay => "requests_per_day",
            RateLimit::TokensPerDay => "tokens_per_day",
            RateLimit::Concurrent => "concurrent",
        }
    }
}

impl From<BadBody> for Refusal {
    fn from(bad: BadBody) -> Refusal {
        Refusal::BadBody(bad)
    }
}

impl fmt::Display for Refusal {
    /// What the caller reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        text::write(self, f)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests;
