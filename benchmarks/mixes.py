"""What the clients ask: every question once, or a mix in which topics come back.

The mix: 80 topics of HotpotQA, chosen with Zipf's law (exponent 1: the n-th topic comes 1/n as often as the
first). Half of the time a topic's question comes in its own words, otherwise in one of three other wordings:
mostly the same passages are found, and another question stands behind them. Of the first 100 requests about
two in five repeat one to the letter, and one in five asks otherwise about a topic that was there before.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from benchmarks.setting import STATE

SHARE = 200
"""Questions of one round."""
TOPICS = 80
EXPONENT = 1.0
OWN_WORDS = 0.5
WORDINGS = ("{} Answer briefly.", "I would like to know: {}", "Please tell me: {}")
SEED = 20261121

Asked = tuple[str, int]
"""A question and the number of the collection's question that it stands for."""


def distinct(questions: Sequence[str], number: int) -> list[Asked]:
    """A share of the collection that no round with another number (0 to 4) has."""
    first = number * SHARE % len(questions)
    return [(questions[place], place) for place in range(first, min(first + SHARE, len(questions)))]


def repeated(questions: Sequence[str], number: int) -> list[Asked]:
    """A share with repeated topics; its topics are those of no other round.

    >>> repeated(["Who?", "What?"] * 50, 0) == repeated(["Who?", "What?"] * 50, 0)
    True
    """
    chooser = random.Random(SEED + number)
    first = number * TOPICS % max(1, len(questions) - TOPICS + 1)
    topics = range(first, first + TOPICS)
    weights = [1 / rank**EXPONENT for rank in range(1, TOPICS + 1)]
    return [_worded(questions, place, chooser) for place in chooser.choices(topics, weights, k=SHARE)]


def _worded(questions: Sequence[str], place: int, chooser: random.Random) -> Asked:
    if chooser.random() < OWN_WORDS:
        return questions[place], place
    return chooser.choice(WORDINGS).format(questions[place]), place


def gold_answers() -> list[str]:
    """The collection's own answers in lower case, by number."""
    raw = json.loads((STATE / "cache" / "hotpotqa" / "hotpotqa.json").read_bytes())
    return [entry["answer"].lower() for entry in raw]
