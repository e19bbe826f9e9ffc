"""Starts weir as a user would and gives the tests what they need around it."""

import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from client import Answer, Client  # noqa: E402
from provider import Provider, until  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
WEIR = pathlib.Path(os.environ.get("WEIR_BIN", TARGET / "debug" / "weir")).absolute()

# ------------------------------------------------------------------------------------------------------------------- ports

# Below the range the kernel takes for outgoing connections, a stretch for each worker, so that tests beside each other do not meet.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_next_port = 10_000 + (os.getpid() * 97) % 12_000 + _WORKER * 1_500


def free_port() -> int:
    """A port nobody listens on."""
    global _next_port
    while True:
        _next_port = 10_000 + (_next_port + 1 - 10_000) % 20_000
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", _next_port))
                return _next_port
            except OSError:
                continue


# -------------------------------------------------------------------------------------------------------------------- keys


def provider_key(kind: str = "openai") -> str:
    """A key of a provider's shape that exists nowhere else, so that finding any of it anywhere is a leak."""
    unique = secrets.token_hex(24)
    return {"openai": f"sk-proj-{unique}", "anthropic": f"sk-ant-api03-{unique}", "other": f"key-{unique}"}[kind]


def parts(secret: str, length: int = 8) -> set:
    """Every `length` characters in a row of a secret, beyond the first and last four that its owner is shown."""
    inner = secret[4:-4]
    # A prefix such as `sk-proj-` is public.
    for prefix in ("sk-ant-api03-", "sk-proj-", "wk_", "key-"):
        if secret.startswith(prefix):
            inner = secret[max(len(prefix), 4) : -4]
    return {inner[at : at + length] for at in range(len(inner) - length + 1)}


def leaked(secret: str, text) -> list:
    """The parts of a secret that stand in a text."""
    if isinstance(text, bytes):
        return [part for part in parts(secret) if part.encode() in text]
    return [part for part in parts(secret) if part in text]


# ------------------------------------------------------------------------------------------------------------------- weir


class Metrics:
    """A page of Prometheus text."""

    def __init__(self, text: str):
        self.text = text
        self.samples = []
        for line in text.splitlines():
            if line and not line.startswith("#"):
                match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
                assert match, f"not Prometheus text: {line}"
                labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
                self.samples.append((match[1], labels, float(match[3])))

    def sum(self, name: str, **labels) -> float:
        """The sum of a metric over all series that have these labels."""
        return sum(value for key, has, value in self.samples if key == name and labels.items() <= has.items())

    def has(self, name: str) -> bool:
        """Whether the metric is there."""
        return any(key == name for key, _, _ in self.samples)


class Weir:
    """A gateway with its folder, its log and its admin listener."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.program = WEIR
        self.port, self.admin_port = free_port(), free_port()
        self.admin_token = "admin-" + secrets.token_hex(16)
        self.master_key = __import__("base64").b64encode(secrets.token_bytes(32)).decode()
        self.secrets = [self.admin_token]  # whatever must not show up in a log
        self.process = None
        self.starts = 0
        self.environment = {"WEIR_ADMIN_TOKEN": self.admin_token, "WEIR_MASTER_KEY": self.master_key}
        self.settings = {
            "listen": f'proxy = ["127.0.0.1:{self.port}"]\nadmin = "127.0.0.1:{self.admin_port}"',
            "limits": 'drain = "10s"',
            "store": 'url = "sqlite:var/weir.db"',
            "vault": 'master_key = "env:WEIR_MASTER_KEY"',
            "admin": 'token = "env:WEIR_ADMIN_TOKEN"',
            "ledger": 'credit = "0.001"\nupgrade_url = "https://example.com/upgrade"',
        }
        self.may_fail = False  # a test that kills it or makes it exit otherwise says so

    # -- configuration

    def write(self, routing: str, prices: str = ""):
        """Writes the three files."""
        (self.folder / "var").mkdir(parents=True, exist_ok=True)
        text = "".join(f"[{table}]\n{lines}\n\n" for table, lines in self.settings.items())
        self.config.write_text(text)
        self.swap("prices.toml", prices)
        self.swap("routing.toml", routing)
        return self

    def swap(self, name: str, text: str):
        """Replaces a hot file in one step."""
        new = self.folder / (name + ".new")
        new.write_text(text)
        new.rename(self.folder / name)

    @property
    def config(self) -> pathlib.Path:
        """weir.toml"""
        return self.folder / "weir.toml"

    # -- the program

    def command(self, *words, stdin: str = "", check: bool = True, config: bool = True) -> subprocess.CompletedProcess:
        """Runs a command of the program."""
        words = [str(self.program), *words] + (["--config", str(self.config)] if config else [])
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=60, env=self._env(), cwd=self.folder)
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def _env(self):
        return {**{name: value for name, value in os.environ.items() if not name.startswith("WEIR_")}, "RUST_BACKTRACE": "1", **self.environment}

    def start(self, wait: bool = True):
        """Starts `weir serve`."""
        self.starts += 1
        self.log = open(self.folder / f"weir.{self.starts}.log", "wb")
        words = [str(self.program), "serve", "--config", str(self.config)]
        self.process = subprocess.Popen(words, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL, env=self._env(), cwd=self.folder)
        if wait:
            until(self._ready, 30, "/readyz")
        return self

    def _ready(self) -> bool:
        assert self.process.poll() is None, f"weir ended with {self.process.returncode}:\n{self.logs()}"
        try:
            Client(self.port, timeout=5).close()
            return self.admin("GET", "/readyz").status == 200
        except OSError:
            return False

    def signal(self, number):
        """Sends a signal."""
        self.process.send_signal(number)

    def stop(self, timeout: float = 20.0):
        """Ends it by SIGTERM and looks at what it leaves behind."""
        if self.process is not None:
            if self.process.poll() is None:
                self.signal(signal.SIGTERM)
            try:
                status = self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"weir did not end within {timeout} s of SIGTERM:\n{self.logs()[-3000:]}") from None
            self.process = None
            assert self.may_fail or status == 0, f"weir ended with {status}:\n{self.logs()[-3000:]}"
        logs = self.logs()
        assert "panicked" not in logs, logs[-6000:]
        for secret in self.secrets:
            assert not leaked(secret, logs), f"a key stands in the log: {leaked(secret, logs)[:3]}"

    def kill(self):
        """kill -9"""
        self.process.kill()
        self.process.wait()
        self.process = None

    def logs(self) -> str:
        """All it has logged."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("weir.*.log")))

    # -- around it

    def key(self, name: str = "test", **options) -> dict:
        """Makes a caller's key: `{"id", "key", "account"}`. Options as in `weir key create`."""
        words = ["key", "create", "--name", name, "--json"]
        for option, value in options.items():
            words += [f"--{option.replace('_', '-')}", str(value)]
        created = json.loads(self.command(*words).stdout)
        self.secrets.append(created["key"])
        if self.process is not None:
            until(lambda: self.get("/weir/v1/me", key=created["key"]).status == 200, 3, "the new key")
        return created

    def client(self, **options) -> Client:
        """A connection to the proxy listener."""
        return Client(self.port, **options)

    def ask(self, method: str, path: str, body=b"", key=None, headers=(), **options) -> Answer:
        """One request on a connection of its own; the answer's body is not read yet."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        headers = list(headers)
        if body and not any(name.lower() == "content-type" for name, _ in headers):
            headers.append(("Content-Type", "application/json"))
        if key is not None:
            headers.append(("Authorization", f"Bearer {key if isinstance(key, str) else key['key']}"))
        return Client(self.port).ask(method, path, body, headers, **options)

    def post(self, path: str, body, key=None, headers=(), **options) -> Answer:
        """POST to the proxy listener."""
        return self.ask("POST", path, body, key or self.default_key, headers, **options)

    def get(self, path: str, key=None, headers=()) -> Answer:
        """GET from the proxy listener."""
        return self.ask("GET", path, b"", key or self.default_key, headers)

    def chat(self, model="m", stream=False, key=None, headers=(), **more) -> Answer:
        """A chat completion."""
        document = {"model": model, "messages": [{"role": "user", "content": "What is a weir?"}], **({"stream": True} if stream else {}), **more}
        return self.post("/v1/chat/completions", document, key, headers)

    default_key = None

    def admin(self, method: str, path: str, body=b"", token=True) -> Answer:
        """A request to the admin listener."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        headers = [("Authorization", f"Bearer {self.admin_token}")] if token else []
        answer = Client(self.admin_port, timeout=10).ask(method, path, body, headers)
        answer.read()
        answer.client.close()
        return answer

    def metrics(self) -> Metrics:
        """The metrics page."""
        return Metrics(self.admin("GET", "/metrics").received.decode())

    def row(self, request_id: str, key=None, timeout: float = 5.0) -> dict:
        """The ledger row of a request, as its caller sees it."""

        def find():
            answer = self.get(f"/weir/v1/requests/{request_id}", key)
            return answer.json if answer.status == 200 else None

        return until(find, timeout, f"the row of {request_id}")

    def row_of(self, answer: Answer, key=None) -> dict:
        """The ledger row of an answer."""
        return self.row(answer.header("x-weir-request-id"), key)

    def credits(self, key=None) -> dict:
        """Where the caller's account stands."""
        return self.get("/weir/v1/credits", key).json

    def state(self) -> dict:
        """/readyz?verbose"""
        return self.admin("GET", "/readyz?verbose").json


# ------------------------------------------------------------------------------------------------------------------ world

PRICES = '[price."{name}"]\ninput = "1"\ncached_input = "0.5"\noutput = "2"\n\n'


class World:
    """A gateway and the providers behind it."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.weir = Weir(folder)
        self.providers: dict = {}
        self.keys: dict = {}
        self.tables: dict = {}
        self.priced: set = set()

    def provider(self, name: str, kind: str = "openai", extra: str = "", tls=None, base: str = None, timeouts: str = "", key=True, host="127.0.0.1") -> Provider:
        """Starts a provider and configures it."""
        provider = Provider(free_port(), tls).start()
        self.providers[name] = provider
        scheme = "https" if tls else "http"
        path = "/v1" if kind not in ("anthropic", "azure", "cloudflare") else ""
        base = base if base is not None else f"{scheme}://{'localhost' if tls else host}:{provider.port}{path}"
        lines = [f'kind = "{kind}"', f'base_url = "{base}"']
        if key:
            self.keys[name] = provider_key("anthropic" if kind == "anthropic" else "openai" if kind == "openai" else "other")
            self.weir.secrets.append(self.keys[name])
            variable = f"KEY_{name.upper().replace('-', '_')}"
            self.weir.environment[variable] = self.keys[name]
            lines.append(f'key = "env:{variable}"')
        lines.append("timeouts = { " + (timeouts or 'connect = "2s", first_event = "10s", between_events = "10s", total = "60s"') + " }")
        self.tables[f"provider.{name}"] = "\n".join(lines) + "\n" + extra
        return provider

    def model(self, name: str, *targets, extra: str = ""):
        """Configures a model. A target is `provider`, `provider/model` or that with options in a dict behind it."""
        rendered = []
        for target in targets:
            target, options = target if isinstance(target, tuple) else (target, {})
            provider, _, upstream = target.partition("/")
            upstream = upstream or "up-" + name
            rendered.append(f'{{ provider = "{provider}", model = "{upstream}"' + "".join(f", {key} = {json.dumps(value)}" for key, value in options.items()) + " }")
            if "price" not in options:
                self.priced.add(f"{provider}/{upstream}")
        self.tables[f'model."{name}"'] = f"targets = [{', '.join(rendered)}]\n" + extra
        return self

    def table(self, name: str, lines: str):
        """Configures any other table of routing.toml."""
        self.tables[name] = lines
        return self

    def routing(self) -> str:
        """routing.toml"""
        return "".join(f"[{name}]\n{lines}\n\n" for name, lines in self.tables.items())

    def prices(self) -> str:
        """prices.toml: a dollar for a million tokens in, two for a million out."""
        return "".join(PRICES.format(name=name) for name in sorted(self.priced))

    def start(self) -> Weir:
        """Writes the configuration and starts the gateway with a key without a budget."""
        self.weir.write(self.routing(), self.prices())
        self.weir.start()
        self.weir.default_key = self.weir.default_key or self.weir.key()
        return self.weir

    def stop(self):
        """Ends everything."""
        try:
            self.weir.stop()
        finally:
            if self.weir.process is not None:
                self.weir.kill()
            for provider in self.providers.values():
                provider.stop()


@pytest.fixture
def folder(tmp_path_factory):
    """A folder that goes when the test has passed."""
    path = tmp_path_factory.mktemp("weir")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def world(folder):
    """A gateway to be configured by the test: not started."""
    world = World(folder)
    yield world
    world.stop()


@pytest.fixture
def one(world):
    """The gateway most tests need, running: an OpenAI provider and an Anthropic one, a model of each."""
    world.openai = world.provider("openai")
    world.anthropic = world.provider("claude", kind="anthropic")
    world.model("m", "openai/up-model").model("c", "claude/up-claude")
    world.start()
    return world


@pytest.fixture
def alone(world):
    """A provider, and one thread: on two a client may have its answer before the other knows that the upstream's connection is free."""
    world.weir.settings["limits"] += "\nthreads = 1"
    world.openai = world.provider("openai")
    world.model("m", "openai/up-model").start()
    return world


@pytest.fixture
def two(world):
    """Two OpenAI providers, the first always tried first, and two Anthropic ones likewise. Cooldowns are short."""
    world.first = world.provider("first", extra="priority = 1\n")
    world.second = world.provider("second", extra="priority = 2\n")
    world.claude_first = world.provider("claude-first", kind="anthropic", extra="priority = 1\n")
    world.claude_second = world.provider("claude-second", kind="anthropic", extra="priority = 2\n")
    world.model("m", "first", "second").model("c", "claude-first", "claude-second")
    world.start()
    return world


def wait_no_streams(weir: Weir):
    """Waits until nothing is in flight any more."""
    until(lambda: weir.metrics().sum("weir_streams_active") == 0, 10, "the last stream to end")
    until(lambda: weir.metrics().sum("weir_body_bytes_in_flight") == 0, 10, "the last body to go")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A CA of our own and a certificate for localhost, by openssl: `(folder)` with ca.pem, cert.pem, key.pem, other.pem."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    for name in ("ca", "other-ca"):
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem",
                "-days", "30", "-subj", f"/CN=weir test {name}", "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    for name, alt in (("cert", "DNS:localhost,IP:127.0.0.1"), ("wrong-name", "DNS:elsewhere.example")):
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=localhost")
        (folder / "extensions").write_text(f"subjectAltName={alt}\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", f"{name}.pem", "-days", "30",
                "-extfile", "extensions")  # fmt: skip
    return folder


def elapsed(start: float) -> float:
    """Seconds since `start`."""
    return time.monotonic() - start
