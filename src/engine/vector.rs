//! Byte search with vectors of 16 bytes, which every 64-bit processor has. JSON text is full of short strings and escapes: a
//! vectored search behind a call costs more on them than it saves.

use wide::u8x16;

/// Bytes of a [`Block`]: as many as a mask has bits.
pub const BLOCK_BYTES: usize = 64;

/// Blocks in a row without anything special after which a text is taken for a long plain one (prose, base64): from there the wider
/// vectors of `memchr` pay for its call.
pub const LONG_RUN_BLOCKS: usize = 4;

/// 64 bytes, to be asked where something stands: bit `n` of each mask is byte `n`.
#[derive(Debug, Clone, Copy)]
pub struct Block([u8x16; 4]);

impl Block {
    /// The first 64 of `bytes`; what is missing reads as 0.
    #[inline]
    pub fn of(bytes: &[u8]) -> Block {
        match bytes.first_chunk() {
            Some(whole) => Block::new(whole),
            None => {
                let mut padded = [0; BLOCK_BYTES];
                padded[..bytes.len()].copy_from_slice(bytes);
                Block::new(&padded)
            }
        }
    }

    #[inline]
    fn new(bytes: &[u8; BLOCK_BYTES]) -> Block {
        let part = |at: usize| {
            let mut part = [0; 16];
            part.copy_from_slice(&bytes[at..at + 16]);
            u8x16::new(part)
        };
        Block([part(0), part(16), part(32), part(48)])
    }

    /// Nothing in it ends a run of a JSON string: no quote, no backslash, no control character.
    #[inline]
    pub fn is_plain(&self) -> bool {
        let (quote, backslash, control) = (u8x16::splat(b'"'), u8x16::splat(b'\\'), u8x16::splat(0x1f));
        let [a, b, c, d] = self.0.map(|part| part.simd_eq(quote) | part.simd_eq(backslash) | part.min(control).simd_eq(part));
        (a | b | c | d).to_bitmask() == 0
    }

    /// Where a byte is `byte`.
    #[inline]
    pub fn equal(&self, byte: u8) -> u64 {
        let byte = u8x16::splat(byte);
        self.mask(|part| part.simd_eq(byte))
    }

    /// Where a byte is one of two.
    #[inline]
    pub fn either(&self, bytes: [u8; 2]) -> u64 {
        let [a, b] = bytes.map(u8x16::splat);
        self.mask(|part| part.simd_eq(a) | part.simd_eq(b))
    }

    /// Where a byte is one of four.
    #[inline]
    pub fn one_of(&self, bytes: [u8; 4]) -> u64 {
        let [a, b, c, d] = bytes.map(u8x16::splat);
        self.mask(|part| part.simd_eq(a) | part.simd_eq(b) | part.simd_eq(c) | part.simd_eq(d))
    }

    /// Where a byte is less than `bound`.
    #[inline]
    pub fn below(&self, bound: u8) -> u64 {
        // `most` is the largest that counts: the smaller one of it and the byte is then the byte.
        let most = u8x16::splat(bound.saturating_sub(1));
        self.mask(|part| part.min(most).simd_eq(part))
    }

    /// Some byte is beyond ASCII.
    #[inline]
    pub fn is_beyond_ascii(&self) -> bool {
        let [a, b, c, d] = self.0;
        (a | b | c | d).to_bitmask() != 0
    }

    #[inline]
    fn mask(&self, test: impl Fn(u8x16) -> u8x16) -> u64 {
        self.0.iter().enumerate().fold(0, |mask, (at, part)| mask | u64::from(test(*part).to_bitmask()) << (16 * at))
    }
}

/// Where the next quote or backslash stands at or behind `from`, or the end.
#[inline]
pub fn quote_or_backslash(bytes: &[u8], from: usize) -> usize {
    const SPECIAL: [u8; 2] = *b"\"\\";
    let (quote, backslash) = (u8x16::splat(SPECIAL[0]), u8x16::splat(SPECIAL[1]));
    let rest = bytes.get(from..).unwrap_or_default();
    // Most strings are short: one vector has their end.
    if let Some(part) = rest.first_chunk() {
        let part = u8x16::new(*part);
        let found = (part.simd_eq(quote) | part.simd_eq(backslash)).to_bitmask();
        if found != 0 {
            return from + found.trailing_zeros() as usize;
        }
        return long_run(bytes, from + 16, SPECIAL);
    }
    from + rest.iter().position(|byte| SPECIAL.contains(byte)).unwrap_or(rest.len())
}

/// As [`quote_or_backslash`], by blocks while the end may be near.
fn long_run(bytes: &[u8], from: usize, special: [u8; 2]) -> usize {
    let mut at = from;
    for _ in 0..LONG_RUN_BLOCKS {
        let rest = bytes.get(at..).unwrap_or_default();
        let found = Block::of(rest).either(special);
        if found != 0 {
            return at + found.trailing_zeros() as usize;
        }
        if rest.len() <= BLOCK_BYTES {
            return bytes.len();
        }
        at += BLOCK_BYTES;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    at + memchr::memchr2(special[0], special[1], rest).unwrap_or(rest.len())
}

/// Where a byte stands behind a backslash that is not escaped itself. `carried` goes from block to block: 1 when the next one
/// begins with such a byte.
#[inline]
pub fn escaped(backslashes: u64, carried: &mut u64) -> u64 {
    const EVEN: u64 = u64::MAX / 3;
    // In a run of backslashes every second one escapes, beginning with the first: those at even places in a run that begins at
    // an even place, and at odd places in the others. An addition at a run's beginning clears the run.
    let runs = backslashes & !*carried;
    let begins_odd = runs & !(runs << 1) & !EVEN;
    let odd_runs = runs & !runs.wrapping_add(begins_odd);
    let escaping = odd_runs & !EVEN | runs & !odd_runs & EVEN;
    let escaped = escaping << 1 | *carried;
    *carried = escaping >> 63;
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_tell_each_byte() {
        for at in 0..BLOCK_BYTES {
            for byte in 0..=u8::MAX {
                let mut bytes = [b'a'; BLOCK_BYTES];
                bytes[at] = byte;
                let (block, bit) = (Block::of(&bytes), 1 << at);
                let expected = |is: bool| if is { bit } else { 0 };
                assert_eq!(block.equal(b'"'), expected(byte == b'"'));
                assert_eq!(block.below(0x20), expected(byte < 0x20));
                assert_eq!(block.either(*b"\"\\"), expected(b"\"\\".contains(&byte)));
                assert_eq!(block.one_of(*b"nrt/"), expected(b"nrt/".contains(&byte)));
                assert_eq!(block.is_beyond_ascii(), byte >= 0x80);
                assert_eq!(block.is_plain(), byte >= 0x20 && byte != b'"' && byte != b'\\');
            }
        }
        assert_eq!(Block::of(b"ab").below(1), u64::MAX << 2);
    }

    #[test]
    fn escapes_are_found_as_a_loop_finds_them() {
        // Runs of every length at every place, across two blocks and with something in between.
        for start in 0..70 {
            for length in 0..60 {
                for second in [0, 1, 2, 5] {
                    let mut text = [b'a'; 2 * BLOCK_BYTES];
                    let run = start..(start + length).min(text.len());
                    let after = (run.end + 1).min(text.len());
                    text[run].fill(b'\\');
                    let end = (after + second).min(text.len());
                    text[after..end].fill(b'\\');
                    let mut expected = 0u128;
                    let mut at = 0;
                    while at < text.len() {
                        if text[at] == b'\\' {
                            expected |= 1u128.checked_shl(at as u32 + 1).unwrap_or(0);
                            at += 1;
                        }
                        at += 1;
                    }
                    let mut carried = 0;
                    let first = escaped(Block::of(&text).equal(b'\\'), &mut carried);
                    let second = escaped(Block::of(&text[BLOCK_BYTES..]).equal(b'\\'), &mut carried);
                    assert_eq!(u128::from(first) | u128::from(second) << 64, expected, "{start} {length}");
                }
            }
        }
    }

    #[test]
    fn the_next_quote_or_backslash_is_found() {
        for length in 0..100 {
            for filler in [b'a', b'!', b'#', b'[', b']', 0xa2] {
                for special in [b'"', b'\\'] {
                    let mut bytes = vec![filler; length];
                    bytes.push(special);
                    bytes.extend([filler; 20]);
                    for from in 0..length {
                        assert_eq!(quote_or_backslash(&bytes, from), length);
                    }
                    assert_eq!(quote_or_backslash(&bytes, length + 1), bytes.len());
                    assert_eq!(quote_or_backslash(&bytes, bytes.len()), bytes.len());
                }
            }
        }
    }
}
