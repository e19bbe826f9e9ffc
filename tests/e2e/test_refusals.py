"""Every no: the status, the dialect, what to do, and no upstream key in it."""

import json

import pytest
from client import Client
from provider import fails, openai_error

OPENAI_PATH, ANTHROPIC_PATH = "/v1/chat/completions", "/v1/messages"
MESSAGES = [{"role": "user", "content": "x"}]


def error_of(answer, path):
    """The error object, once its shape is right for the dialect."""
    assert answer.header("content-type").startswith("application/json")
    document = answer.json
    if path.startswith(ANTHROPIC_PATH):
        assert set(document) >= {"type", "error"} and document["type"] == "error", document
        assert set(document["error"]) >= {"type", "message"}
    else:
        assert set(document) == {"error"}, document
        assert set(document["error"]) >= {"message", "type", "param", "code"}
    assert document["error"]["message"]
    return document["error"]


@pytest.fixture
def tiers(world):
    world.table("tier.low", 'rank = 1\nlevels = ["eco"]').table("tier.high", 'rank = 2\nbyok = true\nlevels = ["eco", "precision"]')
    world.openai = world.provider("openai")
    world.anthropic = world.provider("claude", kind="anthropic")
    world.model("m", "openai/up-model").model("c", "claude/up-claude")
    world.model("dear", "openai/up-dear", extra='min_tier = "high"\n').model("dear-c", "claude/up-dear", extra='min_tier = "high"\n')
    world.model("small", "openai/up-small", extra='context_window = 50\nmax_output = 20\ncan = ["stream"]\n')
    world.model("small-c", "claude/up-small", extra='context_window = 50\nmax_output = 20\ncan = ["stream"]\n')
    world.table("level.eco", 'models = ["m", "c"]').table("level.precision", 'models = ["m", "c"]')
    world.start()
    return world


def body_for(path, model, **more):
    return {"model": model, "max_tokens": 10, "messages": MESSAGES, **more}


@pytest.mark.parametrize("path", [OPENAI_PATH, ANTHROPIC_PATH])
def test_bodies_that_cannot_be_read(one, path):
    for body, word in [
        (b"", "JSON"), (b"{", "JSON"), (b'{"model":"m"', "JSON"), (b"[]", "object"), (b"null", "object"), (b'"m"', "object"), (b'{"model":"m",}', "JSON"),
        (b"{'model':'m'}", "JSON"), (b'{"model":"m"} x', "JSON"), (b'{"model":"\xff"}', "JSON"), (b'{"model":1}', "model"), (b"{}", "model"),
        (b'{"model":null}', "model"), (b'{"model":""}', "model"), (b'{"messages":[]}', "model"), (b'{"model":"m","stream":"yes"}', "stream"),
        (b"[" * 100_000, "JSON"), (b'{"a":' * 100_000, "JSON"), (b"\x00", "JSON"),
    ]:  # fmt: skip
        answer = one.weir.post(path, body)
        assert answer.status == 400, (body[:40], answer.status)
        error = error_of(answer, path)
        assert error["type"] == "invalid_request_error"
        assert word in error["message"], (body[:40], error)
    assert one.openai.seen == one.anthropic.seen == []


@pytest.mark.parametrize("path", [OPENAI_PATH, ANTHROPIC_PATH])
def test_callers_that_are_not_known(one, path):
    model = "m" if path == OPENAI_PATH else "c"
    revoked = one.weir.key()
    one.weir.command("key", "revoke", revoked["id"])
    from provider import until

    until(lambda: one.weir.post(path, body_for(path, model), revoked).status == 401, 2, "the revocation")
    good = one.weir.default_key["key"]
    before = len(one.openai.seen) + len(one.anthropic.seen)
    for headers in (
        [], [("Authorization", "Bearer ")], [("Authorization", "Bearer wk_" + "A" * 43)], [("Authorization", f"Basic {good}")], [("x-api-key", good[:-1])],
        [("Authorization", f"Bearer {good}x")], [("api-key", "")], [("Authorization", f"Bearer {revoked['key']}")], [("Authorization", good)],
        [("Authorization", "Bearer \xff\xfe")],
    ):  # fmt: skip
        with Client(one.weir.port) as client:
            answer = client.ask("POST", path, json.dumps(body_for(path, model)).encode(), [*headers, ("Content-Type", "application/json")])
            assert answer.status == 401, headers
            error = error_of(answer, path)
            if path == OPENAI_PATH:
                assert error["code"] == "invalid_api_key"
            else:
                assert error["type"] == "authentication_error"
            assert "wk_" not in error["message"]
    assert len(one.openai.seen) + len(one.anthropic.seen) == before


@pytest.mark.parametrize("query", ["key={}", "api_key={}", "api-key={}", "access_token={}", "token={}", "a=1&key={}", "KEY={}", "k%65y={}"])
def test_a_key_in_the_query_string_is_refused(one, query):
    """Also when the header would do, for it has been logged on the way already."""
    good = one.weir.default_key["key"]
    for path in (OPENAI_PATH, ANTHROPIC_PATH, "/v1/models", "/weir/v1/me"):
        method = "POST" if path in (OPENAI_PATH, ANTHROPIC_PATH) else "GET"
        answer = one.weir.ask(method, f"{path}?{query.format(good)}", b"{}" if method == "POST" else b"", good)
        assert answer.status == 400, path
        error = error_of(answer, path)
        assert "query" in error["message"] and good[4:-4] not in json.dumps(error)


def test_a_key_in_the_value_of_any_parameter_is_refused(one):
    """Whatever the parameter's name is: it looks like one of our keys."""
    good = one.weir.default_key["key"]
    assert one.weir.ask("GET", f"/v1/models?whatever={good}", key=good).status == 400


def test_harmless_queries_pass(one):
    answer = one.weir.post("/v1/chat/completions?beta=true", {"model": "m", "messages": []})
    assert answer.status == 200, answer.read()


@pytest.mark.parametrize("path", [OPENAI_PATH, ANTHROPIC_PATH])
def test_models_that_are_not_there(world, path):
    world.provider("p", kind="openai" if path == OPENAI_PATH else "anthropic")
    world.table("routing", "infer = false")
    weir = world.model("summarizer-large", "p").model("summarizer-small", "p").start()
    answer = weir.post(path, body_for(path, "sumarizer-large"))
    assert answer.status == 404
    error = error_of(answer, path)
    assert "summarizer-large" in error["message"], error
    if path == OPENAI_PATH:
        assert (error["code"], error["param"]) == ("model_not_found", "model")
    else:
        assert error["type"] == "not_found_error"
    long = weir.post(path, body_for(path, "x" * 5000))
    assert long.status in (400, 404) and len(long.read()) < 2000


@pytest.mark.parametrize("path", [OPENAI_PATH, ANTHROPIC_PATH])
def test_what_the_tier_does_not_open(tiers, path):
    """Model, level, BYOK: 403, and the model's tier is named."""
    suffix = "" if path == OPENAI_PATH else "-c"
    low = tiers.weir.key(tier="low")
    model = "m" if path == OPENAI_PATH else "c"
    for body, headers, word in [
        (body_for(path, "dear" + suffix), [], "high"),
        (body_for(path, "weir/precision"), [], "precision"),
        (body_for(path, "auto"), [("X-Power-Level", "precision")], "precision"),
        (body_for(path, model), [("X-Weir-Byok", "require")], "tier"),
    ]:
        answer = tiers.weir.post(path, body, low, headers)
        assert answer.status == 403, (body, answer.read())
        error = error_of(answer, path)
        assert error["type"] == "permission_error"
        assert word in error["message"], error
    high = tiers.weir.key(tier="high")
    assert tiers.weir.post(path, body_for(path, "dear" + suffix), high).status == 200
    answer = tiers.weir.post(path, body_for(path, model), high, [("X-Weir-Byok", "require")])
    assert answer.status == 403, "there is no own key"
    assert "POST /weir/v1/keys" in error_of(answer, path)["message"]


@pytest.mark.parametrize("path", [OPENAI_PATH, ANTHROPIC_PATH])
def test_headers_and_levels_that_mean_nothing(tiers, path):
    model = "m" if path == OPENAI_PATH else "c"
    for body, headers in [
        (body_for(path, model), [("X-Weir-Byok", "maybe")]),
        (body_for(path, "auto"), [("X-Power-Level", "turbo")]),
        (body_for(path, "weir/turbo"), []),
        (body_for(path, "auto"), []),
    ]:
        answer = tiers.weir.post(path, body, None, headers)
        assert answer.status in (400, 404), (body, headers, answer.status)
        error_of(answer, path)


@pytest.mark.parametrize("path", [OPENAI_PATH, ANTHROPIC_PATH])
def test_what_a_model_cannot_do(tiers, path):
    suffix = "" if path == OPENAI_PATH else "-c"
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}} if path == OPENAI_PATH else {"name": "f", "input_schema": {"type": "object"}}
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}} if path == OPENAI_PATH else \
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}  # fmt: skip
    for more, word in [({"tools": [tool]}, "tools"), ({"messages": [{"role": "user", "content": [image]}]}, "vision"), ({"response_format": {"type": "json_object"}}, "json")]:
        if word == "json" and path != OPENAI_PATH:
            continue
        answer = tiers.weir.post(path, {**body_for(path, "small" + suffix), **more})
        assert answer.status == 400, (word, answer.read())
        assert word in error_of(answer, path)["message"]
    answer = tiers.weir.post(path, body_for(path, "small" + suffix, messages=[{"role": "user", "content": "word " * 2000}]))
    assert answer.status == 400
    error = error_of(answer, path)
    assert "50" in error["message"]
    if path == OPENAI_PATH:
        assert error["code"] == "context_length_exceeded"


def test_scopes_of_a_key(tiers):
    key = tiers.weir.key(paths="/v1/chat/completions", models="m,dear*", tier="high")
    assert tiers.weir.chat("m", key=key).status == 200
    assert tiers.weir.chat("dear", key=key).status == 200
    answer = tiers.weir.post("/v1/embeddings", {"model": "m", "input": "x"}, key)
    assert (answer.status, answer.json["error"]["code"]) == (403, "path_not_allowed")
    answer = tiers.weir.chat("small", key=key)
    assert (answer.status, answer.json["error"]["code"]) == (403, "model_not_allowed")
    levels = tiers.weir.key(levels="eco", tier="high")
    assert tiers.weir.chat("weir/eco", key=levels).status == 200
    answer = tiers.weir.chat("weir/precision", key=levels)
    assert (answer.status, answer.json["error"]["code"]) == (403, "level_not_allowed")


@pytest.mark.parametrize("method,path,status", [
    ("GET", "/", 404), ("GET", "/v1", 404), ("POST", "/v1/chat", 404), ("POST", "/v1/chat/completions/", 404), ("POST", "//v1/chat/completions", 404),
    ("POST", "/v1/../v1/chat/completions", 404), ("POST", "/v1/files", 404), ("GET", "/v1/chat/completions", 405), ("DELETE", "/v1/models/m", 405),
    ("PUT", "/v1/messages", 405), ("GET", "/metrics", 404), ("GET", "/admin/v1/config", 404), ("POST", "/admin/v1/reload", 404), ("GET", "/readyz", 404),
    ("GET", "/livez", 404), ("GET", "/weir/v1/nothing", 404), ("POST", "/weir/v1/me", 405), ("POST", "/V1/chat/completions", 404),
    ("POST", "/v1/chat%2fcompletions", 404), ("POST", "/v1/realtime", 404),
])  # fmt: skip
def test_paths_and_methods(one, method, path, status):
    """No path reaches a provider but through admission and a meter."""
    answer = one.weir.ask(method, path, b'{"model":"m","messages":[]}' if method == "POST" else b"", one.weir.default_key)
    assert answer.status == status, answer.read()
    if status == 405:
        assert answer.header("allow")
    error_of(answer, path)
    assert one.openai.seen == []


@pytest.mark.parametrize("path", [OPENAI_PATH, ANTHROPIC_PATH])
def test_502_names_the_last_error_scrubbed(one, path):
    provider, model = (one.openai, "m") if path == OPENAI_PATH else (one.anthropic, "c")
    key = one.keys["openai" if path == OPENAI_PATH else "claude"]
    message = f"Incorrect API key provided: {key}. You sent Bearer {key[:30]} to us."
    provider.queue(fails(500, openai_error(message)))
    answer = one.weir.post(path, body_for(path, model))
    assert answer.status == 502
    error = error_of(answer, path)
    assert "500" in error["message"]
    assert key[12:24] not in json.dumps(error)
    assert error["type"] in ("server_error", "api_error")


def test_an_error_that_is_returned_as_it_is_does_not_carry_the_key(one):
    key = one.keys["openai"]
    one.openai.queue(fails(400, openai_error(f"bad request for {key}", "invalid_request_error")))
    answer = one.weir.chat()
    assert answer.status in (400, 502)
    assert key[12:24] not in answer.read().decode()
    one.openai.queue(fails(422, openai_error(f"part {key[10:30]} of it", "invalid_request_error")))
    answer = one.weir.chat()
    assert key[12:24] not in answer.read().decode() + str(answer.headers)


@pytest.mark.parametrize("path", [OPENAI_PATH, ANTHROPIC_PATH])
def test_504_when_no_first_event_comes_in_time(world, path):
    from provider import Stall, stream

    provider = world.provider("p", kind="openai" if path == OPENAI_PATH else "anthropic",
                              timeouts='connect = "1s", first_event = "500ms", between_events = "500ms", total = "10s"')  # fmt: skip
    weir = world.model("m", "p").start()
    provider.queue(stream([Stall()]))
    answer = weir.post(path, body_for(path, "m", stream=True))
    assert answer.status == 504
    error = error_of(answer, path)
    assert error["type"] in ("server_error", "timeout_error")
    assert provider.last.aborted.wait(5), "the upstream request was not cancelled"


def test_not_http_at_all(one):
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"\x00" * 100, b"A" * 200_000 + b"\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        client = one.weir.client(timeout=10)
        try:
            client.send(garbage)
            client.sock.shutdown(1)
            head = client.sock.recv(100)
            assert head == b"" or head.startswith(b"HTTP/1.1 4"), head
        except OSError:
            pass
        client.close()
    assert one.weir.chat().status == 200


@pytest.mark.parametrize("headers", [
    [("Content-Length", "5"), ("Transfer-Encoding", "chunked")],
    [("Content-Length", "5"), ("Content-Length", "6")],
    [("Content-Length", "-1")],
    [("Content-Length", "5x")],
    [("Transfer-Encoding", "chunked, identity")],
])  # fmt: skip
def test_ambiguous_framing_never_smuggles_a_request(one, headers):
    """What follows must not be taken for a request of its own."""
    client = one.weir.client(timeout=5)
    head = [("Authorization", f"Bearer {one.weir.default_key['key']}"), *headers]
    client.begin("POST", "/v1/chat/completions", head)
    try:
        client.send(b"0\r\n\r\nPOST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        status = client.answer().status
        assert status >= 400
    except Exception as error:  # closing without a word is fine as well
        assert not isinstance(error, AssertionError), error
    client.close()
    assert not [seen for seen in one.openai.seen if "embeddings" in seen.target]


def test_a_request_of_two_lengths_ends_its_connection(one):
    """A front that goes by the other length takes what follows for this request's body: RFC 9112, 6.1."""
    client = one.weir.client(timeout=5)
    auth = ("Authorization", f"Bearer {one.weir.default_key['key']}")
    body = b'{"model":"m","messages":[]}'
    client.begin("POST", "/v1/chat/completions", [auth, ("Content-Length", "5"), ("Transfer-Encoding", "chunked")])
    # At once: the server may have closed before a second piece.
    second = f"POST /v1/chat/completions HTTP/1.1\r\nHost: weir\r\n{auth[0]}: {auth[1]}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    client.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) + second)
    assert client.answer().read()
    assert client.is_closed_by_server()
    assert len(one.openai.seen) <= 1, "nothing was taken for a second request"


def test_a_client_of_http_1_0_reads_to_the_end(one):
    client = one.weir.client(timeout=5)
    body = b'{"model":"m","messages":[]}'
    head = f"POST /v1/chat/completions HTTP/1.0\r\nAuthorization: Bearer {one.weir.default_key['key']}\r\nContent-Length: {len(body)}\r\n\r\n"
    client.send(head.encode() + body)
    answer = client.answer()
    assert answer.status == 200 and answer.read()
    assert client.is_closed_by_server()


def test_refusals_are_counted_by_reason(one):
    one.weir.chat("nothing-like-it-here:7")
    one.weir.post(OPENAI_PATH, b"{")
    one.weir.ask("POST", OPENAI_PATH, b"{}")
    metrics = one.weir.metrics()
    assert metrics.sum("weir_refusals_total", reason="bad_json") == 1
    assert metrics.sum("weir_refusals_total", reason="no_key") == 1
    assert metrics.sum("weir_refusals_total") >= 3


def test_a_refused_caller_finds_its_row(one):
    answer = one.weir.post(OPENAI_PATH, b"{}")
    row = one.weir.row_of(answer)
    assert (row["end"], row["status"], row["charge"], row["attempts"]) == ("refused", 400, "0", 0)


def test_a_refused_row_says_what_was_asked(tiers):
    weir = tiers.weir
    for model, headers, status, level in [("weir/eco", [], 402, "eco"), ("m", [("X-Power-Level", "eco")], 402, "eco"), ("nothing-like-it", [], 404, None)]:
        key = weir.key(credits="0.0001")
        answer = weir.post(OPENAI_PATH, body_for(OPENAI_PATH, model), key, [*headers, ("Idempotency-Key", "k-1")])
        row = weir.row_of(answer, key)
        # A name that means nothing here may be anything, a key too.
        asked = model if status == 402 else ""
        assert (answer.status, row["end"], row["asked_model"], row["level"], row["idempotency_key"]) == (status, "refused", asked, level, "k-1")
    # Longer than an idempotency key may be: it is none.
    for length, kept in [(255, "k" * 255), (256, None)]:
        answer = weir.chat("nothing-like-it", headers=[("Idempotency-Key", "k" * length)])
        assert weir.row_of(answer)["idempotency_key"] == kept


@pytest.mark.parametrize("body,field", [
    ({"model": "m", "Model": "dear"}, "model"), ({"model": "m", "max_tokens": 5, "MAX_TOKENS": 5000}, "max_tokens"),
])  # fmt: skip
def test_a_field_in_another_case_is_refused(one, body, field):
    """Some servers take it for the field, and the last one wins there."""
    answer = one.weir.post(OPENAI_PATH, {**body, "messages": MESSAGES})
    error = error_of(answer, OPENAI_PATH)
    assert (answer.status, error["param"], one.openai.seen) == (400, field, [])


def test_an_answer_in_the_background_is_refused(one):
    body = {"model": "m", "input": "x"}
    assert one.weir.post("/v1/responses", {**body, "background": False}).status == 200
    answer = one.weir.post("/v1/responses", {**body, "background": True})
    assert (answer.status, error_of(answer, "/v1/responses")["param"], len(one.openai.seen)) == (400, "background", 1)
