"""Who calls, and whose key pays; and that no key is ever found where it does not belong."""

import base64
import json
import re
import secrets
import time

import pytest
from conftest import leaked, provider_key
from provider import chat_answer, fails, openai_error, stream, until, whole


@pytest.fixture
def byok(world):
    """Two providers; the tier `own` may bring keys, `plain` may not."""
    world.first = world.provider("first", extra="priority = 1\n")
    world.second = world.provider("second", extra="priority = 2\n")
    world.model("m", "first", "second")
    world.table("tier.plain", "rank = 1").table("tier.own", "rank = 2\nbyok = true")
    world.start()
    world.caller = world.weir.key("caller", tier="own", credits=100)
    return world


def give(world, provider, secret=None, caller=None, **more):
    """Stores an own key."""
    secret = secret or provider_key()
    world.weir.secrets.append(secret)
    answer = world.weir.post("/weir/v1/keys", {"provider": provider, "key": secret, **more}, caller or world.caller)
    return secret, answer


def test_a_key_is_revoked_within_a_second(one):
    key = one.weir.key()
    assert one.weir.chat(key=key).status == 200
    one.weir.command("key", "revoke", key["id"])
    began = time.monotonic()
    until(lambda: one.weir.chat(key=key).status == 401, 3, "the revocation")
    assert time.monotonic() - began < 1.5
    assert one.weir.command("key", "revoke", "key_nothing", check=False).returncode == 1


def test_a_new_key_works_within_a_second(one):
    created = json.loads(one.weir.command("key", "create", "--name", "new", "--json").stdout)
    until(lambda: one.weir.chat(key=created).status == 200, 1.5, "the new key")
    assert len(created["key"]) == 46 and created["key"].startswith("wk_")


def test_a_key_expires(one):
    key = one.weir.key(expires="2s")
    assert one.weir.chat(key=key).status == 200
    until(lambda: one.weir.chat(key=key).status == 401, 5, "the expiry")
    assert "expired" in one.weir.chat(key=key).json["error"]["message"]


def test_a_key_is_rotated_with_an_overlap(one):
    key = one.weir.key()
    new = json.loads(one.weir.command("key", "rotate", key["id"], "--overlap", "2s", "--json").stdout)
    one.weir.secrets.append(new["key"])
    until(lambda: one.weir.chat(key=new["key"]).status == 200, 2, "the new secret")
    assert one.weir.chat(key=key).status == 200, "the old one works a while longer"
    until(lambda: one.weir.chat(key=key).status == 401, 5, "the end of the overlap")
    assert one.weir.chat(key=new["key"]).status == 200


def test_the_last_use_is_noted(one):
    """Once a minute, and when the server ends."""
    key = one.weir.key("busy")
    one.weir.chat(key=key)
    one.weir.stop()
    listed = json.loads(one.weir.command("key", "list", "--json").stdout)
    assert next(line for line in listed if line["id"] == key["id"])["last_used_at"]


def test_byok_prefer(byok):
    """Own keys first: their targets before all others, whatever the priorities."""
    secret, answer = give(byok, "second")
    assert answer.status == 201, answer.read()
    answer = byok.weir.chat(key=byok.caller)
    assert (answer.header("x-provider-used"), answer.header("x-used-byok")) == ("second", "true")
    assert byok.second.last.header("authorization") == f"Bearer {secret}"
    row = byok.weir.row_of(answer, byok.caller)
    assert (row["byok"], row["charge"], row["cost"]) == (True, "0", "0.000025")
    assert byok.weir.credits(byok.caller)["balance"] in ("100", "100.0")
    metrics = byok.weir.metrics()
    assert metrics.sum("weir_cost_usd_total", provider="second") > 0
    assert {labels["payer"] for name, labels, value in metrics.samples if name == "weir_cost_usd_total" and value} != {"platform"}
    # Others' requests go on with the platform's key.
    answer = byok.weir.chat(key=byok.weir.key(tier="own"))
    assert (answer.header("x-provider-used"), answer.header("x-used-byok")) == ("first", "false")


def test_byok_prefer_falls_to_the_platforms_targets(byok):
    give(byok, "second")
    byok.second.queue(fails(500))
    answer = byok.weir.chat(key=byok.caller)
    assert (answer.status, answer.header("x-provider-used"), answer.header("x-used-byok")) == (200, "first", "false")


def test_byok_never(byok):
    give(byok, "first")
    answer = byok.weir.chat(key=byok.caller, headers=[("X-Weir-Byok", "never")])
    assert (answer.header("x-used-byok"), byok.first.last.header("authorization")) == ("false", f"Bearer {byok.keys['first']}")


def test_byok_require(byok):
    give(byok, "second")
    answer = byok.weir.chat(key=byok.caller, headers=[("X-Weir-Byok", "require")])
    assert (answer.status, answer.header("x-provider-used"), answer.header("x-used-byok")) == (200, "second", "true")
    byok.second.queue(fails(500))
    answer = byok.weir.chat(key=byok.caller, headers=[("X-Weir-Byok", "require")])
    assert answer.status == 502, "the platform's key is not used"
    assert byok.first.seen == []


@pytest.mark.parametrize("status,expected", [(401, 403), (403, 403), (402, 402)])
def test_an_own_key_that_the_provider_refuses(byok, status, expected):
    """The caller learns which key and what the provider said; others are not concerned; no key is in the answer."""
    secret, _ = give(byok, "first")
    byok.first.queue(fails(status, openai_error(f"Incorrect API key provided: {secret}.", "invalid_request_error", "invalid_api_key" if status == 401 else None)))
    answer = byok.weir.chat(key=byok.caller)
    assert answer.status == expected, answer.read()
    text = answer.read().decode()
    assert "first" in text and "key" in text and not leaked(secret, text)
    other = byok.weir.key(tier="own")
    assert byok.weir.chat(key=other).header("x-provider-used") == "first"
    # Replaced, it works at once.
    give(byok, "first")
    answer = byok.weir.chat(key=byok.caller)
    assert (answer.status, answer.header("x-used-byok")) == (200, "true")


def test_policy_may_let_the_platform_pay(world):
    world.provider("p", extra="byok_falls_to_platform = true\n")
    world.model("m", "p").table("tier.own", "rank = 2\nbyok = true")
    weir = world.start()
    world.caller = weir.key(tier="own")
    secret, _ = give(world, "p")
    world.providers["p"].queue(fails(401))
    answer = weir.chat(key=world.caller)
    assert (answer.status, answer.header("x-used-byok")) == (200, "false"), answer.read()
    assert [seen.header("authorization") for seen in world.providers["p"].seen] == [f"Bearer {secret}", f"Bearer {world.keys['p']}"]


def test_own_keys_are_listed_masked_and_removed(byok):
    secret, _ = give(byok, "first", name="mine")
    listed = byok.weir.get("/weir/v1/keys", byok.caller).read().decode()
    assert "mine" in listed and "first" in listed and not leaked(secret, listed)
    assert byok.weir.get("/weir/v1/keys", byok.weir.key(tier="own")).json["data"] == []
    answer = byok.weir.ask("DELETE", "/weir/v1/keys/first", key=byok.caller)
    assert answer.status in (200, 204)
    assert byok.weir.chat(key=byok.caller).header("x-used-byok") == "false"
    assert byok.weir.ask("DELETE", "/weir/v1/keys/first", key=byok.caller).status == 404


def test_own_keys_need_a_tier_that_has_them(byok):
    answer = give(byok, "first", caller=byok.weir.key(tier="plain"))[1]
    assert (answer.status, answer.json["error"]["code"]) == (403, "byok_not_allowed")


def test_own_keys_are_changed_within_a_keys_scopes(byok):
    """All keys of an account pay with its provider keys: one cut down to some paths reads, and changes nothing."""
    account = byok.caller["account"]
    give(byok, "first")
    narrow = byok.weir.key(account=account, tier="own", paths="/v1/embeddings")
    for method, path, body in [
        ("POST", "/weir/v1/keys", {"provider": "first", "key": provider_key()}),
        ("POST", "/weir/v1/keys/first/check", b""),
        ("DELETE", "/weir/v1/keys/first", b""),
    ]:
        answer = byok.weir.ask(method, path, body, narrow)
        assert (answer.status, answer.json["error"]["code"]) == (403, "path_not_allowed"), (method, path)
    for path in ("me", "models", "credits", "usage", "keys"):
        assert byok.weir.get(f"/weir/v1/{path}", narrow).status == 200, path
    assert byok.weir.get("/weir/v1/requests/nothing", narrow).status == 404
    assert [entry["provider"] for entry in byok.weir.get("/weir/v1/keys", narrow).json["data"]] == ["first"]
    # Without the rest, the path alone; with it, all of them.
    exact = byok.weir.key(account=account, tier="own", paths="/weir/v1/keys")
    assert give(byok, "second", caller=exact)[1].status == 201
    assert byok.weir.ask("DELETE", "/weir/v1/keys/second", key=exact).status == 403
    wide = byok.weir.key(account=account, tier="own", paths="/v1/embeddings,/weir/v1/keys*")
    assert byok.weir.ask("DELETE", "/weir/v1/keys/second", key=wide).status == 200
    # Scopes of other kinds leave these paths open.
    models = byok.weir.key(account=account, tier="own", models="m")
    assert byok.weir.ask("DELETE", "/weir/v1/keys/first", key=models).status == 200


def test_a_key_of_another_providers_shape_is_refused(byok):
    """Which provider's it looks like is named; the key is not."""
    secret = provider_key("anthropic")
    answer = give(byok, "first", secret)[1]
    assert 400 <= answer.status < 500
    text = answer.read().decode()
    assert "Anthropic" in text or "anthropic" in text
    assert not leaked(secret, text)


@pytest.mark.parametrize("body", [b"{", b"{}", b'{"provider":"first"}', b'{"provider":"nowhere","key":"sk-x"}', b'{"provider":"first","key":""}',
                                  b'{"provider":"first","key":"has space"}', b'{"provider":"first","key":"a","other":1}', b'{"provider":"first","key":1}'])  # fmt: skip
def test_own_keys_that_make_no_sense(byok, body):
    answer = byok.weir.post("/weir/v1/keys", body, byok.caller)
    assert 400 <= answer.status < 500, answer.read()
    assert answer.json["error"]["message"]


def test_own_keys_are_checked_with_the_provider(byok):
    secret, _ = give(byok, "first")
    for reply, verdict in [(whole(b'{"object":"list","data":[]}'), "valid"), (fails(401, openai_error("Incorrect API key", "x", "invalid_api_key")), "invalid")]:
        byok.first.queue(reply)
        answer = byok.weir.post("/weir/v1/keys/first/check", b"", byok.caller)
        text = answer.read().decode()
        assert answer.status == 200, text
        assert json.loads(text)["check"] == verdict, text
        assert not leaked(secret, text)
        assert byok.first.last.method == "GET" and byok.first.last.path.endswith("/models")
        assert byok.first.last.header("authorization") == f"Bearer {secret}"
    assert byok.weir.post("/weir/v1/keys/second/check", b"", byok.caller).status == 404


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "https://localhost/v1", "http://169.254.169.254/latest", "http://[::1]/v1", "http://10.0.0.1/v1",
                                 "http://0.0.0.0/v1", "http://192.168.1.1/v1", "http://[::ffff:127.0.0.1]/v1", "http://2130706433/v1", "ftp://example.com", "x"])  # fmt: skip
def test_a_users_base_url_leads_to_public_addresses_only(world, url):
    world.provider("p")
    world.model("m", "p").table("tier.own", "rank = 1\nbyok = true\nown_base_url = true")
    weir = world.start()
    world.caller = weir.key(tier="own")
    secret, answer = give(world, "p", base_url=url)
    if answer.status < 300:
        # Not refused when it is stored: then when it is used.
        assert weir.chat(key=world.caller, headers=[("X-Weir-Byok", "require")]).status >= 400
    else:
        assert 400 <= answer.status < 500
    assert world.providers["p"].seen == []


@pytest.fixture
def elsewhere(world):
    """A caller whose key at `p` leads to a server of its own, which is allowed though it is not public."""
    world.provider("p")
    other = world.provider("other")
    world.model("m", "p").table("tier.own", "rank = 1\nbyok = true\nown_base_url = true")
    world.weir.settings["vault"] += '\nbase_url_hosts = ["127.0.0.1"]'
    world.caller = world.start().key(tier="own")
    world.secret, answer = give(world, "p", base_url=f"http://127.0.0.1:{other.port}/v1")
    assert answer.status == 201, answer.read()
    return world


def test_a_users_base_url_may_name_a_host_that_is_allowed(elsewhere):
    """[vault] base_url_hosts: such a host need not be public; the user's key goes there and nowhere else."""
    answer = elsewhere.weir.chat(key=elsewhere.caller)
    assert (answer.status, answer.header("x-used-byok")) == (200, "true"), answer.read()
    assert elsewhere.providers["other"].last.header("authorization") == f"Bearer {elsewhere.secret}"
    assert elsewhere.providers["p"].seen == []


def test_a_users_base_url_goes_with_the_tiers_right_to_it(elsewhere):
    """Without it the key is not used at all: its own provider is not where its owner wanted it sent."""
    world, weir, other = elsewhere, elsewhere.weir, elsewhere.providers["other"]
    assert weir.chat(key=world.caller).header("x-used-byok") == "true"
    world.table("tier.own", "rank = 1\nbyok = true")
    weir.swap("routing.toml", world.routing())
    until(lambda: weir.chat(key=world.caller, headers=[("X-Weir-Byok", "require")]).status >= 400, 5, "the tier's change")
    asked = len(other.seen)
    assert weir.chat(key=world.caller, headers=[("X-Weir-Byok", "require")]).status >= 400
    assert (len(other.seen), world.providers["p"].seen) == (asked, [])


def test_a_users_base_url_needs_a_tier_that_has_it(byok):
    answer = give(byok, "first", base_url="https://example.com/v1")[1]
    assert (answer.status, answer.json["error"]["code"]) == (403, "base_url_not_allowed")


# ------------------------------------------------------------------------------------------------------------- the vault


def test_platform_keys_in_the_vault(world):
    provider = world.provider("p", key=False, extra='key = "vault:p"\n')
    weir = world.model("m", "p").weir
    weir.write(world.routing(), world.prices())
    secret = provider_key()
    weir.secrets.append(secret)
    done = weir.command("vault", "set", "p", stdin=secret + "\n")
    assert not leaked(secret, done.stdout + done.stderr)
    weir.start()
    weir.default_key = weir.key()
    assert weir.chat().status == 200
    assert provider.last.header("authorization") == f"Bearer {secret}"
    listed = weir.command("vault", "list")
    assert "p" in listed.stdout and not leaked(secret, listed.stdout)
    # Changed while serving: within a second.
    other = provider_key()
    weir.secrets.append(other)
    weir.command("vault", "set", "p", stdin=other)
    until(lambda: weir.chat().status == 200 and provider.last.header("authorization") == f"Bearer {other}", 2, "the new key")
    weir.command("vault", "remove", "p")
    until(lambda: weir.chat().status == 503, 2, "the removal")


def test_vault_init_makes_a_master_key(world):
    world.provider("p")
    world.model("m", "p").weir.write(world.routing(), world.prices())
    assert world.weir.command("vault", "init", check=False).returncode == 1, "there is one already"
    del world.weir.environment["WEIR_MASTER_KEY"]
    done = world.weir.command("vault", "init")
    made = re.search(r"[A-Za-z0-9+/]{43}=", done.stdout)
    assert made and "WEIR_MASTER_KEY" in done.stdout + done.stderr, done.stdout
    world.weir.environment["WEIR_MASTER_KEY"] = made[0]
    secret = provider_key()
    world.weir.command("vault", "set", "p", stdin=secret)
    assert "p" in world.weir.command("vault", "list").stdout


def test_vault_rotate_while_serving(world):
    provider = world.provider("p", key=False, extra='key = "vault:p"\n')
    weir = world.model("m", "p").weir
    weir.write(world.routing(), world.prices())
    secret = provider_key()
    weir.secrets.append(secret)
    weir.command("vault", "set", "p", stdin=secret)
    new = base64.b64encode(secrets.token_bytes(32)).decode()
    weir.environment["WEIR_OLD_KEY"], weir.environment["WEIR_MASTER_KEY"] = weir.environment["WEIR_MASTER_KEY"], new
    weir.settings["vault"] = 'master_key = "env:WEIR_MASTER_KEY"\nprevious_key = "env:WEIR_OLD_KEY"'
    weir.write(world.routing(), world.prices())
    weir.start()
    weir.default_key = weir.key()
    assert weir.chat().status == 200, "both master keys are there"
    weir.command("vault", "rotate")
    assert weir.chat().status == 200
    assert provider.last.header("authorization") == f"Bearer {secret}"
    # Without the old one it still opens.
    weir.stop()
    weir.settings["vault"] = 'master_key = "env:WEIR_MASTER_KEY"'
    weir.write(world.routing(), world.prices())
    weir.start()
    assert weir.chat().status == 200


# ------------------------------------------------------------------------------------------------------------- the canary


def test_no_key_is_found_anywhere(world):
    """Unique keys at every entry, used in every way that goes wrong; then every sink is searched for any 8 characters of them."""
    p = world.provider("p", extra="priority = 1\n")
    vaulted = world.provider("v", key=False, extra='key = "vault:v"\npriority = 2\n')
    claude = world.provider("c", kind="anthropic")
    world.model("m", "p", "v").model("c", "c")
    world.table("tier.own", "rank = 1\nbyok = true").table("routing", 'default_tier = "own"')
    weir = world.weir
    weir.environment["RUST_LOG"] = "trace"
    weir.write(world.routing(), world.prices())
    canaries = {"platform": world.keys["p"], "anthropic": world.keys["c"], "vault": provider_key(), "own": provider_key(), "query": "wk_" + secrets.token_hex(22)[:43],
                "unknown": "wk_" + secrets.token_hex(22)[:43], "body": provider_key(), "cookie": "sk-proj-" + secrets.token_hex(24),
                "admin": weir.admin_token, "master": weir.master_key}  # fmt: skip
    sinks = {}
    done = weir.command("vault", "set", "v", stdin=canaries["vault"])
    sinks["vault set"] = done.stdout + done.stderr
    weir.start()
    caller = weir.default_key = weir.key("canary", credits=1000)
    canaries["caller"] = caller["key"]
    answers = []

    def note(answer):
        answers.append(str(answer.headers) + answer.read_to_break().decode(errors="replace"))

    note(weir.post("/weir/v1/keys", {"provider": "v", "key": canaries["own"]}))
    note(weir.get("/weir/v1/keys"))
    note(weir.get("/weir/v1/me"))
    secret_error = lambda: openai_error(  # noqa: E731
        f"Incorrect API key provided: {canaries['platform']} or {canaries['own']} or {canaries['vault']}", "invalid_request_error", "invalid_api_key")
    for status in (400, 401, 402, 403, 404, 422, 429, 500, 503):
        p.queue(fails(status, secret_error(), headers=[("x-echo", "nothing")]))
        vaulted.queue(fails(status, secret_error()))
        note(weir.chat(headers=[("Cookie", canaries["cookie"])]))
        note(weir.chat(stream=True))
    claude.queue(fails(500, f'{{"type":"error","error":{{"type":"api_error","message":"{canaries["anthropic"]}"}}}}'.encode()))
    note(weir.post("/v1/messages", {"model": "c", "max_tokens": 1, "messages": []}))
    p.queue(whole(f'{{"error":{{"message":"{canaries["platform"]}"}}}}'.encode()))
    note(weir.chat())
    p.queue(stream([b'data: {"error":{"message":"' + canaries["platform"].encode() + b'"}}\n\n']))
    note(weir.chat(stream=True))
    note(weir.chat(key=canaries["unknown"]))
    note(weir.ask("GET", f"/v1/models?api_key={canaries['query']}"))
    note(weir.ask("GET", f"/v1/models?key={caller['key']}"))
    note(weir.post("/v1/chat/completions", {"model": canaries["body"], "messages": []}))
    note(weir.post("/v1/chat/completions", f'{{"model": "m", "x": {canaries["body"]}}}'.encode()))
    note(weir.chat(messages=[{"role": "user", "content": canaries["body"]}]))
    note(weir.post("/weir/v1/keys", {"provider": "c", "key": provider_key("other") + canaries["body"]}))
    note(weir.post("/weir/v1/keys", f'{{"provider":"v","key":"{canaries["body"]}"'.encode()))
    note(weir.post("/weir/v1/keys/v/check", b""))
    for path in ("/metrics", "/readyz?verbose", "/admin/v1/config", "/admin/v1/providers", "/admin/v1/keys", "/admin/v1/vault", "/admin/v1/audit", "/admin/v1/usage",
                 "/admin/v1/openapi.json", "/"):  # fmt: skip
        sinks[f"admin {path}"] = weir.admin("GET", path).received.decode()
    # A reload that is rejected must not quote what stands where a reference belongs.
    weir.swap("routing.toml", world.routing() + f'\n[provider.x]\nkind = "openai"\nkey = "{canaries["body"]}"\n')
    sinks["reload"] = weir.admin("POST", "/admin/v1/reload").received.decode()
    checked = weir.command("check", check=False)
    sinks["check"] = checked.stdout + checked.stderr
    for words in (["key", "list"], ["key", "list", "--json"], ["vault", "list"], ["usage", "--json"]):
        done = weir.command(*words, check=False)
        sinks[" ".join(words)] = done.stdout + done.stderr
    weir.swap("routing.toml", world.routing())
    weir.stop()
    sinks["log"] = weir.logs()
    sinks["answers"] = "\n".join(answers)
    for path in sorted((world.folder / "var").rglob("*")):
        if path.is_file():
            sinks[f"store {path.name}"] = path.read_bytes().decode("latin-1")
    assert any(name.startswith("store weir.db") for name in sinks)
    found = []
    for sink, text in sinks.items():
        for name, secret in canaries.items():
            if name == "body" and sink == "answers":
                # A model's name is given back to who sent it.
                continue
            parts = leaked(secret, text)
            if parts:
                at = text.find(parts[0])
                found.append(f"{name} in {sink}: …{text[max(0, at - 80) : at + 20]!r}")
    assert not found, "\n".join(found)


def test_the_memory_of_secrets_stays_out_of_core_dumps(one):
    """The process does not dump core, so no page of it is written to a disk by a crash."""
    limits = open(f"/proc/{one.weir.process.pid}/limits").read()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4] == "0", core


def test_open_mode_needs_no_key_and_binds_to_loopback_only(world):
    world.weir.settings["auth"] = 'mode = "open"'
    provider = world.provider("p")
    world.model("m", "p")
    weir = world.weir
    weir.write(world.routing(), world.prices())
    weir.start()
    answer = weir.ask("POST", "/v1/chat/completions", {"model": "m", "messages": []})
    assert (answer.status, answer.read()) == (200, chat_answer(model="up-m"))
    assert provider.last.header("authorization") == f"Bearer {world.keys['p']}"
    weir.stop()
    weir.settings["listen"] = weir.settings["listen"].replace('["127.0.0.1', '["0.0.0.0')
    weir.write(world.routing(), world.prices())
    checked = weir.command("check", check=False)
    assert checked.returncode == 1 and "loopback" in checked.stderr + checked.stdout


# --------------------------------------------------------------------------------------------------------------------- JWT


def jwt(claims: dict, secret: str, algorithm="HS256") -> str:
    import hashlib
    import hmac

    def part(data):
        return base64.urlsafe_b64encode(data if isinstance(data, bytes) else json.dumps(data).encode()).rstrip(b"=").decode()

    head = f"{part({'alg': algorithm, 'typ': 'JWT'})}.{part(claims)}"
    signature = b"" if algorithm == "none" else hmac.new(secret.encode(), head.encode(), hashlib.sha256).digest()
    return f"{head}.{part(signature)}"


def test_jwt_by_a_shared_secret(world):
    secret = secrets.token_hex(32)
    world.weir.secrets.append(secret)
    world.weir.environment["JWT_SECRET"] = secret
    world.weir.settings["auth"] = 'mode = "keys+jwt"'
    world.weir.settings["auth.jwt"] = 'issuer = "https://login.example.com"\naudience = "weir"\nsecret = "env:JWT_SECRET"\nclaims = { user = "sub", tier = "subscription_tier" }'
    world.provider("p")
    world.model("m", "p").table("tier.pro", "rank = 1")
    weir = world.start()
    now = int(time.time())
    good = {"iss": "https://login.example.com", "aud": "weir", "sub": "user-7", "exp": now + 300, "iat": now, "subscription_tier": "pro"}
    answer = weir.chat(key=jwt(good, secret))
    assert answer.status == 200, answer.read()
    row = weir.row(answer.header("x-request-id"), jwt(good, secret))
    assert (row["account"], row["tier"]) == ("user-7", "pro")
    for change in ({"iss": "https://evil.example"}, {"aud": "other"}, {"exp": now - 3600}, {"nbf": now + 3600}, {"sub": None}, {"exp": None}):
        claims = {name: value for name, value in {**good, **change}.items() if value is not None}
        answer = weir.chat(key=jwt(claims, secret))
        assert answer.status == 401, (change, answer.read())
    for token in (jwt(good, "another"), jwt(good, secret, "none"), jwt(good, secret)[:-3] + "AAA", "a.b.c", jwt(good, secret) + "."):
        assert weir.chat(key=token).status == 401
    assert weir.chat().status == 200, "keys are taken too"
