//! A forward scan over JSON text that finds a few fields and builds nothing.
//!
//! Values that nobody asks for are skipped by their brackets and quotes alone, which is what makes it cheap; it is therefore no
//! validator: it accepts some text that is not JSON, but no text that is cut off. Once something cannot be read the scan has
//! failed and stays where it is. Keys are compared as they are written (no API here escapes its keys).

use crate::engine::vector::quote_or_backslash;

/// A position in JSON text.
#[derive(Debug)]
pub struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the first value begins.
    start: usize,
    failed: bool,
}

impl<'a> Scan<'a> {
    /// At the first value of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Scan<'a> {
        let mut scan = Scan { bytes, at: 0, start: 0, failed: false };
        scan.space();
        scan.start = scan.at;
        scan
    }

    /// The first byte of the value here.
    pub fn here(&self) -> Option<u8> {
        if self.failed { None } else { self.bytes.get(self.at).copied() }
    }

    /// Visits each field of the object here with its key (as written, without quotes); the visitor reads the value or leaves it.
    /// Anything but an object is left.
    #[inline]
    pub fn object(&mut self, mut visit: impl FnMut(&'a [u8], &mut Scan<'a>)) {
        if !self.opens(b'{', b'}') {
            return;
        }
        loop {
            let Some(key) = self.string() else { return self.fail() };
            if !self.eat(b':') {
                return self.fail();
            }
            let before = self.at;
            visit(key, self);
            if !self.goes_on(before, b'}') {
                return;
            }
        }
    }

    /// Visits each element of the array here; the visitor reads the value or leaves it. Anything but an array is left.
    #[inline]
    pub fn array(&mut self, mut visit: impl FnMut(&mut Scan<'a>)) {
        if !self.opens(b'[', b']') {
            return;
        }
        loop {
            let before = self.at;
            visit(self);
            if !self.goes_on(before, b']') {
                return;
            }
        }
    }

    /// The string here, as written, without its quotes; `None`, and nothing read, for another type.
    #[inline]
    pub fn string(&mut self) -> Option<&'a [u8]> {
        if self.here()? != b'"' {
            return None;
        }
        let start = self.at + 1;
        let Some(end) = string_end(self.bytes, start) else {
            self.fail();
            return None;
        };
        self.at = end + 1;
        self.space();
        Some(&self.bytes[start..end])
    }

    /// The number here, as written; `None`, and nothing read, for another type.
    pub fn number(&mut self) -> Option<&'a [u8]> {
        if !matches!(self.here()?, b'-' | b'0'..=b'9') {
            return None;
        }
        Some(self.raw())
    }

    /// Skips the value here and returns its text.
    pub fn raw(&mut self) -> &'a [u8] {
        let start = self.at;
        self.skip();
        self.bytes[start..self.at].trim_ascii_end()
    }

    /// The whole text was one value that could be read.
    pub fn is_whole(&self) -> bool {
        !self.failed && self.at == self.bytes.len() && self.at > self.start
    }

    fn skip(&mut self) {
        match self.here() {
            Some(b'n') if self.bytes[self.at..].starts_with(b"null") => {
                self.at += 4;
                self.space();
            }
            Some(b'"') => {
                self.string();
            }
            Some(b'{' | b'[') => self.skip_nested(),
            Some(b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
                let rest = &self.bytes[self.at..];
                self.at +=
                    rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t')).unwrap_or(rest.len());
                self.space();
            }
            _ => self.fail(),
        }
    }

    /// Skips to the bracket that closes the one here.
    fn skip_nested(&mut self) {
        let mut depth = 0_usize;
        while let Some(byte) = self.here() {
            match byte {
                b'"' => {
                    self.string();
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return self.space();
            }
        }
        self.fail();
    }

    /// Steps into a bracket; `false` when the value is another or holds nothing.
    #[inline]
    fn opens(&mut self, open: u8, close: u8) -> bool {
        self.here() == Some(open) && self.eat(open) && !self.eat(close)
    }

    /// After a visit: skips what was left, and steps over the comma or the closing bracket. `false` at the end.
    #[inline]
    fn goes_on(&mut self, before: usize, close: u8) -> bool {
        if self.at == before {
            self.skip();
        }
        if self.eat(b',') {
            return true;
        }
        if !self.eat(close) {
            self.fail();
        }
        false
    }

    #[inline]
    fn eat(&mut self, byte: u8) -> bool {
        if self.here() != Some(byte) {
            return false;
        }
        self.at += 1;
        self.space();
        true
    }

    #[inline]
    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.bytes.get(self.at) {
            self.at += 1;
        }
    }

    fn fail(&mut self) {
        self.failed = true;
    }
}

/// Where the quote is that closes a string whose text begins at `start`.
#[inline]
pub fn string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut end = start;
    loop {
        end = quote_or_backslash(bytes, end);
        match bytes.get(end)? {
            b'"' => return Some(end),
            // A backslash: the byte behind it is no quote.
            _ => end += 2,
        }
    }
}

/// Hands the text of a JSON string (as written, without quotes) to `push` in runs, escapes resolved. A lone surrogate becomes
/// U+FFFD, a broken escape is left out.
pub fn unescape(raw: &[u8], mut push: impl FnMut(&[u8])) {
    let mut rest = raw;
    while let Some(offset) = memchr::memchr(b'\\', rest) {
        if offset > 0 {
            push(&rest[..offset]);
        }
        rest = &rest[offset + 1..];
        let Some((&escape, after)) = rest.split_first() else { return };
        rest = after;
        let plain = match escape {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'b' => 8,
            b'f' => 12,
            b'u' => {
                let (character, after) = unicode(rest);
                push(character.encode_utf8(&mut [0; 4]).as_bytes());
                rest = after;
                continue;
            }
            other => other,
        };
        push(&[plain]);
    }
    if !rest.is_empty() {
        push(rest);
    }
}

/// The text of a JSON string as a `String` of at most `max_bytes`, cut at a character.
pub fn text(raw: &[u8], max_bytes: usize) -> String {
    let mut bytes = Vec::new();
    // A character takes at most six bytes more than its own in escapes; more than that cannot be needed.
    let raw = &raw[..raw.len().min(max_bytes.saturating_mul(6))];
    unescape(raw, |run| bytes.extend_from_slice(run));
    let mut text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    };
    text.truncate(text.floor_char_boundary(max_bytes));
    text
}

/// The character of the hexadecimal digits behind `\u` (and of a second `\u` behind a high surrogate), and what follows.
fn unicode(rest: &[u8]) -> (char, &[u8]) {
    let Some((high, after)) = four_digits(rest) else { return (char::REPLACEMENT_CHARACTER, rest) };
    if let Some(character) = char::from_u32(high) {
        return (character, after);
    }
    if (0xD800..0xDC00).contains(&high)
        && let Some(second) = after.strip_prefix(b"\\u")
        && let Some((low @ 0xDC00..0xE000, after)) = four_digits(second)
        && let Some(character) = char::from_u32(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
    {
        return (character, after);
    }
    (char::REPLACEMENT_CHARACTER, after)
}

fn four_digits(rest: &[u8]) -> Option<(u32, &[u8])> {
    let (digits, after) = rest.split_at_checked(4)?;
    let mut value = 0;
    for digit in digits {
        value = value << 4 | char::from(*digit).to_digit(16)?;
    }
    Some((value, after))
}

/// The decimal number of a JSON number's text in units of 10⁻ᵖˡᵃᶜᵉˢ, exactly; digits beyond are rounded half to even. `None`: not a
/// number, negative, or too large.
pub fn decimal(number: &[u8], places: u32) -> Option<i128> {
    /// More digits than this are not money: together with the exponent bound it keeps the arithmetic inside 128 bits.
    const MAX_DIGITS: usize = 40;
    let (mantissa, exponent) = match number.iter().position(|byte| matches!(byte, b'e' | b'E')) {
        Some(at) => (&number[..at], std::str::from_utf8(&number[at + 1..]).ok()?.parse::<i32>().ok()?),
        None => (number, 0),
    };
    if mantissa.len() > MAX_DIGITS + 1 || mantissa.is_empty() {
        return None;
    }
    let mut digits: i128 = 0;
    let mut scale = None;
    for byte in mantissa {
        match (byte, &mut scale) {
            (b'.', None) => scale = Some(0_i32),
            (b'0'..=b'9', scale) => {
                digits = digits.checked_mul(10)?.checked_add(i128::from(byte - b'0'))?;
                if let Some(scale) = scale {
                    *scale += 1;
                }
            }
            _ => return None,
        }
    }
    let shift = (places as i32).checked_add(exponent)?.checked_sub(scale.unwrap_or(0))?;
    if digits == 0 {
        return Some(0);
    }
    if shift >= 0 {
        return digits.checked_mul(10_i128.checked_pow(shift as u32)?);
    }
    let Some(divisor) = 10_i128.checked_pow(shift.unsigned_abs()) else { return Some(0) };
    let (quotient, rest) = (digits / divisor, digits % divisor);
    let up = match (rest * 2).cmp(&divisor) {
        std::cmp::Ordering::Greater => 1,
        std::cmp::Ordering::Equal => quotient % 2,
        std::cmp::Ordering::Less => 0,
    };
    Some(quotient + up)
}

/// Writes `text` as a JSON string, quotes included.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 | 0x7f => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The top-level fields of `json` as `key=raw value`, and whether it was read whole.
    fn fields(json: &str) -> (Vec<String>, bool) {
        let mut scan = Scan::new(json.as_bytes());
        let mut fields = Vec::new();
        scan.object(|key, scan| fields.push(format!("{}={}", String::from_utf8_lossy(key), String::from_utf8_lossy(scan.raw()))));
        (fields, scan.is_whole())
    }

    #[test]
    fn fields_are_found_and_the_rest_is_skipped() {
        let json = r#" { "a" : 1 , "b":"x\"}" ,"c" :[1,{"d":"]"},[ ] ] ,"e":{"f":{}}, "g":null,"h":-1.5e3 } "#;
        let (seen, whole) = fields(json);
        assert_eq!(seen, ["a=1", "b=\"x\\\"}\"", "c=[1,{\"d\":\"]\"},[ ] ]", "e={\"f\":{}}", "g=null", "h=-1.5e3"]);
        assert!(whole);
        for cut in 0..json.trim_end().len() {
            assert!(!fields(&json[..cut]).1, "cut at {cut}");
        }
        for (bad, why) in [
            ("{}x", "more behind"),
            ("[1]", "not visited"),
            ("{\"a\" 1}", "no colon"),
            ("{a:1}", "no key"),
            ("{\"a\":}", "no value"),
            ("{\"a\":1,}", "comma"),
        ] {
            assert!(!fields(bad).1, "{why}");
        }
        assert_eq!(fields("{}"), (vec![], true));
    }

    #[test]
    fn strings_of_every_length_end_where_they_end() {
        for length in 0..100 {
            for filler in ["a", "!", "#", "[", "]", "\u{a2}", "\\\\", "\\\""] {
                let text = filler.repeat(length);
                let json = format!("\"{text}\"");
                let mut scan = Scan::new(json.as_bytes());
                assert_eq!((scan.string(), scan.is_whole()), (Some(text.as_bytes()), true));
                assert_eq!(Scan::new(&json.as_bytes()[..json.len() - 1]).string(), None);
            }
        }
    }

    #[test]
    fn deep_nesting_does_not_recurse() {
        let deep = format!("{{\"a\":{}{},\"b\":1}}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        let (seen, whole) = fields(&deep);
        assert_eq!((seen.len(), whole), (2, true));
    }

    #[test]
    fn strings_are_unescaped_as_serde_json_does() {
        for raw in ["plain", r"a\nb\t\r\b\f\/\\\u0022", r"\u00e9\u4f60", r"\ud83d\ude00!", r"caf\u00E9 \uD83D\uDE00\uD83D\uDE00", ""] {
            let expected: String = serde_json::from_str(&format!("\"{raw}\"")).expect("a JSON string");
            assert_eq!(text(raw.as_bytes(), 1000), expected);
            let mut written = Vec::new();
            write_string(&expected, &mut written);
            assert_eq!(serde_json::from_slice::<String>(&written).expect("what is written is JSON"), expected);
        }
        for (raw, expected) in
            [(r"\ud83d", "\u{fffd}"), (r"\ud83dx", "\u{fffd}x"), (r"\ud83d\u0041", "\u{fffd}A"), (r"a\u12", "a\u{fffd}12"), ("a\\", "a")]
        {
            assert_eq!(text(raw.as_bytes(), 1000), expected, "{raw}");
        }
        let mut written = Vec::new();
        write_string("\u{1}\u{7f}\u{1f600}", &mut written);
        assert_eq!(written, "\"\\u0001\\u007f\u{1f600}\"".as_bytes());
        assert_eq!(text("h\u{e9}\u{e9}".as_bytes(), 4), "h\u{e9}");
    }

    #[test]
    fn decimals_are_exact() {
        for (number, places, expected) in [
            ("0.00014", 12, Some(140_000_000)),
            ("1.4e-05", 12, Some(14_000_000)),
            ("2E+1", 2, Some(2000)),
            ("0.0000000000005", 12, Some(0)),
            ("0.0000000000015", 12, Some(2)),
            ("0.00000000000051", 12, Some(1)),
            ("3.6", 3, Some(3600)),
            ("12", 0, Some(12)),
            ("12.0", 0, Some(12)),
            ("0", 12, Some(0)),
            ("1e-400", 12, Some(0)),
            ("1e400", 12, None),
            ("0e400", 12, Some(0)),
            ("-1", 0, None),
            ("1.2.3", 0, None),
            ("", 0, None),
            ("1e", 0, None),
            ("9999999999999999999999999999999999999999999999", 0, None),
        ] {
            assert_eq!(decimal(number.as_bytes(), places), expected, "{number}");
        }
    }
}
