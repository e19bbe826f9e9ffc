//! Byte search with the widest vectors that the processor has, found out at run time. JSON text is full of short strings and
//! escapes: what is short is looked for with what every processor has, so that no call is needed.

use fearless_simd::{Level, Simd, dispatch, prelude::*, u8x16, u8x64};

/// Bytes of a [`Block`]: as many as a mask has bits.
pub const BLOCK_BYTES: usize = 64;

/// Blocks in a row without anything special after which a text is taken for a long plain one (prose, base64): from there the wider
/// vectors of `memchr` pay for its call.
const LONG_RUN_BLOCKS: usize = 4;

/// 64 bytes, to be asked where something stands: bit `n` of each mask is byte `n`.
///
/// All of it is inlined by force, for the vectors are the processor's own only in code that [`dispatch`] was told of.
#[derive(Debug, Clone, Copy)]
pub struct Block<S: Simd>(u8x64<S>);

impl<S: Simd> Block<S> {
    /// The first 64 of `bytes`; what is missing reads as 0.
    #[inline(always)]
    pub fn of(simd: S, bytes: &[u8]) -> Block<S> {
        match bytes.first_chunk::<BLOCK_BYTES>() {
            Some(whole) => Block(u8x64::simd_from(simd, *whole)),
            None => {
                let mut padded = [0; BLOCK_BYTES];
                padded[..bytes.len()].copy_from_slice(bytes);
                Block(u8x64::simd_from(simd, padded))
            }
        }
    }

    /// Where a byte is `byte`.
    #[inline(always)]
    pub fn equal(self, byte: u8) -> u64 {
        self.0.simd_eq(byte).to_bitmask()
    }

    /// Where a byte is one of two.
    #[inline(always)]
    pub fn either(self, bytes: [u8; 2]) -> u64 {
        let [a, b] = bytes.map(|byte| self.0.simd_eq(byte));
        (a | b).to_bitmask()
    }

    /// Where a byte is one of `\`, `/`, `f`, `n`, `r` and `t`, which with a backslash before them stand for one byte in JSON
    /// (RFC 8259, 7), as do quotes and `b`.
    #[inline(always)]
    pub fn is_escapable(self) -> u64 {
        // By the lower half of a byte: the one that is meant, else one that has another lower half.
        const MEANT: [u8; 16] = [1, 0, b'r', 0, b't', 0, b'f', 0, 0, 0, 0, 0, b'\\', 0, b'n', b'/'];
        let meant = u8x64::block_splat(u8x16::simd_from(self.0.simd, MEANT));
        self.0.simd_eq(meant.swizzle_dyn_within_blocks(self.0 & 0x0f)).to_bitmask()
    }

    /// Where a byte is less than `bound`.
    #[inline(always)]
    pub fn below(self, bound: u8) -> u64 {
        // The smaller one of the byte and the largest that counts is then the byte.
        self.0.min(bound.saturating_sub(1)).simd_eq(self.0).to_bitmask()
    }

    /// The bits that are set in one of both, byte by byte.
    #[inline(always)]
    pub fn or(self, other: Block<S>) -> Block<S> {
        Block(self.0 | other.0)
    }

    /// The smaller one of both, byte by byte.
    #[inline(always)]
    pub fn min(self, other: Block<S>) -> Block<S> {
        Block(self.0.min(other.0))
    }

    /// Where a byte is beyond ASCII.
    #[inline(always)]
    pub fn beyond_ascii(self) -> u64 {
        self.0.simd_ge(0x80).to_bitmask()
    }

    /// Some byte is not 0.
    #[inline(always)]
    pub fn is_some(self) -> bool {
        !self.0.simd_eq(0).all_true()
    }

    /// What is not UTF-8: a byte is 0 where it may stand behind those before it. `before`: what stands three, two and one bytes
    /// before each. A character that the next block goes on with is judged there.
    ///
    /// Two bytes in a row, taken as three halves, tell everything but whether a third or fourth byte is missing or too many: J. Keiser,
    /// D. Lemire, Validating UTF-8 In Less Than One Instruction Per Byte, 2021.
    #[inline(always)]
    pub fn utf8_errors(self, before: [Block<S>; 3]) -> Block<S> {
        let simd = self.0.simd;
        let [Block(three), Block(two), Block(one)] = before;
        let first = looked_up(simd, utf8::FIRST_HIGH, one >> 4) & looked_up(simd, utf8::FIRST_LOW, one & 0x0f);
        let pair = first & looked_up(simd, utf8::SECOND_HIGH, self.0 >> 4);
        // Behind the first byte of three and of four. A continuation there is the one thing that `pair` has wrong.
        let due = two.saturating_sub(0xe0 - 0x80) | three.saturating_sub(0xf0 - 0x80);
        Block((due & utf8::TWO_CONTINUATIONS) ^ pair)
    }
}

/// Of each index, less than 16, what the table has.
#[inline(always)]
fn looked_up<S: Simd>(simd: S, table: [u8; 16], index: u8x64<S>) -> u8x64<S> {
    u8x64::block_splat(u8x16::simd_from(simd, table)).swizzle_dyn_within_blocks(index)
}

/// What may be wrong with two bytes in a row, a bit each, and which bits the halves of these bytes allow for.
mod utf8 {
    /// No continuation where one is due.
    const TOO_SHORT: u8 = 1 << 0;
    /// A continuation behind ASCII.
    const TOO_LONG: u8 = 1 << 1;
    /// E0 80…9F.
    const OVERLONG_3: u8 = 1 << 2;
    /// F4 90…BF, and F5…FF with 90…BF.
    const TOO_LARGE: u8 = 1 << 3;
    /// ED A0…BF.
    const SURROGATE: u8 = 1 << 4;
    /// C0 and C1.
    const OVERLONG_2: u8 = 1 << 5;
    /// F5…FF with 80…8F; F0 with 80…8F.
    const TOO_LARGE_80: u8 = 1 << 6;
    const OVERLONG_4: u8 = 1 << 6;
    /// Right only as the third or fourth byte of a character.
    pub const TWO_CONTINUATIONS: u8 = 1 << 7;
    /// What the lower half of the first byte says nothing of.
    const ANY: u8 = TOO_SHORT | TOO_LONG | TWO_CONTINUATIONS;

    pub const FIRST_HIGH: [u8; 16] = {
        let mut table = [TOO_LONG; 16];
        table[0x8] = TWO_CONTINUATIONS;
        table[0x9] = TWO_CONTINUATIONS;
        table[0xa] = TWO_CONTINUATIONS;
        table[0xb] = TWO_CONTINUATIONS;
        table[0xc] = TOO_SHORT | OVERLONG_2;
        table[0xd] = TOO_SHORT;
        table[0xe] = TOO_SHORT | OVERLONG_3 | SURROGATE;
        table[0xf] = TOO_SHORT | TOO_LARGE | TOO_LARGE_80 | OVERLONG_4;
        table
    };

    pub const FIRST_LOW: [u8; 16] = {
        let mut table = [ANY | TOO_LARGE | TOO_LARGE_80; 16];
        table[0x0] = ANY | OVERLONG_2 | OVERLONG_3 | OVERLONG_4;
        table[0x1] = ANY | OVERLONG_2;
        table[0x2] = ANY;
        table[0x3] = ANY;
        table[0x4] = ANY | TOO_LARGE;
        table[0xd] |= SURROGATE;
        table
    };

    pub const SECOND_HIGH: [u8; 16] = {
        let of_all = TOO_LONG | OVERLONG_2 | TWO_CONTINUATIONS;
        let mut table = [TOO_SHORT; 16];
        table[0x8] = of_all | OVERLONG_3 | TOO_LARGE_80 | OVERLONG_4;
        table[0x9] = of_all | OVERLONG_3 | TOO_LARGE;
        table[0xa] = of_all | SURROGATE | TOO_LARGE;
        table[0xb] = of_all | SURROGATE | TOO_LARGE;
        table
    };
}

/// Where the next quote or backslash stands at or behind `from`, or the end.
#[inline]
pub fn quote_or_backslash(bytes: &[u8], from: usize) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    // Most strings are short: one vector has their end.
    if let Some(part) = rest.first_chunk::<16>() {
        let found = dispatch!(Level::baseline(), simd => {
            let part = u8x16::simd_from(simd, *part);
            (part.simd_eq(b'"') | part.simd_eq(b'\\')).to_bitmask()
        });
        if found != 0 {
            return from + found.trailing_zeros() as usize;
        }
        return long_run(bytes, from + 16);
    }
    from + rest.iter().position(|byte| b"\"\\".contains(byte)).unwrap_or(rest.len())
}

/// As [`quote_or_backslash`], by blocks while the end may be near.
fn long_run(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    for _ in 0..LONG_RUN_BLOCKS {
        let rest = bytes.get(at..).unwrap_or_default();
        let found = dispatch!(Level::baseline(), simd => Block::of(simd, rest).either(*b"\"\\"));
        if found != 0 {
            return at + found.trailing_zeros() as usize;
        }
        if rest.len() <= BLOCK_BYTES {
            return bytes.len();
        }
        at += BLOCK_BYTES;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    at + memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len())
}

/// The length of a string of fewer than 16 ASCII bytes without escapes, if that is what is here.
#[inline]
pub fn short_string(bytes: &[u8]) -> Option<usize> {
    let part = *bytes.first_chunk::<16>()?;
    let (quotes, others) = dispatch!(Level::baseline(), simd => {
        let part = u8x16::simd_from(simd, part);
        let others = part.simd_eq(b'\\') | part.min(0x1f).simd_eq(part) | (part & 0x80).simd_eq(0x80);
        (part.simd_eq(b'"').to_bitmask(), others.to_bitmask())
    });
    let before_quote = quotes.wrapping_sub(1) & !quotes;
    (quotes != 0 && others & before_quote == 0).then(|| quotes.trailing_zeros() as usize)
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

    /// With the vectors that every processor has, and with the widest of this one.
    fn levels() -> [Level; 2] {
        [Level::baseline(), Level::new()]
    }

    #[test]
    fn masks_tell_each_byte() {
        for level in levels() {
            dispatch!(level, simd => masks_of(simd));
        }
    }

    fn masks_of<S: Simd>(simd: S) {
        for at in 0..BLOCK_BYTES {
            for byte in 0..=u8::MAX {
                let mut bytes = [b'a'; BLOCK_BYTES];
                bytes[at] = byte;
                let (block, bit) = (Block::of(simd, &bytes), 1 << at);
                let expected = |is: bool| if is { bit } else { 0 };
                assert_eq!(block.equal(b'"'), expected(byte == b'"'));
                assert_eq!(block.below(0x20), expected(byte < 0x20));
                assert_eq!(block.either(*b"\"\\"), expected(b"\"\\".contains(&byte)));
                assert_eq!(block.is_escapable(), expected(b"\\/fnrt".contains(&byte)));
                assert_eq!(block.beyond_ascii(), expected(byte >= 0x80));
                assert_eq!(block.min(Block::of(simd, &[0x20; BLOCK_BYTES])).below(0x20), expected(byte < 0x20));
            }
        }
        assert_eq!(Block::of(simd, b"ab").below(1), u64::MAX << 2);
    }

    /// What is wrong by blocks, with the bytes before each from the text itself.
    fn is_utf8<S: Simd>(simd: S, text: &[u8]) -> bool {
        // Behind the end everything is missing.
        let padded = [&[0; 3][..], text, &[0; BLOCK_BYTES]].concat();
        (3..=text.len() + 3).step_by(BLOCK_BYTES).all(|at| {
            let before = [3, 2, 1].map(|by| Block::of(simd, &padded[at - by..][..BLOCK_BYTES]));
            let block = Block::of(simd, &padded[at..padded.len().min(at + BLOCK_BYTES)]);
            !block.utf8_errors(before).is_some()
        })
    }

    #[test]
    fn what_is_not_utf8_is_found_as_std_finds_it() {
        // Each kind of byte there is: the ends of all ranges of RFC 3629, 4.
        const KINDS: [u8; 24] = [
            0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xec, 0xed, 0xee, 0xef, 0xf0, 0xf1, 0xf3,
            0xf4, 0xf5, 0xff,
        ];
        for level in levels() {
            dispatch!(level, simd => {
                let mut valid = 0;
                for number in 0..KINDS.len().pow(4) {
                    let four = [0, 1, 2, 3].map(|place| KINDS[number / KINDS.len().pow(place) % KINDS.len()]);
                    // In the midst of a block, across two of them, at the end.
                    for start in [7, BLOCK_BYTES - 1, BLOCK_BYTES - 2, BLOCK_BYTES - 3, BLOCK_BYTES - 4] {
                        let text = [&[b'a'; BLOCK_BYTES][..start], &four, &[b'b'; 3][..start % 2]].concat();
                        let expected = std::str::from_utf8(&text).is_ok();
                        assert_eq!(is_utf8(simd, &text), expected, "{four:x?} at {start}");
                        valid += usize::from(expected);
                    }
                }
                assert!(valid > 0);
            });
        }
    }

    #[test]
    fn escapes_are_found_as_a_loop_finds_them() {
        let backslashes = |text: &[u8]| dispatch!(Level::new(), simd => Block::of(simd, text).equal(b'\\'));
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
                    let first = escaped(backslashes(&text), &mut carried);
                    let second = escaped(backslashes(&text[BLOCK_BYTES..]), &mut carried);
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
