"""One set of exchanges (vectors.json) through the Rust library, the LuaJIT binding, nginx and the gateway itself: what providers get, what
clients get and what is charged is the same."""
import http.client, http.server, json, os, pathlib, shutil, signal, subprocess, tempfile, threading, time, unittest
from harness import HERE, LIBRARY, Nginx, Node, ask, until

REPLAY = os.environ["WEIR_REPLAY"]
LUAJIT = os.environ.get("WEIR_LUAJIT", "luajit")
VECTORS = json.loads((HERE / "vectors.json").read_text())
# Framing and what names one request or one connection.
OWN = {"host", "connection", "content-length", "transfer-encoding", "x-request-id", "accept-encoding", "user-agent"}
TOLD = ("x-provider-used", "x-model-used", "x-used-byok", "x-was-fallback", "x-weir-attempts")
BUCKETS = ("input", "image_input", "audio_input", "cached_input", "cached_audio_input", "cache_write_5m", "cache_write_1h", "output", "reasoning",
           "audio_output", "image_output", "images", "requests", "web_searches")
ROW = ("asked_model", "model", "provider", "level", "tier", "byok", "attempts", "was_fallback", "status", "end", "usage_source", "price_id", "cost", "charge") + BUCKETS


class Provider:
    """Answers with what the case says, in order, and writes down what it got."""

    def __init__(self):
        self.answers, self.seen = [], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *args):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                outer.seen.append({"path": self.path, "headers": dict(self.headers.items()), "body": body})
                answer = outer.answers.pop(0)
                self.send_response(answer["status"])
                for name, value in answer["headers"].items():
                    self.send_header(name, value)
                if "events" not in answer:
                    body = answer["body"].encode()
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                    return
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for piece in answer["events"]:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece.encode()), piece.encode()))
                if answer.get("cut"):
                    self.close_connection = True
                else:
                    self.wfile.write(b"0\r\n\r\n")

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Parity(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.provider = Provider()
        cls.folder = pathlib.Path(tempfile.mkdtemp())
        cls.folder.chmod(0o755)
        cls.keys = {name: f"key-{name}-" + name[0] * 24 for name in ("main", "backup", "openai", "claude")}
        for name, key in cls.keys.items():
            (cls.folder / name).write_text(key)
        routing, prices = cls.folder / "routing.toml", cls.folder / "prices.toml"
        routing.write_text(VECTORS["routing"].replace("@PORT@", str(cls.provider.port)).replace("@KEYS@", str(cls.folder)))
        prices.write_text(VECTORS["prices"])
        cls.files = {"routing": str(routing), "prices": str(prices), "credit": "0.001", "node": True}
        cls.node = Node(cls.folder / "node", routing, prices).start()
        cls.callers = {}
        for case in VECTORS["cases"]:
            tier = case.get("tier")
            if tier not in cls.callers:
                cls.callers[tier] = cls.node.key(*(["--tier", tier] if tier else []))
            for provider, key in case.get("own", {}).items():
                ask(cls.node.port, "POST", "/weir/v1/keys", json.dumps({"provider": provider, "key": key}), {"authorization": "Bearer " + cls.callers[tier]["key"]})
        settings = f'routing = "{routing}", prices = "{prices}", credit = "0.001", node = "unix:{cls.node.socket}", journal = "{cls.folder}/nginx/rows"'
        cls.nginx = Nginx(cls.folder / "nginx", {name: f"127.0.0.1:{cls.provider.port}" for name in cls.keys}, settings)
        cls.by = {"gateway": cls.carried(cls.node.port), "nginx": cls.carried(cls.nginx.port)}
        cls.by["library"] = cls.replayed([REPLAY, json.dumps(cls.files)])
        binding = {**cls.files, "library": LIBRARY}
        environment = {**os.environ, "LUA_PATH": f"{HERE.parent}/lib/?.lua;;"}
        cls.by["binding"] = cls.replayed([LUAJIT, str(HERE / "replay.lua"), json.dumps(binding)], environment)

    @classmethod
    def tearDownClass(cls):
        cls.nginx.stop()
        cls.node.end(signal.SIGTERM)
        shutil.rmtree(cls.folder, ignore_errors=True)

    @classmethod
    def carried(cls, port):
        """Each case over a socket; the row is the node's."""
        results = []
        for case in VECTORS["cases"]:
            if results and any(answer["status"] > 400 or answer.get("cut") for answer in VECTORS["cases"][len(results) - 1]["answers"]):
                time.sleep(1.1)  # what failed in the case before cools down
            cls.provider.answers, cls.provider.seen = list(case["answers"]), []
            caller = cls.callers[case.get("tier")]
            headers = {"content-type": "application/json", "authorization": "Bearer " + caller["key"], **case.get("headers", {})}
            status, told, body = cls.sent(port, case, headers)
            row = None if case.get("no_row") else cls.node.row(caller, told["x-weir-request-id"])
            results.append({"attempts": cls.provider.seen, "status": status, "told": told, "body": body, "row": row})
        return results

    @classmethod
    def sent(cls, port, case, headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", case["path"], json.dumps(case["body"]), headers)
        answer = connection.getresponse()
        try:
            body = answer.read()
        except http.client.IncompleteRead as part:
            body = part.partial
        finally:
            connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body.decode()

    @classmethod
    def replayed(cls, words, environment=None):
        """Each case without a proxy: the admission is what the node would say."""
        lines = []
        for case in VECTORS["cases"]:
            own = case.get("own", {})
            keys = [{"provider": name, "own": name in own, "key": own.get(name, key)} for name, key in cls.keys.items()]
            admission = {"request_id": "01M00000000000000000000000", "account": "acme", "key_id": "k1", "tier": case.get("tier"), "scopes": {}, "has_budget": False,
                         "draw": 1, "output_cap": None, "covered_tokens": None, "headers": {}, "keys": keys}
            headers = {"content-type": "application/json", "authorization": "Bearer wk_x", **case.get("headers", {})}
            lines.append(json.dumps({"path": case["path"], "headers": headers, "body": json.dumps(case["body"]), "admission": json.dumps(admission), "answers": case["answers"]}))
        results = []
        for case, line in zip(VECTORS["cases"], lines):
            # A process for each: health is a process's own, and a case's failures are not the next one's.
            done = subprocess.run(words, input=line + "\n", capture_output=True, text=True, timeout=30, env=environment)
            if done.returncode != 0:
                raise AssertionError(f"{case['name']}: {done.stderr}")
            result = json.loads(done.stdout)
            row = json.loads(result["row"]) if result["row"] else None
            if row:
                row = {**row, **{bucket: row["usage"].get(bucket, 0) for bucket in BUCKETS}}
            results.append({**result, "row": None if case.get("no_row") else row})
        return results

    def each(self, what):
        """`what(case, result)` is the same for all four."""
        for index, case in enumerate(VECTORS["cases"]):
            expected = what(case, self.by["gateway"][index])
            for by in ("library", "binding", "nginx"):
                with self.subTest(case["name"], by=by):
                    self.assertEqual(what(case, self.by[by][index]), expected)

    def test_providers_get_the_same(self):
        def upstream(_, result):
            attempts = []
            for attempt in result["attempts"]:
                headers = {name.lower(): value for name, value in attempt["headers"].items() if name.lower() not in OWN}
                attempts.append({"path": attempt["path"], "headers": headers, "body": json.loads(attempt["body"])})
            return attempts

        self.each(upstream)

    def test_clients_get_the_same(self):
        def client(case, result):
            told = {name: result["told"].get(name) for name in TOLD}
            if case.get("body_differs"):
                return result["status"], told
            if result["status"] == 200:
                return 200, told, result["body"]
            # nginx has thrown away what a provider said when it comes to a retry: the texts may differ, the kind may not.
            error = json.loads(result["body"])["error"]
            return result["status"], told, {**error, "message": None}

        self.each(client)

    def test_rows_are_the_same(self):
        self.each(lambda _, result: result["row"] and {name: result["row"][name] for name in ROW})

    def test_rows_say_what_the_vectors_say(self):
        for index, case in enumerate(VECTORS["cases"]):
            with self.subTest(case["name"]):
                result = self.by["gateway"][index]
                self.assertEqual(result["status"], case.get("status", 200))
                if not case.get("no_row"):
                    # A price's name has the version of its file behind it.
                    row = {**result["row"], "price_id": (result["row"]["price_id"] or "").partition("@")[0] or None}
                    self.assertEqual({name: row[name] for name in case["row"]}, case["row"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
