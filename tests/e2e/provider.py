"""A scripted provider: it answers every request exactly as a test says, down to the bytes of each write.

It speaks HTTP/1.1 on a raw socket, so that it can do what a framework would not allow: split a character over two writes, leave
the end mark out, reset the connection in the middle of an event. It runs on a thread of its own; tests hand it `Reply` objects
and read back `Seen` requests.
"""

import asyncio
import json
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Callable, Optional, Union

# ---------------------------------------------------------------------------------------------------------------- scripts


class Gate:
    """Holds a reply back until the test opens it, so that no test has to guess at times."""

    def __init__(self):
        self._open = threading.Event()
        self.reached = threading.Event()

    def open(self):
        self._open.set()

    async def wait(self):
        self.reached.set()
        while not self._open.is_set():
            await asyncio.sleep(0.005)


@dataclass
class Wait:
    """Lets some time pass."""

    seconds: float


class Cut:
    """Closes the connection in good order (FIN), whatever the framing promised."""


class Reset:
    """Breaks the connection (RST)."""


class Stall:
    """Says nothing more and keeps the connection open until the other side goes."""


Step = Union[bytes, Gate, Wait, Cut, Reset, Stall]


@dataclass
class Reply:
    """What to do with one request.

    `body` is bytes (sent with a Content-Length) or a list of steps (sent chunked, one chunk a step). `split` cuts what is sent
    into writes of that many bytes; `chunk_per_write` makes every such write a chunk of its own.
    """

    status: int = 200
    headers: list = field(default_factory=list)
    body: Union[bytes, list] = b""
    before: list = field(default_factory=list)  # steps before the head
    split: Optional[int] = None
    pace: float = 0.0  # seconds between writes
    close: bool = False  # end the body by closing instead of by framing
    read_body: bool = True  # wait for the whole request first
    raw: Optional[list] = None  # steps instead of an HTTP answer
    trailer_close: bool = False  # close the connection after a good answer


@dataclass
class Seen:
    """A request as it came."""

    head: bytes
    method: str
    target: str
    headers: list  # (name as written, value)
    body: bytes = b""
    connection: int = 0
    sni: Optional[str] = None
    at: float = 0.0
    framing: str = ""
    aborted: threading.Event = field(default_factory=threading.Event)
    aborted_at: float = 0.0
    answered: threading.Event = field(default_factory=threading.Event)

    def header(self, name: str) -> Optional[str]:
        """The value of a header, or None."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def json(self):
        """The body, read."""
        return json.loads(self.body)

    @property
    def path(self) -> str:
        """The path without its query."""
        return self.target.split("?")[0]


# --------------------------------------------------------------------------------------------------------------- the server


class Provider:
    """One listening port. `default` answers what no script was queued for."""

    def __init__(self, port: int, tls: Optional[ssl.SSLContext] = None, host: str = "127.0.0.1"):
        self.port, self.host, self.tls = port, host, tls
        self.seen: list = []
        self.default: Callable[[Seen], Reply] = answer
        self.connections = 0
        self.open_connections = 0
        self._queue: list = []
        self._lock = threading.Lock()
        self._writers: set = set()
        self._sni: dict = {}
        self._server = None

    # -- what a test calls

    def queue(self, *replies):
        """The next requests are answered so, in order. A reply may be a function of the request."""
        with self._lock:
            self._queue.extend(replies)
        return self

    def always(self, reply):
        """Every request without a queued reply is answered so."""
        self.default = reply if callable(reply) else (lambda _request: reply)
        return self

    @property
    def last(self) -> Seen:
        """The latest request."""
        return self.seen[-1]

    def wait_seen(self, count: int, timeout: float = 10.0) -> list:
        """Waits until `count` requests have come."""
        return until(lambda: len(self.seen) >= count and self.seen, timeout, f"{count} requests at the provider")

    def close_idle(self):
        """Closes every connection that is not in use, as a provider does after a while."""
        LOOP.call(self._close_idle())

    # -- the machinery

    def start(self):
        if self.tls is not None:
            self.tls.sni_callback = lambda sock, name, _context: self._sni.__setitem__(id(sock), name)
        self._server = LOOP.call(asyncio.start_server(self._serve, self.host, self.port, ssl=self.tls, backlog=512))
        return self

    def stop(self):
        """Stops listening and drops every connection: afterwards connecting is refused."""
        if self._server is None:
            return
        server, self._server = self._server, None

        async def close():
            server.close()
            for writer in list(self._writers):
                writer.transport.abort()

        LOOP.call(close())

    async def _close_idle(self):
        for writer in list(self._writers):
            if not getattr(writer, "busy", False):
                writer.close()

    async def _serve(self, reader, writer):
        self.connections += 1
        self.open_connections += 1
        connection = Connection(reader, writer, self.connections)
        sock = writer.get_extra_info("ssl_object")
        connection.sni = self._sni.pop(id(sock), None) if sock else None
        self._writers.add(writer)
        try:
            while await self._one(connection):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, TimeoutError):
            pass
        finally:
            self.open_connections -= 1
            self._writers.discard(writer)
            connection.close()

    async def _one(self, connection) -> bool:
        head = await connection.until(b"\r\n\r\n")
        if head is None:
            return False
        connection.writer.busy = True
        request = parse_head(head, connection)
        early = None
        with self._lock:
            if self._queue and isinstance(self._queue[0], Reply) and not self._queue[0].read_body:
                early = self._queue.pop(0)
        if early is None:
            if (request.header("expect") or "").lower() == "100-continue":
                connection.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.body, request.framing = await connection.body(request)
        with self._lock:
            self.seen.append(request)
            script = early or (self._queue.pop(0) if self._queue else self.default)
        reply = script(request) if callable(script) else script
        watcher = asyncio.ensure_future(connection.gone(request))
        try:
            again = await send(connection, reply)
            request.answered.set()
            return again
        except ConnectionError:
            connection.note_abort(request)
            return False
        finally:
            watcher.cancel()
            connection.writer.busy = False


class Connection:
    """Reads ahead, so that a client that goes away is noticed in the middle of an answer."""

    def __init__(self, reader, writer, number):
        self.reader, self.writer, self.number = reader, writer, number
        self.buffer = bytearray()
        self.sni = None
        self.eof = False
        self.news = asyncio.Event()
        self.pump = asyncio.ensure_future(self._pump())

    async def _pump(self):
        try:
            while data := await self.reader.read(1 << 16):
                self.buffer += data
                self.news.set()
        except (ConnectionError, ssl.SSLError, OSError):
            pass
        self.eof = True
        self.news.set()

    async def _more(self) -> bool:
        if self.eof:
            return False
        self.news.clear()
        await self.news.wait()
        return True

    async def until(self, mark: bytes) -> Optional[bytes]:
        while (at := self.buffer.find(mark)) < 0:
            if not await self._more() and self.buffer.find(mark) < 0:
                return None
        return self._take(at + len(mark))

    async def exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not await self._more() and len(self.buffer) < count:
                raise ConnectionError("ended in the middle of a body")
        return self._take(count)

    def _take(self, count: int) -> bytes:
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken

    async def body(self, request):
        if (length := request.header("content-length")) is not None:
            return await self.exactly(int(length)), "length"
        if "chunked" not in (request.header("transfer-encoding") or ""):
            return b"", "none"
        body = bytearray()
        while size := int((await self.until(b"\r\n")).split(b";")[0], 16):
            body += await self.exactly(size)
            await self.exactly(2)
        await self.until(b"\r\n")
        return bytes(body), "chunked"

    async def gone(self, request):
        while not self.eof:
            await self._more()
        self.note_abort(request)

    def note_abort(self, request):
        if not request.aborted.is_set():
            request.aborted_at = time.monotonic()
            request.aborted.set()

    async def wait_gone(self):
        while not self.eof:
            await self._more()

    def reset(self):
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self):
        self.pump.cancel()
        self.writer.close()


def parse_head(head: bytes, connection: Connection) -> Seen:
    lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, _version = lines[0].split(" ")
    headers = [tuple(part.strip() if index else part for index, part in enumerate(line.split(":", 1))) for line in lines[1:]]
    return Seen(head, method, target, headers, connection=connection.number, sni=connection.sni, at=time.monotonic())


async def send(connection: Connection, reply: Reply) -> bool:
    """Sends a reply. Returns whether the connection may be used again."""
    for step in reply.before:
        if not await act(connection, step, reply, False):
            return False
    if reply.raw is not None:
        for step in reply.raw:
            if not await act(connection, step, reply, False):
                return False
        return False
    steps = reply.body
    head = [f"HTTP/1.1 {reply.status} {REASONS.get(reply.status, 'Whatever')}"]
    head += [f"{name}: {value}" for name, value in reply.headers]
    chunked = not reply.close and isinstance(steps, list)
    if reply.close:
        head.append("connection: close")
    elif chunked:
        head.append("transfer-encoding: chunked")
    else:
        head.append(f"content-length: {len(steps)}")
    connection.writer.write(("\r\n".join(head) + "\r\n\r\n").encode("latin-1"))
    await connection.writer.drain()
    for step in steps if isinstance(steps, list) else [steps]:
        if not await act(connection, step, reply, chunked):
            return False
    if chunked:
        connection.writer.write(b"0\r\n\r\n")
        await connection.writer.drain()
    return not reply.close and not reply.trailer_close and reply.read_body


async def act(connection: Connection, step: Step, reply: Reply, chunked: bool) -> bool:
    writer = connection.writer
    if isinstance(step, Gate):
        await step.wait()
    elif isinstance(step, Wait):
        await asyncio.sleep(step.seconds)
    elif isinstance(step, (Cut, Reset)) or step in (Cut, Reset):
        # What was written before must be on its way, for a reset throws away what is not.
        await writer.drain()
        if isinstance(step, Reset) or step is Reset:
            await asyncio.sleep(0.05)
            connection.reset()
        return False
    elif isinstance(step, Stall) or step is Stall:
        await connection.wait_gone()
        raise ConnectionError("the other side went away")
    elif step:
        size = reply.split or len(step)
        for at in range(0, len(step), size):
            piece = step[at : at + size]
            if connection.eof:
                raise ConnectionError("the other side went away")
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            await writer.drain()
            if reply.split or reply.pace:
                # Lets the socket send what it has, so that pieces arrive apart as often as not.
                await asyncio.sleep(reply.pace)
    return True


REASONS = {200: "OK", 201: "Created", 400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found",
           408: "Request Timeout", 413: "Content Too Large", 422: "Unprocessable Content", 429: "Too Many Requests", 500: "Internal Server Error",
           502: "Bad Gateway", 503: "Service Unavailable", 529: "Overloaded"}  # fmt: skip


class Loop:
    """One event loop on one thread for all providers of a test process."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True, name="providers").start()

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)


LOOP = Loop()


def until(check, timeout: float = 10.0, what: str = "it"):
    """Polls until `check` gives something true, and returns that."""
    end = time.monotonic() + timeout
    while not (value := check()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout} s in vain for {what}")
        time.sleep(0.01)
    return value


# ------------------------------------------------------------------------------------------------------- what providers say

JSON = [("content-type", "application/json")]
SSE = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache")]
WORDS = ("A ", "weir ", "is ", "a ", "low ", "dam ", "— ", "水门 ", "🌊 ", "across ", "a ", "river.")
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def event(document, name: Optional[str] = None, end: bytes = b"\n") -> bytes:
    """One server-sent event."""
    text = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    lines = ([f"event: {name}"] if name else []) + [f"data: {line}" for line in text.split("\n")]
    return end.join(line.encode() for line in lines) + end + end


def chat_events(words=WORDS, usage=USAGE, model="up-model", done=True, end=b"\n", finish="stop") -> list:
    """A chat completion's stream, event by event. `usage=None`: the provider says nothing."""
    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1760000000, "model": model}

    def chunk(delta, reason=None):
        return {**common, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}

    events = [chunk({"role": "assistant", "content": ""})] + [chunk({"content": word}) for word in words] + [chunk({}, finish)]
    if usage is not None:
        events.append({**common, "choices": [], "usage": usage})
    return [event(one, end=end) for one in events] + ([event("[DONE]", end=end)] if done else [])


def chat_answer(text="".join(WORDS), usage=USAGE, model="up-model", **message) -> bytes:
    """A whole chat completion."""
    document = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1760000000, "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text, "refusal": None, **message}, "logprobs": None, "finish_reason": "stop"}],
    }  # fmt: skip
    if usage is not None:
        document["usage"] = usage
    return json.dumps(document, ensure_ascii=False).encode()


def completion_events(words=WORDS, usage=USAGE, model="up-model") -> list:
    """A legacy completion's stream."""
    common = {"id": "cmpl-1", "object": "text_completion", "created": 1760000000, "model": model}
    events = [{**common, "choices": [{"index": 0, "text": word, "logprobs": None, "finish_reason": None}]} for word in words]
    events.append({**common, "choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]})
    if usage is not None:
        events.append({**common, "choices": [], "usage": usage})
    return [event(one) for one in events] + [event("[DONE]")]


RESPONSE_USAGE = {"input_tokens": 11, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 7,
                  "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 18}  # fmt: skip


def response_document(text="".join(WORDS), usage=RESPONSE_USAGE, status="completed", model="up-model") -> dict:
    """A whole answer of the Responses API."""
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {
        "id": "resp_1", "object": "response", "created_at": 1760000000, "status": status, "background": False, "error": None,
        "incomplete_details": None, "instructions": None, "max_output_tokens": None, "model": model,
        "output": [{"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": content}] if status == "completed" else [],
        "parallel_tool_calls": True, "previous_response_id": None, "reasoning": {"effort": None, "summary": None}, "store": True, "temperature": 1.0,
        "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_p": 1.0, "truncation": "disabled",
        "usage": usage if status == "completed" else None, "user": None, "metadata": {},
    }  # fmt: skip


def response_events(words=WORDS, usage=RESPONSE_USAGE) -> list:
    """A stream of the Responses API."""
    item = {"type": "message", "id": "msg_1", "status": "in_progress", "role": "assistant", "content": []}
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    events = [
        {"type": "response.created", "response": response_document(status="in_progress")},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **at, "part": part},
        *({"type": "response.output_text.delta", **at, "delta": word, "logprobs": []} for word in words),
        {"type": "response.output_text.done", **at, "text": "".join(words), "logprobs": []},
        {"type": "response.completed", "response": response_document("".join(words), usage)},
    ]
    return [event({**one, "sequence_number": number}, one["type"]) for number, one in enumerate(events)]


def message_answer(text="".join(WORDS), usage=None) -> bytes:
    """A whole answer of Anthropic's Messages API."""
    usage = usage or {"input_tokens": 11, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 7, "service_tier": "standard"}
    return json.dumps({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "up-claude", "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn", "stop_sequence": None, "usage": usage,
    }, ensure_ascii=False).encode()  # fmt: skip


def message_events(words=WORDS, input_tokens=11, output_tokens=7) -> list:
    """A stream of Anthropic's Messages API."""
    start = {"id": "msg_1", "type": "message", "role": "assistant", "model": "up-claude", "content": [], "stop_reason": None, "stop_sequence": None,
             "usage": {"input_tokens": input_tokens, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 1}}  # fmt: skip
    events = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}} for word in words),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": output_tokens}},
        {"type": "message_stop"},
    ]
    return [event(one, one["type"]) for one in events]


def openai_error(message="It broke.", kind="server_error", code=None) -> bytes:
    """An error body in OpenAI's dialect."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def anthropic_error(message="It broke.", kind="api_error") -> bytes:
    """An error body in Anthropic's dialect."""
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()


def stream(steps, **more) -> Reply:
    """A stream that begins well."""
    return Reply(headers=SSE, body=list(steps), **more)


def whole(body: bytes, status=200, headers=(), **more) -> Reply:
    """A JSON answer."""
    return Reply(status=status, headers=[*JSON, *headers], body=body, **more)


def fails(status=500, body=None, headers=(), **more) -> Reply:
    """An error answer."""
    return whole(openai_error() if body is None else body, status, headers, **more)


SPEECH = bytes(range(256)) * 64


def answer(request: Seen) -> Reply:
    """What a healthy provider says, by path; a stream when one is asked for."""
    path = request.path
    if path.endswith(("/transcriptions", "/translations")):
        return whole(json.dumps({"text": "".join(WORDS), "usage": {"type": "duration", "seconds": 3}}).encode())
    if request.method == "GET":
        return whole(b'{"object":"list","data":[]}')
    document = json.loads(request.body)
    model, streams = document.get("model", "up-model"), document.get("stream") is True
    asked = (document.get("stream_options") or {}).get("include_usage") is True
    if path.endswith("/chat/completions"):
        return stream(chat_events(model=model, usage=USAGE if asked else None)) if streams else whole(chat_answer(model=model))
    if path.endswith("/completions"):
        whole_answer = {"id": "cmpl-1", "object": "text_completion", "created": 1760000000, "model": model, "usage": USAGE,
                        "choices": [{"index": 0, "text": "".join(WORDS), "logprobs": None, "finish_reason": "stop"}]}  # fmt: skip
        return stream(completion_events(model=model, usage=USAGE if asked else None)) if streams else whole(json.dumps(whole_answer).encode())
    if path.endswith("/responses"):
        return stream(response_events()) if streams else whole(json.dumps(response_document()).encode())
    if path.endswith("/messages/count_tokens"):
        return whole(b'{"input_tokens":11}')
    if path.endswith("/messages"):
        return stream(message_events()) if streams else whole(message_answer())
    if path.endswith("/embeddings"):
        vectors = {"object": "list", "model": model, "usage": {"prompt_tokens": 5, "total_tokens": 5},
                   "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5, 1e-9]}]}  # fmt: skip
        if document.get("encoding_format") == "base64":
            vectors["data"][0]["embedding"] = "AACAPgAAAL8="  # 0.25, -0.5 as little-endian floats
        return whole(json.dumps(vectors).encode())
    if path.endswith("/moderations"):
        return whole(json.dumps({"id": "modr-1", "model": model, "results": [{"flagged": False, "categories": {}, "category_scores": {}}]}).encode())
    if path.endswith("/images/generations"):
        usage = {"input_tokens": 5, "input_tokens_details": {"text_tokens": 5, "image_tokens": 0}, "output_tokens": 100, "total_tokens": 105}
        return whole(json.dumps({"created": 1760000000, "data": [{"b64_json": "aGVsbG8="}], "usage": usage}).encode())
    if path.endswith("/audio/speech"):
        return Reply(headers=[("content-type", "audio/mpeg")], body=[SPEECH[:5000], SPEECH[5000:]])
    return fails(404, openai_error("No such path.", "invalid_request_error"))
