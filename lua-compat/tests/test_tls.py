"""Providers over TLS that share one address: their connections never mix, and a host that cannot prove its name gets no key."""
import http.server, json, pathlib, shutil, ssl, subprocess, tempfile, threading, unittest
from harness import Nginx, chat
from test_nginx import WHOLE

HOSTS = ("api-one.test", "api-two.test")


class Server:
    """One port that has a certificate for each host that is asked for by name."""

    def __init__(self, contexts):
        self.seen, self.handshakes = [], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *args):
                pass

            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                outer.seen.append({"name": self.connection.name, "host": self.headers["host"], "key": self.headers["authorization"], "connection": self.client_address})
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(WHOLE)))
                self.end_headers()
                self.wfile.write(WHOLE)

        def choose(connection, name, _):
            outer.handshakes.append(name)
            connection.name = name
            connection.context = contexts.get(name, contexts[None])

        context = contexts[None]
        context.sni_callback = choose
        ssl.SSLSocket.name = None
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        # The handshake is made where the request is read, so that one that fails holds nobody up.
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Tls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp())
        cls.folder.chmod(0o755)
        for authority in ("ca", "other"):
            cls.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{authority}.key", "-out", f"{authority}.pem", "-days", "30",
                        "-subj", f"/CN=weir test {authority}", "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        contexts = {name: cls.context(name, "ca") for name in HOSTS}
        contexts["strange.test"] = cls.context("strange.test", "other")
        # Whoever else is asked for: a good certificate of another name.
        contexts[None] = contexts["wrong.test"] = cls.context("elsewhere.test", "ca")
        cls.server = Server(contexts)
        routing = "[retry]\ncooldown = \"1s\"\n"
        names = dict(zip(("one", "two"), HOSTS), wrong="wrong.test", strange="strange.test")
        for name, host in names.items():
            (cls.folder / f"key-{name}").write_text(f"sk-{name}-" + name[0] * 16)
            routing += f'[provider.{name}]\nkind = "openai-compatible"\nbase_url = "https://{host}:{cls.server.port}/v1"\nkey = "file:{cls.folder}/key-{name}"\n'
            routing += f'[model.{name}]\ntargets = [{{ provider = "{name}", model = "{name}", price = "free" }}]\n'
        routing += '[model.around]\ntargets = [{ provider = "wrong", model = "x", price = "free", priority = 1 }, { provider = "one", model = "one", price = "free", priority = 2 }]\n'
        (cls.folder / "routing.toml").write_text(routing)
        (cls.folder / "prices.toml").write_text("")
        files = f'routing = "{cls.folder}/routing.toml", prices = "{cls.folder}/prices.toml", journal = "{cls.folder}/nginx/rows"'
        upstreams = {name: f"127.0.0.1:{cls.server.port}" for name in names}
        cls.nginx = Nginx(cls.folder / "nginx", upstreams, files, authorities=cls.folder / "ca.pem")

    @classmethod
    def tearDownClass(cls):
        cls.nginx.stop()
        shutil.rmtree(cls.folder, ignore_errors=True)

    @classmethod
    def openssl(cls, *words):
        subprocess.run(["openssl", *words], cwd=cls.folder, check=True, capture_output=True)

    @classmethod
    def context(cls, name, authority):
        cls.openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (cls.folder / "extensions").write_text(f"subjectAltName=DNS:{name}\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n")
        cls.openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial", "-out", f"{name}.pem", "-days", "30", "-extfile", "extensions")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cls.folder / f"{name}.pem", cls.folder / f"{name}.key")
        return context

    def setUp(self):
        self.server.seen.clear()
        self.server.handshakes.clear()

    def test_hosts_on_one_address_never_share_a_connection(self):
        for _ in range(6):
            for model in ("one", "two"):
                status, _, body = chat(self.nginx.port, model)
                self.assertEqual((status, body), (200, WHOLE), self.nginx.log()[-2000:])
        by_connection = {}
        for seen in self.server.seen:
            by_connection.setdefault(seen["connection"], set()).add((seen["name"], seen["host"].partition(":")[0], seen["key"].split("-")[1]))
        expected = {(HOSTS[0], HOSTS[0], "one"), (HOSTS[1], HOSTS[1], "two")}
        self.assertTrue(all(len(names) == 1 for names in by_connection.values()), by_connection)
        self.assertEqual({name for names in by_connection.values() for name in names}, expected)
        self.assertLess(len(by_connection), len(self.server.seen), "connections are kept")

    def test_a_host_that_cannot_prove_its_name_gets_no_key(self):
        for model in ("wrong", "strange"):
            status, _, body = chat(self.nginx.port, model)
            self.assertEqual(status, 502)
            self.assertIn("message", json.loads(body)["error"])
        self.assertEqual(set(self.server.handshakes), {"wrong.test", "strange.test"})
        self.assertEqual(self.server.seen, [])

    def test_the_next_target_is_asked_instead(self):
        status, headers, _ = chat(self.nginx.port, "around")
        self.assertEqual((status, headers["x-provider-used"], headers["x-was-fallback"]), (200, "one", "true"), self.nginx.log()[-2000:])
        self.assertEqual([(seen["name"], seen["key"].split("-")[1]) for seen in self.server.seen], [(HOSTS[0], "one")])


if __name__ == "__main__":
    unittest.main(verbosity=2)
