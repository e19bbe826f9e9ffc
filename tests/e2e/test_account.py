"""The account is right: one row a request, exact amounts, reserved before and settled after."""

import concurrent.futures
import csv
import io
import json
import sqlite3
import threading
import time
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import free_port, wait_no_streams
from provider import (
    USAGE, WORDS, Cut, Gate, Reply, Reset, Stall, Wait, chat_answer, chat_events, event, fails, message_answer, message_events, openai_error,
    stream, until, whole,
)  # fmt: skip

CREDIT = Decimal("0.001")  # USD, as configured
COLUMNS = [
    "request_id", "started_at", "account", "key_id", "asked_model", "model", "provider", "level", "tier", "byok", "attempts", "was_fallback", "status", "end",
    "input", "image_input", "audio_input", "cached_input", "cached_audio_input", "cache_write_5m", "cache_write_1h", "output", "reasoning", "audio_output",
    "image_output", "seconds", "images", "requests", "usage_source", "price_id", "cost", "charge", "first_event_ms", "duration_ms", "idempotency_key",
]  # fmt: skip


def test_a_row_has_every_column(one):
    answer = one.weir.chat(headers=[("Idempotency-Key", "abc-1"), ("X-Request-Id", "mine-7")])
    row = one.weir.row_of(answer)
    assert set(COLUMNS) <= set(row), set(COLUMNS) - set(row)
    key = one.weir.default_key
    assert (row["account"], row["key_id"]) == (key["account"], key["id"])
    assert (row["asked_model"], row["model"], row["provider"]) == ("m", "m", "openai")
    assert row["price_id"].startswith("openai/up-model"), "the price's name, and which version of it"
    assert (row["input"], row["output"], row["requests"], row["usage_source"]) == (11, 7, 1, "upstream")
    assert (row["attempts"], row["was_fallback"], row["byok"], row["status"], row["end"]) == (1, False, False, 200, "complete")
    assert (row["cost"], Decimal(row["charge"])) == ("0.000025", Decimal("0.025"))
    assert row["idempotency_key"] == "abc-1"
    assert isinstance(row["cost"], str) and isinstance(row["charge"], str), "amounts are decimal strings"
    assert 0 <= row["first_event_ms"] <= row["duration_ms"] < 60_000
    assert str(row["started_at"]).startswith("20")
    assert one.openai.last.header("idempotency-key") in (None, "abc-1")


def test_a_row_is_the_callers_own(one):
    answer = one.weir.chat()
    stranger = one.weir.key(account="stranger")
    other = one.weir.get(f"/weir/v1/requests/{answer.header('x-request-id')}", stranger)
    assert other.status == 404
    assert one.weir.get("/weir/v1/requests/nothing").status == 404
    assert one.weir.get("/weir/v1/requests/../../admin/v1/keys").status == 404


@pytest.mark.parametrize("usage,buckets", [
    ({"prompt_tokens": 100, "completion_tokens": 50, "prompt_tokens_details": {"cached_tokens": 40}, "completion_tokens_details": {"reasoning_tokens": 20}},
     {"input": 60, "cached_input": 40, "output": 30, "reasoning": 20}),
    ({"prompt_tokens": 100, "completion_tokens": 50, "prompt_tokens_details": {"audio_tokens": 30}, "completion_tokens_details": {"audio_tokens": 10}},
     {"input": 70, "audio_input": 30, "output": 40, "audio_output": 10}),
    ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, {"input": 0, "output": 0}),
])  # fmt: skip
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
def test_buckets_do_not_overlap(one, usage, buckets, streams):
    one.openai.queue(stream(chat_events(usage=usage)) if streams else whole(chat_answer(usage=usage)))
    answer = one.weir.chat(stream=streams)
    answer.read()
    row = one.weir.row_of(answer)
    if any(buckets.values()):
        assert {name: row[name] for name in buckets} == buckets
    # One dollar in, half a dollar cached, two dollars out (audio and reasoning as their kind) for a million.
    cost = (row["input"] + row["audio_input"] + Decimal(row["cached_input"]) / 2 + 2 * (row["output"] + row["reasoning"] + row["audio_output"])) / Decimal(1_000_000)
    assert Decimal(row["cost"]) == cost


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
def test_anthropic_counts_caches_beside_the_input(one, streams):
    usage = {"input_tokens": 10, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 30,
             "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20}, "output_tokens": 7}  # fmt: skip
    if streams:
        events = message_events()
        start = json.loads(events[0].split(b"data: ")[1])
        start["message"]["usage"] = {**usage, "output_tokens": 1}
        one.anthropic.queue(stream([event(start, "message_start"), *events[1:]]))
    else:
        one.anthropic.queue(whole(message_answer(usage=usage)))
    answer = one.weir.post("/v1/messages", {"model": "c", "max_tokens": 50, "messages": [], **({"stream": True} if streams else {})})
    answer.read()
    row = one.weir.row_of(answer)
    assert (row["input"], row["cached_input"], row["cache_write_5m"], row["cache_write_1h"], row["output"]) == (10, 20, 10, 20, 7)


def test_cost_that_the_provider_reports(world):
    world.provider("openrouter", kind="openrouter")
    world.model("m", ("openrouter/up-m", {"weight": 1}))
    world.weir.write(world.routing(), "")
    weir = world.weir
    weir.write(world.routing(), '[price."openrouter/up-m"]\nreported = true\n')
    weir.start()
    weir.default_key = weir.key()
    world.providers["openrouter"].queue(whole(chat_answer(usage={**USAGE, "cost": 0.0123456})))
    answer = weir.chat()
    assert (answer.status, answer.header("x-cost-incurred")) == (200, "0.0123456")
    assert weir.row_of(answer)["cost"] == "0.0123456"


def test_charge_is_cost_times_level_times_markup(world):
    world.provider("p")
    world.model("m", "p/up-m")
    world.table("tier.t", 'rank = 1\nmarkup = "0.6"').table("routing", 'default_tier = "t"')
    world.table("level.balanced", 'models = ["m"]\ncost_multiplier = "0.25"')
    weir = world.start()
    key = weir.key(credits=100)
    answer = weir.chat("weir/balanced", key=key)
    answer.read()
    row = weir.row_of(answer, key)
    # 0.000025 × 0.25 × 1.6 = 0.00001 USD = 0.01 credits.
    assert (row["cost"], Decimal(row["charge"])) == ("0.000025", Decimal("0.01"))
    credits = weir.credits(key)
    assert (Decimal(credits["balance"]), Decimal(credits["reserved"]), Decimal(credits["used_this_month"])) == (Decimal("99.99"), 0, Decimal("0.01"))
    metrics = weir.metrics()
    assert abs(metrics.sum("weir_charge_credits_total", level="balanced", tier="t") - 0.01) < 1e-9
    assert abs(metrics.sum("weir_cost_usd_total", model="m", provider="p") - 0.000025) < 1e-12
    assert metrics.sum("weir_tokens_total", model="m", kind="input", source="upstream") == 11
    assert metrics.sum("weir_tokens_total", model="m", kind="output") == 7


def test_402_before_anything_is_asked(one):
    broke = one.weir.key(credits="0.0001")
    for path, body in (("/v1/chat/completions", {"model": "m", "messages": []}), ("/v1/messages", {"model": "c", "max_tokens": 5, "messages": []})):
        answer = one.weir.post(path, body, broke)
        assert answer.status == 402, answer.read()
        document = answer.json
        assert "https://example.com/upgrade" in json.dumps(document)
        assert document["error"]["type"] in ("insufficient_quota", "billing_error")
    assert one.openai.seen == one.anthropic.seen == []
    assert Decimal(one.weir.credits(broke)["balance"]) == Decimal("0.0001")


def test_a_whole_answer_is_capped_to_what_the_balance_pays(one):
    key = one.weir.key(credits="1")  # $0.001: 500 tokens out
    answer = one.weir.chat(key=key, max_tokens=4000)
    assert answer.status == 200, answer.read()
    sent = one.openai.last.json
    caps = [sent[name] for name in ("max_tokens", "max_completion_tokens") if name in sent]
    assert caps and all(cap <= 500 for cap in caps), sent


def test_a_capped_answers_choices_share_the_balance(one):
    key = one.weir.key(credits="1")  # 500 tokens out, for four choices
    assert one.weir.chat(key=key, max_tokens=4000, n=4).status == 200
    caps = [value for name, value in one.openai.last.json.items() if name in ("max_tokens", "max_completion_tokens")]
    assert caps and all(16 <= cap <= 125 for cap in caps), one.openai.last.json


def test_what_is_paid_by_the_piece_takes_a_balance_too(world):
    """An image and an hour of speech have a price, and no cap that a balance could lower."""
    world.provider("p")
    world.model("picture", "p/up-picture").model("speech", "p/up-speech").model("told", "p/up-told")
    world.weir.write(world.routing(), '[price."p/up-picture"]\nper_image = "0.04"\n[price."p/up-speech"]\nper_hour = "0.36"\n[price."p/up-told"]\nreported = true\n')
    weir = world.weir.start()
    weir.default_key = weir.key()
    provider = world.providers["p"]
    picture = {"model": "picture", "prompt": "a weir", "n": 3}
    broke = weir.key(credits=100)  # $0.10: two pictures
    assert weir.post("/v1/images/generations", picture, broke).status == 402 and provider.seen == []
    answer = weir.post("/v1/images/generations", {**picture, "n": 2}, weir.key(credits=100))
    assert answer.status == 200, answer.read()
    # As plain WAV it is a second and a quarter: an eighth of a credit at the least.
    body = b"".join(f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"
                    for name, more, value in (("model", "", b"speech"), ("response_format", "", b"text"), ("file", '; filename="a.mp3"', bytes(40_000)))) + b"--x--\r\n"  # fmt: skip
    form = [("Content-Type", "multipart/form-data; boundary=x")]
    assert weir.post("/v1/audio/transcriptions", body, weir.key(credits="0.1"), form).status == 402
    key = weir.key(credits=10)
    provider.queue(Reply(headers=[("content-type", "text/plain")], body=b"A weir is a barrier."))
    answer = weir.post("/v1/audio/transcriptions", body, key, form)
    assert answer.status == 200, answer.read()
    # How long it was is not said, so what it cost is not known; the row says so.
    row = weir.row_of(answer, key)
    assert (row["price_id"], row["cost"], row["seconds"]) == ("unpriced", "0", 0)
    # What only the provider can tell takes a balance that is not used up.
    used_up = weir.key(credits="0.0005")
    assert weir.chat("told", key=used_up).status == 200
    provider.queue(whole(chat_answer(usage={**USAGE, "cost": 0.01})))
    assert weir.chat("told", key=used_up).status == 200
    assert Decimal(weir.credits(used_up)["balance"]) < 0
    assert weir.chat("told", key=used_up).status == 402


def test_pictures_that_are_too_large_to_be_kept_are_paid_for(world):
    """Passed on as they come, nobody counts them: as many as were asked for."""
    world.weir.settings["limits"] += '\nmax_body = "64KiB"\nmax_body_in_flight = "64KiB"'
    provider = world.provider("p")
    world.model("picture", "p/up-picture")
    world.weir.write(world.routing(), '[price."p/up-picture"]\nper_image = "0.04"\n')
    weir = world.weir.start()
    weir.default_key = weir.key()
    provider.queue(whole(json.dumps({"created": 1, "data": [{"b64_json": "A" * 2_000_000}] * 2}).encode()))
    answer = weir.post("/v1/images/generations", {"model": "picture", "prompt": "a weir", "n": 2})
    assert len(answer.read()) > 4_000_000
    row = weir.row_of(answer)
    assert (row["end"], row["images"], row["cost"]) == ("complete", 2, "0.08")
    wait_no_streams(weir)


def test_402_in_mid_stream(one):
    """The reservation runs out and the balance has no more: an error event, no end mark, upstream cancelled, balance at zero."""
    key = one.weir.key(credits="0.2")  # $0.0002: 100 tokens out, less the prompt
    steps = chat_events(words=["word "] * 2000, usage=None)
    paced = [part for step in steps for part in (step, Wait(0.001))]
    for path, model, provider, content in (("/v1/chat/completions", "m", one.openai, paced),):
        provider.queue(stream(content))
        answer = one.weir.post(path, {"model": model, "stream": True, "messages": [{"role": "user", "content": "x"}]}, key)
        assert answer.status == 200, answer.read()
        got = answer.read_to_break()
        assert b"[DONE]" not in got
        last = json.loads(got.strip().split(b"data: ")[-1])
        assert last["error"]["code"] == "insufficient_quota" or last["error"]["type"] == "insufficient_quota", last
        assert "https://example.com/upgrade" in json.dumps(last)
        assert provider.last.aborted.wait(5), "the upstream was not cancelled"
        row = one.weir.row_of(answer, key)
        assert row["end"] == "cancelled"
        assert row["output"] >= 50
        words = got.count(b'"content":"word "')
        assert abs(row["output"] - words) <= 3, (row["output"], words)
        credits = one.weir.credits(key)
        # An event of one token costs 0.002 credits; a burst that shares a write may be a few.
        assert Decimal("-0.05") <= Decimal(credits["balance"]) <= Decimal("0.02"), credits
        assert Decimal(credits["reserved"]) == 0
        assert Decimal(credits["balance"]) == Decimal("0.2") - Decimal(row["charge"])
    assert one.weir.chat(key=key).status == 402


def test_402_in_mid_stream_of_messages(one):
    key = one.weir.key(credits="0.2")
    one.anthropic.queue(stream([part for step in message_events(words=["word "] * 2000) for part in (step, Wait(0.001))]))
    answer = one.weir.post("/v1/messages", {"model": "c", "max_tokens": 5000, "stream": True, "messages": [{"role": "user", "content": "x"}]}, key)
    got = answer.read_to_break()
    assert b"message_stop" not in got
    name, data = got.strip().split(b"\n\n")[-1].split(b"\n", 1)
    assert name == b"event: error"
    assert json.loads(data.removeprefix(b"data: "))["error"]["type"] == "billing_error"


@pytest.mark.parametrize("credits, plenty", [("1000", True), ("50", False)])
def test_out_of_plenty_a_stream_is_covered_by_its_bytes(one, credits, plenty):
    """Beyond what was set aside at first, while a hundred times as much is left: a byte is a token at most, so none are counted."""
    key = one.weir.key(credits=credits)
    words = ["incomprehensibly "] * 200
    one.openai.queue(stream([*chat_events(words=words, usage=None)[:-2], event({"choices": [], "last": True}), Stall()]))
    answer = one.weir.chat(stream=True, key=key, max_tokens=10)
    answer.until(b'"last"')
    held = Decimal(one.weir.credits(key)["reserved"])
    by_bytes = Decimal("0.002") * len("".join(words))
    assert held >= by_bytes if plenty else held < by_bytes / 2, held
    answer.client.close()
    row = one.weir.row_of(answer, key)
    after = one.weir.credits(key)
    assert Decimal(after["reserved"]) == 0
    assert Decimal(after["balance"]) == Decimal(credits) - Decimal(row["charge"])
    assert Decimal(row["charge"]) < by_bytes / 2, "charged by tokens"


def test_a_provider_that_reports_too_much_sets_nothing_aside(one):
    key = one.weir.key(credits="1000")
    reported = {"choices": [{"index": 0, "delta": {"content": "word "}}], "usage": {"prompt_tokens": 1, "completion_tokens": 4294967295, "total_tokens": 4294967296}}
    one.openai.queue(stream([event(reported), event({"choices": [], "last": True}), Stall()]))
    answer = one.weir.chat(stream=True, key=key, max_tokens=10)
    answer.until(b'"last"')
    assert Decimal(one.weir.credits(key)["reserved"]) < 1
    answer.client.close()
    one.weir.row_of(answer, key)


@pytest.mark.parametrize("how", ["whole", "stream", "failed", "cut", "gone"])
def test_what_was_reserved_comes_back(one, how):
    key = one.weir.key(credits="1000")
    if how == "failed":
        one.openai.queue(fails(500))
    if how == "cut":
        one.openai.queue(stream([*chat_events()[:5], Cut()]))
    if how == "gone":
        one.openai.queue(stream([*chat_events()[:5], Stall()]))
    answer = one.weir.chat(stream=how in ("stream", "cut", "gone"), key=key)
    if how == "gone":
        answer.until(b"weir")
        during = one.weir.credits(key)
        assert Decimal(during["reserved"]) > 0, during
        answer.client.close()
    else:
        answer.read_to_break()
    row = one.weir.row_of(answer, key)
    credits = one.weir.credits(key)
    assert Decimal(credits["reserved"]) == 0
    assert Decimal(credits["balance"]) == 1000 - Decimal(row["charge"])
    assert row["end"] == {"whole": "complete", "stream": "complete", "failed": "failed", "cut": "failed", "gone": "cancelled"}[how]


def test_a_hundred_at_once_never_overspend(one):
    """Reservations are atomic: a balance for a few answers is not spent by a hundred callers at once."""
    key = one.weir.key(credits="0.1")
    one.openai.always(lambda request: whole(chat_answer(usage={"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15})))
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: one.weir.chat(key=key, max_tokens=5), range(100)))
    statuses = sorted({answer.status for answer in answers})
    assert statuses in ([200, 402], [402, 200], [402], [200, 402]), statuses
    served = [answer for answer in answers if answer.status == 200]
    spent = sum(Decimal(one.weir.row_of(answer, key)["charge"]) for answer in served)
    balance = Decimal(one.weir.credits(key)["balance"])
    assert balance == Decimal("0.1") - spent
    assert balance >= 0


def test_monthly_cap(world):
    world.provider("p")
    world.model("m", "p")
    world.table("tier.t", 'rank = 1\nmonthly_cap = "0.06"').table("routing", 'default_tier = "t"')
    weir = world.start()
    statuses = [weir.chat(max_tokens=7).status for _ in range(6)]
    assert statuses[0] == 200 and statuses[-1] == 402, statuses
    assert weir.credits()["monthly_cap"] in ("0.06", "0.060")
    answer = weir.chat(max_tokens=7)
    assert "cap" in answer.json["error"]["message"]


def test_rate_limits_and_their_headers(world):
    world.provider("p")
    world.model("m", "p")
    world.table("tier.t", "rank = 1\nlimits = { rpm = 3, tpm = 100000 }").table("routing", 'default_tier = "t"')
    weir = world.start()
    remaining = []
    for _ in range(3):
        answer = weir.chat()
        assert answer.status == 200
        assert answer.header("x-ratelimit-limit-requests") == "3"
        assert answer.header("x-ratelimit-limit-tokens") == "100000"
        assert answer.header("x-ratelimit-reset-requests") and answer.header("x-ratelimit-reset-tokens")
        remaining.append(int(answer.header("x-ratelimit-remaining-requests")))
    assert remaining == [2, 1, 0]
    answer = weir.chat()
    assert answer.status == 429
    assert 1 <= int(answer.header("retry-after")) <= 60
    assert answer.header("x-ratelimit-remaining-requests") in ("0", None)
    assert answer.json["error"]["code"] == "rate_limit_exceeded"
    answer = weir.post("/v1/messages", {"model": "m", "max_tokens": 5, "messages": []})
    assert answer.status in (400, 429)


def test_token_limits_are_corrected_by_what_was_used(world):
    provider = world.provider("p")
    world.model("m", "p")
    weir = world.start()
    key = weir.key(tpm=5000)
    provider.queue(whole(chat_answer(usage={"prompt_tokens": 4000, "completion_tokens": 4000, "total_tokens": 8000})))
    assert weir.chat(key=key, max_tokens=10).status == 200
    answer = weir.chat(key=key, max_tokens=10)
    assert answer.status == 429, "the bucket owes"
    assert int(answer.header("retry-after")) >= 30
    assert "tokens" in answer.json["error"]["message"]


def test_concurrency_limits(world):
    provider = world.provider("p")
    world.model("m", "p")
    weir = world.start()
    key = weir.key(concurrent=1)
    gate = Gate()
    provider.queue(stream([chat_events()[0], gate, *chat_events()[1:]]))
    running = weir.chat(stream=True, key=key)
    running.until(b"data")
    assert weir.chat(key=key).status == 429
    gate.open()
    running.read()
    until(lambda: weir.chat(key=key).status == 200, 3)


def test_failed_attempts_cost_nothing(two):
    two.first.queue(fails(500))
    answer = two.weir.chat()
    row = two.weir.row_of(answer)
    assert (row["attempts"], row["cost"], row["provider"]) == (2, "0.000025", "second")


def test_request_ids_are_unique_and_ours(one):
    """A client's own id is no key into the ledger: the same one twice makes two rows."""
    answers = [one.weir.chat(headers=[("X-Request-Id", "same")]) for _ in range(3)]
    ids = {answer.header("x-weir-request-id") for answer in answers}
    assert len(ids) == 3 and {answer.header("x-request-id") for answer in answers} == {"same"}
    for answer in answers:
        assert one.weir.row_of(answer)["end"] == "complete"


def test_idempotency_key(world):
    """The same key and body again: the first answer, once billed; another body: 409."""
    world.weir.settings["idempotency"] = "enabled = true"
    provider = world.provider("p")
    weir = world.model("m", "p").start()
    headers = [("Idempotency-Key", "order-17")]
    first = weir.chat(headers=headers)
    again = weir.chat(headers=headers)
    assert (again.status, again.read()) == (200, first.read())
    assert len(provider.seen) == 1
    other = weir.chat(headers=headers, temperature=0.5)
    assert (other.status, other.json["error"]["code"]) == (409, "idempotency_conflict")
    stranger = weir.key(account="stranger")
    assert weir.chat(headers=headers, key=stranger).status == 200
    assert len(provider.seen) == 2
    streamed = [("Idempotency-Key", "order-18")]
    one_stream = weir.chat(stream=True, headers=streamed).read()
    assert weir.chat(stream=True, headers=streamed).read() == one_stream
    assert len(provider.seen) == 3


def test_without_configuration_an_idempotency_key_keeps_nothing(one):
    headers = [("Idempotency-Key", "order-17")]
    one.weir.chat(headers=headers)
    one.weir.chat(headers=headers)
    assert len(one.openai.seen) == 2


def test_usage_of_a_mixed_day(world):
    """`weir usage` and /weir/v1/usage agree with the rows."""
    p = world.provider("p")
    q = world.provider("q")
    world.model("a", "p/up-a").model("b", "q/up-b")
    weir = world.start()
    rows = []
    for number in range(12):
        if number % 4 == 3:
            q.queue(fails(400, openai_error("no", "invalid_request_error")))
        answer = weir.chat("a" if number % 2 else "b", stream=number % 3 == 0)
        answer.read()
        rows.append(weir.row_of(answer))
    cost = sum(Decimal(row["cost"]) for row in rows)
    for by in ("model", "provider", "key", "day"):
        listed = json.loads(weir.command("usage", "--by", by, "--json").stdout)["lines"]
        assert sum(line["rows"] for line in listed) == len(rows), (by, listed)
        assert sum(line["complete"] for line in listed) == sum(row["end"] == "complete" for row in rows), (by, listed)
        assert sum(Decimal(line["cost"]) for line in listed) == cost, (by, listed)
        assert len(listed) == {"model": 2, "provider": 2, "key": 1, "day": len({row["started_at"][:10] for row in rows})}[by], listed
    text = weir.command("usage", "--by", "model", "--csv").stdout
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == 2 and sum(Decimal(line["cost"]) for line in lines) == cost
    assert weir.command("usage", "--by", "model").stdout
    mine = weir.get("/weir/v1/usage?by=model").json
    assert sum(Decimal(line["cost"]) for line in mine["lines"]) == cost
    assert p.seen and q.seen


def test_self_service(world):
    world.provider("p")
    world.model("m", "p", extra="context_window = 1000\nmax_output = 100\n")
    world.table("tier.t", 'rank = 1\nlevels = ["eco"]\nlimits = { rpm = 100 }').table("level.eco", 'models = ["m"]').table("level.precision", 'models = ["m"]')
    world.table("routing", 'default_tier = "t"')
    weir = world.start()
    key = weir.key("mine", credits=5, account="acme")
    me = weir.get("/weir/v1/me", key).json
    assert (me["name"], me["account"], me["tier"], me["levels"]) == ("mine", "acme", "t", ["eco"])
    assert key["key"] not in json.dumps(me)
    models = weir.get("/weir/v1/models", key).json
    assert [model["id"] for model in models["data"]] == ["m"]
    assert Decimal(weir.credits(key)["balance"]) == 5
    for path in ("me", "models", "credits", "usage", "keys"):
        assert weir.ask("GET", f"/weir/v1/{path}").status == 401, path


def test_grants_by_the_admin_count_at_once(one):
    key = one.weir.key(credits="0.0001", account="acme")
    assert one.weir.chat(key=key).status == 402
    answer = one.weir.admin("POST", "/admin/v1/accounts/acme/grants", {"credits": "50", "note": "thanks"})
    assert answer.status == 201, answer.received
    assert Decimal(one.weir.credits(key)["balance"]) == Decimal("50.0001")
    assert one.weir.chat(key=key).status == 200


def test_rows_add_up_to_the_change_of_balance(one):
    """A storm of every kind of ending: the sum of the rows is what is gone from the balance."""
    key = one.weir.key(credits="10000")
    kinds = ["whole", "stream", "failed", "cut", "gone", "bad"]

    def script(request):
        kind = request.json["messages"][0]["content"]
        return {
            "whole": lambda: whole(chat_answer()),
            "stream": lambda: stream(chat_events()),
            "failed": lambda: fails(400, openai_error("no", "invalid_request_error")),
            "cut": lambda: stream([*chat_events()[:5], Reset()]),
            "gone": lambda: stream([*chat_events()[:5], Stall()]),
            "bad": lambda: fails(422, openai_error("no", "invalid_request_error")),
        }[kind]()

    one.openai.always(script)

    def ask(number):
        kind = kinds[number % len(kinds)]
        answer = one.weir.chat(stream=kind in ("stream", "cut", "gone"), key=key, messages=[{"role": "user", "content": kind}])
        if kind == "gone":
            answer.until(b"weir")
            answer.client.close()
        else:
            answer.read_to_break()
        return answer.header("x-request-id")

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        ids = list(pool.map(ask, range(120)))
    assert len(set(ids)) == 120
    wait_no_streams(one.weir)
    rows = [one.weir.row(request_id, key) for request_id in ids]
    credits = until(lambda: (found := one.weir.credits(key)) and Decimal(found["reserved"]) == 0 and found, 5, "the last reservation")
    assert Decimal(credits["balance"]) == 10_000 - sum(Decimal(row["charge"]) for row in rows)
    assert Decimal(credits["used_this_month"]) == sum(Decimal(row["charge"]) for row in rows)
    ends = [row["end"] for row in rows]
    assert (ends.count("complete"), ends.count("cancelled"), ends.count("failed")) == (40, 20, 60), ends


# ------------------------------------------------------------------------------------------------------------------ export


class Collector:
    """A billing service that fails as it is told and remembers every event it took."""

    def __init__(self):
        self.port = free_port()
        self.events, self.requests, self.fail = [], [], []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.requests.append((self.path, dict(self.headers), json.loads(body)))
                status = collector.fail.pop(0) if collector.fail else 200
                if status == 200:
                    collector.events += json.loads(body)["events"]
                answer = b"{}"
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def test_export_to_lago_at_least_once_with_the_requests_id(world):
    collector = Collector()
    world.weir.environment["LAGO_KEY"] = "lago-secret-0123456789"
    world.weir.secrets.append("lago-secret-0123456789")
    world.weir.settings["export.lago"] = f'url = "http://127.0.0.1:{collector.port}"\napi_key = "env:LAGO_KEY"\nevent_code = "llm_request"'
    world.provider("p")
    weir = world.model("m", "p").start()
    collector.fail = [500, 429]
    ids = []
    for _ in range(150):
        answer = weir.chat()
        answer.read()
        answer.client.close()
        ids.append(answer.header("x-request-id"))
    until(lambda: {event["transaction_id"] for event in collector.events} >= set(ids), 40, "every event")
    assert {path for path, _, _ in collector.requests} == {"/api/v1/events/batch"}
    assert all(len(body["events"]) <= 100 for _, _, body in collector.requests)
    assert all(headers["Authorization" if "Authorization" in headers else "authorization"] == "Bearer lago-secret-0123456789" for _, headers, _ in collector.requests)
    assert all(event["code"] == "llm_request" and event["external_subscription_id"] for event in collector.events)
    until(lambda: weir.metrics().sum("weir_export_pending") == 0, 10, "nothing pending")
    assert weir.metrics().has("weir_export_dead") and weir.metrics().sum("weir_export_dead") == 0
    collector.server.shutdown()


def test_the_stores_rows_can_be_read_by_sql(one):
    """The store is an ordinary SQLite file that other tools may read."""
    answer = one.weir.chat()
    one.weir.row_of(answer)
    with sqlite3.connect(f"file:{one.folder}/var/weir.db?mode=ro", uri=True) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert tables
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_output_is_counted_where_the_first_event_came_late(one):
    """Time to first event and duration are of this request."""
    one.openai.queue(stream([Wait(0.3), *chat_events()[:4], Wait(0.3), *chat_events()[4:]]))
    began = time.monotonic()
    answer = one.weir.chat(stream=True)
    answer.read()
    took_ms = (time.monotonic() - began) * 1000
    row = one.weir.row_of(answer)
    assert 250 <= row["first_event_ms"] <= took_ms
    assert row["first_event_ms"] + 250 <= row["duration_ms"] <= took_ms + 5


def test_words_and_reply_are_what_the_rest_relies_on():
    """The fixtures themselves: the text has a character of each width."""
    assert {len(character.encode()) for character in "".join(WORDS)} == {1, 3, 4}
    assert Reply().status == 200
