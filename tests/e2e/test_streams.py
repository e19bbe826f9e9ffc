"""Streams: the bytes that reach the client are the upstream's, in order, at once, whatever the cut."""

import json
import socket
import struct

import pytest
from client import Client, events
from conftest import wait_no_streams
from provider import (
    SSE, USAGE, WORDS, Cut, Gate, Reply, Reset, Stall, Wait, chat_events, completion_events, event, message_events, openai_error,
    response_events, stream, until,
)  # fmt: skip

CHAT = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "What is a weir?"}]}
ASKED = {**CHAT, "stream_options": {"include_usage": True}}
MESSAGE = {"model": "c", "stream": True, "max_tokens": 100, "messages": [{"role": "user", "content": "What is a weir?"}]}
RESPONSE = {"model": "m", "stream": True, "input": "What is a weir?"}
TEXT = "".join(WORDS)


def as_comments(parts):
    """The same stream with heartbeats as some providers send them."""
    return [b": OPENROUTER PROCESSING\n\n"] + [piece for part in parts for piece in (part, b": still here\n\n")]


SHAPES = {
    "plain": chat_events(),
    "crlf": chat_events(end=b"\r\n"),
    "cr": chat_events(end=b"\r"),
    "comments": as_comments(chat_events()),
    "no end mark": chat_events(done=False),
    "no last blank line": [*chat_events()[:-1], b"data: [DONE]"],
    "all in one": [b"".join(chat_events())],
    "bom": [b"\xef\xbb\xbf" + chat_events()[0], *chat_events()[1:]],
    "no space after the colon": [part.replace(b"data: ", b"data:") for part in chat_events()],
    "multi-line data": [event('{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m",\n"choices":[{"index":0,"delta":{"content":"hi"}}]}'), *chat_events()],
    "unknown fields and event names": [b"event: chunk\nid: 7\nretry: 100\n" + part for part in chat_events()],
    "separators of other languages": [event({"choices": [{"index": 0, "delta": {"content": "a\u2028b\u0085c"}}]}), *chat_events()],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_arrives_byte_for_byte_at_every_cut(one, shape):
    """The client asked for usage, so nothing is taken out: the body is the provider's, to the byte."""
    steps = SHAPES[shape]
    sent = b"".join(steps)
    for cut in (None, 1, 2, 3, 7, 64):
        one.openai.queue(stream(steps, split=cut))
        answer = one.weir.post("/v1/chat/completions", ASKED)
        assert answer.status == 200
        assert answer.read() == sent, f"cut every {cut} bytes"
        row = one.weir.row_of(answer)
        assert (row["end"], row["usage_source"]) == ("complete", "upstream"), row
        assert (row["input"], row["output"]) == (11, 7)


@pytest.mark.parametrize("path,body,steps", [
    ("/v1/messages", MESSAGE, message_events()),
    ("/v1/responses", RESPONSE, response_events()),
    ("/v1/completions", {"model": "m", "prompt": "x", "stream": True, "stream_options": {"include_usage": True}}, completion_events()),
], ids=["messages", "responses", "completions"])  # fmt: skip
def test_every_dialect_arrives_byte_for_byte_at_every_cut(one, path, body, steps):
    provider = one.anthropic if path == "/v1/messages" else one.openai
    sent = b"".join(steps)
    for cut in (None, 1, 5, 50):
        provider.queue(stream(steps, split=cut))
        answer = one.weir.post(path, body)
        assert answer.read() == sent
        row = one.weir.row_of(answer)
        assert (row["end"], row["usage_source"], row["input"], row["output"]) == ("complete", "upstream", 11, 7)


@pytest.mark.parametrize("path,body,steps", [
    ("/v1/chat/completions", CHAT, chat_events()),
    ("/v1/completions", {"model": "m", "prompt": "x", "stream": True}, completion_events()),
], ids=["chat", "completions"])  # fmt: skip
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_usage_is_asked_for_and_its_event_taken_out_again(one, path, body, steps, end):
    """Nothing but the one event that the client did not ask for is missing, at every cut."""
    steps = [step.replace(b"\n", end) for step in steps]
    usage = [step for step in steps if b'"usage":{' in step]
    assert len(usage) == 1
    for cut in (None, 1, 3, 40, 100_000):
        joined = [b"".join(steps)] if cut == 100_000 else steps
        one.openai.queue(stream(joined, split=cut))
        answer = one.weir.post(path, body)
        assert answer.read() == b"".join(step for step in steps if step not in usage), f"cut every {cut} bytes"
        assert one.openai.last.json["stream_options"] == {"include_usage": True}
        row = one.weir.row_of(answer)
        assert (row["usage_source"], row["input"], row["output"]) == ("upstream", 11, 7)


def test_stream_options_the_client_set_stay_as_they_are(one):
    body = {**CHAT, "stream_options": {"include_usage": False, "include_obfuscation": False}}
    answer = one.weir.post("/v1/chat/completions", body)
    data = [data for _, data in events(answer.read())]
    assert one.openai.last.json["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert not any('"usage":{' in one_event for one_event in data)
    assert data[-1] == "[DONE]"


def test_a_usage_chunk_that_also_carries_choices_is_kept(one):
    """Some providers put usage on the chunk that ends the text: that chunk is the client's."""
    steps = chat_events(usage=None)
    last = json.loads(steps[-2][6:])
    last["usage"] = USAGE
    steps[-2] = event(last)
    one.openai.queue(stream(steps))
    answer = one.weir.post("/v1/chat/completions", CHAT)
    assert answer.read() == b"".join(steps)
    assert one.weir.row_of(answer)["usage_source"] == "upstream"


def test_the_first_empty_chunk_of_azure_is_kept(one):
    first = event({"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]})
    steps = [first, *chat_events()]
    one.openai.queue(stream(steps))
    answer = one.weir.post("/v1/chat/completions", CHAT)
    assert answer.read().startswith(first)


@pytest.mark.parametrize("path,body,steps", [
    ("/v1/chat/completions", ASKED, chat_events()),
    ("/v1/chat/completions", CHAT, chat_events()),
    ("/v1/messages", MESSAGE, message_events()),
    ("/v1/responses", RESPONSE, response_events()),
], ids=["chat", "chat without usage", "messages", "responses"])  # fmt: skip
def test_each_event_is_forwarded_before_the_next_is_sent(one, path, body, steps):
    """The provider sends an event only after the client has the one before: held-back bytes would hang this test."""
    provider = one.anthropic if path == "/v1/messages" else one.openai
    gates = [Gate() for _ in steps]
    provider.queue(stream([part for pair in zip(gates, steps) for part in pair]))
    gates[0].open()
    answer = one.weir.post(path, body)
    for number, step in enumerate(steps):
        gates[number].open()
        is_taken_out = body is CHAT and b'"usage":{' in step
        if not is_taken_out:
            answer.until(step)
    answer.read()
    assert answer.header("content-type").startswith("text/event-stream")


def test_half_an_event_is_forwarded_too(one):
    """After the first event even a part of one goes out at once."""
    steps = chat_events()
    gate = Gate()
    half = steps[1][:30]
    one.openai.queue(stream([steps[0], half, gate, steps[1][30:], *steps[2:]]))
    answer = one.weir.post("/v1/chat/completions", ASKED)
    answer.until(half)
    gate.open()
    assert answer.read() == b"".join(steps)


def test_a_slow_client_does_not_lose_a_byte(one):
    """16 MB through a client that does not read until the provider cannot send any more."""
    filler = event({"choices": [{"index": 0, "delta": {"content": "x" * 4000}}]})
    steps = [chat_events()[0], *([filler * 16] * 256), *chat_events()[1:]]
    one.openai.queue(stream(steps))
    answer = one.weir.post("/v1/chat/completions", ASKED)
    assert not one.openai.last.answered.wait(0.5), "16 MB were buffered somewhere"
    assert answer.read() == b"".join(steps)


@pytest.mark.parametrize("breaks", ["reset", "cut", "silent", "no end"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_death_in_mid_stream(world, path, breaks):
    """The client gets what came, then an error event in its dialect, and no normal end mark. Nobody else is asked."""
    provider = world.provider("p", kind="anthropic" if path == "/v1/messages" else "openai",
                              timeouts='connect = "2s", first_event = "5s", between_events = "700ms", total = "60s"')  # fmt: skip
    spare = world.provider("spare", kind="anthropic" if path == "/v1/messages" else "openai", extra="priority = 90\n")
    weir = world.model("m", "p", "spare").start()
    steps = {"/v1/chat/completions": chat_events(), "/v1/messages": message_events(), "/v1/responses": response_events()}[path][:6]
    end = {"reset": [Reset()], "cut": [Cut()], "silent": [Stall()], "no end": []}[breaks]
    provider.queue(stream([*steps, *end]))
    answer = weir.post(path, {"/v1/chat/completions": ASKED, "/v1/messages": {**MESSAGE, "model": "m"}, "/v1/responses": RESPONSE}[path])
    got = answer.read_to_break()
    assert got.startswith(b"".join(steps))
    rest = events(got[len(b"".join(steps)) :])
    assert len(rest) == 1, rest
    name, data = rest[0]
    document = json.loads(data)
    if path == "/v1/messages":
        assert (name, document["type"], document["error"]["type"]) == ("error", "error", "api_error")
    elif path == "/v1/responses":
        assert (name, document["type"]) == ("error", "error")
        assert document["message"] and "sequence_number" in document
    else:
        assert set(document["error"]) >= {"message", "type", "param", "code"}
    for mark in (b"[DONE]", b"message_stop", b"response.completed"):
        assert mark not in got
    row = weir.row_of(answer)
    assert row["end"] == "failed"
    assert row["output"] > 0 and row["usage_source"] in ("counted", "mixed")
    assert row["attempts"] == 1 and spare.seen == []
    metrics = weir.metrics()
    assert metrics.sum("weir_attempts_total", provider="p", outcome="broken_off") == metrics.sum("weir_attempts_total", provider="p") == 1
    wait_no_streams(weir)


def test_an_error_event_in_mid_stream_is_forwarded_and_the_row_failed(one):
    steps = chat_events()[:5]
    error = event(json.loads(openai_error("The engine fell over.")))
    one.openai.queue(stream([*steps, error]))
    answer = one.weir.post("/v1/chat/completions", ASKED)
    got = answer.read_to_break()
    assert got.startswith(b"".join(steps) + error)
    assert b"[DONE]" not in got
    assert one.weir.row_of(answer)["end"] == "failed"


def test_an_anthropic_error_event_in_mid_stream(one):
    steps = message_events()[:5]
    error = event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "error")
    one.anthropic.queue(stream([*steps, error]))
    answer = one.weir.post("/v1/messages", MESSAGE)
    got = answer.read_to_break()
    assert got.startswith(b"".join(steps) + error)
    assert b"message_stop" not in got
    assert one.weir.row_of(answer)["end"] == "failed"


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_goes_away_cancels_the_upstream_at_once(one, how):
    steps = chat_events(usage=None)
    one.openai.queue(stream([*steps[:6], Stall()]))
    answer = one.weir.post("/v1/chat/completions", CHAT)
    answer.until(steps[5])
    request_id = answer.header("x-request-id")
    if how == "reset":
        answer.client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    answer.client.close()
    seen = one.openai.last
    assert seen.aborted.wait(5), "the upstream was not cancelled"
    row = one.weir.row(request_id)
    assert row["end"] == "cancelled"
    assert row["usage_source"] == "counted"
    # "A weir is a low " is A| we|ir| is| a| low|(space) in o200k.
    assert row["output"] == 7, row
    assert row["input"] > 0
    wait_no_streams(one.weir)
    assert one.weir.metrics().sum("weir_provider_state", provider="openai") == 2, "the client's going is nobody's fault"


def test_a_client_that_goes_away_before_the_first_event_cancels_too(one):
    gate = Gate()
    one.openai.queue(Reply(headers=SSE, before=[gate], body=chat_events()))
    client = one.weir.client()
    body = json.dumps(CHAT).encode()
    client.begin("POST", "/v1/chat/completions", [("Authorization", f"Bearer {one.weir.default_key['key']}"), ("Content-Length", str(len(body)))])
    client.send(body)
    one.openai.wait_seen(1)
    client.close()
    assert one.openai.last.aborted.wait(5)
    gate.open()
    wait_no_streams(one.weir)


def test_a_client_that_goes_away_from_a_drained_provider_is_accounted_in_full(world):
    provider = world.provider("p", extra='on_disconnect = "drain"\n')
    weir = world.model("m", "p").start()
    gate, steps = Gate(), chat_events(words=WORDS * 3, usage={"prompt_tokens": 11, "completion_tokens": 99, "total_tokens": 110})
    provider.queue(stream([*steps[:4], gate, *steps[4:]]))
    answer = weir.post("/v1/chat/completions", CHAT)
    answer.until(steps[3])
    answer.client.close()
    gate.open()
    assert provider.last.answered.wait(5), "the provider was not read to its end"
    row = weir.row_of(answer)
    assert (row["end"], row["usage_source"], row["output"]) == ("cancelled", "upstream", 99)


def test_a_silent_provider_is_counted_token_for_token(one):
    """Without usage from upstream the tokenizer counts: o200k splits these words so."""
    words = ["Hello", ",", " world", "!", " \U0001f30a", " 水", "门"]
    one.openai.queue(stream(chat_events(words=words, usage=None)))
    answer = one.weir.post("/v1/chat/completions", CHAT)
    assert answer.read() == b"".join(chat_events(words=words, usage=None))
    row = one.weir.row_of(answer)
    assert (row["end"], row["usage_source"]) == ("complete", "counted")
    assert 7 <= row["output"] <= 11
    assert row["input"] > 0


def test_tool_call_arguments_are_counted_too(one):
    head = chat_events(words=[], usage=None)
    deltas = [{"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}]}]
    deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in ('{"city"', ':"Par', 'is"}')]
    calls = [event({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}) for delta in deltas]
    one.openai.queue(stream([head[0], *calls, *head[1:]]))
    answer = one.weir.post("/v1/chat/completions", CHAT)
    assert answer.read() == b"".join([head[0], *calls, *head[1:]])
    assert one.weir.row_of(answer)["output"] >= 5


def test_heartbeats_alone_commit_nothing(world):
    """Comments are not an event: when nothing else comes the next target is asked."""
    first = world.provider("first", extra="priority = 1\n", timeouts='connect = "2s", first_event = "800ms", between_events = "5s", total = "30s"')
    second = world.provider("second", extra="priority = 2\n")
    weir = world.model("m", "first", "second").start()
    first.queue(stream([b": PROCESSING\n\n", b": PROCESSING\n\n", Stall()]))
    answer = weir.post("/v1/chat/completions", CHAT)
    assert answer.header("x-provider-used") == "second"
    assert "".join(json.loads(data)["choices"][0]["delta"].get("content", "") for _, data in answer.events[:-1]) == TEXT
    assert first.last.aborted.wait(5) and len(second.seen) == 1


def test_our_own_heartbeat_keeps_a_slow_model_alive(world):
    provider = world.provider("p", extra='heartbeat = "200ms"\n')
    weir = world.model("m", "p").start()
    gate, steps = Gate(), chat_events()
    provider.queue(stream([*steps[:3], gate, *steps[3:]]))
    answer = weir.post("/v1/chat/completions", ASKED)
    answer.until(steps[2])
    before = len(answer.received)
    until(lambda: answer.some() and answer.received[before:].count(b":") >= 2, 5, "comments")
    gate.open()
    got = answer.read()
    assert events(got) == events(b"".join(steps)), "comments between events change nothing"


def test_a_close_delimited_stream_is_complete_with_its_end_mark(one):
    one.openai.queue(stream(chat_events(), close=True))
    answer = one.weir.post("/v1/chat/completions", ASKED)
    assert answer.read() == b"".join(chat_events())
    assert one.weir.row_of(answer)["end"] == "complete"


def test_many_streams_beside_each_other_stay_apart(one):
    """Fifty streams of different text, interleaved."""
    import concurrent.futures

    def answer(request):
        mark = request.json["messages"][0]["content"]
        return stream(chat_events(words=[f"{mark}-{number} " for number in range(20)]), split=11)

    one.openai.always(answer)

    def ask(number):
        got = one.weir.post("/v1/chat/completions", {**ASKED, "messages": [{"role": "user", "content": f"mark{number}"}]}).read()
        return got == b"".join(chat_events(words=[f"mark{number}-{index} " for index in range(20)]))

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        assert all(pool.map(ask, range(50)))
    wait_no_streams(one.weir)


def test_the_connection_is_reused_after_a_stream(one):
    with Client(one.weir.port) as client:
        for number in range(3):
            headers = [("Authorization", f"Bearer {one.weir.default_key['key']}"), ("Content-Type", "application/json")]
            answer = client.ask("POST", "/v1/chat/completions", json.dumps(ASKED).encode(), headers)
            assert answer.read() == b"".join(chat_events(model="up-model")), number
    assert one.openai.connections == 1, "the upstream's connection is reused too"


def test_gzip_is_not_asked_for(one):
    answer = one.weir.post("/v1/chat/completions", CHAT, headers=[("Accept-Encoding", "gzip, br, zstd")])
    answer.read()
    assert one.openai.last.header("accept-encoding") in (None, "identity")


def test_wait_is_not_cut_by_a_pause_shorter_than_the_limit(one):
    steps = chat_events()
    one.openai.queue(stream([*steps[:3], Wait(1.0), *steps[3:]]))
    assert one.weir.post("/v1/chat/completions", ASKED).read() == b"".join(steps)
