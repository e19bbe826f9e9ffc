"""Lua policies: the same file in nginx's Lua module and in weir, and what weir does with one that misbehaves."""

import getpass
import json
import os
import pathlib
import re
import signal
import subprocess
import threading
import time

import pytest
from conftest import ROOT, TARGET, Weir, free_port
from provider import Gate, chat_answer, chat_events, stream, until, whole

PROGRAM = pathlib.Path(os.environ.get("WEIR_LUA_BIN", TARGET / "debug" / "weir-lua")).absolute()
POLICY = ROOT / "tests" / "e2e" / "policy.lua"
MODULES = "/usr/lib/nginx/modules"

# What stands around a policy in nginx: who calls, which weir finds out itself, and the credentials, which no policy sees.
NGINX = """
daemon off; worker_processes 1; user {user}; pid {folder}/nginx.pid; error_log {folder}/nginx.log info;
load_module {modules}/ndk_http_module.so; load_module {modules}/ngx_http_lua_module.so;
events {{}}
http {{
    access_log off; default_type text/plain;
    client_body_temp_path {folder}/n1; proxy_temp_path {folder}/n2; fastcgi_temp_path {folder}/n3; uwsgi_temp_path {folder}/n4; scgi_temp_path {folder}/n5;
    lua_package_path "{folder}/?.lua;;"; lua_shared_dict d 1m;
    init_by_lua_block {{
        function policy(phase) local handler = require("policy")[phase] if handler then return handler() end end
    }}
    server {{
        listen 127.0.0.1:{port};
        location /v1/ {{
            set $weir_account "{account}"; set $weir_key_id "any"; set $weir_tier "gold";
            client_body_buffer_size 1m; proxy_http_version 1.1; proxy_buffering off; proxy_set_header Connection "";
            access_by_lua_block {{
                ngx.req.read_body()
                for _, name in ipairs {{ "authorization", "x-api-key", "api-key", "cookie", "x-goog-api-key", "proxy-authorization" }} do ngx.req.clear_header(name) end
                return policy("access")
            }}
            header_filter_by_lua_block {{ return policy("header_filter") }}
            body_filter_by_lua_block {{ return policy("body_filter") }}
            log_by_lua_block {{ return policy("log") }}
            proxy_pass http://127.0.0.1:{upstream};
        }}
    }}
}}
"""


class Nginx:
    """nginx with Debian's Lua module before the same provider. A part that is not there is a failure."""

    def __init__(self, folder, upstream, account):
        self.folder, self.port = folder, free_port()
        config = folder / "nginx.conf"
        config.write_text(NGINX.format(user=getpass.getuser(), folder=folder, modules=MODULES, port=self.port, upstream=upstream, account=account))
        self.log = open(folder / "nginx.out", "wb")
        self.process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(config)], stdout=self.log, stderr=self.log)
        until(self._listens, 10, "nginx")

    def _listens(self):
        assert self.process.poll() is None, (self.folder / "nginx.out").read_text()
        try:
            Weir.ask(self, "GET", "/").read()
            return True
        except OSError:
            return False

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)


def configure(world, text=None, on_error=None):
    """A gateway of the build that runs policies, with a policy."""
    world.weir.program = PROGRAM
    if not world.providers:
        world.openai = world.provider("openai")
        world.model("m", "openai/m")
    world.table("policy.lua", 'file = "policy.lua"\n' + (f'on_error = "{on_error}"\n' if on_error else ""))
    world.weir.swap("policy.lua", text if text is not None else POLICY.read_text())
    return world


def under(world, text, on_error=None):
    """A running gateway under a policy."""
    configure(world, text, on_error).start()
    return world


# ------------------------------------------------------------------------------------------------------------------ the same

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "What is a weir?"}]}).encode()
STREAM = json.dumps({"model": "m", "stream": True, "stream_options": {"include_usage": True}, "messages": [{"role": "user", "content": "?"}]}).encode()
WHOLE = [whole(chat_answer(model="m"), headers=[("X-From-Provider", "yes")])]
EVENTS = [stream(chat_events(model="m"))]

SAYING = ["var", "credentials", "caller", "get_method", "get_headers", "get_uri_args", "get_body_data", "get_phase", "now", "ctx", "constants", "re_match", "re_find",
          "re_gsub", "base64", "hashes", "uri", "shared", "cjson", "cjson_safe", "lua"]  # fmt: skip
EXITS = [400, 401, 403, 404, 429, 500, 503]
# A rule, the request's body, what the provider answers; whether the body of the answer is the policy's or the provider's (and
# not the server's own page).
CASES = [
    *((name, BODY, [], True) for name in [*SAYING, "say", "say_after_exit"]),
    *((f"exit_{status}", BODY, [], False) for status in EXITS),
    ("exit_in_pcall", BODY, [], False),
    ("raises", BODY, [], False),
    ("raises_text", BODY, [], False),
    ("exit_ok", BODY, WHOLE, True),
    ("levels", BODY, WHOLE, True),
    ("set_header", BODY, WHOLE, True),
    ("set_body", BODY, WHOLE, True),
    ("headers", BODY, WHOLE, True),
    ("headers", STREAM, EVENTS, True),
    ("status", BODY, WHOLE, True),
    ("body", BODY, WHOLE, True),
    ("body", STREAM, EVENTS, True),
    ("body_nil", STREAM, EVENTS, True),
    ("body_cut", STREAM, EVENTS, True),
    ("none", STREAM, EVENTS, True),
]

SEVERITIES = {"emerg": "error", "alert": "error", "crit": "error", "error": "error", "warn": "warn", "notice": "info", "info": "info"}


def lines_of_nginx(text):
    """The policy's lines between bars: how severe, and what."""
    return [(SEVERITIES[level], what) for level, what in re.findall(r"\[(\w+)\] [^\n]*?\[lua\] [^|\n]*\|(.*?)\|", text)]


def lines_of_weir(text):
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    policy = [line for line in lines if line.get("event") == "policy"]
    assert all(line["request_id"] for line in policy), policy
    return [(line["level"], line["detail"].strip("|")) for line in policy]


def outcome(server, answer, seen):
    """What of an answer is the policy's doing."""
    headers = sorted((name.lower(), value) for name, value in answer.headers if name.lower().startswith(("x-p-", "x-from")) or name.lower() == "content-type")
    upstream = [(sorted((name.lower(), value) for name, value in one.headers if name.lower().startswith(("x-p-", "x-twice", "x-gone", "x-case"))), json.loads(one.body)) for one in seen]
    return {"status": answer.status, "headers": headers, "upstream": upstream}


@pytest.fixture
def both(world):
    """weir and nginx under the same policy, before the same provider."""
    configure(world)
    world.table("tier.gold", "rank = 1\n")
    world.start()
    world.weir.default_key = world.weir.key("gold", tier="gold")
    world.nginx = Nginx(world.folder, world.openai.port, world.weir.default_key["account"])
    yield world
    world.nginx.stop()


def test_a_policy_does_the_same_in_nginx_and_in_weir(both):
    """Every name of the subset, over a table of requests: status, headers, bodies, what goes upstream, log lines."""
    weir, nginx, provider = both.weir, both.nginx, both.openai
    differences = []
    for run, (case, body, replies, is_body_ours) in enumerate(CASES):
        headers = [("X-Case", case), ("X-Twice", "a"), ("X-Twice", "b"), ("X-Gone", "x"), ("Cookie", "a=b"), ("User-Agent", "tests"), ("X-Api-Key", weir.default_key["key"])]
        told = []
        for server in (nginx, weir):
            provider.queue(*replies)
            count = len(provider.seen)
            logged = len(log_of(server))
            answer = Weir.ask(server, "POST", f"/v1/chat/completions?a=1&b=x%20y&a=2&flag&run={run}", body, weir.default_key, headers)
            content = answer.read()
            result = outcome(server, answer, provider.seen[count:])
            if is_body_ours:
                result["body"] = content
            else:
                result["headers"] = [pair for pair in result["headers"] if pair[0] != "content-type"]
            # The log is written behind the answer; a line of its own after each request ends the wait.
            Weir.ask(server, "POST", "/v1/chat/completions", BODY, weir.default_key, [("X-Case", "mark")]).read()
            until(lambda: "|mark|" in log_of(server)[logged:], 5, f"the log of {case}")
            read = lines_of_nginx if server is nginx else lines_of_weir
            result["log"] = [line for line in read(log_of(server)[logged:]) if line[1] != "mark"]
            told.append(result)
        if told[0] != told[1]:
            differences.append(f"{case}\n  nginx {told[0]}\n  weir  {told[1]}")
    assert not differences, "\n".join(differences)


def log_of(server):
    return server.logs() if isinstance(server, Weir) else (server.folder / "nginx.log").read_text(errors="replace")


def test_every_name_of_the_subset_is_compared():
    text = POLICY.read_text()
    for name in ["ngx.log", "ngx.var", "ngx.ctx", "ngx.arg", "ngx.status", "ngx.header", "ngx.exit", "ngx.say", "ngx.print", "ngx.now", "ngx.time", "ngx.update_time",
                 "ngx.get_phase", "ngx.req.get_headers", "ngx.req.set_header", "ngx.req.clear_header", "ngx.req.read_body", "ngx.req.get_body_data", "ngx.req.set_body_data",
                 "ngx.req.get_method", "ngx.req.get_uri_args", "ngx.re.match", "ngx.re.find", "ngx.re.gsub", "ngx.encode_base64", "ngx.decode_base64", "ngx.md5",
                 "ngx.md5_bin", "ngx.sha1_bin", "ngx.hmac_sha1", "ngx.escape_uri", "ngx.unescape_uri", "ngx.encode_args", "ngx.decode_args", "ngx.shared", "ngx.null",
                 "d:get", "d:set", "d:incr", "d:delete", "cjson.encode", "cjson.decode", "safe.encode", "safe.decode"]:  # fmt: skip
        assert name in text, name
    used = {name for name in re.findall(r"^says\(\"(\w+)\"", text, re.M)} | {name for name in re.findall(r"^case\.(\w+) =", text, re.M)}
    assert used - {"mark"} <= {case for case, *_ in CASES}, used


# --------------------------------------------------------------------------------------------------------------- weir's own


def error_of(answer, status, code):
    assert answer.status == status, (answer.status, answer.read())
    error = answer.json["error"]
    assert error["code"] == code and error["message"], error
    return error


def test_a_refusal_has_the_dialect_s_shape_and_costs_nothing(world):
    under(world, "return { access = function() return ngx.exit(tonumber(ngx.var.http_x_status)) end }")
    world.weir.default_key = world.weir.key("budget", credits=10)
    answer = world.weir.chat(headers=[("X-Status", "403")])
    assert error_of(answer, 403, "policy_refused")["type"] == "permission_error"
    row = world.weir.row_of(answer)
    assert (row["status"], row["end"], row["charge"]) == (403, "refused", "0")
    assert world.weir.credits()["reserved"] == "0"
    message = world.weir.post("/v1/messages", {"model": "m", "max_tokens": 1, "messages": []}, headers=[("X-Status", "429")])
    assert message.status == 429 and message.json["error"]["type"] == "rate_limit_error"
    assert world.weir.metrics().sum("weir_refusals_total", reason="policy") == 2
    assert world.openai.seen == []
    closed = world.weir.client()
    closed.begin("POST", "/v1/chat/completions", [("Content-Length", str(len(BODY))), ("X-Status", "444"), ("Authorization", "Bearer " + world.weir.default_key["key"])])
    closed.send(BODY)
    assert closed.is_closed_by_server()


def test_a_policy_steers_by_headers_and_body(world):
    """What it sets is checked as what a client sends: the model it names must be the caller's."""
    configure(world, """return { access = function()
        local want = ngx.var.http_x_want
        if want == "level" then ngx.req.set_header("X-Power-Level", "eco") end
        if want == "model" then ngx.req.set_body_data((ngx.re.gsub(ngx.req.get_body_data(), '"auto"', '"other"'))) end
        if want == "bad" then ngx.req.set_body_data("{") end
        if want == "large" then ngx.req.set_body_data(("x"):rep(3000000)) end
    end }""")
    world.weir.settings["limits"] += '\nmax_body = "1MiB"'
    world.model("other", "openai/up-other").table("level.eco", 'models = ["m"]')
    world.start()
    assert world.weir.chat("auto", headers=[("X-Want", "level")]).status == 200
    assert world.openai.last.json["model"] == "m"
    assert world.weir.chat("auto", headers=[("X-Want", "model")]).status == 200
    assert world.openai.last.json["model"] == "up-other"
    assert world.weir.chat("auto", headers=[("X-Want", "bad")]).status == 400
    assert world.weir.chat("auto", headers=[("X-Want", "large")]).status == 413
    assert len(world.openai.seen) == 2


def test_a_policy_sees_no_credential_and_cannot_log_one(world):
    under(world, """return { access = function()
        for name, value in pairs(ngx.req.get_headers()) do ngx.log(ngx.ERR, name, "=", value) end
        ngx.log(ngx.ERR, "auth=", ngx.var.http_authorization, " body=", ngx.req.get_body_data())
        ngx.req.set_header("Authorization", "Bearer stolen")
    end }""")
    key = world.weir.default_key["key"]
    document = {"model": "m", "messages": [{"role": "user", "content": f"my key is {key}"}]}
    assert world.weir.post("/v1/chat/completions", document, headers=[("X-Api-Key", key), ("Cookie", "session=" + key)]).status == 200
    assert world.openai.last.header("authorization") == f"Bearer {world.keys['openai']}"
    until(lambda: "auth=nil" in world.weir.logs(), 3, "the line")
    assert "user-agent" in world.weir.logs() or "content-type=" in world.weir.logs()
    # That none of the key stands in the log is looked at when weir ends.


RUNAWAYS = {
    "loop": "while true do end",
    "caught": "while true do pcall(function() while true do end end) end",
    "pattern": "return (('x'):rep(50000)):find(('.-'):rep(12) .. 'b')",
    "sort": "local t = {} for i = 1, 300000 do t[i] = -i end while true do table.sort(t) end",
    "native": "local s = ('x'):rep(1000000) while true do ngx.md5(s) end",
    "regex": "local s = ('x'):rep(1000000) while true do ngx.re.match(s, '[a-z]+y') end",
    "json": "local s = '[' .. ('0,'):rep(1000000) .. '0]' while true do require('cjson').decode(s) end",
}


@pytest.mark.parametrize("kind", RUNAWAYS)
def test_a_runaway_handler_is_stopped_and_refused(world, kind):
    """Within 100 ms, as often as the machine gives the process its time; the thread serves on."""
    world.weir.settings["limits"] += "\nthreads = 1"
    under(world, f"return {{ access = function() if ngx.var.http_x_run then {RUNAWAYS[kind]} end end }}")
    took = [1.0]
    while min(took) >= 0.1 and len(took) <= 30:
        began = time.monotonic()
        answer = world.weir.chat(headers=[("X-Run", "1")])
        took.append(time.monotonic() - began)
        error_of(answer, 500, "policy_failed")
    assert min(took) < 0.1, took
    assert world.weir.chat().status == 200
    runs = len(took) - 1
    until(lambda: world.weir.logs().count("it ran longer than it may (in access)") == runs, 3, "the log")
    assert world.weir.metrics().sum("weir_refusals_total", reason="policy_failed") == runs


HOGS = {
    "string": "local s = 'x' while true do s = s .. s end",
    "table": "local t = {} while true do t[#t + 1] = { #t } end",
    "one": "local s = ('x'):rep(1000000000)",
    "kept": "kept = kept or {} while true do kept[#kept + 1] = ('x'):rep(1000000) .. #kept end",
}


@pytest.mark.parametrize("kind", HOGS)
def test_a_memory_hog_is_stopped_and_refused(world, kind):
    world.weir.settings["limits"] += "\nthreads = 1"
    under(world, f"return {{ access = function() if ngx.var.http_x_run then {HOGS[kind]} end end }}")
    world.weir.chat().read()
    before = resident(world.weir.process.pid)
    for _ in range(3):
        error_of(world.weir.chat(headers=[("X-Run", "1")]), 500, "policy_failed")
    assert resident(world.weir.process.pid) - before < 200 << 20
    assert world.weir.chat().status == 200


def resident(pid):
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_a_stream_goes_on_while_another_request_runs_away(world):
    world.weir.settings["limits"] += "\nthreads = 1"
    under(world, "return { access = function() if ngx.var.http_x_run then while true do end end end }")
    gate, steps = Gate(), chat_events(model="m")
    world.openai.queue(stream([*steps[:2], gate, *steps[2:]]))
    running = world.weir.chat(stream=True, stream_options={"include_usage": True})
    running.until(steps[1])
    error_of(world.weir.chat(headers=[("X-Run", "1")]), 500, "policy_failed")
    gate.open()
    assert running.read() == b"".join(steps)


@pytest.mark.parametrize("on_error", ["refuse", "pass"])
def test_a_handler_that_fails(world, on_error):
    """Each handler in turn; the answer fails closed unless the operator says otherwise, and the account is right either way."""
    under(world, """local function fail(phase) return function() if ngx.var.http_x_fail == phase then error("no: " .. phase) end end end
        return { access = fail("access"), header_filter = fail("header"), body_filter = fail("body"), log = fail("log") }""", on_error)
    for streams in (False, True):
        for phase in ("access", "header", "body", "log"):
            answer = world.weir.chat(stream=streams, headers=[("X-Fail", phase)])
            if on_error == "pass" or phase == "log":
                assert answer.status == 200, (phase, answer.status)
                answer.read()
            elif phase == "body":
                assert answer.status == 200
                broken = answer.read_to_break()
                assert (b"policy_failed" in broken) == streams, broken
                assert not broken.endswith(b"[DONE]\n\n")
            else:
                error_of(answer, 500, "policy_failed")
            until(lambda: f"no: {phase}" in world.weir.logs(), 3, "the log")
            assert f"policy.lua:1: no: {phase}" in world.weir.logs()
    assert world.weir.chat().status == 200


def test_filters_see_refusals_and_every_answer_of_a_known_caller(world):
    under(world, """return {
        header_filter = function() ngx.header["X-P-Status"] = ngx.status ngx.header["X-P-Caller"] = ngx.var.weir_account end,
        body_filter = function() if ngx.arg[2] then ngx.arg[1] = ngx.arg[1] .. "\\n" end end,
        log = function() ngx.log(ngx.NOTICE, "ended ", ngx.status) end,
    }""")
    unknown = world.weir.chat("nowhere/none:")
    assert unknown.status == 404 and unknown.header("x-p-status") == "404" and unknown.read().endswith(b"}\n")
    assert unknown.header("x-p-caller") == world.weir.default_key["account"]
    good = world.weir.chat()
    assert good.header("x-p-status") == "200" and good.read().endswith(b"}\n")
    # The connection goes on.
    client = world.weir.client()
    for _ in range(3):
        headers = [("Authorization", "Bearer " + world.weir.default_key["key"]), ("Content-Type", "application/json")]
        assert client.ask("POST", "/v1/chat/completions", BODY, headers).read().endswith(b"}\n")
    nobody = world.weir.ask("POST", "/v1/chat/completions", BODY)
    assert nobody.status == 401 and nobody.header("x-p-status") is None
    until(lambda: world.weir.logs().count("ended 200") == 4 and world.weir.logs().count("ended 404") == 1, 3, "the log handler")


def test_a_client_that_leaves_is_logged_once(world):
    under(world, "return { body_filter = function() end, log = function() ngx.log(ngx.NOTICE, 'left ', ngx.status) end }")
    gate, steps = Gate(), chat_events(model="m")
    world.openai.queue(stream([*steps[:2], gate]))
    running = world.weir.chat(stream=True)
    running.until(steps[1])
    running.client.close()
    until(lambda: "left 200" in world.weir.logs(), 5, "the log handler")
    assert world.openai.last.aborted.wait(5)
    gate.open()
    assert world.weir.row_of(running)["end"] == "cancelled"
    assert world.weir.logs().count("left 200") == 1


# ------------------------------------------------------------------------------------------------------------------- loading


def test_a_changed_policy_is_taken_and_a_bad_one_is_not(world):
    says = 'return {{ access = function() ngx.ctx.n = ngx.shared.reloads:incr("n", 1, 0) ngx.say("{}") end }}'
    under(world, says.format("one"))
    assert world.weir.chat().read() == b"one\n"
    world.weir.swap("policy.lua", says.format("two"))
    until(lambda: world.weir.chat().read() == b"two\n", 3, "the changed policy")
    for bad, line, what in [
        ("\nreturn { access = function() ngx.timer.at(0, print) end }", 2, "ngx.timer: is not offered"),
        ("\n\nlocal redis = require 'resty.redis'\nreturn {}", 3, "resty.redis: is not offered"),
        ("return {\naccess = function(\n}", 3, ""),
        ("return { acces = function() end }", 1, "there is no handler acces"),
        ("while true do end", 1, "the policy ran longer than it may"),
    ]:
        rejected = world.weir.metrics().sum("weir_config_reloads_total", result="rejected")
        world.weir.swap("policy.lua", bad)
        until(lambda: world.weir.metrics().sum("weir_config_reloads_total", result="rejected") > rejected, 3, "the rejection")
        answer = world.weir.admin("POST", "/admin/v1/reload")
        problem = answer.json["problems"][0]
        assert answer.status >= 400 and problem["file"].endswith("/policy.lua") and problem["line"] == line, problem
        assert f"{problem['key']}: {problem['what']}".removeprefix(": ").startswith(what), problem
        assert f"policy.lua:{line}: {what}" in world.weir.command("check", check=False).stderr
        assert world.weir.chat().read() == b"two\n", "the old policy serves on"
    # Routing that does not check keeps the policy, too.
    world.weir.swap("policy.lua", says.format("three"))
    until(lambda: world.weir.chat().read() == b"three\n", 3, "the mended policy")
    world.weir.swap("routing.toml", world.routing() + "[surprise]\n")
    world.weir.swap("policy.lua", says.format("four"))
    until(lambda: "surprise" in json.dumps(world.weir.state()), 3, "the rejection")
    assert world.weir.chat().read() == b"three\n"
    world.weir.swap("routing.toml", world.routing())
    until(lambda: world.weir.chat().read() == b"four\n", 3, "both")
    # Without the table there is no policy.
    del world.tables["policy.lua"]
    world.weir.swap("routing.toml", world.routing())
    until(lambda: world.weir.chat().read() != b"four\n", 3, "no policy")


def test_a_request_keeps_the_policy_it_began_with(world):
    mark = 'return {{ body_filter = function() if ngx.arg[2] then ngx.arg[1] = "{}" end end, access = function() ngx.header["X-P-Is"] = "{}" end }}'
    under(world, mark.format("one", "one"))
    gate, steps = Gate(), chat_events(model="m")
    world.openai.queue(stream([*steps[:2], gate, *steps[2:]]))
    running = world.weir.chat(stream=True, stream_options={"include_usage": True})
    running.until(steps[1])
    world.weir.swap("policy.lua", mark.format("two", "two"))
    until(lambda: world.weir.chat().header("x-p-is") == "two", 3, "the changed policy")
    gate.open()
    assert running.header("x-p-is") == "one" and running.read().endswith(b"one")


def test_a_missing_policy_is_a_problem(world):
    configure(world)
    world.weir.swap("policy.lua", "")
    (world.folder / "policy.lua").unlink()
    world.weir.write(world.routing(), world.prices())
    done = world.weir.command("check", check=False)
    assert done.returncode == 1 and "policy.lua:1: cannot be read" in done.stderr, done.stderr


def test_a_build_without_policies_refuses_the_table(world):
    configure(world).weir.program = world.weir.__class__(world.folder).program
    world.weir.write(world.routing(), world.prices())
    done = world.weir.command("check", check=False)
    assert done.returncode == 1 and "--features lua-policy" in done.stderr and "policy.lua" in done.stderr, done.stderr


def test_the_shipped_example_does_what_it_says(world):
    under(configure(world).table("level.eco", 'models = ["m"]'), (ROOT / "conf" / "policy.lua").read_text())
    answer = world.weir.chat("auto", headers=[("X-Team", "batch")])
    assert answer.status == 200 and answer.header("x-team") == "batch"
    document = {"model": "m", "messages": [{"role": "user", "content": "Tell me of Project Falcon."}]}
    error_of(world.weir.post("/v1/chat/completions", document), 403, "policy_refused")
    until(lambda: "a secret project was mentioned" in world.weir.logs() and "/v1/chat/completions 403 in 0." in world.weir.logs(), 3, "the log")


def test_many_requests_at_once(world):
    """Two threads, each with a machine of its own; what a request puts into its context is its own."""
    world.weir.settings["limits"] += "\nthreads = 2"
    under(world, """return {
        access = function() ngx.ctx.id = ngx.var.http_x_id ngx.shared.many:incr("n", 1, 0) end,
        header_filter = function() ngx.header["X-P-Id"] = ngx.ctx.id end,
    }""")
    wrong = []

    def ask(number):
        for _ in range(20):
            answer = world.weir.chat(stream=number % 2 == 0, headers=[("X-Id", str(number))])
            if answer.header("x-p-id") != str(number):
                wrong.append((number, answer.header("x-p-id")))
            answer.read()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
