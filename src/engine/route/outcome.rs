//! What an outcome means: its class, and who is to blame.

/// Where an attempt's time ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimeoutPhase {
    /// TCP and TLS.
    Connect,
    /// Request written, nothing came back.
    FirstEvent,
    /// Between two events or body reads, after the first went out.
    BetweenEvents,
    /// The whole exchange.
    Total,
}

/// How an attempt ended, or that it is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// No connection.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// The connection broke before the first event.
    Reset,
    /// A timer fired before the first event.
    Timeout(TimeoutPhase),
    /// An HTTP status other than 2xx.
    Status {
        /// The status.
        code: u16,
        /// `retry-after-ms`, or `Retry-After` made relative.
        retry_after_ms: Option<u64>,
        /// The error body's `code` or else `type`, as it was written.
        error_code: &'a str,
        /// The error body's message; read only to recognise what providers give no code for.
        message: &'a str,
    },
    /// A 200 whose first event is an error.
    ErrorFirstEvent {
        /// The error's `code` or else `type`.
        error_code: &'a str,
        /// The error's message.
        message: &'a str,
    },
    /// A 200 that is empty or is not JSON where JSON is due.
    EmptyOrNotJson,
    /// Committed: the first event, or the whole answer, is good.
    Ok,
    /// Whatever went wrong after the first event went out, a timer included.
    BrokenOff,
    /// Nobody waits for it any more: the client went away, or another attempt was faster.
    Cancelled,
}

/// What an outcome comes to. The first column of the table of outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Committed.
    Ok,
    /// The target failed: the next one.
    TargetFailed,
    /// The key is rate limited at this target: the next one.
    RateLimited,
    /// The key is refused or has no money left: the next one.
    KeyRefused,
    /// The prompt does not fit: a larger window, else it is returned.
    ContextLength,
    /// The request is at fault: returned as it is.
    BadRequest,
    /// Broken off after the first event: no retry.
    BrokenOff,
    /// Nobody's fault.
    Cancelled,
}

/// Who answers for an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blame {
    /// Nobody.
    Nobody,
    /// The target.
    Target,
    /// The key that paid.
    Key,
    /// The caller.
    Caller,
}

impl Class {
    /// Who answers for it.
    pub const fn blame(self) -> Blame {
        match self {
            Class::Ok | Class::Cancelled => Blame::Nobody,
            Class::TargetFailed | Class::BrokenOff => Blame::Target,
            Class::RateLimited | Class::KeyRefused => Blame::Key,
            Class::ContextLength | Class::BadRequest => Blame::Caller,
        }
    }

    /// Its name in logs and in the `outcome` label of metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Ok => "ok",
            Class::TargetFailed => "target_failed",
            Class::RateLimited => "rate_limited",
            Class::KeyRefused => "key_refused",
            Class::ContextLength => "context_length",
            Class::BadRequest => "bad_request",
            Class::BrokenOff => "broken_off",
            Class::Cancelled => "cancelled",
        }
    }
}

impl Outcome<'_> {
    /// Its class.
    pub fn class(&self) -> Class {
        match *self {
            Outcome::Ok => Class::Ok,
            Outcome::BrokenOff | Outcome::Timeout(TimeoutPhase::BetweenEvents) => Class::BrokenOff,
            Outcome::Cancelled => Class::Cancelled,
            Outcome::Connect | Outcome::Tls | Outcome::Reset | Outcome::EmptyOrNotJson => Class::TargetFailed,
            Outcome::Timeout(TimeoutPhase::Connect | TimeoutPhase::FirstEvent | TimeoutPhase::Total) => Class::TargetFailed,
            Outcome::Status { code, error_code, message, .. } => classify(code, error_code, message),
            Outcome::ErrorFirstEvent { error_code, message } => classify_event(error_code, message),
        }
    }

    /// Whether a refused key was refused for want of money rather than for what it is.
    pub fn is_about_money(&self) -> bool {
        match *self {
            Outcome::Status { code: 402, .. } => true,
            Outcome::Status { error_code, message, .. } | Outcome::ErrorFirstEvent { error_code, message } => {
                lacks_money(error_code, message)
            }
            _ => false,
        }
    }

    /// No first event in time: the difference between 504 and 502 when nothing is left to try.
    pub const fn is_too_late(&self) -> bool {
        matches!(self, Outcome::Timeout(TimeoutPhase::FirstEvent | TimeoutPhase::Total))
    }
}

/// Codes and types that say the account behind the key has no money left.
/// OpenAI sends `insufficient_quota` with 429, Anthropic `billing_error`; DeepSeek answers 402.
/// https://platform.openai.com/docs/guides/error-codes, https://docs.anthropic.com/en/api/errors
const MONEY_CODES: &[&str] =
    &["insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_error", "insufficient_balance"];

/// A message of the same meaning with a general code: Anthropic's 400 `invalid_request_error`.
const MONEY_MESSAGES: &[&str] = &["credit balance is too low"];

/// Codes and types that say the key itself is not accepted.
const AUTH_CODES: &[&str] = &["invalid_api_key", "authentication_error", "account_deactivated"];

/// A message of the same meaning with a general code: Gemini's 400 `INVALID_ARGUMENT`.
const AUTH_MESSAGES: &[&str] = &["api key not valid"];

/// Codes of a prompt that does not fit.
const CONTEXT_CODES: &[&str] = &["context_length_exceeded", "context_window_exceeded", "model_max_prompt_tokens_exceeded"];

/// Messages of the same meaning that come with a general code: Anthropic, vLLM and most that speak OpenAI's dialect,
/// Gemini, llama.cpp's server.
const CONTEXT_MESSAGES: &[&str] = &[
    "prompt is too long",
    "maximum context length",
    "exceeds the maximum number of tokens",
    "exceed context limit",
    "exceeds the available context size",
];

/// Codes of a rate limit inside an answer that began with 200.
const RATE_CODES: &[&str] = &["rate_limit_exceeded", "rate_limit_error", "429"];

/// The most of a message that is searched; providers put the reason first, and a body is the upstream's to size.
const MESSAGE_SEARCHED: usize = 1024;

/// The class of an HTTP status with its error code and message.
pub fn classify(status: u16, error_code: &str, message: &str) -> Class {
    match status {
        200..300 => Class::Ok,
        401..404 => Class::KeyRefused,
        408 | 500.. => Class::TargetFailed,
        400..500 if blames_key(error_code, message) => Class::KeyRefused,
        429 => Class::RateLimited,
        400..500 if is_any(error_code, CONTEXT_CODES) || says(message, CONTEXT_MESSAGES) => Class::ContextLength,
        400..500 => Class::BadRequest,
        // A redirect or an interim status is not an answer; redirects are not followed.
        _ => Class::TargetFailed,
    }
}

/// The class of an error as first event. The target is blamed unless the code says plainly that it is the key or the
/// prompt: a caller's long prompt must not cool a target down for the others.
fn classify_event(error_code: &str, message: &str) -> Class {
    if blames_key(error_code, message) {
        Class::KeyRefused
    } else if is_any(error_code, CONTEXT_CODES) || says(message, CONTEXT_MESSAGES) {
        Class::ContextLength
    } else if is_any(error_code, RATE_CODES) {
        Class::RateLimited
    } else {
        Class::TargetFailed
    }
}

fn blames_key(error_code: &str, message: &str) -> bool {
    lacks_money(error_code, message) || is_any(error_code, AUTH_CODES) || says(message, AUTH_MESSAGES)
}

fn lacks_money(error_code: &str, message: &str) -> bool {
    is_any(error_code, MONEY_CODES) || says(message, MONEY_MESSAGES)
}

fn is_any(code: &str, list: &[&str]) -> bool {
    list.iter().any(|entry| entry.eq_ignore_ascii_case(code))
}

/// Whether the message holds one of the phrases (lower case), whatever its own case.
fn says(message: &str, phrases: &[&str]) -> bool {
    let message = &message.as_bytes()[..message.len().min(MESSAGE_SEARCHED)];
    phrases.iter().any(|phrase| message.windows(phrase.len()).any(|window| window.eq_ignore_ascii_case(phrase.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        let check = |status, code, message, expected| assert_eq!(classify(status, code, message), expected, "{status} {code} {message}");
        for status in [408, 500, 501, 502, 503, 504, 520, 529, 599, 301, 307, 101] {
            check(status, "", "", Class::TargetFailed);
        }
        for status in [401, 402, 403] {
            check(status, "", "", Class::KeyRefused);
            check(status, "context_length_exceeded", "", Class::KeyRefused);
        }
        for status in [400, 404, 405, 409, 413, 415, 422, 425, 451, 499] {
            check(status, "", "", Class::BadRequest);
            check(status, "insufficient_quota", "", Class::KeyRefused);
            check(status, "context_length_exceeded", "", Class::ContextLength);
        }
        check(200, "", "", Class::Ok);
        check(429, "rate_limit_exceeded", "Rate limit reached for gpt-4o", Class::RateLimited);
        check(429, "", "", Class::RateLimited);
        check(429, "insufficient_quota", "You exceeded your current quota", Class::KeyRefused);
        check(400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum", Class::ContextLength);
        check(400, "400", "This model's MAXIMUM CONTEXT LENGTH is 4096 tokens.", Class::ContextLength);
        check(400, "invalid_request_error", "Your credit balance is too low to access the API.", Class::KeyRefused);
        check(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", Class::KeyRefused);
        check(400, "invalid_request_error", "max_tokens: must be positive", Class::BadRequest);
        // A server that is failing is failing, whatever it says.
        check(500, "context_length_exceeded", "", Class::TargetFailed);
        // A phrase beyond the searched part is not found, nor does a cut character disturb.
        check(400, "", &format!("{}prompt is too long", "é".repeat(600)), Class::BadRequest);
    }

    #[test]
    fn first_events() {
        let check =
            |code, message, expected| assert_eq!(Outcome::ErrorFirstEvent { error_code: code, message }.class(), expected, "{code}");
        check("overloaded_error", "Overloaded", Class::TargetFailed);
        check("server_error", "", Class::TargetFailed);
        check("", "", Class::TargetFailed);
        check("rate_limit_exceeded", "", Class::RateLimited);
        check("insufficient_quota", "", Class::KeyRefused);
        check("context_length_exceeded", "", Class::ContextLength);
    }
}
