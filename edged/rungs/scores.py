"""How good a ranking and an answer are: pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, stdev

import msgspec
import numpy as np
import numpy.typing as npt

from edged.messages import Passage
from edged.rungs.record import Found, Place

DEPTH = 10
FEW = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Standard errors on each side of a mean that hold 95 % of Student's t, for 1 to 10 degrees of freedom."""
MANY = 1.96
"""The same for many."""
_WORD = re.compile(r"\w+")
_ARTICLES = frozenset({"a", "an", "the"})
_MARKER = re.compile(r"\[\d+(?:\s*,\s*\d+)*\]")


class Mean(msgspec.Struct, frozen=True):
    """A mean over questions, and half of the width of its 95 % interval."""

    value: float
    margin: float
    count: int


def found(passages: Sequence[Passage], relevant: Sequence[Place]) -> Found:
    """Score the passages that a rung hands on, best first, against the places that are right.

    nDCG at 10 with binary gains: DCG = sum over ranks i of rel(i) / log2(i + 1), divided by the DCG of the
    ideal order (Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", ACM TOIS 20(4),
    2002). A place counts once, at the first passage that lies in it. `relevant` is not empty.
    """
    ranks = [_rank(passages[:DEPTH], place) for place in relevant]
    gain = sum(1 / math.log2(rank + 1) for rank in set(ranks) if rank)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(len(relevant), DEPTH) + 1))
    hits = [_rank(passages, place) > 0 for place in relevant]
    return Found(ndcg=min(1.0, gain / ideal), recall=fmean(hits))


def _rank(passages: Sequence[Passage], place: Place) -> int:
    return next((rank for rank, passage in enumerate(passages, 1) if lies_in(passage, place)), 0)


def lies_in(passage: Passage, place: Place) -> bool:
    """Whether a passage is at a place: that passage, or one of the document that touches those lines.

    >>> lies_in(Passage(id=1, text="", source="/a/b.md", first_line=5, last_line=9), Place(source="b.md"))
    True
    """
    if place.passage:
        return passage.id == place.passage
    ending = "/" + place.source.removeprefix("./").lstrip("/")
    if passage.source != place.source and not passage.source.endswith(ending):
        return False
    last = place.last_line or place.first_line
    return not place.first_line or (passage.first_line <= last and passage.last_line >= place.first_line)


def words_of(answer: str) -> list[str]:
    """Words of an answer as they are compared: lower case, without articles, punctuation and `[1]`.

    >>> words_of("The pump starts at 80 cm [2].")
    ['pump', 'starts', 'at', '80', 'cm']
    """
    return [word for word in _WORD.findall(_MARKER.sub(" ", answer).lower()) if word not in _ARTICLES]


def agreement(answer: str, reference: str) -> float:
    """F1 of the words that two answers share, 0..1; 1 for two without any.

    Token F1 as in Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", EMNLP
    2016.

    >>> agreement("It is 80 cm [1].", "The level is 80 cm.")
    0.75
    """
    ours, theirs = words_of(answer), words_of(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def packed(vector: Sequence[float]) -> bytes:
    """A vector of unit length as it is kept: float16, little endian."""
    return np.asarray(vector, "<f2").tobytes()


def likeness(ours: Sequence[bytes], theirs: Sequence[bytes], others: Sequence[bytes]) -> list[float]:
    """How like the meaning of each answer is to that of its reference: 1 the same, 0 as unlike as strangers.

    The cosine of their vectors, rescaled by a baseline: (cosine - baseline) / (1 - baseline), as in Zhang et
    al., "BERTScore: Evaluating Text Generation with BERT", ICLR 2020. The baseline is the mean cosine of
    `others`, the answers of one rung to different questions; at least two of them are needed.
    """
    strangers = _unpacked(others)
    cosines = strangers @ strangers.T
    count = len(strangers)
    baseline = min(0.99, float(cosines.sum() - np.trace(cosines)) / (count * (count - 1)))
    alike = np.einsum("ij,ij->i", _unpacked(ours), _unpacked(theirs))
    return [float(value) for value in np.clip((alike - baseline) / (1 - baseline), 0.0, 1.0)]


def _unpacked(vectors: Sequence[bytes]) -> npt.NDArray[np.float32]:
    found = np.stack([np.frombuffer(vector, "<f2") for vector in vectors]).astype(np.float32)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)
    return found


def said(answer: str, expected: str) -> float:
    """Share of the words of what was expected that an answer has, 0..1.

    Recall, not F1: what is expected is a word or two, and the answer is a sentence.

    >>> said("The pump starts at a level of 80 cm [2].", "80 cm")
    1.0
    """
    wanted = Counter(words_of(expected))
    return (wanted & Counter(words_of(answer))).total() / wanted.total() if wanted else 1.0


def mean(values: Sequence[float]) -> Mean:
    """The mean with its 95 % interval by Student's t; of one value the margin is infinite.

    >>> mean([1.0, 0.0]).value
    0.5
    """
    if not values:
        return Mean(0.0, math.inf, 0)
    if len(values) == 1:
        return Mean(values[0], math.inf, 1)
    margin = _quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Mean(fmean(values), margin, len(values))


def _quantile(freedom: int) -> float:
    """Of Student's t at 97.5 %; beyond the table by the first term of its expansion about the normal one.

    Cornish and Fisher, "Moments and cumulants in the specification of distributions", 1938.
    """
    return FEW[freedom - 1] if freedom <= len(FEW) else MANY + (MANY**3 + MANY) / (4 * freedom)
