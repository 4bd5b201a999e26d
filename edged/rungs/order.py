"""Whether the order of a ladder is right: each rung gives up quality for work, the cheapest step first. Pure.

On the way down a good ladder gives up the least quality for the work that it saves, step by step: its
points in the plane of work and quality lie on their own upper convex hull. What `complaints` says is beyond
the margins of what was measured; where these are too wide to say anything, `doubts` says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec

LEAST = 0.01
"""Qualities that differ by less are the same."""
LEAST_PRICE = 0.02
"""Qualities given up for the work saved that differ by less are the same."""
LEAST_SAVED = 0.05
"""Of the first rung's work: a step that saves less is none."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A rung: its work and quality in proportion to the first rung's, each with its 95 % margin."""

    name: str
    cost: float
    quality: float
    cost_margin: float = 0.0
    quality_margin: float = 0.0


class Step(msgspec.Struct, frozen=True):
    """From one rung to the next."""

    before: Point
    after: Point

    @property
    def saved(self) -> float:
        """Work that is saved; negative where it costs more."""
        return self.before.cost - self.after.cost

    @property
    def lost(self) -> float:
        """Quality that is given up."""
        return self.before.quality - self.after.quality

    @property
    def cost_margin(self) -> float:
        """Of what is saved: both ends are measured."""
        return math.hypot(self.before.cost_margin, self.after.cost_margin)

    @property
    def quality_margin(self) -> float:
        """Of what is given up."""
        return math.hypot(self.before.quality_margin, self.after.quality_margin)

    @property
    def saves(self) -> bool:
        """Whether it surely saves something."""
        return self.saved > self.cost_margin

    @property
    def is_idle(self) -> bool:
        """Whether it surely saves next to nothing."""
        return self.saved + self.cost_margin < LEAST_SAVED


def complaints(points: Sequence[Point]) -> tuple[str, ...]:
    """What is wrong with the order of these rungs, best first; a sentence each.

    Only rungs that change answers belong in it: one that refuses requests saves by refusing.

    >>> complaints([Point(name="full", cost=1, quality=1), Point(name="odd", cost=1.2, quality=0.9)])
    ("'odd' saves no work: 1.20 ±0.00 of the first rung's, and 'full' before it 1.00",)
    """
    steps = [Step(before, after) for before, after in pairwise(points)]
    return (*_savings(steps), *_dominated(points), *_order(steps))


def doubts(points: Sequence[Point]) -> tuple[str, ...]:
    """The rungs of which cannot be said whether they save work: too little was measured for it."""
    steps = [Step(before, after) for before, after in pairwise(points)]
    return tuple(step.after.name for step in steps if not (step.saves or step.is_idle))


def _savings(steps: Sequence[Step]) -> Iterator[str]:
    for step in steps:
        if step.is_idle:
            yield (
                f"{step.after.name!r} saves no work: {step.after.cost:.2f} ±{step.cost_margin:.2f} of the "
                f"first rung's, and {step.before.name!r} before it {step.before.cost:.2f}"
            )


def _dominated(points: Sequence[Point]) -> Iterator[str]:
    for place, point in enumerate(points):
        better = next((other for other in points[place + 1 :] if _beats(other, point)), None)
        if better is not None:
            yield (
                f"{point.name!r} is never worth it: {better.name!r} below it does less work "
                f"({better.cost:.2f}, not {point.cost:.2f}) and is better ({better.quality:.2f}, not "
                f"{point.quality:.2f})"
            )


def _beats(other: Point, point: Point) -> bool:
    down, up = Step(point, other), Step(other, point)
    return down.saves and up.lost > max(LEAST, up.quality_margin)


def _order(steps: Sequence[Step]) -> Iterator[str]:
    """A step that surely gives up more for its savings than a later one surely does."""
    useful = [step for step in steps if step.saves]
    for place, step in enumerate(useful):
        later = [each for each in useful[place + 1 :] if _dearest(each) + LEAST_PRICE < _cheapest(step)]
        if later:
            best = min(later, key=_dearest)
            yield (
                f"{best.after.name!r} belongs before {step.after.name!r}: it gives up "
                f"{max(0.0, best.lost) / best.saved:.2f} of the quality for all of the work, "
                f"{step.after.name!r} {step.lost / step.saved:.2f}"
            )


def _cheapest(step: Step) -> float:
    """Quality that is given up for the work saved, at least."""
    return (step.lost - step.quality_margin) / (step.saved + step.cost_margin)


def _dearest(step: Step) -> float:
    """The same, at most."""
    return (step.lost + step.quality_margin) / (step.saved - step.cost_margin)
