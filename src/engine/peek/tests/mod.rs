//! The peek against serde_json: what one accepts the other does, and an edit changes what it says and nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

mod fields;
mod form;
use crate::engine::dialect::Endpoint;
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json as tree};

/// Cases of each property; together over a hundred thousand in a test run.
const CASES: u32 = 20_000;

fn is_json_error(result: &Result<Peek, BadBody>) -> bool {
    matches!(result, Err(BadBody::Json(..)))
}

/// Both accept or both refuse.
fn agree(body: &[u8]) {
    let ours = json(Endpoint::ChatCompletions, body);
    let theirs = serde_json::from_slice::<Value>(body);
    if theirs.as_ref().is_err_and(|error| error.to_string().starts_with("number out of range")) {
        // JSON has no largest number (RFC 8259, 6); serde_json's doubles have.
        return;
    }
    assert_eq!(is_json_error(&ours), theirs.is_err(), "{:?}\nours: {ours:?}\ntheirs: {theirs:?}", String::from_utf8_lossy(body));
    if let (Ok(peek), Ok(value)) = (&ours, &theirs) {
        assert_eq!(peek.model.as_deref(), value["model"].as_str());
        assert_eq!(peek.stream, value["stream"] == true);
    }
}

#[test]
fn junk_is_refused_where_serde_json_refuses_it() {
    let bodies: &[&[u8]] = &[
        b"",
        b" ",
        b"{",
        b"}",
        b"{}",
        b"[]",
        b"null",
        b"nul",
        b"true",
        b"truex",
        b"\"a\"",
        b"\"a",
        b"1",
        b"01",
        b"-",
        b"-0",
        b"-01",
        b"1.",
        b"1.0",
        b".5",
        b"1e",
        b"1e+",
        b"1e5",
        b"1E-5",
        b"1e999",
        b"-1e999",
        b"1e-999",
        b"0e999",
        b"+1",
        b"NaN",
        b"Infinity",
        b"{,}",
        b"{\"a\"}",
        b"{\"a\":}",
        b"{\"a\":1,}",
        b"{\"a\":1}x",
        b"{\"a\":1} \n",
        b"{a:1}",
        b"{'a':1}",
        b"[1,]",
        b"[,1]",
        b"[1 2]",
        b"[1}",
        b"{\"a\":1]",
        b"\"\\x\"",
        b"\"\\u12\"",
        b"\"\\u12g4\"",
        b"\"\\ud800\"",
        b"\"\\udc00\"",
        b"\"\\ud800\\ud800\"",
        b"\"\\ud83d\\ude00\"",
        b"\"\\ud800\\ue000\"",
        b"\"\\ud800\\udfff\"",
        b"\"\\ud800x\"",
        b"\"\\ud800\\n\"",
        b"\"\\",
        b"\"\\\"",
        b"\"\\u",
        b"\"\t\"",
        b"\"\n\"",
        b"\"\x7f\"",
        b"\"\x00\"",
        b"\"\xff\"",
        b"\"\xc3\xa9\"",
        b"\"\xc3\"",
        b"\"\xed\xa0\x80\"",
        b"\"\xf0\x9f\x98\x80\"",
        b"\xef\xbb\xbf{}",
        b"{}\x00",
        b"\x0c{}",
        b"// c\n{}",
        b"\xff",
        b"{\"\xff\":1}",
        b"[[]]",
        b"[[]",
        b"\"\\u0000\"",
        b"18446744073709551616",
        b"{\"a\":{\"b\":[{}]}}",
    ];
    for body in bodies {
        agree(body);
        let mut inside = b"{\"model\":\"m\",\"messages\":[{\"content\":".to_vec();
        inside.extend_from_slice(body);
        inside.extend_from_slice(b"}]}");
        agree(&inside);
    }
    let long = |digits: usize| "9".repeat(digits);
    for number in
        [long(300), long(308), long(310), long(400), format!("-{}", long(310)), format!("0.{}", long(400)), format!("{}e-100", long(350))]
    {
        agree(number.as_bytes());
    }
}

#[test]
fn what_is_not_utf8_is_found_wherever_it_stands() {
    // Characters and parts of them, whole and cut off.
    let pieces: [&[u8]; 13] = [
        "é".as_bytes(),
        "中".as_bytes(),
        "😀".as_bytes(),
        b"\xc3",
        b"\xa9",
        b"\xe4\xb8",
        b"\xf0\x9f",
        b"\xf0\x9f\x98",
        b"\xf0\x9f\x98\x80\x80",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xff",
    ];
    let check = |begin: &[u8], at: usize, piece: &[u8], after: usize, spaces: usize| {
        // The escape makes the blocks begin anew.
        let body = [begin, &b"a".repeat(at), piece, &b"b".repeat(after), b"\"", &b" ".repeat(spaces), b"}"].concat();
        let expected = match std::str::from_utf8(&body) {
            Ok(_) => Ok("m".to_owned()),
            Err(error) => Err(BadBody::Json(error.valid_up_to(), "UTF-8")),
        };
        assert_eq!(json(Endpoint::ChatCompletions, &body).map(|peek| peek.model.unwrap()), expected, "{}", String::from_utf8_lossy(&body));
    };
    for begin in [&br#"{"model":"m","user":""#[..], br#"{"model":"m","user":"\u0061"#, br#"{"model":"m","user":"\\"#] {
        for piece in pieces {
            // At each place of a string, as its last bytes too, with less and more than a block behind it.
            for at in 0..150 {
                for after in [0, 1, 2, 63 - at % 64, 64 - at % 64, 70] {
                    for spaces in [0, 3, 61, 62, 63, 64, 100] {
                        check(begin, at, piece, after, spaces);
                    }
                }
            }
        }
    }
    // Of what begins in the first three bytes of a body, and of what is no object.
    for piece in pieces {
        for at in 0..140 {
            for begin in [&b"\""[..], b" \"", b"{\""] {
                let end: &[u8] = if begin == b"{\"" { b"\":1}" } else { b"\"" };
                agree(&[begin, &b"a".repeat(at), piece, end].concat());
            }
        }
    }
}

#[test]
fn every_string_position_is_looked_at() {
    // A byte that matters at each offset of the vector, word and tail loops, in front of and behind other bytes.
    for len in 0..100 {
        for at in 0..=len {
            for byte in ["\"", "\\", "\\n", "\\u00e9", "\u{1}", "\u{1f}", " ", "\u{7f}", "é", "中", "😀"] {
                agree(format!("\"{}{byte}{}\"", "a".repeat(at), "b".repeat(len - at)).as_bytes());
            }
            let mut bad = format!("\"{}?{}\"", "a".repeat(at), "b".repeat(len - at)).into_bytes();
            bad[at + 1] = 0xC3;
            agree(&bad);
        }
    }
}

#[test]
fn nesting_ends_where_serde_json_ends_it() {
    for depth in [1, 2, DEPTH_MAX - 1, DEPTH_MAX, DEPTH_MAX + 1, 10_000] {
        for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"content\":", "}]")] {
            let brackets = open.matches(['[', '{']).count();
            let body = [open.repeat(depth / brackets), "1".to_owned(), close.repeat(depth / brackets)].concat();
            agree(body.as_bytes());
            agree(format!("{{\"model\":\"m\",\"tools\":{body}}}").as_bytes());
            // A message is deep inside.
            for depth in depth.saturating_sub(4)..depth {
                let turn = r#"{"role":"user","content":"hi"}"#;
                agree(format!("{{\"model\":\"m\",\"messages\":{}{turn}{}}}", "[".repeat(depth), "]".repeat(depth)).as_bytes());
            }
        }
    }
}

/// Bodies of the kind that is sent, with every member the peek knows.
fn body() -> impl Strategy<Value = String> {
    let text = prop_oneof!["[a-z\"\\\\\n\u{1}é中😀 ]{0,40}", Just("plain".to_owned()), Just("x".repeat(200)),];
    let value = prop_oneof![
        Just(tree!(null)), Just(tree!(true)), Just(tree!(false)), any::<u32>().prop_map(|n| tree!(n)), any::<f32>().prop_map(|n| tree!(n)),
        text.clone().prop_map(Value::from), Just(tree!({})), Just(tree!([])), Just(tree!({"include_usage": false})), Just(tree!({"include_usage": true, "x": 1})), Just(tree!({"x": 1})),
        text.clone().prop_map(|text| tree!([{"role": "system", "content": text}, {"role": "user", "content": [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": "u"}}]}])),
    ];
    let key = prop_oneof![
        prop::sample::select(vec![
            "model",
            "stream",
            "stream_options",
            "max_tokens",
            "max_completion_tokens",
            "messages",
            "tools",
            "n",
            "input",
            "response_format",
            "service_tier"
        ])
        .prop_map(str::to_owned),
        text.clone(),
    ];
    let space = prop::sample::select(vec!["", "", " ", "\n\t", "\r\n  "]);
    let member = (key, value, space.clone(), any::<bool>()).prop_map(|(key, value, space, is_escaped)| {
        let key = if is_escaped {
            key.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect::<String>()
        } else {
            serde_json::to_string(&key).unwrap().trim_matches('"').replace("\n", "")
        };
        format!("{space}\"{key}\"{space}:{space}{value}{space}")
    });
    (prop::collection::vec(member, 0..8), "[a-z/]{1,9}", space, 0..9usize).prop_map(|(mut members, model, space, at)| {
        members.insert(at.min(members.len()), format!("\"model\":{space}\"{model}\""));
        format!("{space}{{{}}}{space}", members.join(","))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_judged_as_serde_json_judges_them(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        agree(&bytes);
    }

    #[test]
    fn any_json_like_bytes_are_judged_as_serde_json_judges_them(tokens in prop::collection::vec(prop::sample::select(
        vec!["{", "}", "[", "]", ",", ":", "\"", "\"model\"", "\"a\"", "1", "-", "0", ".", "e", "true", "null", " ", "\n", "\\u", "d83d", "\\", "é", "\u{1}"]), 0..24)) {
        agree(tokens.concat().as_bytes());
    }

    #[test]
    fn mutated_bodies_are_judged_as_serde_json_judges_them(body in body(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 0..4)) {
        let mut bytes = body.into_bytes();
        for (at, byte, how) in changes {
            let at = at.index(bytes.len().max(1));
            match how {
                0 if at < bytes.len() => bytes[at] = byte,
                1 if at < bytes.len() => drop(bytes.remove(at)),
                2 => bytes.truncate(at),
                _ => bytes.insert(at, byte),
            }
        }
        agree(&bytes);
    }

    #[test]
    fn edits_change_what_they_say_and_nothing_else(body in body(), model in prop::option::of("[a-z\"\\\\é]{1,9}"), include_usage: bool, limit in prop::option::of(0..100_000u64), cap_field in prop::sample::select(vec!["", "max_tokens", "max_completion_tokens"])) {
        check_edit(&body, &Edits { model: model.as_deref(), include_usage, max_output: limit, cap_field });
    }

    #[test]
    fn no_multipart_bytes_panic(parts in prop::collection::vec(prop::sample::select(
        vec!["--b", "--", "\r\n", "\r\n--b\r\n", "\r\n--b--", "content-disposition: form-data; name=\"model\"", "name=", "\"", "\\", ";", "Content-Disposition:form-data;name=stream", "\r\n\r\n", "true", "x: y", "\u{0}"]), 0..24)) {
        let body = Bytes::from(parts.concat());
        if let Ok(peek) = multipart("multipart/form-data; boundary=b", &body) {
            let out = edit(Endpoint::Transcriptions, &body, &peek, &Edits { model: Some("new"), ..Edits::default() });
            let again = multipart("multipart/form-data; boundary=b", &out.concat()).expect("still a form");
            prop_assert_eq!(again.model.as_deref(), Some("new"));
            prop_assert_eq!(again.model_at.len(), peek.model_at.len());
        }
    }
}

/// Edits a chat body and compares the trees before and after.
fn check_edit(body: &str, edits: &Edits<'_>) {
    let Ok(peek) = json(Endpoint::ChatCompletions, body.as_bytes()) else { return };
    let body = Bytes::from(body.to_owned());
    let out = edit(Endpoint::ChatCompletions, &body, &peek, edits);
    let edited = out.concat();
    let mut expected: Value = serde_json::from_slice(&body).unwrap();
    let after: Value = serde_json::from_slice(&edited).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&edited)));
    if let Some(model) = edits.model {
        expected["model"] = model.into();
    }
    if edits.include_usage {
        if !expected["stream_options"].is_object() {
            expected["stream_options"] = tree!({});
        }
        expected["stream_options"]["include_usage"] = true.into();
    }
    if let Some(limit) = edits.max_output {
        let mut holds = false;
        for name in ["max_tokens", "max_completion_tokens"] {
            if let Some(cap) = expected[name].as_u64() {
                holds = true;
                expected[name] = cap.min(limit).into();
            }
        }
        if !holds {
            expected[if edits.cap_field.is_empty() { "max_tokens" } else { edits.cap_field }] = limit.into();
        }
    }
    for name in ["max_tokens", "max_completion_tokens", "stream_options"] {
        // Indexing above wrote nulls where nothing was.
        if expected[name].is_null() && after.get(name).is_none() {
            expected.as_object_mut().unwrap().shift_remove(name);
        }
    }
    assert_eq!(after, expected, "{edits:?}\n{}\n{}", String::from_utf8_lossy(&body), String::from_utf8_lossy(&edited));
    // Behind so much space it is too long to be copied, and cut instead: what is not new is a slice of the original, in order, and
    // nothing of it is left out but what was replaced.
    let padding = " ".repeat(super::edit::JOINED_BYTES_MAX);
    let body_cut = Bytes::from([padding.as_bytes(), &body[..]].concat());
    let peek_cut = json(Endpoint::ChatCompletions, &body_cut).expect("still a body");
    let cut = edit(Endpoint::ChatCompletions, &body_cut, &peek_cut, edits);
    assert_eq!(cut.concat(), [padding.as_bytes(), &edited[..]].concat());
    let is_original = |slice: &&Bytes| body_cut.as_ptr_range().contains(&slice.as_ptr());
    let mut from = body_cut.as_ptr() as usize;
    for slice in cut.iter().filter(is_original) {
        assert!(slice.as_ptr() as usize >= from);
        from = slice.as_ptr() as usize + slice.len();
    }
    let kept: usize = cut.iter().filter(is_original).map(Bytes::len).sum();
    let replaced: usize =
        peek.model_at.iter().chain(peek.caps.iter().map(|cap| &cap.at)).chain(&peek.stream_options_at).map(|at| at.len()).sum();
    assert!(kept + replaced >= body_cut.len());
    if edits.model.is_none() && !edits.include_usage && edits.max_output.is_none() {
        assert_eq!((out.len(), out[0].as_ptr()), (1, body.as_ptr()));
    }
    let again = json(Endpoint::ChatCompletions, &edited).expect("still a body");
    let twice = edit(Endpoint::ChatCompletions, &Bytes::from(edited.clone()), &again, edits);
    assert_eq!(twice.concat(), edited, "an edit done is none");
}
