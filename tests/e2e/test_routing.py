"""An answer, if there is one to be had: what an outcome means, who is blamed, what comes next."""

import concurrent.futures
import json
import random
import time

import pytest
from conftest import provider_key, wait_no_streams
from provider import (
    SSE, Gate, Reply, Reset, Stall, anthropic_error, chat_answer, chat_events, event, fails, openai_error, stream, until, whole,
)  # fmt: skip

RETRYABLE, KEY, CONTEXT, CALLER = "target", "key", "context", "caller"

# name: (script for whole answers, script for streams, who is blamed)
OUTCOMES = {
    "reset before the head": (Reply(raw=[Reset()]), None, RETRYABLE),
    "closed before the head": (Reply(raw=[]), None, RETRYABLE),
    "reset after the head": (Reply(raw=[b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{", Reset()]), stream([Reset()]), RETRYABLE),
    "cut in the body": (Reply(raw=[b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{\"id\":"]), stream([b": hi\n\n", b"data: {\"id"], close=True), RETRYABLE),
    "408": (fails(408), None, RETRYABLE),
    "500": (fails(500), None, RETRYABLE),
    "502 with a page": (Reply(502, [("content-type", "text/html")], b"<html>Bad gateway</html>"), None, RETRYABLE),
    "503": (fails(503), None, RETRYABLE),
    "529": (fails(529, anthropic_error("Overloaded", "overloaded_error")), None, RETRYABLE),
    "no first event": (Reply(before=[Stall()]), stream([Stall()]), RETRYABLE),
    "error first": (whole(openai_error("It broke at once.")), stream([event(json.loads(openai_error("It broke at once.")))]), RETRYABLE),
    "error first, then the end": (whole(openai_error("It broke.")), stream([event(json.loads(openai_error("It broke."))) + b"data: [DONE]\n\n"]), RETRYABLE),
    "empty 200": (whole(b""), stream([]), RETRYABLE),
    "html 200": (Reply(200, [("content-type", "text/html")], b"<html>Welcome</html>"), None, RETRYABLE),
    "not json": (whole(b'{"id": oops'), None, RETRYABLE),
    "429": (fails(429, openai_error("Slow down.", "requests", "rate_limit_exceeded"), [("retry-after", "30")]), None, KEY),
    "429 with retry-after-ms": (fails(429, openai_error("Slow down.", "requests", "rate_limit_exceeded"), [("retry-after-ms", "30000")]), None, KEY),
    "insufficient_quota": (fails(429, openai_error("You exceeded your current quota.", "insufficient_quota", "insufficient_quota")), None, KEY),
    "401": (fails(401, openai_error("Incorrect API key provided.", "invalid_request_error", "invalid_api_key")), None, KEY),
    "402": (fails(402, openai_error("Payment required.", "billing_error")), None, KEY),
    "403": (fails(403, openai_error("Not allowed.", "permission_error")), None, KEY),
    "context length": (fails(400, openai_error("This model's maximum context length is 10 tokens.", "invalid_request_error", "context_length_exceeded")), None, CONTEXT),
    "400": (fails(400, openai_error("Unknown parameter: 'x'.", "invalid_request_error", "unknown_parameter")), None, CALLER),
    "404": (fails(404, openai_error("The model does not exist.", "invalid_request_error", "model_not_found")), None, CALLER),
    "422": (fails(422, openai_error("Unprocessable.", "invalid_request_error")), None, CALLER),
}  # fmt: skip

QUICK = 'connect = "1s", first_event = "600ms", between_events = "600ms", total = "20s"'


def own_key(world, caller, provider):
    """Gives the caller an own key at a provider and returns it."""
    secret = provider_key("openai")
    world.weir.secrets.append(secret)
    answer = world.weir.post("/weir/v1/keys", {"provider": provider, "key": secret}, caller)
    assert answer.status in (200, 201), answer.read()
    return secret


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_fault_matrix(world, outcome):
    """The outcome × whole or stream × first or last attempt × the platform's or the caller's key."""
    for_whole, for_stream, blame = OUTCOMES[outcome]
    world.table("tier.t", "rank = 1\nbyok = true").table("routing", 'default_tier = "t"')
    cells = [(mode, payer, place) for mode in ("whole", "stream") for payer in ("platform", "own") for place in ("first", "last")]
    for number, (mode, _payer, place) in enumerate(cells):
        bad = world.provider(f"bad{number}", timeouts=QUICK, extra="priority = 1\n")
        world.provider(f"good{number}", extra="priority = 2\n")
        bad.script = for_whole if mode == "whole" or for_stream is None else for_stream
        targets = [f"bad{number}", f"good{number}"] if place == "first" else [f"bad{number}"]
        world.model(f"m{number}", *targets)
    weir = world.start()
    caller, other = weir.key(), weir.key()
    secrets = {number: own_key(world, caller, f"bad{number}") for number, cell in enumerate(cells) if cell[1] == "own"}
    for number, (mode, payer, place) in enumerate(cells):
        what = f"{outcome}, {mode}, {payer} key, {place} attempt"
        bad, good = world.providers[f"bad{number}"], world.providers[f"good{number}"]
        bad.queue(bad.script)
        answer = weir.chat(f"m{number}", stream=mode == "stream", key=caller)
        got = answer.read()
        row = weir.row_of(answer, caller)
        assert len(bad.seen) >= 1, what
        assert bad.seen[0].header("authorization") == f"Bearer {secrets.get(number, world.keys[f'bad{number}'])}", what
        refuses_own = payer == "own" and outcome in ("401", "402", "403", "insufficient_quota")
        if place == "first" and blame in (RETRYABLE, KEY) and not refuses_own:
            assert answer.status == 200, (what, got)
            assert got.endswith(b"data: [DONE]\n\n") if mode == "stream" else json.loads(got)["choices"], what
            assert answer.header("x-provider-used") == f"good{number}", what
            assert answer.header("x-was-fallback") == "true" and answer.header("x-weir-attempts") == "2", what
            assert answer.header("x-used-byok") == "false", what
            assert len(good.seen) == 1, what
            assert (row["end"], row["provider"], row["attempts"], row["was_fallback"], row["output"]) == ("complete", f"good{number}", 2, True, 7), what
        elif refuses_own:
            assert answer.status == (402 if outcome in ("402", "insufficient_quota") else 403), (what, got)
            assert f"bad{number}" in json.loads(got)["error"]["message"], what
            assert good.seen == [], what
            assert (row["end"], row["attempts"]) == ("failed", 1), what
        elif blame in (CONTEXT, CALLER):
            assert answer.status == bad.script.status, (what, got)
            assert got == bad.script.body, what
            assert good.seen == [], what
            assert row["attempts"] == 1, what
        else:
            assert answer.status == (504 if outcome == "no first event" else 502), (what, got)
            assert f"bad{number}" in json.loads(got)["error"]["message"], what
            assert row["end"] == "failed", what
        if not (place == "first" and row["end"] == "complete"):
            assert row["charge"] == "0" and row["output"] == 0, (what, row)
        # Who is blamed shows in where the next request goes: to the same target, or past it.
        if place == "first":
            before = len(bad.seen)
            assert weir.chat(f"m{number}", key=caller).status == 200, what
            again = len(bad.seen) > before
            if blame in (CONTEXT, CALLER):
                assert again, f"{what}: the caller's fault cools nobody"
            elif payer == "own" and blame == KEY:
                pass
            else:
                assert not again, f"{what}: it should be cooling down"
            before = len(bad.seen)
            assert weir.chat(f"m{number}", key=other).status == 200, what
            again = len(bad.seen) > before
            expected = blame in (CONTEXT, CALLER) or (blame == KEY and payer == "own")
            assert again == expected, f"{what}: for others it is {'cooling' if expected else 'in use'}"
    wait_no_streams(weir)


def test_answers_that_break_off_are_failures_in_a_row(world):
    """An answer that began is a success at its end: three that break off are not three times one failure after a success."""
    for name, priority in (("first", 1), ("second", 2)):
        world.provider(name, extra=f"priority = {priority}\n")
    world.table("retry", 'cooldown = "100ms"\ncooldown_after = { failures = 3, time = "60s" }')
    weir = world.model("m", "first", "second").start()
    first = world.providers["first"]
    for broken in (1, 2, 3):
        until(lambda: weir.metrics().sum("weir_provider_state", provider="first") != 0, 5, "the end of the cooldown")
        first.queue(stream([chat_events()[0], Reset()]))
        answer = weir.chat(stream=True)
        answer.read_to_break()
        assert answer.header("x-provider-used") == "first", broken
    # The short cooldown would be over by then.
    time.sleep(0.3)
    answer = weir.chat(stream=True)
    answer.read()
    assert answer.header("x-provider-used") == "second"
    metrics = weir.metrics()
    assert metrics.sum("weir_attempts_total", provider="first", outcome="broken_off") == 3
    assert metrics.sum("weir_attempts_total", provider="first") == 3, "an attempt is counted once"
    assert metrics.sum("weir_attempts_total", provider="second", outcome="ok") == 1


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
def test_a_target_nobody_listens_at(two, streams):
    two.first.stop()
    answer = two.weir.chat(stream=streams)
    assert answer.status == 200
    assert answer.header("x-provider-used") == "second"
    answer.read()
    metrics = two.weir.metrics()
    assert metrics.sum("weir_attempts_total", provider="first", outcome="target_failed") == 1
    assert metrics.sum("weir_attempts_total", provider="second", outcome="ok") == 1
    assert metrics.sum("weir_provider_state", provider="first") == 0
    assert metrics.sum("weir_provider_state", provider="second") == 2


def test_anthropic_falls_over_too(two):
    two.claude_first.queue(fails(529, anthropic_error("Overloaded", "overloaded_error")))
    answer = two.weir.post("/v1/messages", {"model": "c", "max_tokens": 5, "messages": []})
    assert (answer.status, answer.header("x-provider-used")) == (200, "claude-second")


def test_an_idle_connection_that_the_provider_closed_is_no_failure(one):
    """The request is sent again on a fresh connection; the target is not blamed."""
    for _ in range(5):
        assert one.weir.chat().status == 200
        one.openai.close_idle()
        time.sleep(0.02)
    assert one.weir.metrics().sum("weir_attempts_total", provider="openai", outcome="target_failed") == 0


def test_a_connection_that_closes_as_it_is_used_again_is_no_failure(alone):
    """The provider has read the request by then, and closes without a word: on a connection that was idle that is a crossing."""
    for streams in (False, True):
        assert alone.weir.chat(stream=streams).read()
        alone.openai.queue(Reply(raw=[]))
        before = len(alone.openai.seen)
        answer = alone.weir.chat(stream=streams)
        assert (answer.status, answer.header("x-weir-attempts")) == (200, "1") and answer.read()
        assert len(alone.openai.seen) == before + 2 and alone.openai.seen[-1].body == alone.openai.seen[-2].body
        assert alone.openai.seen[-1].headers == alone.openai.seen[-2].headers
        assert alone.weir.row_of(answer)["requests"] == 1
    assert alone.weir.metrics().sum("weir_attempts_total", provider="openai", outcome="target_failed") == 0


def test_the_same_beside_another_attempt(world):
    first = world.provider("first", extra="priority = 1\n")
    second = world.provider("second", extra="priority = 2\n")
    weir = world.model("m", "first", "second", extra="hedge = true\n").model("n", "second").start()
    for _ in range(10):
        weir.chat().read()
    assert weir.chat("n").read()
    first.queue(Reply(before=[Stall()]))
    second.queue(Reply(raw=[]))
    answer = weir.chat()
    assert (answer.status, answer.header("x-provider-used"), answer.header("x-weir-attempts")) == (200, "second", "2") and answer.read()
    assert len(second.seen) == 3
    assert weir.metrics().sum("weir_attempts_total", provider="second", outcome="target_failed") == 0


def test_cooldown_probe_and_recovery(world):
    """After a failure nothing for the cooldown, then one probe at a time, then everything again."""
    first = world.provider("first", extra="priority = 1\n")
    second = world.provider("second", extra="priority = 2\n")
    world.table("retry", 'cooldown = "1s"\ncooldown_after = { failures = 3, time = "3s" }')
    weir = world.model("m", "first", "second").start()
    first.queue(fails(500))
    assert weir.chat().header("x-provider-used") == "second"
    assert weir.chat().header("x-provider-used") == "second"
    assert weir.metrics().sum("weir_provider_state", provider="first") == 0
    assert len(first.seen) == 1
    time.sleep(1.1)
    # One probe: while it is on its way the others go to the second.
    gate = Gate()
    first.queue(Reply(before=[gate], headers=[("content-type", "application/json")], body=chat_answer()))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(weir.chat) for _ in range(8)]
        until(lambda: len(second.seen) >= 9, 5, "the seven that do not probe")
        assert len(first.seen) == 2
        gate.open()
        used = sorted(future.result().header("x-provider-used") for future in answers)
    assert used == ["first"] + ["second"] * 7
    assert weir.chat().header("x-provider-used") == "first"
    assert weir.metrics().sum("weir_provider_state", provider="first") == 2


def test_three_failures_in_a_row_cool_down_longer(world):
    first = world.provider("first", extra="priority = 1\n")
    world.provider("second", extra="priority = 2\n")
    world.table("retry", 'cooldown = "300ms"\ncooldown_after = { failures = 3, time = "30s" }')
    weir = world.model("m", "first", "second").start()
    first.always(fails(500))
    for count in (1, 2, 3):
        until(lambda: weir.chat().status == 200 and len(first.seen) == count, 3, f"failure {count}")
    first.always(whole(chat_answer()))
    time.sleep(0.7)
    assert weir.chat().header("x-provider-used") == "second", "the long cooldown has only begun"


def test_retry_after_is_kept_to(world):
    first = world.provider("first", extra="priority = 1\n")
    world.provider("second", extra="priority = 2\n")
    weir = world.model("m", "first", "second").start()
    first.queue(fails(429, openai_error("Slow down."), [("retry-after", "1")]))
    assert weir.chat().header("x-provider-used") == "second"
    assert weir.chat().header("x-provider-used") == "second"
    time.sleep(1.1)
    assert weir.chat().header("x-provider-used") == "first"


def test_when_all_are_cooling_the_first_that_is_due_is_tried(two):
    two.first.queue(fails(500))
    two.second.queue(fails(500))
    assert two.weir.chat().status == 502
    answer = two.weir.chat()
    assert answer.status == 200, "trying beats refusing"
    assert answer.header("x-provider-used") in ("first", "second")


def test_attempts_are_bounded(world):
    for number in range(5):
        world.provider(f"p{number}", extra=f"priority = {number}\n").always(fails(500))
    world.table("retry", "max_attempts = 3")
    weir = world.model("m", *(f"p{number}" for number in range(5))).start()
    answer = weir.chat()
    assert answer.status == 502
    assert "3" in answer.json["error"]["message"]
    assert [len(world.providers[f"p{number}"].seen) for number in range(5)] == [1, 1, 1, 0, 0]


def test_fallback_to_another_model(world):
    p = world.provider("p")
    world.model("big", "p/up-big", extra='fallback = ["little"]\n').model("little", "p/up-little")
    weir = world.start()
    p.queue(fails(500))
    answer = weir.chat("big")
    assert (answer.status, answer.header("x-model-used"), answer.header("x-was-fallback")) == (200, "up-little", "true")
    row = weir.row_of(answer)
    assert (row["asked_model"], row["model"], row["was_fallback"]) == ("big", "little", True)


def test_a_prompt_that_does_not_fit_goes_to_a_larger_window(world):
    p = world.provider("p")
    world.model("m", ("p/up-small", {"priority": 1}), extra='context_window = 1000\nfallback = ["wide"]\n')
    world.model("wide", "p/up-wide", extra="context_window = 100000\n")
    weir = world.start()
    p.queue(OUTCOMES["context length"][0])
    answer = weir.chat()
    assert (answer.status, answer.header("x-model-used")) == (200, "up-wide")
    assert weir.metrics().sum("weir_provider_state", provider="p") == 2
    # Known beforehand: the small one is not even asked.
    before = len(p.seen)
    answer = weir.chat(messages=[{"role": "user", "content": "several words " * 3000}])
    assert (answer.status, answer.header("x-model-used")) == (200, "up-wide"), answer.read()
    assert len(p.seen) == before + 1


def test_weights_are_kept(world):
    for name in ("a", "b", "c"):
        world.provider(name)
    weir = world.model("m", ("a", {"weight": 80}), ("b", {"weight": 20}), ("c", {"weight": 0})).start()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: weir.chat().read(), range(300)))
    counts = {name: len(world.providers[name].seen) for name in ("a", "b", "c")}
    # Binomial with n = 300, p = 0.8: six standard deviations are 42.
    assert 198 <= counts["a"] <= 282, counts
    assert counts["a"] + counts["b"] + counts["c"] == 300 and counts["c"] == 0, counts


def test_inferred_providers(world):
    world.openai = world.provider("openai")
    world.claude = world.provider("anthropic", kind="anthropic")
    world.router = world.provider("openrouter", kind="openrouter")
    world.ollama = world.provider("ollama", kind="ollama")
    world.groq = world.provider("groq", kind="groq")
    weir = world.model("m", "openai").start()
    for model, provider, upstream in [
        ("gpt-4o-mini", world.openai, "gpt-4o-mini"), ("o3-mini", world.openai, "o3-mini"), ("meta/llama-3", world.router, "meta/llama-3"),
        ("openrouter/meta/llama-3", world.router, "meta/llama-3"), ("groq/llama-3", world.groq, "llama-3"), ("llama3:8b", world.ollama, "llama3:8b"),
        ("ollama/llama3", world.ollama, "llama3"),
    ]:  # fmt: skip
        answer = weir.chat(model)
        assert answer.status == 200, (model, answer.read())
        assert provider.last.json["model"] == upstream, model
    answer = weir.post("/v1/messages", {"model": "claude-sonnet-4", "max_tokens": 5, "messages": []})
    assert answer.status == 200 and world.claude.last.json["model"] == "claude-sonnet-4"
    # What could not be configured as a name is not one that somebody else knows.
    for model in ("gpt-4o\nhttp\nevil.test", "gpt-4o\r\nx-api-key: 1", "meta/llama 3", "openrouter/\u00e9", 'gpt-4o"', "gpt-4o\0"):
        answer = weir.chat(model)
        assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found"), model
    # A key with a budget may not use what has no price.
    answer = weir.chat("gpt-4o-mini", key=weir.key(credits=100))
    assert (answer.status, answer.json["error"]["code"]) == (403, "model_unpriced")
    # Names from requests never become labels.
    assert {labels["model"] for name, labels, _ in weir.metrics().samples if name == "weir_requests_total"} <= {"m", "other", "none"}


def test_inference_of_providers_can_be_switched_off(world):
    world.provider("openai")
    world.table("routing", "infer = false")
    weir = world.model("m", "openai").start()
    assert weir.chat("gpt-4o-mini").status == 404


def test_levels(world):
    """The level chooses the model, sets the output cap, multiplies the charge and forbids or allows fallback."""
    p, q = world.provider("p"), world.provider("q")
    world.model("cheap", "p/up-cheap").model("dear", "q/up-dear")
    world.table("level.eco", 'models = ["cheap", "dear"]\ncost_multiplier = "0.1"\nmax_output = 50\nmax_cost_per_1m = "2"')
    world.table("level.precision", 'models = ["dear", "cheap"]\ncost_multiplier = "1.0"\nfallback = false')
    weir = world.start()
    for ask in (dict(model="weir/eco"), dict(model="auto", headers=[("X-Power-Level", "eco")])):
        answer = weir.chat(**ask, max_tokens=400)
        assert (answer.status, answer.header("x-model-used")) == (200, "up-cheap"), answer.read()
        sent = p.last.json
        assert 50 in (sent.get("max_tokens"), sent.get("max_completion_tokens")), sent
        row = weir.row_of(answer)
        # 11 in at $1, 7 out at $2 a million: $0.000025; a tenth of that is 0.0025 credits of $0.001.
        assert (row["level"], row["cost"], float(row["charge"])) == ("eco", "0.000025", 0.0025), row
    weir.chat("weir/eco")
    sent = p.last.json
    assert 50 in (sent.get("max_tokens"), sent.get("max_completion_tokens")), "without a cap of the client's own the level sets one"
    p.queue(fails(500))
    assert weir.chat("weir/eco").header("x-model-used") == "up-dear"
    q.queue(fails(500))
    before = len(p.seen)
    answer = weir.chat("weir/precision")
    assert answer.status == 502, "fallback = false: the first target alone, once"
    assert len(p.seen) == before and len([seen for seen in q.seen if seen.json["model"] == "up-dear"]) >= 1


def test_tasks_choose_a_levels_models(world):
    world.provider("p")
    world.model("general", "p/up-general").model("coder", "p/up-coder")
    world.table("level.eco", 'models = ["general"]\ntasks = { code = ["coder"] }')
    weir = world.start()
    assert weir.chat("weir/eco").header("x-model-used") == "up-general"
    assert weir.chat("weir/eco", headers=[("X-Task-Type", "code")]).header("x-model-used") == "up-coder"
    assert weir.chat("weir/eco", headers=[("X-Task-Type", "poetry")]).header("x-model-used") == "up-general"


def test_capabilities_choose_the_target(world):
    world.provider("p")
    world.model("plain", "p/up-plain", extra='can = ["stream"]\nfallback = ["able"]\n').model("able", "p/up-able", extra='can = ["stream", "tools", "vision", "json"]\n')
    weir = world.start()
    assert weir.chat("plain").header("x-model-used") == "up-plain"
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert weir.chat("plain", tools=tools).header("x-model-used") == "up-able"


def test_one_providers_concurrency_is_bounded(world):
    first = world.provider("first", extra="priority = 1\nmax_concurrent = 1\n")
    world.provider("second", extra="priority = 2\n")
    weir = world.model("m", "first", "second").start()
    gate = Gate()
    first.queue(stream([chat_events()[0], gate, *chat_events()[1:]]))
    running = weir.chat(stream=True)
    running.until(b"data")
    assert weir.chat().header("x-provider-used") == "second"
    gate.open()
    running.read()
    wait_no_streams(weir)
    assert weir.chat().header("x-provider-used") == "first"


def test_the_log_tells_every_attempt(two):
    two.first.queue(fails(503))
    answer = two.weir.chat()
    request_id = answer.header("x-request-id")

    def lines():
        found = [json.loads(line) for line in two.weir.logs().splitlines() if request_id in line]
        return found if len(found) >= 2 else None

    found = until(lines, 5, "the log lines")
    text = json.dumps(found)
    assert "first" in text and "second" in text and "target_failed" in text
    assert "What is a weir?" not in two.weir.logs(), "prompts stay out of the log"


def test_storm(world):
    """32 clients, half of the targets failing in turn, 2,000 requests: every one is answered, none twice, nothing is left behind."""
    targets = [world.provider(f"p{number}", timeouts='connect = "1s", first_event = "2s", between_events = "2s", total = "20s"') for number in range(4)]
    world.table("retry", 'max_attempts = 4\ncooldown = "200ms"\ncooldown_after = { failures = 3, time = "400ms" }')
    weir = world.model("m", *(f"p{number}" for number in range(4))).start()
    faults = [lambda: fails(500), lambda: Reply(raw=[Reset()]), lambda: whole(b""), lambda: fails(429, headers=[("retry-after-ms", "100")]), lambda: Reply(raw=[])]
    began = time.monotonic()
    chance = random.Random(7)

    def answer_of(number):
        def answer(request):
            # Two of the four fail at any time, one of them another every second and a half.
            phase = int((time.monotonic() - began) / 1.5)
            if (number + phase) % 4 < 2:
                return chance.choice(faults)()
            mark = request.json["messages"][0]["content"]
            if request.json.get("stream"):
                return stream(chat_events(words=[mark, " done"]))
            return whole(chat_answer(text=f"{mark} done"))

        return answer

    for number, provider in enumerate(targets):
        provider.always(answer_of(number))

    def client(worker):
        outcomes = []
        for number in range(63 if worker < 16 else 62):
            mark = f"mark-{worker}-{number}"
            streams = (worker + number) % 2 == 0
            answer = weir.chat(stream=streams, messages=[{"role": "user", "content": mark}])
            got = answer.read().decode()
            good = answer.status == 200 and got.count(mark) == 1 and ("[DONE]" in got) == streams
            outcomes.append((answer.status, good))
            answer.client.close()
        return outcomes

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        outcomes = [outcome for some in pool.map(client, range(32)) for outcome in some]
    assert len(outcomes) == 2000
    bad = [outcome for outcome in outcomes if not outcome[1]]
    assert not bad, f"{len(bad)} of 2000 were not answered: {bad[:10]}"
    wait_no_streams(weir)
    metrics = weir.metrics()
    assert metrics.sum("weir_requests_total", status="200") == 2000
    assert metrics.sum("weir_attempts_total", outcome="ok") == 2000

    def rows():
        return sum(line["rows"] for line in json.loads(weir.command("usage", "--by", "model", "--json").stdout)["lines"])

    until(lambda: rows() == 2000, 10, "2,000 rows")
