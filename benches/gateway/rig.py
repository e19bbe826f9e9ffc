"""What every measurement of this folder shares: how each gateway is set up and started, and how load is put on it.

The gateway has core 0, the mock provider and the load generator share core 1.
"""

import base64
import dataclasses
import fcntl
import json
import os
import pathlib
import re
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).absolute()
# Results and profiles: nothing is written beside the sources.
RESULTS = TARGET / "gateway-bench"
MOCK = "127.0.0.1:9700"
PATH = "/v1/chat/completions"
# As many streams as a gateway can have open with 20,000 descriptors, the hard limit of many containers: two each, and a rest.
STREAMS_MAX = 9_800
PORTS = {"bare": 9701, "nginx": 9703, "haproxy": 9704, "litellm": 9705, "portkey": 9706}
# Installed by `peers`.
PEERS = ("litellm", "portkey", "tensorzero")
# Weirs have two ports each from here on.
WEIR_PORT = 9720

# scenario: what the load generator is told. {secs} is the time of one measurement.
SCENARIOS = {
    "1k": "--conns 16 --body-kb 1 --secs {secs}",
    "20k": "--conns 16 --body-kb 20 --secs {secs}",
    "500k": "--conns 4 --body-kb 500 --secs {secs}",
    "burst": "--conns 8 --stream --usage --secs {secs}",
    "paced": "--conns 100 --stream --usage --pause-ms 10 --secs {secs} --warmup 2",
    "rate": "--rate 100 --body-kb 1 --secs {secs}",
    "ttft": "--rate 8 --stream --usage --pause-ms 10 --secs {secs}",
    "memory": "--conns 1000 --stream --usage --events 10 --pause-ms 500 --once --warmup 0 --secs 60",
    "memory10k": "--conns 9800 --stream --usage --events 20 --pause-ms 1000 --once --warmup 0 --secs 60",
}

NGINX = """worker_processes 1;
daemon off;
pid {dir}/nginx.pid;
error_log {dir}/nginx.err warn;
events {{ worker_connections 19800; }}
http {{
  access_log off;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  client_max_body_size 16m;
  client_body_buffer_size 1m;
  keepalive_requests 100000000;
  upstream provider {{ server {mock}; keepalive 10000; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=10000;
    location / {{ proxy_pass http://provider; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 600s; }}
  }}
}}
"""

HAPROXY = """global
  maxconn 9900
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  option http-no-delay
  http-reuse always
frontend callers
  bind 127.0.0.1:{port} backlog 10000
  default_backend provider
backend provider
  server mock {mock} maxconn 9900 pool-max-conn -1
"""

# One worker, nothing logged, nothing retried.
LITELLM = """model_list:
  - model_name: gpt-4o-mini
    litellm_params: {{ model: openai/gpt-4o-mini, api_base: "http://{mock}/v1", api_key: sk-mock }}
litellm_settings: {{ num_retries: 0, telemetry: false }}
router_settings: {{ disable_cooldowns: true }}
general_settings: {{ master_key: sk-bench }}
"""
LITELLM_ENVIRONMENT = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}

# Portkey has no option to listen on one address only.
PORTKEY = """const { Server } = require("net");
const { listen } = Server.prototype;
Server.prototype.listen = function (first, ...rest) {
  if (typeof first === "object") return listen.call(this, { ...first, host: "127.0.0.1" }, ...rest);
  return listen.call(this, { port: first, host: "127.0.0.1" }, rest.find((one) => typeof one === "function"));
};
"""

TENSORZERO = """[gateway]
observability.enabled = false
[models."gpt-4o-mini"]
routing = ["mock"]
[models."gpt-4o-mini".providers.mock]
type = "openai"
model_name = "gpt-4o-mini"
api_base = "http://{mock}/v1/"
api_key_location = "none"
"""

# The wheel's gateway chooses its port, and says it.
TENSORZERO_START = """import signal
from tensorzero import tensorzero
gateway = tensorzero._start_http_gateway(config_file="tensorzero.toml", clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False)
print("base_url", gateway.base_url, flush=True)
signal.pause()
"""
TENSORZERO_MODEL = "tensorzero::model_name::gpt-4o-mini"

WEIR = """[listen]
proxy = ["127.0.0.1:{port}"]
admin = "127.0.0.1:{admin}"
[limits]
max_body = "64MiB"
[store]
url = "sqlite:weir.db"
[auth]
mode = "keys"
[ledger]
credit = "0.001"
[vault]
master_key = "file:master-key"
previous_key = "file:previous-master-key"
[files]
routing = "routing.toml"
prices = "prices.toml"
"""

PROVIDERS = """[provider.mock]
kind = "openai-compatible"
base_url = "http://{mock}/v1"
key = "{key}"
[provider.spare]
kind = "openai-compatible"
base_url = "http://{spare}/v1"
key = "{key}"
priority = 90
"""

MODEL = """[model."{name}"]
targets = [ {{ provider = "mock", model = "{name}" }}, {{ provider = "spare", model = "{name}" }} ]
context_window = 400000
max_output = 16384
"""

TIER = """[level.eco]
models = [{models}]
cost_multiplier = "0.1"
[tier.professional]
rank = 2
markup = "0.6"
levels = ["eco"]
limits = {{ rpm = 1000000000, tpm = 1000000000000, concurrent = 30000 }}
monthly_cap = "100000000.00"
"""

PRICES = """[price."mock/{name}"]
input = "0.15"
cached_input = "0.075"
output = "0.60"
[price."spare/{name}"]
input = "0.15"
output = "0.60"
"""

PROVIDER_KEY = "sk-benchprovider0123456789abcdef0123456789"


@dataclasses.dataclass
class Weir:
    """A weir to measure: a folder, ports, and what its configuration holds."""

    dir: pathlib.Path
    port: int
    # None: the one model of the other gateways; else so many, named as the load generator names them.
    models: int | None = None
    # The provider's key is in the vault instead of in a file.
    vault: bool = False
    # Where the second target is; port 9 is `discard`, where nobody listens.
    spare: str = "127.0.0.1:9"

    def names(self):
        return ["gpt-4o-mini"] if self.models is None else [f"bench-{number:05}" for number in range(self.models)]

    def prepare_routing(self, number=0):
        """Writes the hot files beside those in use. Odd and even numbers differ in every model and price, so that a reload has something to do."""
        names = self.names()
        key = "vault:mock" if self.vault else "file:provider-key"
        quoted = ", ".join(f'"{name}"' for name in names)
        routing = PROVIDERS.format(mock=MOCK, spare=self.spare, key=key) + "".join(MODEL.format(name=name) for name in names) + TIER.format(models=quoted)
        prices = "".join(PRICES.format(name=name) for name in names)
        for name, text in (("routing.toml", routing.replace("400000", str(400_000 + number % 2))), ("prices.toml", prices.replace("0.15", f"0.1{5 + number % 2}"))):
            (self.dir / f"{name}.new").write_text(text)

    def put_routing(self):
        """Puts what was prepared in place: each file in one step, for a server that watches it."""
        for name in ("routing.toml", "prices.toml"):
            os.replace(self.dir / f"{name}.new", self.dir / name)

    def write_routing(self, number=0):
        self.prepare_routing(number)
        self.put_routing()

    def write(self):
        self.dir.mkdir(exist_ok=True)
        text = WEIR.format(port=self.port, admin=self.port + 1)
        (self.dir / "weir.toml").write_text(text if self.vault else re.sub(r"\[vault\]\n.*\n.*\n", "", text))
        self.secret("provider-key", PROVIDER_KEY)
        self.secret("master-key", base64.b64encode(secrets.token_bytes(32)).decode())
        self.secret("previous-master-key", (self.dir / "master-key").read_text())
        self.write_routing()

    def secret(self, name, text):
        path = self.dir / f"{name}.new"
        path.touch(mode=0o600)
        path.write_text(text)
        os.replace(path, self.dir / name)


def post(url, headers, model="gpt-4o-mini"):
    body = json.dumps({"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read()


def tree(pid):
    """The process and its descendants."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = pathlib.Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry))
    pids = [pid]
    for parent in pids:
        pids += children.get(parent, [])
    return pids


def rss_mb(pid):
    """Resident memory of the process and its descendants; shared pages count for each."""
    pages = 0
    for one in tree(pid):
        try:
            pages += int(pathlib.Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()[21])
        except OSError:
            pass
    return round(pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), 2)


def own_mb(pid):
    """What of a process's resident memory is its own and no file's: its heap and its stacks. Pages of its program come and go as the kernel needs room."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return round(int(line.split()[1]) / 1024, 2)
    return 0.0


def said(*command):
    """The first line a program says, or nothing if it is not installed."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        return (done.stdout + done.stderr).strip().split("\n")[0]
    except OSError:
        return None


def arguments(parser):
    """The options every measurement has."""
    parser.add_argument("--weir", default=str(TARGET / "release" / "weir"), help="the program to measure")
    parser.add_argument("--bin", help="folder of mock, load and bare (else they are built into the target folder)")
    parser.add_argument("--realtime", action="store_true", help="run all of it with SCHED_RR (root), ahead of other work on the machine")
    parser.add_argument("--keep", action="store_true", help="keep the folder with configuration, store and logs")


def prepare(options, systems):
    """Builds what is missing, after which `Rig` can start."""
    # Told to stop, it still stops what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.weir = os.path.abspath(options.weir)
    if not options.bin:
        features = [] if "bare" in systems else ["--no-default-features"]
        # As anyone would build them: weir's own profile is not theirs.
        plain = {**os.environ, "WEIR_PROFILE": "off"}
        subprocess.run(["cargo", "build", "--release", "--quiet", *features, "--manifest-path", str(HERE / "Cargo.toml")], check=True, env=plain)
    if "weir" in systems and not os.path.exists(options.weir):
        sys.exit(f"{options.weir} is not there: cargo build --release, or --weir PATH")
    RESULTS.mkdir(parents=True, exist_ok=True)
    # Two measurements at once would measure each other, and share ports.
    options.lock = open(pathlib.Path(tempfile.gettempdir()) / "gateway-bench.lock", "w")
    try:
        fcntl.flock(options.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("waiting for another measurement to end", file=sys.stderr, flush=True)
        fcntl.flock(options.lock, fcntl.LOCK_EX)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Rig:
    """The mock provider and any number of gateways, each started when it is first asked for. Used in a `with`."""

    def __init__(self, options):
        self.options = options
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="gateway-bench-"))
        self.bin = pathlib.Path(options.bin or os.environ.get("CARGO_TARGET_DIR", HERE / "target")).absolute() / ("release" if not options.bin else "")
        self.prefix = ["chrt", "-r", "1"] if options.realtime else []
        self.running = {}
        self.headers = {}
        # What a gateway calls the model, where not gpt-4o-mini.
        self.models = {}
        self.weirs = {}
        self.mock = None

    def __enter__(self):
        self.mock = self.launch("mock", 1, [self.bin / "mock", MOCK])
        time.sleep(0.3)
        return self

    def __exit__(self, *_):
        for system in list(self.running):
            self.stop(system)
        self.end(self.mock)
        if self.options.keep:
            print(f"kept {self.dir}", file=sys.stderr)
        else:
            shutil.rmtree(self.dir, ignore_errors=True)

    def launch(self, name, core, command):
        folder = self.weirs[name].dir if name in self.weirs else self.dir
        with open(self.dir / f"{name}.log", "ab") as log:
            return subprocess.Popen(self.prefix + ["taskset", "-c", str(core)] + [str(part) for part in command], cwd=folder, stdout=log, stderr=log, start_new_session=True)

    def end(self, process):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def url(self, system):
        if system.startswith("weir"):
            return f"http://127.0.0.1:{self.weir_named(system).port}{PATH}"
        if system == "tensorzero":
            return re.search(r"^base_url (.*)$", (self.dir / "tensorzero.log").read_text(), re.M)[1] + PATH.removeprefix("/v1")
        return f"http://{MOCK if system == 'direct' else '127.0.0.1:' + str(PORTS[system])}{PATH}"

    def weir_named(self, system, **settings):
        """The weir of this name, which begins with `weir`; made, with its key, when it is first asked for."""
        if system not in self.weirs:
            made = self.weirs[system] = Weir(self.dir / system, WEIR_PORT + 2 * len(self.weirs), **settings)
            made.write()
            if made.vault:
                self.weir(system, "vault", "set", "mock", stdin=PROVIDER_KEY)
            key = self.weir(system, "key", "create", "--name", "bench", "--tier", "professional", "--credits", "1000000000", "--json")
            self.headers[system] = {"authorization": f"Bearer {json.loads(key)['key']}"}
        return self.weirs[system]

    def command(self, system):
        """How a gateway is started; its configuration is written on the way."""
        if system.startswith("weir"):
            self.weir_named(system)
            return [self.options.weir, "serve", "--config", "weir.toml"]
        if system == "bare":
            return [self.bin / "bare", f"127.0.0.1:{PORTS['bare']}", MOCK]
        fill = {"dir": self.dir, "mock": MOCK, "port": PORTS.get(system)}
        if system == "nginx":
            (self.dir / "nginx.conf").write_text(NGINX.format(**fill))
            return ["nginx", "-p", self.dir, "-c", self.dir / "nginx.conf"]
        if system == "haproxy":
            (self.dir / "haproxy.cfg").write_text(HAPROXY.format(**fill))
            return ["haproxy", "-f", self.dir / "haproxy.cfg"]
        if system in PEERS:
            return self.peer(system, RESULTS / "peers" / system, fill)
        sys.exit(f"unknown system {system}: direct, weir, tensorzero, {', '.join(PORTS)}")

    def peer(self, system, folder, fill):
        if not (folder / "stamp").exists():
            sys.exit(f"{system} is not installed: benches/gateway/peers")
        if system == "litellm":
            (self.dir / "litellm.yaml").write_text(LITELLM.format(**fill))
            self.headers[system] = {"authorization": "Bearer sk-bench"}
            words = ["--config", self.dir / "litellm.yaml", "--host", "127.0.0.1", "--port", fill["port"], "--num_workers", "1"]
            return ["env", *(f"{name}={value}" for name, value in LITELLM_ENVIRONMENT.items()), folder / "bin" / "litellm", *words]
        if system == "portkey":
            (self.dir / "loopback.js").write_text(PORTKEY)
            self.headers[system] = {"authorization": "Bearer sk-mock", "x-portkey-provider": "openai", "x-portkey-custom-host": f"http://{MOCK}/v1"}
            program = folder / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
            return ["env", "NODE_ENV=production", "node", "--require", self.dir / "loopback.js", program, f"--port={fill['port']}", "--headless"]
        (self.dir / "tensorzero.toml").write_text(TENSORZERO.format(**fill))
        (self.dir / "start-tensorzero.py").write_text(TENSORZERO_START)
        (self.dir / "tensorzero.log").unlink(missing_ok=True)
        self.models[system] = TENSORZERO_MODEL
        return [folder / "bin" / "python", self.dir / "start-tensorzero.py"]

    def weir(self, system, *arguments, stdin="", nice=False):
        """A command of weir's beside the server; its output. `nice`: on the load's core, giving way to what is there."""
        under = ["taskset", "-c", "1", "nice", "-n", "19"] if nice else []
        command = [*under, self.options.weir, *arguments, "--config", "weir.toml"]
        done = subprocess.run(command, cwd=self.weir_named(system).dir, input=stdin, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"weir {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def start(self, system, under=(), seconds=60):
        """Starts a gateway, `under` a tool if one is named, and waits until it listens."""
        if system == "direct" or system in self.running:
            return
        command = self.command(system)
        port = self.weirs[system].port if system in self.weirs else PORTS.get(system)
        # Pingora's listeners share a port with whoever has it: half the load would go there.
        if port and socket.socket().connect_ex(("127.0.0.1", port)) == 0:
            sys.exit(f"{system}: somebody listens on port {port} already")
        process = self.launch(system, 0, [*under, *command])
        self.running[system] = process
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(0.1)
            if process.poll() is not None:
                break
            try:
                # A listener that answers at all is up: nothing is sent through yet, so that idle memory can be seen.
                urllib.request.urlopen(self.url(system).replace(PATH, "/nothing-here") if system in self.weirs else self.url(system).rsplit("/v1", 1)[0], timeout=10)
                return
            except urllib.error.HTTPError:
                return
            except (OSError, TypeError):
                # Refused; or it has not said its port yet.
                pass
        sys.exit(f"{system} does not answer: {(self.dir / (system + '.log')).read_text()[-2000:]}")

    def stop(self, system):
        process = self.running.pop(system, None)
        if process:
            self.end(process)

    def metric(self, system, name):
        """The samples of one of a weir's metrics: labels as they are written, and value."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.weirs[system].port + 1}/metrics", timeout=10) as answer:
            lines = answer.read().decode().split("\n")
        return {line[len(name):].rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{")}

    def ask_once(self, system):
        post(self.url(system), self.headers.get(system, {}), self.models.get(system, "gpt-4o-mini"))

    def load(self, system, words, watch=True):
        """Puts a load on a gateway; what the load generator reports, with `errors` set if it could not."""
        command = self.prefix + ["taskset", "-c", "1", str(self.bin / "load"), "--url", self.url(system), *(str(word) for word in words)]
        for name, value in self.headers.get(system, {}).items():
            command += ["--header", f"{name}: {value}"]
        if system in self.models:
            command += ["--model", self.models[system]]
        if watch and system in self.running:
            command += ["--pid", str(self.running[system].pid)]
        result = subprocess.run(command, capture_output=True, text=True)
        try:
            return json.loads(result.stdout)
        except ValueError:
            return {"errors": 1, "answers": 0, "error_samples": [result.stderr[-300:] + result.stdout[-300:]]}
