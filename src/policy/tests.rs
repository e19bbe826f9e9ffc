//! Policies that run, with real Lua.

use super::shared::{SHARED, Stored};
use super::{Access, Exchange, Failed, Filtered, Head, check};
use crate::engine::catalog::{LuaPolicy, OnPolicyError};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn policy(source: &str) -> Arc<LuaPolicy> {
    let policy = LuaPolicy { file: "policy.lua".into(), text: source.into(), on_error: OnPolicyError::Refuse };
    check(&policy).unwrap_or_else(|problems| panic!("{problems:?}"));
    Arc::new(policy)
}

fn head() -> Head {
    let mut headers = HeaderMap::new();
    for (name, value) in [("authorization", "Bearer wk_secret"), ("x-api-key", "wk_secret"), ("x-team", "red"), ("host", "weir:8080")] {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    Head {
        method: "POST".into(),
        target: "/v1/chat/completions?a=1&b=x%20y&a=2".into(),
        protocol: "HTTP/1.1",
        scheme: "http",
        headers,
        ..Head::default()
    }
}

fn access(source: &str, body: &str) -> Result<Access, Failed> {
    Exchange::new(policy(source), head()).access(&Bytes::copy_from_slice(body.as_bytes()))
}

/// What an access handler says.
fn said(code: &str, expected: &str) {
    match access(&format!("return {{ access = function() local cjson = require 'cjson'; ngx.print({code}) end }}"), r#"{"model":"a"}"#) {
        Ok(Access::Answer { body, .. }) => assert_eq!(std::str::from_utf8(&body).unwrap(), expected, "{code}"),
        other => panic!("{code}: {other:?}"),
    }
}

fn refused(source: &str, expected: &str) {
    let policy = LuaPolicy { file: "policy.lua".into(), text: source.into(), ..LuaPolicy::default() };
    let problems = check(&policy).unwrap_err();
    assert!(problems[0].to_string().contains(expected), "{source}: {problems:?}");
}

#[test]
fn expressions_have_their_values() {
    for (code, expected) in [
        ("ngx.var.http_x_team, ngx.var.arg_b, ngx.var.uri, ngx.var.is_args, ngx.var.host", "redx%20y/v1/chat/completions?weir"),
        ("tostring(ngx.var.http_authorization), tostring(ngx.req.get_headers()['X-Api-Key'])", "nilnil"),
        ("ngx.req.get_headers().x_team, ngx.req.get_headers()['X-Team']", "redred"),
        ("ngx.req.get_uri_args().a[2], ngx.req.get_uri_args().b", "2x y"),
        ("cjson.decode(ngx.req.get_body_data()).model, ngx.get_phase()", "aaccess"),
        ("cjson.encode({1, 'a/b', true, cjson.null, 1.5, 1e15, 12345678901234})", r#"[1,"a\/b",true,null,1.5,1e+15,12345678901234]"#),
        ("cjson.encode({}), cjson.encode({a = {b = 1}}), cjson.encode('\\0\\127\\\"\\n')", "{}{\"a\":{\"b\":1}}\"\\u0000\\u007f\\\"\\n\""),
        ("ngx.md5('a'), ' ', ngx.encode_base64(ngx.sha1_bin('a'))", "0cc175b9c0f1b6a831c399e269772661 hvfkN/qlp/zhXR3cuerq6jd2Z7g="),
        ("ngx.encode_base64(ngx.hmac_sha1('k', 'a')), ngx.decode_base64('YQ')", "QOfUQcrbF7B/BQNBqiOmgg7YHIs=a"),
        ("ngx.escape_uri('a b/ü~'), ngx.unescape_uri('a+b%2F')", "a%20b%2F%C3%BC~a b/"),
        ("ngx.encode_args({a = {1, 2}}), ngx.decode_args('x=1&y').x, ngx.decode_args('y').y", "a=1&a=21true"),
        ("ngx.re.match('gpt-4o', [[^(\\w+)-(?<v>\\d)(z)?]]).v, ngx.re.match('gpt-4o', '(g)(z)?')[2]", "4false"),
        ("ngx.re.find('abc', 'b', 'jo')", "22"),
        ("ngx.re.gsub('a-b-c', '([a-z])-', '<$1>')", "<a><b>c2"),
        ("ngx.re.gsub('ab', '', function(m) return '.' end)", ".a.b.3"),
        ("select(2, ngx.re.match('a', '(?=a)')) ~= nil", "true"),
        ("pcall(function() local n = { ngx } return n[1].timer end)", "falsepolicy.lua:1: ngx.timer is not offered to policies"),
        (
            "ngx.shared.d:set('a', 1), ngx.shared.d:incr('a', 2), ngx.shared.d:get('a'), ngx.shared.d:delete('a'), ngx.shared.d:get('a')",
            "true33truenil",
        ),
    ] {
        said(code, expected);
    }
}

#[test]
fn names_that_are_not_offered_are_refused_at_load() {
    refused("return { access = function() ngx.timer.at(0, print) end }", "policy.lua:1: ngx.timer: is not offered");
    refused("\nlocal n = { ngx }\nlocal t = n[1].socket\nreturn { access = print }", "policy.lua:3: ngx.socket is not offered");
    refused("local r = require 'resty.redis'\nreturn { access = print }", "policy.lua:1: resty.redis: is not offered");
    refused("\nlocal f = io.open\nreturn { access = print }", "policy.lua:2: io: is not offered");
    refused("local n = 'io' local f = _G[n]\nreturn { access = print }", "policy.lua:1: io is not offered");
    refused("return { acess = print }", "there is no handler acess");
    refused("return {}", "no handler");
    refused("return {", "policy.lua:1:");
    refused("while true do end", "longer than it may");
}

#[test]
fn a_runaway_handler_is_stopped_even_where_it_catches_errors() {
    for body in [
        "while true do end",
        "while true do pcall(function() while true do end end) end",
        "local x = 0 repeat x = x + 1 xpcall(function() error('a') end, function() end) until false",
        "xpcall(function() while true do end end, function() while true do end end)",
        "xpcall(error, function() while true do end end)",
        "error(setmetatable({}, { __tostring = function() while true do end end }))",
        "local s = ('x'):rep(1000000) while true do ngx.md5(s) end",
        "local s = ('x'):rep(1000000) while true do local a = s .. s end",
    ] {
        let policy = policy(&format!("return {{ access = function() {body} end }}"));
        let began = Instant::now();
        assert_eq!(Exchange::new(policy, head()).access(&Bytes::new()).unwrap_err(), Failed::TooLong, "{body}");
        // Not a timing of ours: a loop that is not stopped never gets here; this only tells of one that is stopped late.
        assert!(began.elapsed() < Duration::from_secs(20), "{body}");
    }
}

#[test]
fn a_message_handler_gets_the_error_and_gives_the_result() {
    for (code, expected) in [
        ("xpcall(function(a) error({ n = a }) end, function(e) return e.n + 1, 'more' end, 4)", "false5"),
        ("xpcall(function(...) return ... end, error, 1, 2)", "true12"),
        ("select('#', xpcall(error, function() end))", "2"),
        ("(xpcall(error, error, 'a'))", "false"),
        ("xpcall(error, function() error('b', 0) end, 'a')", "falseerror in error handling"),
    ] {
        said(code, expected);
    }
    // Leaving is no error: no message handler hears of it.
    let left = "return { access = function() xpcall(ngx.exit, function() ngx.say('caught') end, 403) ngx.say('never') end }";
    assert!(matches!(access(left, "").unwrap(), Access::Denied(403)));
}

#[test]
fn memory_is_bounded_by_the_allocator() {
    for body in [
        "local s = 'x' while true do s = s .. s end",
        "local t = {} for i = 1, 100000000 do t[i] = {i} end",
        "return ('x'):rep(1000000000)",
    ] {
        let failed = access(&format!("return {{ access = function() {body} end }}"), "").unwrap_err();
        assert!(matches!(failed, Failed::TooMuchMemory | Failed::TooLong), "{body}: {failed:?}");
    }
    assert_eq!(access("return { access = function() local s = ('x'):rep(200000000) end }", "").unwrap_err(), Failed::TooMuchMemory);
}

/// A text many times in a table is one text to the machine, whose limit does not see what a function of ours makes of it.
#[test]
fn what_lies_outside_of_the_machine_is_bounded_too() {
    const MANY: &str = "local s = ('x'):rep(1e6) local t = {} for i = 1, 20000 do t[i] = s end";
    for (code, expected) in [
        ("ngx.say(t)", "false the policy's answer is longer than 1 MiB"),
        ("ngx.print(s, s)", "false the policy's answer is longer than 1 MiB"),
        ("ngx.header.x_a = t", "false a header is longer than 64 KiB"),
        ("ngx.req.set_header('x-a', s)", "false a header is longer than 64 KiB"),
        ("for i = 1, 20000 do t[i] = '' end ngx.req.set_header('x-a', t)", "false a header is longer than 64 KiB"),
        ("ngx.encode_args({ a = t })", "false the arguments are longer than 1 MiB"),
        ("ngx.encode_args({ [s] = s })", "false the arguments are longer than 1 MiB"),
        ("ngx.log(ngx.ERR, t, s)", "true nil"),
    ] {
        let source = format!(
            "return {{ access = function()
                {MANY} local ok, why = pcall(function() {code} end)
                ngx.say(tostring(ok), ' ', (tostring(why):gsub('^runtime error: ', ''):match('^[^\\n]*')))
            end }}"
        );
        match access(&source, "").unwrap() {
            Access::Answer { body, .. } => assert_eq!(String::from_utf8_lossy(&body).trim_end(), expected, "{code}"),
            other => panic!("{code}: {other:?}"),
        }
    }
    // These may come to the end of their time before that of their memory.
    for code in [
        "ngx.re.gsub(s, '.+', ('$0'):rep(20000))",
        "ngx.re.gsub(s, '.+', function() return t end)",
        "s:gsub('.+', ('%0'):rep(20000))",
        "s:gsub('x', s)",
    ] {
        let failed = access(&format!("return {{ access = function() {MANY} local a = {code} end }}"), "").unwrap_err();
        assert!(matches!(failed, Failed::TooMuchMemory | Failed::TooLong), "{code}: {failed:?}");
    }
    let mut exchange = Exchange::new(policy(&format!("return {{ body_filter = function() {MANY} ngx.arg[1] = t end }}")), head());
    assert!(exchange.body_filter("a".into(), true).is_err());
}

/// Each call back from a replacement takes room on the thread's stack, which ends the process when it is used up.
#[test]
fn replacements_that_call_each_other_are_bounded() {
    let braces = format!("{}{}", "{".repeat(2000), "}".repeat(2000));
    for code in [
        "local function expand(s) return (s:gsub('%b{}', function(x) return expand(x:sub(2, -2)) end)) end expand(text)",
        "local function expand(s) return (ngx.re.gsub(s, '.+', function(m) return expand(m[0]) end, 's')) end expand(text)",
    ] {
        let source = format!("return {{ access = function() local text = ngx.req.get_body_data() {code} end }}");
        // On a stack as a worker's.
        let body = braces.clone();
        let run = move || access(&source, &body).unwrap_err();
        let failed = std::thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap().join().unwrap();
        assert!(matches!(failed, Failed::Raised | Failed::TooLong), "{code}: {failed:?}");
    }
}

#[test]
fn access_changes_answers_and_refuses() {
    let go = access(
        "return { access = function() ngx.req.set_header('X-Team', 'blue') ngx.req.clear_header('X-None') ngx.req.set_header('Authorization', 'x') ngx.req.set_body_data('new') end }",
        "old",
    );
    match go.unwrap() {
        Access::Go { headers, body } => {
            assert_eq!(headers, vec![("x-team".parse().unwrap(), vec!["blue".parse().unwrap()]), ("x-none".parse().unwrap(), vec![])]);
            assert_eq!(body.unwrap(), "new");
        }
        other => panic!("{other:?}"),
    }
    let answer =
        access("return { access = function() ngx.status = 418 ngx.say('a', {1, nil}) pcall(ngx.exit, 200) ngx.say('never') end }", "");
    assert!(matches!(answer.unwrap(), Access::Answer { status: 418, body } if body == "a1\n"));
    assert!(matches!(access("return { access = function() return ngx.exit(ngx.HTTP_FORBIDDEN) end }", "").unwrap(), Access::Denied(403)));
    assert!(matches!(access("return { access = function() return ngx.exit(444) end }", "").unwrap(), Access::Close));
    assert!(matches!(access("return { access = function() return ngx.exit(ngx.OK) end }", "").unwrap(), Access::Go { .. }));
    assert_eq!(access("return { access = function() error('no') end }", "").unwrap_err(), Failed::Raised);
}

#[test]
fn filters_see_the_answer_and_the_context_travels_between_threads() {
    let source = "return {
        access = function() ngx.ctx.seen = { n = 1, list = { 'a' } } ngx.header['X-Early'] = 'e' end,
        header_filter = function() ngx.header['X-Seen'] = ngx.ctx.seen.n ngx.header.server = nil ngx.status = ngx.status + 1 end,
        body_filter = function()
            if ngx.arg[2] then ngx.arg[1] = ngx.arg[1] .. '!' .. #ngx.ctx.seen.list else ngx.arg[1] = ngx.arg[1]:upper() end
        end,
        log = function() ngx.shared.filters:incr('n', 1, 0) end,
    }";
    let mut exchange = Exchange::new(policy(source), head());
    exchange.access(&Bytes::new()).unwrap();
    let exchange = std::thread::spawn(move || {
        let mut exchange = exchange;
        let headers = HeaderMap::from_iter([(HeaderName::from_static("server"), HeaderValue::from_static("x"))]);
        let (status, edits) = exchange.header_filter(200, &headers).unwrap();
        assert_eq!(status, 201);
        let names: Vec<(&str, usize)> = edits.iter().map(|(name, values)| (name.as_str(), values.len())).collect();
        assert_eq!(names, [("x-early", 1), ("x-seen", 1), ("server", 0)]);
        exchange
    });
    let mut exchange = exchange.join().unwrap();
    assert!(exchange.filters_bodies());
    assert_eq!(exchange.body_filter("data: a".into(), false).unwrap(), Filtered { bytes: "DATA: A".into(), cut: false });
    assert_eq!(exchange.body_filter(Bytes::new(), true).unwrap(), Filtered { bytes: "!1".into(), cut: false });
    drop(exchange);
    assert_eq!(SHARED.get("filters", b"n", 0).unwrap(), Some(Stored::Number(1.0)));
}

#[test]
fn a_failure_is_passed_over_where_the_operator_says_so() {
    let text = "return {
        access = function() ngx.req.set_header('x-a', '1') ngx.say('half') error('no') end,
        header_filter = function() ngx.header['x-b'] = '1' error('no') end,
        body_filter = function() ngx.arg[1] = 'half' error('no') end,
    }";
    let failing = policy(text);
    let passing = Arc::new(LuaPolicy { on_error: OnPolicyError::Pass, ..(*failing).clone() });
    let mut exchange = Exchange::new(passing, head());
    assert!(matches!(exchange.access(&Bytes::new()), Ok(Access::Go { headers, body: None }) if headers.is_empty()));
    assert_eq!(exchange.header_filter(200, &HeaderMap::new()), Ok((200, Vec::new())));
    assert_eq!(exchange.body_filter("a".into(), true), Ok(Filtered { bytes: "a".into(), cut: false }));
    let mut exchange = Exchange::new(failing, head());
    assert_eq!(exchange.access(&Bytes::new()).unwrap_err(), Failed::Raised);
    // The refusal itself is not filtered.
    exchange.refuse(500);
    assert!(!exchange.filters_bodies());
    assert_eq!(exchange.header_filter(500, &HeaderMap::new()), Ok((500, Vec::new())));
}
