"""Cores that other processes keep busy: what is left is what edged may count on."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from edged.governor.sensors import busy_cpu_s, cpu_s

SAMPLE_S = 1.0
"""The kernel counts in hundredths of a second: over less time than this, shares of a core are noise."""
SMOOTHING_S = 3.0
"""Time constant: a neighbour is noticed within seconds, a burst of a second is not."""
DEAD_BAND = 0.6
"""Of a core: an estimate must be this far from the number in use to change it."""


class Neighbours:
    """How many cores processes that are not ours keep busy, of those that we may use."""

    def __init__(self, cores: Collection[int]) -> None:
        self._cores = cores
        self._sampled_at: float | None = None
        self._busy_s = 0.0
        self._own_s: dict[int, float] = {}
        self._estimate = 0.0
        self._taken = 0

    def taken(self, own: Iterable[int], now: float) -> int:
        """Whole cores taken by others, smoothed; `own` are our processes, `now` is a monotonic clock."""
        if self._sampled_at is None or now - self._sampled_at >= SAMPLE_S:
            self._sample({pid: cpu_s(pid) for pid in own}, busy_cpu_s(self._cores), now)
        return self._taken

    def _sample(self, own_s: dict[int, float], busy_s: float, now: float) -> None:
        if self._sampled_at is not None:
            spent_s = sum(max(0.0, used - self._own_s.get(pid, 0.0)) for pid, used in own_s.items())
            elapsed_s = now - self._sampled_at
            others = max(0.0, busy_s - self._busy_s - spent_s) / elapsed_s
            self._estimate = smoothed(self._estimate, others, elapsed_s)
            self._taken = settled(self._taken, self._estimate)
        self._sampled_at, self._busy_s, self._own_s = now, busy_s, own_s


def smoothed(before: float, measured: float, elapsed_s: float) -> float:
    """Exponential smoothing with the time constant `SMOOTHING_S`, for samples at unequal distances."""
    return before + (measured - before) * (1.0 - math.exp(-elapsed_s / SMOOTHING_S))


def settled(before: int, estimate: float) -> int:
    """The nearest whole number, once the estimate has left the dead band round the one before.

    >>> [settled(0, 0.55), settled(0, 0.7), settled(1, 0.45), settled(1, 0.3)]
    [0, 1, 1, 0]
    """
    return round(estimate) if abs(estimate - before) > DEAD_BAND else before
