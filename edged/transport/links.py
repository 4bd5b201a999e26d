"""Descriptors over ZeroMQ: the only module that imports zmq.

ZeroMQ is the doorbell, never the record of anything: it drops what a killed peer had been handed, and
its high-water mark bounds nothing. What was sent to whom is in the ledger (`edged/dispatch/ledger.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import zmq

from edged.errors import ConfigError, ProtocolError
from edged.messages import Fault, FromWorker, ToWorker, decoder, encode

MINIMUM_LIBZMQ = (4, 3, 5)
"""Older ones carry known holes in code that runs before any authentication."""

# Flags as plain numbers: pyzmq's enumerations cost a microsecond at each use.
_EVENTS, _READABLE, _MORE_FOLLOWS = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.RCVMORE)
_NOW, _MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)

_to_worker: Callable[[bytes], ToWorker] = decoder(ToWorker)
_from_worker: Callable[[bytes], list[FromWorker]] = decoder(list[FromWorker])


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    if zmq.zmq_version_info() < MINIMUM_LIBZMQ:
        raise ConfigError(f"libzmq {zmq.zmq_version()} is too old; pyzmq brings a newer one: upgrade pyzmq")
    context = zmq.Context(io_threads=1)
    context.setsockopt(zmq.LINGER, 0)
    return context


class Router:
    """The daemon's end: one ROUTER for all workers, each known by its incarnation."""

    def __init__(self, path: Path) -> None:
        self._context = _context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, 1 << 24)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # the ledger bounds what is sent: nothing may be dropped
        self._path = path
        try:
            self._socket.bind(f"ipc://{path}")
        except zmq.ZMQError as error:
            self._context.destroy()
            raise ConfigError(
                f"cannot listen for workers on {path}: {error}; set daemon.runtime_dir to a short path of "
                "your own",
                param="daemon.runtime_dir",
            ) from error
        self.fileno = int(self._socket.getsockopt(zmq.FD))

    def send(self, incarnation: str, message: ToWorker) -> bool:
        """Ring the bell; False when that worker is not connected (its pidfd will tell why)."""
        try:
            self._socket.send(incarnation.encode(), _MORE)
            self._socket.send(encode(message), _NOW)
        except zmq.ZMQError as error:
            if error.errno in {zmq.EHOSTUNREACH, zmq.EAGAIN}:
                return False
            raise
        return True

    def pending(self) -> bool:
        """Whether messages wait; asked after each send too, since the descriptor is edge-triggered."""
        return bool(int(self._socket.get(_EVENTS)) & _READABLE)

    def receive(self) -> Iterator[tuple[str, FromWorker]]:
        """Yield what has arrived, without waiting; a malformed message counts as its sender's `Fault`."""
        while (identity := self._identity()) is not None:
            worker = identity.decode(errors="replace")
            messages: Sequence[FromWorker]
            try:
                messages = _from_worker(self._rest())
            except ProtocolError as error:
                messages = [Fault(error.code, error.message)]
            for message in messages:
                yield worker, message
            if not self.pending():
                return

    def _identity(self) -> bytes | None:
        try:
            return self._socket.recv(_NOW)
        except zmq.Again:
            return None

    def _rest(self) -> bytes:
        frame = self._socket.recv(_NOW)
        while self._socket.get(_MORE_FOLLOWS):
            frame += self._socket.recv(_NOW)
        return frame

    def close(self) -> None:
        """Close at once and remove the socket file."""
        self._socket.close(linger=0)
        self._context.term()
        self._path.unlink(missing_ok=True)


class Dealer:
    """A worker's end."""

    def __init__(self, path: Path, incarnation: str) -> None:
        self._context = _context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, incarnation.encode())
        self._socket.connect(f"ipc://{path}")

    def send(self, *messages: FromWorker) -> None:
        """Tell the dispatcher, in one ring of the bell: each costs it as much as a message is worth."""
        if messages:
            self._socket.send(encode(messages))

    def receive(self, timeout_ms: int | None = None) -> ToWorker | None:
        """Take one message; wait for it up to `timeout_ms` (None: for ever, 0: not at all)."""
        if timeout_ms == 0:
            if not int(self._socket.get(_EVENTS)) & _READABLE:
                return None
        elif timeout_ms is not None and self._socket.poll(timeout_ms, _READABLE) == 0:
            return None
        return _to_worker(self._socket.recv())

    def close(self, linger_ms: int = 1000) -> None:
        """Flush what was sent, then close."""
        self._socket.close(linger=linger_ms)
        self._context.term()
