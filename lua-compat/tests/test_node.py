"""nginx beside a weir node: the node admits and settles, nginx does the rest, and neither loses anything while the other is away."""
import http.client, json, pathlib, shutil, signal, tempfile, threading, time, unittest
from harness import DEADLINE, Nginx, Node, ask, chat, until
from test_nginx import CHUNKS, DONE, FINISH, WHOLE, Provider, event

LONG = [event({"id": "c", "choices": [{"index": 0, "delta": {"content": " river" * 100}, "finish_reason": None}]}) for _ in range(64)]


class BesideANode(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.provider = Provider()
        cls.provider.server.handle_error = lambda *_: None
        cls.provider.streams = {"long": (LONG, 0.02)}
        cls.folder = pathlib.Path(tempfile.mkdtemp())
        cls.folder.chmod(0o755)
        cls.key = cls.folder / "key"
        cls.key.write_text("sk-platform-aaaaaaaaaaaaaaaa")
        routing, prices = cls.folder / "routing.toml", cls.folder / "prices.toml"
        routing.write_text(
            f'[provider.one]\nkind = "openai-compatible"\nbase_url = "http://127.0.0.1:{cls.provider.port}/v1"\nkey = "file:{cls.key}"\n'
            + "".join(f'[model.{name}]\ntargets = [{{ provider = "one", model = "{name}" }}]\n' for name in ("plain", "slow", "long"))
            + '[tier.own]\nrank = 1\nlevels = []\nbyok = true\n[tier.slow]\nrank = 1\nlevels = []\nlimits = { rpm = 1 }\n'
        )
        prices.write_text("".join(f'[price."one/{name}"]\ninput = "1"\noutput = "2"\n' for name in ("plain", "slow", "long")))
        cls.node = Node(cls.folder / "node", routing, prices).start()
        upstreams = {"one": f"127.0.0.1:{cls.provider.port}"}
        files = f'routing = "{routing}", prices = "{prices}", node = "unix:{cls.node.socket}", credit = "0.001"'
        cls.strict = Nginx(cls.folder / "strict", upstreams, f'{files}, journal = "{cls.folder}/strict/rows", when_node_is_away = "refuse"')
        cls.lenient = Nginx(cls.folder / "lenient", upstreams, f'{files}, journal = "{cls.folder}/lenient/rows", when_node_is_away = "config_only"', workers=2)

    @classmethod
    def tearDownClass(cls):
        cls.strict.stop()
        cls.lenient.stop()
        cls.node.end(signal.SIGTERM)
        shutil.rmtree(cls.folder, ignore_errors=True)

    def test_the_node_admits_and_has_the_row(self):
        key = self.node.key("--credits", "1000")
        self.provider.seen.clear()
        status, headers, body = chat(self.strict.port, "plain", key=key["key"], headers={"x-request-id": "mine"})
        self.assertEqual((status, body, headers["x-request-id"]), (200, WHOLE, "mine"), self.strict.log()[-2000:])
        self.assertEqual(self.provider.seen[-1]["authorization"], "Bearer " + self.key.read_text())
        row = self.node.row(key, headers["x-weir-request-id"])
        self.assertEqual((row["end"], row["input"], row["output"], row["charge"], row["provider"]), ("complete", 7, 2, "0.011", "one"))
        self.assertEqual(self.node.row(key, "mine"), row)
        status, headers, body = chat(self.strict.port, "plain", stream=True, key=key["key"])
        self.assertEqual((status, body), (200, b"".join(CHUNKS) + FINISH + DONE))
        self.assertEqual(self.node.row(key, headers["x-weir-request-id"])["charge"], "0.027")
        credits = self.node.own(key, "credits")
        self.assertEqual((credits["balance"], credits["reserved"]), ("999.962", "0"))

    def test_refusals_are_the_nodes(self):
        poor, slow = self.node.key("--credits", "0.001"), self.node.key("--tier", "slow")
        self.assertEqual(chat(self.strict.port, "plain", key=slow["key"])[0], 200)
        for key, path, status in (("wk_" + "x" * 43, "chat/completions", 401), (poor["key"], "chat/completions", 402), (slow["key"], "chat/completions", 429),
                                  ("wk_" + "x" * 43, "messages", 401)):
            body = json.dumps({"model": "plain", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]})
            asked = {"content-type": "application/json", "x-api-key": key}
            (theirs, their_headers, said), (ours, our_headers, told) = (ask(port, "POST", "/v1/" + path, body, asked) for port in (self.strict.port, self.node.port))
            self.assertEqual((theirs, json.loads(said)), (status, json.loads(told)))
            for name in ("retry-after", "x-ratelimit-limit-requests", "content-type"):
                self.assertEqual(their_headers.get(name), our_headers.get(name), name)
        self.assertEqual(chat(self.strict.port, "plain", key=slow["key"], headers={"x-weir-byok": "require"})[0], 403)

    def test_a_callers_own_key_is_used(self):
        key = self.node.key("--tier", "own", "--credits", "1000")
        own = "key-" + "o" * 40
        status, _, body = ask(self.node.port, "POST", "/weir/v1/keys", json.dumps({"provider": "one", "key": own}), {"authorization": "Bearer " + key["key"]})
        self.assertIn(status, (200, 201), body)
        status, headers, _ = chat(self.strict.port, "plain", key=key["key"])
        self.assertEqual((status, headers["x-used-byok"], self.provider.seen[-1]["authorization"]), (200, "true", "Bearer " + own))
        row = self.node.row(key, headers["x-weir-request-id"])
        self.assertEqual((row["byok"], row["charge"], row["cost"]), (True, "0", "0.000011"))

    def test_a_long_stream_is_extended_and_one_without_credits_is_ended(self):
        rich, poor = self.node.key("--credits", "1000"), self.node.key("--credits", "2")
        whole = b"".join(LONG) + FINISH + DONE
        # 6,400 tokens: 4,096 are set aside where nobody says how many there may be.
        status, headers, body = chat(self.strict.port, "long", stream=True, key=rich["key"])
        self.assertEqual((status, body), (200, whole))
        self.assertEqual(self.node.row(rich, headers["x-weir-request-id"])["end"], "complete")
        # 2 credits are a thousand tokens.
        status, headers, body = chat(self.strict.port, "long", stream=True, key=poor["key"])
        self.assertEqual(status, 200)
        self.assertTrue(body.startswith(LONG[0]) and len(body) < len(whole) and b"[DONE]" not in body)
        self.assertIn(b"insufficient", body[-600:])
        row = self.node.row(poor, headers["x-weir-request-id"])
        self.assertEqual(row["end"], "cancelled")
        # By no more than the event that used it up.
        self.assertGreater(float(self.node.own(poor, "credits")["balance"]), -0.2 - 0.1)

    def test_a_slow_admission_delays_nobody_else(self):
        key = self.node.key()
        self.assertEqual(chat(self.strict.port, "plain", key=key["key"])[0], 200)
        stream = http.client.HTTPConnection("127.0.0.1", self.strict.port, timeout=DEADLINE)
        stream.request("POST", "/v1/chat/completions", json.dumps({"model": "slow", "messages": [], "stream": True}), {"content-type": "application/json", "authorization": "Bearer " + key["key"]})
        running = stream.getresponse()
        self.node.process.send_signal(signal.SIGSTOP)
        try:
            slow = []
            started = time.monotonic()
            threads = [threading.Thread(target=lambda: slow.append((chat(self.strict.port, "plain", key=key["key"])[0], time.monotonic() - started))) for _ in range(4)]
            [thread.start() for thread in threads]
            pings = 0
            while any(thread.is_alive() for thread in threads):
                before = time.monotonic()
                ask(self.strict.port, "GET", "/pid")
                self.assertLess(time.monotonic() - before, 0.5, "others in the same worker go on")
                pings += 1
            self.assertGreater(pings, 10)
            self.assertEqual([status for status, _ in slow], [503] * 4)
            self.assertTrue(all(1 < took < 4 for _, took in slow), slow)
            self.assertEqual(running.read(), b"".join(CHUNKS) + FINISH + DONE)
        finally:
            self.node.process.send_signal(signal.SIGCONT)
            stream.close()
        # The stream's row waited in the journal.
        self.assertEqual(self.node.row(key, running.getheader("x-weir-request-id"))["end"], "complete")

    def test_nothing_is_lost_or_counted_twice_while_the_node_is_away(self):
        key = self.node.key("--credits", "1000")
        for _ in range(20):
            self.assertEqual(chat(self.lenient.port, "plain", key=key["key"])[0], 200)
        served, failed, go_on = [""] * 20, [], True

        def some():
            while go_on:
                try:
                    status, headers, _ = chat(self.lenient.port, "plain", key=key["key"])
                    (served if status == 200 else failed).append(headers["x-weir-request-id"] if status == 200 else status)
                except (OSError, http.client.HTTPException) as error:
                    failed.append(repr(error))

        threads = [threading.Thread(target=some) for _ in range(3)]
        [thread.start() for thread in threads]

        def more():
            count = len(served)
            until(lambda: len(served) > count + 30, "requests")

        more()
        self.node.end(signal.SIGKILL)
        more()
        # Who is not known is nobody's guest.
        self.assertEqual(chat(self.lenient.port, "plain", key="wk_" + "x" * 43)[0], 503)
        self.assertEqual(chat(self.strict.port, "plain", key=key["key"])[0], 503)
        self.lenient.hup()
        until(lambda: "exiting" in self.lenient.log(), "the old workers to go")
        self.node.start()
        # New workers learn who calls from the node.
        more()
        self.node.end(signal.SIGTERM)
        more()
        self.node.start()
        more()
        go_on = False
        [thread.join() for thread in threads]
        # Refused were at most those that new workers did not know yet.
        self.assertEqual([status for status in failed if status != 503], [])
        try:
            until(lambda: (self.node.usage(key) or {}).get("complete") == len(served), f"{len(served)} rows", 30)
        except AssertionError as error:
            raise AssertionError(f"{error}, but there were {self.node.usage(key)}; {failed}") from error
        time.sleep(1.5)  # a delivery that comes twice has come by now
        self.assertEqual(self.node.usage(key)["complete"], len(served))
        for request_id in {served[20], served[-1], served[len(served) // 2]}:
            self.assertEqual(self.node.own(key, "requests/" + request_id)["end"], "complete")
        nano = 1000 * 10**9 - len(served) * 11_000_000
        balance = f"{nano // 10**9}.{nano % 10**9:09}".rstrip("0").rstrip(".")
        self.assertEqual(self.node.own(key, "credits")["balance"], balance)
        self.assertEqual(list((self.folder / "lenient").glob("rows.refused")), [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
