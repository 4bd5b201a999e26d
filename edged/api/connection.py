"""One client connection: uvicorn's HTTP/1.1 protocol with edged's limits on top.

Limits live here because they concern bytes and time, not requests: how many connections there are,
how long a head may take, how long a full output buffer may stay full.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edged.api.errors import raw_response
from edged.errors import BadRequest, BodyTimeout, EdgedError, Overloaded, TooLarge

logger = logging.getLogger("edged.api")

HEAD_TIMEOUT_S = 5.0
KEEP_ALIVE_S = 75
SLOW_CONSUMER_S = 5.0
OUTPUT_BUFFER_BYTES = 256 << 10
HEAD_BYTES = 64 << 10


class Peer(msgspec.Struct, frozen=True):
    """Who is at the other end of the socket, by SO_PEERCRED; -1 where the kernel does not say."""

    pid: int = -1
    uid: int = -1
    gid: int = -1


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one listening server allows."""

    connections: int
    head_s: float = HEAD_TIMEOUT_S
    slow_consumer_s: float = SLOW_CONSUMER_S
    output_bytes: int = OUTPUT_BUFFER_BYTES
    head_bytes: int = HEAD_BYTES
    message_bytes: int = 32 << 20
    """Head, body, chunk framing and trailers of one request together."""


def _nothing() -> None:
    """What is called for one who no longer waits."""


class JoinedWrites:
    """A transport that holds the head of a response back until what follows it: one write, not two."""

    __slots__ = ("_head", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        """Send, or hold, a head."""
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n") and data[9:12] != b"100":
            self._head = data
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Send a head that nothing follows."""
        if self._head:
            self._transport.write(self._head)
            self._head = b""

    def close(self) -> None:
        """Send everything, then close."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def peer_of(connection: socket.socket | None) -> Peer:
    """Ask the kernel who connected."""
    if connection is None or connection.family != socket.AF_UNIX:
        return Peer()
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return Peer(*struct.unpack("3i", credentials))


class Connection(HttpToolsProtocol):
    """A connection that cannot hurt its neighbours; subclassed with its `limits` by the server."""

    limits = Limits(connections=1024)
    _head_timer: asyncio.TimerHandle | None = None
    _output_timer: asyncio.TimerHandle | None = None
    _in_head = False
    _refused = False
    _message_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit the connection, or answer 503 at once when there are too many."""
        super().connection_made(transport)
        self._joined = JoinedWrites(transport)
        self.transport = cast("asyncio.Transport", self._joined)
        self.closed = asyncio.Event()
        self._on_lost: dict[object, Callable[[], None]] = {}
        transport.set_write_buffer_limits(high=self.limits.output_bytes)
        self.peer = peer_of(transport.get_extra_info("socket"))
        if len(self.connections) > self.limits.connections:
            self._refuse(Overloaded("too many connections; close idle ones and try again"), 503)
        else:
            self._await_next_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers; uvicorn tells the application."""
        self._stop_head_timer()
        self._stop_output_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self.closed.set()
        for gone in list(self._on_lost.values()):
            gone()

    def on_lost(self, gone: Callable[[], None]) -> Callable[[], None]:
        """Have `gone` called when the client hangs up, soon if it has; the answer takes that back."""
        key = object()
        self._on_lost[key] = gone
        if self.closed.is_set():
            self.loop.call_soon(lambda: self._on_lost.get(key, _nothing)())  # noqa: PLW0108 (asked when due)
        return lambda: self._on_lost.pop(key, None) and None

    @property
    def body_complete(self) -> bool:
        """Whether the request in hand has arrived whole."""
        return self.cycle is not None and not self.cycle.more_body

    def data_received(self, data: bytes) -> None:
        """Parse; stray bytes between requests do not hold a connection open."""
        if self._refused:
            return
        self._message_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_timer is None and not self._refused:
            self._head_timer = self.loop.call_later(self.limits.head_s, self._head_late)
        self._check_size()
        if self.timeout_keep_alive_task is None and self._idle():
            self._await_next_request()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP in the same shape as every other error."""
        self._refuse(BadRequest(msg), 400)

    def on_message_begin(self) -> None:
        """A head begins: if it does not arrive whole, its clock starts."""
        super().on_message_begin()
        self.scope["edged.connection"] = self  # type: ignore[typeddict-unknown-key]
        self._message_bytes = 0
        self._in_head = True

    def on_headers_complete(self) -> None:
        """Stop the clock and hand the request over; a target that is no URL is refused."""
        self._in_head = False
        self._stop_head_timer()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Send what is held; uvicorn goes on to the next request."""
        self._joined.flush()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The output buffer is full: the client gets some seconds to read."""
        super().pause_writing()
        self._watch_output()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._stop_output_timer()

    def _check_size(self) -> None:
        """The parser buffers a head and trailers of any size; this is what bounds them."""
        limit = self.limits.head_bytes if self._in_head else self.limits.message_bytes
        if self._message_bytes > limit and not self._refused:
            self._refuse(TooLarge(f"the request is larger than {limit} bytes"), 431)

    def _idle(self) -> bool:
        waiting = self.cycle is None or self.cycle.response_complete
        return waiting and not self._in_head and not self.transport.is_closing()

    def _await_next_request(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _refuse(self, error: EdgedError, status: int) -> None:
        self._refused = True
        self._stop_head_timer()
        self.transport.write(raw_response(error, status))
        self.transport.close()

    def _head_late(self) -> None:
        self._head_timer = None
        self._refuse(BodyTimeout(f"the head of a request took longer than {self.limits.head_s:g} s"), 408)

    def _watch_output(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._output_timer = self.loop.call_later(self.limits.slow_consumer_s, self._output_late, unread)

    def _output_late(self, unread_before: int) -> None:
        """Cut off a client that read nothing; one that reads slowly is given another turn."""
        if self.transport.get_write_buffer_size() < unread_before:
            self._watch_output()
            return
        details: dict[str, Any] = {"code": "slow_consumer", "uid": self.peer.uid, "pid": self.peer.pid}
        logger.warning("client reads nothing: connection cut", extra=details)
        self.transport.abort()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_output_timer(self) -> None:
        if self._output_timer is not None:
            self._output_timer.cancel()
            self._output_timer = None
