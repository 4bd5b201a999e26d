"""What a row of the benchmark table is: a figure, the gate it must not fall below, the goal it aims at."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One line of output."""

    id: str
    value: float | None
    gate: float
    goal: float
    unit: str
    ok: bool
    detail: dict[str, Any]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table and how it is measured."""

    id: str
    what: str
    unit: str
    gate: float
    goal: float
    better: Literal["higher", "lower"]
    measure: Callable[[bool], tuple[float, dict[str, Any]]]
    """Takes `quick`; returns the figure and what an engineer wants to know beside it.
    A detail `"violations"` that is not empty fails the row whatever the figure; a detail `"gate"` takes
    the place of the gate, where a quick run is too small for it."""

    def run(self, *, quick: bool) -> Measurement:
        """Measure, and judge."""
        value, detail = self.measure(quick)
        gate = float(detail.pop("gate", self.gate))
        within = value >= gate if self.better == "higher" else value <= gate
        return Measurement(
            id=self.id,
            value=round(value, 4),
            gate=gate,
            goal=self.goal,
            unit=self.unit,
            ok=within and not detail.get("violations"),
            detail={"what": self.what, "load_average": round(os.getloadavg()[0], 2)} | detail,
        )

    def failed(self, error: Exception) -> Measurement:
        """The line of a row that could not be measured: no figure, and why."""
        why = f"{type(error).__name__}: {error}"
        return Measurement(
            id=self.id,
            value=None,
            gate=self.gate,
            goal=self.goal,
            unit=self.unit,
            ok=False,
            detail={"what": self.what, "violations": [why]},
        )


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum.

    >>> spread([3.0, 1.0, 2.0])
    {'min': 1.0, 'median': 2.0, 'max': 3.0}
    """
    return {
        "min": round(min(values), 4),
        "median": round(statistics.median(values), 4),
        "max": round(max(values), 4),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the values lies (nearest rank).

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5)
    2.0
    """
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)]


def say(text: str) -> None:
    """Progress, for people: on standard error, so that standard output stays one JSON object a line."""
    print(text, file=sys.stderr, flush=True)
