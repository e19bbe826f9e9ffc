//! JSON tokens of a byte slice (RFC 8259): strict, without copies, strings skipped 32 bytes at a time.

use super::BadBody;
use std::ops::Range;

/// Objects and arrays open at once. The bound of serde_json, so that whatever reads the body later agrees on what is readable;
/// deeper bodies are refused.
pub const DEPTH_MAX: usize = 127;

/// The longest number read without asking the float parser whether it is finite: below 10³⁰⁰ it always is.
const SURELY_FINITE_DIGITS: usize = 300;

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
        if !self.body[self.at..].starts_with(word) {
            return self.fail("a value");
        }
        self.at += word.len();
        Ok(())
    }

    /// A number; its place.
    pub fn number(&mut self) -> Result<Range<usize>, BadBody> {
        let start = self.at;
        if self.body.get(self.at) == Some(&b'-') {
            self.at += 1;
        }
        match self.body.get(self.at) {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return self.fail("a digit"),
        }
        let mut is_large = self.at - start > SURELY_FINITE_DIGITS;
        if self.body.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if let Some(b'e' | b'E') = self.body.get(self.at) {
            is_large = true;
            self.at += 1;
            if let Some(b'+' | b'-') = self.body.get(self.at) {
                self.at += 1;
            }
            self.some_digits()?;
        }
        if is_large && !is_finite(&self.body[start..self.at]) {
            return Err(BadBody::Json(start, "a number in the range of a double"));
        }
        Ok(start..self.at)
    }

    /// A string whose opening quote was taken; takes the closing one.
    #[inline]
    pub fn string(&mut self) -> Result<Text, BadBody> {
        let start = self.at;
        let mut len = 0;
        let mut is_ascii = true;
        loop {
            let run = plain_run(&self.body[self.at..]);
            is_ascii &= run.is_ascii;
            len += run.len;
            self.at += run.len;
            match self.body.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => len += self.escape()?.len_utf8(),
                Some(_) => return self.fail("an escape instead of a control character"),
                None => return self.fail("a closing quote"),
            }
        }
        let end = self.at;
        self.at += 1;
        if !is_ascii && let Err(error) = std::str::from_utf8(&self.body[start..end]) {
            return Err(BadBody::Json(start + error.valid_up_to(), "UTF-8"));
        }
        Ok(Text { start, end, len })
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

    fn digits(&mut self) {
        while let Some(b'0'..=b'9') = self.body.get(self.at) {
            self.at += 1;
        }
    }

    fn some_digits(&mut self) -> Result<(), BadBody> {
        let start = self.at;
        self.digits();
        if self.at == start { self.fail("a digit") } else { Ok(()) }
    }
}

/// A number is finite as a double.
fn is_finite(number: &[u8]) -> bool {
    std::str::from_utf8(number).is_ok_and(|text| text.parse::<f64>().is_ok_and(f64::is_finite))
}

/// Bytes up to the first quote, backslash or control character.
struct Run {
    len: usize,
    is_ascii: bool,
}

const ONES: u64 = u64::MAX / 255;
const HIGH_BITS: u64 = ONES << 7;

/// The length of a run of bytes that need no look. The folds below have no early exit so that they compile to vector code.
#[inline]
fn plain_run(bytes: &[u8]) -> Run {
    let mut len = 0;
    let mut is_ascii = true;
    for chunk in bytes.as_chunks::<32>().0 {
        if chunk.iter().fold(false, |hit, byte| hit | is_special(*byte)) {
            break;
        }
        is_ascii &= chunk.iter().fold(true, |ascii, byte| ascii & byte.is_ascii());
        len += chunk.len();
    }
    let (words, tail) = bytes[len..].as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word);
        let hits = special_bits(word);
        if hits != 0 {
            let bits_before = hits.trailing_zeros() & !7;
            is_ascii &= word & HIGH_BITS & ((1 << bits_before) - 1) == 0;
            return Run { len: len + bits_before as usize / 8, is_ascii };
        }
        is_ascii &= word & HIGH_BITS == 0;
        len += 8;
    }
    for byte in tail {
        if is_special(*byte) {
            break;
        }
        is_ascii &= byte.is_ascii();
        len += 1;
    }
    Run { len, is_ascii }
}

/// A byte that ends a run: a quote, a backslash or a control character.
#[inline]
fn is_special(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\')
}

/// The high bit of each special byte of a word. Bits above the lowest one may be wrong (a borrow), the lowest is exact.
#[inline]
fn special_bits(word: u64) -> u64 {
    let quotes = word ^ (ONES * b'"' as u64);
    let backslashes = word ^ (ONES * b'\\' as u64);
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    let quote = quotes.wrapping_sub(ONES) & !quotes;
    let backslash = backslashes.wrapping_sub(ONES) & !backslashes;
    (control | quote | backslash) & HIGH_BITS
}
