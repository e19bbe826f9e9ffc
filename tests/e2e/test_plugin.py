"""The plugin socket, as a proxy with weir's engine in it uses it."""

import http.client
import json
import socket

import pytest
from conftest import leaked
from provider import openai_error, until, whole

CHAT = {"path": "/v1/chat/completions", "headers": {}, "model": "m", "stream": False, "max_output": 100, "choices": 1, "needs": 0, "text_bytes": 40,
        "token_ids": 0, "messages": 1, "images": 0, "prefix_hash": 1}  # fmt: skip
# No tier, so every row field can be compared.
EQUAL = ("account", "key_id", "asked_model", "model", "provider", "level", "tier", "byok", "attempts", "was_fallback", "status", "end", "input",
         "cached_input", "output", "requests", "usage_source", "price_id", "cost", "charge", "idempotency_key")  # fmt: skip


class Plugin:
    """One worker's connection."""

    def __init__(self, path):
        self.path = str(path)

    def call(self, method, path, document=None):
        connection = http.client.HTTPConnection("weir")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(10)
        connection.sock.connect(self.path)
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        connection.request(method, "/plugin/v1/" + path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, json.loads(text)

    def admit(self, key, **changes):
        return self.call("POST", "admit", {**CHAT, "key": key and key["key"], **changes})

    def settle(self, admitted, **changes):
        return self.call("POST", "settle", row(admitted, **changes))

    def open(self):
        return self.call("GET", "health")[1]["open"]


def row(admitted, **changes):
    """A row as lua-compat writes it: a whole answer of 11 tokens in, 7 out, at a dollar and two a million."""
    return {
        "request_id": admitted["request_id"], "admitted": True, "started_ms": 1763800000000, "account": admitted["account"], "key_id": admitted["key_id"],
        "asked_model": "m", "path": "/v1/chat/completions", "level": None, "tier": None, "model": "m", "provider": "openai", "upstream_model": "up-model",
        "byok": False, "attempts": 1, "was_fallback": False, "status": 200, "end": "complete", "first_event_ms": 5, "duration_ms": 9,
        "usage": {"input": 11, "output": 7, "requests": 1}, "usage_source": "upstream", "service_tier": None, "reported_cost": None,
        "price_id": "openai/up-model", "cost": "0.000025", "charge": "0.025", **changes,
    }  # fmt: skip


@pytest.fixture
def node(world):
    """A gateway with a plugin socket."""
    world.weir.settings["listen"] += '\nplugin = "unix:plugin.sock"'
    world.openai = world.provider("openai")
    world.model("m", "openai/up-model")
    world.table("tier.slow", 'rank = 1\nlevels = []\nlimits = { rpm = 1 }')
    world.table("tier.own", "rank = 2\nlevels = []\nbyok = true\nmarkup = \"1\"")
    world.start()
    world.plugin = Plugin(world.folder / "plugin.sock")
    return world


def test_a_settled_request_has_the_row_it_would_have_had_here(node):
    key = node.weir.key(credits="1000")
    status, admitted = node.plugin.admit(key)
    assert status == 200, admitted
    assert admitted["keys"] == [{"provider": "openai", "own": False, "key": node.keys["openai"]}]
    assert admitted["account"] == key["account"] and admitted["has_budget"] is True and admitted["covered_tokens"] == 100
    # 100 tokens out and about 14 in are set aside.
    assert float(node.weir.credits(key)["reserved"]) > 0.2
    assert node.plugin.settle(admitted) == (200, {"settled": True})
    theirs = node.weir.row(admitted["request_id"], key)
    ours = node.weir.row_of(node.weir.chat(key=key), key)
    assert {name: theirs[name] for name in EQUAL} == {name: ours[name] for name in EQUAL}
    credits = node.weir.credits(key)
    assert (credits["reserved"], credits["balance"]) == ("0", "999.95")
    assert node.plugin.open() == 0
    metrics = node.weir.metrics()
    assert metrics.sum("weir_requests_total", model="m", provider="openai", status="200") == 2
    assert metrics.sum("weir_tokens_total", model="m", provider="openai", kind="output") == 14
    assert metrics.sum("weir_first_event_seconds_count", model="m", provider="openai") >= 1


def test_a_row_counts_once_however_often_it_is_sent(node):
    key = node.weir.key(credits="1000")
    admitted = node.plugin.admit(key)[1]
    answers = [node.plugin.settle(admitted) for _ in range(3)]
    assert answers == [(200, {"settled": True}), (200, {"settled": False}), (200, {"settled": False})]
    assert node.weir.credits(key)["balance"] == "999.975"


def test_refusals_are_the_gateways_own(node):
    poor, slow = node.weir.key("poor", credits="0.001"), node.weir.key("slow", tier="slow")
    assert node.plugin.admit(slow)[0] == 200
    messages = {"path": "/v1/messages", "model": "m"}
    for key, changes, status in ((None, {}, 401), ({"key": "wk_" + "x" * 43}, {}, 401), (poor, {}, 402), (slow, {}, 429), (None, messages, 401)):
        got, told = node.plugin.admit(key, **changes)
        assert got == status, told
        path = changes.get("path", CHAT["path"])
        body = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "What is a weir?"}]}
        ours = node.weir.ask("POST", path, body, key)
        assert (ours.status, json.loads(ours.read())) == (status, json.loads(told["body"]))
        if status == 429:
            assert int(told["headers"]["retry-after"]) >= 1 and told["headers"]["x-ratelimit-limit-requests"] == "1"
    status, told = node.plugin.admit(node.weir.default_key, headers={"x-weir-byok": "require"})
    assert (status, json.loads(told["body"])["error"]["code"]) == (403, "byok_key_missing")
    assert node.plugin.admit(node.weir.default_key, model="nothing-like-it:")[0] == 404
    metrics = node.weir.metrics()
    for reason in ("unknown_key", "byok_missing", "unknown_model"):
        assert metrics.sum("weir_refusals_total", reason=reason) >= 1, reason
    # Who is known has a row of it: of the refusal through the plugin and of the gateway's own.
    def refused():
        lines = json.loads(node.weir.command("usage", "--by", "key", "--json").stdout)["lines"]
        return {line["name"]: line["refused"] for line in lines}

    until(lambda: [refused().get(key["id"]) for key in (poor, slow)] == [2, 2], 5, "the rows of four refusals")
    assert node.plugin.call("POST", "admit", b"{")[0] == 400
    assert node.plugin.call("POST", "settle", b"{}")[0] == 400
    assert node.plugin.call("GET", "nothing")[0] == 404


def test_an_own_key_is_handed_out_and_charged_as_one(node):
    key = node.weir.key(tier="own", credits="1000")
    own = "sk-proj-" + "ow" * 24
    node.weir.secrets.append(own)
    assert node.weir.ask("POST", "/weir/v1/keys", {"provider": "openai", "key": own}, key).status in (200, 201)
    status, admitted = node.plugin.admit(key)
    assert (status, admitted["keys"]) == (200, [{"provider": "openai", "own": True, "key": own}])
    node.plugin.settle(admitted, byok=True, tier="own", charge="0")
    theirs = node.weir.row(admitted["request_id"], key)
    ours = node.weir.row_of(node.weir.chat(key=key), key)
    assert {name: theirs[name] for name in EQUAL} == {name: ours[name] for name in EQUAL}
    assert (theirs["byok"], theirs["charge"]) == (True, "0")
    # The platform's key instead, when asked for.
    assert node.plugin.admit(key, headers={"x-weir-byok": "never"})[1]["keys"][0]["own"] is False


def test_an_own_key_with_a_base_url_of_its_own_is_served_here_only(node):
    node.weir.stop()
    node.weir.settings["vault"] += '\nbase_url_hosts = ["127.0.0.1"]'
    node.table("tier.own", "rank = 2\nlevels = []\nbyok = true\nown_base_url = true")
    node.start()
    key = node.weir.key(tier="own")
    own = {"provider": "openai", "key": "sk-proj-" + "ow" * 24, "base_url": f"http://127.0.0.1:{node.openai.port}/v1"}
    answer = node.weir.ask("POST", "/weir/v1/keys", own, key)
    assert answer.status in (200, 201), answer.read()
    status, told = node.plugin.admit(key)
    assert status == 403 and "weir's own listener" in json.loads(told["body"])["error"]["message"]
    assert node.plugin.open() == 0
    assert node.weir.chat(key=key).status == 200


def test_a_stream_is_extended_from_the_balance_as_far_as_it_goes(node):
    key = node.weir.key(credits="10")
    status, admitted = node.plugin.admit(key, stream=True, max_output=None)
    # Nobody says how long the answer may be: 4096 tokens are covered.
    assert (status, admitted["covered_tokens"]) == (200, 4096)
    reserved = float(node.weir.credits(key)["reserved"])
    progress = {"request_id": admitted["request_id"], "provider": "openai", "upstream_model": "up-model", "byok": False, "attempts": 1,
                "was_fallback": False, "output_tokens": 3100}  # fmt: skip
    status, told = node.plugin.call("POST", "extend", progress)
    # 10 credits are a cent: 5000 tokens at two dollars a million, less the prompt.
    assert status == 200 and 4900 < told["covered_tokens"] < 5000
    assert float(node.weir.credits(key)["reserved"]) > reserved
    assert float(node.weir.credits(key)["reserved"]) <= 10
    assert node.plugin.call("POST", "extend", {**progress, "output_tokens": 4900})[1] == told, "there is no more"
    node.plugin.settle(admitted, usage={"input": 11, "output": 4900, "requests": 1})
    assert node.weir.credits(key)["reserved"] == "0"
    assert node.plugin.call("POST", "extend", progress)[0] == 404
    # Nothing bounds an account without a budget.
    free = node.plugin.admit(node.weir.default_key, stream=True)[1]
    assert free["covered_tokens"] is None
    assert node.plugin.call("POST", "extend", {**progress, "request_id": free["request_id"]}) == (200, {"covered_tokens": None})


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_requests_that_run_while_the_node_restarts_are_counted_once(node, end):
    key = node.weir.key(credits="1000")
    before = [node.plugin.admit(key)[1] for _ in range(5)]
    node.plugin.settle(before[0])
    node.weir.may_fail = True
    getattr(node.weir, end)()
    node.weir.start()
    assert node.weir.credits(key)["reserved"] == "0"
    # The first was settled before, and its row comes again; one began while the node was away.
    away = {**row(before[0]), "request_id": "01M0000000000000000000000A", "admitted": False}
    rows = [row(one) for one in before] + [away]
    first = [node.plugin.call("POST", "settle", one) for one in rows]
    again = [node.plugin.call("POST", "settle", one) for one in rows]
    assert [answer["settled"] for _, answer in first] == [False, True, True, True, True, True]
    assert [answer["settled"] for _, answer in again] == [False] * 6
    assert node.weir.credits(key)["balance"] == "999.85"
    used = json.loads(node.weir.command("usage", "--by", "key", "--since", "2025-11-01", "--json").stdout)
    assert used["total"]["rows"] == 6
    for one in rows:
        found = node.weir.row(one["request_id"], key)
        assert (found["end"], found["input"], found["output"], found["charge"]) == ("complete", 11, 7, "0.025")
    node.weir.kill()
    node.weir.start()
    assert node.weir.credits(key)["balance"] == "999.85"


def test_a_request_that_fails_at_every_provider_has_a_row_without_usage(node):
    key = node.weir.key(credits="1000")
    admitted = node.plugin.admit(key)[1]
    node.plugin.settle(admitted, status=502, end="failed", usage={}, usage_source="counted", price_id=None, cost="0", charge="0", first_event_ms=None)
    node.openai.always(whole(openai_error(), 500))
    ours = node.weir.row_of(node.weir.chat(key=key), key)
    theirs = node.weir.row(admitted["request_id"], key)
    assert {name: theirs[name] for name in EQUAL} == {name: ours[name] for name in EQUAL}
    assert node.weir.credits(key)["balance"] == "1000"


def test_the_socket_is_its_owners_and_groups_and_no_key_is_logged(node):
    assert (node.folder / "plugin.sock").stat().st_mode & 0o777 == 0o660
    key = node.weir.key()
    admitted = node.plugin.admit(key)[1]
    node.plugin.settle(admitted)
    until(lambda: admitted["request_id"] in node.weir.logs(), 5, "the request's line in the log")
    assert not leaked(node.keys["openai"], node.weir.logs())
