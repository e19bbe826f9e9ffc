//! Mutation fuzzing of what reads bytes from outside, on the stable toolchain and in the ordinary test run.
//!
//! Each target takes the files of its folder in `tests/fuzz/corpus/` and changes them; an input that makes the target say
//! something new joins the pool. What a target checks is more than "no panic": see each. An input that fails goes into the corpus.
//!
//! `WEIR_FUZZ_RUNS` is the number of inputs a target gets (100,000 and more for a long run), `WEIR_FUZZ_SEED` another beginning.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "fuzz/peek.rs"]
mod peek;
#[path = "fuzz/stream.rs"]
mod stream;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Inputs a target gets in an ordinary test run: a few seconds for all targets together.
const RUNS: u64 = 5_000;

/// Bytes of an input at most, so that a run stays short.
const INPUT_MAX: usize = 4 * 1024;

/// Inputs kept beyond the corpus at most; the oldest goes.
const POOL_MAX: usize = 512;

#[test]
fn json_bodies() {
    fuzz("json", peek::JSON_WORDS, peek::json_body);
}

#[test]
fn forms() {
    fuzz("form", peek::FORM_WORDS, peek::form);
}

#[test]
fn streams() {
    fuzz("stream", stream::WORDS, stream::stream);
}

/// Runs a target over its corpus and over changed inputs. The target panics on a failure, and otherwise says in a few words what
/// it saw, by which inputs of a new kind are known.
fn fuzz(corpus: &str, words: &[&str], target: fn(&[u8]) -> String) {
    let runs = number_from("WEIR_FUZZ_RUNS").unwrap_or(RUNS);
    let mut random = Random(number_from("WEIR_FUZZ_SEED").unwrap_or(1).wrapping_mul(2).wrapping_add(1));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(corpus);
    let mut files: Vec<_> = std::fs::read_dir(&folder).expect("a corpus folder").map(|entry| entry.unwrap().path()).collect();
    // The order of a folder is the file system's; the run must not depend on it.
    files.sort();
    let mut pool: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert!(!pool.is_empty(), "{folder:?} has no files");
    let seeds = pool.len();
    let mut seen = HashSet::new();
    for run in 0..seeds as u64 + runs {
        let input = match pool.get(run as usize) {
            Some(seed) if run < seeds as u64 => seed.clone(),
            _ => mutated(&pool, words, &mut random),
        };
        match catch_unwind(AssertUnwindSafe(|| target(&input))) {
            Ok(said) => {
                let is_new = seen.insert(said);
                if is_new && run >= seeds as u64 {
                    if pool.len() == seeds + POOL_MAX {
                        pool.remove(seeds);
                    }
                    pool.push(input);
                }
            }
            Err(panic) => {
                eprintln!("{corpus}: input {run} failed: \"{}\"", input.escape_ascii());
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(runs < 1_000 || seen.len() > seeds, "{corpus}: the changes led nowhere");
}

/// An input of the pool with a few changes.
fn mutated(pool: &[Vec<u8>], words: &[&str], random: &mut Random) -> Vec<u8> {
    let mut input = pool[random.below(pool.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() + 1);
        let end = at + random.below((input.len() - at).min(64) + 1);
        match random.below(7) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 => drop(input.drain(at..end)),
            2 => {
                let piece = input[at..end].to_vec();
                let to = random.below(input.len() + 1);
                input.splice(to..to, piece);
            }
            3 => {
                let other = &pool[random.below(pool.len())];
                let from = random.below(other.len() + 1);
                let to = from + random.below((other.len() - from).min(256) + 1);
                input.splice(at..end, other[from..to].iter().copied());
            }
            4 => input.insert(at, random.next() as u8),
            5 if random.below(8) == 0 => input.truncate(at),
            _ => {
                let word = words[random.below(words.len())];
                let end = if random.below(2) == 0 { at } else { end };
                input.splice(at..end, word.bytes());
            }
        }
    }
    input.truncate(INPUT_MAX);
    input
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {value}")))
}

/// Marsaglia's xorshift64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }
}
