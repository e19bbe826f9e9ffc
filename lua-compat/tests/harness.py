"""nginx and a weir node for the tests, started as their documentation says."""
import http.client, json, os, pathlib, secrets, signal, socket, subprocess, time

HERE = pathlib.Path(__file__).resolve().parent
LIBRARY = os.environ["WEIR_LIBRARY"]
DEADLINE = 10


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(check, what, seconds=DEADLINE):
    """Polls until `check` gives something true, and returns that."""
    end = time.monotonic() + seconds
    while not (value := check()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.02)
    return value


def ask(port, method, path, body=None, headers=None):
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def chat(port, model, stream=False, key="wk_client", headers=None, **more):
    """A chat completion."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}], **({"stream": True} if stream else {}), **more})
    return ask(port, "POST", "/v1/chat/completions", body, {"content-type": "application/json", "authorization": f"Bearer {key}", **(headers or {})})


class Nginx:
    """nginx/nginx.conf with other addresses: `upstreams` has the address of each provider, `settings` is Lua for `init`."""

    def __init__(self, folder, upstreams, settings, workers=1, server="", authorities=None):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(exist_ok=True)
        self.folder.chmod(0o755)
        self.port = free_port()
        conf = (HERE.parent / "nginx" / "nginx.conf").read_text()
        start, end = conf.index("    upstream weir_openai"), conf.index("    server {")
        conf = conf[:start] + "".join(f"    upstream weir_{name} {{ server {address}; keepalive 8; }}\n" for name, address in upstreams.items()) + conf[end:]
        if "library =" not in settings:
            settings = f'library = "{LIBRARY}", {settings}'
        start, end = conf.index("            routing = "), conf.index("        }\n    }\n    upstream")
        conf = conf[:start] + f'            {settings}\n' + conf[end:]
        conf = conf.replace("worker_processes auto;", f"worker_processes {workers};\nuser root;\ndaemon off;\npid {self.folder}/pid;\nerror_log {self.folder}/error.log info;")
        temporary = "".join(f"    {kind}_temp_path {self.folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        conf = conf.replace("http {\n", f"http {{\n    access_log off;\n{temporary}", 1)
        conf = conf.replace("load_module modules/", f"load_module {os.environ.get('WEIR_NGINX_MODULES', '/usr/lib/nginx/modules')}/")
        conf = conf.replace("listen 8080;", f"listen 127.0.0.1:{self.port};").replace("/usr/share/weir/lua/", f"{HERE.parent}/lib/")
        if authorities:
            conf = conf.replace("/etc/ssl/certs/ca-certificates.crt", str(authorities))
        conf = conf.replace("        location /v1/ {", f"        location /pid {{ content_by_lua_block {{ ngx.print(ngx.worker.pid()) }} }}\n{server}        location /v1/ {{")
        (self.folder / "nginx.conf").write_text(conf)
        self.process = subprocess.Popen(["nginx", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")], stderr=subprocess.DEVNULL)
        try:
            until(self.is_up, "nginx")
        except AssertionError as error:
            raise RuntimeError(self.log()) from error

    def is_up(self):
        if self.process.poll() is not None:
            raise RuntimeError(self.log())
        try:
            return ask(self.port, "GET", "/pid")[0] == 200
        except OSError:
            return False

    def workers(self):
        """The pids of those that answer."""
        return {int(ask(self.port, "GET", "/pid")[2]) for _ in range(40)}

    def log(self):
        log = self.folder / "error.log"
        return log.read_text() if log.exists() else "nginx did not start"

    def hup(self):
        self.process.send_signal(signal.SIGHUP)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(DEADLINE)


class Node:
    """`weir serve` with a plugin socket, over the same routing.toml and prices.toml."""

    def __init__(self, folder, routing, prices, binary=os.environ.get("WEIR_BIN")):
        self.folder, self.binary, self.process, self.starts = pathlib.Path(folder), binary, None, 0
        self.folder.mkdir(exist_ok=True)
        self.port, self.admin = free_port(), free_port()
        self.socket = self.folder / "plugin.sock"
        self.environment = {**os.environ, "WEIR_ADMIN_TOKEN": secrets.token_hex(16), "WEIR_MASTER_KEY": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="}
        self.config = self.folder / "weir.toml"
        self.config.write_text(
            f'[listen]\nproxy = ["127.0.0.1:{self.port}"]\nadmin = "127.0.0.1:{self.admin}"\nplugin = "unix:{self.socket}"\n'
            f'[limits]\ndrain = "2s"\n[store]\nurl = "sqlite:{self.folder}/weir.db"\n[vault]\nmaster_key = "env:WEIR_MASTER_KEY"\n'
            f'[admin]\ntoken = "env:WEIR_ADMIN_TOKEN"\n[ledger]\ncredit = "0.001"\n[files]\nrouting = "{routing}"\nprices = "{prices}"\n'
        )

    def start(self):
        self.starts += 1
        with open(self.folder / f"log.{self.starts}", "wb") as log:
            self.process = subprocess.Popen([self.binary, "serve", "--config", str(self.config)], stdout=log, stderr=log, env=self.environment)
        until(self.is_up, "the node", 30)
        return self

    def is_up(self):
        if self.process.poll() is not None:
            raise RuntimeError("".join(log.read_text() for log in self.folder.glob("log.*")))
        try:
            return ask(self.admin, "GET", "/readyz")[0] == 200 and self.socket.exists()
        except OSError:
            return False

    def end(self, number):
        self.process.send_signal(number)
        self.process.wait(30)

    def command(self, *words, text=""):
        done = subprocess.run([self.binary, *words, "--config", str(self.config)], input=text, capture_output=True, text=True, env=self.environment, timeout=60)
        if done.returncode != 0:
            raise AssertionError(done.stdout + done.stderr)
        return done.stdout

    def key(self, *options):
        """A caller's key: {"id", "key", …}."""
        made = json.loads(self.command("key", "create", "--name", "test", "--json", *options))
        until(lambda: self.own(made, "me"), "the key")
        return made

    def own(self, key, path):
        """The caller's own view."""
        status, _, body = ask(self.port, "GET", "/weir/v1/" + path, headers={"authorization": "Bearer " + key["key"]})
        return json.loads(body) if status == 200 else None

    def row(self, key, request_id):
        return until(lambda: self.own(key, "requests/" + request_id), f"the row of {request_id}")

    def usage(self, key):
        """The totals of one key."""
        lines = json.loads(self.command("usage", "--by", "key", "--json"))["lines"]
        return next((line for line in lines if line["name"] == key["id"]), None)
