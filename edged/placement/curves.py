"""What a stage's work costs at any batch and on any number of cores, out of the measured points: pure.

Between two measured batches seconds are taken to lie on a line; beyond the largest, and below the smallest,
they are in proportion. A lease of fewer cores than a worker has threads costs what the sibling form of so
many threads costs; where none was measured, its CPU seconds on those cores. A runtime that keeps the threads
that it was opened with pays nothing for the smaller lease: the kernel divides the cores then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise

import msgspec

from edged.placement.prices import KEEPS_THREADS, Siblings
from edged.placement.sequences import Step, budget_of
from edged.placement.silicon import Job
from edged.placement.table import Form, Point

Value = Callable[[Point], float]


class Effort(msgspec.Struct, frozen=True):
    """Of a batch: seconds when nothing else runs, and cores that it keeps busy."""

    seconds: float
    busy: float


class Curve:
    """The prices of one form."""

    def __init__(self, form: Form, siblings: Siblings) -> None:
        self.form = form
        self._siblings = siblings
        self._budget = budget_of(form)
        self.effort = cache(self._effort)
        self._reading = cache(self._read_s)
        self._writing = cache(self._write_s)
        self._passing = cache(self._pass_s)

    @property
    def streaming(self) -> bool:
        """Whether it answers token by token."""
        return any(point.new_tokens for point in self._siblings[self.form.threads].values())

    @property
    def prompt_tokens(self) -> int:
        """Of the requests that it was measured with."""
        return self._alone.length

    @property
    def cached_tokens(self) -> int:
        """Those of them that were read before, as the beginning of another prompt."""
        return self._alone.cached_tokens

    @property
    def new_tokens(self) -> int:
        """Of the answers that it was measured with."""
        return self._alone.new_tokens

    def lent(self, cores: int | None) -> int:
        """How many threads it works with under a lease; 0 off the CPU."""
        fixed = (self.form.backend, self.streaming) in KEEPS_THREADS
        return self.form.threads if cores is None or fixed else min(self.form.threads, max(1, cores))

    @property
    def one_by_one(self) -> bool:
        """Whether a batch is answered item by item: stages that read texts do so, tensor stages do not."""
        return not self.streaming and self._alone.length > 0

    @property
    def lanes(self) -> int:
        """Cores that a batch goes over, heeding its lease while it runs; 1: it keeps those it began on."""
        return self._alone.lanes

    def batch(self, size: int, threads: int) -> Job:
        """A whole batch of a stage that does not stream."""
        effort = self.effort(size, threads)
        return Job(self.form, effort.seconds, effort.busy, threads)

    def step(self, step: Step, live: int, threads: int) -> Job:
        """One step of a token engine with `live` sequences."""
        read_s = step.read * self._reading(live, threads) if step.read else 0.0
        write_s = self._writing(step.running, threads) if step.running else self._passing(threads)
        seconds = read_s + write_s
        return Job(self.form, seconds, self.effort(live, threads).busy, threads)

    @property
    def _alone(self) -> Point:
        points = self._siblings[self.form.threads]
        return points[min(points)]

    def _effort(self, size: int, threads: int) -> Effort:
        seconds = self._between(size, threads, lambda point: point.wall_s)
        core_seconds = self._between(size, threads, lambda point: point.cpu_s)
        return Effort(seconds, core_seconds / seconds if seconds else 0.0)

    def _read_s(self, live: int, threads: int) -> float:
        """Seconds per prompt token that is read when `live` sequences are there."""
        pass_s = self._passing(threads)
        return self._between(live, threads, lambda point: self._beyond_passes_s(point, pass_s)) / live

    def _beyond_passes_s(self, point: Point, pass_s: float) -> float:
        """Seconds in which every sequence of a batch has one prompt token more read, beyond the passes."""
        unread = max(point.length - point.cached_tokens, 1)
        passes = math.ceil(point.batch * unread / self._budget.alone)
        return max(point.first_s - passes * pass_s, 0.0) / unread

    def _pass_s(self, threads: int) -> float:
        """Seconds of a step for the weights alone, whatever it reads and writes; 0 where that adds up."""
        points = self._points(threads)
        if not self._budget.one_pass or len(points) < 2:  # noqa: PLR2004 - a line has two points
            return 0.0
        few, more = sorted(points)[:2]
        few_s, more_s = (_token_s(points[batch]) for batch in (few, more))
        return max(0.0, few_s - few * (more_s - few_s) / (more - few))

    def _write_s(self, running: int, threads: int) -> float:
        """Seconds of a step in which so many answers get a token."""
        return self._between(running, threads, _token_s)

    def _between(self, size: int, threads: int, value: Value) -> float:
        return interpolated({batch: value(point) for batch, point in self._points(threads).items()}, size)

    def _points(self, threads: int) -> Mapping[int, Point]:
        return self._siblings.get(threads) or self._squeezed(threads)

    def _squeezed(self, threads: int) -> Mapping[int, Point]:
        """The points of the form itself, on fewer cores than it has threads."""
        return {
            batch: _slower(point, max(1.0, point.cpu_s / threads / point.wall_s))
            for batch, point in self._siblings[self.form.threads].items()
        }


def _slower(point: Point, factor: float) -> Point:
    return msgspec.structs.replace(point, wall_s=point.wall_s * factor, first_s=point.first_s * factor)


def _token_s(point: Point) -> float:
    """Seconds of a step: all sequences of the batch began together and get their tokens together."""
    return (point.wall_s - point.first_s) / max(point.new_tokens - 1, 1)


def interpolated(known: Mapping[int, float], size: float) -> float:
    """On the line between neighbours; in proportion outside of what is known.

    >>> interpolated({1: 1.0, 8: 4.5}, 2), interpolated({2: 1.0}, 4)
    (1.5, 2.0)
    """
    sizes = sorted(known)
    if size <= sizes[0] or size >= sizes[-1]:
        nearest = sizes[0] if size <= sizes[0] else sizes[-1]
        return known[nearest] * size / nearest
    low, high = next((low, high) for low, high in pairwise(sizes) if low <= size <= high)
    return known[low] + (known[high] - known[low]) * (size - low) / (high - low)
