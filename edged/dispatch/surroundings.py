"""What goes on round the daemon: cores that others keep busy, memory that is left, who ran out of it."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Mapping
from itertools import chain

from edged.dispatch.events import Memory
from edged.dispatch.memory import MemoryWatch
from edged.governor.neighbours import Neighbours
from edged.governor.sensors import family
from edged.workers.process import Process, oom_kills

logger = logging.getLogger("edged.dispatcher")


class Surroundings:
    """The dispatcher's eyes. Where the machine cannot be read, the last readings stand."""

    def __init__(self) -> None:
        self._neighbours = Neighbours(os.sched_getaffinity(0))
        self._memory = MemoryWatch()
        self._blind = False
        self._oom_kills = deque([oom_kills()], maxlen=2)
        self.taken = 0
        """Whole cores that other processes keep busy."""

    def look(self, processes: Mapping[str, Process], *, busy: bool, now: float) -> Memory | None:
        """Read the machine: `taken`, and about once a second the memory, that of workers if `busy`."""
        self._oom_kills.append(oom_kills())
        try:
            started = chain.from_iterable(family(process.pid) for process in processes.values())
            self.taken = self._neighbours.taken(chain([os.getpid()], started), now)
            found = self._memory.look(processes if busy else {}, now)
        except (OSError, ValueError) as error:
            if not self._blind:
                logger.warning("the machine cannot be read", extra={"why": str(error)})
            self._blind = True
            return None
        self._blind = False
        return found

    def starved(self) -> bool:
        """Whether the kernel has killed for want of memory since the look before the last."""
        return oom_kills() > self._oom_kills[0]
