//! `multipart/form-data` (RFC 7578, RFC 2046 5.1): finds the small fields among the files without looking into the files.
//!
//! Strict where leniency would let two parsers disagree about which part is the model: CRLF only, one name per part, no `name*`.

use super::{BadBody, NAME_MAX, Peek};
use crate::engine::catalog::Capabilities;
use memchr::memmem;
use std::borrow::Cow;
use std::ops::Range;

/// Bytes of a boundary at most. RFC 2046 allows 70; some clients write longer ones.
const BOUNDARY_MAX: usize = 256;

/// Bytes of one part's headers at most: a disposition, a file name, a type. More is refused.
const HEADERS_MAX: usize = 8 * 1024;

/// Parts at most; the audio endpoints know about ten fields, some repeated. More are refused.
const PARTS_MAX: usize = 1024;

/// What stands at a delimiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behind {
    /// A part; where its headers begin.
    Part(usize),
    /// Nothing that is read.
    End,
}

/// The delimiter of one body, and where it is found.
struct Delimiter<'a> {
    body: &'a [u8],
    /// `CRLF--boundary`.
    line: Vec<u8>,
}

/// The headers of a part.
struct Part<'a> {
    name: Cow<'a, [u8]>,
    is_file: bool,
    content_at: usize,
}

/// Reads a `multipart/form-data` body (`content_type` holds the boundary).
pub fn multipart(content_type: &str, body: &[u8]) -> Result<Peek, BadBody> {
    let delimiter = Delimiter { body, line: [b"\r\n--", &*boundary(content_type)?].concat() };
    let finder = memmem::Finder::new(&delimiter.line);
    let mut peek = Peek { choices: 1, ..Peek::default() };
    let mut behind = delimiter.first(&finder)?;
    for _ in 0..PARTS_MAX {
        let Behind::Part(headers_at) = behind else { return finish(peek) };
        let part = Part::read(body, headers_at)?;
        // From the CRLF that ends the headers: with a delimiter right behind it, the part is empty.
        let (end, next) = delimiter.next(&finder, part.content_at - 2)?;
        if end < part.content_at && &*part.name == b"model" {
            // A name put there would swallow the delimiter.
            return Err(BadBody::NoModel);
        }
        note(&mut peek, &part, part.content_at..end.max(part.content_at), body)?;
        behind = next;
    }
    Err(BadBody::Multipart("too many parts"))
}

fn finish(mut peek: Peek) -> Result<Peek, BadBody> {
    if peek.stream {
        peek.needs = peek.needs.with(Capabilities::STREAM);
    }
    if peek.model.is_some() { Ok(peek) } else { Err(BadBody::NoModel) }
}

/// Notes a part. Of parts with the same name the last one holds.
fn note(peek: &mut Peek, part: &Part<'_>, at: Range<usize>, body: &[u8]) -> Result<(), BadBody> {
    let content = &body[at.clone()];
    let word = || std::str::from_utf8(content).ok().filter(|word| word.len() <= NAME_MAX);
    match &*part.name {
        b"model" => {
            let model = word().ok_or(BadBody::WrongType("model"))?;
            peek.model = Some(model.to_owned()).filter(|model| !model.is_empty());
            peek.model_at.push(at);
        }
        // The spellings form parsers take for a boolean.
        b"stream" => match word().map(str::to_ascii_lowercase).as_deref() {
            Some("true" | "1" | "yes" | "on") => peek.stream = true,
            Some("false" | "0" | "no" | "off" | "") => peek.stream = false,
            _ => return Err(BadBody::WrongType("stream")),
        },
        b"response_format" => peek.response_format = word().map(str::to_owned),
        b"prompt" => peek.text_bytes += content.len() as u64,
        name if part.is_file || name == b"file" => peek.file_bytes += content.len() as u64,
        _ => {}
    }
    Ok(())
}

impl Delimiter<'_> {
    /// The first delimiter: at the very start or behind a preamble.
    fn first(&self, finder: &memmem::Finder<'_>) -> Result<Behind, BadBody> {
        let bare = &self.line[2..];
        if self.body.starts_with(bare)
            && let Some(behind) = self.behind(bare.len())
        {
            return Ok(behind);
        }
        self.next(finder, 0).map(|(_, behind)| behind)
    }

    /// The next delimiter at or behind `from`: where it begins and what it leads to. Bytes that only begin like one are content.
    fn next(&self, finder: &memmem::Finder<'_>, mut from: usize) -> Result<(usize, Behind), BadBody> {
        while let Some(found) = finder.find(&self.body[from..]) {
            let start = from + found;
            if let Some(behind) = self.behind(start + self.line.len()) {
                return Ok((start, behind));
            }
            from = start + 1;
        }
        Err(BadBody::Multipart("a part is not terminated"))
    }

    /// What the rest of a delimiter's line says; `None`: it is none.
    fn behind(&self, at: usize) -> Option<Behind> {
        let rest = &self.body[at..];
        let (rest, is_last) = rest.strip_prefix(b"--").map_or((rest, false), |rest| (rest, true));
        let padding = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        let line_end = &rest[padding..];
        match is_last {
            true if line_end.is_empty() || line_end.starts_with(b"\r\n") => Some(Behind::End),
            false if line_end.starts_with(b"\r\n") => Some(Behind::Part(at + padding + 2)),
            _ => None,
        }
    }
}

impl<'a> Part<'a> {
    fn read(body: &'a [u8], at: usize) -> Result<Part<'a>, BadBody> {
        let bounded = &body[at..body.len().min(at + HEADERS_MAX)];
        let end = memmem::find(bounded, b"\r\n\r\n").ok_or(BadBody::Multipart("the headers of a part do not end"))?;
        let mut name = None;
        let mut is_file = false;
        let mut rest = &bounded[..end];
        while !rest.is_empty() {
            let line_end = memmem::find(rest, b"\r\n").unwrap_or(rest.len());
            let line = &rest[..line_end];
            rest = rest.get(line_end + 2..).unwrap_or_default();
            let colon = memchr::memchr(b':', line).ok_or(BadBody::Multipart("a header of a part has no colon"))?;
            if !line[..colon].eq_ignore_ascii_case(b"content-disposition") {
                continue;
            }
            for parameter in Parameters::behind(&line[colon + 1..], b"form-data")? {
                let (key, value) = parameter?;
                match key.to_ascii_lowercase().as_slice() {
                    b"name" if name.is_none() => name = Some(value),
                    b"name" | b"name*" => return Err(BadBody::Multipart("a part has more than one name")),
                    b"filename" | b"filename*" => is_file = true,
                    _ => {}
                }
            }
        }
        let name = name.ok_or(BadBody::Multipart("a part has no name"))?;
        Ok(Part { name, is_file, content_at: at + end + 4 })
    }
}

/// The boundary a content type names.
fn boundary(content_type: &str) -> Result<Cow<'_, [u8]>, BadBody> {
    for parameter in Parameters::behind(content_type.as_bytes(), b"multipart/form-data")? {
        let (key, value) = parameter?;
        if key.eq_ignore_ascii_case(b"boundary") {
            let is_usable = (1..=BOUNDARY_MAX).contains(&value.len()) && !value.iter().any(u8::is_ascii_control);
            return if is_usable { Ok(value) } else { Err(BadBody::Multipart("the boundary is unusable")) };
        }
    }
    Err(BadBody::Multipart("the content type names no boundary"))
}

/// Key and value.
type Parameter<'a> = (&'a [u8], Cow<'a, [u8]>);

const MALFORMED: &str = "a header parameter is malformed";

/// The parameters of a header value: `; key=value` or `; key="value"`.
struct Parameters<'a> {
    rest: &'a [u8],
}

impl<'a> Parameters<'a> {
    /// The parameters behind `kind`, which the value must begin with.
    fn behind(value: &'a [u8], kind: &[u8]) -> Result<Parameters<'a>, BadBody> {
        let end = memchr::memchr(b';', value).unwrap_or(value.len());
        if !value[..end].trim_ascii().eq_ignore_ascii_case(kind) {
            return Err(BadBody::Multipart("a header does not say form-data"));
        }
        Ok(Parameters { rest: &value[end..] })
    }
}

impl<'a> Iterator for Parameters<'a> {
    type Item = Result<Parameter<'a>, BadBody>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest.trim_ascii_start();
        self.rest = b"";
        if rest.is_empty() {
            return None;
        }
        let rest = match rest.strip_prefix(b";").map(<[u8]>::trim_ascii_start) {
            Some(b"") => return None,
            Some(rest) => rest,
            None => return Some(Err(BadBody::Multipart(MALFORMED))),
        };
        let Some((parameter, rest)) = parameter(rest) else { return Some(Err(BadBody::Multipart(MALFORMED))) };
        self.rest = rest;
        Some(Ok(parameter))
    }
}

/// One parameter and what follows it.
fn parameter(text: &[u8]) -> Option<(Parameter<'_>, &[u8])> {
    let equals = memchr::memchr(b'=', text)?;
    let (key, value) = (text[..equals].trim_ascii_end(), text[equals + 1..].trim_ascii_start());
    let Some(quoted) = value.strip_prefix(b"\"") else {
        let end = memchr::memchr(b';', value).unwrap_or(value.len());
        return Some(((key, Cow::Borrowed(value[..end].trim_ascii_end())), &value[end..]));
    };
    let mut unescaped = Vec::new();
    let mut from = 0;
    loop {
        let stop = from + memchr::memchr2(b'"', b'\\', &quoted[from..])?;
        match (quoted[stop], quoted.get(stop + 1)) {
            // Only these two are escaped: old browsers write file names with bare backslashes.
            (b'\\', Some(escaped @ (b'"' | b'\\'))) => {
                unescaped.extend_from_slice(&quoted[from..stop]);
                unescaped.push(*escaped);
                from = stop + 2;
            }
            (b'"', _) => {
                unescaped.extend_from_slice(&quoted[from..stop]);
                return Some(((key, Cow::Owned(unescaped)), &quoted[stop + 1..]));
            }
            _ => {
                unescaped.extend_from_slice(&quoted[from..stop + 1]);
                from = stop + 1;
            }
        }
    }
}
