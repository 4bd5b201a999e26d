"""Retrieval, reranking and continuous batching on one thread that takes turns between them."""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from benchmarks.contenders.settings import Settings
from benchmarks.contenders.work import Engine, Front, Piece


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a request."""

    question: str
    max_tokens: int = 64


class Lane:
    """A scheduler over one front and one engine; call it from one thread."""

    def __init__(self, given: Settings) -> None:
        self._front = Front(given)
        self._engine = Engine(given)
        self._given = given
        self._waiting: deque[tuple[Any, Ask]] = deque()

    @property
    def room(self) -> int:
        """How many more questions can be taken without waiting for another's end."""
        return self._given.sequences - self._engine.active - len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting) or self._engine.active > 0

    def put(self, key: Any, ask: Ask) -> None:
        """Take a question; its pieces come from `turn` under this key."""
        self._waiting.append((key, ask))

    def turn(self) -> list[Piece]:
        """Let a group in when there is room for it, then advance all by one token."""
        free = self._given.sequences - self._engine.active
        if not self._engine.active or free >= min(self._given.group, self._given.sequences):
            for _ in range(min(self._given.group, free, len(self._waiting))):
                key, ask = self._waiting.popleft()
                passages = self._front.passages(ask.question)
                self._engine.add(key, self._engine.prompt(ask.question, passages, ask.max_tokens))
        return list(self._engine.step()) if self._engine.active else []
