//! Whole counts against tiktoken's (`vectors.jsonl`, see `vectors.py`), streams against whole counts.

#![allow(clippy::unwrap_used)] // a test that cannot read its own data has failed

use super::*;
use serde_json::Value;

const ENCODINGS: [(&str, Encoding); 2] = [("o200k", Encoding::O200k), ("cl100k", Encoding::Cl100k)];

/// Counts as they are.
pub(super) fn plain(encoding: Encoding) -> Family {
    Family { encoding, per_mille: 1000 }
}

/// Every reference text, how many times over it stands, and what tiktoken makes of it: token ids, or for a long text their number.
pub(super) fn vectors() -> impl Iterator<Item = (String, usize, Value)> {
    include_str!("vectors.jsonl").lines().map(|line| {
        let row: Value = serde_json::from_str(line).unwrap();
        (row["text"].as_str().unwrap().to_owned(), row["times"].as_u64().unwrap() as usize, row)
    })
}

/// The reference texts that stand once.
fn short_texts() -> impl Iterator<Item = String> {
    vectors().filter(|(_, times, _)| *times == 1).map(|(text, _, _)| text)
}

fn token_ids(encoding: Encoding, text: &str) -> Vec<u32> {
    let vocabulary = Vocabulary::of(encoding);
    let mut ids = Vec::new();
    split::each_piece(encoding, text, |piece| merge::each_token(vocabulary, piece.as_bytes(), |token| ids.push(vocabulary.rank(token))));
    ids
}

#[test]
fn short_texts_have_the_reference_tokens() {
    for (text, _, row) in vectors().filter(|(_, times, _)| *times == 1) {
        for (name, encoding) in ENCODINGS {
            let expected: Vec<u32> = serde_json::from_value(row[name].clone()).unwrap();
            assert_eq!(token_ids(encoding, &text), expected, "{name} {text:?}");
            assert_eq!(count(plain(encoding), &text), expected.len() as u64, "{name} {text:?}");
        }
    }
}

/// Also the proof that no such text takes for ever: anything quadratic would here take hours.
#[test]
fn megabytes_of_one_thing_have_the_reference_count() {
    for (text, times, row) in vectors().filter(|(_, times, _)| *times > 1) {
        for (name, encoding) in ENCODINGS {
            assert_eq!(count(plain(encoding), &text.repeat(times)), row[name].as_u64().unwrap(), "{name} {times} times {text:?}");
        }
    }
}

#[test]
fn a_correction_applies_to_counts_and_streams_alike() {
    let corrected = Family { encoding: Encoding::O200k, per_mille: 1250 };
    let text = "one two three four five six";
    assert_eq!((count(plain(Encoding::O200k), text), count(corrected, text)), (6, 8));
    let mut stream = Stream::new(corrected);
    text.split_inclusive(' ').for_each(|word| stream.push(word.as_bytes()));
    assert_eq!(stream.finish(), 8);
}

#[test]
fn a_vocabulary_is_loaded_on_first_use() {
    // Other tests share the process, so only the direction can be told.
    count(plain(Encoding::Cl100k), "a");
    load(Encoding::O200k);
    assert!(is_loaded(Encoding::Cl100k) && is_loaded(Encoding::O200k));
}

/// Checks that a text counts the same in parts as whole, asked after every part.
fn check_parts<'t>(encoding: Encoding, whole: &[u8], parts: impl Iterator<Item = &'t [u8]>) {
    let mut stream = Stream::new(plain(encoding));
    let mut so_far = 0;
    for part in parts {
        stream.push(part);
        so_far += part.len();
        let so_far = String::from_utf8_lossy(&whole[..so_far]);
        assert_eq!(stream.finish(), count(plain(encoding), &so_far), "{encoding:?} {so_far:?}");
    }
    assert_eq!(so_far, whole.len());
}

#[test]
fn a_stream_counts_the_same_cut_anywhere() {
    for text in short_texts() {
        let bytes = text.as_bytes();
        for (_, encoding) in ENCODINGS {
            check_parts(encoding, bytes, bytes.chunks(1));
            check_parts(encoding, bytes, bytes.chunks(7));
            for cut in 0..=bytes.len() {
                let (before, after) = bytes.split_at(cut);
                check_parts(encoding, bytes, [before, after].into_iter());
            }
        }
    }
}

#[test]
fn a_stream_of_what_is_not_utf8_counts_as_lossy() {
    let texts: [&[u8]; 9] = [
        b"\xff",
        b"a\xc3",
        b"a\xc3b\xe2\x82",
        b"\xe2\x82\xac\xe2\x82\xe2\xf0\x9f\x98 \xf0\x9f\x98\x80",
        b"\xf0\x9f\x98\xf0\x9f\x98\x80\x80\x80",
        b"\xed\xa0\x80 \xc0\xaf \xf5\x80\x80\x80",
        b"don\xff't \xe4\xbd\xa0\xe5",
        b"\x80\x80\x80\x80\xf4\x8f\xbf\xbf\xf4\x90\x80\x80",
        b"\xe0\x80\x80\xf0\x80\x80\x80\xf1\xf1\xf1",
    ];
    for bytes in texts {
        for (_, encoding) in ENCODINGS {
            check_parts(encoding, bytes, bytes.chunks(1));
            for cut in 0..=bytes.len() {
                let (before, after) = bytes.split_at(cut);
                check_parts(encoding, bytes, [before, after].into_iter());
            }
        }
    }
}

#[test]
fn a_long_stream_counts_the_same_and_holds_little() {
    let text: String = short_texts().collect::<Vec<_>>().join(" ").repeat(4);
    for (_, encoding) in ENCODINGS {
        let expected = count(plain(encoding), &text);
        for part_bytes in [1, 5, 4095, 4096, 4097, text.len()] {
            let mut stream = Stream::new(plain(encoding));
            for part in text.as_bytes().chunks(part_bytes) {
                stream.push(part);
                assert!(stream.held_bytes() <= 8 << 10);
            }
            assert_eq!(stream.finish(), expected, "{encoding:?} {part_bytes}");
        }
    }
}

#[test]
fn a_stream_holds_a_run_only_to_a_bound() {
    for run in ["a", " ", "\n ", "的", "\u{301}", "😀"] {
        let text = run.repeat(300_000 / run.len());
        for (_, encoding) in ENCODINGS {
            let mut stream = Stream::new(plain(encoding));
            for part in text.as_bytes().chunks(1000) {
                stream.push(part);
                assert!(stream.held_bytes() <= 128 << 10, "{run:?}");
            }
            // Four cuts fit into the text; each may cost a token.
            let expected = count(plain(encoding), &text);
            assert!(stream.finish().abs_diff(expected) <= 4, "{run:?} {} {expected}", stream.finish());
        }
    }
}

#[test]
fn a_stream_allocates_nothing_before_text_and_can_go_on_after_its_count() {
    let mut stream = Stream::new(plain(Encoding::O200k));
    assert_eq!((stream.held_bytes(), stream.finish()), (0, 0));
    stream.push(b"don");
    stream.push(b"");
    assert_eq!((stream.finish(), stream.finish()), (1, 1));
    stream.push(b"'t");
    assert_eq!(stream.finish(), count(plain(Encoding::O200k), "don't"));
}

/// A megabyte of letters drawn by a linear congruential generator: the longest merge there is.
#[test]
fn a_megabyte_of_random_letters_completes() {
    let mut state = 1_u64;
    let mut letter = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'a' + ((state >> 33) % 26) as u8)
    };
    let text: String = (0..1_000_000).map(|_| letter()).collect();
    for (_, encoding) in ENCODINGS {
        let tokens = count(plain(encoding), &text);
        assert!((400_000..700_000).contains(&tokens), "{tokens}");
    }
}
