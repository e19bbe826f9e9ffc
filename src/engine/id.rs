//! Request ids: ULIDs. They sort by time, so that a ledger keyed by them is written in order, and they say when a request
//! began without a look-up. Time and randomness are arguments.
//!
//! Layout and alphabet: <https://github.com/ulid/spec>. Monotonicity within a millisecond is deliberately absent: 80 random
//! bits make ids unique, and nothing here relies on their order inside a millisecond.

use std::fmt;
use std::str::FromStr;

/// Crockford's base 32: no I, L, O, U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Characters of an id: 128 bits in groups of five, the first group holding three.
pub const TEXT_LEN: usize = 26;

/// A 128-bit ULID: 48 bits of milliseconds since the Unix epoch, then 80 random bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u128);

/// An id's 26 characters, on the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdText([u8; TEXT_LEN]);

/// A text that is no request id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadId;

impl RequestId {
    /// An id made at `now_ms` from the low 80 bits of `random`. Times behind the year 10889 keep their low 48 bits.
    pub const fn new(now_ms: u64, random: u128) -> RequestId {
        RequestId(((now_ms as u128 & ((1 << 48) - 1)) << 80) | (random & ((1 << 80) - 1)))
    }

    /// The id of 16 big-endian bytes, as a row stores it.
    pub const fn from_bytes(bytes: [u8; 16]) -> RequestId {
        RequestId(u128::from_be_bytes(bytes))
    }

    /// 16 big-endian bytes; they sort as the ids do.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// When the id was made, milliseconds since the Unix epoch.
    pub const fn made_at_ms(self) -> u64 {
        (self.0 >> 80) as u64
    }

    /// The 26 characters, without an allocation.
    pub fn text(self) -> IdText {
        let mut text = [0; TEXT_LEN];
        let mut rest = self.0;
        for place in text.iter_mut().rev() {
            *place = ALPHABET[(rest & 31) as usize];
            rest >>= 5;
        }
        IdText(text)
    }

    /// Reads 26 characters, in either case; `I` and `L` read as 1 and `O` as 0, as Crockford has it.
    pub fn parse(text: &str) -> Result<RequestId, BadId> {
        let bytes = text.as_bytes();
        // The first character holds three bits: above '7' the value would not fit 128.
        if bytes.len() != TEXT_LEN || !(b'0'..=b'7').contains(&bytes[0]) {
            return Err(BadId);
        }
        bytes.iter().try_fold(0u128, |id, byte| digit(*byte).map(|digit| (id << 5) | u128::from(digit))).map(RequestId).ok_or(BadId)
    }
}

impl IdText {
    /// The characters.
    pub fn as_str(&self) -> &str {
        // Every byte comes from ALPHABET, which is ASCII, so the fallback is never taken.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text().as_str())
    }
}

impl fmt::Display for IdText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for RequestId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<RequestId, BadId> {
        RequestId::parse(text)
    }
}

impl fmt::Display for BadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request id is 26 characters of Crockford's base 32")
    }
}

impl std::error::Error for BadId {}

fn digit(byte: u8) -> Option<u8> {
    let byte = match byte.to_ascii_uppercase() {
        b'I' | b'L' => b'1',
        b'O' => b'0',
        other => other,
    };
    ALPHABET.iter().position(|known| *known == byte).map(|place| place as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_the_specification_s() {
        // The specification's example; its time part is 01ARZ3NDEK in base 32.
        assert_eq!(RequestId::parse("01ARZ3NDEKTSV4RRFFQ69G5FAV").map(RequestId::made_at_ms), Ok(1_469_922_850_259));
        assert_eq!(RequestId::new(0, 0).to_string(), "00000000000000000000000000");
        assert_eq!(RequestId::new(u64::MAX, u128::MAX).to_string(), "7ZZZZZZZZZZZZZZZZZZZZZZZZZ");
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (now_ms, random) in [(0, 1), (1_763_769_600_000, 0x1234_5678_9abc_def0_1234), ((1 << 48) - 1, u128::MAX >> 48)] {
            let id = RequestId::new(now_ms, random);
            assert_eq!(RequestId::parse(id.text().as_str()), Ok(id));
            assert_eq!(RequestId::parse(&id.to_string().to_lowercase()), Ok(id));
            assert_eq!(RequestId::from_bytes(id.to_bytes()), id);
            assert_eq!(id.made_at_ms(), now_ms);
        }
    }

    #[test]
    fn later_ids_sort_later_as_text_too() {
        let (early, late) = (RequestId::new(5, u128::MAX), RequestId::new(6, 0));
        assert!(early < late && early.to_string() < late.to_string() && early.to_bytes() < late.to_bytes());
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "01ARZ3NDEKTSV4RRFFQ69G5FA",
            "01ARZ3NDEKTSV4RRFFQ69G5FAVV",
            "81ARZ3NDEKTSV4RRFFQ69G5FAV",
            "01ARZ3NDEKTSV4RRFFQ69G5FAU",
            "01ARZ3NDEKTSV4RRFFQ69G5Fé",
        ] {
            assert_eq!(RequestId::parse(text), Err(BadId), "{text}");
        }
    }
}
