"""How llama.cpp lays layers on devices: its rule, the inverse, and what its log says it did. Pure.

The rule (src/llama-model.cpp, `llama_model_base::load_tensors`, as of llama-cpp-python 0.3.36): the output is
a layer behind the last one; of these L + 1 the last `n_gpu_layers` go to the devices, the ones before stay on
the CPU. `tensor_split` is summed up and divided by its sum, in single precision; a layer goes to the first
device whose sum lies above the layer's place among those on devices, divided by their number. The token
embedding always stays on the CPU. Before 2026 the output did not count among `n_gpu_layers`: with layers on
the CPU such a version does something else, which its log shows.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import groupby

import msgspec

from edged.backend import is_cpu
from edged.errors import BackendError, ConfigError
from edged.layers.share import Share

CPU = -1
"""Stands for the CPU where devices are numbers."""
WHOLE, BY_LAYER = 0, 1
"""`LLAMA_SPLIT_MODE_NONE` and `..._LAYER` of llama.h."""
MAX_DEVICES = 16
"""`llama_max_devices()`: the length of `tensor_split`."""
MAX_SEQUENCES = 256
"""`llama_max_parallel_sequences()`."""
_ASSIGNED = re.compile(r"load_tensors: layer\s+(\d+) assigned to device ([^,\s]+)")


class LlamaSplit(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of a model that make llama.cpp lay its layers in a certain way."""

    n_gpu_layers: int
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    split_mode: int = WHOLE


def assigned(layers: int, n_gpu_layers: int, tensor_split: Sequence[float]) -> tuple[int, ...]:
    """Return the device of every layer and, last, of the output, by llama.cpp's rule.

    `tensor_split` has one fraction for each device, at least one of them above zero; where all are zero
    llama.cpp takes the free memory of the devices in their place. Negative `n_gpu_layers` means all.

    >>> assigned(5, 4, (1, 1))
    (-1, -1, 0, 0, 1, 1)
    """
    slots = layers + 1
    on_devices = slots if n_gpu_layers < 0 else min(n_gpu_layers, slots)
    if not tensor_split:
        return (CPU,) * slots
    splits = _split_points(tensor_split)
    first = slots - on_devices
    placed = [bisect_right(splits, _single((slot - first) / on_devices)) for slot in range(first, slots)]
    return (CPU,) * first + tuple(placed)


def _split_points(tensor_split: Sequence[float]) -> list[float]:
    """Sum and divide as C does with `float`: every step is rounded to single precision."""
    total, sums = 0.0, []
    for part in tensor_split:
        total = _single(total + _single(part))
        sums.append(total)
    return [_single(each / total) for each in sums]


def _single(value: float) -> float:
    """Round to single precision; for sums and quotients of singles that is what C computes."""
    (rounded,) = struct.unpack("f", struct.pack("f", value))
    return float(rounded)


def split_for(cpu_layers: int, per_device: Sequence[int]) -> LlamaSplit:
    """Return the parameters that lay `cpu_layers` on the CPU and then so many on each device.

    The output comes to the last device, or stays on the CPU where there is none. Raises `ConfigError` for
    a device without layers and for more devices than llama.cpp has room for.

    >>> split_for(0, (8, 7)).tensor_split, split_for(2, (3,)).n_gpu_layers
    ((8.0, 8.0), 4)
    """
    if len(per_device) > MAX_DEVICES:
        raise ConfigError(
            f"{len(per_device)} devices: llama.cpp splits over at most {MAX_DEVICES}; name fewer",
            param="devices",
        )
    if cpu_layers < 0 or any(count < 1 for count in per_device):
        raise ConfigError(
            f"layers {[cpu_layers, *per_device]} are no split: every device needs at least one layer",
            param="layers",
        )
    if not per_device:
        return LlamaSplit(n_gpu_layers=0)
    *others, last = (float(count) for count in per_device)
    return LlamaSplit(
        n_gpu_layers=sum(per_device) + 1,
        tensor_split=(*others, last + 1),
        split_mode=BY_LAYER if others else WHOLE,
    )


def wanted(cpu_layers: int, per_device: Sequence[int]) -> tuple[int, ...]:
    """Return the device of every layer and, last, of the output, as it is meant to be.

    >>> wanted(1, (2, 1))
    (-1, 0, 0, 1, 1)
    """
    laid = [device for device, count in enumerate(per_device) for _ in range(count)]
    return (CPU,) * cpu_layers + tuple(laid) + ((laid or [CPU])[-1],)


def from_stages(stages: Sequence[tuple[str, Share]]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Turn a stage table into the adapter's `devices` and `layers`.

    Raises `ConfigError` when the CPU is not first, or a device comes twice: llama.cpp cannot do that.
    """
    devices = tuple(device for device, _ in stages)
    check_devices(devices)
    return devices, tuple(share.layers for _, share in stages)


def check_devices(devices: Sequence[str]) -> None:
    """Refuse orders of devices that llama.cpp has no parameters for."""
    if any(is_cpu(device) for device in devices[1:]):
        raise ConfigError(
            f"devices {', '.join(devices)}: llama.cpp keeps the first layers on the CPU; name it first",
            param="devices",
        )
    if len(set(devices)) != len(devices):
        raise ConfigError(
            f"devices {', '.join(devices)}: llama.cpp uses a device once; name each once", param="devices"
        )


def read_back(lines: Iterable[str]) -> tuple[str, ...]:
    """Return the device of every layer and, last, of the output, as llama.cpp's log tells it.

    Empty when the log says nothing; `BackendError` when it leaves a layer out.

    >>> read_back(["load_tensors: layer   0 assigned to device CUDA0, is_swa = 0"])
    ('CUDA0',)
    """
    told = {int(found[1]): found[2] for line in lines if (found := _ASSIGNED.search(line))}
    if sorted(told) != list(range(len(told))):
        raise BackendError(
            f"llama.cpp's log names the devices of layers {ranges(sorted(told))} and of no others: edged "
            "does not know this version; install llama-cpp-python 0.3.36"
        )
    return tuple(told[layer] for layer in range(len(told)))


def ranges(numbers: Sequence[int]) -> str:
    """Write rising numbers shortly.

    >>> ranges([0, 1, 2, 5])
    '0-2, 5'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def described(devices: Sequence[str]) -> str:
    """Write which device has which layers; the last entry is the output's.

    >>> described(["CPU", "CUDA0", "CUDA0", "CUDA0"])
    'layers 0 on CPU, 1-2 on CUDA0, output on CUDA0'
    """
    if not devices:
        return "no layer on any device"
    parts, first = [], 0
    for device, run in groupby(devices[:-1]):
        count = len(list(run))
        parts.append(f"{ranges(range(first, first + count))} on {device}")
        first += count
    return f"layers {', '.join(parts)}, output on {devices[-1]}"
