//! From a piece to tokens: neighbours that form the token of the lowest rank are joined, leftmost first, until no neighbours form a token.
//!
//! The order of joins is what makes the count exact, so both ways below take the very same joins. They differ in cost: a scan
//! for the lowest rank is fastest for a word, but its cost grows with the square of the length; a heap's grows with n log n.

use super::vocabulary::{NO_RANK, Vocabulary};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The longest piece, in bytes, that is merged by scanning. Measured: at about this length the heap is as fast.
const MAX_SCANNED_BYTES: usize = 128;

/// The longest piece merged as one, so that the heap's memory (24 bytes a byte) is bounded. A longer one is cut here, which can cost a token;
/// request bodies end far below.
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
        piece.chunks(MAX_PIECE_BYTES).for_each(|piece| heap(vocabulary, piece, &mut token));
    }
}

/// Merges a piece of at most [`MAX_SCANNED_BYTES`], on the stack.
fn scan(vocabulary: &Vocabulary, piece: &[u8], mut token: impl FnMut(&[u8])) {
    // Part `i` is `piece[starts[i]..starts[i + 1]]`; `ranks[i]` is the rank of part `i` joined with the next.
    let mut starts = [0_u8; MAX_SCANNED_BYTES + 1];
    let mut ranks = [NO_RANK; MAX_SCANNED_BYTES];
    let mut parts = piece.len();
    for start in 0..=parts {
        starts[start] = start as u8;
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
    // A part is known by where it begins. `next[part]` is where it ends; `ranks[part]` is the rank of the part joined with the next one, so a heap
    // entry that says otherwise is out of date.
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

    #[test]
    fn both_ways_take_the_same_joins() {
        for (text, _, _) in vectors() {
            for piece in text.as_bytes().chunks(MAX_SCANNED_BYTES) {
                for encoding in [Encoding::O200k, Encoding::Cl100k] {
                    let (mut scanned, mut heaped) = (Vec::new(), Vec::new());
                    scan(Vocabulary::of(encoding), piece, |token| scanned.push(token.to_vec()));
                    heap(Vocabulary::of(encoding), piece, |token| heaped.push(token.to_vec()));
                    assert_eq!(scanned, heaped);
                }
            }
        }
    }
}
