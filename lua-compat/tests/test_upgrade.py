"""A replaced library takes effect on HUP; streams under way end in the old one."""
import http.client, json, os, pathlib, shutil, tempfile, unittest
from harness import DEADLINE, LIBRARY, Nginx, ask, chat, until
from test_nginx import CHUNKS, DONE, FINISH, Provider

# The same library without the panic on request: what a request with that header gets tells which one runs.
PLAIN = os.environ["WEIR_LIBRARY_PLAIN"]
PANIC = {"x-weir-panic": "1"}


class Upgrade(unittest.TestCase):
    def setUp(self):
        self.provider = Provider()
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.folder.chmod(0o755)
        (self.folder / "key").write_text("sk-first-aaaaaaaaaaaaaaaa")
        routing = f'[provider.one]\nkind = "openai-compatible"\nbase_url = "http://127.0.0.1:{self.provider.port}/v1"\nkey = "file:{self.folder}/key"\n'
        for model in ("plain", "slow"):
            routing += f'[model.{model}]\ntargets = [{{ provider = "one", model = "{model}", price = "free" }}]\n'
        (self.folder / "routing.toml").write_text(routing)
        (self.folder / "prices.toml").write_text("")
        self.library = self.folder / "libweir.so"
        shutil.copy(LIBRARY, self.library)
        settings = f'library = "{self.library}", routing = "{self.folder}/routing.toml", prices = "{self.folder}/prices.toml", journal = "{self.folder}/rows"'
        self.nginx = Nginx(self.folder / "nginx", {"one": f"127.0.0.1:{self.provider.port}"}, settings)

    def tearDown(self):
        self.nginx.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def test_a_replaced_library_takes_effect_on_hup(self):
        old = self.nginx.workers()
        self.assertEqual(chat(self.nginx.port, "plain", headers=PANIC)[0], 500)
        self.assertEqual(self.nginx.workers(), old, "the worker lives")
        stream = http.client.HTTPConnection("127.0.0.1", self.nginx.port, timeout=DEADLINE)
        stream.request("POST", "/v1/chat/completions", json.dumps({"model": "slow", "messages": [], "stream": True}), {"content-type": "application/json"})
        running = stream.getresponse()
        replacement = self.folder / "libweir.so.new"
        shutil.copy(PLAIN, replacement)
        os.rename(replacement, self.library)
        self.assertEqual(chat(self.nginx.port, "plain", headers=PANIC)[0], 500, "not before the HUP")
        self.nginx.hup()
        until(lambda: self.nginx.workers().isdisjoint(old), "new workers")
        self.assertEqual(chat(self.nginx.port, "plain", headers=PANIC)[0], 200, "the new library runs")
        new = int(ask(self.nginx.port, "GET", "/pid")[2])
        mapped = {line.split(maxsplit=5)[5] for line in pathlib.Path(f"/proc/{new}/maps").read_text().splitlines() if "libweir" in line}
        self.assertEqual(mapped, {str(self.library)})
        self.assertEqual(running.read(), b"".join(CHUNKS) + FINISH + DONE)
        stream.close()
        rows = until(lambda: [json.loads(line) for file in self.folder.glob("rows.*") for line in file.read_text().splitlines() if "slow" in line], "the stream's row")
        self.assertEqual([(row["end"], row["usage"]["output"]) for row in rows], [("complete", 10)])


if __name__ == "__main__":
    unittest.main(verbosity=2)
