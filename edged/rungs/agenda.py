"""What to ask next, from what is known already: pure.

In rounds: in each, every way to answer gets the same questions, in reversed order every other round, so that
a box that grows warmer or busier meanwhile favours none. There is no state but the record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from edged.rungs.record import Question, Sheet

CHUNK = 8
"""Questions of a round."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """Ask these questions, by their numbers, in the way that `key` names."""

    key: str
    kind: Literal["search", "answer"]
    questions: tuple[int, ...]


def agenda(
    keys: Sequence[str],
    sheets: Mapping[str, Sheet],
    questions: Sequence[Question],
    answers: int,
) -> list[Task]:
    """Everything that is still to be asked, in order; `answers` is how many questions are answered too."""
    distinct = list(dict.fromkeys(keys))
    tasks: list[Task] = []
    for number, first in enumerate(range(0, len(questions), CHUNK)):
        chunk = range(first, min(first + CHUNK, len(questions)))
        for key in distinct[:: -1 if number % 2 else 1]:
            sheet = sheets.get(key, Sheet())
            tasks += _tasks(key, sheet, questions, chunk, answers)
    return tasks


def _tasks(
    key: str, sheet: Sheet, questions: Sequence[Question], chunk: range, answers: int
) -> Iterator[Task]:
    searched = [each for each in chunk if questions[each].relevant and each not in sheet.found]
    if searched:
        yield Task(key=key, kind="search", questions=tuple(searched))
    answered = [each for each in chunk if each < answers and each not in sheet.answers]
    if answered:
        yield Task(key=key, kind="answer", questions=tuple(answered))
