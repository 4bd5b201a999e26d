"""A KV cache in host memory: what a part of a job needs of a layer comes and goes beside compute."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch

from edged.layers.offload.streams import Mark, Streams, Transfer, Work
from edged.layers.rows import Places
from edged.layers.wire import Row


class CacheShape(NamedTuple):
    """The dimensions of an offloaded cache."""

    layers: int
    sequences: int
    rows: int
    """Of one part at most."""
    context_tokens: int
    heads: int
    dimension: int
    dtype: torch.dtype


class _Slot:
    """Room for a part's rows of one layer: [rows, context + 1, keys or values, heads, dimension]."""

    def __init__(self, number: int, store: torch.Tensor) -> None:
        self.number = number
        self.store = store
        self.stored: Mark | None = None
        """The end of the last copy out of it."""


class _Step(NamedTuple):
    slot: _Slot
    loaded: Mark


class OffloadedCache:
    """See `edged.layers.rows.Cache`.

    A sequence's tokens lie one behind the other, keys beside values, so that one copy loads a row and one
    stores its fresh tokens. With `ahead` there are three rooms on the device: while one part computes, the
    next is loaded and the one before it is stored. A load waits for the stores of the same rows, which an
    earlier job may have issued.
    """

    def __init__(self, shape: CacheShape, streams: Streams, device: torch.device, *, ahead: bool) -> None:
        tokens = (2, shape.heads, shape.dimension)
        host = (shape.sequences, shape.context_tokens, *tokens)
        room = (shape.rows, shape.context_tokens + 1, *tokens)
        pinned = device.type == "cuda"
        self._host = [torch.zeros(host, dtype=shape.dtype, pin_memory=pinned) for _ in range(shape.layers)]
        self._slots = [
            _Slot(number, torch.zeros(room, dtype=shape.dtype, device=device))
            for number in range(3 if ahead else 1)
        ]
        self._device = device
        self._streams = streams
        self._ahead = ahead
        self._parts: tuple[Places, ...] = ()
        self._local: tuple[torch.Tensor, ...] = ()
        """Of each part, its rows' numbers in a room, [rows, 1]."""
        self._steps: dict[tuple[int, int], _Step] = {}
        self._issued = 0
        self._opened: Mark | None = None
        self._stored: dict[tuple[int, int], Mark] = {}
        """By layer and sequence: the end of its last store."""
        self._part = 0

    @property
    def bytes(self) -> int:
        """What the rooms on the device hold."""
        return sum(slot.store.nbytes for slot in self._slots)

    @property
    def host_bytes(self) -> int:
        """What all sequences hold in host memory."""
        return sum(each.nbytes for each in self._host)

    def open(self, parts: Sequence[Places]) -> None:
        """See `Cache`. What an earlier job that failed has left in the rooms is waited for by the loads."""
        self._parts = tuple(parts)
        self._local = tuple(torch.arange(len(part.rows), device=self._device)[:, None] for part in parts)
        self._steps = {}
        self._opened = self._streams.mark(Work("cache", "compute", -1, -1, -1))

    def enter(self, layer: int, part: int) -> None:
        """See `Cache`: the next part's load is issued before this one computes."""
        step = self._step(layer, part)
        self._streams.wait(step.loaded)
        self._part = part
        following = (layer, part + 1) if part + 1 < len(self._parts) else (layer + 1, 0)
        if self._ahead and following[0] < len(self._host):
            self._step(*following)

    def leave(self, layer: int, part: int) -> None:
        """See `Cache`: the store of the fresh tokens is issued behind the compute."""
        slot = self._steps.pop((layer, part)).slot
        computed = self._streams.mark(Work("cache", "compute", layer, part, slot.number))
        rows = self._parts[part].rows
        transfer = Transfer(partial(self._store, layer, rows, slot))
        work = Work("cache", "store", layer, part, slot.number)
        slot.stored = self._streams.issue(work, transfer, (computed,))
        self._stored |= {(layer, row.slot): slot.stored for row in rows}

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_unused: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Cache`."""
        store = self._steps[layer, self._part].slot.store
        places, rows = self._parts[self._part], self._local[self._part]
        store[rows, places.written, 0] = keys.transpose(1, 2)
        store[rows, places.written, 1] = values.transpose(1, 2)
        seen = store[: len(rows), : places.width]
        return seen[:, :, 0].transpose(1, 2), seen[:, :, 1].transpose(1, 2)

    def _step(self, layer: int, part: int) -> _Step:
        """Return a step whose load is issued."""
        found = self._steps.get((layer, part))
        if found is None:
            slot = self._slots[self._issued % len(self._slots)]
            self._issued += 1
            rows = self._parts[part].rows
            stores = {self._stored.get((layer, row.slot)) for row in rows}
            after = [mark for mark in (self._opened, slot.stored, *stores) if mark is not None]
            work = Work("cache", "load", layer, part, slot.number)
            transfer = Transfer(partial(self._load, layer, rows, slot))
            found = _Step(slot, self._streams.issue(work, transfer, after))
            self._steps[layer, part] = found
        return found

    def _load(self, layer: int, rows: Sequence[Row], slot: _Slot) -> None:
        for number, row in enumerate(rows):
            past = self._host[layer][row.slot, : row.start]
            slot.store[number, : row.start].copy_(past, non_blocking=True)

    def _store(self, layer: int, rows: Sequence[Row], slot: _Slot) -> None:
        for number, row in enumerate(rows):
            fresh = slot.store[number, row.start : row.start + row.count]
            self._host[layer][row.slot, row.start : row.start + row.count].copy_(fresh, non_blocking=True)
