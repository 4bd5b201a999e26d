"""Have questions made: by the generator while time allows, the rest of words."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from random import Random

import msgspec

from edged.client import Client
from edged.errors import EdgedError
from edged.messages import Passage
from edged.replies import Final
from edged.rungs.drawing import Subject, by_words, subjects
from edged.rungs.record import Question
from edged.rungs.wording import MAX_TOKENS, conversation, worded

SPARE = 3
"""Subjects for each question: a small model asks a good question about two passages of five."""
SIDE_BY_SIDE = 8


class Made(msgspec.Struct, frozen=True):
    """Questions about the library."""

    questions: tuple[Question, ...]
    by_words: int
    """How many of them the generator did not ask."""


def invented(client: Client, generator: str, folder: Path, *, count: int, seed: int, budget_s: float) -> Made:
    """Make `count` questions, those that the generator asks within `budget_s` first; see `subjects`.

    Without a `generator` all are made of words.
    """
    about = subjects(folder, SPARE * count, seed)
    asked: dict[int, Question] = {}
    if generator:
        asked = dict(_asked(client, generator, about, count, time.monotonic() + budget_s))
    rest = [each for number, each in enumerate(about) if number not in asked][: count - len(asked)]
    questions = [*asked.values(), *by_words(folder, rest, seed)]
    Random(seed).shuffle(questions)  # noqa: S311 - a reproducible choice, not a secret
    return Made(tuple(questions), len(rest))


def _asked(
    client: Client, generator: str, about: Sequence[Subject], count: int, deadline_s: float
) -> Iterator[tuple[int, Question]]:
    """Good questions by the number of their subject, until there are enough or the time is over."""

    def ask(passage: Passage) -> str:
        return _said(client, generator, passage)

    left = count
    with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="ladder") as executor:
        for first in range(0, len(about), SIDE_BY_SIDE):
            if left <= 0 or time.monotonic() > deadline_s:
                return
            chunk = about[first : first + SIDE_BY_SIDE]
            said = [[executor.submit(ask, passage) for passage in each.passages] for each in chunk]
            for number, (each, futures) in enumerate(zip(chunk, said, strict=True), first):
                question = worded(each, [future.result() for future in futures])
                if question is not None and left > 0:
                    left -= 1
                    yield number, question


def _said(client: Client, generator: str, passage: Passage) -> str:
    """What the generator says; nothing where it refuses for now."""
    try:
        with closing(
            client.chat(conversation(passage), model=generator, stream=False, max_tokens=MAX_TOKENS)
        ) as events:
            return next(event.text for event in events if isinstance(event, Final))
    except EdgedError as error:
        if not error.retryable:
            raise
        return ""
