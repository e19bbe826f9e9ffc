"""The library inside real nginx, against a scripted provider. Plain unittest: nothing to install but Debian's packages."""
import http.client, http.server, json, os, pathlib, shutil, signal, socket, subprocess, tempfile, threading, time, unittest

HERE = pathlib.Path(__file__).resolve().parent
LIBRARY = os.environ["WEIR_LIBRARY"]
DEADLINE = 10


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def event(document):
    return b"data: " + json.dumps(document).encode() + b"\n\n"


CHUNKS = [event({"id": "c", "choices": [{"index": 0, "delta": {"content": "word %d" % n}, "finish_reason": None}]}) for n in range(5)]
FINISH = event({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
USAGE = event({"id": "c", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 10, "total_tokens": 17}})
DONE = b"data: [DONE]\n\n"
WHOLE = json.dumps({"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}}).encode()


class Provider:
    """Answers by the model's name and writes down what it saw."""

    def __init__(self):
        self.seen, self.sent_at, self.gone = [], [], threading.Event()
        # What to answer for some models instead: a status each.
        self.statuses = {}
        # The events of a model and the seconds between two, where they are others.
        self.streams = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *args):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                asked = json.loads(body)
                outer.seen.append({"host": self.headers["host"], "authorization": self.headers["authorization"], "headers": dict(self.headers.items()),
                                   "body": asked, "size": len(body), "connection": self.client_address, "path": self.path})
                model = asked["model"]
                status = int(model[7:]) if model.startswith("status-") else outer.statuses.get(model)
                if status:
                    return self.whole(status, b'{"error":{"message":"no","type":"x","code":"y"}}')
                if not asked.get("stream"):
                    return self.whole(200, WHOLE)
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                try:
                    pieces, pause = outer.streams.get(model, (CHUNKS, 0.1 if model == "slow" else 0))
                    for piece in pieces:
                        half = len(piece) // 2
                        self.chunk(piece[:half])
                        self.chunk(piece[half:])
                        time.sleep(pause)
                    if model == "endless":
                        while True:
                            self.chunk(CHUNKS[0])
                            time.sleep(0.02)
                    self.chunk(FINISH)
                    if asked.get("stream_options", {}).get("include_usage"):
                        self.chunk(USAGE)
                    self.chunk(DONE)
                    self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    self.close_connection = True
                    outer.gone.set()

            def whole(self, status, body):
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def chunk(self, piece):
                outer.sent_at.append(time.monotonic())
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()

        http.server.ThreadingHTTPServer.daemon_threads = True
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Nginx(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.provider = Provider()
        cls.folder = pathlib.Path(tempfile.mkdtemp())
        cls.folder.chmod(0o755)
        cls.port, dead = free_port(), free_port()
        cls.key = cls.folder / "key"
        cls.key.write_text("sk-first-aaaaaaaaaaaaaaaa")
        (cls.folder / "key2").write_text("sk-second-bbbbbbbbbbbbbbbb")
        providers = {"one": (cls.provider.port, "key"), "two": (cls.provider.port, "key2"), "dead": (dead, "key")}
        routing = ""
        for name, (port, key) in providers.items():
            routing += f'[provider.{name}]\nkind = "openai-compatible"\nbase_url = "http://{"127.0.0.1" if name != "two" else "localhost"}:{port}/v1"\nkey = "file:{cls.folder}/{key}"\n'
        cls.routing = cls.folder / "routing.toml"
        for model in ("plain", "slow", "endless"):
            routing += f'[model.{model}]\ntargets = [{{ provider = "one", model = "{model}", price = "free" }}]\n'
        routing += '[model.other]\ntargets = [{ provider = "two", model = "other", price = "free" }]\n'
        for status in (401, 429, 503):
            routing += f'[model.retry-{status}]\ntargets = [{{ provider = "one", model = "status-{status}", price = "free", priority = 1 }}, {{ provider = "two", model = "second", price = "free", priority = 2 }}]\n'
        routing += '[model.unreachable]\ntargets = [{ provider = "dead", model = "x", price = "free", priority = 1 }, { provider = "two", model = "second", price = "free", priority = 2 }]\n'
        routing += '[model.lost]\ntargets = [{ provider = "dead", model = "x", price = "free" }]\n[model.bad]\ntargets = [{ provider = "two", model = "status-400", price = "free" }]\n[retry]\ncooldown = "1s"\n'
        cls.routing.write_text(routing)
        (cls.folder / "prices.toml").write_text("")
        conf = (HERE.parent / "nginx" / "nginx.conf").read_text()
        start, end = conf.index("    upstream weir_openai"), conf.index("    server {")
        upstreams = "".join(f'    upstream weir_{name} {{ server 127.0.0.1:{port}; keepalive 8; }}\n' for name, (port, _) in providers.items())
        conf = conf[:start] + upstreams + conf[end:]
        conf = conf.replace("worker_processes auto;", f"worker_processes 2;\nuser root;\ndaemon off;\npid {cls.folder}/pid;\nerror_log {cls.folder}/error.log info;")
        conf = conf.replace("http {\n", f"http {{\n    access_log off;\n    client_body_temp_path {cls.folder}/body;\n    proxy_temp_path {cls.folder}/proxy;\n    fastcgi_temp_path {cls.folder}/f;\n    uwsgi_temp_path {cls.folder}/u;\n    scgi_temp_path {cls.folder}/s;\n", 1)
        conf = conf.replace("load_module modules/", "load_module /usr/lib/nginx/modules/").replace("listen 8080;", f"listen 127.0.0.1:{cls.port};").replace("client_body_buffer_size 1m;", "client_body_buffer_size 16k;")
        conf = conf.replace("/usr/share/weir/lua/", f"{HERE.parent}/lib/")
        conf = conf.replace("/etc/weir/", f"{cls.folder}/").replace('node = "unix:/run/weir/plugin.sock", when_node_is_away = "refuse", journal = "/var/lib/weir-rows/rows",', f'library = "{LIBRARY}", journal = "{cls.folder}/rows",')
        conf = conf.replace("        location /v1/ {", "        location /pid { content_by_lua_block { ngx.print(ngx.worker.pid()) } }\n        location /v1/ {")
        cls.conf = cls.folder / "nginx.conf"
        cls.conf.write_text(conf)
        cls.nginx = subprocess.Popen(["nginx", "-p", str(cls.folder), "-c", str(cls.conf)], stderr=subprocess.DEVNULL)
        until = time.monotonic() + DEADLINE
        while True:
            try:
                cls.request("GET", "/pid")
                break
            except OSError:
                if time.monotonic() > until or cls.nginx.poll() is not None:
                    log = cls.folder / "error.log"
                    raise RuntimeError(log.read_text() if log.exists() else "nginx did not start")
                time.sleep(0.05)

    @classmethod
    def tearDownClass(cls):
        cls.nginx.send_signal(signal.SIGTERM)
        cls.nginx.wait(DEADLINE)
        shutil.rmtree(cls.folder, ignore_errors=True)

    @classmethod
    def request(cls, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", cls.port, timeout=DEADLINE)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, dict((name.lower(), value) for name, value in answer.getheaders()), answer.read()
        finally:
            connection.close()

    def test_other_methods_go_nowhere(self):
        body = json.dumps({"model": "plain", "messages": []})
        before = len(self.provider.seen)
        for method in ("GET", "DELETE", "PUT"):
            self.assertEqual(self.request(method, "/v1/chat/completions", body, {"content-type": "application/json"})[0], 405, method)
        self.assertEqual(len(self.provider.seen), before)

    def chat(self, model, stream=False, headers=None, **more):
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": stream, **more})
        return self.request("POST", "/v1/chat/completions", body, {"content-type": "application/json", "authorization": "Bearer wk_client", "cookie": "a=b", **(headers or {})})

    def rows(self):
        rows = []
        for file in self.folder.glob("rows.*"):
            rows += [json.loads(line) for line in file.read_text().splitlines()]
        return rows

    def rows_at_rest(self):
        """How many rows there are once no more come: a row is written when its answer has gone."""
        before, count = None, len(self.rows())
        while before != count:
            time.sleep(0.3)
            before, count = count, len(self.rows())
        return count

    def row(self, request_id):
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until:
            for row in self.rows():
                if row["request_id"] == request_id:
                    return row
            time.sleep(0.02)
        self.fail(f"no row {request_id}")

    def error_log(self):
        return (self.folder / "error.log").read_text()

    def test_a_whole_answer_passes_and_is_counted(self):
        status, headers, body = self.chat("plain")
        self.assertEqual((status, body), (200, WHOLE), self.error_log())
        self.assertEqual((headers["x-provider-used"], headers["x-model-used"], headers["x-weir-attempts"]), ("one", "plain", "1"))
        row = self.row(headers["x-request-id"])
        self.assertEqual((row["usage"]["input"], row["usage"]["output"], row["end"], row["usage_source"]), (7, 2, "complete", "upstream"))

    def test_neither_the_callers_key_nor_its_cookies_reach_a_provider(self):
        self.provider.seen.clear()
        self.chat("plain")
        seen = self.provider.seen[-1]
        self.assertEqual(seen["authorization"], "Bearer " + self.key.read_text())
        self.assertNotIn("wk_client", json.dumps(seen))
        self.assertNotIn("cookie", {name.lower() for name in seen["headers"]})

    def test_a_stream_is_the_providers_without_the_usage_event_we_asked_for(self):
        status, headers, body = self.chat("plain", stream=True)
        self.assertEqual((status, body), (200, b"".join(CHUNKS) + FINISH + DONE))
        row = self.row(headers["x-request-id"])
        self.assertEqual((row["usage"]["input"], row["usage"]["output"], row["end"]), (7, 10, "complete"))

    def test_a_client_that_asks_for_usage_gets_every_byte(self):
        body = self.chat("plain", stream=True, stream_options={"include_usage": True})[2]
        self.assertEqual(body, b"".join(CHUNKS) + FINISH + USAGE + DONE)

    def test_events_leave_within_50_ms(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        self.provider.sent_at.clear()
        connection.request("POST", "/v1/chat/completions", json.dumps({"model": "slow", "messages": [], "stream": True}), {"content-type": "application/json"})
        answer, late = connection.getresponse(), []
        got = b""
        for number, piece in enumerate(CHUNKS):
            got += answer.read(len(piece))
            # Halves go out one by one; the second's time is the event's.
            late.append(time.monotonic() - self.provider.sent_at[2 * number + 1])
        got += answer.read()
        connection.close()
        self.assertEqual(got, b"".join(CHUNKS) + FINISH + DONE)
        self.assertLess(sorted(late)[len(late) // 2], 0.05)

    def test_retries_carry_their_own_key_and_host(self):
        for model in ("retry-429", "retry-503", "retry-401", "unreachable"):
            with self.subTest(model):
                time.sleep(1.2)  # the cooldown of the one before
                self.provider.seen.clear()
                status, headers, _ = self.chat(model)
                self.assertEqual((status, headers.get("x-provider-used"), headers.get("x-was-fallback")), (200, "two", "true"), self.error_log()[-2000:])
                for seen in self.provider.seen:
                    second = seen["body"]["model"] == "second"
                    self.assertEqual("sk-second" in seen["authorization"], second)
                    self.assertEqual(seen["host"].startswith("localhost"), second)

    def test_every_attempt_lost_is_a_502_in_the_callers_dialect(self):
        status, _, body = self.chat("lost")
        self.assertEqual(status, 502)
        self.assertIn("message", json.loads(body)["error"])

    def test_a_callers_mistake_comes_back_as_it_is(self):
        self.assertEqual(self.chat("bad")[0], 400)

    def test_refusals_are_weirs(self):
        self.assertEqual(self.chat("nothing-like-it:")[0], 404)
        self.assertEqual(self.request("POST", "/v1/chat/completions", "{", {"content-type": "application/json"})[0], 400)
        self.assertEqual(self.request("POST", "/v1/nothing", "{}")[0], 404)

    def test_hosts_on_one_address_do_not_share_connections(self):
        self.provider.seen.clear()
        for _ in range(6):
            self.chat("plain")
            self.chat("other")
        by_connection = {}
        for seen in self.provider.seen:
            by_connection.setdefault(seen["connection"], set()).add(seen["host"])
        self.assertTrue(all(len(hosts) == 1 for hosts in by_connection.values()), by_connection)
        self.assertLess(len(by_connection), len(self.provider.seen), "connections are kept")

    def test_bodies_on_disk_arrive_whole(self):
        self.provider.seen.clear()
        text = "x" * 3_000_000
        body = json.dumps({"model": "plain", "messages": [{"role": "user", "content": text}]})
        self.assertEqual(self.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})[0], 200)
        self.assertEqual(self.provider.seen[-1]["body"]["messages"][0]["content"], text)

    def test_a_new_key_is_used_within_a_second(self):
        self.chat("plain")
        replacement = self.folder / "key.new"
        replacement.write_text("sk-third-cccccccccccccccc")
        os.rename(replacement, self.key)
        changed = time.monotonic()
        while True:
            self.chat("plain")
            if "sk-third" in self.provider.seen[-1]["authorization"]:
                break
            self.assertLess(time.monotonic() - changed, 1.0)
            time.sleep(0.05)

    def test_a_panic_is_a_500_and_the_worker_lives(self):
        before = {self.request("GET", "/pid")[2] for _ in range(40)}
        for _ in range(8):
            self.assertEqual(self.chat("plain", headers={"x-weir-panic": "1"})[0], 500)
        after = {self.request("GET", "/pid")[2] for _ in range(40)}
        self.assertTrue(after <= before, (before, after))
        self.assertEqual(self.chat("plain")[0], 200)

    def test_a_client_that_leaves_is_accounted(self):
        self.provider.gone.clear()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        connection.request("POST", "/v1/chat/completions", json.dumps({"model": "endless", "messages": [], "stream": True}), {"content-type": "application/json"})
        answer = connection.getresponse()
        request_id = answer.getheader("x-request-id")
        answer.read(300)
        # A response holds the socket too: only both closed is gone.
        answer.close()
        connection.close()
        row = self.row(request_id)
        self.assertEqual((row["end"], row["usage_source"]), ("cancelled", "counted"))
        self.assertGreater(row["usage"]["output"], 0)
        self.assertTrue(self.provider.gone.wait(DEADLINE), "the provider is told")

    def test_hup_in_mid_stream(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        connection.request("POST", "/v1/chat/completions", json.dumps({"model": "slow", "messages": [], "stream": True}), {"content-type": "application/json"})
        answer = connection.getresponse()
        self.nginx.send_signal(signal.SIGHUP)
        self.assertEqual(answer.read(), b"".join(CHUNKS) + FINISH + DONE)
        self.assertEqual(self.row(answer.getheader("x-request-id"))["end"], "complete")
        connection.close()

    def test_totals_of_two_workers_and_bounded_memory(self):
        requests, pids = int(os.environ.get("WEIR_REQUESTS", "20000")), {int(self.request("GET", "/pid")[2]) for _ in range(40)}
        body = json.dumps({"model": "plain", "messages": [], "stream": False})

        def resident():
            return {pid: int(next(line for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")).split()[1]) for pid in pids if pathlib.Path(f"/proc/{pid}").exists()}

        def some(count, failed):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
            for _ in range(count):
                try:
                    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
                    answer = connection.getresponse()
                    if answer.read() != WHOLE:
                        failed.append(answer.status)
                except (OSError, http.client.HTTPException) as error:
                    connection.close()
                    failed.append(repr(error))

        some(requests // 10, failed := [])
        before, known = resident(), self.rows_at_rest()
        threads = [threading.Thread(target=some, args=(requests // 4, failed)) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        self.assertEqual(failed, [])
        self.rows_at_rest()
        rows = self.rows()
        self.assertEqual(len(rows) - known, requests // 4 * 4)
        self.assertEqual(len({row["request_id"] for row in rows}), len(rows))
        for pid, kib in resident().items():
            self.assertLess(kib - before.get(pid, kib), 8192, "KiB grown")


if __name__ == "__main__":
    unittest.main(verbosity=2)
