//! What a proxy says of a request, and what the client's headers say.

use memchr::memchr;
use std::ops::Range;

/// Headers that a client usually sends: room is made for so many at once.
const HEADERS_USUAL: usize = 16;
/// ASCII's own character for one that could not be read.
const SUBSTITUTE: char = '\u{1a}';
/// A client's own request id is taken up to this length.
const CLIENT_ID_BYTES_MAX: usize = 128;

/// What a request's head says: the text as it came, names in lower case, and where the fields stand in it.
#[derive(Debug, Clone, Default)]
pub struct Head {
    text: String,
    path: Range<usize>,
    /// The proxy's words among them: their names begin with a colon.
    fields: Vec<Field>,
    /// The proxy routes by itself: count, and touch nothing.
    pub observe: bool,
    /// What the proxy cannot change after the first attempt.
    pub fixed: Fixed,
}

#[derive(Debug, Clone)]
struct Field {
    name: Range<usize>,
    value: Range<usize>,
}

/// What a proxy cannot change once the first attempt has been sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fixed {
    /// `http` or `https`.
    pub scheme: bool,
    /// Path and query.
    pub uri: bool,
    /// The body.
    pub body: bool,
}

impl Fixed {
    fn parse(words: &str) -> Fixed {
        let has = |name: &str| words.split_ascii_whitespace().any(|word| word == name);
        Fixed { scheme: has("scheme"), uri: has("uri"), body: has("body") }
    }
}

impl Head {
    /// Reads `path`, then a line for each header: `name: value`. Names that begin with a colon are the proxy's word, not the client's.
    pub fn parse(text: &[u8]) -> Head {
        let path = memchr(b'\n', text).unwrap_or(text.len());
        let mut head = Head::of_fields(text, path + 1);
        head.path = 0..memchr(b'?', &head.text.as_bytes()[..path]).unwrap_or(path);
        head
    }

    /// Reads the head of an answer: its headers alone.
    pub fn parse_answer(text: &[u8]) -> Head {
        Head::of_fields(text, 0)
    }

    fn of_fields(text: &[u8], from: usize) -> Head {
        let text = match std::str::from_utf8(text) {
            Ok(text) => text.to_owned(),
            Err(_) => lossy(text),
        };
        let mut head = Head { text, fields: Vec::with_capacity(HEADERS_USUAL), ..Head::default() };
        let mut start = from;
        while start < head.text.len() {
            let end = memchr(b'\n', &head.text.as_bytes()[start..]).map_or(head.text.len(), |length| start + length);
            head.field(start..end);
            start = end + 1;
        }
        head
    }

    fn field(&mut self, line: Range<usize>) {
        let bytes = &self.text.as_bytes()[line.clone()];
        // The first byte may be the colon of the proxy's word.
        let Some(at) = bytes.get(1..).and_then(|rest| memchr(b':', rest)).map(|at| at + 1) else { return };
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r');
        let blank = bytes[at + 1..].iter().take_while(|byte| is_space(byte)).count();
        let behind = bytes[at + 1 + blank..].iter().rev().take_while(|byte| is_space(byte)).count();
        let name = line.start..line.start + at;
        let value = name.end + 1 + blank..line.end - behind;
        match &self.text[name.clone()] {
            ":observe" => self.observe = &self.text[value.clone()] == "true",
            ":fixed" => self.fixed = Fixed::parse(&self.text[value.clone()]),
            _ => {}
        }
        if let Some(name) = self.text.get_mut(name.clone()) {
            name.make_ascii_lowercase();
        }
        self.fields.push(Field { name, value });
    }

    /// The path, without its query.
    pub fn path(&self) -> &str {
        &self.text[self.path.clone()]
    }

    /// The request's method; absent where the proxy does not say.
    pub fn method(&self) -> Option<&str> {
        self.word(":method")
    }

    /// The account the proxy vouches for.
    pub fn account(&self) -> Option<&str> {
        self.word(":account")
    }

    /// The tier the proxy vouches for.
    pub fn tier(&self) -> Option<&str> {
        self.word(":tier")
    }

    /// Who answers, by the proxy's word: with an answer that is observed.
    pub fn provider(&self) -> Option<&str> {
        self.word(":provider")
    }

    /// Which model answers, by the proxy's word.
    pub fn model(&self) -> Option<&str> {
        self.word(":model")
    }

    fn is_called(&self, field: &Field, name: &str) -> bool {
        field.name.len() == name.len() && &self.text.as_bytes()[field.name.clone()] == name.as_bytes()
    }

    /// The last of a name holds.
    fn word(&self, name: &str) -> Option<&str> {
        let field = self.fields.iter().rev().find(|field| self.is_called(field, name))?;
        Some(&self.text[field.value.clone()])
    }

    /// The names of the client's headers, in lower case, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|field| &self.text[field.name.clone()]).filter(|name| !name.starts_with(':'))
    }

    /// The value of a header; nothing for an empty one.
    pub fn value(&self, name: &str) -> Option<&str> {
        let field = self.fields.iter().find(|field| self.is_called(field, name))?;
        Some(&self.text[field.value.clone()]).filter(|value| !value.is_empty())
    }

    /// The values of all headers of a name.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(move |field| self.is_called(field, name)).map(|field| &self.text[field.value.clone()])
    }

    /// What the client calls the request, where it can be sent back as it came.
    pub fn client_id(&self) -> Option<&str> {
        self.value("x-request-id").filter(|id| id.len() <= CLIENT_ID_BYTES_MAX && id.bytes().all(|byte| byte.is_ascii_graphic()))
    }

    /// It announces a stream of events.
    pub fn is_stream(&self) -> bool {
        self.value("content-type").and_then(|value| value.get(..17)).is_some_and(|start| start.eq_ignore_ascii_case("text/event-stream"))
    }

    /// What the caller presents. An `Authorization` of another scheme is for somebody on the way, and the other places are looked at.
    pub fn credential(&self) -> Option<&str> {
        let bearer = || {
            let (scheme, token) = self.value("authorization")?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        };
        bearer().or_else(|| self.value("x-api-key")).or_else(|| self.value("api-key"))
    }
}

/// The text with every byte that is no UTF-8 replaced by a control character: lines and fields stay where they are, and what held
/// such a byte is neither a known path nor an id that can be sent back.
fn lossy(text: &[u8]) -> String {
    let mut whole = String::with_capacity(text.len());
    for part in text.utf8_chunks() {
        whole.push_str(part.valid());
        part.invalid().iter().for_each(|_| whole.push(SUBSTITUTE));
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_where_they_stand() {
        let head = Head::parse(
            b"/v1/x?a=b\n:account: acme\n:observe: true\n:odd: 1\nX-Power-Level:  best \r\nempty:\nno colon\n\n: x\nLatin: caf\xe9\n",
        );
        assert_eq!((head.path(), head.account(), head.tier(), head.observe), ("/v1/x", Some("acme"), None, true));
        assert_eq!(head.names().collect::<Vec<_>>(), ["x-power-level", "empty", "latin"]);
        assert_eq!(["x-power-level", "empty", "latin", "none"].map(|name| head.value(name)), [Some("best"), None, Some("caf\u{1a}"), None]);
        let twice = Head::parse(b"/\nConnection: close, x-one\nx-one: 1\nconnection: x-two");
        assert_eq!(twice.values("connection").collect::<Vec<_>>(), ["close, x-one", "x-two"]);
        let odd = Head::parse(b"/v1/models\xff/x?a\nx-request-id: caf\xe9");
        assert_eq!((odd.path(), odd.client_id()), ("/v1/models\u{1a}/x", None));
        let answer = Head::parse_answer(b"Content-Type: text/event-stream; charset=utf-8\n:model: m");
        assert!(answer.is_stream() && answer.model() == Some("m") && answer.path().is_empty());
        assert_eq!(Head::parse(b"").path(), "");
    }

    #[test]
    fn a_credential_is_found_beside_an_authorization_that_is_no_bearer() {
        for (text, expected) in [
            (&b"/\nauthorization: Bearer wk_1\nx-api-key: wk_2"[..], Some("wk_1")),
            (b"/\nauthorization: Basic dTpw\nx-api-key: wk_2", Some("wk_2")),
            (b"/\nauthorization: Bearer\napi-key: wk_3", Some("wk_3")),
            (b"/\nauthorization: Basic dTpw", None),
        ] {
            assert_eq!(Head::parse(text).credential(), expected);
        }
    }
}
