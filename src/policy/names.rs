//! The names a policy may use under `ngx`, and the search for others in its text.

/// Directly under `ngx`.
const TOP: &[&str] = &[
    "AGAIN",
    "ALERT",
    "CRIT",
    "DEBUG",
    "DECLINED",
    "DONE",
    "EMERG",
    "ERR",
    "ERROR",
    "INFO",
    "NOTICE",
    "OK",
    "STDERR",
    "WARN",
    "arg",
    "ctx",
    "decode_args",
    "decode_base64",
    "encode_args",
    "encode_base64",
    "escape_uri",
    "exit",
    "get_phase",
    "header",
    "hmac_sha1",
    "log",
    "md5",
    "md5_bin",
    "now",
    "null",
    "print",
    "re",
    "req",
    "say",
    "sha1_bin",
    "shared",
    "status",
    "time",
    "unescape_uri",
    "update_time",
    "var",
];
/// Under `ngx.req`.
const REQ: &[&str] =
    &["clear_header", "get_body_data", "get_headers", "get_method", "get_uri_args", "read_body", "set_body_data", "set_header"];
/// Under `ngx.re`.
const RE: &[&str] = &["find", "gsub", "match"];
/// Under `ngx.var`, besides `http_…`, `arg_…` and `sent_http_…`. The last three are who calls: in nginx a `set` supplies them.
pub(super) const VAR: &[&str] = &[
    "args",
    "content_length",
    "content_type",
    "host",
    "is_args",
    "query_string",
    "remote_addr",
    "request_id",
    "request_method",
    "request_time",
    "request_uri",
    "scheme",
    "server_protocol",
    "status",
    "uri",
    "weir_account",
    "weir_key_id",
    "weir_tier",
];
/// `HTTP_…` constants of ngx_lua (its documentation, "HTTP status constants").
pub(super) const HTTP: &[(&str, u16)] = &[
    ("HTTP_OK", 200),
    ("HTTP_CREATED", 201),
    ("HTTP_ACCEPTED", 202),
    ("HTTP_NO_CONTENT", 204),
    ("HTTP_PARTIAL_CONTENT", 206),
    ("HTTP_SPECIAL_RESPONSE", 300),
    ("HTTP_MOVED_PERMANENTLY", 301),
    ("HTTP_MOVED_TEMPORARILY", 302),
    ("HTTP_SEE_OTHER", 303),
    ("HTTP_NOT_MODIFIED", 304),
    ("HTTP_TEMPORARY_REDIRECT", 307),
    ("HTTP_PERMANENT_REDIRECT", 308),
    ("HTTP_BAD_REQUEST", 400),
    ("HTTP_UNAUTHORIZED", 401),
    ("HTTP_PAYMENT_REQUIRED", 402),
    ("HTTP_FORBIDDEN", 403),
    ("HTTP_NOT_FOUND", 404),
    ("HTTP_NOT_ALLOWED", 405),
    ("HTTP_NOT_ACCEPTABLE", 406),
    ("HTTP_REQUEST_TIMEOUT", 408),
    ("HTTP_CONFLICT", 409),
    ("HTTP_GONE", 410),
    ("HTTP_UPGRADE_REQUIRED", 426),
    ("HTTP_TOO_MANY_REQUESTS", 429),
    ("HTTP_CLOSE", 444),
    ("HTTP_ILLEGAL", 451),
    ("HTTP_INTERNAL_SERVER_ERROR", 500),
    ("HTTP_METHOD_NOT_IMPLEMENTED", 501),
    ("HTTP_BAD_GATEWAY", 502),
    ("HTTP_SERVICE_UNAVAILABLE", 503),
    ("HTTP_GATEWAY_TIMEOUT", 504),
    ("HTTP_VERSION_NOT_SUPPORTED", 505),
    ("HTTP_INSUFFICIENT_STORAGE", 507),
];

/// Modules that `require` gives.
const MODULES: &[&str] = &["cjson", "cjson.safe"];
/// Members of `cjson` and `cjson.safe`.
const CJSON: &[&str] = &["decode", "encode", "null"];
/// Members of `os`.
const OS: &[&str] = &["clock", "date", "difftime", "time"];
/// Lua's own that is withheld.
const WITHHELD: &[&str] = &[
    "collectgarbage",
    "coroutine",
    "debug",
    "dofile",
    "getfenv",
    "io",
    "jit",
    "load",
    "loadfile",
    "loadstring",
    "module",
    "newproxy",
    "package",
    "setfenv",
];

/// A name that is not offered, and where it stands.
#[derive(Debug, PartialEq, Eq)]
pub struct Unknown {
    /// From one.
    pub line: usize,
    /// As it is called under `ngx` or in Lua: `ngx.timer`, `io`.
    pub name: String,
}

/// Whether `ngx.var.NAME` is offered.
pub(super) fn is_variable(name: &str) -> bool {
    VAR.contains(&name)
        || ["http_", "arg_", "sent_http_"].iter().any(|prefix| name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty()))
}

/// Every use of a name that is not offered: under `ngx`, under a local name for it or for a part of it, a module, one of Lua's
/// own. What hides better (in a table, in an argument) is caught when it is used.
pub fn unknown(source: &str) -> Vec<Unknown> {
    let tokens = tokens(source);
    let locals = Locals::of(&tokens);
    let mut found = Vec::new();
    let mut note = |line: usize, name: String| {
        let unknown = Unknown { line, name };
        if !found.contains(&unknown) {
            found.push(unknown);
        }
    };
    for (index, token) in tokens.iter().enumerate() {
        let Kind::Name(name) = token.kind else { continue };
        if is_member(&tokens, index) {
            continue;
        }
        if name == "require" && !locals.is_bound(name) {
            if let Some(module) = required(&tokens, index).filter(|module| !MODULES.contains(module)) {
                note(token.line, module.to_string());
            }
            continue;
        }
        if WITHHELD.contains(&name) && !locals.is_bound(name) && is_used(&tokens, index) {
            note(token.line, name.to_string());
            continue;
        }
        let Some(path) = locals.path(name) else { continue };
        let path = members(&tokens, index + 1, path);
        if let Some(depth) = first_unknown(&path) {
            note(token.line, path[..=depth].join("."));
        }
    }
    found
}

/// The place in a path of the first name that is not offered.
fn first_unknown(path: &[&str]) -> Option<usize> {
    let is_offered: fn(&str) -> bool = match path {
        ["ngx", top, ..] if !TOP.contains(top) && !HTTP.iter().any(|(name, _)| name == top) => return Some(1),
        ["ngx", "req", _, ..] => |name| REQ.contains(&name),
        ["ngx", "re", _, ..] => |name| RE.contains(&name),
        ["ngx", "var", _, ..] => is_variable,
        ["cjson", member, ..] => return (!CJSON.contains(member)).then_some(1),
        ["os", member, ..] => return (!OS.contains(member)).then_some(1),
        _ => return None,
    };
    (!is_offered(path[2])).then_some(2)
}

/// Local names. One that is bound to `ngx` or a part of it, wherever it is bound, stands for that; any other stands for nothing.
struct Locals<'a> {
    bound: Vec<&'a str>,
    aliases: Vec<(&'a str, Vec<&'a str>)>,
}

impl<'a> Locals<'a> {
    fn of(tokens: &[Token<'a>]) -> Locals<'a> {
        let mut locals = Locals { bound: Vec::new(), aliases: Vec::new() };
        let mut at = 0;
        while at < tokens.len() {
            at = match tokens[at].kind {
                Kind::Name("local") => locals.declared(tokens, at + 1),
                Kind::Name("function" | "for") => locals.parameters(tokens, at + 1),
                _ => at + 1,
            };
        }
        let is_one = |alias: &(&str, Vec<&str>)| {
            let bound = locals.bound.iter().filter(|bound| **bound == alias.0).count();
            bound == locals.aliases.iter().filter(|other| *other == alias).count()
        };
        let aliases = locals.aliases.iter().filter(|alias| is_one(alias)).cloned().collect();
        Locals { aliases, ..locals }
    }

    /// `local a, b = x, y` from behind `local` on: as many as are plain names of what is known. Returns where the tokens go on.
    fn declared(&mut self, tokens: &[Token<'a>], mut at: usize) -> usize {
        let mut names = Vec::new();
        while let Some(Kind::Name(name)) = kind(tokens, at).filter(|kind| **kind != Kind::Name("function")) {
            names.push(*name);
            at += 1;
            if kind(tokens, at) != Some(&Kind::Mark(',')) {
                break;
            }
            at += 1;
        }
        if kind(tokens, at) == Some(&Kind::Mark('=')) {
            at += 1;
            // What stands on the right was known before the names on the left were.
            let aliases = self.values(tokens, at, &names);
            self.aliases.extend(aliases);
        }
        self.bound.extend(names);
        at
    }

    fn values(&self, tokens: &[Token<'a>], mut at: usize, names: &[&'a str]) -> Vec<(&'a str, Vec<&'a str>)> {
        let mut aliases = Vec::new();
        for name in names {
            let Some(Kind::Name(value)) = kind(tokens, at) else { break };
            let (path, next) = if *value == "require" {
                if required(tokens, at).is_none_or(|module| !MODULES.contains(&module)) {
                    break;
                }
                (vec!["cjson"], at + if kind(tokens, at + 1) == Some(&Kind::Mark('(')) { 4 } else { 2 })
            } else {
                let Some(path) = self.path(value) else { break };
                (members(tokens, at + 1, path), members_end(tokens, at + 1))
            };
            // A call or a calculation is something else; what is not offered is told where it stands.
            if first_unknown(&path).is_some() || !matches!(kind(tokens, next), None | Some(Kind::Name(_) | Kind::Mark(',' | ';'))) {
                break;
            }
            aliases.push((*name, path));
            if kind(tokens, next) != Some(&Kind::Mark(',')) {
                break;
            }
            at = next + 1;
        }
        aliases
    }

    /// The names in a function's parentheses, or between `for` and `in` or `=`.
    fn parameters(&mut self, tokens: &[Token<'a>], mut at: usize) -> usize {
        let mut is_inside =
            kind(tokens, at) != Some(&Kind::Mark('(')) && matches!(kind(tokens, at.wrapping_sub(1)), Some(Kind::Name("for")));
        while let Some(kind) = kind(tokens, at) {
            match kind {
                Kind::Mark('(') => is_inside = true,
                Kind::Mark(')' | '=') | Kind::Name("in") => break,
                Kind::Name(name) if is_inside => self.bound.push(name),
                Kind::Name(name) if matches!(tokens[at - 1].kind, Kind::Name("function")) => self.bound.push(name),
                _ => {}
            }
            at += 1;
        }
        at
    }

    fn is_bound(&self, name: &str) -> bool {
        self.bound.contains(&name)
    }

    /// What a name stands for.
    fn path(&self, name: &'a str) -> Option<Vec<&'a str>> {
        if let Some((_, path)) = self.aliases.iter().find(|(alias, _)| *alias == name) {
            return Some(path.clone());
        }
        matches!(name, "ngx" | "os").then(|| vec![name]).filter(|_| !self.is_bound(name))
    }
}

fn kind<'t, 'a>(tokens: &'t [Token<'a>], at: usize) -> Option<&'t Kind<'a>> {
    tokens.get(at).map(|token| &token.kind)
}

/// Whether the name at `at` is taken from something, and is no name of its own.
fn is_member(tokens: &[Token<'_>], at: usize) -> bool {
    let before = |steps: usize| at.checked_sub(steps).and_then(|at| kind(tokens, at));
    // `..` joins texts.
    matches!(before(1), Some(Kind::Mark(':'))) || (before(1) == Some(&Kind::Mark('.')) && before(2) != Some(&Kind::Mark('.')))
}

/// Whether something is taken from the name at `at`, or it is called.
fn is_used(tokens: &[Token<'_>], at: usize) -> bool {
    match kind(tokens, at + 1) {
        Some(Kind::Mark('.')) => kind(tokens, at + 2) != Some(&Kind::Mark('.')),
        Some(Kind::Mark('[' | '(' | ':' | '{') | Kind::Text(_)) => true,
        _ => false,
    }
}

/// The module that `require` at `at` asks for by a plain text.
fn required<'a>(tokens: &[Token<'a>], at: usize) -> Option<&'a str> {
    match (kind(tokens, at + 1)?, kind(tokens, at + 2)) {
        (Kind::Text(module), _) | (Kind::Mark('('), Some(Kind::Text(module))) => Some(module),
        _ => None,
    }
}

/// The path of the members taken from `at` on.
fn members<'a>(tokens: &[Token<'a>], mut at: usize, mut path: Vec<&'a str>) -> Vec<&'a str> {
    while let Some((name, next)) = member(tokens, at) {
        path.push(name);
        at = next;
    }
    path
}

/// Where the members taken from `at` on end.
fn members_end(tokens: &[Token<'_>], mut at: usize) -> usize {
    while let Some((_, next)) = member(tokens, at) {
        at = next;
    }
    at
}

#[derive(Debug, PartialEq, Eq)]
enum Kind<'a> {
    Name(&'a str),
    Text(&'a str),
    Mark(char),
}

struct Token<'a> {
    line: usize,
    kind: Kind<'a>,
}

/// The member that `.name` or `["name"]` at `at` takes, and where the tokens go on.
fn member<'a>(tokens: &[Token<'a>], at: usize) -> Option<(&'a str, usize)> {
    match (kind(tokens, at)?, kind(tokens, at + 1)?, kind(tokens, at + 2)) {
        (Kind::Mark('.'), Kind::Name(name), _) => Some((name, at + 2)),
        (Kind::Mark('['), Kind::Text(name), Some(Kind::Mark(']'))) => Some((name, at + 3)),
        _ => None,
    }
}

fn tokens(source: &str) -> Vec<Token<'_>> {
    let bytes = source.as_bytes();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let start = at;
        let kind = match bytes[at] {
            b'-' if bytes.get(at + 1) == Some(&b'-') => {
                at = long_end(source, at + 2).map_or_else(|| source[at..].find('\n').map_or(bytes.len(), |end| at + end), |(_, end)| end);
                None
            }
            quote @ (b'"' | b'\'') => {
                at += 1;
                while at < bytes.len() && bytes[at] != quote && bytes[at] != b'\n' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at = (at + 1).min(bytes.len());
                // An escape may run past a character's first byte; such a text names nothing.
                Some(Kind::Text(source.get(start + 1..at.saturating_sub(1)).unwrap_or_default()))
            }
            b'[' if long_end(source, at).is_some() => {
                let (text, end) = long_end(source, at).unwrap_or(("", at + 1));
                at = end;
                Some(Kind::Text(text))
            }
            byte if byte.is_ascii_alphabetic() || byte == b'_' => {
                while at < bytes.len() && (bytes[at].is_ascii_alphanumeric() || bytes[at] == b'_') {
                    at += 1;
                }
                Some(Kind::Name(&source[start..at]))
            }
            byte => {
                at += 1;
                (!byte.is_ascii_whitespace()).then_some(Kind::Mark(byte as char))
            }
        };
        tokens.extend(kind.map(|kind| Token { line, kind }));
        line += bytes[start..at.min(bytes.len())].iter().filter(|byte| **byte == b'\n').count();
    }
    tokens
}

/// The text and the end of a long bracket (`[[…]]`, `[==[…]==]`) that opens at `at`.
fn long_end(source: &str, at: usize) -> Option<(&str, usize)> {
    let rest = source.get(at..)?.strip_prefix('[')?;
    let level = rest.bytes().take_while(|byte| *byte == b'=').count();
    rest[level..].strip_prefix('[')?;
    let close = format!("]{}]", "=".repeat(level));
    let begin = at + level + 2;
    let length = source[begin..].find(&close).unwrap_or(source.len() - begin);
    Some((&source[begin..begin + length], (begin + length + close.len()).min(source.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &str, expected: &[(usize, &str)]) {
        let found: Vec<(usize, String)> = unknown(source).into_iter().map(|unknown| (unknown.line, unknown.name)).collect();
        let expected: Vec<(usize, String)> = expected.iter().map(|(line, name)| (*line, (*name).to_string())).collect();
        assert_eq!(found, expected, "{source}");
    }

    #[test]
    fn names_that_are_not_offered_are_found_with_their_line() {
        check("ngx.say(ngx.var.uri, ngx.HTTP_OK, ngx.header['X-Any'], ngx.shared.any:get('a'))", &[]);
        check("\n\nngx.timer.at(0, f)", &[(3, "ngx.timer")]);
        check("local s = ngx.socket", &[(1, "ngx.socket")]);
        check("ngx['location'].capture('/')", &[(1, "ngx.location")]);
        check("ngx.req.socket()", &[(1, "ngx.req.socket")]);
        check("ngx.re.gmatch('a', 'b')\nngx.re.match('a', 'b')", &[(1, "ngx.re.gmatch")]);
        check("local a = ngx.var.upstream_uri or ngx.var.http_x_a or ngx.var.http_", &[(1, "ngx.var.upstream_uri"), (1, "ngx.var.http_")]);
        check("local v = ngx.var[name]", &[]);
        check("ngx.HTTP_TEAPOT()", &[(1, "ngx.HTTP_TEAPOT")]);
        check("ngx.timer.at(0) ngx.timer.at(1)", &[(1, "ngx.timer")]);
    }

    #[test]
    fn names_are_found_behind_local_names() {
        check("local n = ngx\nn.timer.at(0)", &[(2, "ngx.timer")]);
        check("local req, re = ngx.req, ngx.re\nreq.socket() re.gmatch() req.get_method()", &[(2, "ngx.req.socket"), (2, "ngx.re.gmatch")]);
        check("local ngx = ngx\nngx.sleep(1)", &[(2, "ngx.sleep")]);
        check("local function f() local ngx = ngx end local ngx = ngx\nngx.sleep(1)", &[(2, "ngx.sleep")]);
        check("local s = ngx.socket\nreturn s", &[(1, "ngx.socket")]);
        check("local v = ngx.var\nlocal a = v.http_x_a .. v.upstream", &[(2, "ngx.var.upstream")]);
        check("local c = require 'cjson'\nc.encode_max_depth(1)", &[(2, "cjson.encode_max_depth")]);
        check("local c = require('cjson.safe')\nc.encode(1)", &[]);
        // Not the same name any more, or never that.
        check("local req = ngx.req\nlocal req = other() req.socket()", &[]);
        check("local function f(re) re.gmatch() end local re = ngx.re", &[]);
        check("local now = ngx.now() now.x = 1 for _, req in pairs(t) do req.socket() end", &[]);
        check("local function ngx() end ngx.timer()", &[]);
    }

    #[test]
    fn lua_s_own_that_is_withheld_and_other_modules_are_found() {
        check(
            "local f = io.open('x')\nos.execute('x') debug.traceback() loadstring('x')()",
            &[(1, "io"), (2, "os.execute"), (2, "debug"), (2, "loadstring")],
        );
        check("local r = require 'resty.redis'\nlocal s = require(\"socket\")", &[(1, "resty.redis"), (2, "socket")]);
        check("local t = { debug = true, load = 1 } t.debug = t.load local function load() end load() os.time()", &[]);
    }

    #[test]
    fn comments_and_texts_are_not_code() {
        check("-- ngx.timer\n--[[ ngx.timer\n ngx.timer ]] ngx.sleep(1)", &[(3, "ngx.sleep")]);
        check("local a = 'ngx.timer' .. \"\\\"ngx.timer\" .. [==[ ngx.timer ]] ]==]", &[]);
        check("local a = other.ngx.timer", &[]);
        check("local a = '\\", &[]);
    }
}
