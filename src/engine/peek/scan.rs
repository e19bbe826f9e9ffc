//! JSON tokens of a byte slice (RFC 8259): strict, without copies, strings skipped by vectors.

use super::BadBody;
use crate::engine::vector::{BLOCK_BYTES, Block, escaped, short_string};
use fearless_simd::{Level, Simd, dispatch};
use std::ops::Range;

/// Objects and arrays open at once. The bound of serde_json, so that whatever reads the body later agrees on what is readable;
/// deeper bodies are refused.
pub const DEPTH_MAX: usize = 127;

/// A string's place between its quotes, and its length in bytes once unescaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text {
    pub start: usize,
    pub end: usize,
    pub len: usize,
}

/// A cursor over a body. After an error its position means nothing.
#[derive(Debug)]
pub struct Scanner<'a> {
    body: &'a [u8],
    at: usize,
}

/// What a block of a string has.
#[derive(Debug, Clone, Copy)]
struct Stops {
    /// Quotes that end it.
    ends: u64,
    /// Bytes behind a backslash, up to the first of `ends`.
    escaped: u64,
    /// Of these the ones that may stand for another number of bytes than one, or for nothing.
    others: u64,
}

impl Stops {
    /// `carried`: see [`escaped`].
    #[inline(always)]
    fn of<S: Simd>(block: Block<S>, carried: &mut u64) -> Stops {
        let (quotes, backslashes) = (block.equal(b'"'), block.equal(b'\\'));
        if backslashes | *carried == 0 {
            return Stops { ends: quotes, escaped: 0, others: 0 };
        }
        let escaped = escaped(backslashes, carried);
        let ends = quotes & !escaped;
        // All bits up to the lowest of `ends`.
        let escaped = escaped & (ends ^ ends.wrapping_sub(1));
        Stops { ends, escaped, others: escaped & !(quotes | block.is_escapable()) }
    }
}

/// Before this place of a body a block has not all of what [`Block::utf8_errors`] asks for.
const INNER_FROM: usize = 3;

/// The block at `at` with the three bytes before it. `None`: they are not all inside the body.
#[inline(always)]
fn inner(body: &[u8], at: usize) -> Option<&[u8; INNER_FROM + BLOCK_BYTES]> {
    body.get(at.checked_sub(INNER_FROM)?..)?.first_chunk()
}

impl Text {
    /// No escape is in it. (Each escape is longer than what it stands for.)
    pub fn is_plain(self) -> bool {
        self.end - self.start == self.len
    }
}

impl<'a> Scanner<'a> {
    pub fn new(body: &'a [u8]) -> Scanner<'a> {
        Scanner { body, at: 0 }
    }

    pub fn at(&self) -> usize {
        self.at
    }

    pub fn slice(&self, range: Range<usize>) -> &'a [u8] {
        &self.body[range]
    }

    /// The next byte that is not whitespace, not taken.
    #[inline]
    pub fn peek(&mut self) -> Option<u8> {
        loop {
            match self.body.get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                other => return other.copied(),
            }
        }
    }

    /// Takes the byte `peek` showed.
    #[inline]
    pub fn bump(&mut self) {
        self.at += 1;
    }

    /// Takes `bytes`, if they are here.
    #[inline]
    pub fn take(&mut self, bytes: &[u8]) -> bool {
        let is_here = self.body[self.at..].starts_with(bytes);
        if is_here {
            self.at += bytes.len();
        }
        is_here
    }

    /// To a place where the cursor was before.
    pub fn go_back(&mut self, at: usize) {
        self.at = at;
    }

    pub fn fail<T>(&self, expected: &'static str) -> Result<T, BadBody> {
        Err(BadBody::Json(self.at, expected))
    }

    /// Behind an opening bracket: whether anything is inside. Takes the closing one if not.
    #[inline]
    pub fn is_inhabited(&mut self, close: u8) -> Result<bool, BadBody> {
        if self.peek() == Some(close) {
            self.at += 1;
            return Ok(false);
        }
        Ok(true)
    }

    /// Behind a member or an element: whether another follows. Takes the comma or the closing bracket.
    #[inline]
    pub fn has_more(&mut self, close: u8) -> Result<bool, BadBody> {
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            _ => self.fail(if close == b'}' { "a comma or a closing brace" } else { "a comma or a closing bracket" }),
        }
    }

    /// A member's name and its colon.
    #[inline]
    pub fn key(&mut self) -> Result<Text, BadBody> {
        if self.peek() != Some(b'"') {
            return self.fail("a member name");
        }
        self.at += 1;
        let key = self.string()?;
        if self.peek() != Some(b':') {
            return self.fail("a colon");
        }
        self.at += 1;
        Ok(key)
    }

    /// Only whitespace is left.
    pub fn end(&mut self) -> Result<(), BadBody> {
        if self.peek().is_some() { self.fail("the end of the body") } else { Ok(()) }
    }

    /// The rest of `null`, `true` or `false`.
    pub fn literal(&mut self, word: &'static [u8]) -> Result<(), BadBody> {
        if self.take(word) { Ok(()) } else { self.fail("a value") }
    }

    /// A number.
    pub fn number(&mut self) -> Result<(), BadBody> {
        if self.body[self.at] == b'-' {
            self.at += 1;
        }
        match self.body.get(self.at) {
            Some(b'0') => self.at += 1,
            _ => self.some_digits()?,
        }
        if matches!(self.body.get(self.at), Some(b'.' | b'e' | b'E')) {
            return self.fraction();
        }
        Ok(())
    }

    /// The rest of a number that is not an integer. How large it is, is nobody's business here: it travels as it came.
    fn fraction(&mut self) -> Result<(), BadBody> {
        if self.body.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if let Some(b'e' | b'E') = self.body.get(self.at) {
            self.at += 1;
            if let Some(b'+' | b'-') = self.body.get(self.at) {
                self.at += 1;
            }
            self.some_digits()?;
        }
        Ok(())
    }

    /// A string whose opening quote was taken; takes the closing one.
    pub fn string(&mut self) -> Result<Text, BadBody> {
        let start = self.at;
        // Names and short words, which most strings are: one vector has it all.
        if let Some(length) = short_string(&self.body[start..]) {
            self.at += length + 1;
            return Ok(Text { start, end: start + length, len: length });
        }
        dispatch!(Level::new(), simd => self.long_string(simd))
    }

    /// As [`string`](Scanner::string), by blocks.
    #[inline(always)]
    fn long_string<S: Simd>(&mut self, simd: S) -> Result<Text, BadBody> {
        let (body, start) = (self.body, self.at);
        let mut at = start;
        // Bytes that escapes are longer than what they stand for.
        let mut excess = 0;
        let mut carried = 0;
        // Bytes beyond ASCII among the last three before `at`.
        let mut beyond = 0;
        // What is not UTF-8: of some bytes behind the string too.
        let mut errors = Block::of(simd, b"");
        // From here on nobody has looked whether it is UTF-8.
        let mut unjudged = usize::MAX;
        // The lowest bytes. Control characters are looked for once, at the end: nobody means to send one.
        let mut lowest = Block::of(simd, &[u8::MAX; BLOCK_BYTES]);
        let end = loop {
            // Nothing is called from this loop, so that the vectors stay in their registers: with the two cases in one, 500 KB of
            // prose take 77 µs instead of 57.
            let (block, stops) = loop {
                let Some(part) = inner(body, at) else {
                    let block = Block::of(simd, body.get(at..).unwrap_or_default());
                    unjudged = unjudged.min(at);
                    break (block, Stops::of(block, &mut carried));
                };
                let block = Block::of(simd, &part[INNER_FROM..]);
                let high = block.beyond_ascii();
                if high | beyond != 0 {
                    let before = [Block::of(simd, &part[..]), Block::of(simd, &part[1..]), Block::of(simd, &part[2..])];
                    errors = errors.or(block.utf8_errors(before));
                    beyond = high >> (BLOCK_BYTES - INNER_FROM);
                }
                let stops = Stops::of(block, &mut carried);
                if stops.ends | stops.others != 0 {
                    break (block, stops);
                }
                excess += stops.escaped.count_ones() as usize;
                lowest = lowest.min(block);
                at += BLOCK_BYTES;
            };
            let stop = if stops.others != 0 { stops.others } else { stops.ends }.trailing_zeros();
            if lowest.below(b' ') | block.below(b' ') & !(u64::MAX << (stop % u64::BITS)) != 0 {
                self.no_control(start..(at + stop as usize).min(body.len()))?;
            }
            if stops.others != 0 {
                excess += (stops.escaped & ((1 << stop) - 1)).count_ones() as usize;
                // Its backslash may be the last byte of the block before.
                self.at = at + stop as usize - 1;
                excess += self.escapes()?;
                at = self.at;
                carried = 0;
                // Behind an escape.
                beyond = 0;
            } else if stops.ends != 0 {
                excess += stops.escaped.count_ones() as usize;
                break at + stop as usize;
            } else if at < INNER_FROM && body.len() - at >= BLOCK_BYTES {
                excess += stops.escaped.count_ones() as usize;
                lowest = lowest.min(block);
                beyond = block.beyond_ascii() >> (BLOCK_BYTES - INNER_FROM);
                at += BLOCK_BYTES;
            } else {
                self.at = body.len();
                return self.fail("a closing quote");
            }
        };
        self.at = end + 1;
        if errors.is_some() {
            self.check_utf8(start..end)?;
        } else if unjudged <= end {
            // The character that goes on there began not more than three bytes before.
            let is_first = |at: &usize| body[*at] & 0xc0 != 0x80;
            let from = (unjudged.saturating_sub(3).max(start)..unjudged).find(is_first).unwrap_or(unjudged);
            self.check_utf8(from..end)?;
        }
        Ok(Text { start, end, len: end - start - excess })
    }

    /// There is no control character in a part of a string.
    #[inline(never)]
    fn no_control(&mut self, part: Range<usize>) -> Result<(), BadBody> {
        match self.body[part.clone()].iter().position(|byte| *byte < b' ') {
            Some(at) => {
                self.at = part.start + at;
                self.fail("an escape instead of a control character")
            }
            None => Ok(()),
        }
    }

    /// A part of the body is UTF-8.
    #[inline(never)]
    fn check_utf8(&self, part: Range<usize>) -> Result<(), BadBody> {
        let bytes = &self.body[part.clone()];
        match std::str::from_utf8(bytes) {
            Ok(_) => Ok(()),
            Err(error) => Err(BadBody::Json(part.start + error.valid_up_to(), "UTF-8")),
        }
    }

    /// A string's bytes unescaped, borrowed where no escape is in it, else through `buffer`; what does not fit is cut.
    pub fn unescaped<'b>(&self, text: Text, buffer: &'b mut [u8]) -> &'b [u8]
    where
        'a: 'b,
    {
        if text.is_plain() {
            return &self.body[text.start..text.end];
        }
        let mut from = Scanner { body: &self.body[..text.end], at: text.start };
        let mut filled = 0;
        while filled < buffer.len() && from.at < text.end {
            let byte = from.body[from.at];
            if byte != b'\\' {
                buffer[filled] = byte;
                filled += 1;
                from.at += 1;
                continue;
            }
            // The string was validated when it was read; a failure could only cut it short here.
            let Ok(character) = from.escape() else { break };
            let mut utf8 = [0; 4];
            for byte in character.encode_utf8(&mut utf8).bytes().take(buffer.len() - filled) {
                buffer[filled] = byte;
                filled += 1;
            }
        }
        &buffer[..filled]
    }

    /// A string is `word` once unescaped.
    pub fn is_word(&self, text: Text, word: &[u8]) -> bool {
        // As long as the longest word asked for; what is cut differs in length and so is no match.
        text.len == word.len() && self.unescaped(text, &mut [0; 32]) == word
    }

    /// An escape and all `\u` right behind it: text beyond ASCII comes escaped in runs, where it does. Returns how many bytes they
    /// are longer than what they stand for.
    #[inline(never)]
    fn escapes(&mut self) -> Result<usize, BadBody> {
        let start = self.at;
        let mut length = self.escape()?.len_utf8();
        while self.body[self.at..].starts_with(b"\\u") {
            length += self.escape()?.len_utf8();
        }
        Ok(self.at - start - length)
    }

    /// A backslash and what it escapes.
    fn escape(&mut self) -> Result<char, BadBody> {
        let start = self.at;
        let escaped = self.body.get(self.at + 1).copied();
        self.at += 2;
        Ok(match escaped {
            Some(same @ (b'"' | b'\\' | b'/')) => char::from(same),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let unit = self.hex()?;
                let code = match unit {
                    0xD800..0xDC00 => {
                        if !self.body[self.at..].starts_with(b"\\u") {
                            return self.fail("the second half of a surrogate pair");
                        }
                        self.at += 2;
                        // A low unit below the range wraps to a large number and fails as well.
                        let low = self.hex()?.wrapping_sub(0xDC00);
                        if low >= 0x400 { u32::MAX } else { 0x1_0000 + ((unit - 0xD800) << 10) + low }
                    }
                    unit => unit,
                };
                char::from_u32(code).ok_or(BadBody::Json(start, "a surrogate pair"))?
            }
            _ => return Err(BadBody::Json(start, "an escape sequence")),
        })
    }

    /// Four hexadecimal digits.
    fn hex(&mut self) -> Result<u32, BadBody> {
        let mut unit = 0;
        for _ in 0..4 {
            let Some(digit) = self.body.get(self.at).and_then(|byte| char::from(*byte).to_digit(16)) else {
                return self.fail("four hexadecimal digits");
            };
            unit = unit << 4 | digit;
            self.at += 1;
        }
        Ok(unit)
    }

    fn some_digits(&mut self) -> Result<(), BadBody> {
        let digits = self.body[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += digits;
        if digits == 0 { self.fail("a digit") } else { Ok(()) }
    }
}
