"""Routing and prices change under traffic: checked together, swapped at once, or not at all."""

import concurrent.futures
import json
import pathlib
import signal
import threading
import time

import pytest
from conftest import wait_no_streams
from provider import Gate, chat_events, stream, until

WAYS = ["file", "sighup", "admin"]


def reload(weir, way):
    """Makes the gateway look at its files."""
    if way == "sighup":
        weir.signal(signal.SIGHUP)
    elif way == "admin":
        return weir.admin("POST", "/admin/v1/reload")
    return None


@pytest.mark.parametrize("way", WAYS)
def test_a_changed_routing_is_taken(one, way):
    generation = one.weir.state()["config"]
    one.model("new", "openai/up-new")
    one.weir.swap("prices.toml", one.prices())
    one.weir.swap("routing.toml", one.routing())
    answer = reload(one.weir, way)
    assert answer is None or answer.status == 200, answer.received
    until(lambda: one.weir.chat("new").status == 200, 3, "the new model")
    assert one.weir.metrics().sum("weir_config_reloads_total", result="ok") >= 1
    assert one.weir.state()["config"] != generation


@pytest.mark.parametrize("way", WAYS)
def test_a_set_that_does_not_check_changes_nothing(one, way):
    loaded = one.weir.metrics().sum("weir_config_loaded_timestamp_seconds")
    assert loaded > 1_700_000_000
    broken = one.routing().replace('provider = "openai"', 'provider = "opnai"', 1)
    line = 1 + broken[: broken.index('"opnai"')].count("\n")
    one.weir.swap("routing.toml", broken)
    answer = reload(one.weir, way)
    if answer is not None:
        assert 400 <= answer.status < 500
        assert str(line) in answer.received.decode() and "opnai" in answer.received.decode()
    until(lambda: one.weir.metrics().sum("weir_config_reloads_total", result="rejected") >= 1, 3, "the rejection")
    assert one.weir.chat().status == 200, "the old set serves on"
    assert one.weir.metrics().sum("weir_config_loaded_timestamp_seconds") == loaded
    for text in (json.dumps(one.weir.state()), one.weir.admin("GET", "/admin/v1/config").received.decode()):
        assert "rejected" in text and "opnai" in text and f'"line":{line},' in text.replace(" ", ""), text
    until(lambda: f"routing.toml:{line}" in one.weir.logs(), 3, "the log line")
    assert one.weir.admin("GET", "/readyz").status == 200, "it is ready all the same"
    # Mended, it is taken.
    one.weir.swap("routing.toml", one.routing())
    reload(one.weir, way)
    until(lambda: "rejected" not in json.dumps(one.weir.state()), 3, "the mended set")


def test_prices_and_routing_are_checked_together(one):
    """A target without a price is an error; both files changed at once are taken."""
    one.weir.swap("prices.toml", "")
    until(lambda: one.weir.metrics().sum("weir_config_reloads_total", result="rejected") >= 1, 3, "the rejection")
    assert one.weir.chat().header("x-cost-incurred") == "0.000025"
    one.weir.swap("prices.toml", one.prices().replace('output = "2"', 'output = "20"'))
    until(lambda: one.weir.chat().header("x-cost-incurred") == "0.000151", 3, "the new price")


@pytest.mark.parametrize("text", ["", "[[[", "[model.x", "\x00\x01", "[provider.p]\nkind = \"openai\"\nsurprise = 1\n", "x" * 100_000])
def test_garbage_is_rejected(one, text):
    one.weir.swap("routing.toml", text)
    answer = one.weir.admin("POST", "/admin/v1/reload")
    if text:
        assert 400 <= answer.status < 500
        assert one.weir.chat().status == 200


def test_a_request_keeps_the_snapshot_it_began_with(one):
    """The model is taken out while a stream of it runs: the stream ends well and is billed at the price it began with."""
    gate, steps = Gate(), chat_events()
    one.openai.queue(stream([*steps[:3], gate, *steps[3:]]))
    running = one.weir.chat(stream=True, stream_options={"include_usage": True})
    running.until(steps[2])
    routing = one.routing()
    del one.tables['model."m"']
    one.weir.swap("routing.toml", one.routing() + "[routing]\ninfer = false\n")
    until(lambda: one.weir.chat().status == 404, 3, "the reload")
    gate.open()
    assert running.read() == b"".join(steps)
    row = one.weir.row_of(running)
    assert (row["end"], row["cost"]) == ("complete", "0.000025")
    one.weir.swap("routing.toml", routing)
    until(lambda: one.weir.chat().status == 200, 3, "the way back")


def test_traffic_does_not_notice_a_hundred_reloads(one):
    stop = threading.Event()
    reloads = 0

    def keep_reloading():
        nonlocal reloads
        while not stop.is_set():
            one.weir.swap("routing.toml", one.routing() + f"# {reloads}\n")
            one.weir.admin("POST", "/admin/v1/reload")
            reloads += 1

    thread = threading.Thread(target=keep_reloading)
    thread.start()
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda number: one.weir.chat(stream=number % 2 == 0).read(), range(400)))
        until(lambda: reloads >= 100, 30, "a hundred reloads")
    finally:
        stop.set()
        thread.join()
    assert len(answers) == 400 and all(answer.endswith((b"data: [DONE]\n\n", b"}")) for answer in answers)
    assert one.weir.metrics().sum("weir_requests_total", status="200") == 400
    assert one.weir.metrics().sum("weir_config_reloads_total", result="rejected") == 0


def test_what_was_learned_survives_a_reload(two):
    from provider import fails

    two.first.queue(fails(500))
    assert two.weir.chat().header("x-provider-used") == "second"
    two.weir.swap("routing.toml", two.routing() + "# changed\n")
    assert two.weir.admin("POST", "/admin/v1/reload").status == 200
    assert two.weir.chat().header("x-provider-used") == "second", "the first still cools down"


def test_ten_thousand_models_load_under_traffic(one):
    """Contract: under a second (a release build; four for this one), and the swap is invisible."""
    routing, prices = [one.routing()], [one.prices()]
    for number in range(10_000):
        routing.append(f'[model."m{number}"]\ntargets = [{{ provider = "openai", model = "up-{number}" }}, {{ provider = "claude", model = "up-{number}" }}]\n')
        prices.append(f'[price."openai/up-{number}"]\ninput = "0.15"\noutput = "0.6"\n[price."claude/up-{number}"]\ninput = "3"\noutput = "15"\n')
    one.weir.swap("prices.toml", "".join(prices))
    one.weir.swap("routing.toml", "".join(routing))
    began = time.monotonic()
    answer = one.weir.admin("POST", "/admin/v1/reload")
    assert answer.status == 200, answer.received[:500]
    assert time.monotonic() - began < 10
    assert one.weir.chat("m9999").status == 200
    assert one.openai.last.json["model"] == "up-9999"
    assert len(one.weir.get("/v1/models").json["data"]) == 10_002


def test_a_snapshot_that_nobody_uses_is_freed(one):
    """Thirty reloads of 5,000 models leave less behind than a dozen of them take: kept, each takes 4.6 MB."""
    routing, prices = [one.routing()], [one.prices()]
    for number in range(5_000):
        routing.append(f'[model."m{number}"]\ntargets = [{{ provider = "openai", model = "up-{number}" }}]\n')
        prices.append(f'[price."openai/up-{number}"]\ninput = "0.15"\noutput = "0.6"\n')

    def reloaded(times):
        for _ in range(times):
            assert one.weir.admin("POST", "/admin/v1/reload").status == 200
        for line in pathlib.Path(f"/proc/{one.weir.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no RssAnon")

    one.weir.swap("prices.toml", "".join(prices))
    one.weir.swap("routing.toml", "".join(routing))
    before = reloaded(5)
    after = reloaded(30)
    assert one.weir.chat("m4999").status == 200
    assert after < before + 50, f"{before:.0f} MB, then {after:.0f} MB"


# ------------------------------------------------------------------------------------------------------------------- drain


def test_sigterm_lets_a_running_stream_end_and_refuses_new_requests(one):
    from client import Client

    kept = Client(one.weir.port)
    headers = [("Authorization", f"Bearer {one.weir.default_key['key']}"), ("Content-Type", "application/json")]
    kept.ask("POST", "/v1/chat/completions", b'{"model":"m","messages":[]}', headers).read()
    gate, steps = Gate(), chat_events()
    one.openai.queue(stream([*steps[:3], gate, *steps[3:]]))
    running = one.weir.chat(stream=True, stream_options={"include_usage": True})
    running.until(steps[2])
    one.weir.signal(signal.SIGTERM)
    until(lambda: "draining" in one.weir.logs(), 5, "the drain")
    # On a connection that was open, and on a new one while the listener still answers.
    refused = kept.ask("POST", "/v1/chat/completions", b'{"model":"m","messages":[]}', headers)
    assert refused.status == 503
    assert (refused.header("connection") or "").lower() == "close"
    assert refused.json["error"]["code"] == "draining"
    assert kept.is_closed_by_server()
    try:
        fresh = one.weir.chat()
        assert (fresh.status, (fresh.header("connection") or "").lower()) == (503, "close")
    except ConnectionRefusedError:
        pass
    assert one.weir.process.poll() is None, "it waits for the stream"
    gate.open()
    assert running.read() == b"".join(steps)
    assert one.weir.process.wait(10) == 0
    assert "stopped" in one.weir.logs()
    # The row was kept.
    request_id = running.header("x-request-id")
    one.weir.start()
    assert one.weir.row(request_id)["end"] == "complete"


def test_not_ready_while_draining(one):
    gate, steps = Gate(), chat_events()
    one.openai.queue(stream([*steps[:3], gate, *steps[3:]]))
    running = one.weir.chat(stream=True)
    running.until(b"weir")
    one.weir.signal(signal.SIGTERM)
    try:
        until(lambda: one.weir.admin("GET", "/readyz").status == 503, 5, "not ready")
        assert one.weir.admin("GET", "/livez").status == 200
    except ConnectionRefusedError:
        pytest.fail("the admin listener went before the last stream")
    finally:
        gate.open()
        running.read()


def test_the_grace_ends(world):
    """A stream that never ends is cut when the grace is over; its row is there."""
    world.weir.settings["limits"] = 'drain = "1s"'
    provider = world.provider("p")
    weir = world.model("m", "p").start()
    from provider import Stall

    provider.queue(stream([*chat_events()[:4], Stall()]))
    running = weir.chat(stream=True)
    running.until(b"weir")
    began = time.monotonic()
    weir.signal(signal.SIGTERM)
    got = running.read_to_break()
    assert b"[DONE]" not in got
    assert weir.process.wait(8) == 0
    assert time.monotonic() - began < 8
    weir.start()
    row = weir.row(running.header("x-request-id"))
    assert row["end"] in ("failed", "cancelled") and row["output"] > 0, row


def test_sigterm_when_idle_is_quick(one):
    began = time.monotonic()
    one.weir.stop()
    assert time.monotonic() - began < 5


def test_a_new_process_takes_the_sockets_over(one):
    """SIGQUIT and `serve --upgrade`: not one request is refused, and a running stream ends in the old process."""
    import subprocess

    from conftest import WEIR

    gate, steps = Gate(), chat_events()
    one.openai.queue(stream([*steps[:3], gate, *steps[3:]]))
    running = one.weir.chat(stream=True, stream_options={"include_usage": True})
    running.until(steps[2])
    log = open(one.folder / "weir.9.log", "wb")
    successor = subprocess.Popen([str(WEIR), "serve", "--upgrade", "--config", str(one.weir.config)], stdout=log, stderr=log, env=one.weir._env(), cwd=one.folder)
    try:
        time.sleep(0.5)
        old = one.weir.process
        old.send_signal(signal.SIGQUIT)
        end = time.monotonic() + 9
        count = 0
        while time.monotonic() < end:
            answer = one.weir.chat()
            assert answer.status == 200, answer.read()
            answer.client.close()
            count += 1
            time.sleep(0.02)
        assert count > 20
        gate.open()
        assert running.read() == b"".join(steps)
        running.client.close()
        assert old.wait(20) == 0
        assert one.weir.chat().status == 200, "the successor serves"
        assert one.weir.row_of(running)["end"] == "complete"
    finally:
        one.weir.process = successor


def test_health_pages(one):
    assert one.weir.admin("GET", "/livez", token=False).status == 200
    assert one.weir.admin("GET", "/readyz", token=False).status == 200
    state = one.weir.state()
    assert state["ready"] is True
    assert {provider["name"] for provider in state["providers"]} == {"openai", "claude"}
    assert one.weir.admin("GET", "/admin/v1/config", token=False).status == 401
    assert one.weir.admin("GET", "/nothing").status == 404
    document = one.weir.admin("GET", "/admin/v1/openapi.json").json
    assert document["openapi"].startswith("3.") and "/admin/v1/reload" in document["paths"]
    assert b"<html" in one.weir.admin("GET", "/").received.lower()


def test_metrics_are_there_and_correct(one):
    one.weir.chat().read()
    one.weir.chat(stream=True).read()
    wait_no_streams(one.weir)
    metrics = one.weir.metrics()
    for name in ("weir_requests_total", "weir_attempts_total", "weir_tokens_total", "weir_cost_usd_total", "weir_charge_credits_total", "weir_streams_active",
                 "weir_body_bytes_in_flight", "weir_provider_state", "weir_config_reloads_total", "weir_config_loaded_timestamp_seconds", "weir_ledger_pending",
                 "weir_export_pending", "weir_export_oldest_seconds", "weir_build_info"):  # fmt: skip
        assert metrics.has(name), name
    for name in ("weir_first_event_seconds", "weir_request_seconds", "weir_overhead_seconds", "weir_between_events_seconds"):
        assert metrics.has(name + "_bucket") and metrics.has(name + "_sum") and metrics.has(name + "_count"), name
        assert set(next(labels for key, labels, _ in metrics.samples if key == name + "_count")) == {"model", "provider"}, name
    assert metrics.sum("weir_requests_total", path="/v1/chat/completions", model="m", provider="openai", status="200") == 2
    assert metrics.sum("weir_first_event_seconds_count", model="m", provider="openai") == 2
    assert metrics.sum("weir_request_seconds_count", model="m", provider="openai") == 2
    assert metrics.sum("weir_tokens_total", model="m", provider="openai", kind="output", source="upstream") == 14
    assert metrics.sum("weir_provider_state", provider="openai") == 2
    assert "# HELP weir_requests_total" in metrics.text and "# TYPE weir_requests_total counter" in metrics.text
