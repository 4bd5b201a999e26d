"""Layers' weights that wait outside the device: each packed in one piece, so that one copy brings it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import groupby
from typing import Protocol

import msgspec
import torch

from edged.errors import BackendError, ConfigError
from edged.layers.offload.streams import Transfer

_ALIGNED_BYTES = 256
"""As CUDA aligns what it allocates; a CPU's vector units want 64."""
_PREFIX = "model.layers."


class Place(msgspec.Struct, frozen=True):
    """Where a tensor lies in a packed layer."""

    name: str
    shape: torch.Size
    first: int
    """Its first element."""


class Layout(msgspec.Struct, frozen=True):
    """How the tensors of a layer lie in one flat tensor; the same for all layers of a stage."""

    places: tuple[Place, ...]
    elements: int
    dtype: torch.dtype

    @classmethod
    def of(cls, weights: Mapping[str, torch.Tensor]) -> Layout:
        """Lay tensors out one behind the other, each where vector units like it."""
        dtype = next(iter(weights.values())).dtype
        step = _ALIGNED_BYTES // dtype.itemsize
        places, first = [], 0
        for name, tensor in weights.items():
            places.append(Place(name, tensor.shape, first))
            first += -(-tensor.numel() // step) * step
        return cls(tuple(places), first, dtype)

    @property
    def bytes(self) -> int:
        """Bytes of a packed layer."""
        return self.elements * self.dtype.itemsize

    def empty(self, device: torch.device | None = None, *, pinned: bool = False) -> torch.Tensor:
        """Take the memory of one packed layer; gaps are zero."""
        return torch.zeros(self.elements, dtype=self.dtype, device=device, pin_memory=pinned)

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the tensors in a packed layer, copying nothing."""
        return {
            place.name: flat[place.first : place.first + place.shape.numel()].view(place.shape)
            for place in self.places
        }

    def pack(self, weights: Mapping[str, torch.Tensor], flat: torch.Tensor) -> None:
        """Copy a layer's tensors in. `BackendError` when it has others than this layout."""
        views = self.views(flat)
        found = {name: tensor.shape for name, tensor in weights.items()}
        if found != {place.name: place.shape for place in self.places}:
            raise BackendError(
                "the layers of this model have not all the same shape, which weights outside the device "
                "need; leave out `overlap`"
            )
        for name, tensor in weights.items():
            views[name].copy_(tensor)


class Shelf(Protocol):
    """Packed layers, by their number in the stage."""

    layout: Layout | None
    """None until a layer is there."""

    @property
    def layers(self) -> int:
        """How many it holds."""
        ...

    @property
    def memory_bytes(self) -> int:
        """What it holds in host memory."""
        ...

    @property
    def disk_bytes(self) -> int:
        """What it holds on disk."""
        ...

    def put(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take the next layer in; `BackendError` when it does not fit."""
        ...

    def transfer(self, layer: int, flat: torch.Tensor) -> Transfer:
        """Return what brings a layer to `flat`, on the device."""
        ...

    def close(self) -> None:
        """Give memory or disk back; idempotent."""
        ...


class MemoryShelf:
    """Layers in host memory, page-locked where a GPU copies from there."""

    def __init__(self, *, pinned: bool) -> None:
        self.layout: Layout | None = None
        self._pinned = pinned
        self._flats: list[torch.Tensor] = []

    @property
    def layers(self) -> int:
        """See `Shelf`."""
        return len(self._flats)

    @property
    def memory_bytes(self) -> int:
        """See `Shelf`."""
        return sum(flat.nbytes for flat in self._flats)

    @property
    def disk_bytes(self) -> int:
        """See `Shelf`."""
        return 0

    def put(self, weights: Mapping[str, torch.Tensor]) -> None:
        """See `Shelf`."""
        self.layout = self.layout or Layout.of(weights)
        flat = self.layout.empty(pinned=self._pinned)
        self.layout.pack(weights, flat)
        self._flats.append(flat)

    def transfer(self, layer: int, flat: torch.Tensor) -> Transfer:
        """See `Shelf`."""
        return Transfer(partial(flat.copy_, self._flats[layer], non_blocking=True))

    def close(self) -> None:
        """See `Shelf`."""
        self._flats = []


class DiskShelf:
    """Layers in one file without a name: it is gone with the process, however that ends.

    They are read, not mapped: a device cannot copy from mapped pages by itself, and a disk that fails is an
    error of this layer instead of a signal. `staged` takes one page-locked buffer to read into; without it,
    layers are read straight into the memory of the device, a CPU.
    """

    def __init__(self, folder: str, *, staged: bool) -> None:
        self.layout: Layout | None = None
        self.layers = 0
        self._folder = folder
        self._staged = staged
        self._buffer: torch.Tensor | None = None
        try:
            self._file = tempfile.TemporaryFile(prefix="edged-layers-", dir=folder)  # noqa: SIM115 # closed by close()
        except OSError as error:
            raise ConfigError(
                f"overlap_folder = {folder!r} cannot take weights: {error.strerror}; name a folder on a fast "
                "disk",
                param="overlap_folder",
            ) from error

    @property
    def memory_bytes(self) -> int:
        """See `Shelf`: the buffer that weights are read by way of."""
        return self._buffer.nbytes if self._buffer is not None else 0

    @property
    def disk_bytes(self) -> int:
        """See `Shelf`."""
        return self.layers * self.layout.bytes if self.layout is not None else 0

    def put(self, weights: Mapping[str, torch.Tensor]) -> None:
        """See `Shelf`."""
        self.layout = self.layout or Layout.of(weights)
        if self._staged and self._buffer is None:
            self._buffer = self.layout.empty(pinned=True)
        flat = self.layout.empty() if self._buffer is None else self._buffer
        self.layout.pack(weights, flat)
        try:
            self._file.write(_memory(flat))
            self._file.flush()
        except OSError as error:
            raise BackendError(
                f"layer {self.layers} of {self.layout.bytes} bytes could not be written to {self._folder}: "
                f"{error.strerror}; name a folder with more room in overlap_folder"
            ) from error
        self.layers += 1

    def transfer(self, layer: int, flat: torch.Tensor) -> Transfer:
        """See `Shelf`."""
        if not self._staged:
            return Transfer(partial(self._read, layer, flat))
        assert self._buffer is not None
        copy = partial(flat.copy_, self._buffer, non_blocking=True)
        return Transfer(copy, partial(self._read, layer, self._buffer))

    def _read(self, layer: int, flat: torch.Tensor) -> None:
        left, position = _memory(flat), layer * flat.nbytes
        try:
            while left:
                count = os.preadv(self._file.fileno(), [left], position)
                if not count:
                    raise BackendError(f"the weights of layer {layer} in {self._folder} are cut short")
                left, position = left[count:], position + count
        except OSError as error:
            raise BackendError(
                f"the weights of layer {layer} could not be read from {self._folder}: {error.strerror}"
            ) from error

    def close(self) -> None:
        """See `Shelf`."""
        self._file.close()
        self._buffer = None


def shelve(tensors: Iterable[tuple[str, torch.Tensor]], shelf: Shelf) -> dict[str, torch.Tensor]:
    """Put layers on the shelf as they are read, one at a time; returns what is no layer's."""
    ends: dict[str, torch.Tensor] = {}
    for prefix, group in groupby(tensors, key=lambda pair: _layer_prefix(pair[0])):
        if prefix:
            shelf.put({name.removeprefix(prefix): tensor for name, tensor in group})
        else:
            ends.update(group)
    return ends


def _layer_prefix(name: str) -> str:
    number = name.removeprefix(_PREFIX).partition(".")[0]
    return f"{_PREFIX}{number}." if name.startswith(_PREFIX) else ""


def _memory(flat: torch.Tensor) -> memoryview:
    """Return a CPU tensor's bytes, to read into and write from."""
    return flat.view(torch.uint8).numpy().data
