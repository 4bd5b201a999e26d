"""Which slot of the KV cache holds which tokens: the prefix cache of `llama_cpp`, without the runtime.

A slot is one sequence of llama.cpp's memory. What an ended sequence leaves in its slot is kept as long as no
live sequence needs the room; a new prompt that begins alike starts behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MINIMUM_SHARED = 16
"""A copy moves a whole slot: fewer tokens than this are read as fast as they are copied."""


class Claim(NamedTuple):
    """Where a new sequence lies, and where its first `shared` tokens lie already (-1: nowhere)."""

    slot: int
    source: int
    shared: int


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Count the tokens with which both begin.

    >>> common([1, 2, 3, 4], [1, 2, 9])
    2
    """
    limit = min(len(first), len(second))
    if first[:limit] == second[:limit]:
        return limit
    return next(index for index in range(limit) if first[index] != second[index])


class Slots:
    """The slots of a session: taken by live sequences, kept for their tokens, or empty."""

    def __init__(self, count: int, limit_bytes: int, token_bytes: int) -> None:
        """`limit_bytes` bounds what slots without a live sequence keep."""
        self._empty = set(range(count))
        self._kept: dict[int, list[int]] = {}
        """Tokens by slot, the least recently used first."""
        self._limit_tokens = limit_bytes // token_bytes
        self._token_bytes = token_bytes
        self.found = 0
        """Prompt tokens that were not computed, because a slot held them."""
        self.asked = 0

    @property
    def held_bytes(self) -> int:
        """What is kept beside the live sequences."""
        return sum(map(len, self._kept.values())) * self._token_bytes

    def claim(self, prompt: list[int], live: dict[int, list[int]]) -> Claim:
        """Take a slot for a prompt; `live` has the computed tokens of the taken slots.

        An empty slot is taken before a kept one, and the least recently used of those first. At least
        one token of the prompt is left to compute, for its logits.
        """
        source, shared = self._longest(prompt[:-1], self._kept | live)
        if source in self._kept:
            self._kept[source] = self._kept.pop(source)
        slot = self._take()
        self.found += shared
        self.asked += len(prompt)
        return Claim(slot, source, shared)

    def keep(self, slot: int, tokens: list[int]) -> list[int]:
        """A sequence ended: keep its tokens; return the slots to be emptied for want of room."""
        if len(tokens) < MINIMUM_SHARED or len(tokens) > self._limit_tokens:
            self._empty.add(slot)
            return [slot]
        covered = [other for other, kept in self._kept.items() if common(kept, tokens) == len(kept)]
        self._kept[slot] = tokens
        return [*map(self.drop, covered), *self._shrink()]

    def drop(self, slot: int) -> int:
        """Keep nothing in a slot that no live sequence has; returns it, to be emptied."""
        self._kept.pop(slot, None)
        self._empty.add(slot)
        return slot

    def clear(self) -> list[int]:
        """Keep nothing; return the slots to be emptied."""
        return [self.drop(slot) for slot in list(self._kept)]

    def _longest(self, prompt: list[int], holders: dict[int, list[int]]) -> tuple[int, int]:
        lengths = {slot: common(prompt, tokens) for slot, tokens in holders.items()}
        best = max(lengths, key=lambda slot: lengths[slot], default=-1)
        return (best, lengths[best]) if lengths.get(best, 0) >= MINIMUM_SHARED else (-1, 0)

    def _take(self) -> int:
        if self._empty:
            slot = min(self._empty)
            self._empty.remove(slot)
            return slot
        slot = next(iter(self._kept))
        del self._kept[slot]
        return slot

    def _shrink(self) -> list[int]:
        dropped = []
        while sum(map(len, self._kept.values())) > self._limit_tokens:
            dropped.append(self.drop(next(iter(self._kept))))
        return dropped
