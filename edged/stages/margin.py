"""How sure a ranking is before it is reranked, and what reranking changed: pure arithmetic.

Measured on HotpotQA (row B1): of a dozen features, this margin parts best the questions whose passages the
reranker puts in a better order from those whose passages it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, sqrt

import numpy as np
import numpy.typing as npt

from edged.messages import Passage

SAME = 1e-9
"""Scores that are closer are equal: they are kept to six digits, and means of equal numbers are not exact."""
DEPTH = 10
TEMPERATURE = 2.0
"""Of the softmax: at 1 nearly all of the gain is the best passage's, and a second one is not seen."""
Scores = npt.NDArray[np.float64]


def standard_scores(values: Sequence[float]) -> Scores:
    """Distance from the mean in standard deviations; 0 for all when they are equal.

    >>> standard_scores([1.0, 3.0]).tolist()
    [-1.0, 1.0]
    """
    array = np.asarray(values, np.float64)
    if array.max() - array.min() < SAME:
        return np.zeros_like(array)
    standard: Scores = (array - array.mean()) / array.std()
    return standard


def margin_of(passages: Sequence[Passage]) -> float | None:
    """How far the first passage stands out among all: -1..1; None where scores are not finite.

    The mean of its standard scores among the candidates by cosine and by BM25 (z-score normalisation and
    CombSUM, as in `best_passages`), in proportion to sqrt(n - 1), the most that one of n values can reach.
    A passage that one of the searches did not find counts as its worst. Of one passage or none: 1, because
    there is nothing to put in order.
    """
    if len(passages) < 2:  # noqa: PLR2004 (a pair is the least that has an order)
        return 1.0
    columns = [_filled(passages, name) for name in ("dense", "bm25")]
    if not all(isfinite(score) for column in columns for score in column):
        return None
    return float(sum(standard_scores(column)[0] for column in columns)) / (2 * sqrt(len(passages) - 1))


def _filled(passages: Sequence[Passage], name: str) -> list[float]:
    known = [passage.scores[name] for passage in passages if name in passage.scores]
    lowest = min(known, default=0.0)
    return [passage.scores.get(name, lowest) for passage in passages]


def missed(before: Sequence[int], after: Sequence[int], logits: Mapping[int, float]) -> float:
    """What the order `before` lacks of `after`, by the reranker's own judgement: -1..1 of nDCG@10.

    A passage's gain is its share of the softmax over all logits ("top one probability": Cao, Qin, Liu, Tsai
    and Li, "Learning to rank: from pairwise approach to listwise approach", ICML 2007); nDCG with graded
    gains as in Järvelin and Kekäläinen (2002).
    """
    if not logits:
        return 0.0
    scaled = np.asarray([logits[each] for each in before]) / TEMPERATURE
    shares = np.exp(scaled - scaled.max())
    gains = dict(zip(before, (shares / shares.sum()).tolist(), strict=True))
    ideal = _dcg(sorted(gains.values(), reverse=True)[:DEPTH])
    there, here = ([gains[each] for each in order[:DEPTH]] for order in (after, before))
    return (_dcg(there) - _dcg(here)) / ideal


def _dcg(gains: Sequence[float]) -> float:
    discounts = np.log2(np.arange(2, len(gains) + 2))
    return float((np.asarray(gains, np.float64) / discounts).sum())
