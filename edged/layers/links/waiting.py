"""Waiting on sockets whose descriptors are edge-triggered, and on plain descriptors beside them."""

from __future__ import annotations

import select
from collections.abc import Sequence
from typing import Protocol


class Waited(Protocol):
    """A ZeroMQ socket as edged's links show it."""

    @property
    def fileno(self) -> int:
        """Its descriptor."""
        ...

    def pending(self) -> bool:
        """Whether messages wait."""
        ...


def wait(sockets: Sequence[Waited], descriptors: Sequence[int], timeout_s: float) -> None:
    """Come back when something can be read, or after the time."""
    if any(socket.pending() for socket in sockets):
        return
    poll = select.poll()
    for descriptor in (*(socket.fileno for socket in sockets), *descriptors):
        poll.register(descriptor, select.POLLIN)
    poll.poll(timeout_s * 1000)
