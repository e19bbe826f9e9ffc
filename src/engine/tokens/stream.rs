//! Counting text that arrives in parts, without keeping it all.
//!
//! What is still to come can change where the last pieces end: "don" and "'" become "don't", and white space leaves its last character to
//! a word. It never changes more than the last two. So text is held until there is some of it, then all pieces but the last
//! two are counted and dropped. So it is when somebody asks for the count, too, which then costs what has come since and those two.

use super::vocabulary::Vocabulary;
use super::{Family, count_plain, merge, split};

/// Text held before it is looked at, in bytes. Less would look at the same text more often, more is memory for every open stream; most
/// answers end before it.
const SCAN_AT_BYTES: usize = 4 << 10;

/// The most text held, in bytes. Two pieces longer than this (no text for people has them: white space, one letter over and over) are
/// counted as if the text ended here, which can cost a token for each such cut.
const MAX_OPEN_BYTES: usize = 64 << 10;

/// How many pieces at the end of a text can still change.
const OPEN_PIECES: usize = 2;

/// Counts text that arrives in pieces; equal to counting the whole.
///
/// Bytes that are not UTF-8 count as the replacement character, as [`String::from_utf8_lossy`] puts it. Holds at most 64 KiB of text,
/// seldom more than 4.
#[derive(Debug)]
pub struct Stream {
    family: Family,
    /// Text not counted yet.
    text: Vec<u8>,
    /// The length of `text` at which it is looked at next.
    scan_at_bytes: usize,
    counted: u64,
}

impl Stream {
    /// A new count. Allocates nothing until text comes.
    pub fn new(family: Family) -> Stream {
        Stream { family, text: Vec::new(), scan_at_bytes: SCAN_AT_BYTES, counted: 0 }
    }

    /// Whether the vocabulary it counts with is in memory; [`Stream::finish`] loads it otherwise.
    pub fn is_loaded(&self) -> bool {
        super::is_loaded(self.family.encoding)
    }

    /// Appends text (UTF-8, possibly cut inside a character).
    pub fn push(&mut self, text: &[u8]) {
        let mut rest = text;
        while self.text.len() + rest.len() >= self.scan_at_bytes {
            let (now, later) = rest.split_at(self.scan_at_bytes.saturating_sub(self.text.len()).min(rest.len()));
            self.text.extend_from_slice(now);
            rest = later;
            self.scan();
        }
        self.text.extend_from_slice(rest);
    }

    /// All tokens so far, the open end included. More text may follow: what can no longer change is counted once, however often
    /// this is asked.
    pub fn finish(&mut self) -> u64 {
        if !self.text.is_empty() {
            self.scan();
        }
        let open = match self.text.is_empty() {
            true => 0,
            false => count_plain(self.family.encoding, &String::from_utf8_lossy(&self.text)),
        };
        self.family.corrected(self.counted + open)
    }

    /// Memory held for text.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.text.capacity()
    }

    /// Counts and drops what can no longer change.
    fn scan(&mut self) {
        let whole_bytes = self.make_valid();
        let text = str::from_utf8(&self.text[..whole_bytes]).unwrap_or_default();
        let vocabulary = Vocabulary::of(self.family.encoding);
        // The last pieces wait in a queue of two; what falls out of it is closed.
        let mut open: [&str; OPEN_PIECES] = [""; OPEN_PIECES];
        let mut closed_tokens = 0;
        let mut closed_bytes = 0;
        split::each_piece(self.family.encoding, text, |piece| {
            let closed = open[0];
            open.rotate_left(1);
            open[OPEN_PIECES - 1] = piece;
            if !closed.is_empty() {
                closed_tokens += merge::count(vocabulary, closed.as_bytes());
                closed_bytes += closed.len();
            }
        });
        if whole_bytes - closed_bytes >= MAX_OPEN_BYTES {
            closed_tokens +=
                open.iter().filter(|piece| !piece.is_empty()).map(|piece| merge::count(vocabulary, piece.as_bytes())).sum::<u64>();
            closed_bytes = whole_bytes;
        }
        self.counted += closed_tokens;
        self.text.drain(..closed_bytes);
        // Twice what is left, so that a long piece is not looked at again for every byte that it grows.
        self.scan_at_bytes = (2 * self.text.len()).clamp(SCAN_AT_BYTES, MAX_OPEN_BYTES + MAX_CUT_BYTES);
    }

    /// Replaces what is not UTF-8, but for a character that may be merely cut at the end; returns how much comes before that.
    fn make_valid(&mut self) -> usize {
        let error = match str::from_utf8(&self.text) {
            Ok(text) => return text.len(),
            Err(error) => error,
        };
        if error.error_len().is_none() {
            return error.valid_up_to();
        }
        let cut_bytes = cut_character_bytes(&self.text);
        let whole_bytes = self.text.len() - cut_bytes;
        let cut = self.text[whole_bytes..].to_vec();
        self.text = String::from_utf8_lossy(&self.text[..whole_bytes]).into_owned().into_bytes();
        let whole_bytes = self.text.len();
        self.text.extend_from_slice(&cut);
        whole_bytes
    }
}

/// The most bytes of a character that is not complete.
const MAX_CUT_BYTES: usize = 3;

/// How many bytes at the end of `text` begin a character that may still be completed.
fn cut_character_bytes(text: &[u8]) -> usize {
    let is_cut = |bytes: &usize| {
        str::from_utf8(&text[text.len() - bytes..]).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (1..=MAX_CUT_BYTES.min(text.len())).find(is_cut).unwrap_or(0)
}
