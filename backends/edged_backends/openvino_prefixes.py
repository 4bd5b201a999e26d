"""What OpenVINO GenAI's prefix cache holds, kept by our own books: the engine does not tell.

GenAI keeps every full block of keys and values until it needs the room, and takes the block that has not been
used for longest. The books do the same with fewer blocks, so what they call known is known to the engine.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

BLOCK_TOKENS = 32
"""Tokens of a block of the KV cache on a CPU (fixed in OpenVINO)."""


def block_keys(tokens: Sequence[int]) -> Iterator[int]:
    """A key for each full block of a sequence, which stands for the block and all before it."""
    key = 0
    for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        key = hash((key, *tokens[end - BLOCK_TOKENS : end]))
        yield key


class PrefixBooks:
    """The blocks that ended or read sequences left, the least recently used first."""

    def __init__(self, total_blocks: int, block_bytes: int) -> None:
        self._total_blocks = total_blocks
        self._block_bytes = block_bytes
        self._known: OrderedDict[int, None] = OrderedDict()
        self.found = 0
        """Prompt tokens that were in the cache."""
        self.asked = 0

    @property
    def held_bytes(self) -> int:
        """What the known blocks take."""
        return len(self._known) * self._block_bytes

    def look_up(self, prompt: Sequence[int]) -> int:
        """Count, in `found` and `asked`, and return how many tokens at the beginning of a prompt are known.

        The last token is always computed, for its logits.
        """
        known = 0
        for key in block_keys(prompt[:-1]):
            if key not in self._known:
                break
            self._known.move_to_end(key)
            known += BLOCK_TOKENS
        self.found += known
        self.asked += len(prompt)
        return known

    def add(self, tokens: Sequence[int], live_tokens: int) -> None:
        """Note the full blocks of a sequence; `live_tokens` are taken by those that still run."""
        # Last to first: of one sequence, the engine gives up the end before the beginning.
        for key in reversed(list(block_keys(tokens))):
            self._known[key] = None
            self._known.move_to_end(key)
        room = self._total_blocks - -(-live_tokens // BLOCK_TOKENS)
        while len(self._known) > max(0, room):
            self._known.popitem(last=False)

    def clear(self) -> None:
        """Nothing is known any more; the counts stay."""
        self._known.clear()
