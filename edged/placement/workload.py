"""What a request looks like on this gateway: passages and questions, and the items made of them.

Every request is unlike any before it (it carries a number of its own), as a client's would be: no cache
but that of the prompts' common beginning can answer it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import count
from statistics import median_low
from typing import Any

import msgspec

from edged.messages import ChatTask, EmbedTask, Message, Passage, encode
from edged.placement.table import Work
from edged.stages.contract import Item
from edged.stages.prompt import GROUNDED_EXAMPLE

MOST_PASSAGES = 200
QUESTION_WORDS = 12
NEW_TOKENS = 64
COPY = "Repeat the numbered passages word for word, from the first to the last, and leave nothing out."
"""Asks for a long answer, so that models write the same number of tokens instead of ending as they like."""
_FACTOR: dict[Work, float] = {"short": 0.5, "typical": 1.0, "long": 2.0}


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What requests are made of; sent to every probe."""

    passages: tuple[Passage, ...]
    source: str
    """`library` or `samples`."""
    searchable: bool
    """Whether the library holds documents: else a retriever can only embed."""
    candidates: int
    keep: int
    new_tokens: int = NEW_TOKENS

    def summary(self) -> dict[str, Any]:
        """As `Table.workload` keeps it."""
        return {
            "candidates": self.candidates,
            "keep": self.keep,
            "new_tokens": self.new_tokens,
            "passages": self.source,
            "passage_words": median_low(len(passage.text.split()) for passage in self.passages),
            "question_words": QUESTION_WORDS,
        }


def draw(passages: Sequence[Passage], seed: int = 1) -> tuple[Passage, ...]:
    """A sample that is the same at every run."""
    shuffled = list(passages)
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - a sample, not a secret
    return tuple(msgspec.structs.replace(passage, scores={}) for passage in shuffled[:MOST_PASSAGES])


class Requests:
    """Makes items for one stage, never the same twice."""

    def __init__(self, workload: Workload, kind: str, keep: int = 0, inputs: Sequence[str] = ()) -> None:
        """`keep` overrides the workload's for a generator that can tell fewer passages apart."""
        self._workload = workload
        self._kind = kind
        self._keep = min(keep or workload.keep, workload.keep)
        self._inputs = inputs
        self._numbers = count(1)

    def batch(self, size: int, work: Work) -> list[Item]:
        """`size` new items."""
        return [self._item(next(self._numbers), _FACTOR[work]) for _ in range(size)]

    def _item(self, number: int, factor: float) -> Item:
        operation, payload = self._task(number, factor)
        return Item(number, operation, memoryview(payload), remaining_ms=3_600_000)

    def _task(self, number: int, factor: float) -> tuple[str, bytes]:
        match self._kind:
            case "retriever" if not self._workload.searchable:
                return "embed", encode(EmbedTask(texts=(self.question(number, factor),), kind="query"))
            case "generator":
                return "chat", encode(self._copying(number, factor))
            case "tensor":
                return "tensor", self._arrays()
            case _:
                return "chat", encode(self._grounded(number, factor))

    def question(self, number: int, factor: float = 1.0) -> str:
        """Some words of a passage behind a number: about as long as what people ask."""
        words = self._passage(number).text.split()
        return f"{number} " + " ".join(words[: max(round(QUESTION_WORDS * factor), 1)])

    def candidates(self, number: int, factor: float) -> tuple[Passage, ...]:
        """The passages that request `number` carries to the reranker."""
        return self._stretched(number, self._workload.candidates, factor)

    def _grounded(self, number: int, factor: float) -> ChatTask:
        text = self.question(number, factor if self._kind == "retriever" else 1.0)
        passages = self.candidates(number, factor) if self._kind == "reranker" else ()
        return ChatTask(messages=(Message("user", text),), grounded=True, passages=passages)

    def _copying(self, number: int, factor: float) -> ChatTask:
        passages = self._stretched(number, self._keep, factor)
        numbered = [
            f"[{n}] {passage.title} {number}: {passage.text}" for n, passage in enumerate(passages, 1)
        ]
        asked = "\n\n".join([*numbered, COPY])
        messages = (Message("system", COPY), *GROUNDED_EXAMPLE, Message("user", asked))
        return ChatTask(messages=messages, max_tokens=self._workload.new_tokens)

    def _stretched(self, number: int, size: int, factor: float) -> tuple[Passage, ...]:
        start = number * size
        return tuple(self._resized(start + n, factor) for n in range(size))

    def _resized(self, number: int, factor: float) -> Passage:
        """A passage with half or twice its text; twice is the passage and its successor's words."""
        passage = self._passage(number)
        words = re.findall(r"\S+\s*", passage.text)
        if factor <= 1:
            text = "".join(words[: max(round(len(words) * factor), 1)])
        else:
            more = re.findall(r"\S+\s*", self._passage(number + 1).text)
            text = f"{passage.text}\n{''.join((more * len(words))[: len(words)])}"
        return msgspec.structs.replace(passage, id=number, text=text)

    def _passage(self, number: int) -> Passage:
        return self._workload.passages[number % len(self._workload.passages)]

    def _arrays(self) -> bytes:
        import numpy as np

        from edged.stages.tensor import encode_tensors

        return b"".join(encode_tensors({name: np.zeros((1, 1), np.float32) for name in self._inputs}))
