//! Forms: where their fields are, and what is not taken for a boundary.

use super::super::*;
use crate::engine::dialect::Endpoint;
use bytes::Bytes;

const TYPE: &str = "multipart/form-data; boundary=b0";

fn part(disposition: &str, content: &str) -> String {
    format!("--b0\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{content}\r\n")
}

fn model(content: &str) -> String {
    part("name=\"model\"", content)
}

#[test]
fn the_model_is_found_and_replaced() {
    let check = |parts: &[String], expected: &str| {
        let body = Bytes::from(parts.concat() + "--b0--\r\n");
        let peek = multipart(TYPE, &body).unwrap_or_else(|error| panic!("{error}: {body:?}"));
        assert_eq!(peek.model.as_deref(), Some(expected));
        let edits = Edits { model: Some("n"), max_output: Some(1), include_usage: true, ..Edits::default() };
        let edited = edit(Endpoint::Transcriptions, &body, &peek, &edits).concat();
        let values: Vec<&[u8]> = peek.model_at.iter().map(|at| &body[at.clone()]).collect();
        let removed: usize = values.iter().map(|value| value.len()).sum();
        assert_eq!(edited.len(), body.len() - removed + values.len(), "{body:?}");
        let again = multipart(TYPE, &edited).expect("still a form");
        assert_eq!((again.model.as_deref(), again.file_bytes), (Some("n"), peek.file_bytes));
    };
    check(&[model("whisper-1")], "whisper-1");
    check(&[model("old"), model("new")], "new");
    check(&["a preamble\r\n".to_owned(), model("m")], "m");
    check(&[part("name=model", "m")], "m");
    check(&[part("NAME=\"model\"; x=y", "m")], "m");
    check(&[part("name=\"mod\\\"el\"", "x"), model("m")], "m");
    check(&["--b0 \t\r\ncontent-type: text/plain\r\ncontent-disposition:form-data;name=\"model\"\r\n\r\nm\r\n".to_owned()], "m");
    let file = |content: &str| part("name=\"file\"; filename=\"C:\\a\\b.mp3\"", content);
    check(&[file("audio"), model("m")], "m");
    // Content that looks like a delimiter and is none.
    for content in [
        "\r\n--b",
        "\r\n--b0x\r\n",
        "\r\n--b0--x",
        "--b0 x\r\n",
        "\r\n--b0-",
        "x\n--b0\n",
        "\r\n\r\n",
        "\r\n--b0\n",
        "\r\n-\r\n--\r\n--b00\r\n",
    ] {
        check(&[model("m"), file(content)], "m");
        check(&[file(content), model("m")], "m");
    }
}

#[test]
fn other_fields_are_read() {
    let read = |parts: &[String]| multipart(TYPE, (parts.concat() + "--b0--").as_bytes());
    let peek = read(&[
        model("m"),
        part("name=\"stream\"", "true"),
        part("name=\"response_format\"", "srt"),
        part("name=\"prompt\"", "hello"),
        part("name=\"file\"; filename=\"a\"", "12345678"),
        part("name=\"temperature\"", ""),
    ])
    .expect("a form");
    assert_eq!((peek.stream, peek.response_format.as_deref(), peek.text_bytes, peek.file_bytes), (true, Some("srt"), 5, 8));
    assert_eq!((peek.needs, peek.choices), (Capabilities::STREAM, 1));
    assert_eq!(read(&[model("m"), part("name=\"stream\"", "maybe")]).err(), Some(BadBody::WrongType("stream")));
    assert_eq!(read(&[model(&"m".repeat(NAME_MAX + 1))]).err(), Some(BadBody::WrongType("model")));
    assert_eq!(read(&[model("")]).err(), Some(BadBody::NoModel));
    assert_eq!(read(&[part("name=\"file\"", "x")]).err(), Some(BadBody::NoModel));
}

#[test]
fn an_empty_part_may_lack_its_line_end() {
    let body = "--b0\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\n--b0\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--b0--";
    assert_eq!(multipart(TYPE, body.as_bytes()).expect("a form").model.as_deref(), Some("m"));
    // A model put in there would be followed by no line end.
    assert_eq!(multipart(TYPE, body.replace("prompt", "model").as_bytes()).err(), Some(BadBody::NoModel));
}

#[test]
fn the_boundary_is_read_from_the_content_type() {
    let check = |content_type: &str, boundary: &str, is_read: bool| {
        let body = (model("m") + "--b0--").replace("b0", boundary);
        assert_eq!(multipart(content_type, body.as_bytes()).is_ok(), is_read, "{content_type}");
    };
    check("multipart/form-data; boundary=b0", "b0", true);
    check("Multipart/Form-Data;charset=utf-8;BOUNDARY=\"a b;:=\\\"\"", "a b;:=\"", true);
    check("multipart/form-data; boundary=----WebKitFormBoundaryx; x=y", "----WebKitFormBoundaryx", true);
    check("multipart/form-data; boundary=b1", "b0", false);
    check("multipart/form-data; boundary=", "", false);
    check("multipart/form-data; boundary=\"b0", "b0", false);
    check("multipart/form-data", "b0", false);
    check("multipart/mixed; boundary=b0", "b0", false);
    check("", "b0", false);
}

#[test]
fn what_parsers_could_read_differently_is_refused() {
    let end = "--b0--";
    let bodies = [
        String::new(),
        "--b0".to_owned(),
        model("m"),
        "--b0\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm".to_owned(),
        "--b0\r\nContent-Disposition: form-data; name=\"model\"\r\n".to_owned(),
        (model("m") + end).replace("\r\n", "\n"),
        part("name=\"x\"; name=\"model\"", "m") + end,
        part("name=\"x\"; name*=utf-8''model", "m") + end,
        part("name=\"x\"y; name=\"model\"", "m") + end,
        part("filename=\"x\"", "m") + end,
        part("name=\"x", "m") + end,
        part("name=\"x\"\r\nContent-Disposition: form-data; name=\"model\"", "m") + end,
        part("name=\"x\"\r\n folded", "m") + end,
        part("name=\"x\"\r\nno colon", "m") + end,
        format!("--b0\r\n\r\nm\r\n{end}"),
        format!("--b0\r\nContent-Disposition: attachment; name=\"model\"\r\n\r\nm\r\n{end}"),
        part(&format!("name=\"model\"; x=\"{}\"", "y".repeat(10_000)), "m") + end,
        model("m").repeat(2_000) + end,
    ];
    for body in bodies {
        let read = multipart(TYPE, body.as_bytes());
        assert!(matches!(read, Err(BadBody::Multipart(_))), "{read:?}: {body:?}");
    }
}
