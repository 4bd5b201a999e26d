"""What a request looks like on this gateway: passages and questions, and the items made of them.

Every request is unlike any before it, as a client's would be (it carries a number of its own), so no cache
but that of the prompts' common beginning can answer it. Apart from that number, every form gets the same.
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

MOST_PASSAGES = 200
QUESTION_WORDS = 12
NEW_TOKENS = 64
INSTRUCTION = "Read the passages, then do what the last line says, and write nothing else."
COUNT = "Count from 1 to 200, with commas."
COUNTING = (
    Message("user", f"[1] Pump - Care: Clean the filter every second week with warm water.\n\n{COUNT}"),
    Message("assistant", ", ".join(map(str, range(1, 26)))),
)
"""Asked for an answer, a model ends when it likes; counting, every model writes as many tokens as it may."""
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

    @property
    def passage_words(self) -> int:
        """Words of the median passage."""
        return median_low(len(passage.text.split()) for passage in self.passages)

    def summary(self) -> dict[str, Any]:
        """As `Table.workload` keeps it."""
        return {
            "candidates": self.candidates,
            "keep": self.keep,
            "new_tokens": self.new_tokens,
            "passages": self.source,
            "passage_words": self.passage_words,
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
        """`size` new items; the n-th of any batch has the same passages."""
        return [self._item(place, _FACTOR[work]) for place in range(size)]

    def _item(self, place: int, factor: float) -> Item:
        number = next(self._numbers)
        operation, payload = self._task(number, place, factor)
        return Item(number, operation, memoryview(payload), remaining_ms=3_600_000)

    def _task(self, number: int, place: int, factor: float) -> tuple[str, bytes]:
        match self._kind:
            case "retriever" if not self._workload.searchable:
                text = self._question(number, place, factor)
                return "embed", encode(EmbedTask(texts=(text,), kind="query"))
            case "retriever":
                return "chat", encode(_asking(self._question(number, place, factor)))
            case "generator":
                return "chat", encode(self._counting(number, place, factor))
            case "tensor":
                return "tensor", self._arrays()
            case _:
                passages = self._passages(place, self._workload.candidates, factor)
                return "chat", encode(_asking(self._question(number, place), passages))

    def _question(self, number: int, place: int, factor: float = 1.0) -> str:
        """Some words of a passage behind a number: about as long as what people ask."""
        words = self._passage(place).text.split()
        return f"{number} " + " ".join(words[: max(round(QUESTION_WORDS * factor), 1)])

    def _counting(self, number: int, place: int, factor: float) -> ChatTask:
        """A prompt of the usual length: passages of about the same size, whatever the library's mix."""
        words = round(self._workload.passage_words * factor)
        passages = [_cut(self._passages(place + n, 4, 1.0), words) for n in range(self._keep)]
        numbered = [f"[{n}] {number} {text}" for n, text in enumerate(passages, 1)]
        messages = (
            Message("system", INSTRUCTION),
            *COUNTING,
            Message("user", "\n\n".join([*numbered, COUNT])),
        )
        return ChatTask(messages=messages, max_tokens=self._workload.new_tokens)

    def _passages(self, place: int, size: int, factor: float) -> tuple[Passage, ...]:
        start = place * size
        return tuple(self._resized(start + n, factor) for n in range(size))

    def _resized(self, number: int, factor: float) -> Passage:
        """A passage with half of its words, or with as many words of its successors behind it."""
        passage = self._passage(number)
        words = round(len(passage.text.split()) * factor)
        source = [passage, *(self._passage(number + n) for n in range(1, 4))]
        return msgspec.structs.replace(passage, id=number, text=_cut(source, max(words, 1)))

    def _passage(self, number: int) -> Passage:
        return self._workload.passages[number % len(self._workload.passages)]

    def _arrays(self) -> bytes:
        import numpy as np

        from edged.stages.tensor import encode_tensors

        return b"".join(encode_tensors({name: np.zeros((1, 1), np.float32) for name in self._inputs}))


def _asking(text: str, passages: tuple[Passage, ...] = ()) -> ChatTask:
    return ChatTask(messages=(Message("user", text),), grounded=True, passages=passages)


def _cut(passages: Sequence[Passage], words: int) -> str:
    """So many words of passages laid end to end, line breaks kept."""
    pieces = [piece for passage in passages for piece in re.findall(r"\S+\s*", f"{passage.text}\n")]
    return "".join(pieces[:words]).strip()
