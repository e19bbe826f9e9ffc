//! What each member means at each endpoint.

use super::super::*;
use crate::engine::dialect::Endpoint::{self, *};

fn read(endpoint: Endpoint, body: &str) -> Peek {
    json(endpoint, body.as_bytes()).unwrap_or_else(|error| panic!("{error}: {body}"))
}

/// A body with a model and `members`.
fn with(members: &str) -> String {
    format!("{{\"model\":\"m\",{members}}}")
}

#[test]
fn the_model_is_found_however_it_is_written() {
    let check = |body: &str, expected: Result<(&str, usize), BadBody>| {
        let found = json(ChatCompletions, body.as_bytes()).map(|peek| (peek.model.unwrap_or_default(), peek.model_at.len()));
        assert_eq!(found, expected.map(|(name, places)| (name.to_owned(), places)), "{body}");
    };
    check(r#"{"model":"gpt-4o"}"#, Ok(("gpt-4o", 1)));
    check(r#"{"mod\u0065l":"gpt-4o"}"#, Ok(("gpt-4o", 1)));
    check(r#"{"model":"a\/b\u00e9\ud83d\ude00"}"#, Ok(("a/bé😀", 1)));
    check(r#"{"model":"old","\u006dodel":"new"}"#, Ok(("new", 2)));
    check(r#"{"model":1,"model":"new"}"#, Ok(("new", 2)));
    check(r#"{"model":"old","model":null}"#, Err(BadBody::NoModel));
    check(r#"{"model":""}"#, Err(BadBody::NoModel));
    check(r#"{"model":["m"]}"#, Err(BadBody::NoModel));
    check(r#"{"Model":"m","models":"m","mode":"m","model\u0000":"m"}"#, Err(BadBody::NoModel));
    check(r#"{"messages":[{"model":"inner"}],"metadata":{"model":"inner"}}"#, Err(BadBody::NoModel));
    check(&format!(r#"{{"model":"{}"}}"#, "m".repeat(NAME_MAX)), Ok((&"m".repeat(NAME_MAX), 1)));
    check(&format!(r#"{{"model":"{}"}}"#, "m".repeat(NAME_MAX + 1)), Err(BadBody::WrongType("model")));
    check("[]", Err(BadBody::NotAnObject));
    check("\"model\"", Err(BadBody::NotAnObject));
    check("{}", Err(BadBody::NoModel));
    // Broken JSON is said before anything else.
    check(r#"{"stream":1,"#, Err(BadBody::Json(12, "a member name")));
}

#[test]
fn the_places_are_those_of_the_values() {
    let body = r#" { "model" : "a" , "max_tokens": 7, "stream_options" :{"include_usage":true} , "model":"b"}"#;
    let peek = read(ChatCompletions, body);
    let values: Vec<&str> = peek.model_at.iter().map(|at| &body[at.clone()]).collect();
    assert_eq!(values, ["\"a\"", "\"b\""]);
    assert_eq!(&body[peek.stream_options_at.expect("given")], "{\"include_usage\":true}");
    assert_eq!(&body[peek.caps[0].at.clone()], "7");
    assert_eq!(peek.insert_at, 2);
}

#[test]
fn a_message_is_the_same_with_and_without_spaces() {
    let messages = [
        r#"{"role":"user","content":"hi"}"#,
        r#"{"role":"assistant","content":"a \"longer\" text than a vector has bytes, which is sixty-four"}"#,
        r#"{"role":"user","content":""}"#,
        r#"{"role":"user","content":"hi","name":"Ann"}"#,
        r#"{"role":"assistant","content":"hi","role":"system"}"#,
        r#"{"role":"assistant","content":"hi","content":"again"}"#,
        r#"{"role":"assistant","content":"hi","tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}"#,
        r#"{"role":"user","content":[{"type":"text","text":"hi"},{"type":"image_url","image_url":{"url":"u"}}]}"#,
        r#"{"role":"assistant","content":null}"#,
        r#"{"role":"system","content":"be brief"}"#,
        r#"{"role":"developer","content":"be brief"}"#,
        r#"{"content":"hi","role":"user"}"#,
    ];
    for endpoint in [ChatCompletions, Messages, Responses] {
        for first in messages {
            for second in messages {
                let list = if endpoint == Responses { "input" } else { "messages" };
                let tight = read(endpoint, &with(&format!(r#""{list}":[{first},{second}]"#)));
                let spaced = [first, second].map(|message| message.replace("\":", "\" : "));
                let spaced = read(endpoint, &with(&format!(r#""{list}":[ {} , {} ]"#, spaced[0], spaced[1])));
                assert_eq!(tight, spaced, "{first} {second}");
                assert_eq!(tight.messages, 2);
            }
        }
        let check = |messages: &str, expected: BadBody| {
            let list = if endpoint == Responses { "input" } else { "messages" };
            assert_eq!(json(endpoint, format!(r#"{{"model":"m","{list}":[{messages}"#).as_bytes()), Err(expected), "{messages}");
        };
        let begin = r#"{"model":"m","messages":["#.len() - if endpoint == Responses { 3 } else { 0 };
        check(r#"{"role":"user","content":"hi""#, BadBody::Json(begin + 29, "a comma or a closing brace"));
        check(r#"{"role":"user","content":"hi"]"#, BadBody::Json(begin + 29, "a comma or a closing brace"));
        check(r#"{"role":"user","content":"hi"#, BadBody::Json(begin + 28, "a closing quote"));
        check(r#"{"role":"user","content":"hi"}"#, BadBody::Json(begin + 30, "a comma or a closing bracket"));
    }
}

#[test]
fn streams_and_usage() {
    let check = |members: &str, expected: Result<(bool, bool), BadBody>| {
        let found = json(ChatCompletions, with(members).as_bytes()).map(|peek| (peek.stream, peek.include_usage));
        assert_eq!(found, expected, "{members}");
    };
    check(r#""stream":true"#, Ok((true, false)));
    check(r#""stream":false"#, Ok((false, false)));
    check(r#""stream":null"#, Ok((false, false)));
    check(r#""stream":true,"stream":false"#, Ok((false, false)));
    check(r#""stream":"true""#, Err(BadBody::WrongType("stream")));
    check(r#""stream":1"#, Err(BadBody::WrongType("stream")));
    check(r#""stream_options":{"include_usage":true}"#, Ok((false, true)));
    check(r#""stream_options":{"include_usage":false}"#, Ok((false, false)));
    check(r#""stream_options":{"include_usage":true,"include_\u0075sage":false}"#, Ok((false, false)));
    check(r#""stream_options":{"x":{"include_usage":true}}"#, Ok((false, false)));
    check(r#""stream_options":{"include_usage":true},"stream_options":null"#, Ok((false, false)));
    check(r#""stream_options":[]"#, Err(BadBody::WrongType("stream_options")));
    assert!(read(ChatCompletions, &with(r#""stream":true"#)).needs.covers(Capabilities::STREAM));
    assert!(!read(Embeddings, &with(r#""stream":true"#)).stream, "no such member there");
}

#[test]
fn counts_are_counts() {
    let check = |endpoint, members: &str, expected: Result<(Option<u64>, u64), BadBody>| {
        let found = json(endpoint, with(members).as_bytes()).map(|peek| (peek.max_output, peek.choices));
        assert_eq!(found, expected, "{members}");
    };
    check(ChatCompletions, r#""max_tokens":10"#, Ok((Some(10), 1)));
    check(ChatCompletions, r#""max_tokens":10,"max_completion_tokens":5"#, Ok((Some(5), 1)));
    check(ChatCompletions, r#""max_tokens":10,"max_tokens":20"#, Ok((Some(20), 1)));
    check(ChatCompletions, r#""max_tokens":10,"max_tokens":null"#, Ok((None, 1)));
    check(ChatCompletions, r#""max_output_tokens":10"#, Ok((None, 1)));
    check(Responses, r#""max_output_tokens":10"#, Ok((Some(10), 1)));
    check(Messages, r#""max_tokens":0"#, Ok((Some(0), 1)));
    check(Embeddings, r#""max_tokens":"x""#, Ok((None, 1)));
    check(ChatCompletions, r#""max_tokens":18446744073709551615"#, Ok((Some(u64::MAX), 1)));
    for bad in ["18446744073709551616", "-1", "-0", "1.0", "1e3", "\"1\"", "true", "[1]", "{}"] {
        check(ChatCompletions, &format!("\"max_tokens\":{bad}"), Err(BadBody::WrongType("max_tokens")));
    }
    check(ChatCompletions, r#""n":3"#, Ok((None, 3)));
    check(ChatCompletions, r#""n":0"#, Ok((None, 1)));
    check(ChatCompletions, r#""n":null"#, Ok((None, 1)));
    check(ChatCompletions, r#""n":1.5"#, Err(BadBody::WrongType("n")));
    check(Completions, r#""n":2,"best_of":4"#, Ok((None, 4)));
    check(ChatCompletions, r#""best_of":4"#, Ok((None, 1)));
    check(Images, r#""n":2"#, Ok((None, 2)));
}

#[test]
fn needs_are_read_off_the_members() {
    let check = |endpoint, members: &str, expected: Capabilities| assert_eq!(read(endpoint, &with(members)).needs, expected, "{members}");
    let none = Capabilities::default();
    check(ChatCompletions, r#""tools":[{"type":"function"}]"#, Capabilities::TOOLS);
    check(ChatCompletions, r#""functions":[{}]"#, Capabilities::TOOLS);
    check(ChatCompletions, r#""tools":[]"#, none);
    check(ChatCompletions, r#""tools":null"#, none);
    check(ChatCompletions, r#""messages":[{"content":[{"image_url":{"url":"u"},"type":"image_url"}]}]"#, Capabilities::VISION);
    check(ChatCompletions, r#""messages":[{"content":"image_url"}],"tools":null,"type":"image_url""#, none);
    check(ChatCompletions, r#""messages":[{"content":[{"type":"text","text":"{\"type\":\"image_url\"}"}]}]"#, none);
    check(Responses, r#""input":[{"role":"user","content":[{"type":"input_image","image_url":"u"}]}]"#, Capabilities::VISION);
    check(
        Messages,
        r#""messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","data":"AA"}}]}]"#,
        Capabilities::VISION,
    );
    let tool_result = r#""messages":[{"role":"user","content":[{"type":"tool_result","content":[{"type":"image","source":{}}]}]}]"#;
    check(Messages, tool_result, Capabilities::VISION);
    check(ChatCompletions, r#""response_format":{"type":"json_object"}"#, Capabilities::JSON);
    check(ChatCompletions, r#""response_format":{"json_schema":{"name":"x"},"type":"json_schema"}"#, Capabilities::JSON);
    check(ChatCompletions, r#""response_format":{"type":"text"}"#, none);
    check(ChatCompletions, r#""response_format":{"type":"text","x":{"type":"json_object"}}"#, none);
    check(Responses, r#""text":{"format":{"type":"json_schema","schema":{"type":"text"}}}"#, Capabilities::JSON);
    check(Messages, r#""output_config":{"format":{"type":"json_schema"}}"#, Capabilities::JSON);
    let all = r#""stream":true,"tools":[1],"response_format":{"type":"json_object"},"messages":[{"content":[{"type":"image_url"}]}]"#;
    check(ChatCompletions, all, Capabilities(15));
}

#[test]
fn text_is_what_the_model_reads() {
    let check = |endpoint, members: &str, expected: (u64, u64, u64)| {
        let peek = read(endpoint, &with(members));
        assert_eq!((peek.text_bytes, peek.images, peek.token_ids), expected, "{members}");
    };
    check(ChatCompletions, r#""messages":[{"role":"user","content":"hello"}],"user":"12345678""#, (5, 0, 0));
    check(ChatCompletions, r#""messages":[{"role":"user","content":"a\n\u00e9\ud83d\ude00é"}]"#, (10, 0, 0));
    check(
        ChatCompletions,
        r#""messages":[{"content":[{"type":"text","text":"12345"},{"type":"image_url","image_url":{"url":"data:1234567890"}},{"type":"input_audio","input_audio":{"data":"AAAA"}},{"type":"file","file":{"file_data":"AAAA"}}]}]"#,
        (5, 1, 0),
    );
    check(
        ChatCompletions,
        r#""messages":[{"role":"assistant","tool_calls":[{"id":"123","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"x","content":"ok"}]"#,
        (5, 0, 0),
    );
    // Names, strings and numbers of tools.
    check(ChatCompletions, r#""tools":[{"type":"function","n":12,"ok":true}]"#, (4 + 8 + 1 + 2 + 2 + 4, 0, 0));
    check(Completions, r#""prompt":"abc","suffix":"d""#, (4, 0, 0));
    check(Completions, r#""prompt":["ab","c"]"#, (3, 0, 0));
    check(Completions, r#""prompt":[[1,2],[3]]"#, (0, 0, 3));
    check(Embeddings, r#""input":[1,2,3]"#, (0, 0, 3));
    check(Embeddings, r#""input":["ab","cd"]"#, (4, 0, 0));
    check(Embeddings, r#""messages":[{"content":"not read"}]"#, (0, 0, 0));
    check(Moderations, r#""input":[{"type":"text","text":"ab"},{"type":"image_url","image_url":{"url":"u"}}]"#, (2, 1, 0));
    check(Images, r#""prompt":"a cat","response_format":"b64_json""#, (5, 0, 0));
    check(Speech, r#""input":"say","instructions":"low","voice":"alloy""#, (6, 0, 0));
    check(Responses, r#""input":"abc","instructions":"de""#, (5, 0, 0));
    check(
        Responses,
        r#""input":[{"role":"user","content":[{"type":"input_text","text":"abc"},{"type":"input_file","file_data":"AAAA"}]},{"type":"function_call_output","call_id":"c","output":"de"},{"type":"reasoning","encrypted_content":"AAAA","summary":[{"type":"summary_text","text":"f"}]}]"#,
        (6, 0, 0),
    );
    check(
        Messages,
        r#""system":[{"type":"text","text":"ab","cache_control":{"type":"ephemeral"}}],"messages":[{"role":"user","content":"c"}]"#,
        (3, 0, 0),
    );
    check(
        Messages,
        r#""messages":[{"role":"assistant","content":[{"type":"thinking","thinking":"ab","signature":"AAAA"},{"type":"tool_use","id":"i","name":"f","input":{"k":12}}]}]"#,
        (2 + 1 + 3, 0, 0),
    );
    check(
        Messages,
        r#""messages":[{"content":[{"type":"document","source":{"data":"abc","type":"text","media_type":"text/plain"}}]}]"#,
        (3, 0, 0),
    );
    check(Messages, r#""messages":[{"content":[{"type":"document","source":{"type":"base64","data":"AAAA"}}]}]"#, (0, 0, 0));
    check(CountTokens, r#""system":"ab","messages":[{"role":"user","content":"c"}]"#, (3, 0, 0));
    assert_eq!(read(ChatCompletions, &with(r#""messages":[{},{}]"#)).messages, 2);
}

#[test]
fn the_prefix_is_the_system_prompt_and_the_tools() {
    let hash = |endpoint, members: &str| read(endpoint, &with(members)).prefix_hash;
    let chat = |system: &str, user: &str| {
        hash(ChatCompletions, &format!(r#""messages":[{{"role":"system","content":"{system}"}},{{"content":"{user}","role":"user"}}]"#))
    };
    assert_eq!(chat("a", "b"), chat("a", "c"));
    assert_ne!(chat("a", "b"), chat("b", "b"));
    assert_eq!(hash(ChatCompletions, r#""messages":[{"role":"user","content":"a"}]"#), 0);
    // Only what leads; the order of members does not matter.
    assert_eq!(hash(ChatCompletions, r#""messages":[{"role":"user","content":"a"},{"role":"system","content":"b"}]"#), 0);
    assert_eq!(chat("a", "b"), hash(ChatCompletions, r#""messages":[{"content":"a","role":"developer"}]"#));
    assert_ne!(hash(ChatCompletions, r#""tools":[1]"#), hash(ChatCompletions, r#""tools":[2]"#));
    assert_eq!(hash(Messages, r#""system":"s","tools":[1]"#), hash(Messages, r#""tools":[1],"system":"s""#));
    assert_ne!(hash(Responses, r#""instructions":"s""#), hash(Responses, r#""instructions":"t""#));
}

#[test]
fn words_are_kept() {
    let peek = read(ChatCompletions, &with(r#""service_tier":"fl\u0065x","models":["other"]"#));
    assert_eq!((peek.service_tier.as_deref(), peek.unsupported), (Some("flex"), Some(Unsupported::OtherModels)));
    assert_eq!(read(ChatCompletions, &with(r#""service_tier":"flex","service_tier":null"#)).service_tier, None);
    assert_eq!(json(ChatCompletions, with(r#""service_tier":1"#).as_bytes()).err(), Some(BadBody::WrongType("service_tier")));
    assert_eq!(read(Images, &with(r#""response_format":"b64_json""#)).response_format.as_deref(), Some("b64_json"));
    for (body, expected) in [
        (r#""Model":"x""#, Some("model")),
        ("\"\u{17f}tream\":true", Some("stream")),
        ("\"max_to\u{212a}ens\":5", Some("max_tokens")),
        (r#""\u004dODEL":"x""#, Some("model")),
        (r#""MyModel":"x","été":1,"metadata":{"Model":"x"}"#, None),
    ] {
        assert_eq!(read(ChatCompletions, &with(body)).unsupported, expected.map(Unsupported::Misspelt), "{body}");
    }
    let background = |value: &str| read(Responses, &with(&format!(r#""background":{value}"#))).unsupported;
    assert_eq!([background("true"), background("false"), background("null")], [Some(Unsupported::Background), None, None]);
}
