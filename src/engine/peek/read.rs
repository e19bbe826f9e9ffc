//! One pass over a JSON body: every value is validated, the few that matter are noted, the text the model reads is counted.
//!
//! What a value means depends on where it stands. A [`Place`] says so, and [`Place::member`] is the whole map of what is text.
//! That map lists what counts, not what does not: an unknown part is more often binary data than prose, and too high an estimate
//! refuses a request, while one too low is put right when the provider reports its usage.

use super::scan::{DEPTH_MAX, Scanner, Text};
use super::{BadBody, Cap, NAME_MAX, Peek, Unsupported};
use crate::engine::catalog::Capabilities;
use crate::engine::dialect::Endpoint;
use rustc_hash::FxHasher;
use std::hash::Hasher;
use std::ops::Range;

/// Longer than every member name and word this file knows: an escaped one is unescaped this far, and one cut here matches nothing.
const WORD_MAX: usize = 32;

/// How most messages begin, as client libraries write them. What it says is known, so it is not read piece by piece: a conversation of
/// 500 KB has hundreds.
const TURNS: [&[u8]; 2] = [br#"{"role":"user","content":""#, br#"{"role":"assistant","content":""#];

/// Where a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Validated and nothing else.
    Skip,
    /// Read by the model down to the names and numbers: tools, their inputs, schemas.
    Everything,
    /// Prose: a string, strings, token ids, or parts.
    Text,
    /// The conversation: a string, or messages.
    Items,
    /// An Anthropic `source`: prose only if its type says so.
    Source,
    /// `response_format` and its equals.
    Format,
}

/// What a top-level member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Model,
    Stream,
    StreamOptions,
    Cap(&'static str),
    Choices(&'static str),
    ServiceTier,
    Tools,
    System,
    ResponseFormat,
    OtherModels,
    Background,
    /// Another spelling of a field that matters.
    Misspelt(&'static str),
    /// Nothing but what its place counts.
    Other(Place),
}

/// What kind of value was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Null,
    Bool(bool),
    Number,
    Text(Text),
    Array { is_empty: bool },
    Object,
}

/// What one object said about itself, in whatever order.
#[derive(Default)]
struct Noted {
    /// `role` is one that speaks before the conversation.
    is_system: bool,
    /// `type` is one of an image.
    is_image: bool,
    /// `type` is `text`.
    is_text: bool,
    /// `type` is one of JSON output.
    is_json: bool,
    content: Range<usize>,
    data_len: usize,
}

struct Reader<'a> {
    scan: Scanner<'a>,
    peek: Peek,
    n: u64,
    best_of: u64,
    /// Only system messages so far.
    is_leading: bool,
    system: FxHasher,
    tools: FxHasher,
}

/// Reads a JSON body. What is wrong with its JSON is said before what is wrong with its fields.
pub fn json(endpoint: Endpoint, body: &[u8]) -> Result<Peek, BadBody> {
    let mut reader = Reader::new(body);
    reader.body(endpoint)?;
    Ok(reader.finish())
}

/// Every `include_usage` of a `stream_options` object that was validated before: its place, and whether it is true.
pub fn include_usage(stream_options: &[u8]) -> Vec<(Range<usize>, bool)> {
    let mut found = Vec::new();
    let mut reader = Reader::new(stream_options);
    // Validated: there is no error to tell.
    let _ = reader.members(0, |reader, key| {
        let (value, at) = reader.located(Place::Skip, 1)?;
        if reader.scan.is_word(key, b"include_usage") {
            found.push((at, value == Found::Bool(true)));
        }
        Ok(())
    });
    found
}

impl<'a> Reader<'a> {
    fn new(body: &'a [u8]) -> Reader<'a> {
        Reader {
            scan: Scanner::new(body),
            peek: Peek::default(),
            n: 1,
            best_of: 1,
            is_leading: true,
            system: FxHasher::default(),
            tools: FxHasher::default(),
        }
    }

    fn body(&mut self, endpoint: Endpoint) -> Result<(), BadBody> {
        if self.scan.peek() != Some(b'{') {
            self.value(Place::Skip, 0)?;
            self.scan.end()?;
            return Err(BadBody::NotAnObject);
        }
        self.peek.insert_at = self.scan.at() + 1;
        let mut wrong = Ok(());
        self.members(1, |reader, key| {
            let mut buffer = [0; WORD_MAX];
            let field = Field::of(endpoint, reader.scan.unescaped(key, &mut buffer));
            let (found, at) = reader.located(field.place(), 1)?;
            if wrong.is_ok() {
                wrong = reader.note(field, found, at);
            }
            Ok(())
        })?;
        self.scan.end()?;
        wrong?;
        if self.peek.model.is_none() { Err(BadBody::NoModel) } else { Ok(()) }
    }

    /// Notes a top-level member. Of members with the same name the last one holds.
    fn note(&mut self, field: Field, found: Found, at: Range<usize>) -> Result<(), BadBody> {
        match (field, found) {
            (Field::Model, found) => {
                self.peek.model = match found {
                    Found::Text(text) if text.len > 0 => Some(self.word(text).ok_or(BadBody::WrongType("model"))?),
                    _ => None,
                };
                self.peek.model_at.push(at);
            }
            (Field::Stream, Found::Bool(stream)) => self.peek.stream = stream,
            (Field::Stream, Found::Null) => self.peek.stream = false,
            (Field::Stream, _) => return Err(BadBody::WrongType("stream")),
            (Field::StreamOptions, Found::Object | Found::Null) => {
                let asked = include_usage(self.scan.slice(at.clone()));
                self.peek.include_usage = asked.last().is_some_and(|(_, is_on)| *is_on);
                self.peek.stream_options_at = Some(at);
            }
            (Field::StreamOptions, _) => return Err(BadBody::WrongType("stream_options")),
            (Field::Cap(name), found) => {
                let value = self.count(found, &at).ok_or(BadBody::WrongType(name))?;
                self.peek.caps.push(Cap { name, at, value });
            }
            (Field::Choices(name), found) => {
                let count = self.count(found, &at).ok_or(BadBody::WrongType(name))?.unwrap_or(1);
                *(if name == "n" { &mut self.n } else { &mut self.best_of }) = count;
            }
            (Field::ServiceTier, Found::Text(text)) => {
                self.peek.service_tier = Some(self.word(text).ok_or(BadBody::WrongType("service_tier"))?);
            }
            (Field::ServiceTier, Found::Null) => self.peek.service_tier = None,
            (Field::ServiceTier, _) => return Err(BadBody::WrongType("service_tier")),
            (Field::ResponseFormat, Found::Text(text)) => self.peek.response_format = self.word(text),
            (Field::Tools, Found::Array { is_empty: false }) => {
                self.peek.needs = self.peek.needs.with(Capabilities::TOOLS);
                self.tools.write(self.scan.slice(at));
            }
            (Field::System, Found::Text(_) | Found::Array { is_empty: false }) => self.system.write(self.scan.slice(at)),
            (Field::OtherModels, Found::Array { is_empty: false }) => self.peek.unsupported = Some(Unsupported::OtherModels),
            (Field::Background, Found::Bool(true)) => self.peek.unsupported = Some(Unsupported::Background),
            (Field::Misspelt(name), _) => self.peek.unsupported = Some(Unsupported::Misspelt(name)),
            _ => {}
        }
        Ok(())
    }

    /// What only the whole body tells.
    fn finish(self) -> Peek {
        let mut peek = self.peek;
        peek.choices = self.n.max(self.best_of).max(1);
        peek.max_output = peek.effective_caps().min();
        if peek.stream {
            peek.needs = peek.needs.with(Capabilities::STREAM);
        }
        if peek.images > 0 {
            peek.needs = peek.needs.with(Capabilities::VISION);
        }
        let none = FxHasher::default().finish();
        let (system, tools) = (self.system.finish(), self.tools.finish());
        if system != none || tools != none {
            let mut both = FxHasher::default();
            both.write_u64(system);
            both.write_u64(tools);
            peek.prefix_hash = both.finish().max(1);
        }
        peek
    }

    /// Reads one value inside of `depth` objects and arrays, and says where it stands.
    fn located(&mut self, place: Place, depth: usize) -> Result<(Found, Range<usize>), BadBody> {
        self.scan.peek();
        let start = self.scan.at();
        let found = self.value(place, depth)?;
        Ok((found, start..self.scan.at()))
    }

    /// Reads one value inside of `depth` objects and arrays.
    fn value(&mut self, place: Place, depth: usize) -> Result<Found, BadBody> {
        let first = self.scan.peek();
        let start = self.scan.at();
        let found = match first {
            Some(b'"') => {
                self.scan.bump();
                let text = self.scan.string()?;
                if matches!(place, Place::Text | Place::Items | Place::Everything) {
                    self.peek.text_bytes += text.len as u64;
                }
                Found::Text(text)
            }
            Some(b'{') => {
                self.object(place, depth + 1)?;
                Found::Object
            }
            Some(b'[') => Found::Array { is_empty: self.array(place, depth + 1)? == 0 },
            Some(b'-' | b'0'..=b'9') => {
                self.scan.number()?;
                Found::Number
            }
            Some(b'n') => self.scan.literal(b"null").map(|()| Found::Null)?,
            Some(b't') => self.scan.literal(b"true").map(|()| Found::Bool(true))?,
            Some(b'f') => self.scan.literal(b"false").map(|()| Found::Bool(false))?,
            _ => return self.scan.fail("a value"),
        };
        if place == Place::Everything && matches!(found, Found::Number | Found::Bool(_) | Found::Null) {
            self.peek.text_bytes += (self.scan.at() - start) as u64;
        }
        Ok(found)
    }

    /// Reads an array; the number of its elements.
    fn array(&mut self, place: Place, depth: usize) -> Result<u64, BadBody> {
        self.enter(depth)?;
        let mut elements = 0;
        let mut more = self.scan.is_inhabited(b']')?;
        while more {
            let found = if place == Place::Items && self.turn(depth)? { Found::Object } else { self.value(place, depth)? };
            elements += 1;
            match (place, found) {
                (Place::Text | Place::Items, Found::Number) => self.peek.token_ids += 1,
                (Place::Items, _) => self.peek.messages += 1,
                _ => {}
            }
            more = self.scan.has_more(b']')?;
        }
        Ok(elements)
    }

    /// Reads a message that has one of [`TURNS`], a text and nothing else; `false`: it has not, and nothing was read.
    fn turn(&mut self, depth: usize) -> Result<bool, BadBody> {
        self.scan.peek();
        let start = self.scan.at();
        if depth >= DEPTH_MAX || !TURNS.iter().any(|turn| self.scan.take(turn)) {
            return Ok(false);
        }
        let text = self.scan.string()?;
        if !self.scan.take(b"}") {
            self.scan.go_back(start);
            return Ok(false);
        }
        self.peek.text_bytes += text.len as u64;
        self.is_leading = false;
        Ok(true)
    }

    fn object(&mut self, place: Place, depth: usize) -> Result<(), BadBody> {
        match place {
            Place::Skip => self.members(depth, |reader, _| reader.value(Place::Skip, depth).map(|_| ())),
            Place::Everything => self.members(depth, |reader, key| {
                reader.peek.text_bytes += key.len as u64;
                reader.value(Place::Everything, depth).map(|_| ())
            }),
            _ => self.telling(place, depth),
        }
    }

    /// Reads an object whose members say what it is.
    fn telling(&mut self, place: Place, depth: usize) -> Result<(), BadBody> {
        let mut noted = Noted::default();
        self.members(depth, |reader, key| {
            let mut buffer = [0; WORD_MAX];
            let key = reader.scan.unescaped(key, &mut buffer);
            let (found, at) = reader.located(place.member(key), depth)?;
            match (key, found) {
                (b"content", _) => noted.content = at,
                (b"data", Found::Text(text)) => noted.data_len = text.len,
                (b"role" | b"type", Found::Text(text)) => noted.word(reader.scan.unescaped(text, &mut [0; WORD_MAX])),
                _ => {}
            }
            Ok(())
        })?;
        match place {
            Place::Items if noted.is_system && self.is_leading => self.system.write(self.scan.slice(noted.content)),
            Place::Items => self.is_leading = false,
            Place::Source if noted.is_text => self.peek.text_bytes += noted.data_len as u64,
            Place::Format if noted.is_json => self.peek.needs = self.peek.needs.with(Capabilities::JSON),
            _ => {}
        }
        if noted.is_image && matches!(place, Place::Items | Place::Text) {
            self.peek.images += 1;
        }
        Ok(())
    }

    /// Reads an object, each value by `member`, which is given the name.
    fn members(&mut self, depth: usize, mut member: impl FnMut(&mut Self, Text) -> Result<(), BadBody>) -> Result<(), BadBody> {
        self.enter(depth)?;
        let mut more = self.scan.is_inhabited(b'}')?;
        while more {
            let key = self.scan.key()?;
            member(self, key)?;
            more = self.scan.has_more(b'}')?;
        }
        Ok(())
    }

    /// Takes an opening bracket.
    fn enter(&mut self, depth: usize) -> Result<(), BadBody> {
        if depth > DEPTH_MAX {
            return self.scan.fail("less nesting");
        }
        self.scan.bump();
        Ok(())
    }

    /// A short string; `None` if it is longer than any name is.
    fn word(&self, text: Text) -> Option<String> {
        if text.len > NAME_MAX {
            return None;
        }
        let mut buffer;
        let unescaped = if text.is_plain() {
            self.scan.slice(text.start..text.end)
        } else {
            buffer = [0; NAME_MAX];
            self.scan.unescaped(text, &mut buffer)
        };
        Some(String::from_utf8_lossy(unescaped).into_owned())
    }

    /// A count of tokens or choices; the outer `None` if it is neither that nor null.
    fn count(&self, found: Found, at: &Range<usize>) -> Option<Option<u64>> {
        match found {
            Found::Null => Some(None),
            Found::Number => std::str::from_utf8(self.scan.slice(at.clone())).ok()?.parse().ok().map(Some),
            _ => None,
        }
    }
}

impl Noted {
    /// The value of `role` or `type`.
    fn word(&mut self, word: &[u8]) {
        match word {
            b"system" | b"developer" => self.is_system = true,
            // Chat; Responses; Messages; what a computer tool shows in Responses.
            b"image_url" | b"input_image" | b"image" | b"computer_screenshot" => self.is_image = true,
            b"text" => self.is_text = true,
            b"json_object" | b"json_schema" => self.is_json = true,
            _ => {}
        }
    }
}

impl Field {
    /// What a top-level member is at an endpoint, by the OpenAI and Anthropic API references. A member the endpoint does not know
    /// is not read: its upstream does not read it either.
    fn of(endpoint: Endpoint, key: &[u8]) -> Field {
        use Endpoint::*;
        match (key, endpoint) {
            (b"model", _) => Field::Model,
            (b"models", _) => Field::OtherModels,
            (b"service_tier", _) => Field::ServiceTier,
            (b"stream", ChatCompletions | Completions | Responses | Messages | Images) => Field::Stream,
            (b"stream_options", ChatCompletions | Completions) => Field::StreamOptions,
            (b"max_tokens", ChatCompletions | Completions | Messages) => Field::Cap("max_tokens"),
            (b"max_completion_tokens", ChatCompletions) => Field::Cap("max_completion_tokens"),
            (b"max_output_tokens", Responses) => Field::Cap("max_output_tokens"),
            (b"n", ChatCompletions | Completions | Images) => Field::Choices("n"),
            (b"best_of", Completions) => Field::Choices("best_of"),
            (b"tools", ChatCompletions | Responses | Messages | CountTokens) | (b"functions", ChatCompletions) => Field::Tools,
            (b"system", Messages | CountTokens) | (b"instructions", Responses) => Field::System,
            (b"response_format", _) => Field::ResponseFormat,
            (b"messages", ChatCompletions | Messages | CountTokens) | (b"input", Responses) => Field::Other(Place::Items),
            (b"input", Embeddings | Moderations | Speech) => Field::Other(Place::Text),
            (b"prompt", Completions | Images) | (b"suffix", Completions) | (b"instructions", Speech) => Field::Other(Place::Text),
            (b"text", Responses) | (b"output_config" | b"output_format", Messages | CountTokens) => Field::Other(Place::Format),
            (b"background", Responses) => Field::Background,
            _ => misspelt(key).map_or(Field::Other(Place::Skip), Field::Misspelt),
        }
    }

    /// How its value is counted.
    fn place(self) -> Place {
        match self {
            Field::Tools => Place::Everything,
            Field::System => Place::Text,
            Field::ResponseFormat => Place::Format,
            Field::Other(place) => place,
            _ => Place::Skip,
        }
    }
}

/// The field that another spelling stands for where names are compared without case, as Go's `encoding/json` does (Ollama), and the last
/// one wins: what is read here and what is read there would differ.
fn misspelt(key: &[u8]) -> Option<&'static str> {
    const MATTER: [&str; 8] = ["model", "models", "stream", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of"];
    // Two letters outside of ASCII are an s and a k there.
    let fold = |letter: char| match letter {
        'ſ' => 's',
        '\u{212A}' => 'k',
        letter => letter.to_ascii_lowercase(),
    };
    if !key.iter().any(|byte| byte.is_ascii_uppercase() || !byte.is_ascii()) {
        return None;
    }
    let key = std::str::from_utf8(key).ok()?;
    MATTER.into_iter().find(|name| key.chars().map(fold).eq(name.chars()))
}

impl Place {
    /// Where the members of an object stand.
    fn member(self, key: &[u8]) -> Place {
        match (self, key) {
            (Place::Text | Place::Items, key) => match key {
                // Text parts of all dialects, and messages, which are parts with a role.
                b"text" | b"content" | b"name" | b"refusal" | b"title" | b"context" => Place::Text,
                b"thinking" | b"reasoning" | b"reasoning_content" | b"summary" => Place::Text,
                // Calls of tools and their results.
                b"tool_calls" | b"function_call" | b"function" | b"custom" | b"arguments" | b"output" => Place::Text,
                b"code" | b"outputs" | b"logs" | b"queries" => Place::Text,
                b"input" | b"action" => Place::Everything,
                b"source" => Place::Source,
                _ => Place::Skip,
            },
            (Place::Source, b"content") => Place::Text,
            (Place::Format, b"format") => Place::Format,
            (Place::Format, b"schema" | b"json_schema") => Place::Everything,
            _ => Place::Skip,
        }
    }
}
