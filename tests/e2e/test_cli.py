"""The commands, as a person and a script use them."""

import csv
import io
import json
import re
import signal
import subprocess
import time

import openai
import pytest
from conftest import ROOT, WEIR, free_port
from provider import until


def run(*words, **options):
    return subprocess.run([str(WEIR), *words], capture_output=True, text=True, timeout=60, **options)


# ---------------------------------------------------------------------------------------------------------------- usage


def test_help_and_wrong_usage():
    done = run("--help")
    assert done.returncode == 0
    for command in ("serve", "demo", "check", "route", "key", "vault", "usage", "import"):
        assert re.search(rf"^\s+{command}\b", done.stdout, re.MULTILINE), command
    assert run("--version").stdout.startswith("weir ")
    for words in ([], ["nothing"], ["serve", "--nothing"], ["route"], ["key"], ["key", "create"], ["usage", "--by", "moon"], ["vault"]):
        done = run(*words)
        assert done.returncode == 2, (words, done)
        assert done.stderr and not done.stdout, words


def test_errors_go_to_stderr_with_exit_code_1(folder):
    for words in (["serve"], ["check"], ["route", "--model", "m"], ["key", "list"], ["usage"]):
        done = run(*words, "--config", str(folder / "nowhere.toml"))
        assert done.returncode == 1, (words, done)
        assert "nowhere.toml" in done.stderr and not done.stdout


# ---------------------------------------------------------------------------------------------------------------- check


def test_check_of_a_good_configuration(one):
    done = one.weir.command("check")
    assert done.returncode == 0


def test_check_of_the_configuration_that_is_shipped():
    config = ROOT / "conf" / "weir.toml"
    done = run("check", "--config", str(config))
    assert done.returncode == 0, done.stdout + done.stderr


def test_check_prints_every_problem_with_its_place(world):
    world.weir.write(
        '[provider.p]\nkind = "opanai"\nkey = "sk-proj-literal0123456789"\n\n[model.m]\ntargets = [{ provider = "q" }]\nsurprise = 1\n\n[level.eco]\nmodels = ["nothing"]\n'
        'cost_multiplier = 0.1\n\n[tier.t]\nrank = "high"\nlevels = ["no-level"]\n\n[retry]\ncooldown = 60\n',
        '[price."p/m"]\ninput = 0.15\noutput = "free"\n',
    )
    done = world.weir.command("check", check=False)
    text = done.stdout + done.stderr
    assert done.returncode == 1
    for place, word in [
        ("routing.toml:2", "openai"), ("routing.toml:3", "env:"), ("routing.toml:6", "q"), ("routing.toml:7", "surprise"), ("routing.toml:10", "nothing"),
        ("routing.toml:11", "cost_multiplier"), ("routing.toml:14", "rank"), ("routing.toml:15", "no-level"), ("routing.toml:18", "cooldown"),
        ("prices.toml:2", "input"), ("prices.toml:3", "output"),
    ]:  # fmt: skip
        lines = [line for line in text.splitlines() if f"{place}:" in line]
        assert lines and any(word in line for line in lines), f"{place} {word}:\n{text}"
    assert "literal0123456789" not in text


def test_check_goes_on_after_weir_toml(world):
    """What is wrong there hides neither the other files' problems nor the files they name."""
    world.weir.settings["limits"] = 'max_body = "64"'
    world.weir.settings["listen"] += '\ntls = { cert = "no.pem", key = "no.key" }'
    world.weir.write('[provider.p]\nkind = "openai"\nca = "no-ca.pem"\n\n[model.m]\nsurprise = 1\n', '[price."p/m"]\ninput = 0.15\n')
    done = world.weir.command("check", check=False)
    assert done.returncode == 1 and not done.stdout
    for place in (r"weir\.toml:\d+: limits\.max_body", r"weir\.toml:\d+: listen\.tls\.cert", r"weir\.toml:\d+: listen\.tls\.key", r"routing\.toml:3: provider\.p\.ca",
                  r"routing\.toml:6: model\.m\.surprise", r'prices\.toml:2: price\."p/m"\.input'):  # fmt: skip
        assert re.search(place + ": ", done.stderr), f"{place}:\n{done.stderr}"


@pytest.mark.parametrize("table,lines,word", [
    ("listen", 'proxy = ["nowhere"]', "proxy"), ("limits", 'max_body = "64"', "max_body"), ("limits", 'max_body = "2MiB"\nmax_body_in_flight = "1MiB"', "max_body"), ("auth", 'mode = "none"', "mode"),
    ("auth", 'mode = "jwt"', "jwt"), ("store", 'url = "mysql://x"', "url"), ("admin", 'token = "letmein-letmein"', "token"), ("ledger", 'credit = "0"', "credit"),
    ("surprise", "a = 1", "surprise"), ("files", 'routing = "nowhere.toml"', "nowhere.toml"),
])  # fmt: skip
def test_check_of_weir_toml(world, table, lines, word):
    world.provider("p")
    world.model("m", "p")
    world.weir.settings[table] = lines
    world.weir.write(world.routing(), world.prices())
    done = world.weir.command("check", check=False)
    text = done.stdout + done.stderr
    assert done.returncode == 1 and word in text, text
    assert re.search(r"\.toml:\d+: ", text) or "nowhere.toml" in text, text
    assert "letmein" not in text


def test_serve_refuses_what_check_refuses(world):
    world.weir.write("[provider.p]\nkind = 1\n", "")
    world.weir.may_fail = True
    world.weir.start(wait=False)
    assert world.weir.process.wait(20) == 1
    assert "routing.toml:2" in world.weir.logs()


def test_a_missing_secret_is_told_at_start(world):
    world.provider("p")
    world.model("m", "p")
    del world.weir.environment["KEY_P"]
    world.weir.write(world.routing(), world.prices())
    checked = world.weir.command("check", check=False)
    assert "KEY_P" in checked.stdout + checked.stderr


def test_a_port_that_is_taken(one):
    done = subprocess.Popen([str(WEIR), "serve", "--config", str(one.weir.config)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=one.weir._env())
    try:
        out, _ = done.communicate(timeout=30)
    finally:
        done.kill()
    assert done.returncode == 1, out
    assert str(one.weir.port).encode() in out or b"in use" in out.lower() or b"lock" in out.lower(), out[-2000:]
    assert b"panicked" not in out, out[-3000:]
    assert one.weir.chat().status == 200


# ---------------------------------------------------------------------------------------------------------------- route


@pytest.fixture
def routed(world):
    for name, priority in (("a", 1), ("b", 2)):
        world.provider(name, extra=f"priority = {priority}\n")
    world.model("m", "a", "b", extra='fallback = ["other"]\ncan = ["stream"]\n').model("other", "b/up-other")
    world.model("dear", "a/up-dear", extra='min_tier = "high"\n')
    world.table("tier.low", 'rank = 1\nlevels = ["eco"]').table("tier.high", "rank = 2")
    world.table("level.eco", 'models = ["m"]\nmax_output = 100').table("level.precision", 'models = ["dear"]\nfallback = false')
    world.weir.write(world.routing(), world.prices())
    return world


def test_route_explains_the_plan(routed):
    plan = json.loads(routed.weir.command("route", "--model", "m", "--json").stdout)
    assert [(attempt["provider"], attempt["upstream_model"]) for attempt in plan["attempts"]] == [("a", "up-m"), ("b", "up-m"), ("b", "up-other")]
    assert [attempt["is_fallback"] for attempt in plan["attempts"]] == [False, False, True]
    assert plan["steps"] and plan["candidates"]
    text = routed.weir.command("route", "--model", "m").stdout
    assert "a" in text and "up-other" in text
    assert all(provider.seen == [] for provider in routed.providers.values()), "no call is made"


def test_route_tells_why_a_candidate_is_dropped(routed):
    plan = json.loads(routed.weir.command("route", "--model", "dear", "--tier", "low", "--json").stdout)
    assert plan["attempts"] == [] and "high" in json.dumps(plan)
    plan = json.loads(routed.weir.command("route", "--model", "auto", "--level", "eco", "--tier", "low", "--stream", "--json").stdout)
    assert plan["attempts"][0]["provider"] == "a" and plan["attempts"][0]["max_output"] == 100
    plan = json.loads(routed.weir.command("route", "--model", "weir/precision", "--tier", "high", "--json").stdout)
    assert len(plan["attempts"]) == 1
    plan = json.loads(routed.weir.command("route", "--model", "weir/precision", "--tier", "low", "--json").stdout)
    assert plan["attempts"] == [] and plan["refused"]
    plan = json.loads(routed.weir.command("route", "--model", "nothing-known", "--json").stdout)
    assert plan["attempts"] == []
    assert routed.weir.command("route", "--model", "m", "--tier", "gold", check=False).returncode == 1


def test_route_for_a_key(routed):
    created = json.loads(routed.weir.command("key", "create", "--name", "k", "--tier", "low", "--json").stdout)
    for key in (created["id"], created["key"]):
        plan = json.loads(routed.weir.command("route", "--model", "dear", "--key", key, "--json").stdout)
        assert plan["attempts"] == []


# ------------------------------------------------------------------------------------------------------------ keys, usage


def test_key_create_list_revoke(routed):
    weir = routed.weir
    shown = weir.command("key", "create", "--name", "for people", "--tier", "low", "--credits", "5", "--expires", "90d").stdout
    assert re.search(r"wk_[\w-]{43}", shown)
    secret = re.search(r"wk_[\w-]{43}", shown)[0]
    listed = weir.command("key", "list").stdout
    assert "for people" in listed and secret not in listed
    rows = json.loads(weir.command("key", "list", "--json").stdout)
    assert rows[0]["tier"] == "low" and rows[0]["state"] == "active"
    weir.command("key", "revoke", rows[0]["id"])
    assert json.loads(weir.command("key", "list", "--json").stdout)[0]["state"] == "revoked"
    for words in (["--tier", "gold"], ["--credits", "many"], ["--expires", "soon"]):
        assert weir.command("key", "create", "--name", "x", *words, check=False).returncode != 0
    assert secret.encode() not in b"".join(path.read_bytes() for path in (routed.folder / "var").rglob("*") if path.is_file())


def test_usage_formats(one):
    for _ in range(3):
        one.weir.row_of(one.weir.chat())
    for by in ("model", "provider", "key", "day"):
        assert json.loads(one.weir.command("usage", "--by", by, "--json").stdout)
        assert list(csv.DictReader(io.StringIO(one.weir.command("usage", "--by", by, "--csv").stdout)))
    text = one.weir.command("usage", "--since", "30d").stdout
    assert text and "\x1b" not in text, "no colour but on a terminal"


# ----------------------------------------------------------------------------------------------------------------- import


def test_import_litellm(folder):
    (folder / "litellm.yaml").write_text("""
model_list:
  - model_name: fast
    litellm_params:
      model: openai/gpt-4o-mini
      api_key: os.environ/OPENAI_API_KEY
      rpm: 100
  - model_name: fast
    litellm_params:
      model: anthropic/claude-3-5-haiku-latest
      api_key: os.environ/ANTHROPIC_API_KEY
router_settings:
  fallbacks: [{"fast": ["slow"]}]
litellm_settings:
  success_callback: ["langfuse"]
""")
    done = run("import", "litellm", str(folder / "litellm.yaml"), cwd=folder)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    written = "".join(path.read_text() for path in folder.glob("*.toml")) + done.stdout
    assert "gpt-4o-mini" in written and "claude-3-5-haiku-latest" in written and "env:OPENAI_API_KEY" in written
    assert "langfuse" in text or "success_callback" in text, "what cannot be carried over is listed"
    assert run("import", "litellm", str(folder / "none.yaml")).returncode == 1


# ------------------------------------------------------------------------------------------------------------------- demo


@pytest.fixture
def demo(folder):
    port, after = free_port(), free_port()
    while after != port + 1:
        port, after = after, free_port()
    out = open(folder / "out", "wb")
    process = subprocess.Popen([str(WEIR), "demo", "--port", str(port)], stdout=out, stderr=subprocess.STDOUT, cwd=folder)
    printed = lambda: (folder / "out").read_text(errors="replace")  # noqa: E731
    try:
        until(lambda: "curl" in printed() and "serving" in printed(), 30, "the demo")
        yield process, port, printed
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(20)


def test_demo_works_as_pasted(demo):
    """The curl line is run as it is printed; the text comes at a believable pace, not at once."""
    process, port, printed = demo
    line = next(line for line in printed().splitlines() if line.strip().startswith("curl"))
    began = time.monotonic()
    curl = subprocess.Popen(line.strip(), shell=True, stdout=subprocess.PIPE)
    first = curl.stdout.read(1)
    first_at = time.monotonic() - began
    rest = curl.stdout.read()
    took = time.monotonic() - began
    body = (first + rest).decode()
    assert body.startswith("data: {") and body.endswith("data: [DONE]\n\n")
    text = "".join(json.loads(one[6:])["choices"][0]["delta"].get("content") or "" for one in body.split("\n\n") if one.startswith("data: {") and '"choices":[{' in one)
    assert len(text.split()) > 20, text
    assert took > first_at + 0.3, "a stream, not a lump"
    key = re.search(r"wk_[\w-]{43}", printed())[0]
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key)
    model = json.loads(re.search(r"-d '(.*)'", line)[1])["model"]
    assert client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}]).choices[0].message.content
    assert model in {one.id for one in client.models.list()}
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port + 1}/metrics") as page:
        assert b"weir_requests_total" in page.read()


def test_demo_leaves_nothing_behind(demo, folder):
    import glob
    import tempfile

    process, _, printed = demo
    mine = glob.glob(f"{tempfile.gettempdir()}/weir-demo-{process.pid}-*")
    assert len(mine) == 1
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert not glob.glob(mine[0]), "its folder is gone"
    assert [path.name for path in folder.iterdir()] == ["out"]
    assert "panicked" not in printed()


def test_demo_on_a_port_that_is_taken(demo):
    _, port, _ = demo
    done = run("demo", "--port", str(port))
    assert done.returncode == 1 and str(port) in done.stderr
