"""A batch of tokens for `llama_decode`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edged_backends.llama_cpp_runtime import runtime


class TokenBatch:
    """A `llama_batch` that is filled through numpy views of its arrays."""

    def __init__(self, capacity: int) -> None:
        self.native: Any = runtime.llama_batch_init(capacity, 0, 1)
        shape = (capacity,)
        self._tokens = np.ctypeslib.as_array(self.native.token, shape)
        self._positions = np.ctypeslib.as_array(self.native.pos, shape)
        self._counts = np.ctypeslib.as_array(self.native.n_seq_id, shape)
        self._wanted = np.ctypeslib.as_array(self.native.logits, shape)
        self._counts[:] = 1

    def clear(self) -> None:
        """Begin anew."""
        self.native.n_tokens = 0

    def add(self, slot: int, tokens: Sequence[int], position: int) -> None:
        """Append tokens of one sequence; logits are wanted for the last."""
        first = self.native.n_tokens
        last = first + len(tokens)
        self._tokens[first:last] = tokens
        self._positions[first:last] = np.arange(position, position + len(tokens))
        self._wanted[first:last] = 0
        self._wanted[last - 1] = 1
        for row in range(first, last):
            self.native.seq_id[row][0] = slot
        self.native.n_tokens = last

    def close(self) -> None:
        """Give the memory back."""
        runtime.llama_batch_free(self.native)
