"""What a link needs of its node: sockets, and how long to wait for what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from edged.peers.book import Peer
from edged.transport.curve import Line


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long a link waits for what."""

    ping_s: float
    silence_s: float
    stall_s: float


class Wires(Protocol):
    """Opens connections, and has what arrives read."""

    def open(self, peer: Peer, heard: Callable[[], None], /) -> Line:
        """Connect; `heard` is called whenever something may have arrived."""
        ...

    def close(self, line: Line, /) -> None:
        """Undo `open`."""
        ...

    def soon(self, call: Callable[[], None], /) -> None:
        """Call in the next turn of the loop."""
        ...
