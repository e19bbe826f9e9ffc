//! The request peek: agrees with serde_json on what is JSON, and what it edits still reads as what was asked.

use bytes::Bytes;
use serde_json::Value;
use weir::engine::dialect::Endpoint;
use weir::engine::peek::{self, BadBody, Edits, Peek};

pub const JSON_WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\\"",
    "\\u0065",
    "\\ud83d",
    "\\ude00",
    "\\u",
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1e999",
    "18446744073709551616",
    " ",
    "\n",
    "\t",
    "\u{1}",
    "\u{7f}",
    "é",
    "中",
    "😀",
    "\u{feff}",
    "{}",
    "[]",
    "\"\"",
    "\"model\":\"m\",",
    "\"mod\\u0065l\":\"m\",",
    "\"stream\":true,",
    "\"stream_options\":{\"include_usage\":false},",
    "\"stream_options\":{ },",
    "\"stream_options\":null,",
    "\"max_tokens\":9,",
    "\"max_tokens\":null,",
    "\"max_completion_tokens\":9999999,",
    "\"tools\":[1],",
    "\"messages\":[",
    "\"content\":",
    "\"type\":\"image_url\"",
    "\"role\":\"system\"",
    "\"source\":{\"type\":\"text\",\"data\":\"d\"}",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

pub const FORM_WORDS: &[&str] = &[
    "\r\n",
    "\r\n\r\n",
    "--",
    "--b0",
    "\r\n--b0",
    "\r\n--b0\r\n",
    "\r\n--b0--",
    "\r\n--b0 \t\r\n",
    "\r",
    "\n",
    "-",
    "\"",
    "\\",
    "\\\"",
    ";",
    "=",
    ":",
    " ",
    "\t",
    "name=",
    "name=\"model\"",
    "name=model",
    "name*=",
    "filename=\"f\"",
    "Content-Disposition: form-data; name=\"model\"",
    "content-disposition:form-data;name=\"stream\"",
    "form-data",
    "true",
    "\u{0}",
    "é",
];

/// A JSON body, at every endpoint that takes one.
pub fn json_body(input: &[u8]) -> String {
    let tree = serde_json::from_slice::<Value>(input);
    let mut said = String::new();
    if tree.as_ref().is_err_and(|error| error.to_string().starts_with("number out of range")) {
        // JSON has no largest number (RFC 8259, 6); serde_json's doubles have.
        return said;
    }
    for endpoint in Endpoint::ALL.into_iter().filter(|endpoint| !endpoint.is_multipart()) {
        let read = peek::json(endpoint, input);
        assert_eq!(tree.is_err(), matches!(read, Err(BadBody::Json(..))), "serde_json: {tree:?}, peek: {read:?}");
        match (read, &tree) {
            (Ok(read), Ok(tree)) => {
                assert_eq!(read.model.as_deref(), tree["model"].as_str());
                assert!(read.text_bytes <= input.len() as u64);
                said += &seen(&read);
                json_edits(endpoint, input, &read, tree);
            }
            (Err(BadBody::Json(_, expected)), _) => return expected.to_owned(),
            (Err(error), _) => said += &format!("{error:?} "),
            (Ok(_), Err(_)) => unreachable!("compared above"),
        }
    }
    said
}

/// A form.
pub fn form(input: &[u8]) -> String {
    let content_type = "multipart/form-data; boundary=b0";
    // As a content type, too: that comes from outside as well.
    let as_type = peek::multipart(&String::from_utf8_lossy(input), b"--b0--").map(|_| ());
    let body = Bytes::copy_from_slice(input);
    let read = match peek::multipart(content_type, &body) {
        Ok(read) => read,
        Err(error) => return format!("{error:?} {as_type:?}"),
    };
    let edited = edited(Endpoint::Transcriptions, &body, &read, &Edits { model: Some("another-model"), ..Edits::default() });
    let again = peek::multipart(content_type, &edited).expect("an edited form is a form");
    assert_eq!(again.model.as_deref(), Some("another-model"));
    assert_eq!((again.stream, again.file_bytes, again.text_bytes), (read.stream, read.file_bytes, read.text_bytes));
    seen(&read)
}

/// Every edit at once: asked fields are as asked, all others as they were.
fn json_edits(endpoint: Endpoint, input: &[u8], read: &Peek, before: &Value) {
    let body = Bytes::copy_from_slice(input);
    assert_eq!(edited(endpoint, &body, read, &Edits::default()), input);
    let edits = Edits { model: Some("an\"other"), include_usage: true, max_output: Some(77), cap_field: "" };
    let after: Value = serde_json::from_slice(&edited(endpoint, &body, read, &edits)).expect("an edited body is JSON");
    assert_eq!(after["model"], "an\"other");
    let touched = ["model", "stream_options", "max_tokens", "max_completion_tokens", "max_output_tokens"];
    let rest = |tree: &Value| {
        let members = tree.as_object().expect("an object").iter().filter(|(name, _)| !touched.contains(&name.as_str()));
        members.map(|(name, value)| (name.clone(), value.clone())).collect::<serde_json::Map<_, _>>()
    };
    assert_eq!(rest(&after), rest(before));
    if matches!(endpoint, Endpoint::ChatCompletions | Endpoint::Completions) {
        assert_eq!(after["stream_options"]["include_usage"], true);
        let caps: Vec<u64> = ["max_tokens", "max_completion_tokens"].iter().filter_map(|name| after[*name].as_u64()).collect();
        assert!(caps.iter().any(|cap| *cap <= 77), "{after}");
    }
}

fn edited(endpoint: Endpoint, body: &Bytes, read: &Peek, edits: &Edits<'_>) -> Vec<u8> {
    peek::edit(endpoint, body, read, edits).concat()
}

/// What was read, without its places.
fn seen(read: &Peek) -> String {
    format!(
        "{} {} {} {} {:?} {} {:?} {} {} {} ",
        read.model_at.len(),
        read.stream,
        read.include_usage,
        read.stream_options_at.is_some(),
        read.max_output.is_some(),
        read.caps.len(),
        read.needs,
        read.images > 0,
        read.prefix_hash != 0,
        read.token_ids > 0
    )
}
