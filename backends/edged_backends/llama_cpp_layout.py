"""Which layers llama.cpp is to put where, and whether it did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edged.backend import Device, is_cpu
from edged.errors import BackendError, ConfigError, DeviceLost
from edged.layers.planning.llama_split import (
    BY_LAYER,
    CPU,
    LlamaSplit,
    check_devices,
    described,
    read_back,
    split_for,
    wanted,
)
from edged.layers.planning.partition import even
from edged.layers.weights.gguf_header import read_header
from edged_backends.llama_cpp_devices import found_under
from edged_backends.llama_cpp_runtime import Accelerator, accelerators

_CPU_NAME = "CPU"
"""What ggml calls it."""


class Layout(NamedTuple):
    """What a model is loaded with."""

    used: tuple[Accelerator, ...]
    split: LlamaSplit
    wanted: tuple[str, ...] = ()
    """ggml's name of the device of every layer and, last, of the output; empty when nothing was asked."""


def whole(device: Device, gpu_layers: int) -> Layout:
    """Put `gpu_layers` layers (-1: all) on one device; none where it is the CPU."""
    if device.kind == "cpu":
        return Layout((), LlamaSplit(n_gpu_layers=0))
    accelerator = found_under(device.id)
    if accelerator is None:
        raise DeviceLost(f"llama.cpp sees no device {device.id}; `edgectl devices` lists what it sees")
    return Layout((accelerator,), LlamaSplit(n_gpu_layers=gpu_layers, split_mode=BY_LAYER))


def divided(device: Device, devices: Sequence[str], layers: Sequence[int], path: Path) -> Layout:
    """Split a model over `devices`, with so many `layers` on each, or as evenly as possible when empty.

    Raises `ConfigError` when the options contradict each other, the stage's device or the model, and
    `BackendError` when llama.cpp does not see one of the devices.
    """
    check_devices(devices)
    if device.id not in devices:
        raise ConfigError(
            f"the stage's device {device.id} is not among options.devices {', '.join(devices)}: add it",
            param="devices",
        )
    used = tuple(_seen(each, devices) for each in devices if not is_cpu(each))
    counts = _counts(devices, layers, path)
    on_cpu = counts[0] if is_cpu(devices[0]) else 0
    on_devices = counts[len(counts) - len(used) :]
    names = {CPU: _CPU_NAME, **{place: each.name for place, each in enumerate(used)}}
    meant = tuple(names[place] for place in wanted(on_cpu, on_devices))
    return Layout(used, split_for(on_cpu, on_devices), meant)


def _seen(device: str, devices: Sequence[str]) -> Accelerator:
    accelerator = found_under(device)
    if accelerator is None:
        seen = ", ".join(each.name for each in accelerators()) or "none but the CPU"
        raise BackendError(
            f"layers were to be split over {', '.join(devices)}, and llama.cpp sees no {device} (it sees "
            f"{seen}): nothing was loaded; `edgectl devices` lists what there is, and what the rest needs"
        )
    return accelerator


def _counts(devices: Sequence[str], layers: Sequence[int], path: Path) -> list[int]:
    there = _layers_of(path)
    if not layers:
        return [share.layers for share in even(there, len(devices))]
    if len(layers) != len(devices) or sum(layers) != there:
        raise ConfigError(
            f"options.layers {list(layers)} ({sum(layers)} layers on {len(layers)} devices) does not suit "
            f"devices {', '.join(devices)} and the {there} layers of {path.name}; correct it, or "
            "leave it out for an even split",
            param="layers",
        )
    return list(layers)


def _layers_of(path: Path) -> int:
    metadata = read_header(path).metadata
    key = f"{metadata.get('general.architecture')}.block_count"
    count = metadata.get(key)
    if not isinstance(count, int) or count < 1:
        raise BackendError(f"{path} does not say how many layers it has ({key}); pull the model again")
    return count


def confirm(layout: Layout, lines: Sequence[str], path: Path) -> tuple[str, ...]:
    """Return where the layers went, by llama.cpp's log; `BackendError` when not where they were to go.

    Where nothing was asked, nothing is refused: a log that cannot be read is as if it were empty.
    """
    try:
        found = read_back(lines)
    except BackendError:
        if layout.wanted:
            raise
        return ()
    if layout.wanted and found != layout.wanted:
        raise BackendError(
            f"llama.cpp did not split {path.name} as it was told: wanted {described(layout.wanted)}; its "
            f"log says {described(found)}. See that `edgectl devices` lists all of them and that the runtime "
            "is llama-cpp-python 0.3.36 or newer, or take `devices` out of the stage's options"
        )
    return found
