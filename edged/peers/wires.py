"""The sockets of this node on the daemon's loop: nothing here waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edged.errors import ConfigError
from edged.peers.book import Peer
from edged.peers.seams import Patience
from edged.transport.curve import Beat, Gatekeeper, KeyPair, Line, Server, Socket, context


def beat_of(patience: Patience) -> Beat:
    """Heartbeats of the connections themselves, a little less impatient than the links."""
    timeout_ms = round(1250 * patience.silence_s)
    return Beat(timeout_ms // 3, timeout_ms)


class LoopWires:
    """Opens sockets of one context, and calls back when something may have arrived."""

    def __init__(self, keys: KeyPair, most_bytes: int, beat: Beat) -> None:
        self._keys = keys
        self._most_bytes = most_bytes
        self._beat = beat
        self._loop = asyncio.get_running_loop()
        self._context = context()

    def gate(self, allowed: Callable[[str], bool]) -> Gatekeeper:
        """The authenticator, proved to refuse strangers: before any `serve`."""
        gate = Gatekeeper(self._context, allowed)
        try:
            gate.prove()
        except ConfigError:
            gate.close()
            raise
        self._watch(gate, gate.answer)
        return gate

    def serve(self, endpoint: str) -> Server:
        """Listen for peers; `ConfigError` when that address cannot be had."""
        server = Server(self._context, self._keys, self._most_bytes, self._beat)
        try:
            server.bind(endpoint)
        except ConfigError:
            server.close()
            raise
        return server

    def open(self, peer: Peer, heard: Callable[[], None]) -> Line:
        """See `Wires.open`."""
        line = Line(
            self._context,
            self._keys,
            peer.endpoint,
            peer.key,
            most_bytes=self._most_bytes,
            beat=self._beat,
        )
        self._watch(line, heard)
        return line

    def watch(self, socket: Socket, heard: Callable[[], None]) -> None:
        """Call whenever something may have arrived."""
        self._watch(socket, heard)

    def _watch(self, socket: Socket, heard: Callable[[], None]) -> None:
        self._loop.add_reader(socket.fileno, heard)

    def close(self, socket: Socket) -> None:
        """Close a socket that was watched."""
        self._loop.remove_reader(socket.fileno)
        socket.close()

    def soon(self, call: Callable[[], None]) -> None:
        """See `Wires.soon`."""
        self._loop.call_soon(call)

    def end(self) -> None:
        """Give the context back, once all its sockets are closed."""
        self._context.term()
