"""Layers whose weights live outside the device: a stage with more layers than its device can hold."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from edged.errors import EdgedError
from edged.layers.offload.shelf import DiskShelf, MemoryShelf, Shelf, shelve
from edged.layers.offload.streams import Mark, Streams, Work
from edged.layers.spec import StageSpec
from edged.layers.stage import Parts, filled
from edged.layers.weights.checkpoint import weights


class _Slot:
    """Room for one layer on the device; its modules, one a layer, are views of the same memory."""

    def __init__(self, number: int, flat: torch.Tensor, modules: list[torch.nn.Module], made: Mark) -> None:
        self.number = number
        self.flat = flat
        self.modules = modules
        self.holds: int | None = None
        self.loaded: Mark | None = None
        """The end of the load, until compute waits for it."""
        self.computed = made
        """The end of the last compute that touched it."""


class OffloadedLayers:
    """One room on the device for `none`, two for the other strategies; see `edged.layers.stage.Layers`.

    With two, the next layer is on its way while one computes, and after the last layer the first, since jobs
    follow each other. Layers that stay where they are loaded once: with two layers, two rooms hold both.
    """

    def __init__(
        self, shelf: Shelf, parts: Parts, streams: Streams, device: torch.device, *, ahead: bool
    ) -> None:
        assert shelf.layout is not None, "a stage without layers"
        self._shelf = shelf
        self._streams = streams
        self._ahead = ahead
        flats = [shelf.layout.empty(device) for _ in range(1 + (ahead and shelf.layers > 1))]
        made = streams.mark(Work("weights", "compute", -1, -1, -1))
        self._slots = [
            _Slot(number, flat, _modules(shelf.layout.views(flat), parts, shelf.layers), made)
            for number, flat in enumerate(flats)
        ]

    @property
    def copy_s(self) -> float:
        """Seconds so far in which compute waited for weights, and for a cache that is elsewhere too."""
        return self._streams.copy_s

    @property
    def device_bytes(self) -> int:
        """What the rooms on the device hold."""
        return sum(slot.flat.nbytes for slot in self._slots)

    def __iter__(self) -> Iterator[tuple[int, torch.nn.Module]]:
        """See `Layers`: the load of the next layer is issued before a layer is given out."""
        for layer in range(self._shelf.layers):
            slot = self._brought(layer, None)
            self._await(slot)
            if self._ahead:
                self._brought((layer + 1) % self._shelf.layers, slot)
            try:
                yield layer, slot.modules[layer]
            finally:
                slot.computed = self._streams.mark(Work("weights", "compute", layer, -1, slot.number))

    def _brought(self, layer: int, busy: _Slot | None) -> _Slot:
        """Return the room that a layer is in, or on its way to; never the one that is busy."""
        for slot in self._slots:
            if slot.holds == layer:
                return slot
        slot = next(slot for slot in self._slots if slot is not busy)
        slot.holds = None  # until a load that may fail is issued
        transfer = self._shelf.transfer(layer, slot.flat)
        work = Work("weights", "load", layer, -1, slot.number)
        slot.loaded = self._streams.issue(work, transfer, (slot.computed,))
        slot.holds = layer
        return slot

    def _await(self, slot: _Slot) -> None:
        if slot.loaded is not None:
            holds, slot.holds = slot.holds, None  # it holds nothing when the load turns out to have failed
            self._streams.wait(slot.loaded)
            slot.holds, slot.loaded = holds, None

    def close(self) -> None:
        """See `Layers`."""
        self._streams.close()
        self._slots = []
        self._shelf.close()


def _modules(views: dict[str, torch.Tensor], parts: Parts, layers: int) -> list[torch.nn.Module]:
    return [filled(parts.layer(layer), views) for layer in range(layers)]


def shelf_for(spec: StageSpec, device: torch.device) -> Shelf:
    """Return where a stage's layers are to live."""
    cuda = device.type == "cuda"
    if spec.overlap_from == "disk":
        return DiskShelf(spec.overlap_folder, staged=cuda)
    return MemoryShelf(pinned=cuda)


def offloaded(
    spec: StageSpec, parts: Parts, streams: Streams, device: torch.device, shelf: Shelf
) -> tuple[OffloadedLayers, dict[str, torch.Tensor]]:
    """Read a stage's weights, one layer at a time; returns the layers, and the tensors of the ends."""
    try:
        ends = shelve(weights(spec.source, spec.share, spec.dtype), shelf)
    except EdgedError:
        shelf.close()
        raise
    return OffloadedLayers(shelf, parts, streams, device, ahead=spec.overlap != "none"), ends
