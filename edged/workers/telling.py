"""What a worker tells of itself beside its answers: how its caches do, and its layer pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from edged.layers.report import LayerReport
from edged.messages import CacheCounters, Caches, Layers
from edged.stages.contract import Housekeeping, TokenStage
from edged.transport.links import Dealer

TELL_S = 1.0
"""Each thing is told at most this often."""

Facts = TypeVar("Facts")


class Teller(Generic[Facts]):
    """Tells the daemon facts when they have changed since they were told last; at first, `known`."""

    def __init__(self, read: Callable[[], Facts], known: Facts, send: Callable[[Facts], None]) -> None:
        self._read = read
        self._told = known
        self._send = send
        self._told_at = 0.0

    def tell(self, *, now: bool = False) -> None:
        """Tell, unless all is as before or was told a moment ago."""
        clock_s = time.monotonic()
        if not now and clock_s - self._told_at < TELL_S:
            return
        facts = self._read()
        if facts != self._told:
            self._told, self._told_at = facts, clock_s
            self._send(facts)

    def patience_ms(self) -> int | None:
        """How long a loop without work may wait for a message: for ever once everything is told."""
        if self._read() == self._told:
            return None
        return max(1, round((self._told_at + TELL_S - time.monotonic()) * 1000))


def cache_teller(stage: Housekeeping, link: Dealer) -> Teller[dict[str, CacheCounters]]:
    """Tell the counters of a stage's caches."""
    return Teller(stage.cache_counters, {}, lambda counters: link.send(Caches(counters)))


def layer_teller(stage: TokenStage, link: Dealer) -> Teller[LayerReport | None]:
    """Tell how the stages of a layer pipeline do; nothing where there is none."""

    def send(report: LayerReport | None) -> None:
        if report is not None:
            link.send(Layers(report))

    return Teller(stage.layer_report, None, send)


def soonest(*patience_ms: int | None) -> int | None:
    """The shortest of several times to wait; None is for ever.

    >>> soonest(None, 30, 20), soonest(None)
    (20, None)
    """
    return min((each for each in patience_ms if each is not None), default=None)
