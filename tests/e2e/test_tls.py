"""TLS on both sides: certificates are verified, names are sent, HTTP/2 is spoken where it is offered."""

import asyncio
import json
import socket
import ssl
import subprocess
import threading

import httpx
import pytest
from client import Client
from conftest import free_port
from provider import Provider, chat_answer, chat_events, stream


def server_context(certificates, name="cert"):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return context


def behind(world, certificates, name="cert", ca="ca.pem", **more):
    """A provider behind TLS and a good one behind it in the order."""
    extra = f'ca = "{certificates / ca}"\npriority = 1\n' if ca else "priority = 1\n"
    provider = world.provider("p", tls=server_context(certificates, name), extra=extra, **more)
    world.provider("spare", extra="priority = 2\n")
    world.model("m", "p", "spare").start()
    return provider


def test_upstream_with_a_ca_of_ones_own(world, certificates):
    # On one thread: on two a client may have its answer before the other knows that the connection is free.
    world.weir.settings["limits"] += "\nthreads = 1"
    provider = behind(world, certificates)
    for streams in (False, True):
        answer = world.weir.chat(stream=True, stream_options={"include_usage": True}) if streams else world.weir.chat()
        assert answer.header("x-provider-used") == "p"
        assert answer.read() == (b"".join(chat_events(model="up-m")) if streams else chat_answer(model="up-m"))
    assert provider.last.sni == "localhost", "the name is sent in the handshake"
    assert provider.last.header("host") == f"localhost:{provider.port}"
    assert provider.connections == 1, "the connection is reused"


@pytest.mark.parametrize("name,ca", [("cert", None), ("cert", "other-ca.pem"), ("wrong-name", "ca.pem")], ids=["unknown CA", "another CA", "wrong name"])
def test_upstream_that_cannot_be_verified(world, certificates, name, ca):
    provider = behind(world, certificates, name, ca)
    answer = world.weir.chat()
    assert (answer.status, answer.header("x-provider-used")) == (200, "spare")
    assert provider.seen == [], "not a byte of a request"
    assert world.weir.metrics().sum("weir_attempts_total", provider="p", outcome="target_failed") == 1


def test_upstream_that_speaks_no_tls(world, certificates):
    plain = Provider(free_port()).start()
    world.provider("p", tls=server_context(certificates), extra=f'ca = "{certificates / "ca.pem"}"\n', base=f"https://localhost:{plain.port}/v1")
    weir = world.model("m", "p").start()
    answer = weir.chat()
    assert answer.status == 502
    assert plain.seen == []
    plain.stop()


def test_a_ca_that_is_not_there_is_a_problem_of_the_configuration(world, certificates):
    world.provider("p", tls=server_context(certificates), extra='ca = "nowhere.pem"\n')
    world.model("m", "p").weir.write(world.routing(), world.prices())
    done = world.weir.command("check", check=False)
    assert "nowhere.pem" in done.stdout + done.stderr


class Http2Provider:
    """The smallest provider that speaks HTTP/2: it answers every request with a stream of events, frame by frame."""

    def __init__(self, certificates):
        import h2.config
        import h2.connection
        import h2.events

        self.port, self.requests, self.connections, self.resets = free_port(), [], 0, threading.Event()
        self.stall = False
        context = server_context(certificates)
        context.set_alpn_protocols(["h2"])
        listener = socket.create_server(("127.0.0.1", self.port))

        def serve(plain):
            sock = context.wrap_socket(plain, server_side=True)
            connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
            connection.initiate_connection()
            sock.sendall(connection.data_to_send())
            bodies = {}
            while data := sock.recv(65536):
                for one in connection.receive_data(data):
                    if isinstance(one, h2.events.RequestReceived):
                        bodies[one.stream_id] = (dict(one.headers), b"")
                    elif isinstance(one, h2.events.DataReceived):
                        headers, body = bodies[one.stream_id]
                        bodies[one.stream_id] = (headers, body + one.data)
                        connection.acknowledge_received_data(one.flow_controlled_length, one.stream_id)
                    elif isinstance(one, h2.events.StreamReset):
                        self.resets.set()
                    elif isinstance(one, h2.events.StreamEnded):
                        self.requests.append(bodies[one.stream_id])
                        streams = json.loads(bodies[one.stream_id][1]).get("stream")
                        kind = "text/event-stream" if streams else "application/json"
                        connection.send_headers(one.stream_id, [(":status", "200"), ("content-type", kind), ("x-upstream", "two")])
                        for step in (chat_events() if streams else [chat_answer()])[: 4 if self.stall else None]:
                            connection.send_data(one.stream_id, step)
                            sock.sendall(connection.data_to_send())
                        if not self.stall:
                            connection.end_stream(one.stream_id)
                sock.sendall(connection.data_to_send())

        def accept():
            while True:
                try:
                    plain, _ = listener.accept()
                except OSError:
                    return
                self.connections += 1
                threading.Thread(target=lambda: _quietly(serve, plain), daemon=True).start()

        self.listener = listener
        threading.Thread(target=accept, daemon=True).start()


def _quietly(serve, plain):
    try:
        serve(plain)
    except (OSError, ssl.SSLError):
        pass


@pytest.fixture
def over_http2(world, certificates):
    provider = Http2Provider(certificates)
    # Any secret will do as its key.
    world.table("provider.p", f'kind = "openai"\nkey = "env:WEIR_ADMIN_TOKEN"\nbase_url = "https://localhost:{provider.port}/v1"\nca = "{certificates / "ca.pem"}"\nhttp2 = true')
    world.model("m", "p").start()
    yield world, provider
    provider.listener.close()


def test_upstream_over_http2(over_http2):
    world, provider = over_http2
    answer = world.weir.chat()
    assert (answer.status, answer.read()) == (200, chat_answer())
    answer = world.weir.chat(stream=True, stream_options={"include_usage": True})
    assert answer.read() == b"".join(chat_events())
    assert answer.header("x-upstream") == "two"
    headers, body = provider.requests[-1]
    assert (headers[":method"], headers[":path"], headers[":scheme"]) == ("POST", "/v1/chat/completions", "https")
    assert headers[":authority"] == f"localhost:{provider.port}"
    assert "connection" not in headers and "transfer-encoding" not in headers
    assert json.loads(body)["model"] == "up-m"
    assert world.weir.row_of(answer)["usage_source"] == "upstream"
    assert provider.connections == 1, "one connection for all"


def test_a_client_that_goes_away_resets_the_http2_stream(over_http2):
    world, provider = over_http2
    provider.stall = True
    answer = world.weir.chat(stream=True)
    answer.until(b"weir")
    answer.client.close()
    assert provider.resets.wait(5) or provider.connections == 1 and world.weir.row_of(answer)["end"] == "cancelled"


# -------------------------------------------------------------------------------------------------------------- downstream


@pytest.fixture
def served(world, certificates):
    """weir itself behind TLS."""
    world.weir.settings["listen"] += f'\ntls = {{ cert = "{certificates / "cert.pem"}", key = "{certificates / "cert.key"}" }}'
    world.openai = world.provider("openai")
    world.model("m", "openai/up-model")
    weir = world.weir
    weir.write(world.routing(), world.prices())
    created = json.loads(weir.command("key", "create", "--name", "test", "--json").stdout)
    weir.secrets.append(created["key"])
    weir.default_key = created
    weir.start()
    world.client_context = ssl.create_default_context(cafile=certificates / "ca.pem")
    return world


def test_served_over_tls_by_http_1_1(served):
    with Client(served.weir.port, tls=served.client_context) as client:
        headers = [("Authorization", f"Bearer {served.weir.default_key['key']}"), ("Content-Type", "application/json")]
        answer = client.ask("POST", "/v1/chat/completions", b'{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[]}', headers)
        assert answer.read() == b"".join(chat_events())


@pytest.mark.parametrize("http2", [True, False])
def test_alpn_chooses_the_protocol(served, http2):
    with httpx.Client(http2=http2, verify=served.client_context, base_url=f"https://localhost:{served.weir.port}") as client:
        headers = {"authorization": f"Bearer {served.weir.default_key['key']}"}
        answer = client.post("/v1/chat/completions", json={"model": "m", "stream": True, "messages": []}, headers=headers)
        assert (answer.status_code, answer.http_version) == (200, "HTTP/2" if http2 else "HTTP/1.1")
        assert answer.text.endswith("data: [DONE]\n\n")


def test_curl_over_tls(served, certificates):
    words = ["curl", "-sS", "--cacert", str(certificates / "ca.pem"), f"https://localhost:{served.weir.port}/v1/models", "-w", " %{http_version} %{ssl_verify_result}",
             "-H", f"Authorization: Bearer {served.weir.default_key['key']}"]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.stdout.endswith(" 2 0"), done


def test_plain_http_on_the_tls_port_is_not_served(served):
    with pytest.raises(Exception):
        served.weir.chat().read()
    with Client(served.weir.port, tls=served.client_context) as client:
        answer = client.ask("GET", "/v1/models", headers=[("Authorization", f"Bearer {served.weir.default_key['key']}")])
        assert answer.status == 200


def test_many_http2_streams_over_tls(served):
    async def run():
        async with httpx.AsyncClient(http1=False, http2=True, verify=served.client_context, base_url=f"https://localhost:{served.weir.port}", timeout=30) as client:
            headers = {"authorization": f"Bearer {served.weir.default_key['key']}"}
            return await asyncio.gather(
                *(client.post("/v1/chat/completions", json={"model": "m", "stream": True, "messages": []}, headers=headers) for _ in range(50)))  # fmt: skip

    answers = asyncio.run(run())
    assert all(answer.status_code == 200 and answer.text.endswith("data: [DONE]\n\n") for answer in answers)


def test_a_certificate_that_is_not_there(world):
    world.weir.settings["listen"] += '\ntls = { cert = "no.pem", key = "no.key" }'
    world.provider("p")
    world.model("m", "p").weir.write(world.routing(), world.prices())
    world.weir.may_fail = True
    world.weir.start(wait=False)
    assert world.weir.process.wait(20) == 1
    assert "no.pem" in world.weir.logs() or "tls" in world.weir.logs().lower()


def test_reply_streams_are_plain(one):
    """Without TLS in the configuration nothing is encrypted, and a TLS handshake is turned away."""
    with pytest.raises((ssl.SSLError, OSError)):
        Client(one.weir.port, tls=ssl.create_default_context(), timeout=5)
    one.openai.queue(stream(chat_events()))
    assert one.weir.chat(stream=True).status == 200
