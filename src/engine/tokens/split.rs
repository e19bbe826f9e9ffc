//! From a text to pieces: no token crosses from one piece to the next.
//!
//! The patterns are tiktoken's (`tiktoken_ext/openai_public.py`, 0.14.0) without what a linear-time engine does not have. Possessive
//! repeats are plain ones: what follows them never matches what they would give back. `\s+(?!\S)` is `\s+`, put right by [`piece_end`].

use super::Encoding;
use regex_automata::meta::{Cache, Regex};
use regex_automata::util::pool::Pool;
use regex_automata::{Anchored, Input};
use std::sync::OnceLock;

const O200K: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"|\s*[\r\n]+",
    r"|\s+",
);

const CL100K: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)",
    r"|[^\r\n\p{L}\p{N}]?\p{L}+",
    r"|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s+\z",
    r"|\s*[\r\n]",
    r"|\s+",
);

static O200K_SPLITTER: OnceLock<Option<Splitter>> = OnceLock::new();
static CL100K_SPLITTER: OnceLock<Option<Splitter>> = OnceLock::new();

/// A compiled pattern and the caches its searches need, one for each thread that counts at the same time.
struct Splitter {
    regex: Regex,
    caches: Pool<Cache, Box<dyn Fn() -> Cache + Send + Sync>>,
}

impl Splitter {
    fn of(encoding: Encoding) -> Option<&'static Splitter> {
        match encoding {
            Encoding::O200k => O200K_SPLITTER.get_or_init(|| Splitter::new(O200K)).as_ref(),
            Encoding::Cl100k => CL100K_SPLITTER.get_or_init(|| Splitter::new(CL100K)).as_ref(),
        }
    }

    /// None only for a pattern that is not one; the tests show that the two above are.
    fn new(pattern: &str) -> Option<Splitter> {
        let regex = Regex::new(pattern).ok()?;
        let for_cache = regex.clone();
        Some(Splitter { regex, caches: Pool::new(Box::new(move || for_cache.create_cache())) })
    }
}

/// Compiles the pattern if that was not done yet: a few milliseconds.
pub(super) fn prepare(encoding: Encoding) {
    Splitter::of(encoding);
}

/// Calls `piece` with each piece of a text, in order. Together they are the whole text: every character is in one of the pattern's classes.
pub(super) fn each_piece<'t>(encoding: Encoding, text: &'t str, mut piece: impl FnMut(&'t str)) {
    let Some(splitter) = Splitter::of(encoding) else { return piece(text) };
    let mut cache = splitter.caches.get();
    let mut start = 0;
    while start < text.len() {
        let input = Input::new(text).range(start..).anchored(Anchored::Yes);
        let matched = splitter.regex.search_half_with(&mut cache, &input).map_or(text.len(), |matched| matched.offset());
        let end = piece_end(text, start, matched);
        piece(&text[start..end]);
        start = end;
    }
}

/// Where the piece from `start` ends, given where the pattern's match ended.
///
/// Only `\s+` matches something that ends in white space other than a line break. There the true pattern leaves the last white space to
/// what follows, if something follows and this is not all.
fn piece_end(text: &str, start: usize, matched: usize) -> usize {
    if matched == text.len() {
        return matched;
    }
    match text[start..matched].char_indices().next_back() {
        Some((last, character)) if last > 0 && character.is_whitespace() && !matches!(character, '\r' | '\n') => start + last,
        _ => matched,
    }
}
