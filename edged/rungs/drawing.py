"""Questions made from a library: which passages they are about."""

from __future__ import annotations

from collections.abc import Sequence
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


class Subject(msgspec.Struct, frozen=True):
    """What a question is to be about: one passage, or two that are near each other."""

    passages: tuple[Passage, ...]


def subjects(folder: Path, count: int, seed: int = 0) -> tuple[Subject, ...]:
    """Draw `count` subjects, or as many as the library is good for; the same ones for the same seed.

    Passages at even distances through the library, without those that stand in it twice; every other one with
    a passage near it. `NotFound` where nothing was ingested, or no passage is long enough and unlike others.
    """
    with Library.open(folder) as library:
        sample = library.sample(SPARE * count)
        found = [
            subject
            for identity, vector in zip(sample.ids, sample.vectors, strict=True)
            if (subject := _subject(library, identity, vector)) is not None
        ]
    if not found:
        raise NotFound(
            f"the library {folder} has no passages to make questions of; ingest documents "
            "(edgectl ingest PATH), or give questions of your own with --questions FILE"
        )
    places = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
    drawn = [Subject(found[place].passages[: 1 + n % 2]) for n, place in enumerate(places)]
    Random(seed).shuffle(drawn)  # noqa: S311 - a reproducible choice, not a secret
    return tuple(drawn)


def _subject(library: Library, identity: int, vector: npt.NDArray[np.float32]) -> Subject | None:
    near = [each for each in library.nearest(vector[np.newaxis], NEAR)[0] if each != identity]
    passage, *others = library.passages([identity, *near])
    words = telling(passage)
    if len(words) < LEAST_WORDS or any(alike(words, telling(other)) for other in others):
        return None
    long = [other for other in others if len(telling(other)) >= LEAST_WORDS]
    return Subject((passage, *long[:1]))


def by_words(folder: Path, about: Sequence[Subject], seed: int = 0) -> list[Question]:
    """A question about each subject out of its words; the same ones for the same seed."""
    chance = Random(seed)  # noqa: S311 - a reproducible choice, not a secret
    with Library.open(folder) as library:
        words = {word for each in about for passage in each.passages for word in telling(passage)}
        holding, total = library.holding(sorted(words)), library.statistics().passages
    return [question(each.passages, holding, total, chance) for each in about]
