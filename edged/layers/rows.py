"""The KV cache of a stage: a row per sequence, each at its own position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec
import torch

from edged.layers.wire import Row


class Places(msgspec.Struct, frozen=True):
    """Where the tokens of a job stand: what layers need beside the hidden states."""

    slots: slice | torch.Tensor
    """Rows of the cache; a slice where they are neighbours, which copies nothing."""
    positions: torch.Tensor
    """[rows, tokens] int64: position of each token in its sequence."""
    written: torch.Tensor
    """[rows, tokens] int64: where each token's keys go; padding goes to the column behind the context."""
    index: torch.Tensor
    """[rows, 1] int64: the rows, to write by."""
    mask: torch.Tensor
    """[rows, 1, tokens, width] bool: which cached positions each token sees."""
    width: int
    """Columns of the cache that the job reads."""
    rows: tuple[Row, ...]
    """What all this was laid out from."""

    @classmethod
    def of(cls, rows: Sequence[Row], tokens: int, context_tokens: int, device: torch.device) -> Places:
        """Lay out rows that are padded on the right to `tokens`."""
        slots = torch.tensor([row.slot for row in rows])
        starts = torch.tensor([[row.start] for row in rows])
        counts = torch.tensor([[row.count] for row in rows])
        offsets = torch.arange(tokens)[None, :]
        real = offsets < counts
        positions = starts + torch.minimum(offsets, counts - 1)
        written = torch.where(real, positions, context_tokens)
        width = max(row.start + row.count for row in rows)
        mask = torch.arange(width)[None, None, None, :] <= positions[:, None, :, None]
        return cls(
            _neighbours(slots, device),
            positions.to(device),
            written.to(device),
            slots[:, None].to(device),
            mask.to(device),
            width,
            tuple(rows),
        )


def _neighbours(slots: torch.Tensor, device: torch.device) -> slice | torch.Tensor:
    first, count = int(slots[0]), len(slots)
    if slots.tolist() == list(range(first, first + count)):
        return slice(first, first + count)
    return slots.to(device)


class Cache(Protocol):
    """Keys and values of a stage's layers, wherever they live.

    It stands where the library's layers expect a cache: they call `update` and nothing else.
    """

    @property
    def bytes(self) -> int:
        """What it holds on the device."""
        ...

    @property
    def host_bytes(self) -> int:
        """What it holds in host memory."""
        ...

    def open(self, parts: Sequence[Places]) -> None:
        """Begin a job: each layer is entered and left with each of its parts, in order."""
        ...

    def enter(self, layer: int, part: int) -> None:
        """A layer computes this part next."""
        ...

    def leave(self, layer: int, part: int) -> None:
        """The layer's compute of this part is queued."""
        ...

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_unused: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [rows, KV heads, tokens, dimension] of a layer; return all that the part may see of it."""
        ...


class RowCache:
    """All on the device: a layer's keys and values, [sequences, KV heads, context + 1, dimension] each."""

    host_bytes = 0

    def __init__(self, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
        self._keys = list(keys)
        self._values = list(values)
        self._parts: tuple[Places, ...] = ()
        self._places: Places | None = None

    @classmethod
    def empty(
        cls, layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> RowCache:
        """Take the memory for `shape`: sequences, KV heads, context tokens, head dimension."""
        sequences, heads, context_tokens, dimension = shape
        whole = (sequences, heads, context_tokens + 1, dimension)
        keys, values = (
            [torch.zeros(whole, dtype=dtype, device=device) for _ in range(layers)] for _ in range(2)
        )
        return cls(keys, values)

    @property
    def bytes(self) -> int:
        """What it holds."""
        return sum(each.numel() * each.element_size() for each in (*self._keys, *self._values))

    def open(self, parts: Sequence[Places]) -> None:
        """See `Cache`."""
        self._parts = tuple(parts)

    def enter(self, layer: int, part: int) -> None:  # noqa: ARG002 # all layers are there
        """See `Cache`."""
        self._places = self._parts[part]

    def leave(self, layer: int, part: int) -> None:
        """See `Cache`."""

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_unused: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Cache`."""
        places = self._places
        assert places is not None, "a layer ran before anybody said on which rows"
        return (
            _write(self._keys[layer], keys, places),
            _write(self._values[layer], values, places),
        )


def _write(store: torch.Tensor, fresh: torch.Tensor, places: Places) -> torch.Tensor:
    # What has overflowed would reach, as 0 x NaN, whoever has the row next.
    store[places.index, :, places.written] = fresh.transpose(1, 2).nan_to_num()
    return store[places.slots, :, : places.width]
