"""What happens around an answer: places and queues, hedging, kept answers, heartbeats before the first event, names of requests."""

import concurrent.futures
import json
import time
from decimal import Decimal

import pytest
from client import events
from conftest import wait_no_streams
from provider import Gate, Reply, Stall, Wait, chat_answer, chat_events, fails, openai_error, stream, until, whole

# A stream as its client sees it that did not ask for usage.
PLAIN = [one for one in chat_events() if b'"choices":[]' not in one]


def keeps(world, options="enabled = true"):
    world.weir.settings["idempotency"] = options
    world.p = world.provider("p")
    return world.model("m", "p").start()


def log_line(weir, request_id, event="request"):
    """A request's line in the log."""

    def find():
        for line in weir.logs().splitlines():
            if request_id in line and json.loads(line)["event"] == event:
                return json.loads(line)
        return None

    return until(find, 5, f"the {event} line of {request_id}")


# ------------------------------------------------------------------------------------------------------------------- places


def test_a_full_provider_is_passed_over_and_then_refused(world):
    """`max_concurrent` holds exactly, however many come at once; a request that finds no room is told when to come again."""
    first = world.provider("first", extra="priority = 1\nmax_concurrent = 2\n")
    second = world.provider("second", extra="priority = 2\nmax_concurrent = 3\n")
    weir = world.model("m", "first", "second").start()
    gate = Gate()
    for provider in (first, second):
        provider.always(lambda _request: stream([chat_events()[0], gate, *chat_events()[1:]]))
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: weir.chat(stream=True), range(16)))
    served = [answer for answer in answers if answer.status == 200]
    assert sorted(answer.header("x-provider-used") for answer in served) == ["first"] * 2 + ["second"] * 3
    assert (len(first.seen), len(second.seen)) == (2, 3)
    for answer in served:
        assert answer.header("x-weir-attempts") == "1", "a target that was passed over was not tried"
    for answer in answers:
        if answer.status != 200:
            assert (answer.status, answer.json["error"]["code"]) == (503, "overloaded") and answer.header("retry-after")
    gate.open()
    for answer in served:
        answer.read()
    wait_no_streams(weir)
    first.always(whole(chat_answer()))
    assert weir.chat().header("x-provider-used") == "first"


def test_a_request_waits_for_a_place_and_gets_it(world):
    world.weir.settings["limits"] = "max_streams = 1"
    provider = world.provider("p")
    weir = world.model("m", "p").start()
    gate = Gate()
    provider.queue(Reply(before=[gate], headers=[("content-type", "application/json")], body=chat_answer()))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        running = pool.submit(weir.chat)
        provider.wait_seen(1)
        waiting = pool.submit(weir.chat)
        with pytest.raises(concurrent.futures.TimeoutError):
            waiting.result(0.3)
        assert len(provider.seen) == 1, "it waits inside weir"
        gate.open()
        assert (running.result(10).status, waiting.result(10).status) == (200, 200)


def test_one_accounts_burst_does_not_starve_another(world):
    """With one place, a stranger's single request is served after at most one more of the burst that waits before it."""
    world.weir.settings["limits"] = "max_streams = 1"
    provider = world.provider("p")
    weir = world.model("m", "p").start()
    burst, stranger = weir.key(account="burst"), weir.key(account="stranger")
    gate, order = Gate(), []

    def answer(request):
        order.append(request.json["user"])
        return whole(chat_answer())

    provider.always(answer)
    provider.queue(Reply(before=[gate], headers=[("content-type", "application/json")], body=chat_answer()))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        running = pool.submit(weir.chat, key=burst)
        provider.wait_seen(1)
        waiting = [pool.submit(weir.chat, key=burst, user="burst") for _ in range(3)]
        until(lambda: weir.metrics().sum("weir_requests_queued") == 3, 2, "the burst to wait")
        waiting.append(pool.submit(weir.chat, key=stranger, user="stranger"))
        until(lambda: weir.metrics().sum("weir_requests_queued") == 4, 2, "the stranger to wait")
        gate.open()
        assert [one.result(20).status for one in [running, *waiting]] == [200] * 5
    assert order.index("stranger") <= 1, order
    assert weir.metrics().sum("weir_requests_queued") == 0


# ------------------------------------------------------------------------------------------------------------- kept answers


def test_the_first_answer_comes_again(world):
    weir = keeps(world)
    headers = [("Idempotency-Key", "k")]
    first, again = weir.chat(headers=headers), weir.chat(headers=headers)
    assert first.header("idempotency-replayed") is None and again.header("idempotency-replayed") == "true"
    assert again.read() == first.read()
    for name, value in first.headers:
        if name.lower() not in ("date", "connection"):
            assert again.header(name) == value, name
    assert len(world.p.seen) == 1
    assert weir.metrics().sum("weir_tokens_total", kind="output") == 7, "billed once"
    assert log_line(weir, weir.default_key["id"], "replay")["status"] == 200


def test_a_stream_comes_again_byte_for_byte(world):
    weir = keeps(world)
    headers = [("Idempotency-Key", "k")]
    world.p.queue(stream(chat_events(), pace=0.01))
    first = weir.chat(stream=True, headers=headers).read()
    again = weir.chat(stream=True, headers=headers)
    assert again.header("content-type").startswith("text/event-stream")
    assert again.read() == first and len(world.p.seen) == 1


def test_a_repeat_while_the_first_runs_is_a_conflict_and_afterwards_its_answer(world):
    weir = keeps(world)
    headers = [("Idempotency-Key", "k")]
    gate = Gate()
    world.p.queue(stream([chat_events()[0], gate, *chat_events()[1:]]))
    running = weir.chat(stream=True, headers=headers)
    running.until(b"data")
    early = weir.chat(stream=True, headers=headers)
    assert early.status == 409 and running.header("x-weir-request-id") in early.json["error"]["message"]
    gate.open()
    whole_stream = running.read()
    assert weir.chat(stream=True, headers=headers).read() == whole_stream and len(world.p.seen) == 1


def test_a_first_that_was_broken_off_or_failed_runs_anew(world):
    weir = keeps(world)
    headers = [("Idempotency-Key", "k")]
    world.p.queue(stream([chat_events()[0], Stall()]))
    left = weir.chat(stream=True, headers=headers)
    left.until(b"data")
    left.client.close()
    answer = until(lambda: (lambda one: one if one.status != 409 else None)(weir.chat(stream=True, headers=headers)), 10, "the retry")
    assert answer.status == 200 and answer.header("idempotency-replayed") is None
    assert answer.read().endswith(b"data: [DONE]\n\n") and len(world.p.seen) == 2
    failing = [("Idempotency-Key", "failing")]
    world.p.queue(fails(400, openai_error("No.", "invalid_request_error")))
    assert [weir.chat(headers=failing).status for _ in range(2)] == [400, 200]


def test_an_answer_too_large_to_keep_leaves_the_id_of_its_row(world):
    weir = keeps(world, 'enabled = true\nmax_answer = "1KiB"')
    headers = [("Idempotency-Key", "k")]
    world.p.queue(whole(chat_answer("x" * 2000)))
    first = weir.chat(headers=headers)
    assert len(first.read()) > 1024
    repeated, first_id = weir.chat(headers=headers), first.header("x-weir-request-id")
    assert repeated.status == 409 and first_id in repeated.json["error"]["message"]
    assert weir.row(first_id)["end"] == "complete"


# ---------------------------------------------------------------------------------------------------------------- hedging


@pytest.mark.parametrize("streams", [False, True])
def test_a_late_first_event_asks_a_second_target(world, streams):
    first = world.provider("first", extra="priority = 1\n")
    second = world.provider("second", extra="priority = 2\n")
    weir = world.model("m", "first", "second", extra="hedge = true\n").start()
    for _ in range(10):
        assert weir.chat(stream=streams).read()
    assert not second.seen, "too little is known yet to call an answer late"
    first.queue(Reply(before=[Stall()]))
    answer = weir.chat(stream=streams)
    assert (answer.status, answer.header("x-provider-used"), answer.header("x-weir-attempts")) == (200, "second", "2")
    answer.read()
    assert first.last.aborted.wait(5), "the loser is cancelled"
    row = weir.row_of(answer)
    # The provider reports 11 tokens in; the loser's prompt is estimated, a dollar a million.
    assert (row["end"], row["attempts"], row["was_fallback"], row["requests"], row["usage_source"]) == ("complete", 2, True, 2, "mixed")
    assert row["input"] > 11 and row["output"] == 7
    assert Decimal(row["cost"]) == Decimal(row["input"] + 2 * row["output"]) / 1_000_000
    line = log_line(weir, answer.header("x-weir-request-id"))
    assert [(one["provider"], one["class"]) for one in line["attempts"]] == [("first", "cancelled"), ("second", "ok")]


def test_the_first_may_still_win_and_both_may_fail(world):
    first = world.provider("first", extra="priority = 1\n")
    second = world.provider("second", extra="priority = 2\n")
    weir = world.model("m", "first", "second", extra="hedge = true\n").start()
    for _ in range(10):
        weir.chat().read()
    gate = Gate()
    first.queue(Reply(before=[gate], headers=[("content-type", "application/json")], body=chat_answer()))
    second.queue(Reply(before=[Stall()]))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(weir.chat)
        second.wait_seen(1)
        gate.open()
        answer = asked.result(10)
    assert (answer.header("x-provider-used"), answer.header("x-was-fallback"), answer.header("x-weir-attempts")) == ("first", "false", "2")
    assert second.last.aborted.wait(5)
    # A failure of one while the other runs is not the end.
    slow = Gate()
    first.queue(Reply(500, before=[slow], body=openai_error("Down.")))
    second.queue(Reply(before=[Wait(0.2)], headers=[("content-type", "application/json")], body=chat_answer()))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(weir.chat)
        second.wait_seen(2)
        slow.open()
        answer = asked.result(10)
    assert (answer.status, answer.header("x-provider-used")) == (200, "second")
    row = weir.row_of(answer)
    assert (row["requests"], row["input"], row["attempts"]) == (1, 11, 2), "what failed costs nothing"


# -------------------------------------------------------------------------------------------------------------- heartbeats


def test_a_stream_that_is_slow_to_begin_is_opened_with_comments(world):
    provider = world.provider("p", extra='heartbeat = "150ms"\n')
    weir = world.model("m", "p").start()
    gate = Gate()
    provider.queue(Reply(before=[gate], headers=[("content-type", "text/event-stream")], body=list(chat_events())))
    answer = weir.chat(stream=True)
    assert answer.status == 200 and answer.header("content-type") == "text/event-stream" and answer.header("x-request-id")
    until(lambda: answer.some() and answer.received.count(b": heartbeat\n\n") >= 2, 5, "comments")
    gate.open()
    got = answer.read()
    assert events(got) == events(b"".join(PLAIN))
    assert weir.row_of(answer)["end"] == "complete"


def test_an_opened_stream_that_fails_ends_with_an_error_event(world):
    provider = world.provider("p", extra='heartbeat = "150ms"\n')
    weir = world.model("m", "p").start()
    gate = Gate()
    provider.queue(Reply(500, before=[gate], body=openai_error("Down.")))
    answer = weir.chat(stream=True)
    answer.until(b": heartbeat\n\n")
    gate.open()
    (_, data), = events(answer.read())
    assert json.loads(data)["error"]["code"] == "upstream_failed" and b"[DONE]" not in answer.received
    row = weir.row_of(answer)
    assert (row["status"], row["end"], row["cost"]) == (502, "failed", "0")
    # A whole answer is never opened early: its status says how it went.
    gate = Gate()
    provider.queue(Reply(400, before=[Wait(0.4)], body=openai_error("No.", "invalid_request_error")))
    assert weir.chat().status == 400


def test_an_opened_stream_has_no_place_for_a_whole_answer(world):
    """The provider did the work, so its tokens are in the row; its connection serves the next request."""
    world.weir.settings["limits"] += "\nthreads = 1"
    provider = world.provider("p", extra='heartbeat = "150ms"\n')
    weir = world.model("m", "p").start()
    gate = Gate()
    provider.queue(Reply(before=[gate], headers=[("content-type", "application/json")], body=chat_answer()))
    answer = weir.chat(stream=True)
    answer.until(b": heartbeat\n\n")
    gate.open()
    (_, data), = events(answer.read())
    assert json.loads(data)["error"]["message"] and b"[DONE]" not in answer.received
    row = weir.row_of(answer)
    assert (row["end"], row["usage_source"]) == ("failed", "upstream")
    assert weir.metrics().sum("weir_attempts_total", provider="p", outcome="broken_off") == 1
    assert weir.chat().status == 200
    assert provider.connections == 1


def test_no_comment_goes_into_an_event(world):
    provider = world.provider("p", extra='heartbeat = "100ms"\n')
    weir = world.model("m", "p").start()
    steps = chat_events()
    gate = Gate()
    provider.queue(stream([steps[0], steps[1][:9], gate, steps[1][9:], *steps[2:]]))
    answer = weir.chat(stream=True)
    answer.until(steps[1][:9])
    time.sleep(0.4)  # Some heartbeats long: if one were to come it would be here.
    gate.open()
    assert answer.read() == b"".join(PLAIN)


# ------------------------------------------------------------------------------------------------------- names of requests


def test_a_client_may_name_its_request(one):
    weir = one.weir
    named = weir.chat(headers=[("X-Request-Id", "order-7/a")])
    assert named.header("x-request-id") == "order-7/a"
    own = named.header("x-weir-request-id")
    assert len(own) == 26 and weir.row(own)["request_id"] == own
    assert weir.row("order-7%2Fa")["request_id"] == own
    unnamed = weir.chat()
    assert unnamed.header("x-request-id") == unnamed.header("x-weir-request-id")
    for bad in ("with space", "x" * 129, "é"):
        answer = weir.chat(headers=[("X-Request-Id", bad)])
        assert answer.header("x-request-id") == answer.header("x-weir-request-id")
    stranger = weir.key(account="stranger")
    assert weir.get("/weir/v1/requests/order-7%2Fa", stranger).status == 404
    refused = weir.chat("no-such-model", headers=[("X-Request-Id", "lost")])
    assert refused.status == 404 and refused.header("x-request-id") == "lost"
    assert weir.row("lost")["end"] == "refused"


def test_the_log_line_has_every_attempt(two):
    two.first.queue(fails(429, headers=[("retry-after", "1")]))
    answer = two.weir.chat()
    line = log_line(two.weir, answer.header("x-weir-request-id"))
    assert [(one["provider"], one["model"], one["class"], one["status"]) for one in line["attempts"]] == [
        ("first", "up-m", "rate_limited", 429),
        ("second", "up-m", "ok", 200),
    ]
