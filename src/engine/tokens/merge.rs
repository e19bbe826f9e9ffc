//! From a piece to tokens: neighbours that form the token of the lowest rank are joined, leftmost first, until no neighbours form a token.
//!
//! The order of joins is what makes the count exact, so all ways below end in the very same tokens. They differ in cost: a scan for the
//! lowest rank is fastest for a word, but its cost grows with the square of the length. A heap's grows with n log n, and windows
//! keep the heap small.

use super::vocabulary::{NO_RANK, Vocabulary};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The longest piece, in bytes, that is merged by scanning. Measured: 48, 80 and 128 cost the same within the
/// noise, so the largest, which allocates least.
const MAX_SCANNED_BYTES: usize = 128;

/// How much of a long piece is merged at a time, so that the heap stays in the processor's cache. Measured on a
/// megabyte of random letters: 10 MB/s, against 2 with one heap.
const WINDOW_BYTES: usize = 4 << 10;

/// How much at a window's end is merged once more at the start of the next: the end of a window is no end of the piece, and what it
/// did to the tokens before it fades within a few of them (a token has at most 128 bytes).
const OVERLAP_BYTES: usize = 512;

/// The longest piece merged as one, so that the memory of a heap for all of it (24 bytes a byte) is bounded. A longer one is cut here,
/// which can cost a token.
pub(super) const MAX_PIECE_BYTES: usize = 16 << 20;

/// Tokens of one piece.
pub(super) fn count(vocabulary: &Vocabulary, piece: &[u8]) -> u64 {
    let mut tokens = 0;
    each_token(vocabulary, piece, |_| tokens += 1);
    tokens
}

/// Calls `token` with the bytes of each token of a piece, in order.
pub(super) fn each_token(vocabulary: &Vocabulary, piece: &[u8], mut token: impl FnMut(&[u8])) {
    if piece.len() == 1 || vocabulary.rank(piece) != NO_RANK {
        token(piece);
    } else if piece.len() <= MAX_SCANNED_BYTES {
        scan(vocabulary, piece, token);
    } else {
        for piece in piece.chunks(MAX_PIECE_BYTES) {
            match windows(vocabulary, piece, WINDOW_BYTES, OVERLAP_BYTES) {
                Some(ends) => {
                    ends.iter().fold(0, |start, end| {
                        token(&piece[start..*end as usize]);
                        *end as usize
                    });
                }
                None => heap(vocabulary, piece, &mut token),
            }
        }
    }
}

/// Merges a long piece window by window; gives where its tokens end. None when two windows disagree or are
/// too small to share a token: then the piece has to be merged as one.
///
/// Why this is exact: tokens are the merge of a piece if each two neighbours are the merge of the two together. For take the first join
/// that crosses from one of them to its neighbour: all joins before it stayed inside the two, in the order that they have when the two are
/// merged alone, so it would cross there as well. Here each two neighbours stand in one window's merge, as windows share a token.
fn windows(vocabulary: &Vocabulary, piece: &[u8], window_bytes: usize, overlap_bytes: usize) -> Option<Vec<u32>> {
    let mut ends: Vec<u32> = Vec::with_capacity(piece.len() / 2);
    let mut start = 0;
    loop {
        let stop = piece.len().min(start + window_bytes);
        let is_last = stop == piece.len();
        let sure_bytes = if is_last { stop } else { stop - overlap_bytes };
        let shared_end = ends.last().copied();
        let first = ends.len();
        let mut end = start;
        heap(vocabulary, &piece[start..stop], |token| {
            end += token.len();
            if end <= sure_bytes {
                ends.push(end as u32);
            }
        });
        if let Some(shared_end) = shared_end {
            if ends.get(first) != Some(&shared_end) {
                return None;
            }
            ends.remove(first);
        }
        if is_last {
            return Some(ends);
        }
        // The next window begins with the last token that this one is sure of.
        let next_start = ends.len().checked_sub(2).map_or(0, |before| ends[before] as usize);
        if next_start <= start {
            return None;
        }
        start = next_start;
    }
}

/// Merges a piece of at most [`MAX_SCANNED_BYTES`], on the stack.
fn scan(vocabulary: &Vocabulary, piece: &[u8], mut token: impl FnMut(&[u8])) {
    // Part `i` is `piece[starts[i]..starts[i + 1]]`; `ranks[i]` is the rank of part `i` joined with the next.
    let mut starts = [0_u8; MAX_SCANNED_BYTES + 1];
    let mut ranks = [NO_RANK; MAX_SCANNED_BYTES];
    let mut parts = piece.len();
    for (start, place) in starts.iter_mut().enumerate() {
        *place = start as u8;
    }
    for start in 0..parts - 1 {
        ranks[start] = vocabulary.rank(&piece[start..start + 2]);
    }
    loop {
        let lowest = ranks[..parts - 1].iter().copied().min().unwrap_or(NO_RANK);
        let Some(at) = ranks[..parts - 1].iter().position(|rank| *rank == lowest && lowest != NO_RANK) else { break };
        starts.copy_within(at + 2..=parts, at + 1);
        ranks.copy_within(at + 1..parts, at);
        parts -= 1;
        let joined = |part: usize| match part + 2 <= parts {
            true => vocabulary.rank(&piece[usize::from(starts[part])..usize::from(starts[part + 2])]),
            false => NO_RANK,
        };
        ranks[at] = joined(at);
        if at > 0 {
            ranks[at - 1] = joined(at - 1);
        }
    }
    for part in 0..parts {
        token(&piece[usize::from(starts[part])..usize::from(starts[part + 1])]);
    }
}

/// Merges a long piece: its parts are a linked list, the possible joins a heap.
fn heap(vocabulary: &Vocabulary, piece: &[u8], mut token: impl FnMut(&[u8])) {
    let end = piece.len();
    // A part is known by where it begins. `next[part]` is where it ends; `ranks[part]` is the rank of the part joined with the next one, so
    // a heap entry that says otherwise is out of date.
    let mut next: Vec<u32> = (1..=end as u32 + 1).collect();
    let mut previous: Vec<u32> = (0..=end as u32).map(|start| start.saturating_sub(1)).collect();
    let mut ranks: Vec<u32> = piece.windows(2).map(|pair| vocabulary.rank(pair)).collect();
    ranks.push(NO_RANK);
    let join = |rank: u32, start: usize| Reverse(u64::from(rank) << 32 | start as u64);
    let possible = ranks.iter().enumerate().filter(|(_, rank)| **rank != NO_RANK);
    let mut joins = BinaryHeap::from_iter(possible.map(|(start, rank)| join(*rank, start)));
    while let Some(Reverse(entry)) = joins.pop() {
        let (rank, left) = ((entry >> 32) as u32, entry as u32 as usize);
        if ranks[left] != rank {
            continue;
        }
        let right = next[left] as usize;
        let after = next[right];
        next[left] = after;
        previous[after as usize] = left as u32;
        ranks[right] = NO_RANK;
        ranks[left] = NO_RANK;
        if (after as usize) < end {
            ranks[left] = vocabulary.rank(&piece[left..next[after as usize] as usize]);
            if ranks[left] != NO_RANK {
                joins.push(join(ranks[left], left));
            }
        }
        if left > 0 {
            let before = previous[left] as usize;
            ranks[before] = vocabulary.rank(&piece[before..after as usize]);
            if ranks[before] != NO_RANK {
                joins.push(join(ranks[before], before));
            }
        }
    }
    let mut start = 0;
    while start < end {
        let stop = next[start] as usize;
        token(&piece[start..stop]);
        start = stop;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Encoding, tests::vectors};
    use super::*;

    fn heap_ends(vocabulary: &Vocabulary, piece: &[u8]) -> Vec<u32> {
        let mut ends = vec![0];
        heap(vocabulary, piece, |token| ends.push(ends[ends.len() - 1] + token.len() as u32));
        ends.split_off(1)
    }

    #[test]
    fn scan_and_heap_take_the_same_joins() {
        for (text, _, _) in vectors() {
            for piece in text.as_bytes().chunks(MAX_SCANNED_BYTES) {
                for encoding in [Encoding::O200k, Encoding::Cl100k] {
                    let vocabulary = Vocabulary::of(encoding);
                    let mut ends = vec![0];
                    scan(vocabulary, piece, |token| ends.push(ends[ends.len() - 1] + token.len() as u32));
                    assert_eq!(ends[1..], heap_ends(vocabulary, piece));
                }
            }
        }
    }

    /// Windows far smaller than the real ones, so that they often disagree: what they then agree on must still be right.
    #[test]
    fn windows_are_exact_or_say_that_they_are_not() {
        for encoding in [Encoding::O200k, Encoding::Cl100k] {
            let vocabulary = Vocabulary::of(encoding);
            let (mut agreed, mut disagreed) = (0, 0);
            for (text, times, _) in vectors() {
                let piece = text.repeat(times.min(300));
                let expected = heap_ends(vocabulary, piece.as_bytes());
                for (window_bytes, overlap_bytes) in [(8, 0), (8, 1), (16, 2), (24, 8), (64, 16), (4096, 512)] {
                    match windows(vocabulary, piece.as_bytes(), window_bytes, overlap_bytes) {
                        Some(ends) => {
                            agreed += 1;
                            assert_eq!(ends, expected, "{encoding:?} {window_bytes} {overlap_bytes} {piece:?}");
                        }
                        None => disagreed += 1,
                    }
                }
            }
            assert!(agreed > 500 && disagreed > 100, "{agreed} {disagreed}");
        }
    }
}
