"""Why a connection to a peer does not come up, as far as libzmq tells."""

from __future__ import annotations

import zmq

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
"""libzmq does not try again after a handshake that was answered with an error (RFC 26: ERROR)."""


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

    def _read(self) -> None:
        while self._monitor.poll(0):
            head, _ = self._monitor.recv_multipart()
            self._seen.add(_EVENTS.get(int.from_bytes(head[:2], "little"), ""))

    def close(self) -> None:
        """Stop watching."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
