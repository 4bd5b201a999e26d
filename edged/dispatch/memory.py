"""Looks at the memory now and then, for the batch controllers."""

from __future__ import annotations

from collections.abc import Mapping

from edged.dispatch.events import Memory
from edged.governor.sensors import available_bytes, family_bytes
from edged.workers.process import Process

LOOK_S = 0.95
"""A little less than a tick of an idle daemon, so that it looks at each."""


class MemoryWatch:
    """At most one look a second: a look at a process costs a twentieth of a millisecond."""

    def __init__(self) -> None:
        self._looked_at = float("-inf")

    def look(self, processes: Mapping[str, Process], now: float) -> Memory | None:
        """What is left, and what these workers take; None when the last look was just now."""
        if now - self._looked_at < LOOK_S:
            return None
        self._looked_at = now
        resident = {name: family_bytes(process.pid) for name, process in processes.items()}
        return Memory(available_bytes(), resident)
