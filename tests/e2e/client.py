"""A plain HTTP/1.1 client that shows exactly what came: every header, every body byte, and how the body ended."""

import json
import socket
import ssl
import time
from typing import Optional


class Incomplete(Exception):
    """The body ended before its framing said so."""


class Client:
    """One connection."""

    def __init__(self, port: int, tls: Optional[ssl.SSLContext] = None, timeout: float = 30.0):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
        self.buffer = bytearray()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Closes in good order."""
        self.sock.close()

    def send(self, data: bytes):
        """Sends bytes as they are."""
        self.sock.sendall(data)

    def begin(self, method: str, path: str, headers=(), host="localhost"):
        """Sends a request's head."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"] + [f"{name}: {value}" for name, value in headers]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def ask(self, method: str, path: str, body: bytes = b"", headers=(), chunks: Optional[int] = None) -> "Answer":
        """Sends a request and reads the answer's head. `chunks`: the body goes chunked, so many bytes each."""
        headers = list(headers)
        if chunks:
            self.begin(method, path, headers + [("Transfer-Encoding", "chunked")])
            for at in range(0, len(body), chunks):
                piece = body[at : at + chunks]
                self.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.send(b"0\r\n\r\n")
        else:
            if body or method == "POST":
                headers.append(("Content-Length", str(len(body))))
            self.begin(method, path, headers)
            try:
                self.send(body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # The answer may be there all the same.
        return self.answer()

    def answer(self) -> "Answer":
        """Reads an answer's head; informational ones are kept beside it."""
        informational = []
        while True:
            head = self._until(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            status = int(lines[0].split(" ")[1])
            headers = [tuple(part.strip() for part in line.split(":", 1)) for line in lines[1:] if line]
            if status >= 200:
                return Answer(self, status, headers, informational)
            informational.append(status)

    def _more(self) -> bool:
        data = self.sock.recv(1 << 16)
        self.buffer += data
        return bool(data)

    def _until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            if not self._more():
                raise Incomplete(f"the connection was closed after {bytes(self.buffer[:200])!r}")
        at = self.buffer.index(mark)
        taken = bytes(self.buffer[:at])
        del self.buffer[: at + len(mark)]
        return taken

    def _exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not self._more():
                raise Incomplete("the connection was closed in the middle of the body")
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken

    def is_closed_by_server(self, timeout: float = 5.0) -> bool:
        """Whether the server closes (or has closed) the connection."""
        self.sock.settimeout(timeout)
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


class Answer:
    """An answer whose body is read as it comes."""

    def __init__(self, client: Client, status: int, headers: list, informational: list):
        self.client, self.status, self.headers, self.informational = client, status, headers, informational
        self.chunked = "chunked" in (self.header("transfer-encoding") or "").lower()
        length = self.header("content-length")
        self.left = int(length) if length is not None else None
        self.received = bytearray()
        self.ended = False

    def header(self, name: str) -> Optional[str]:
        """A header's value, or None."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def some(self) -> bytes:
        """The next bytes of the body, b"" at its end."""
        if self.ended:
            return b""
        if self.chunked:
            size = int(self.client._until(b"\r\n").split(b";")[0], 16)
            data = self.client._exactly(size)
            self.client._until(b"\r\n")
            self.ended = size == 0
        elif self.left is not None:
            if not self.left:
                self.ended = True
                return b""
            if not self.client.buffer and not self.client._more():
                raise Incomplete("the connection was closed in the middle of the body")
            data = self.client._exactly(min(self.left, len(self.client.buffer)))
            self.left -= len(data)
            self.ended = self.left == 0
        else:
            if not self.client.buffer and not self.client._more():
                self.ended = True
                return b""
            data = self.client._exactly(len(self.client.buffer))
        self.received += data
        return data

    def until(self, text: bytes) -> bytes:
        """Reads until `text` has come."""
        while text not in self.received:
            if not self.some() and self.ended:
                raise AssertionError(f"{text!r} never came: {self.received[-500:]!r}")
        return bytes(self.received)

    def read(self) -> bytes:
        """The whole body."""
        while not self.ended:
            self.some()
        return bytes(self.received)

    def read_to_break(self) -> bytes:
        """The body up to where it breaks off or ends."""
        try:
            return self.read()
        except (Incomplete, ConnectionError):
            return bytes(self.received)

    @property
    def json(self):
        """The whole body, read."""
        return json.loads(self.read())

    @property
    def events(self) -> list:
        """The body's server-sent events as (name, data)."""
        return events(self.read())


def events(body: bytes) -> list:
    """Server-sent events as (name, data), comments left out."""
    found = []
    for block in body.replace(b"\r\n", b"\n").split(b"\n\n"):
        name, data = None, []
        for line in block.split(b"\n"):
            if line.startswith(b"event:"):
                name = line[6:].strip().decode()
            elif line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
        if data:
            found.append((name, b"\n".join(data).decode()))
    return found


def now() -> float:
    """Seconds, only for differences."""
    return time.monotonic()
