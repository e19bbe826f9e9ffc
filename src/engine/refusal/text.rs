//! What the caller reads: what is wrong and what to do. No upstream key, no internal address.

use super::{RateLimit, Refusal, UpstreamFailure};
use crate::engine::peek::{BadBody, Unsupported};
use std::fmt::{self, Formatter};
use std::sync::Arc;

/// A caller's own words are given back so far: enough to recognise them.
const MAX_ASKED_CHARS: usize = 100;

/// An upstream's message is given back so far: providers' own are shorter.
pub(super) const MAX_UPSTREAM_CHARS: usize = 500;

/// Names offered in a text.
const MAX_NAMES: usize = 5;

/// At most `max_chars` characters of `text`.
pub(super) fn clip(text: &str, max_chars: usize) -> &str {
    text.char_indices().nth(max_chars).map_or(text, |(at, _)| &text[..at])
}

pub(super) fn write(refusal: &Refusal, f: &mut Formatter<'_>) -> fmt::Result {
    match refusal {
        Refusal::BadBody(bad) => bad_body(bad, f),
        Refusal::BadHeader { name, expected } => write!(f, "The header {name} has a value that is not known here. Send {expected}."),
        Refusal::MediaType { expected } => write!(f, "This path takes a body of type {expected}. Set Content-Type and send that."),
        Refusal::KeyInQuery => {
            f.write_str("A key in the query string ends up in logs, so it is not accepted. Send it as 'Authorization: Bearer KEY', and replace this key.")
        }
        Refusal::UnknownLevel { asked, known } => {
            write!(f, "There is no power level '{}'.", clip(asked, MAX_ASKED_CHARS))?;
            offer(f, " Ask for ", known)
        }
        Refusal::CannotDo { model, lacks } => {
            write!(f, "The model '{}' cannot do what this request needs: {lacks}. Ask another model, or leave that out.", asked(model))
        }
        Refusal::NotSpoken { model, path } => write!(
            f,
            "The model '{}' is not served by a provider that speaks {path}. Ask it through a path its provider speaks (/v1/messages for Anthropic's, /v1/chat/completions for the others), or ask another model here.",
            asked(model)
        ),
        Refusal::ContextTooLong { model, tokens, window } => write!(
            f,
            "This model's maximum context length is {window} tokens. The request needs about {tokens} tokens of '{}'. Shorten the messages or lower the output cap.",
            asked(model)
        ),
        _ => caller(refusal, f),
    }
}

fn bad_body(bad: &BadBody, f: &mut Formatter<'_>) -> fmt::Result {
    match bad {
        BadBody::Json(at, expected) => {
            write!(f, "The body is not valid JSON: expected {expected} at byte {at}. Send a JSON object.")
        }
        BadBody::NotAnObject => f.write_str("The body must be a JSON object."),
        BadBody::NoModel => f.write_str("You must provide a model parameter: set 'model' to one of the names GET /v1/models lists."),
        BadBody::WrongType(field) => write!(f, "Invalid type for '{field}'. See the API reference for what it takes."),
        BadBody::Multipart(what) => write!(f, "The multipart/form-data body cannot be read: {what}."),
    }
}

/// Who calls and what they may.
fn caller(refusal: &Refusal, f: &mut Formatter<'_>) -> fmt::Result {
    match refusal {
        Refusal::OutputTooLong { model, most } => {
            write!(f, "The model '{}' writes {most} tokens at most. Ask for no more than that.", asked(model))
        }
        Refusal::Unsupported(Unsupported::OtherModels) => {
            f.write_str("The field 'models' is not taken: fallbacks are configured here. Name one model in 'model'.")
        }
        Refusal::Unsupported(Unsupported::Background) => {
            f.write_str("'background' is not taken: what such an answer costs is not known when it is given. Ask without it.")
        }
        Refusal::Unsupported(Unsupported::Misspelt(field)) => {
            write!(f, "Write '{field}' in lower case: servers differ in what else they take for it.")
        }
        Refusal::Invalid { what } => write!(f, "{what}."),
        Refusal::NoKey => {
            f.write_str("You did not provide an API key. Send it as 'Authorization: Bearer KEY' (or in x-api-key or api-key).")
        }
        Refusal::UnknownKey => f.write_str("Incorrect API key provided. Check that it is complete and has not been revoked."),
        Refusal::ExpiredKey => f.write_str("This API key has expired. Ask for a new one."),
        Refusal::BadToken(why) => write!(f, "The token is not accepted: {why}. Log in again and send the new one."),
        Refusal::CreditsUsedUp { upgrade_url } => {
            f.write_str("You have no credits left for a request of this size.")?;
            upgrade(f, "Add credits", upgrade_url)
        }
        Refusal::CapUsedUp { upgrade_url } => {
            f.write_str("This month's spending cap is reached.")?;
            upgrade(f, "Raise the cap or wait for next month", upgrade_url)
        }
        Refusal::CreditsRanOut { upgrade_url } => {
            f.write_str("Your credits ran out during this answer, so it was ended here; what you received is accounted.")?;
            upgrade(f, "Add credits", upgrade_url)
        }
        Refusal::ModelClosed { model, needs: Some(tier) } => {
            write!(f, "The model '{}' is not open to your tier: it needs the tier '{tier}'. GET /weir/v1/models lists yours.", asked(model))
        }
        Refusal::ModelClosed { model, needs: None } => {
            write!(f, "The model '{}' is not open to this key. GET /weir/v1/models lists those that are.", asked(model))
        }
        Refusal::LevelClosed { level } => {
            write!(f, "The power level '{}' is not open to this key. GET /weir/v1/me lists those that are.", asked(level))
        }
        Refusal::UnknownTier { tier } => {
            write!(f, "This key's tier '{}' does not exist any more. Ask for another tier or a new key.", asked(tier))
        }
        Refusal::PathClosed { path } => write!(f, "This key may not call {path}. Use a key whose scopes include it."),
        Refusal::ByokClosed => {
            f.write_str("Your tier does not include own provider keys. Leave the X-Weir-Byok header out or choose another tier.")
        }
        Refusal::ByokMissing { model, providers } => {
            write!(f, "X-Weir-Byok asks for your own provider key, and you have none for the model '{}'.", asked(model))?;
            if providers.is_empty() {
                return f.write_str(" Add one with POST /weir/v1/keys, or leave the header out.");
            }
            offer(f, " Add one with POST /weir/v1/keys for ", providers)
        }
        Refusal::ByokRefused(failure) => {
            write!(f, "Your own key at the provider '{}' was refused there", failure.provider)?;
            said(f, failure)?;
            write!(f, " Replace it with POST /weir/v1/keys, or send 'X-Weir-Byok: never' to use the platform's.")
        }
        Refusal::ByokBroke(failure) => {
            write!(f, "The account of your own key at the provider '{}' cannot pay", failure.provider)?;
            said(f, failure)?;
            write!(f, " Add credit there, or send 'X-Weir-Byok: never' to use the platform's.")
        }
        Refusal::BaseUrlClosed(why) => write!(f, "This base URL cannot be used: {why}."),
        Refusal::Unpriced { model } => {
            write!(f, "The model '{}' has no price, so a key with a budget may not use it. Ask another model.", asked(model))
        }
        Refusal::LevelLimits { level, limit } => {
            write!(
                f,
                "No model of the power level '{}' is inside its limits now ({limit}). Ask for another level or name a model.",
                asked(level)
            )
        }
        _ => request(refusal, f),
    }
}

/// What was asked for, and how.
fn request(refusal: &Refusal, f: &mut Formatter<'_>) -> fmt::Result {
    match refusal {
        Refusal::UnknownModel { asked, nearest } => {
            write!(f, "The model '{}' does not exist here or you do not have access to it.", clip(asked, MAX_ASKED_CHARS))?;
            offer(f, " Did you mean ", nearest)?;
            if nearest.is_empty() { f.write_str(" GET /v1/models lists yours.") } else { Ok(()) }
        }
        Refusal::UnknownPath => {
            f.write_str("There is no such path here. Inference is under /v1 (as /v1/chat/completions), self-service under /weir/v1.")
        }
        Refusal::WrongMethod { allow } => write!(f, "This path does not take this method. Use {allow}."),
        Refusal::NotFound { what } => write!(f, "You have no such {what}."),
        Refusal::BodyTooSlow => f.write_str("The request's body did not arrive in time. Send it again."),
        Refusal::Conflict { what, request_id } => write!(f, "This Idempotency-Key belongs to the request {request_id}: {what}."),
        Refusal::BodyTooLarge { limit_bytes } => {
            write!(f, "The request's body is larger than {limit_bytes} bytes. Send less, or links instead of inline files.")
        }
        Refusal::RateLimited { limit, allowed, retry_after_ms } => {
            let what = match limit {
                RateLimit::RequestsPerMinute => "requests per minute",
                RateLimit::TokensPerMinute => "tokens per minute",
                RateLimit::RequestsPerDay => "requests per day",
                RateLimit::TokensPerDay => "tokens per day",
                RateLimit::Concurrent => "requests at the same time",
            };
            write!(f, "Rate limit reached: {allowed} {what}. Please try again in {}.", Wait(*retry_after_ms))
        }
        _ => upstream(refusal, f),
    }
}

/// What happened behind us.
fn upstream(refusal: &Refusal, f: &mut Formatter<'_>) -> fmt::Result {
    match refusal {
        Refusal::AttemptsFailed { attempts, last, .. } => {
            let tries = if *attempts == 1 { "The only attempt" } else { "Every attempt" };
            write!(f, "{tries} to get an answer failed ({attempts} made); the last was at the provider '{}'", last.provider)?;
            said(f, last)?;
            f.write_str(" Try again, or ask another model.")
        }
        Refusal::StreamBroken(failure) => {
            write!(f, "The provider '{}' broke off in the middle of this answer", failure.provider)?;
            said(f, failure)?;
            f.write_str(" What you received is incomplete; ask again.")
        }
        Refusal::NoFirstEvent { provider, attempts } => {
            write!(f, "No provider began to answer in time ({attempts} asked, the last was '{provider}'). Try again, or ask another model.")
        }
        Refusal::NoTarget { model, retry_after_ms } => {
            write!(f, "No provider of the model '{}' is available now. Please try again in {}.", asked(model), Wait(*retry_after_ms))
        }
        Refusal::NoPayer { model } => {
            write!(
                f,
                "There is no provider key that could serve the model '{}'. Add your own with POST /weir/v1/keys, or ask another model.",
                asked(model)
            )
        }
        Refusal::Draining => f.write_str("This server is going down. Connect again."),
        Refusal::Overloaded { retry_after_ms } => {
            write!(f, "Too many requests are in flight. Please try again in {}.", Wait(*retry_after_ms))
        }
        Refusal::LedgerStopped { retry_after_ms } => {
            write!(f, "The account cannot be kept right now, so nothing is served. Please try again in {}.", Wait(*retry_after_ms))
        }
        Refusal::Policy { status } => {
            write!(f, "A rule of this gateway's operator refuses this request (status {status}). Ask the operator what it allows.")
        }
        Refusal::PolicyFailed => {
            f.write_str("A rule of this gateway's operator failed, so this request was not served. Tell the operator its request id.")
        }
        _ => f.write_str("Something went wrong here; it is not your request's fault. Try again."),
    }
}

fn asked(model: &str) -> &str {
    clip(model, MAX_ASKED_CHARS)
}

/// ` (status 500): what it said.`
fn said(f: &mut Formatter<'_>, failure: &UpstreamFailure) -> fmt::Result {
    if let Some(status) = failure.status {
        write!(f, " (status {status})")?;
    }
    match failure.message.trim_end_matches('.') {
        "" => f.write_str("."),
        message => write!(f, ": {message}."),
    }
}

fn upgrade(f: &mut Formatter<'_>, what: &str, url: &Option<Arc<str>>) -> fmt::Result {
    match url {
        Some(url) => write!(f, " {what}: {url}"),
        None => write!(f, " {what}."),
    }
}

/// `Did you mean 'a', 'b' or 'c'?`; nothing without names.
fn offer(f: &mut Formatter<'_>, lead: &str, names: &[Arc<str>]) -> fmt::Result {
    let names = &names[..names.len().min(MAX_NAMES)];
    let Some((last, before)) = names.split_last() else { return Ok(()) };
    f.write_str(lead)?;
    for (place, name) in before.iter().enumerate() {
        write!(f, "{}'{name}'", if place == 0 { "" } else { ", " })?;
    }
    write!(f, "{}'{last}'{}", if before.is_empty() { "" } else { " or " }, if lead.contains("mean") { "?" } else { "." })
}

/// Milliseconds as a person would say them.
struct Wait(u64);

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms @ 0..1_000 => write!(f, "{ms}ms"),
            ms @ 1_000..120_000 => write!(f, "{}s", ms.div_ceil(1_000)),
            ms => write!(f, "{}m", ms.div_ceil(60_000)),
        }
    }
}
