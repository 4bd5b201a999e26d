"""Answers that a generator remembers: to the same question about the same passages, word for word."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from edged.backend import Sampling
from edged.messages import Answer, CacheCounters, ChatTask, decoder
from edged.stages.caches import Cache, key
from edged.stages.contract import Finished, Item, Progress

TOKEN_BYTES = 40
"""Of a kept token: an integer object and its place in a tuple."""

_decode: Callable[[bytes | memoryview], Answer] = decoder(Answer)


class Told(msgspec.Struct, frozen=True):
    """An answer that was given to its end."""

    tokens: tuple[int, ...]
    payload: bytes
    """The packed `Answer`."""


class Answers:
    """Greedy answers by everything that they depend on: the model and the whole task, passages included.

    An answer with another passage, prompt limit or stop string has another key; one that was drawn is not
    kept, because who asks again wants another draw.
    """

    def __init__(self, identity: bytes, limit_bytes: int) -> None:
        self._identity = identity
        self._cache: Cache[Told] = Cache(limit_bytes)

    @property
    def counters(self) -> CacheCounters:
        """How it does."""
        return self._cache.counters

    def key(self, item: Item, task: ChatTask) -> bytes:
        """What the answer to an item is kept under; empty when it is not to be kept."""
        if not self._cache.counters.limit_bytes or item.resume_tokens or not greedy(task.sampling):
            return b""
        return key(self._identity, bytes(item.payload), str(item.keep))

    def recall(self, request: int, kept_under: bytes) -> list[Progress | Finished]:
        """The events of an answer that is known; none when it is not."""
        told = self._cache.get(kept_under) if kept_under else None
        if told is None:
            return []
        return [
            Progress(request, 0, told.tokens, _decode(told.payload).text),
            Finished(request, told.payload),
        ]

    def keep(self, kept_under: bytes, tokens: Sequence[int], payload: bytes) -> None:
        """Remember an answer that has ended well."""
        if kept_under:
            size_bytes = len(payload) + TOKEN_BYTES * len(tokens)
            self._cache.put(kept_under, Told(tuple(tokens), payload), size_bytes)

    def clear(self) -> None:
        """Forget all of them."""
        self._cache.clear()


def greedy(sampling: Sampling) -> bool:
    """Whether the next token depends on those before alone, and not on where the prompt ended."""
    return sampling == Sampling(seed=sampling.seed, logit_bias=sampling.logit_bias)
