"""A server that misbehaves on purpose: raw sockets, one thread, a script per request."""

from __future__ import annotations

import json
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Script = Callable[["Caller"], None]


class Caller:
    """One connection: what was asked, and what may be done to whoever asked."""

    def __init__(self, connection: socket.socket, head: str, body: dict) -> None:
        self._connection = connection
        self.head = head
        self.body = body
        self.over = threading.Event()

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def refuse(self, status: int, body: bytes = b"", *headers: str) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(body)}", *headers, "", ""]
        self.send("\r\n".join(lines).encode() + body)

    def begin(self, kind: str = "text/event-stream") -> None:
        self.send(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n".encode())

    def say(self, text: str, finish: str | None = None) -> None:
        choice = {"index": 0, "delta": {"content": text}, "text": text, "finish_reason": finish}
        self.send(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")

    def answer(self, *texts: str, finish: str = "stop") -> None:
        """A whole answer, as it should be."""
        self.begin()
        for text in texts:
            self.say(text)
        self.say("", finish)
        usage = {"prompt_tokens": 7, "completion_tokens": len(texts)}
        self.send(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n")

    def is_stuck(self) -> bool:
        """Whether nothing more can be sent, because the other side reads nothing for a second."""
        return not select.select([], [self._connection], [], 1.0)[1]

    def wait_until_left(self) -> bool:
        """Wait for the other side to close; False when it stayed for ten seconds."""
        self._connection.settimeout(10)
        with suppress(ConnectionError):
            try:
                while self._connection.recv(4096):
                    pass
            except TimeoutError:
                return False
        return True


class Stand:
    """Listens on a free port; the script of the moment answers every request for a completion."""

    def __init__(self, certificate: ssl.SSLContext | None = None) -> None:
        self._certificate = certificate
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "https" if certificate else "http"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self.models = b'{"data": [{"id": "smol"}]}'
        self.scripts: list[Script] = []
        """The next request takes the first; the last one stays."""
        self.calls: list[Caller] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in [self._accepting, *self._threads]:
            thread.join(20)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(ConnectionError, ValueError, ssl.SSLError):
            if self._certificate:
                with self._certificate.wrap_socket(connection, server_side=True) as wrapped:
                    self._answer(wrapped)
            else:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        head, body = _read(connection)
        if head.startswith("GET"):
            Caller(connection, head, {}).refuse(200, self.models, "connection: close")
            return
        caller = Caller(connection, head, body)
        self.calls.append(caller)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        try:
            script(caller)
        finally:
            caller.over.set()


def _read(connection: socket.socket) -> tuple[str, dict]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(connection)
    raw, _, rest = data.partition(b"\r\n\r\n")
    head = raw.decode()
    length = next(
        (int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:")), 0
    )
    while len(rest) < length:
        rest += _more(connection)
    return head, json.loads(rest or b"{}")


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionError
    return data


@contextmanager
def stand(certificate: ssl.SSLContext | None = None) -> Iterator[Stand]:
    """A stand that is taken down again."""
    made = Stand(certificate)
    try:
        yield made
    finally:
        made.close()
