"""A simulated prefix cache: which beginnings of prompts need not be read again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile


class Prefixes:
    """The tokens of ended sequences, the least recently used first, and at most `limit` tokens."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[tuple[int, ...], None] = {}
        self.found = 0
        """Prompt tokens that need not be read."""
        self.asked = 0

    @property
    def held(self) -> int:
        """How many tokens are kept."""
        return sum(map(len, self._kept))

    def look_up(self, prompt: Sequence[int], live: Iterable[Sequence[int]]) -> int:
        """Count and return how many tokens at the beginning of a prompt are kept, or in a live sequence.

        The last one is always read, for its logits. A cache of no tokens knows nothing.
        """
        self.asked += len(prompt)
        if not self._limit:
            return 0
        lengths = {kept: _common(prompt, kept) for kept in self._kept}
        best = max(lengths, key=lambda kept: lengths[kept], default=())
        if lengths.get(best):
            self._kept[best] = self._kept.pop(best)
        longest = max([lengths.get(best, 0), *(_common(prompt, tokens) for tokens in live)])
        known = min(longest, len(prompt) - 1)
        self.found += known
        return known

    def keep(self, tokens: Sequence[int]) -> None:
        """Keep what an ended sequence has computed, in the place of those that need not be kept beside it."""
        if not tokens or len(tokens) > self._limit:
            return
        for covered in [kept for kept in self._kept if _common(tokens, kept) == len(kept)]:
            del self._kept[covered]
        self._kept[tuple(tokens)] = None
        while self.held > self._limit:
            del self._kept[next(iter(self._kept))]

    def clear(self) -> None:
        """Keep nothing; the counts stay."""
        self._kept.clear()


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
