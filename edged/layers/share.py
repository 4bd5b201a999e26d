"""What one stage of a layer pipeline holds: the noun that planner, weights and executor share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

Family = Literal["llama", "qwen2", "qwen3", "mistral"]
DType = Literal["float32", "bfloat16", "float16"]

DTYPE_BYTES: dict[DType, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


def auto_dtype(devices: Sequence[str]) -> DType:
    """Return what `auto` means on these devices: float32 where anything but a GPU of this host takes part.

    >>> auto_dtype(["cuda:0", "cuda:1"]), auto_dtype(["cuda:0", "cpu"])
    ('bfloat16', 'float32')
    """
    return "bfloat16" if all(device.startswith("cuda") for device in devices) else "float32"


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a model that one stage holds: decoder layers `first` to `end`, without `end`."""

    first: int
    end: int
    embedding: bool = False
    """Whether it turns token ids to hidden states: the first stage does."""
    head: bool = False
    """Whether it has the final norm and the head, and chooses the tokens: the last stage does."""

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return self.end - self.first


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """What a model file says about a model's shape; read without any runtime."""

    family: Family
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_dimension: int
    vocabulary: int
    context_tokens: int
    tied: bool
    """Whether the head's matrix is the embedding's."""
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    attention_bias: bool = False
    """Whether query, key and value projections have a bias (Qwen2)."""
    query_key_norm: bool = False
    """Whether queries and keys are normalised per head (Qwen3)."""

    @property
    def layer_parameters(self) -> int:
        """Parameters of one decoder layer."""
        attention = 2 * self.hidden * self.head_dimension * (self.heads + self.key_value_heads)
        bias = self.attention_bias * self.head_dimension * (self.heads + 2 * self.key_value_heads)
        norms = 2 * self.hidden + 2 * self.query_key_norm * self.head_dimension
        return attention + bias + 3 * self.hidden * self.intermediate + norms

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token embedding, and of the head's matrix."""
        return self.vocabulary * self.hidden

    def parameters_of(self, share: Share) -> int:
        """Parameters that a stage with this share holds; a tied matrix is held at both ends."""
        ends = share.embedding + share.head
        if self.tied and share.embedding and share.head:
            ends = 1
        return (
            share.layers * self.layer_parameters + ends * self.embedding_parameters + share.head * self.hidden
        )

    def cache_bytes(self, tokens: int, dtype_bytes: int) -> int:
        """Bytes of keys and values that one layer holds for so many tokens."""
        return 2 * tokens * self.key_value_heads * self.head_dimension * dtype_bytes
