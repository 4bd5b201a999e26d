"""The governor at work: it hears samples and the operator, decides, and has its decisions carried out."""

from __future__ import annotations

from collections.abc import Callable

from edged.config import Config
from edged.dispatch.dispatcher import Dispatcher
from edged.governor.bands import policy_of
from edged.governor.force import InForce
from edged.governor.ladder import State


class Governing:
    """Holds the rung in force. Construct, then `begin` on the running loop, and `feel` every sample."""

    def __init__(self, config: Callable[[], Config], dispatcher: Dispatcher) -> None:
        self._config = config
        self._dispatcher = dispatcher
        ladder = config().governor.ladder
        self._policy = policy_of(config().governor)
        self._state = State()
        self._missing: dict[str, str] = {"peer": "no peer is configured"}
        self.force = InForce(0, ladder[0].name, ladder[0])

    def offer(self, what: str, *, available: bool, why: str = "") -> None:
        """Say that what a rung does (`peer`, `bypass_rerank`, `variants`: a field of `Rung`) can be done, or
        not, and why not: rungs that do nothing else are taken, or skipped, from now on. Idempotent.
        """
        if available:
            self._missing.pop(what, None)
        else:
            self._missing[what] = why
