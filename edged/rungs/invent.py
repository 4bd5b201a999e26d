"""Have questions made: by the generator while time allows, the rest of words."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
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


class Making(msgspec.Struct, frozen=True, kw_only=True):
    """How far the generator is with them."""

    made: int
    wanted: int
    left_s: float


def invented(
    client: Client,
    generator: str,
    folder: Path,
    *,
    count: int,
    seed: int,
    budget_s: float,
    watch: Callable[[Making], None] = lambda _: None,
) -> Made:
    """Make `count` questions, those that the generator asks within `budget_s` first; see `subjects`.

    Without a `generator` all are made of words; `watch` is called before and after each that it asks.
    """
    deadline_s = time.monotonic() + budget_s
    about = subjects(folder, SPARE * count, seed)
    asked: dict[int, Question] = {}
    if generator:
        watch(Making(made=0, wanted=count, left_s=budget_s))
        for number, question in _asked(client, generator, about, count, deadline_s):
            asked[number] = question
            watch(Making(made=len(asked), wanted=count, left_s=deadline_s - time.monotonic()))
    rest = _rest([each for number, each in enumerate(about) if number not in asked], asked, count)
    questions = [*asked.values(), *by_words(folder, rest, seed)]
    Random(seed).shuffle(questions)  # noqa: S311 - a reproducible choice, not a secret
    return Made(tuple(questions), len(rest))


def _rest(left: Sequence[Subject], asked: Mapping[int, Question], count: int) -> list[Subject]:
    """Subjects of what is missing to `count`, those about two passages first where these are missing."""
    pairs = count // 2 - sum(len(question.relevant) > 1 for question in asked.values())
    first = [each for each in left if len(each.passages) > 1][: max(0, pairs)]
    chosen = {id(each) for each in first}
    return [*first, *(each for each in left if id(each) not in chosen)][: max(0, count - len(asked))]


def _asked(
    client: Client, generator: str, about: Sequence[Subject], count: int, deadline_s: float
) -> Iterator[tuple[int, Question]]:
    """Good questions by the number of their subject, half of them about two passages."""

    def ask(passage: Passage) -> str:
        return _said(client, generator, passage)

    wanted = {1: count - count // 2, 2: count // 2}
    places = deque(range(len(about)))
    with _executor() as executor:
        while places and any(wanted.values()) and time.monotonic() < deadline_s:
            chunk = _next(places, about, wanted)
            said = {n: [executor.submit(ask, passage) for passage in about[n].passages] for n in chunk}
            for number, futures in said.items():
                question = worded(about[number], [future.result() for future in futures])
                if question is not None and wanted[len(question.relevant)]:
                    wanted[len(question.relevant)] -= 1
                    yield number, question


@contextmanager
def _executor() -> Iterator[ThreadPoolExecutor]:
    """On Ctrl-C only what was begun is waited for."""
    executor = ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="ladder")
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _next(places: deque[int], about: Sequence[Subject], wanted: Mapping[int, int]) -> list[int]:
    """The next subjects to ask about, of kinds of which questions are still wanted."""
    chunk: list[int] = []
    while places and len(chunk) < SIDE_BY_SIDE:
        number = places.popleft()
        if wanted.get(len(about[number].passages)):
            chunk.append(number)
    return chunk


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
