"""Questions made from a library: which passages they are about."""

from __future__ import annotations

from pathlib import Path
from random import Random

import msgspec
import numpy as np
import numpy.typing as npt

from edged.documents.library import Library
from edged.errors import NotFound
from edged.messages import Passage
from edged.rungs.making import alike, question, telling
from edged.rungs.record import Question

SPARE = 3
"""Passages that are looked at for each question: many are too short, or stand in the library twice."""
NEAR = 8
LEAST_WORDS = 12
"""A passage with fewer telling words is a heading or a line of a table."""


class Item(msgspec.Struct, frozen=True):
    """A passage to be found again, and one beside it."""

    passage: Passage
    neighbour: Passage | None


def drawn(folder: Path, count: int, seed: int = 0) -> tuple[Question, ...]:
    """Make `count` questions, or as many as the library is good for; the same ones for the same seed.

    `NotFound` where nothing was ingested, or no passage is long enough and unlike all others.
    """
    chance = Random(seed)  # noqa: S311 - a reproducible choice, not a secret
    with Library.open(folder) as library:
        items = _items(library, count)
        if not items:
            raise NotFound(
                f"the library {folder} has no passages to make questions of; ingest documents "
                "(edgectl ingest PATH), or give questions of your own with --questions FILE"
            )
        words = {word for item in items for each in _of(item) for word in telling(each)}
        holding, total = library.holding(sorted(words)), library.statistics().passages
        made = [question(_of(item)[: 1 + n % 2], holding, total, chance) for n, item in enumerate(items)]
    chance.shuffle(made)
    return tuple(made)


def _of(item: Item) -> list[Passage]:
    return [item.passage, item.neighbour] if item.neighbour else [item.passage]


def _items(library: Library, count: int) -> list[Item]:
    """Passages at even distances through the library, without those that stand in it twice."""
    sample = library.sample(SPARE * count)
    candidates = [
        item
        for identity, vector in zip(sample.ids, sample.vectors, strict=True)
        if (item := _item(library, identity, vector)) is not None
    ]
    chosen = np.linspace(0, len(candidates) - 1, min(count, len(candidates))).round().astype(int)
    return [candidates[place] for place in chosen]


def _item(library: Library, identity: int, vector: npt.NDArray[np.float32]) -> Item | None:
    near = [each for each in library.nearest(vector[np.newaxis], NEAR)[0] if each != identity]
    passage, *others = library.passages([identity, *near])
    words = telling(passage)
    if len(words) < LEAST_WORDS or any(alike(words, telling(other)) for other in others):
        return None
    long = (other for other in others if len(telling(other)) >= LEAST_WORDS)
    return Item(passage, next(long, None))
