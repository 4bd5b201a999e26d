"""The forms in which this box can run a stage: pure.

Facts come in (variants that are present, backends with their formats and devices, cores), candidates come
out, the likeliest first: manifests list backends and variants by measurement elsewhere, and all cores are
the usual case. What the operator fixed in the configuration is not varied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from edged.backend import Device, Variant, cores_of
from edged.config.tables import Stage
from edged.placement.defaults import DELIBERATE, own_options
from edged.placement.table import Form
from edged.workers.spec import StageSpec

PRICED: dict[tuple[str, str], dict[str, tuple[Any, ...]]] = {
    ("openvino", "generator"): {"exact": (True, False)},
    ("llama_cpp", "generator"): {"exact": (True, False)},
}
"""Options of a backend on a CPU that change the price for a kind of stage, the default first."""


class Present(msgspec.Struct, frozen=True, kw_only=True):
    """A variant of the stage's model that is on this machine."""

    variant: Variant
    preferred: tuple[str, ...] = ()
    """Backends in the order of the manifest."""


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """An installed backend."""

    name: str
    formats: tuple[str, ...]
    devices: tuple[Device, ...]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A form, and what a process is told to take it."""

    form: Form
    kind: str
    spec: StageSpec
    silicon: str
    """Kind of the device: forms on unlike silicon do not replace one another."""
    most_batch: int = 0
    """What the device can take at once; 0 means any number."""


class Box(msgspec.Struct, frozen=True, kw_only=True):
    """What all stages share."""

    runtimes: tuple[Runtime, ...]
    cores: int
    library: Path
    cache_dir: Path


def thread_counts(cores: int) -> tuple[int, ...]:
    """All cores first, then the powers of two below.

    >>> thread_counts(6), thread_counts(1)
    ((6, 4, 2, 1), (1,))
    """
    powers = [1 << bit for bit in range(cores.bit_length()) if 1 << bit < cores]
    return (cores, *reversed(powers))


def candidates(name: str, stage: Stage, present: Sequence[Present], box: Box) -> list[Candidate]:
    """Every form of a stage that is worth a try here, nearest to the defaults first."""
    ranked = [
        (rank, candidate)
        for place, entry in enumerate(present)
        if stage.variant in {"", entry.variant.name}
        for rank, candidate in _of_variant(name, stage, entry, box, place)
    ]
    return [candidate for _, candidate in sorted(ranked, key=lambda pair: pair[0])]


def _of_variant(
    name: str, stage: Stage, entry: Present, box: Box, place: int
) -> list[tuple[tuple[int, ...], Candidate]]:
    found: list[tuple[tuple[int, ...], Candidate]] = []
    for position, runtime in enumerate(_fitting(stage, entry, box.runtimes)):
        for device in _devices(stage, runtime):
            threads = _threads(stage, device, box.cores)
            choices = _choices(stage, runtime.name, device)
            for (t, count), (o, options) in product(enumerate(threads), enumerate(choices)):
                rank = (place + position + t + o, t, o, place, position)
                candidate = _candidate(name, stage, entry.variant, device, box, count, options)
                found.append((rank, candidate))
    return found


def _fitting(stage: Stage, entry: Present, runtimes: Sequence[Runtime]) -> list[Runtime]:
    """Runtimes that open the variant; some only when the operator asks for them."""
    order = {backend: place for place, backend in enumerate(entry.preferred)}
    fitting = [
        runtime
        for runtime in runtimes
        if entry.variant.format in runtime.formats
        and (runtime.name == stage.backend or (not stage.backend and runtime.name not in DELIBERATE))
    ]
    return sorted(fitting, key=lambda runtime: order.get(runtime.name, len(order)))


def _devices(stage: Stage, runtime: Runtime) -> list[Device]:
    usable = [device for device in runtime.devices if not device.unusable]
    if not stage.device:
        return usable
    exact = [device for device in usable if device.id == stage.device]
    if exact or not stage.device.startswith("cpu:"):
        return exact
    return [msgspec.structs.replace(d, id=stage.device) for d in usable if d.id == "cpu"]


def _threads(stage: Stage, device: Device, cores: int) -> tuple[int, ...]:
    if device.kind != "cpu" or device.backend == "torch_pipeline":  # it shares the cores out itself
        return (0,)
    if fixed := stage.options.get("threads"):
        return (int(fixed),)
    return thread_counts(len(cores_of(device.id) or ()) or cores)


def _choices(stage: Stage, backend: str, device: Device) -> list[dict[str, Any]]:
    """Every combination of the options that change the price, without those that are fixed."""
    priced = PRICED.get((backend, stage.kind), {}) if device.kind == "cpu" else {}
    values = {
        name: (stage.options[name],) if name in stage.options else several for name, several in priced.items()
    }
    return [dict(zip(values, each, strict=True)) for each in product(*values.values())]


def _candidate(
    name: str,
    stage: Stage,
    variant: Variant,
    device: Device,
    box: Box,
    threads: int,
    options: Mapping[str, Any],
) -> Candidate:
    form = Form(
        stage=name,
        model=variant.model,
        variant=variant.name,
        backend=device.backend,
        device=device.id,
        threads=threads,
        options=tuple(sorted(options.items())),
    )
    return Candidate(
        form=form,
        kind=stage.kind,
        spec=_spec(form, stage, variant, box),
        silicon=device.kind,
        most_batch=_most_batch(stage, device),
    )


def _most_batch(stage: Stage, device: Device) -> int:
    """The smallest of the limits that are set; a device's own batch limit is its adapter's business."""
    limits = [stage.max_batch or 0]
    if stage.kind == "generator":
        limits += [device.capabilities.max_sequences, int(stage.options.get("max_sequences", 0))]
    return min(filter(None, limits), default=0)


def _spec(form: Form, stage: Stage, variant: Variant, box: Box) -> StageSpec:
    own = own_options(form.backend, stage, box.cache_dir)
    threads = {"threads": form.threads} if form.threads else {}
    return StageSpec(
        name=form.stage,
        kind=stage.kind,
        backend=form.backend,
        device=form.device,
        max_batch=stage.max_batch or 1,
        variant=variant,
        options=own | dict(stage.options) | threads | dict(form.options),
        library=box.library,
        stream_interval_ms=stage.stream_interval_ms,
    )
