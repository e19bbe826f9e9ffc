//! Takes out of a text whatever could be a key, before it is shown or logged.
//!
//! Three rules, each enough by itself: what begins as known keys do; what follows `Bearer`, `key=` and the like; and any run of
//! 20 or more key characters that does not read as words (so that `claude-3-5-sonnet-20241022` survives and a hash does not).
//! [`scrub_known`] also takes out the very key that was sent, in whole or in part. Tenet 1 outranks a readable message: what
//! is in doubt goes.

use std::borrow::Cow;

/// What stands in the place of what was taken out.
const MASK: &str = "***";

/// A text is cut here: nothing legitimate that is scrubbed is longer, and the work is bounded.
const MAX_BYTES: usize = 4096;

/// The shortest run that could be a key by its looks alone (the shortest provider keys have 32 characters, halves of them 16).
const MIN_RUN_BYTES: usize = 20;

/// The contract: no 8 characters in a row of a secret are shown.
const MIN_SHARED_BYTES: usize = 8;

/// A shorter secret is a placeholder (`none`), and taking it out would take words out.
const MIN_SECRET_BYTES: usize = 6;

/// What known keys begin with.
const KEY_PREFIXES: &[&str] = &[
    "sk-",
    "sk_",
    "gsk_",
    "AIza",
    "wk_",
    "tgp_v1_",
    "xai-",
    "hf_",
    "nvapi-",
    "pplx-",
    "r8_",
    "AKIA",
    "ASIA",
    "ghp_",
    "gho_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "ya29.",
    "eyJ",
    "rk_live_",
    "pk_live_",
];

/// What a secret stands behind, lower case; the following run is taken out whatever it looks like.
const LEADS: &[&str] = &["bearer ", "basic ", "key=", "token=", "secret=", "password=", "api-key: ", "api_key: ", "apikey: "];

/// `text` without anything that looks like a key, without control characters, and at most 4 KiB long.
pub fn scrub(text: &str) -> String {
    scrub_known(text, "")
}

/// As [`scrub`], and without any 8 characters in a row of `secret`.
pub fn scrub_known(text: &str, secret: &str) -> String {
    let text = without_shared(cut(text), secret);
    let text = &*text;
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let run = rest.bytes().take_while(|byte| is_key_byte(*byte)).count();
        if run == 0 {
            // Everything up to the next run is copied, but for control characters: one would forge a log line.
            let plain = rest.bytes().take_while(|byte| !is_key_byte(*byte)).count();
            out.extend(rest[..plain].chars().map(|char| if char.is_control() { ' ' } else { char }));
            rest = &rest[plain..];
            continue;
        }
        let (word, after) = rest.split_at(run);
        let before = &text[..text.len() - rest.len()];
        push_run(word, before, &mut out);
        rest = after;
    }
    out
}

/// One run of key characters, or its mask.
fn push_run(word: &str, before: &str, out: &mut String) {
    if follows_lead(before) {
        return out.push_str(MASK);
    }
    // `key=VALUE` is one run, for base64 ends in `=`.
    if let Some(at) = lead_inside(word) {
        out.push_str(&word[..at]);
        return out.push_str(MASK);
    }
    if let Some(at) = prefix_inside(word) {
        out.push_str(&word[..at]);
        return out.push_str(MASK);
    }
    if looks_random(word) {
        return out.push_str(MASK);
    }
    out.push_str(word);
}

fn cut(text: &str) -> &str {
    if text.len() <= MAX_BYTES {
        return text;
    }
    let mut end = MAX_BYTES;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Characters of keys, base64, base64url, hex, JWTs, and the stars providers mask with.
fn is_key_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'+' | b'/' | b'=' | b'~' | b'*')
}

fn follows_lead(before: &str) -> bool {
    LEADS.iter().filter(|lead| lead.ends_with(' ')).any(|lead| ends_with_ignoring_case(before, lead))
}

fn ends_with_ignoring_case(text: &str, end: &str) -> bool {
    text.len() >= end.len() && text.as_bytes()[text.len() - end.len()..].eq_ignore_ascii_case(end.as_bytes())
}

/// Where the value behind a lead inside the run begins; `None`: there is none, or nothing behind it.
fn lead_inside(word: &str) -> Option<usize> {
    let bytes = word.as_bytes();
    LEADS.iter().filter(|lead| lead.ends_with('=')).find_map(|lead| {
        let at = bytes.windows(lead.len()).position(|window| window.eq_ignore_ascii_case(lead.as_bytes()))?;
        (at + lead.len() < bytes.len()).then_some(at + lead.len())
    })
}

/// Where a known key begins in the run: at its start or behind a character no key has inside a word.
fn prefix_inside(word: &str) -> Option<usize> {
    KEY_PREFIXES
        .iter()
        .filter_map(|prefix| {
            word.match_indices(prefix).map(|(at, _)| at).find(|at| {
                (*at == 0 || !word.as_bytes()[at - 1].is_ascii_alphanumeric()) && word.len() - at >= prefix.len() + MIN_PREFIXED_BYTES
            })
        })
        .min()
}

/// What must stand behind a prefix to be a key and not a word (`sk-learn`, `hf_hub`).
const MIN_PREFIXED_BYTES: usize = 6;

/// A long run with a part that is no word, number or version.
fn looks_random(word: &str) -> bool {
    word.len() >= MIN_RUN_BYTES && word.split(['-', '_', '.', '/', '=', '+', '~', '*']).any(|part| !reads_as_word(part))
}

fn reads_as_word(part: &str) -> bool {
    let bytes = part.as_bytes();
    let letters = |bytes: &[u8]| bytes.iter().all(u8::is_ascii_lowercase);
    bytes.len() <= 4
        || (bytes.len() <= 8 && bytes.iter().all(u8::is_ascii_digit))
        || (bytes.len() < MIN_RUN_BYTES && (letters(bytes) || letters(&bytes[1..]) || bytes.iter().all(u8::is_ascii_uppercase)))
}

/// `text` with every stretch that shares 8 bytes in a row with the secret masked.
fn without_shared<'t>(text: &'t str, secret: &str) -> Cow<'t, str> {
    let length = secret.len().min(MIN_SHARED_BYTES);
    if length < MIN_SECRET_BYTES {
        return Cow::Borrowed(text);
    }
    let mut out = String::new();
    // `copied` is where the text behind the last mask begins, `masked` where the stretch being masked ends.
    let (mut copied, mut masked) = (0, None);
    for (at, window) in text.as_bytes().windows(length).enumerate() {
        if memchr::memmem::find(secret.as_bytes(), window).is_none() {
            continue;
        }
        match masked {
            Some(end) if at <= end => {}
            end => {
                copied = end.map_or(copied, |end| text.ceil_char_boundary(end));
                out.push_str(&text[copied..text.floor_char_boundary(at).max(copied)]);
                out.push_str(MASK);
            }
        }
        masked = Some(at + length);
    }
    match masked {
        None => Cow::Borrowed(text),
        Some(end) => Cow::Owned(out + &text[text.ceil_char_boundary(end)..]),
    }
}
