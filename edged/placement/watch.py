"""Whether stages keep the pace that the plan in force predicts: pure.

Only a stage that is saturated says anything: its workers hold work and more waits, so that what it finishes
is all that it can. Then its pace is what it finishes per second of its time, compared with two rates: that
of the whole pipeline, which it has to keep up with (sharing cores with the others is in that), and its own
when it never waits, which it should not exceed. Between them lies all that the plan expects.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from edged.placement.table import Plan

LEFT = 0.25
"""Share by which a pace must be off before it counts: more than the model errs (benchmarks, P10)."""
BACK = 0.15
"""Within this share it counts as back; in between nothing changes."""
SATURATED = 0.9
"""Share of a window in which the workers hold work, from which on the stage counts as saturated."""
WAITING = 0.5
"""Share of the looks at which more work waited, the same."""
ENOUGH = 20
"""Items of a window, unless it has lasted for the whole patience: single batches are no rate."""
WINDOWS = 10
"""Windows that fit into the patience."""
LONGEST_WINDOW_S, SHORTEST_WINDOW_S = 10.0, 1.0
SMOOTHING = 0.3


class Reading(msgspec.Struct, frozen=True):
    """The counters of a stage at a moment."""

    done: int
    """Items finished since the start."""
    busy_s: float
    """Seconds in which workers held work since the start, all workers together."""
    workers: int
    queued: int
    """Items that wait in front of it."""


class Expected(msgspec.Struct, frozen=True):
    """Requests per second of a stage by the plan."""

    least_per_s: float
    """At which the pipeline runs."""
    most_per_s: float
    """When it never waits for cores or work."""


def pace(rate_per_s: float, expected: Expected) -> float:
    """By what factor a rate is off: below 1 too slow, above 1 too fast, 1 as expected.

    >>> pace(1.0, Expected(2.0, 4.0)), pace(3.0, Expected(2.0, 4.0)), pace(6.0, Expected(2.0, 4.0))
    (0.5, 1.0, 1.5)
    """
    if rate_per_s < expected.least_per_s:
        return rate_per_s / expected.least_per_s
    return max(1.0, rate_per_s / expected.most_per_s)


def off(factor: float, share: float) -> bool:
    """Whether a pace is off by more than a share, in either direction.

    >>> off(0.7, 0.25), off(0.8, 0.25), off(1.4, 0.25)
    (True, False, True)
    """
    return not 1 - share <= factor <= 1 / (1 - share)


@dataclass(slots=True)
class _Gauge:
    """One stage: a window that is open, and what closed ones say."""

    expected: Expected
    workers: int
    """As planned: another number says nothing about the plan."""
    since: float = 0.0
    first: Reading | None = None
    looks: int = 0
    waiting: int = 0
    pace: float | None = None
    per_s: float = 0.0
    """Items per second of its time, all workers at work."""
    off_s: float = 0.0
    flagged: bool = False

    def look(self, reading: Reading, now: float, patience_s: float) -> None:
        first = self.first
        if first is None or reading.done < first.done or reading.workers != self.workers:
            self._open(reading if reading.workers == self.workers else None, now)
            return
        self.looks += 1
        self.waiting += reading.queued > 0
        lasted_s = now - self.since
        if lasted_s < min(LONGEST_WINDOW_S, max(SHORTEST_WINDOW_S, patience_s / WINDOWS)):
            return
        saturated = self._saturated(first, reading, lasted_s)
        if saturated and reading.done - first.done < ENOUGH and lasted_s < patience_s:
            return
        if saturated:
            self._judge(first, reading, lasted_s, patience_s)
        self._open(reading, now)

    def _open(self, reading: Reading | None, now: float) -> None:
        self.first, self.since, self.looks, self.waiting = reading, now, 0, 0

    def _saturated(self, first: Reading, last: Reading, lasted_s: float) -> bool:
        held = (last.busy_s - first.busy_s) / (lasted_s * max(last.workers, 1))
        return held >= SATURATED and self.waiting >= WAITING * self.looks

    def _judge(self, first: Reading, last: Reading, lasted_s: float, patience_s: float) -> None:
        self.per_s = (last.done - first.done) / (last.busy_s - first.busy_s) * last.workers
        found = pace(self.per_s, self.expected)
        self.pace = found if self.pace is None else self.pace + SMOOTHING * (found - self.pace)
        if off(found, LEFT):
            self.off_s = min(patience_s, self.off_s + lasted_s)
        elif not off(found, BACK):
            self.off_s = max(0.0, self.off_s - lasted_s)
        self.flagged = self.off_s >= patience_s or (self.flagged and self.off_s > 0)


@dataclass(slots=True)
class Watch:
    """Compares what stages do with a plan."""

    plan: Plan
    _gauges: dict[str, _Gauge] = field(default_factory=dict)

    def look(
        self,
        readings: Mapping[str, Reading],
        now: float,
        patience_s: float,
        unplanned: Collection[str] = (),
    ) -> None:
        """Take note of how things stand; `patience_s` of saturated time change its mind, 0: never.

        Stages that run otherwise than planned are not judged, and what was said of them is forgotten; while
        workers are missing, or new ones load beside the old, nothing is learnt.
        """
        for name, choice in self.plan.choices.items():
            if name in unplanned:
                self._gauges.pop(name, None)
            elif name in readings and patience_s > 0:
                rates = Expected(
                    self.plan.predicted_rate_per_s,
                    max(choice.predicted_rate_per_s, self.plan.predicted_rate_per_s),
                )
                gauge = self._gauges.setdefault(name, _Gauge(rates, choice.workers))
                gauge.look(readings[name], now, patience_s)

    def paces(self) -> dict[str, float]:
        """By stage that was saturated: see `pace`, smoothed over windows."""
        return {name: gauge.pace for name, gauge in self._gauges.items() if gauge.pace is not None}

    def rate_per_s(self) -> float | None:
        """Of the predicted bottleneck when it was last saturated; None while it never was."""
        gauge = self._gauges.get(self.plan.bottleneck)
        return gauge.per_s if gauge and gauge.pace is not None else None

    def complaints(self) -> Iterator[str]:
        """A sentence for each stage whose pace has left the prediction for long."""
        for name, gauge in self._gauges.items():
            if gauge.flagged and gauge.pace is not None:
                slow = gauge.pace < 1
                than = gauge.expected.least_per_s if slow else gauge.expected.most_per_s
                yield (
                    f"{name} finishes {gauge.per_s:.3g} requests per second at saturation instead of "
                    f"{'at least' if slow else 'at most'} {than:.3g}"
                )
