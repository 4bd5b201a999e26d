"""Who should not be heard: strangers, plain text, impostors, replays and floods against one listening daemon.

Each attack ends when there is proof that it was turned away; whether anything reached the application, the
daemon's own counter tells.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import zmq

from edged.messages import encode
from edged.peers.book import Peer
from edged.peers.messages import Take
from edged.peers.probe import probe
from edged.transport.curve import KeyPair, new_keys

PATIENCE_S = 8.0
ATTEMPTS = 20
TURNED_AWAY = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
)
TASK = encode(Take(1, 1, "any", 1, b"\x80", 1000, "interactive", (), 0))


class Target(NamedTuple):
    """A listening daemon, and keys that it knows."""

    endpoint: str
    server: str
    """Its public key."""
    friend: KeyPair
    """Of a listed peer."""


def attacks(target: Target) -> dict[str, Callable[[], None]]:
    """By name; each raises `TimeoutError` when it was not turned away in time.

    What the replay replays is recorded now: an honest visit.
    """
    recording = _record(target)
    return {
        "unknown key": lambda: _knock(target, new_keys(), target.server),
        "plain text": lambda: _knock(target, None, ""),
        "wrong server key": lambda: _knock(target, target.friend, new_keys().public),
        "replayed bytes": lambda: _replay(target, recording),
        "half a handshake": lambda: _half(target),
        "oversize": lambda: _oversize(target),
    }


NAMES = ("unknown key", "plain text", "wrong server key", "replayed bytes", "half a handshake", "oversize")


def _knock(target: Target, keys: KeyPair | None, server: str) -> None:
    """Send tasks without the right to, until the connection has been refused."""
    with _dealer(target, keys, server, zmq.EVENT_ALL) as (dealer, monitor):
        _send_until(dealer, monitor, TASK, TURNED_AWAY)


def _oversize(target: Target) -> None:
    """A listed peer sends more than any message may hold: it is cut off."""
    with _dealer(target, target.friend, target.server, zmq.EVENT_ALL) as (dealer, monitor):
        _send_until(dealer, monitor, bytes(64 << 20), zmq.EVENT_DISCONNECTED)


@contextlib.contextmanager
def _dealer(
    target: Target, keys: KeyPair | None, server: str, events: int
) -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    if keys is not None:
        dealer.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
        dealer.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
        dealer.setsockopt(zmq.CURVE_SERVERKEY, server.encode())
    monitor = dealer.get_monitor_socket(events)
    dealer.connect(target.endpoint)
    try:
        yield dealer, monitor
    finally:
        dealer.disable_monitor()
        monitor.close(linger=0)
        dealer.close(linger=0)
        context.term()


def _send_until(dealer: zmq.Socket[bytes], monitor: zmq.Socket[bytes], body: bytes, events: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    left = ATTEMPTS
    while time.monotonic() < deadline:
        if left:
            left -= 1
            with contextlib.suppress(zmq.Again):
                dealer.send(body, zmq.DONTWAIT)
        if monitor.poll(50) and struct.unpack("=H", monitor.recv_multipart()[0][:2])[0] & events:
            return
    raise TimeoutError("it was not turned away")


def _record(target: Target) -> bytes:
    recorder = _Recorder(target)
    with recorder:
        peer = Peer(name="recorded", key=target.server, endpoint=recorder.endpoint)
        probe(peer, target.friend, PATIENCE_S)
    assert len(recorder.sent) > 300, "nothing was recorded"
    return bytes(recorder.sent)


def _replay(target: Target, recording: bytes) -> None:
    """Send the bytes of an honest visit again, on new connections."""
    for _ in range(3):
        _pour(target, recording)


def _half(target: Target) -> None:
    """Open connections and say nothing, or nonsense: they are closed, and cost nobody anything."""
    idle = [_connect(target) for _ in range(50)]
    _pour(target, os.urandom(4096))
    for connection in idle:
        connection.close()


def _connect(target: Target) -> socket.socket:
    parts = urlsplit(target.endpoint)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 0), timeout=PATIENCE_S)


def _pour(target: Target, data: bytes) -> None:
    """Send bytes, and wait until the other side hangs up."""
    with _connect(target) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(data)
        while connection.recv(65536):
            pass


class _Recorder:
    """A TCP relay that keeps what the client sends."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = bytearray()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        self._listener.settimeout(PATIENCE_S)
        client, _ = self._listener.accept()
        with client, _connect(self._target) as server, selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, (server, True))
            selector.register(server, selectors.EVENT_READ, (client, False))
            while not self._stop.is_set():
                for key, _ in selector.select(0.05):
                    other, kept = key.data
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    if not data:
                        return
                    self.sent.extend(data if kept else b"")
                    other.sendall(data)
