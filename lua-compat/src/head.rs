//! What a proxy says of a request, and what the client's headers say.

/// Headers that a client usually sends: room is made for so many at once.
const HEADERS_USUAL: usize = 16;
/// A client's own request id is taken up to this length.
const CLIENT_ID_BYTES_MAX: usize = 128;

/// What a request's head says.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// The path, without its query.
    pub path: String,
    /// The account the proxy vouches for.
    pub account: Option<String>,
    /// The tier the proxy vouches for.
    pub tier: Option<String>,
    /// The proxy routes by itself: count, and touch nothing.
    pub observe: bool,
    /// What the proxy cannot change after the first attempt.
    pub fixed: Fixed,
    /// Who answers, by the proxy's word: with an answer that is observed.
    pub provider: Option<String>,
    /// Which model answers, by the proxy's word.
    pub model: Option<String>,
    /// The client's headers, names in lower case.
    pub headers: Vec<(String, String)>,
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
        let mut head = Head { headers: Vec::with_capacity(HEADERS_USUAL), ..Head::default() };
        for (index, line) in String::from_utf8_lossy(text).split('\n').enumerate() {
            if index == 0 {
                head.path = line.split('?').next().unwrap_or_default().to_owned();
                continue;
            }
            let at = line.get(1..).and_then(|rest| rest.find(':')).map(|at| at + 1);
            let Some((name, value)) = at.map(|at| (&line[..at], line[at + 1..].trim())) else { continue };
            match name {
                ":account" => head.account = Some(value.to_owned()),
                ":tier" => head.tier = Some(value.to_owned()),
                ":observe" => head.observe = value == "true",
                ":fixed" => head.fixed = Fixed::parse(value),
                ":provider" => head.provider = Some(value.to_owned()),
                ":model" => head.model = Some(value.to_owned()),
                unknown if unknown.starts_with(':') => {}
                _ => head.headers.push((name.to_ascii_lowercase(), value.to_owned())),
            }
        }
        head
    }

    /// The value of a header; nothing for an empty one.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(held, _)| held == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Whether a `Connection` header says that this field goes no further than this hop (RFC 9110, 7.6.1).
    pub fn nominates(&self, name: &str) -> bool {
        self.value("connection").is_some_and(|value| value.split(',').any(|nominated| nominated.trim().eq_ignore_ascii_case(name)))
    }

    /// What the client calls the request, where it can be sent back as it came.
    pub fn client_id(&self) -> Option<&str> {
        self.value("x-request-id").filter(|id| id.len() <= CLIENT_ID_BYTES_MAX && id.bytes().all(|byte| byte.is_ascii_graphic()))
    }

    /// It announces a stream of events.
    pub fn is_stream(&self) -> bool {
        self.value("content-type").is_some_and(|value| value.to_ascii_lowercase().starts_with("text/event-stream"))
    }

    /// What the caller presents.
    pub fn credential(&self) -> Option<&str> {
        if let Some(value) = self.value("authorization") {
            let (scheme, token) = value.split_once(' ')?;
            return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim());
        }
        self.value("x-api-key").or_else(|| self.value("api-key"))
    }
}
