"""Questions whose right passages are known, without anybody who writes them: made from the passages.

Words of a passage are drawn, the likelier the rarer they are in the library, and the passage has to be
found again by them: a known item (Azzopardi, de Rijke and Balog, "Building simulated queries for known-item
topics", SIGIR 2007). Every other question takes its words from two passages that are near each other, and
both are right: an answer often needs more than one. docs/decisions/0027-ladder-measure.md says how such
questions order rungs beside those that people asked.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from random import Random

from edged.documents.words import query_words
from edged.messages import Passage
from edged.rungs.record import Place, Question

WORDS = 3
"""Drawn from a passage: so few that the first ranks are not certain."""
SHORT = 3
"""A word of fewer letters tells little."""
ALIKE = 0.7
"""Passages that share so much of the words of both are the same to a reader (Jaccard)."""


def telling(passage: Passage) -> list[str]:
    """The words of a passage from which a question may be made, each once."""
    text = f"{passage.title} {passage.heading} {passage.text}"
    return [word for word in words_in(text) if len(word) >= SHORT]


def words_in(text: str) -> list[str]:
    """All telling words of a text of any length, each once.

    >>> words_in("The pump starts. The pump stops.")
    ['pump', 'starts', 'stops']
    """
    lines = text.replace(". ", ".\n").splitlines()
    return list(dict.fromkeys(word for line in lines for word in query_words(line)))


def alike(first: Collection[str], second: Collection[str]) -> bool:
    """Whether two passages say the same, by the words of each.

    >>> alike(["pump", "starts"], ["pump", "starts"]), alike(["pump"], ["fuse"])
    (True, False)
    """
    ours, theirs = set(first), set(second)
    return len(ours & theirs) >= ALIKE * len(ours | theirs)


def question(passages: Sequence[Passage], holding: Mapping[str, int], total: int, chance: Random) -> Question:
    """A question about these passages: words of each, drawn by their rarity among `total` passages."""
    drawn = [word for passage in passages for word in _draw(telling(passage), holding, total, chance)]
    relevant = tuple(Place(source=passage.source, passage=passage.id) for passage in passages)
    return Question(text=" ".join(dict.fromkeys(drawn)), relevant=relevant)


def _draw(words: Sequence[str], holding: Mapping[str, int], total: int, chance: Random) -> list[str]:
    left, drawn = list(words), list[str]()
    while left and len(drawn) < WORDS:
        weights = [math.log(1 + total / max(1, holding.get(word, 1))) for word in left]
        word = chance.choices(left, weights)[0]
        left.remove(word)
        drawn.append(word)
    return drawn
