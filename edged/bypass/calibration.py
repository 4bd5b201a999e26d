"""From which margin on reranking is not worth its work: learnt from the questions of one library: pure.

Every question that is reranked says what the order before had missed (`edged.stages.margin.missed`). By
margin, these are averaged in bins, made monotone (a larger margin never misses more: pool adjacent
violators, Barlow, Bartholomew, Bremner and Brunk, 1972) and weighted by how often such margins come, so that
it does not matter which questions were reranked. Questions pass by from the smallest margin on at which the
loss of all that pass, taken at the upper end of its one-sided 95 % interval, keeps within `BUDGET_POINTS`,
and that of each within `WORST_POINTS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import inf, isfinite, sqrt

import msgspec

BINS = 40
"""Of equal width over margins 0..1; below 0 counts as 0."""
BUDGET_POINTS = 0.5
"""Of nDCG@10, on average over all questions, those included that are reranked."""
WORST_POINTS = 3.0
"""That a question may be expected to lose, however few lose as much."""
LARGE = 0.65
"""Margins that say something: what is learnt must have seen some of them."""
CONFIDENCE = 1.645
"""Standard errors of a one-sided 95 % interval."""
MOST = 4000.0
"""Questions that count; when more have come, all count half from then on: what is new weighs more."""


class Worth(msgspec.Struct, frozen=True):
    """What is lost for a whole unit missed: a reranker that is right as often as not gains nothing."""

    points: float
    """Of nDCG@10."""
    caution: float
    """By how much more it may be where margins are large."""
    from_margin: float
    """Where passing by begins until enough is learnt."""

    @property
    def enough(self) -> float:
        """Questions before what was learnt is used.

        If none of so many loses anything, less than three in so many do with 95 % confidence (rule of three),
        and these may lose all.
        """
        return 3 * self.points / BUDGET_POINTS


MEASURED = {("bge-small-en-v1.5", "ms-marco-minilm-l12-v2"): Worth(33.0, 1.0, 0.7)}
"""By embedder and reranker, on 1,000 questions of HotpotQA: 33 points over all, 14 where the margin is above
0.5. From 0.7 on, twice the loss keeps the budget."""
UNMEASURED = Worth(100.0, 2.4, inf)
"""Of others: the reranker is believed. Caution as with all-minilm-l6-v2, of which large margins tell less."""
SHIPPED = (0.2, 0.2, 0.2, 0.145, 0.11, 0.066, 0.041, 0.024, 0.014, 0.008)
"""Missed, by tenths of the margin, by the measured pair: every other of those questions."""


def worth_of(embedder: str, reranker: str) -> Worth:
    """By the names of the models."""
    return MEASURED.get((embedder, reranker), UNMEASURED)


class Evidence(msgspec.Struct):
    """What has been seen, by bin of the margin."""

    seen: list[float] = msgspec.field(default_factory=lambda: [0.0] * BINS)
    """Questions that came, reranked or not."""
    judged: list[float] = msgspec.field(default_factory=lambda: [0.0] * BINS)
    """Those that were reranked."""
    missed: list[float] = msgspec.field(default_factory=lambda: [0.0] * BINS)
    """Sums over those."""
    squares: list[float] = msgspec.field(default_factory=lambda: [0.0] * BINS)

    def __post_init__(self) -> None:
        """Refuse what no sequence of questions could have left: `ValueError`."""
        for column in (self.seen, self.judged, self.missed, self.squares):
            if len(column) != BINS or not all(map(isfinite, column)):
                raise ValueError("not the evidence of a calibration")
        counts = zip(self.seen, self.judged, self.squares, strict=True)
        if any(min(seen, judged, squares) < 0 or judged > seen + 1e-6 for seen, judged, squares in counts):
            raise ValueError("not the evidence of a calibration")

    @property
    def observations(self) -> float:
        """Questions that were reranked."""
        return sum(self.judged)

    def add(self, margin: float | None, missed: float | None) -> None:
        """Count a question; `missed` None: it was not reranked. What no stage can mean is ignored."""
        if margin is None or not isfinite(margin) or (missed is not None and not isfinite(missed)):
            return
        number = bin_of(margin)
        self.seen[number] += 1
        if missed is not None:
            lost = min(1.0, max(-1.0, missed))
            self.judged[number] += 1
            self.missed[number] += lost
            self.squares[number] += lost * lost
        if sum(self.seen) > MOST:
            self._fade()

    def _fade(self) -> None:
        for column in (self.seen, self.judged, self.missed, self.squares):
            column[:] = [value / 2 for value in column]


class Curve(msgspec.Struct, frozen=True):
    """What to expect of a question, by its margin."""

    expected: tuple[float, ...]
    """Missed, by bin: never more for a larger margin."""
    from_margin: float
    """Where passing by begins; infinite: nowhere."""
    own: bool
    """Learnt here; else as shipped."""
    worth: float
    """Points of nDCG@10 for a whole unit missed."""

    def points(self, margin: float | None) -> float:
        """Points of nDCG@10 that a question is expected to lose if it is not reranked; 0 without a margin."""
        if margin is None or not isfinite(margin):
            return 0.0
        return self.worth * max(0.0, self.expected[bin_of(margin)])


def bin_of(margin: float) -> int:
    """The bin of a finite margin.

    >>> bin_of(-0.2), bin_of(0.5), bin_of(1.0)
    (0, 20, 39)
    """
    return min(BINS - 1, int(min(1.0, max(0.0, margin)) * BINS))


def shipped(worth: Worth) -> Curve:
    """What to expect where nothing is learnt yet."""
    expected = tuple(SHIPPED[number * len(SHIPPED) // BINS] for number in range(BINS))
    return Curve(expected, worth.from_margin, own=False, worth=worth.points)


def curve_of(evidence: Evidence, worth: Worth) -> Curve:
    """What the evidence says, if it is enough; else what is shipped."""
    if not enough(evidence, worth):
        return shipped(worth)
    expected = monotone(evidence.missed, evidence.judged)
    points = worth.points * worth.caution
    affordable = (
        number
        for number in range(BINS)
        if points * expected[number] <= WORST_POINTS
        and points * _bound(evidence, expected, number) <= BUDGET_POINTS
    )
    first = next(affordable, None)
    begins = inf if first is None else first / BINS
    return Curve(tuple(expected), begins, own=True, worth=worth.points)


def enough(evidence: Evidence, worth: Worth) -> bool:
    """Whether enough questions were reranked, and of those with large margins as many in proportion.

    Where large margins pass by, only a sample of them is reranked, and small margins tell nothing of them.
    """
    if evidence.observations < worth.enough:
        return False
    first = bin_of(LARGE)
    share = sum(evidence.seen[first:]) / sum(evidence.seen)
    return sum(evidence.judged[first:]) >= worth.enough * share


def monotone(sums: Sequence[float], counts: Sequence[float]) -> list[float]:
    """Means by bin that never rise, nearest to the given ones; an empty bin is like the one below it, or 1.

    >>> monotone([0.0, 2.0, 1.0, 0.0], [0, 4, 1, 0])
    [1.0, 0.6, 0.6, 0.6]
    """
    blocks: list[tuple[float, float, int]] = []
    for total, count in zip(sums, counts, strict=True):
        blocks.append((total, count, 1))
        while len(blocks) > 1 and _rises(blocks[-2], blocks[-1]):
            after, before = blocks.pop(), blocks.pop()
            blocks.append((before[0] + after[0], before[1] + after[1], before[2] + after[2]))
    means = [total / count if count else 1.0 for total, count, width in blocks for _ in range(width)]
    return list(accumulate(means, min))


def _rises(before: tuple[float, float, int], after: tuple[float, float, int]) -> bool:
    """Whether two blocks belong together; an empty one joins the one before it."""
    if not after[1]:
        return True
    return bool(before[1]) and after[0] * before[1] > before[0] * after[1]


def _bound(evidence: Evidence, expected: Sequence[float], first: int) -> float:
    """Missed by passing by from a bin on: upper end of the interval of a weighted mean."""
    whole = sum(evidence.seen)
    weights = [seen / whole for seen in evidence.seen[first:]]
    lost = sum(weight * mean for weight, mean in zip(weights, expected[first:], strict=True))
    return lost + CONFIDENCE * _error(evidence, weights, first)


def _error(evidence: Evidence, weights: Sequence[float], first: int) -> float:
    """Standard error of the weighted sum, with the variance of all judged questions from a bin on."""
    judged, missed = evidence.judged[first:], evidence.missed[first:]
    count = sum(judged)
    if not count:
        return inf if any(weights) else 0.0
    variance = max(0.0, sum(evidence.squares[first:]) / count - (sum(missed) / count) ** 2)
    unequal = sum(weight * weight / each for weight, each in zip(weights, judged, strict=True) if each)
    return sqrt(variance * unequal)
