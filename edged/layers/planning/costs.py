"""What a layer weighs and how long it takes: what partitions of a model are judged by. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

from edged.layers.share import DTYPE_BYTES, Architecture, DType, Share

ID_BYTES = 8
"""A token id on its way back to the first stage."""
NOMINAL_BYTES_PER_S = 25.6e9
"""One channel of DDR4-3200: 3200 million transfers of 8 bytes a second (JEDEC JESD79-4)."""

Seconds = Annotated[float, msgspec.Meta(ge=0)]


class LayerCosts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds of one micro-batch in one decode step, on a device of relative speed 1."""

    layer_s: Annotated[float, msgspec.Meta(gt=0)]
    """One decoder layer."""
    embedding_s: Seconds = 0.0
    head_s: Seconds = 0.0
    """Final norm, head and the choice of tokens."""
    stage_s: Seconds = 0.0
    """What every stage takes beside its layers and ends."""
    hop_s: Seconds = 0.0
    """From the end of a stage's work to its arrival at the next, which computes meanwhile."""
    measured: bool = True
    """False when estimated from bytes and memory bandwidth."""

    def seconds(self, layers: int, *, embedding: bool, head: bool) -> float:
        """Seconds of a stage with so many layers, and with the ends that it holds."""
        return self.stage_s + layers * self.layer_s + embedding * self.embedding_s + head * self.head_s


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What costs were measured on; they hold for nothing else."""

    model: str
    """As it was given."""
    architecture: Architecture
    device: str
    dtype: DType
    micro_batch: int
    """Sequences."""
    context_tokens: int
    """Of each in the KV cache."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Between which seconds the middle half of the rounds lay, of each part.

    They are differences of what stages took, so that noise can put them below zero.
    """

    layer_s: tuple[float, float]
    embedding_s: tuple[float, float]
    head_s: tuple[float, float]
    stage_s: tuple[float, float]


class MeasuredCosts(LayerCosts, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `edgectl layers measure` saves."""

    head_s: Seconds  # pyright: ignore[reportGeneralTypeIssues] # required here: fields go by name
    """Required: a head is worth several layers, and to leave it out would be the worst of estimates."""
    conditions: Conditions | None = None
    """None in a file that somebody wrote by hand."""
    spread: Spread | None = None


UNIT = LayerCosts(layer_s=1.0, measured=False)
"""Where nothing is known of a model but its number of layers."""


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of a model's parts."""

    layers: int
    layer_bytes: int = 0
    embedding_bytes: int = 0
    head_bytes: int = 0
    """Of the head's matrix, also where it is the embedding's, and of the final norm."""
    shared_bytes: int = 0
    """What a stage with both ends holds once: the matrix that embedding and head share."""
    cache_bytes: int = 0
    """Keys and values of one layer, for one sequence of the planned context."""
    hidden_bytes: int = 0
    """The hidden state of one token of one sequence."""
    dtype: DType | None = None
    """Of weights and caches; None where nothing is known but the number of layers."""

    def weights(self, share: Share) -> int:
        """Bytes of the weights of a stage."""
        return share.layers * self.layer_bytes + self.ends(embedding=share.embedding, head=share.head)

    def ends(self, *, embedding: bool, head: bool) -> int:
        """Bytes of embedding and head, where a stage holds them."""
        both = embedding and head
        return embedding * self.embedding_bytes + head * self.head_bytes - both * self.shared_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of the weights on one device."""
        return self.weights(Share(first=0, end=self.layers, embedding=True, head=True))


def sizes_of(architecture: Architecture, dtype: DType, context_tokens: int) -> Sizes:
    """Bytes of a model's parts in `dtype`, with caches for so many tokens a sequence."""
    width = DTYPE_BYTES[dtype]
    matrix = architecture.embedding_parameters * width
    return Sizes(
        layers=architecture.layers,
        layer_bytes=architecture.layer_parameters * width,
        embedding_bytes=matrix,
        head_bytes=matrix + architecture.hidden * width,
        shared_bytes=matrix * architecture.tied,
        cache_bytes=architecture.cache_bytes(context_tokens, width),
        hidden_bytes=architecture.hidden * width,
        dtype=dtype,
    )


def estimated(sizes: Sizes, micro_batch: int, bytes_per_s: float = NOMINAL_BYTES_PER_S) -> LayerCosts:
    """Costs of a decode step that only waits for memory: every weight is read once, and all of the caches.

    That holds for small batches; of the embedding only the rows of the tokens are read. Hops cost nothing.
    """
    return LayerCosts(
        layer_s=(sizes.layer_bytes + micro_batch * sizes.cache_bytes) / bytes_per_s,
        embedding_s=micro_batch * sizes.hidden_bytes / bytes_per_s,
        head_s=sizes.head_bytes / bytes_per_s,
        measured=False,
    )
