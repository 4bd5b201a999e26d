"""What two forms cost one another, from the laps that they ran side by side: pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

Lap = tuple[float, float]


def slowdowns(
    first: Sequence[Lap], second: Sequence[Lap], first_alone_s: float, second_alone_s: float
) -> tuple[float, float]:
    """Wall seconds of a batch beside the other one ÷ alone, for both.

    Only laps that lie within the other's running time count; where a side has none, its lap that
    overlaps longest.

    >>> slowdowns([(0, 2), (2, 4)], [(0, 3), (3, 6)], 1.0, 3.0)
    (2.0, 1.0)
    """
    return (
        _beside(first, _span(second)) / first_alone_s,
        _beside(second, _span(first)) / second_alone_s,
    )


def _span(laps: Sequence[Lap]) -> Lap:
    return laps[0][0], laps[-1][1]


def _beside(laps: Sequence[Lap], other: Lap) -> float:
    within = [end - start for start, end in laps if other[0] <= start and end <= other[1]]
    if within:
        return median(within)
    start, end = max(laps, key=lambda lap: min(lap[1], other[1]) - max(lap[0], other[0]))
    return end - start
