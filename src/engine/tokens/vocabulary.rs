//! A vocabulary in memory: which byte strings are tokens, and with which rank.
//!
//! The files are OpenAI's own, gzipped (see README.md beside this file). In memory a vocabulary is all tokens' bytes end to end, where
//! each begins, and a hash table of ranks: about 5 MB for `o200k_base`, a tenth of what a general map of byte vectors takes.

use super::Encoding;
use rustc_hash::FxHasher;
use std::hash::Hasher;
use std::io::Read;
use std::sync::OnceLock;

/// The rank of what is no token. Above every real rank, so a search for the lowest needs no other test.
pub(super) const NO_RANK: u32 = u32::MAX;

/// How many bits of a table slot hold the rank plus one; `o200k_base` has 199,998 ranks. The others hold a part of the hash, so that a
/// look-up of what is no token seldom has to compare bytes.
const RANK_BITS: u32 = 18;
const RANK_MASK: u32 = (1 << RANK_BITS) - 1;

static O200K: OnceLock<Vocabulary> = OnceLock::new();
static CL100K: OnceLock<Vocabulary> = OnceLock::new();

/// The tokens of one encoding.
pub(super) struct Vocabulary {
    /// Every token's bytes, by rank, end to end.
    bytes: Vec<u8>,
    /// Where the token of a rank begins in `bytes`; one more entry marks the end.
    starts: Vec<u32>,
    /// Open addressing, linear probing, at most half full. A slot is 0 when empty, else hash bits above rank plus one.
    slots: Vec<u32>,
    /// The ranks of the two-byte strings, by their value: every merge begins with these.
    pairs: Vec<u32>,
    /// The length of the longest token: no longer string needs a look-up.
    longest: usize,
}

impl Vocabulary {
    /// The vocabulary of an encoding, loaded on first use.
    pub(super) fn of(encoding: Encoding) -> &'static Vocabulary {
        match encoding {
            Encoding::O200k => O200K.get_or_init(|| Vocabulary::unpack(include_bytes!("o200k_base.tiktoken.gz"))),
            Encoding::Cl100k => CL100K.get_or_init(|| Vocabulary::unpack(include_bytes!("cl100k_base.tiktoken.gz"))),
        }
    }

    pub(super) fn is_loaded(encoding: Encoding) -> bool {
        match encoding {
            Encoding::O200k => O200K.get().is_some(),
            Encoding::Cl100k => CL100K.get().is_some(),
        }
    }

    /// The rank of a byte string, or [`NO_RANK`].
    pub(super) fn rank(&self, token: &[u8]) -> u32 {
        match *token {
            [first, second] => return self.pairs[usize::from(u16::from_be_bytes([first, second]))],
            _ if token.len() > self.longest => return NO_RANK,
            _ => {}
        }
        let (mut place, tag) = self.place(token);
        loop {
            let slot = self.slots[place];
            if slot == 0 {
                return NO_RANK;
            }
            if slot & !RANK_MASK == tag {
                let rank = (slot & RANK_MASK) - 1;
                if self.token(rank) == token {
                    return rank;
                }
            }
            place = (place + 1) & (self.slots.len() - 1);
        }
    }

    /// The bytes of a token. `rank` is one that [`Vocabulary::rank`] gave.
    fn token(&self, rank: u32) -> &[u8] {
        let rank = rank as usize;
        &self.bytes[self.starts[rank] as usize..self.starts[rank + 1] as usize]
    }

    /// Where to look for a token first, and the hash bits its slot carries.
    fn place(&self, token: &[u8]) -> (usize, u32) {
        let mut hasher = FxHasher::default();
        hasher.write(token);
        let hash = hasher.finish();
        (hash as usize & (self.slots.len() - 1), (hash >> 32) as u32 & !RANK_MASK)
    }

    /// Reads a gzipped `.tiktoken` file: one token a line, base64, a space, its rank; ranks run from 0 without a gap.
    ///
    /// The files are part of the program and the tests look at every token, so there is no error to report: a line that cannot be read
    /// ends the vocabulary there.
    fn unpack(gzipped: &[u8]) -> Vocabulary {
        let mut text = Vec::new();
        let _ = flate2::read::GzDecoder::new(gzipped).read_to_end(&mut text);
        let tokens = memchr::memchr_iter(b'\n', &text).count();
        let mut vocabulary = Vocabulary {
            bytes: Vec::with_capacity(text.len() / 2),
            starts: Vec::with_capacity(tokens + 1),
            slots: vec![0; (2 * tokens).next_power_of_two()],
            pairs: vec![NO_RANK; 1 << 16],
            longest: 0,
        };
        vocabulary.starts.push(0);
        for line in text.split(|byte| *byte == b'\n').take(tokens.min(RANK_MASK as usize)) {
            let start = vocabulary.bytes.len();
            let base64 = line.split(|byte| *byte == b' ').next().unwrap_or_default();
            if !decode_base64(base64, &mut vocabulary.bytes) {
                vocabulary.bytes.truncate(start);
                break;
            }
            vocabulary.add(start);
        }
        vocabulary.bytes.shrink_to_fit();
        vocabulary
    }

    /// Gives the token at the end of `bytes`, from `start` on, the next rank.
    fn add(&mut self, start: usize) {
        let rank = (self.starts.len() - 1) as u32;
        self.starts.push(self.bytes.len() as u32);
        let token = &self.bytes[start..];
        self.longest = self.longest.max(token.len());
        if let [first, second] = *token {
            self.pairs[usize::from(u16::from_be_bytes([first, second]))] = rank;
            return;
        }
        let (mut place, tag) = self.place(token);
        while self.slots[place] != 0 {
            place = (place + 1) & (self.slots.len() - 1);
        }
        self.slots[place] = tag | (rank + 1);
    }
}

/// Appends what standard base64 stands for. False when `text` is empty or not base64.
fn decode_base64(text: &[u8], decoded: &mut Vec<u8>) -> bool {
    let digits = text.len() - text.iter().rev().take_while(|byte| **byte == b'=').count();
    for group in text[..digits].chunks(4) {
        let mut value = 0_u32;
        for digit in group {
            let Some(bits) = base64_digit(*digit) else { return false };
            value = value << 6 | bits;
        }
        value <<= 6 * (4 - group.len());
        let bytes = value.to_be_bytes();
        decoded.extend_from_slice(&bytes[1..group.len()]);
    }
    digits > 0
}

fn base64_digit(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_found_under_its_rank() {
        for (encoding, tokens, bytes) in [(Encoding::O200k, 199_998, 1_397_670), (Encoding::Cl100k, 100_256, 643_830)] {
            let vocabulary = Vocabulary::of(encoding);
            assert_eq!((vocabulary.starts.len() - 1, vocabulary.bytes.len(), vocabulary.longest), (tokens, bytes, 128));
            for rank in 0..tokens as u32 {
                assert_eq!(vocabulary.rank(vocabulary.token(rank)), rank, "{encoding:?}");
            }
            for byte in 0..=255 {
                assert!(vocabulary.rank(&[byte]) < 256, "{encoding:?} {byte}");
            }
        }
    }

    #[test]
    fn base64() {
        for (text, expected) in
            [("IQ==", Some("!")), ("Rw", Some("G")), ("IGNvY29z", Some(" cocos")), ("", None), ("=", None), ("a*bc", None)]
        {
            let mut decoded = Vec::new();
            assert_eq!(decode_base64(text.as_bytes(), &mut decoded).then_some(decoded.as_slice()), expected.map(str::as_bytes), "{text}");
        }
    }

    #[test]
    fn a_broken_file_gives_a_short_vocabulary() {
        let vocabulary = Vocabulary::unpack(b"not gzip");
        assert_eq!(vocabulary.rank(b"a"), NO_RANK);
    }
}
