"""Requests: what reaches the provider is what the client sent, but for the model and the credential."""

import base64
import json
import socket
import subprocess

import h2.config
import h2.connection
import h2.errors
import h2.events
import httpx
import pytest
from client import Client
from conftest import wait_no_streams
from provider import SPEECH, Cut, Gate, Reply, chat_answer, event, stream, until, whole

HOSTILE = (
    b'{ "seed" : 18446744073709551615,\t"temperature":1E-7,"top_p": 0.10000000000000000000000001, "n":1,\r\n'
    b' "unknown": {"model": "inner", "a":[1.0,-0,1E5]}, "messages":[{"role":"user","content":"\\u0041\\ud83c\\udf0a\\/ \xe6\xb0\xb4 model"}],'
    b'"dup":1,"dup":2 , "model" : "m", "stop":null,"metadata":{"model":"x"}, "logit_bias":{"50256":-100}}'
)


def auth(world, *more):
    return [("Authorization", f"Bearer {world.weir.default_key['key']}"), ("Content-Type", "application/json"), *more]


def test_every_other_byte_travels_as_it_came(one):
    """Key order, spaces, number formats, unknown fields, duplicate keys, escapes: only the model's value changes."""
    answer = one.weir.post("/v1/chat/completions", HOSTILE)
    assert answer.status == 200, answer.read()
    assert one.openai.last.body == HOSTILE.replace(b'"model" : "m"', b'"model" : "up-model"')


def test_nothing_changes_when_the_model_has_the_same_name(world):
    provider = world.provider("p")
    world.model("m", "p/m").start()
    assert world.weir.post("/v1/chat/completions", HOSTILE).status == 200
    assert provider.last.body == HOSTILE


@pytest.mark.parametrize("written", [rb'"\u006d"', rb'"m"', b'\n\t"m"  '])
def test_a_model_written_with_escapes_is_found(one, written):
    body = b'{"messages":[],"model":' + written + b"}"
    answer = one.weir.post("/v1/chat/completions", body)
    assert answer.status == 200, answer.read()
    assert one.openai.last.json["model"] == "up-model"


def test_stream_options_are_added_without_touching_the_rest(one):
    body = HOSTILE[:-1] + b', "stream": true }'
    one.weir.post("/v1/chat/completions", body).read()
    got = one.openai.last.body
    assert json.loads(got)["stream_options"] == {"include_usage": True}
    kept = body.replace(b'"model" : "m"', b'"model" : "up-model"')
    # What was added stands in one place; around it every byte is as it was.
    before = next(at for at in range(len(kept) + 1) if got[: at + 1] != kept[: at + 1])
    added = got[before : before + len(got) - len(kept)]
    assert got == kept[:before] + added + kept[before:] and b"stream_options" in added, added


@pytest.mark.parametrize("number", ["1e400", "-1e-400", "123456789012345678901234567890", "0.1e+0005", "9" * 400])
def test_numbers_no_machine_type_holds_travel_as_they_came(one, number):
    body = b'{"model":"m","messages":[],"x":%s}' % number.encode()
    answer = one.weir.post("/v1/chat/completions", body)
    assert answer.status == 200, answer.read()
    assert one.openai.last.body == body.replace(b'"m"', b'"up-model"', 1)


@pytest.mark.parametrize("chunks", [1, 3, 1000, 100_000])
def test_chunked_bodies(one, chunks):
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * (300 if chunks == 1 else 200_000)}]}).encode()
    answer = one.weir.post("/v1/chat/completions", body, chunks=chunks)
    assert answer.status == 200, answer.read()
    assert one.openai.last.body == body.replace(b'"m"', b'"up-model"', 1)
    assert one.openai.last.framing == "length", "the provider is told the length"


def test_a_chunked_body_with_extensions_and_trailers(one):
    body = json.dumps({"model": "m", "messages": []}).encode()
    with one.weir.client() as client:
        client.begin("POST", "/v1/chat/completions", auth(one, ("Transfer-Encoding", "chunked"), ("Trailer", "X-Sum")))
        client.send(b"%x;name=value\r\n%s\r\n0\r\nX-Sum: 1\r\n\r\n" % (len(body), body))
        assert client.answer().status == 200
    assert one.openai.last.json["model"] == "up-model"
    assert one.openai.last.header("x-sum") is None


def test_a_body_byte_by_byte(one):
    body = json.dumps({"model": "m", "messages": []}).encode()
    with one.weir.client() as client:
        client.begin("POST", "/v1/chat/completions", auth(one, ("Content-Length", str(len(body)))))
        for at in range(len(body)):
            client.send(body[at : at + 1])
        assert client.answer().status == 200


def test_expect_100_continue(one):
    body = json.dumps({"model": "m", "messages": []}).encode()
    with one.weir.client() as client:
        client.begin("POST", "/v1/chat/completions", auth(one, ("Content-Length", str(len(body))), ("Expect", "100-continue")))
        assert client._until(b"\r\n\r\n").startswith(b"HTTP/1.1 100"), "asked to go on before a byte of the body"
        client.send(body)
        assert client.answer().status == 200
    assert one.openai.last.header("expect") is None


def test_expect_100_continue_is_not_answered_when_the_length_is_refused(world):
    world.weir.settings["limits"] = 'max_body = "4KiB"'
    world.provider("p")
    world.model("m", "p").start()
    with world.weir.client() as client:
        client.begin("POST", "/v1/chat/completions", auth(world, ("Content-Length", "5000"), ("Expect", "100-continue")))
        answer = client.answer()
        assert (answer.status, answer.informational) == (413, [])


def test_expect_100_continue_is_not_answered_without_a_key(one):
    with one.weir.client() as client:
        client.begin("POST", "/v1/chat/completions", [("Content-Length", "50"), ("Expect", "100-continue")])
        answer = client.answer()
        assert (answer.status, answer.informational) == (401, [])


def test_from_one_byte_to_the_limit(world):
    """One byte is read (and is no JSON); the limit to the byte is served; one more is refused."""
    limit = 1 << 20
    world.weir.settings["limits"] = 'max_body = "1MiB"'
    provider = world.provider("p")
    weir = world.model("m", "p").start()
    assert weir.post("/v1/chat/completions", b"1").status == 400
    frame = json.dumps({"model": "m", "messages": [{"role": "user", "content": ""}]}).encode()
    fits = frame.replace(b'"content": ""', b'"content": "' + b"x" * (limit - len(frame)) + b'"')
    assert len(fits) == limit
    for chunks in (None, 65_536):
        answer = weir.post("/v1/chat/completions", fits, chunks=chunks)
        assert answer.status == 200, answer.read()
        assert provider.last.body == fits.replace(b'"m"', b'"up-m"', 1)
        answer = weir.post("/v1/chat/completions", fits + b" ", chunks=chunks)
        assert answer.status == 413
        error = answer.json["error"]
        assert error["code"] == "request_too_large" and str(limit) in error["message"]
    answer = weir.post("/v1/messages", fits + b" ")
    assert (answer.status, answer.json["error"]["type"]) == (413, "request_too_large")
    wait_no_streams(weir)


def test_a_large_body_travels_whole(one):
    content = base64.b64encode(bytes(range(256)) * 100_000).decode()
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + content}}]}]}).encode()
    assert one.weir.post("/v1/chat/completions", body).status == 200
    assert one.openai.last.body == body.replace(b'"m"', b'"up-model"', 1)


def test_a_body_that_stops_coming_is_refused(one):
    """Nothing for a while: 408, and the connection is closed."""
    with one.weir.client(timeout=60) as client:
        client.begin("POST", "/v1/chat/completions", auth(one, ("Content-Length", "1000")))
        client.send(b'{"model":"m",')
        answer = client.answer()
        assert answer.status == 408
        assert answer.json["error"]["code"] == "request_timeout"
    assert one.openai.seen == []
    wait_no_streams(one.weir)


def test_a_body_that_is_broken_off_reaches_nobody(one):
    client = one.weir.client()
    client.begin("POST", "/v1/chat/completions", auth(one, ("Content-Length", "1000")))
    client.send(b'{"model":"m",')
    client.close()
    wait_no_streams(one.weir)
    assert one.openai.seen == []


def test_all_bodies_together_are_bounded(world):
    """While one large body is held, another is refused at once with 503 and Retry-After; afterwards there is room again."""
    world.weir.settings["limits"] = 'max_body = "1MiB"\nmax_body_in_flight = "1MiB"'
    provider = world.provider("p")
    weir = world.model("m", "p").start()
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 700_000}]}).encode()
    gate = Gate()
    provider.queue(Reply(before=[gate], headers=[("content-type", "application/json")], body=chat_answer()))
    with Client(weir.port) as slow:
        slow.begin("POST", "/v1/chat/completions", auth(world, ("Content-Length", str(len(body)))))
        slow.send(body)
        provider.wait_seen(1)
        assert weir.metrics().sum("weir_body_bytes_in_flight") >= len(body)
        refused = weir.post("/v1/chat/completions", body)
        assert refused.status == 503
        assert int(refused.header("retry-after")) >= 1
        assert refused.json["error"]["code"] == "overloaded"
        gate.open()
        assert slow.answer().status == 200
    wait_no_streams(weir)
    assert weir.post("/v1/chat/completions", body).status == 200


def test_too_many_streams_at_once_are_refused(world):
    world.weir.settings["limits"] = "max_streams = 2"
    provider = world.provider("p")
    weir = world.model("m", "p").start()
    gate = Gate()
    steps = [event({"choices": [{"index": 0, "delta": {"content": "a"}}]})]
    for _ in range(2):
        provider.queue(stream([*steps, gate, b"data: [DONE]\n\n"]))
    running = [weir.chat(stream=True) for _ in range(2)]
    for answer in running:
        answer.until(b"data")
    refused = weir.chat(stream=True)
    assert refused.status == 503 and refused.header("retry-after")
    gate.open()
    for answer in running:
        answer.read()
    wait_no_streams(weir)
    assert weir.chat().status == 200


# ------------------------------------------------------------------------------------------------------------------ headers


def test_which_headers_travel(one):
    sent = [
        ("OpenAI-Beta", "assistants=v2"), ("X-Custom", "one"), ("X-Custom", "two"), ("User-Agent", "client/1"), ("X-Stainless-Lang", "python"),
        ("Accept", "application/json"), ("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("Cookie", "session=secret"), ("X-Power-Level", ""), ("X-Task-Type", "code"), ("X-Weir-Byok", "never"), ("X-Weir-Whatever", "1"),
        ("Connection", "keep-alive, X-Hop"), ("X-Hop", "1"), ("Keep-Alive", "timeout=5"), ("TE", "trailers"), ("Proxy-Authorization", "Basic eA=="),
        ("Upgrade", "h2c"), ("Proxy-Connection", "keep-alive"), ("OpenAI-Organization", "org-caller"),
    ]  # fmt: skip
    answer = one.weir.chat(headers=sent)
    assert answer.status == 200, answer.read()
    seen = one.openai.last
    names = [name.lower() for name, _ in seen.headers]
    for name in ("openai-beta", "user-agent", "x-stainless-lang", "accept", "traceparent"):
        assert name in names, name
    assert [value for name, value in seen.headers if name.lower() == "x-custom"] == ["one", "two"]
    for name in ("cookie", "x-power-level", "x-task-type", "x-hop", "keep-alive", "te", "proxy-authorization", "upgrade", "proxy-connection", "expect"):
        assert name not in names, name
    assert not [name for name in names if name.startswith("x-weir-")]
    assert seen.header("authorization") == f"Bearer {one.keys['openai']}"
    assert seen.header("host") == f"127.0.0.1:{one.openai.port}"
    assert one.weir.default_key["key"].encode() not in seen.head + seen.body
    assert names.count("authorization") == names.count("content-length") == names.count("host") == 1


@pytest.mark.parametrize("carrier", ["authorization", "x-api-key", "api-key"])
@pytest.mark.parametrize("path,model", [("/v1/chat/completions", "m"), ("/v1/messages", "c")])
def test_the_credential_is_swapped_wherever_it_stands(one, carrier, path, model):
    key = one.weir.default_key["key"]
    value = f"Bearer {key}" if carrier == "authorization" else key
    body = json.dumps({"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}).encode()
    with one.weir.client() as client:
        answer = client.ask("POST", path, body, [(carrier, value), ("Content-Type", "application/json")])
        assert answer.status == 200, answer.read()
    seen = (one.openai if model == "m" else one.anthropic).last
    assert key.encode() not in seen.head
    if model == "m":
        assert seen.header("authorization") == f"Bearer {one.keys['openai']}"
        assert seen.header("x-api-key") is None and seen.header("api-key") is None
    else:
        assert seen.header("x-api-key") == one.keys["claude"]
        assert seen.header("authorization") is None
        assert seen.header("anthropic-version") == "2023-06-01"


def test_the_clients_anthropic_version_and_betas_win(one):
    body = {"model": "c", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    one.weir.post("/v1/messages", body, headers=[("anthropic-version", "2099-01-01"), ("anthropic-beta", "a-1,b-2")]).read()
    assert one.anthropic.last.header("anthropic-version") == "2099-01-01"
    assert one.anthropic.last.header("anthropic-beta") == "a-1,b-2"


def test_which_response_headers_pass(one):
    headers = [
        ("openai-processing-ms", "12"), ("openai-version", "2020-10-01"), ("x-upstream", "yes"), ("openai-organization", "org-secret"),
        ("set-cookie", "__cf_bm=secret"), ("x-ratelimit-limit-requests", "777"), ("x-ratelimit-remaining-tokens", "777"), ("x-request-id", "req_upstream"),
        ("connection", "keep-alive, x-hop"), ("x-hop", "1"), ("keep-alive", "timeout=5"), ("x-weir-fake", "1"), ("x-cost-incurred", "777"),
        ("alt-svc", 'h3=":443"'), ("ratelimit", '"default";r=777;t=30'), ("ratelimit-policy", '"default";q=777;w=60'), ("ratelimit-remaining", "777"),
        ("x-rate-limit-reset", "777"), ("x-ms-region", "secret"), ("x-ms-deployment-name", "secret"),
    ]  # fmt: skip
    one.openai.queue(whole(chat_answer(), headers=headers))
    answer = one.weir.chat()
    for name in ("openai-processing-ms", "openai-version", "x-upstream"):
        assert answer.header(name), name
    for name in ("openai-organization", "set-cookie", "x-ratelimit-limit-requests", "x-hop", "keep-alive", "x-weir-fake", "alt-svc"):
        assert answer.header(name) is None, name
    for name in ("ratelimit", "ratelimit-policy", "ratelimit-remaining", "x-rate-limit-reset", "x-ms-region", "x-ms-deployment-name"):
        assert answer.header(name) is None, name
    assert answer.header("x-request-id") != "req_upstream"
    assert answer.header("x-cost-incurred") != "777"


def test_what_the_response_headers_tell(one):
    answer = one.weir.chat()
    assert answer.header("x-provider-used") == "openai"
    assert answer.header("x-model-used") == "up-model"
    assert answer.header("x-used-byok") == "false"
    assert answer.header("x-was-fallback") == "false"
    assert answer.header("x-weir-attempts") == "1"
    # 11 tokens in at $1 and 7 out at $2 for a million.
    assert answer.header("x-cost-incurred") == "0.000025"
    assert answer.header("content-type") == "application/json"
    assert answer.read() == chat_answer(model="up-model")
    assert one.openai.last.header("x-request-id") == answer.header("x-request-id")


# ------------------------------------------------------------------------------------------------------------- other paths


def multipart(fields, boundary="----weir7MA4YWxk"):
    body = b""
    for name, value, *kind in fields:
        extra = f'; filename="{kind[0]}"\r\nContent-Type: audio/mpeg' if kind else ""
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + value + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), [("Content-Type", f"multipart/form-data; boundary={boundary}")]


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
@pytest.mark.parametrize("model_at", [0, 1, 2])
def test_the_model_of_a_form_is_found_and_replaced_in_place(one, path, model_at):
    audio = SPEECH + b'\r\n--other\r\nContent-Disposition: form-data; name="model"\r\n\r\nwrong\r\n' + SPEECH
    fields = [("file", audio, "a.mp3"), ("temperature", b"0.20")]
    fields.insert(model_at, ("model", b"m"))
    body, headers = multipart(fields)
    answer = one.weir.post(path, body, headers=headers)
    assert answer.status == 200, answer.read()
    assert answer.json["text"]
    fields[model_at] = ("model", b"up-model")
    assert one.openai.last.body == multipart(fields)[0]
    assert one.openai.last.header("content-type") == headers[0][1]
    assert one.openai.last.path == path


@pytest.mark.parametrize("path,body,upstream", [
    ("/v1/embeddings", {"model": "m", "input": "x"}, "/v1/embeddings"),
    ("/v1/moderations", {"model": "m", "input": "x"}, "/v1/moderations"),
    ("/v1/images/generations", {"model": "m", "prompt": "x"}, "/v1/images/generations"),
    ("/v1/completions", {"model": "m", "prompt": "x"}, "/v1/completions"),
    ("/v1/responses", {"model": "m", "input": "x"}, "/v1/responses"),
    ("/v1/chat/completions", {"model": "m", "messages": []}, "/v1/chat/completions"),
    ("/v1/messages", {"model": "c", "max_tokens": 5, "messages": []}, "/v1/messages"),
    ("/v1/messages/count_tokens", {"model": "c", "messages": []}, "/v1/messages/count_tokens"),
])  # fmt: skip
def test_every_json_path(one, path, body, upstream):
    answer = one.weir.post(path, body)
    provider = one.anthropic if body["model"] == "c" else one.openai
    direct = provider.default(provider.last)
    assert (answer.status, answer.read()) == (200, direct.body)
    assert provider.last.path == upstream
    assert provider.last.json["model"] == ("up-claude" if body["model"] == "c" else "up-model")
    row = one.weir.row_of(answer)
    assert (row["end"], row["status"], row["requests"]) == ("complete", 200, 1)
    assert answer.header("x-cost-incurred") is not None


def test_speech_is_passed_on_as_it_comes(one):
    gate = Gate()
    one.openai.queue(Reply(headers=[("content-type", "audio/mpeg")], body=[SPEECH[:5000], gate, SPEECH[5000:]]))
    answer = one.weir.post("/v1/audio/speech", {"model": "m", "input": "hello", "voice": "alloy"})
    until(lambda: answer.some() and len(answer.received) >= 5000, 5)
    gate.open()
    assert answer.read() == SPEECH
    assert answer.header("content-type") == "audio/mpeg"
    assert one.weir.row_of(answer)["end"] == "complete"


@pytest.mark.parametrize("breaks", ["at once", "later"])
def test_speech_that_breaks_off_is_not_taken_for_the_whole(world, breaks):
    """What came goes out, and then the connection ends without the end of the body: sound has no place for an error's text."""
    provider = world.provider("p")
    weir = world.model("m", "p").start()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ncontent-length: 100000\r\n\r\n"
    gate = Gate()
    provider.queue(Reply(raw=[head + SPEECH[:5000], *([gate] if breaks == "later" else []), Cut()]))
    answer = weir.post("/v1/audio/speech", {"model": "m", "input": "hello", "voice": "alloy"})
    gate.open()
    with pytest.raises(Exception):
        answer.read()
    assert bytes(answer.received).endswith(SPEECH[4000:5000]) or SPEECH[4000:5000] in answer.received
    assert b"error" not in answer.received
    assert weir.row_of(answer)["end"] == "failed"
    metrics = weir.metrics()
    assert metrics.sum("weir_attempts_total", provider="p", outcome="broken_off") == metrics.sum("weir_attempts_total", provider="p") == 1
    wait_no_streams(weir)


def test_an_answer_without_room_beside_all_bodies_is_passed_on_as_it_comes(world):
    world.weir.settings["limits"] += '\nmax_body = "64KiB"\nmax_body_in_flight = "64KiB"'
    provider = world.provider("p")
    weir = world.model("m", "p").start()
    body = chat_answer("a weir " * 30_000)
    provider.queue(whole(body), whole(chat_answer()))
    answer = weir.chat()
    assert (answer.read() == body, answer.header("x-cost-incurred")) == (True, None)
    row = weir.row_of(answer)
    assert (row["end"], row["output"], row["usage_source"]) == ("complete", 7, "upstream")
    wait_no_streams(weir)
    assert weir.chat().header("x-cost-incurred") == "0.000025"


@pytest.mark.parametrize("kind,extra,path,auth_header", [
    ("openai", "", "/v1/chat/completions", "authorization"),
    ("openrouter", "", "/v1/chat/completions", "authorization"),
    ("together", "", "/v1/chat/completions", "authorization"),
    ("ollama", "", "/v1/chat/completions", "authorization"),
    ("groq", "", "/v1/chat/completions", "authorization"),
    ("mistral", "", "/v1/chat/completions", "authorization"),
    ("deepseek", "", "/v1/chat/completions", "authorization"),
    ("vllm", "", "/v1/chat/completions", "authorization"),
    ("gemini", "", "/v1/chat/completions", "authorization"),
    ("openai-compatible", "", "/v1/chat/completions", "authorization"),
    ("azure", 'account = "acme"\n', "/openai/deployments/up-m/chat/completions?api-version=2024-10-21", "api-key"),
    ("azure", 'account = "acme"\napi_version = "2025-01-01-preview"\n', "/openai/deployments/up-m/chat/completions?api-version=2025-01-01-preview", "api-key"),
    ("cloudflare", 'account = "abc123"\n', "/client/v4/accounts/abc123/ai/v1/chat/completions", "authorization"),
])  # fmt: skip
def test_url_and_credential_of_every_kind(world, kind, extra, path, auth_header):
    provider = world.provider("p", kind=kind, extra=extra)
    weir = world.model("m", "p").start()
    answer = weir.chat()
    assert answer.status == 200, answer.read()
    assert provider.last.target == path
    key = world.keys["p"]
    assert provider.last.header(auth_header) == (f"Bearer {key}" if auth_header == "authorization" else key)
    other = "api-key" if auth_header == "authorization" else "authorization"
    assert provider.last.header(other) is None
    assert provider.last.json["model"] == "up-m"


def test_mistral_is_not_asked_for_usage(world):
    """It refuses the option (422) and sends usage unasked."""
    provider = world.provider("p", kind="mistral")
    weir = world.model("m", "p").start()
    weir.chat(stream=True).read()
    assert "stream_options" not in provider.last.json


def test_a_dialect_the_provider_does_not_speak_is_refused(one):
    answer = one.weir.post("/v1/messages", {"model": "m", "max_tokens": 5, "messages": []})
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")
    assert "/v1/messages" in answer.json["error"]["message"]
    answer = one.weir.post("/v1/chat/completions", {"model": "c", "messages": []})
    assert (answer.status, answer.json["error"]["code"]) == (400, "unsupported_endpoint")
    assert one.openai.seen == one.anthropic.seen == []


def test_models_lists_what_the_caller_may_use(world):
    world.provider("p")
    world.table("tier.low", "rank = 1").table("tier.high", "rank = 2")
    world.model("m", "p").model("dear", "p", extra='min_tier = "high"\n')
    weir = world.start()
    low, high = weir.key(tier="low"), weir.key(tier="high")
    scoped = weir.key(tier="high", models="dear")
    for key, expected in ((low, {"m"}), (high, {"m", "dear"}), (scoped, {"dear"})):
        listed = weir.get("/v1/models", key).json
        assert listed["object"] == "list"
        assert {model["id"] for model in listed["data"]} == expected
        assert all(model["object"] == "model" and "created" in model and "owned_by" in model for model in listed["data"])
    assert weir.get("/v1/models/dear", high).json["id"] == "dear"
    assert weir.get("/v1/models/dear", low).status == 404
    assert weir.get("/v1/models").status == 200


# ----------------------------------------------------------------------------------------------------------------- HTTP/2


def test_http2_by_prior_knowledge(one):
    body = json.dumps({"model": "m", "stream": True, "messages": []})
    words = ["curl", "-sS", "--http2-prior-knowledge", "-D", "-", f"http://127.0.0.1:{one.weir.port}/v1/chat/completions",
             "-H", f"Authorization: Bearer {one.weir.default_key['key']}", "-H", "Content-Type: application/json", "-d", body]  # fmt: skip
    done = subprocess.run(words, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    head, _, stream_body = done.stdout.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/2 200")
    assert stream_body.endswith(b"data: [DONE]\n\n") and b"prompt_tokens" not in stream_body
    assert b"transfer-encoding" not in head.lower()


def test_http2_requests_share_a_connection(one):
    """Twenty whole answers and twenty streams beside each other on one HTTP/2 connection."""
    import asyncio

    headers = {"authorization": f"Bearer {one.weir.default_key['key']}"}

    async def run():
        async with httpx.AsyncClient(http1=False, http2=True, base_url=f"http://127.0.0.1:{one.weir.port}", headers=headers, timeout=30) as client:
            def ask(streams):
                return client.post("/v1/chat/completions", json={"model": "m", "messages": [], **({"stream": True} if streams else {})})

            return await asyncio.gather(*(ask(number % 2) for number in range(40)))

    answers = asyncio.run(run())
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.http_version for answer in answers} == {"HTTP/2"}
    assert len({answer.headers["x-request-id"] for answer in answers}) == 40
    wait_no_streams(one.weir)


def test_http2_client_that_resets_its_stream_cancels_the_upstream(one):
    from provider import Stall, chat_events

    one.openai.queue(stream([*chat_events()[:4], Stall()]))
    sock = socket.create_connection(("127.0.0.1", one.weir.port), timeout=10)
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.initiate_connection()
    key = [("authorization", f"Bearer {one.weir.default_key['key']}")]
    common = [(":scheme", "http"), (":authority", "localhost"), *key]
    connection.send_headers(1, [(":method", "POST"), (":path", "/v1/chat/completions"), *common])
    connection.send_data(1, json.dumps({"model": "m", "stream": True, "messages": []}).encode(), end_stream=True)
    sock.sendall(connection.data_to_send())

    came = []

    def until_event(kind):
        while True:
            while came:
                if isinstance(got := came.pop(0), kind):
                    return got
            came.extend(connection.receive_data(sock.recv(65536)))
            sock.sendall(connection.data_to_send())

    headers = dict(until_event(h2.events.ResponseReceived).headers)
    until_event(h2.events.DataReceived)
    connection.reset_stream(1, h2.errors.ErrorCodes.CANCEL)
    sock.sendall(connection.data_to_send())
    assert one.openai.last.aborted.wait(5), "the upstream was not cancelled"
    assert one.weir.row(headers["x-request-id"])["end"] == "cancelled"
    # The connection itself goes on.
    connection.send_headers(3, [(":method", "GET"), (":path", "/v1/models"), *common], end_stream=True)
    sock.sendall(connection.data_to_send())
    assert dict(until_event(h2.events.ResponseReceived).headers)[":status"] == "200"
    sock.close()


def test_requests_in_a_row_on_one_connection(one):
    """Pipelined: the second is sent before the first is answered."""
    body = json.dumps({"model": "m", "messages": []}).encode()
    with one.weir.client() as client:
        head = "".join(f"{name}: {value}\r\n" for name, value in auth(one, ("Content-Length", str(len(body)))))
        request = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode() + body
        client.send(request * 3)
        for _ in range(3):
            answer = client.answer()
            assert answer.status == 200
            answer.read()
    assert len(one.openai.seen) == 3


def test_the_upstream_connection_is_reused_whatever_the_answer_was(alone):
    """Each request but the first finds the connection of the one before."""
    error = json.dumps({"error": {"message": "It broke.", "type": "server_error"}}).encode()
    answers = [(chat_answer(), 200, False), (error, 502, False), (b"no JSON", 502, False), (chat_answer(), 200, True), (chat_answer(), 200, False)]
    for body, status, asks_for_a_stream in answers:
        alone.openai.queue(whole(body))
        answer = alone.weir.chat(stream=asks_for_a_stream)
        answer.read()
        assert answer.status == status
    assert alone.openai.connections == 1


def test_a_client_that_does_not_read_keeps_no_upstream_connection(alone):
    """Its answer is larger than what the kernel takes on its way, and waits in weir."""
    large = chat_answer(text="x" * (32 << 20))
    alone.openai.queue(whole(large))
    body = json.dumps({"model": "m", "messages": []}).encode()
    with Client(alone.weir.port) as slow:
        slow.begin("POST", "/v1/chat/completions", auth(alone, ("Content-Length", str(len(body)))))
        slow.send(body)
        answer = slow.answer()
        assert alone.weir.chat().status == 200
        assert alone.openai.connections == 1
        assert answer.read() == large


def test_http_1_0(one):
    body = json.dumps({"model": "m", "stream": True, "messages": []}).encode()
    with one.weir.client() as client:
        head = "".join(f"{name}: {value}\r\n" for name, value in auth(one, ("Content-Length", str(len(body)))))
        client.send(f"POST /v1/chat/completions HTTP/1.0\r\n{head}\r\n".encode() + body)
        answer = client.answer()
        assert answer.status == 200
        assert not answer.chunked, "HTTP/1.0 has no chunks"
        assert answer.read().endswith(b"data: [DONE]\n\n")


def test_the_shortest_request(one):
    """Shorter than the preface of HTTP/2, which connections are looked through for."""
    with one.weir.client() as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert client.answer().status == 404
