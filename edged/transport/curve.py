"""Peers over TCP with CURVE: nobody is heard whose key is not on the list.

Each node has one key pair, as server and as client. A server asks `Gatekeeper` (ZAP, RFC 27) about every
client key before its first message is read; without an answer from it nobody is let in.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import zmq
from zmq.utils import z85

from edged.errors import ConfigError, ProtocolError
from edged.transport.links import MINIMUM_LIBZMQ

DOMAIN = b"edged"
_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_ZAP_VERSION = b"1.0"
KEY_BYTES = 32
HANDSHAKE_MS = 3000
"""A connection that has not shown its key by then is closed."""
RECONNECT_MS, LONGEST_RECONNECT_MS = 100, 2000
MOST_QUEUED = 4096
"""Messages; more that wait for a slow peer than its credit allows is a peer that is lost."""


class KeyPair(NamedTuple):
    """Z85 text, 40 characters each."""

    public: str
    secret: str


class Beat(NamedTuple):
    """Heartbeats of the connection itself: libzmq closes what is silent for so long."""

    interval_ms: int
    timeout_ms: int


class Heard(NamedTuple):
    """A message from an authenticated client."""

    route: bytes
    """Its connection; a new one after each reconnection."""
    key: str
    """Public key of who sent it, as it was shown at the door."""
    body: bytes


def new_keys() -> KeyPair:
    """Make a key pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def public_of(secret: str) -> str:
    """The public key of a secret one; `ConfigError` when it is none."""
    check_key(secret)
    return zmq.curve_public(secret.encode()).decode()


def check_key(text: str) -> str:
    """Return a key in Z85; `ConfigError` when it is none."""
    try:
        raw = z85.decode(text.encode("ascii"))
    except (ValueError, KeyError, UnicodeEncodeError, struct.error, zmq.ZMQError) as error:
        raise ConfigError("a key has 40 characters of Z85, as `edgectl peers keygen` prints them") from error
    if len(raw) != KEY_BYTES:
        raise ConfigError(f"a key has 40 characters, not {len(text)}; `edgectl peers keygen` prints one")
    return text


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """A context for peers alone; `ConfigError` where this libzmq cannot keep them apart."""
    if zmq.zmq_version_info() < MINIMUM_LIBZMQ:
        raise ConfigError(f"libzmq {zmq.zmq_version()} is too old; pyzmq brings a newer one: upgrade pyzmq")
    if not zmq.has("curve"):
        raise ConfigError("this libzmq was built without CURVE; install the pyzmq of PyPI")
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
    made.setsockopt(zmq.LINGER, 0)
    return made


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    try:
        return context.socket(kind)
    except zmq.ZMQError as error:  # no descriptor is left
        raise ConfigError(f"there is no socket for peers: {error}") from error


@contextmanager
def _whole(socket: zmq.Socket[bytes]) -> Iterator[None]:
    """Close a socket that cannot be set up: an open one would keep its context from ending."""
    try:
        yield
    except zmq.ZMQError as error:
        socket.close(linger=0)
        raise ConfigError(f"a socket for peers cannot be set up: {error}") from error


def _over_tcp(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, most_bytes: int, beat: Beat
) -> zmq.Socket[bytes]:
    made = _socket(context, kind)
    for option, value in (
        (zmq.MAXMSGSIZE, most_bytes),
        (zmq.SNDHWM, MOST_QUEUED),
        (zmq.RCVHWM, MOST_QUEUED),
        (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
        (zmq.HEARTBEAT_IVL, beat.interval_ms),
        (zmq.HEARTBEAT_TIMEOUT, beat.timeout_ms),
        (zmq.HEARTBEAT_TTL, beat.timeout_ms),
        (zmq.IPV6, 1),
    ):
        with _whole(made):
            made.setsockopt(option, value)
    return made


class Socket:
    """What all ends share: a descriptor to wait on, and reading without waiting."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        with _whole(socket):
            self.fileno = int(socket.getsockopt(zmq.FD))

    def pending(self) -> bool:
        """Whether messages wait; asked after each send too, since the descriptor is edge-triggered."""
        return bool(int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN)

    def close(self) -> None:
        """Close at once; what was not sent yet is forgotten."""
        self._socket.close(linger=0)


class Gatekeeper(Socket):
    """Answers which client keys may come in. Make it before any `Server` of its context."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], allowed: Callable[[str], bool]) -> None:
        super().__init__(_socket(context, zmq.ROUTER))
        self._allowed = allowed
        self._context = context
        with _whole(self._socket):
            self._socket.bind(_ZAP_ENDPOINT)
        self.refused = 0
        """Handshakes of keys that are not on the list."""

    def answer(self) -> None:
        """Answer every question that waits."""
        while self.pending():
            route, _, *question = self._socket.recv_multipart()
            key = self._key(question)
            said = [b"200", b"OK"] if key else [b"400", b"not on the list"]
            number = question[1] if len(question) > 1 else b""
            self._socket.send_multipart([route, b"", _ZAP_VERSION, number, *said, key.encode(), b""])

    def _key(self, question: list[bytes]) -> str:
        """Of version, number, domain, address, identity, mechanism, credentials; empty: not allowed."""
        match question:
            case [version, _, domain, _, _, b"CURVE", raw] if len(raw) == KEY_BYTES:
                key = z85.encode(raw).decode()
                if version == _ZAP_VERSION and domain == DOMAIN and self._allowed(key):
                    return key
        self.refused += 1
        return ""

    def prove(self) -> None:
        """Ask as libzmq would, for a key that nobody has; `ConfigError` unless it is refused."""
        stranger = _socket(self._context, zmq.REQ)
        try:
            stranger.connect(_ZAP_ENDPOINT)
            key = z85.decode(new_keys().public.encode())
            stranger.send_multipart([_ZAP_VERSION, b"1", DOMAIN, b"", b"", b"CURVE", key])
            self._socket.poll(1000)
            self.answer()
            refused = stranger.poll(1000) and stranger.recv_multipart()[2] == b"400"
        finally:
            stranger.close(linger=0)
        self.refused -= 1
        if not refused:
            raise ConfigError("the authenticator does not refuse strangers; peers stay off")


class Server(Socket):
    """Where peers come in: bound to one address, heard only by who has a listed key."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], keys: KeyPair, most_bytes: int, beat: Beat
    ) -> None:
        super().__init__(_over_tcp(context, zmq.ROUTER, most_bytes, beat))
        with _whole(self._socket):
            self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            self._socket.setsockopt(zmq.CURVE_SERVER, 1)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
            self._socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
            self._socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def bind(self, endpoint: str) -> None:
        """Listen; `ConfigError` when that address cannot be had."""
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(
                f"cannot listen for peers on {endpoint}: {error}", param="peers.listen"
            ) from error

    def receive(self) -> Iterator[Heard]:
        """Yield what has arrived, without waiting."""
        while self.pending():
            frames = self._socket.recv_multipart(copy=False)
            try:
                key = str(frames[-1].get("User-Id"))
            except zmq.ZMQError:
                key = ""
            body = bytes(frames[1].buffer) if len(frames) == 2 else b""  # noqa: PLR2004 (route and body)
            yield Heard(bytes(frames[0].buffer), key, body)

    def send(self, route: bytes, body: bytes) -> bool:
        """False when that connection is gone, or takes nothing any more."""
        try:
            self._socket.send_multipart([route, body], zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True


class Line(Socket):
    """A client's connection to one peer; libzmq connects again by itself, until it is refused."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        keys: KeyPair,
        endpoint: str,
        server_key: str,
        *,
        most_bytes: int,
        beat: Beat,
    ) -> None:
        super().__init__(_over_tcp(context, zmq.DEALER, most_bytes, beat))
        for option, value in (
            (zmq.IMMEDIATE, 1),  # nothing is kept for a peer that is not there
            (zmq.RECONNECT_IVL, RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, LONGEST_RECONNECT_MS),
            (zmq.CONNECT_TIMEOUT, LONGEST_RECONNECT_MS),
            (zmq.CURVE_PUBLICKEY, keys.public.encode()),
            (zmq.CURVE_SECRETKEY, keys.secret.encode()),
            (zmq.CURVE_SERVERKEY, server_key.encode()),
        ):
            with _whole(self._socket):
                self._socket.setsockopt(option, value)
        with _whole(self._socket):
            self.quarrel = Quarrel(self._socket)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"{endpoint} is no address of a peer: {error}") from error

    def close(self) -> None:
        """Close at once; see `Socket.close`."""
        self.quarrel.close()
        super().close()

    def send(self, body: bytes) -> bool:
        """False when there is no connection, or it takes nothing any more."""
        try:
            self._socket.send(body, zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True

    def receive(self) -> Iterator[bytes]:
        """Yield what has arrived, without waiting; more than one frame is malformed."""
        while self.pending():
            frames = self._socket.recv_multipart()
            if len(frames) != 1:
                raise ProtocolError("a peer's message has one frame")
            yield frames[0]

    def wait(self, timeout_ms: int) -> bool:
        """Wait for a message; for programs that have nothing else to do."""
        return bool(self._socket.poll(timeout_ms, zmq.POLLIN))


_EVENTS = {
    int(zmq.EVENT_CONNECTED): "connected",
    int(zmq.EVENT_CONNECT_RETRIED): "retried",
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): "handshake",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "handshake",
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "refused",
    int(zmq.EVENT_HANDSHAKE_SUCCEEDED): "admitted",
    int(zmq.EVENT_DISCONNECTED): "closed",
}
_SENTENCES = (
    ("admitted", "let this node in and then did not answer; it may run another version"),
    ("refused", "does not know this node's key: add it there with `edgectl peers add`"),
    ("handshake", "does not have the key that was added for it"),
    ("closed", "closed the connection: it may have another key than the one that was added for it"),
    ("connected", "took the connection and said nothing: it may have another key than was added"),
)
_FINAL = frozenset({"refused", "handshake"})
"""A handshake that the server answers with an error (RFC 26) is the last: libzmq does not connect again."""


class Quarrel:
    """What happened to one connecting socket; made before it connects, so that nothing is missed."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._monitor = socket.get_monitor_socket()
        self._seen: set[str] = set()

    def refused(self) -> bool:
        """Whether a handshake failed: the socket is of no use any more."""
        self._read()
        return not _FINAL.isdisjoint(self._seen)

    def reason(self) -> str:
        """What happened so far, as the end of a sentence about the peer."""
        self._read()
        for event, sentence in _SENTENCES:
            if event in self._seen:
                return sentence
        return "does not answer: nobody listens there, or a firewall drops what is sent"

    def forget(self) -> None:
        """Count from now on: a connection stands."""
        self._read()
        self._seen.clear()

    def closed(self) -> bool:
        """Whether a connection ended."""
        self._read()
        return "closed" in self._seen

    def _read(self) -> None:
        while self._monitor.poll(0):
            head, _ = self._monitor.recv_multipart()
            self._seen.add(_EVENTS.get(int.from_bytes(head[:2], "little"), ""))

    def close(self) -> None:
        """Stop watching."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
