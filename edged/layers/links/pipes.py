"""Frames between processes of one machine: ZeroMQ over a socket file in a private folder. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import zmq

from edged.errors import ConfigError

Buffer = bytes | memoryview


class Inlet:
    """Binds an address; `ConfigError` where it cannot be had.

    Its descriptor is edge-triggered: ask `pending` before waiting on it.
    """

    def __init__(self, address: str) -> None:
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVHWM, 0)  # micro-batches bound what is on its way
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(
                f"stages of a layer pipeline cannot meet at {address}: {error}; set TMPDIR to a short path"
            ) from error
        self.fileno = int(self._socket.getsockopt(zmq.FD))

    def pending(self) -> bool:
        """Whether a message waits."""
        return bool(int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN)

    def watch(self, descriptors: Sequence[int]) -> Callable[[int | None], bool]:
        """Return a call that waits so many ms for a message or a descriptor; it says whether one came."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        for descriptor in descriptors:
            poller.register(descriptor, zmq.POLLIN)
        return lambda left_ms: bool(poller.poll(left_ms))

    def take(self) -> list[memoryview]:
        """Take the next message's frames; waits for it."""
        return [frame.buffer for frame in self._socket.recv_multipart(copy=False)]

    def close(self) -> None:
        """Close; idempotent."""
        self._context.destroy(linger=0)


class Outlet:
    """Connects to an address."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 5)  # ms: the neighbour binds at about the same time
        self._socket.connect(address)

    def send(self, *frames: Buffer) -> None:
        """Post a message."""
        self._socket.send_multipart(frames)

    def close(self, linger_ms: int = 1000) -> None:
        """Close; what is posted has so long to leave."""
        self._context.destroy(linger=linger_ms)
