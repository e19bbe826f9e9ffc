"""weir's plugins for Kong and APISIX inside real nginx, called in the phases in which those systems call them, against strict
stand-ins of their kits, and OpenResty's dynamic peers. The upstreams are the scripted providers of test_nginx."""
import http.client, json, os, pathlib, shutil, signal, subprocess, tempfile, time, unittest
from test_nginx import CHUNKS, DEADLINE, DONE, FINISH, LIBRARY, USAGE, WHOLE, Provider, free_port

HERE = pathlib.Path(__file__).resolve().parent
SECRETS = {name: f"sk-{name}-{letter * 16}" for name, letter in (("one", "a"), ("two", "b"), ("dead", "d"), ("denied", "e"), ("elsewhere", "f"), ("nowhere", "g"))}
JSON = {"content-type": "application/json", "authorization": "Bearer wk_client", "cookie": "a=b"}
STREAM = b"".join(CHUNKS) + FINISH + DONE


class Proxy:
    """nginx as one of the systems has it, and two providers."""

    system, version = None, 10027

    @classmethod
    def setUpClass(cls):
        cls.one, cls.two = Provider(), Provider()
        for provider in (cls.one, cls.two):
            # A client that leaves is part of the tests, not news.
            provider.server.handle_error = lambda *_: None
        cls.folder = pathlib.Path(tempfile.mkdtemp())
        cls.folder.chmod(0o755)
        cls.port, dead = free_port(), free_port()
        bases = {"one": f"http://127.0.0.1:{cls.one.port}/v1", "two": f"http://localhost:{cls.two.port}/v1", "dead": f"http://127.0.0.1:{dead}/v1",
                 # The second is at the same place by another path; the first has a key of its own, for it cools down when it is denied.
                 "denied": f"http://127.0.0.1:{cls.one.port}/v1", "nowhere": "http://nowhere.invalid/v1", "elsewhere": f"http://localhost:{cls.two.port}/elsewhere/v1"}
        routing = "[retry]\nmax_attempts = 5\ncooldown = \"1s\"\n"
        for name, base in bases.items():
            (cls.folder / f"key-{name}").write_text(SECRETS[name])
            routing += f'[provider.{name}]\nkind = "openai-compatible"\nbase_url = "{base}"\nkey = "file:{cls.folder}/key-{name}"\n'
        targets = {
            "plain": ["one"], "slow": ["one"], "endless": ["one"], "fails-429": ["one", "two"], "fails-503": ["one", "two"], "unreachable": ["dead", "two"],
            "lost": ["dead"], "denied-401": ["denied", "two"], "bad-400": ["one"], "exhausted-503": ["one", "two"], "moved-503": ["one", "elsewhere"], "nowhere": ["nowhere", "one"],
        }
        for model, providers in targets.items():
            # One name at every target: stock nginx sends the first attempt's body again.
            listed = ", ".join(f'{{ provider = "{name}", model = "{model}", price = "free", priority = {at} }}' for at, name in enumerate(providers))
            routing += f"[model.{model}]\ntargets = [{listed}]\n"
        (cls.folder / "routing.toml").write_text(routing)
        (cls.folder / "prices.toml").write_text('[price."two/plain"]\ninput = "1000000"\noutput = "0"\n')
        cls.one.statuses = {model: int(model[-3:]) for model in targets if model[-3:].isdigit()}
        cls.two.statuses = {"exhausted-503": 503}
        libraries = cls.folder / "lib"
        libraries.mkdir()
        (libraries / "libweir.so").symlink_to(LIBRARY)
        conf = (HERE / "sdk" / f"{cls.system}.conf").read_text()
        for mark, value in {"HERE": HERE, "LIB": HERE.parent, "CPATH": libraries, "FOLDER": cls.folder, "PORT_TWO": cls.two.port, "PORT": cls.port, "VERSION": cls.version}.items():
            conf = conf.replace(f"@{mark}@", str(value))
        modules = os.environ.get("WEIR_NGINX_MODULES", "/usr/lib/nginx/modules")
        temporary = "".join(f"    {kind}_temp_path {cls.folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        conf = conf.replace("http {\n", f"http {{\n    access_log off;\n{temporary}", 1)
        head = f"load_module {modules}/ndk_http_module.so;\nload_module {modules}/ngx_http_lua_module.so;\nworker_processes 1;\nuser root;\ndaemon off;\npid {cls.folder}/pid;\nerror_log {cls.folder}/error.log info;\n"
        (cls.folder / "nginx.conf").write_text(head + conf)
        cls.nginx = subprocess.Popen(["nginx", "-p", str(cls.folder), "-c", str(cls.folder / "nginx.conf")], stderr=subprocess.DEVNULL)
        until, status = time.monotonic() + DEADLINE, None
        while status is None and time.monotonic() < until and cls.nginx.poll() is None:
            try:
                status = cls.request("/strict")[0]
            except OSError:
                time.sleep(0.05)
        if status != 200:
            cls.nginx.kill()
            log = cls.folder / "error.log"
            raise RuntimeError(log.read_text()[:4000] if log.exists() else "nginx did not start")

    @classmethod
    def tearDownClass(cls):
        cls.nginx.send_signal(signal.SIGTERM)
        cls.nginx.wait(DEADLINE)
        shutil.rmtree(cls.folder, ignore_errors=True)

    def setUp(self):
        self.one.seen.clear()
        self.two.seen.clear()

    @classmethod
    def request(cls, path, body=b"{}", headers=None, method="POST"):
        connection = http.client.HTTPConnection("127.0.0.1", cls.port, timeout=DEADLINE)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, dict((name.lower(), value) for name, value in answer.getheaders()), answer.read()
        finally:
            connection.close()

    def chat(self, model, stream=False, headers=None, path="/v1/chat/completions", **more):
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": stream, **more})
        return self.request(path, body, {**JSON, **(headers or {})})

    def lines(self, pattern):
        return [json.loads(line) for file in self.folder.glob(pattern) for line in file.read_text().splitlines()]

    def wait_for(self, pattern, wanted):
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until:
            for found in self.lines(pattern):
                if wanted(found):
                    return found
            time.sleep(0.02)
        self.fail(f"nothing such in {pattern}: {self.error_log()[-2000:]}")

    def row(self, headers):
        return self.wait_for("rows.*", lambda row: row["request_id"] == headers["x-request-id"])

    def takes(self, config, path="/schema"):
        return self.request(path, json.dumps(config), JSON)[2].decode()

    def error_log(self):
        return (self.folder / "error.log").read_text()


class Adapter(Proxy):
    """What the plugins for Kong and for APISIX both have to do."""

    def test_a_whole_answer_passes_and_is_counted(self):
        status, headers, body = self.chat("plain", headers={"x-consumer": "acme"})
        self.assertEqual((status, body), (200, WHOLE), self.error_log()[-2000:])
        self.assertEqual((headers["x-provider-used"], headers["x-weir-attempts"]), ("one", "1"))
        row = self.row(headers)
        self.assertEqual((row["usage"]["input"], row["usage"]["output"], row["end"], row["usage_source"], row["account"]), (7, 2, "complete", "upstream", "acme"))

    def test_a_stream_is_the_providers_and_is_counted(self):
        status, headers, body = self.chat("plain", stream=True)
        self.assertEqual((status, body), (200, STREAM))
        row = self.row(headers)
        self.assertEqual((row["usage"]["input"], row["usage"]["output"], row["end"]), (7, 10, "complete"))
        self.assertEqual(self.chat("plain", stream=True, stream_options={"include_usage": True})[2], b"".join(CHUNKS) + FINISH + USAGE + DONE)

    def test_a_stream_is_not_held_back(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        self.one.sent_at.clear()
        connection.request("POST", "/v1/chat/completions", json.dumps({"model": "slow", "messages": [], "stream": True}), JSON)
        answer, late = connection.getresponse(), []
        for number, piece in enumerate(CHUNKS):
            self.assertEqual(answer.read(len(piece)), piece)
            late.append(time.monotonic() - self.one.sent_at[2 * number + 1])
        answer.read()
        connection.close()
        # Five events a tenth of a second apart: one held back would be late by more.
        self.assertLess(sorted(late)[len(late) // 2], 0.05)

    def test_the_callers_key_and_cookies_stay_here(self):
        self.chat("plain", path="/v1/chat/completions?api_key=wk_query")
        seen = self.one.seen[-1]
        self.assertEqual((seen["authorization"], seen["path"], seen["host"]), ("Bearer " + SECRETS["one"], "/v1/chat/completions", f"127.0.0.1:{self.one.port}"))
        self.assertNotIn("wk_", json.dumps(seen))
        self.assertNotIn("cookie", {name.lower() for name in seen["headers"]})

    def test_other_methods_go_nowhere(self):
        """A GET with the platform's key would list what others have stored at the provider."""
        body = json.dumps({"model": "plain", "messages": []})
        for method in ("GET", "DELETE", "PUT"):
            self.assertEqual(self.request("/v1/chat/completions", body, JSON, method)[0], 405, method)
        self.assertEqual(self.one.seen + self.two.seen, [])

    def test_who_the_caller_is_to_the_proxy_stays_here(self):
        own = {"apikey": "k-" + "a" * 20, "x-consumer-username": "acme", "x-credential-identifier": "c-1"}
        self.assertEqual(self.chat("plain", headers=own)[0], 200)
        seen = {name.lower() for name in self.one.seen[-1]["headers"]}
        self.assertEqual(seen & set(own), set())

    def test_a_retry_carries_the_next_providers_key_and_host(self):
        for model in ("fails-429", "fails-503", "unreachable"):
            with self.subTest(model):
                self.setUp()
                status, headers, body = self.chat(model)
                self.assertEqual((status, headers.get("x-provider-used"), headers.get("x-was-fallback"), body), (200, "two", "true", WHOLE), self.error_log()[-2000:])
                for provider, name, host in ((self.one, "one", "127.0.0.1"), (self.two, "two", "localhost")):
                    for seen in provider.seen:
                        self.assertEqual((seen["authorization"], seen["host"]), ("Bearer " + SECRETS[name], f"{host}:{provider.port}"))
                        for other, secret in SECRETS.items():
                            self.assertEqual(secret in json.dumps(seen), other == name)
                self.assertEqual((len(self.two.seen), self.row(headers)["attempts"]), (1, 2))

    def test_every_attempt_failed(self):
        for model in ("exhausted-503", "lost"):
            with self.subTest(model):
                status, headers, body = self.chat(model)
                self.assertEqual(status, 502, body)
                self.assertIn("message", json.loads(body)["error"])
                self.assertEqual(int(headers["content-length"]), len(body))
                row = self.row(headers)
                self.assertEqual((row["end"], row["status"], row["attempts"]), ("failed", 502, 2 if model == "exhausted-503" else 1))

    def test_a_providers_word_about_its_key_does_not_pass(self):
        # nginx takes no 401 for a reason to try another; what comes back is weir's.
        status, _, body = self.chat("denied-401")
        self.assertEqual((status, len(self.two.seen)), (502, 0))
        self.assertNotIn(b'"type":"x"', body)

    def test_a_callers_mistake_comes_back_as_it_is(self):
        status, headers, body = self.chat("bad-400")
        self.assertEqual((status, body), (400, b'{"error":{"message":"no","type":"x","code":"y"}}'))
        self.assertEqual(headers["x-provider-used"], "one")

    def test_refusals_have_the_shape_of_the_path(self):
        status, headers, body = self.chat("no-such-model:")
        self.assertEqual((status, headers["content-type"]), (404, "application/json"))
        self.assertIn("message", json.loads(body)["error"])
        status, _, body = self.chat("no-such-model:", path="/v1/messages", max_tokens=1)
        self.assertEqual((status, json.loads(body)["type"]), (404, "error"))
        self.assertEqual(self.request("/v1/chat/completions", b"{", JSON)[0], 400)
        self.assertEqual(self.request("/v1/nothing", b"{}", JSON)[0], 404)
        self.assertEqual(self.one.seen + self.two.seen, [])

    def test_bodies_on_disk_arrive_whole(self):
        text = "x" * 3_000_000
        body = json.dumps({"model": "plain", "messages": [{"role": "user", "content": text}]})
        self.assertEqual(self.request("/v1/chat/completions", body, JSON)[0], 200, self.error_log()[-2000:])
        self.assertEqual(self.one.seen[-1]["body"]["messages"][0]["content"], text)

    def test_a_client_that_leaves_is_accounted(self):
        self.one.gone.clear()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        connection.request("POST", "/v1/chat/completions", json.dumps({"model": "endless", "messages": [], "stream": True}), JSON)
        answer = connection.getresponse()
        headers = {"x-request-id": answer.getheader("x-request-id")}
        answer.read(300)
        # A response holds the socket too: only both closed is gone.
        answer.close()
        connection.close()
        row = self.row(headers)
        self.assertEqual((row["end"], row["usage_source"]), ("cancelled", "counted"))
        self.assertGreater(row["usage"]["output"], 0)
        self.assertTrue(self.one.gone.wait(DEADLINE), "the provider is told")

    def test_observing_counts_and_changes_nothing(self):
        for stream, output, expected in ((False, 2, WHOLE), (True, 10, b"".join(CHUNKS) + FINISH + USAGE + DONE)):
            with self.subTest(stream=stream):
                self.setUp()
                # An observed answer says no id; an account of its own tells its row from those of other requests, however late they come.
                account = "observed-stream" if stream else "observed-whole"
                more = {"stream_options": {"include_usage": True}} if stream else {}
                status, headers, body = self.chat("plain", stream=stream, path="/my-llm", headers={"x-consumer": account}, **more)
                self.assertEqual((status, body), (200, expected), self.error_log()[-2000:])
                self.assertNotIn("x-provider-used", headers)
                self.assertEqual((self.two.seen[-1]["authorization"], self.one.seen), ("Bearer sk-theirs-cccccccccccc", []))
                row = self.wait_for("rows.*", lambda row: row["account"] == account)
                self.assertEqual((row["usage"]["input"], row["usage"]["output"], row["end"], row["provider"], row["model"], row["asked_model"]), (7, output, "complete", "two", "plain", "plain"))
                # 7 input tokens at a dollar each; whoever routed it sold it.
                self.assertEqual((float(row["cost"]), float(row["charge"])), (7, 0))

    def test_what_cannot_be_counted_is_let_through(self):
        self.assertEqual(self.request("/my-llm", b'{"model":"plain","n":"two"}', JSON)[::2], (200, WHOLE))

    def test_no_key_gets_into_a_log(self):
        for model in ("plain", "fails-503", "lost", "denied-401"):
            self.chat(model)
        self.wait_for("rows.*", lambda row: row["asked_model"] == "denied-401")
        written = self.error_log() + "".join(file.read_text() for pattern in ("rows.*", "serialized") for file in self.folder.glob(pattern))
        for secret in [*SECRETS.values(), "wk_client", "sk-theirs"]:
            self.assertNotIn(secret, written)

    def test_an_unknown_call_fails(self):
        said = self.request("/strict")[2].decode().splitlines()
        self.assertEqual(len(said), 3)
        self.assertIn("there is no", said[0])
        self.assertIn("set_everything", said[0])
        self.assertRegex(said[1], "called in balancer|missing argument")
        self.assertRegex(said[2], "expected|must be")


class Kong(Adapter, unittest.TestCase):
    system = "kong"

    FILES = {"routing": "/etc/weir/routing.toml", "prices": "/etc/weir/prices.toml"}

    def test_the_row_is_a_field_of_kongs_log(self):
        _, headers, _ = self.chat("plain")
        said = self.wait_for("serialized", lambda said: said["weir"]["request_id"] == headers["x-request-id"])
        self.assertEqual((said["weir"]["usage"]["input"], said["weir"]["provider"]), (7, "one"))

    def test_the_node_is_away(self):
        status, _, body = self.chat("plain", path="/away")
        self.assertEqual((status, self.one.seen), (503, []), body)
        self.assertIn("message", json.loads(body)["error"])

    def test_the_schema(self):
        good = [{}, {"mode": "observe", "provider": "openai", "path": "/v1/messages"}, {"node": "unix:/run/weir/plugin.sock"},
                {"node": "unix:/s", "when_node_is_away": "config_only", "journal": "/var/lib/weir/rows", "remember_s": 60}, {"credit": "0.001", "tier": "free"}]
        for config in good:
            self.assertEqual(self.takes({**self.FILES, **config}), "ok", config)
        bad = {"mode": [{"mode": "watch"}], "routing": [{"routing": "routing.toml"}, {"routing": 1}], "node": [{"node": "127.0.0.1:80"}, {"when_node_is_away": "config_only", "journal": "/j"}],
               "journal": [{"node": "unix:/s", "when_node_is_away": "config_only"}, {"journal": "rows"}], "remember_s": [{"remember_s": 0}, {"remember_s": 1.5}], "credit": [{"credit": "-1"}], "surprise": [{"surprise": 1}]}
        for field, configs in bad.items():
            for config in configs:
                self.assertIn(field, self.takes({**self.FILES, **config}), config)
        self.assertIn("prices", self.takes({"routing": "/r"}))


class Apisix(Adapter, unittest.TestCase):
    system = "apisix"

    FILES = {"routing": "/etc/weir/routing.toml", "prices": "/etc/weir/prices.toml"}

    def test_loggers_find_the_counts_in_their_variables(self):
        _, headers, _ = self.chat("plain")
        said = self.wait_for("serialized", lambda said: said["request_id"] == headers["x-request-id"])
        self.assertEqual((said["model"], said["prompt"], said["completion"], said["total"]), ("plain", "7", "2", "9"))

    def test_a_target_on_another_path_is_not_asked(self):
        status, headers, _ = self.chat("moved-503")
        self.assertEqual((status, self.two.seen, self.row(headers)["attempts"]), (502, [], 1))

    def test_a_provider_without_an_address_is_passed_over(self):
        status, headers, _ = self.chat("nowhere")
        self.assertEqual((status, headers.get("x-provider-used"), self.one.seen[-1]["authorization"]), (200, "one", "Bearer " + SECRETS["one"]), self.error_log()[-2000:])

    def test_the_schemas(self):
        for config in ({}, {"mode": "observe", "provider": "openai", "path": "/v1/messages"}, {"tier": "free"}):
            self.assertEqual(self.takes(config), "ok", config)
        for field, config in {"mode": {"mode": "watch"}, "path": {"path": "v1"}, "tier": {"tier": ""}, "provider": {"provider": 1}, "surprise": {"surprise": 1}}.items():
            self.assertIn(field, self.takes(config))
        for config in ({}, {"node": "unix:/s", "when_node_is_away": "config_only", "journal": "/rows"}, {"credit": "0.001", "remember_s": 60}):
            self.assertEqual(self.takes({**self.FILES, **config}, "/schema?of=attr"), "ok", config)
        for field, config in {"node": {"node": "127.0.0.1:80"}, "journal": {"journal": "rows"}, "credit": {"credit": "x"}, "remember_s": {"remember_s": 0}, "library": {"library": "/x.so"}}.items():
            self.assertIn(field, self.takes({**self.FILES, **config}, "/schema?of=attr"))
        self.assertIn("routing", self.takes({"prices": "/p"}, "/schema?of=attr"))


class DynamicPeers(Proxy, unittest.TestCase):
    """One upstream for all providers, where ngx_lua names the host of a connection. Debian's is older: the balancer is a stand-in."""

    system = "openresty"

    def test_each_attempt_names_its_host(self):
        status, headers, body = self.chat("fails-503")
        self.assertEqual((status, headers["x-provider-used"], body), (200, "two", WHOLE), self.error_log()[-2000:])
        for provider, name, host in ((self.one, "one", "127.0.0.1"), (self.two, "two", "localhost")):
            seen = provider.seen[-1]
            self.assertEqual((seen["authorization"], seen["host"]), ("Bearer " + SECRETS[name], f"{host}:{provider.port}"))
            self.assertIn(f"kept for 127.0.0.1 {provider.port} {host}", self.error_log())

    def test_an_address_is_asked_for_once_in_its_time(self):
        self.chat("moved-503")
        asked = self.request("/strict")[2]
        for _ in range(3):
            self.chat("moved-503")
        self.assertEqual((self.request("/strict")[2], self.two.seen[-1]["path"]), (asked, "/elsewhere/v1/chat/completions"))
        self.assertGreaterEqual(int(asked), 1)

    def test_a_provider_without_an_address_is_passed_over(self):
        status, headers, _ = self.chat("nowhere")
        self.assertEqual((status, headers["x-provider-used"]), (200, "one"), self.error_log()[-2000:])
        self.assertIn("no address of nowhere.invalid", self.error_log())


class DynamicPeersTooOld(Proxy, unittest.TestCase):
    """Debian's ngx_lua would take the host and ignore it."""

    system, version = "openresty", 10023

    def test_it_is_refused_with_the_reason(self):
        status, _, body = self.chat("plain")
        self.assertEqual((status, self.one.seen), (500, []), body)
        self.assertIn("needs ngx_lua 0.10.27 or later, this is 0.10.23: use an upstream block for each provider", self.error_log())


if __name__ == "__main__":
    unittest.main(verbosity=2)
