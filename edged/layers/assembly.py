"""From what an operator asks for to the specs of all stages, for `edgectl layers` and for the daemon."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import msgspec

from edged.backend import cores_of
from edged.errors import ConfigError
from edged.layers.devices import of_torch
from edged.layers.head import HeadShape
from edged.layers.limits import CONTEXT_TOKENS, MOST_SEQUENCES
from edged.layers.meter import Meter
from edged.layers.offload.overlap import check_overlap
from edged.layers.pipeline import Pipeline, start
from edged.layers.planning.costs import Sizes, estimated, sizes_of
from edged.layers.planning.partition import Candidate, even, shares
from edged.layers.planning.plan import Dropped, Work, plan
from edged.layers.remote.elsewhere import check_elsewhere
from edged.layers.schedule import Mode, check
from edged.layers.share import DType, Share, auto_dtype
from edged.layers.spec import Overlap, OverlapFrom, StageSpec, Synthetic, Transport, is_elsewhere
from edged.layers.weights.checkpoint import describe

Count = Annotated[int, msgspec.Meta(ge=0, le=1024)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model is laid over devices; what `options` of a stage with backend `torch_pipeline` may say."""

    devices: tuple[str, ...] = ()
    """One entry a stage, in order: `cpu`, `cpu:0-1`, `cuda:0`, or `tcp://HOST:PORT` where another host
    runs `edgectl layers serve`; none means the stage's own device."""
    layers: tuple[Annotated[int, msgspec.Meta(ge=1)], ...] = ()
    """Layers of each device; none leaves that to `split`."""
    split: Literal["weighted", "even"] = "weighted"
    """`weighted` balances estimated seconds, head included, and leaves out a device that does not help;
    `even` gives every device as many layers, the first ones one more."""
    mode: Mode = "ring"
    transport: Transport | Literal["auto"] = "auto"
    """How stages reach each other; `auto` is NCCL between different GPUs, else ZeroMQ between processes."""
    micro_batches: Annotated[int, msgspec.Meta(ge=0, le=MOST_SEQUENCES)] = 0
    """0 means one a stage."""
    max_sequences: Annotated[int, msgspec.Meta(ge=1, le=MOST_SEQUENCES)] = 8
    """Over all micro-batches."""
    context_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Prompt and answer of one sequence; 0 means the model's, at most 2048."""
    prefill_tokens: Annotated[int, msgspec.Meta(ge=8, le=65536)] = 256
    """Prompt tokens that one turn reads at most while no answer runs."""
    running_prefill_tokens: Annotated[int, msgspec.Meta(ge=8, le=65536)] = 64
    """The same while answers run: smaller keeps them smoother while prompts are read."""
    dtype: DType | Literal["auto"] = "auto"
    """`auto` is float32 where a CPU takes part, else bfloat16."""
    threads: Count = 0
    """Of each stage on a CPU; 0 shares the cores out."""
    overlap: Overlap | None = None
    """Keep weights in host memory and bring them layer by layer: `none` waits for each, `single` loads the
    next layer meanwhile, `multi` also cuts a micro-batch into `block` parts that share each load."""
    overlap_from: OverlapFrom = "memory"
    """Where `overlap` brings weights from: host memory, or a file on disk where that is too small."""
    overlap_folder: str = "/var/tmp"  # noqa: S108 # the file there has no name
    """Where that file is; it must be on a disk (`/tmp` is memory on many systems)."""
    block: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    offload_cache: bool = False
    """Keep keys and values in host memory too; needs `overlap`."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """How long a micro-batch may be on its way before its stage counts as stuck."""
    state_dir: str = ""
    """Where key and list of peers lie, for devices on other hosts; the daemon fills in its own."""


class Assembly(msgspec.Struct, frozen=True, kw_only=True):
    """What `Pipeline` is started from."""

    specs: tuple[StageSpec, ...]
    shape: HeadShape
    context_tokens: int
    max_sequences: int
    """Of all micro-batches together, as asked for; the last micro-batch may have room for more."""
    left_out: tuple[Dropped, ...] = ()
    """Devices that were asked for and have no stage."""

    def start(self, ends: Callable[[int], bool], meter: Meter | None = None) -> Pipeline:
        """Start all stages; see `edged.layers.pipeline.start`."""
        return start(self.specs, self.shape, ends, meter)


def assemble(source: str, settings: Settings, device: str = "cpu") -> Assembly:
    """Lay a model over devices; raises `ConfigError` for what cannot work."""
    devices = settings.devices or (device,)
    if unknown := [each for each in devices if not of_torch(each)]:
        raise ConfigError(
            f"{unknown[0]!r} is not a device of a layer pipeline; write cpu, cpu:0-1, cuda:0 or tcp://HOST:PORT",
            param="devices",
        )
    check_elsewhere(settings, devices)
    architecture = describe(source)
    context_tokens = settings.context_tokens or min(architecture.context_tokens, CONTEXT_TOKENS)
    if context_tokens > architecture.context_tokens:
        raise ConfigError(
            f"context_tokens = {context_tokens} is more than the model's {architecture.context_tokens}",
            param="context_tokens",
        )
    dtype = _dtype(settings, devices)
    sizes = sizes_of(architecture, dtype, context_tokens)
    left_out: tuple[Dropped, ...] = ()
    if settings.layers:
        placed = list(zip(devices, _given(settings.layers, devices, architecture.layers), strict=True))
    elif settings.split == "even":
        placed = list(zip(devices, even(architecture.layers, len(devices)), strict=True))
    else:
        placed, left_out = _weighted(settings, devices, sizes)
    laid = _laid(source, settings, placed, dtype, context_tokens)
    return msgspec.structs.replace(laid, left_out=left_out)


def _weighted(
    settings: Settings, devices: Sequence[str], sizes: Sizes
) -> tuple[list[tuple[str, Share]], tuple[Dropped, ...]]:
    """Balance estimated seconds; returns also the devices that do not help, and why."""
    micro_batches = min(settings.micro_batches or len(devices), settings.max_sequences)
    work = Work(
        mode="ring" if settings.mode == "seed" else settings.mode,  # it takes as long, and is checked later
        micro_batches=micro_batches,
        micro_batch=-(-settings.max_sequences // micro_batches),
    )
    costs = estimated(sizes, work.micro_batch)
    found = plan(sizes, costs, [Candidate(id=each) for each in devices], work)
    return [(stage.device, stage.share) for stage in found.stages], found.dropped


def assemble_synthetic(synthetic: Synthetic, settings: Settings, stages: int) -> Assembly:
    """Lay stages that only wait, one layer each."""
    placed = [("cpu", share) for share in even(stages, stages)]
    assembly = _laid("", settings, placed, "float32", settings.context_tokens or CONTEXT_TOKENS)
    specs = tuple(msgspec.structs.replace(spec, synthetic=synthetic) for spec in assembly.specs)
    return msgspec.structs.replace(assembly, specs=specs)


def _laid(
    source: str, settings: Settings, placed: Sequence[tuple[str, Share]], dtype: DType, context_tokens: int
) -> Assembly:
    stages = len(placed)
    micro_batches = min(settings.micro_batches or stages, settings.max_sequences)
    check(settings.mode, stages, micro_batches)
    check_overlap(settings)
    micro_batch = -(-settings.max_sequences // micro_batches)
    transport = _transport(settings, [device for device, _ in placed])
    specs = tuple(
        StageSpec(
            stage=number,
            stages=stages,
            share=share,
            device=device,
            source=source,
            dtype=dtype,
            sequences=micro_batches * micro_batch,
            micro_batch=micro_batch,
            context_tokens=context_tokens,
            mode=settings.mode,
            transport=transport,
            threads=0
            if is_elsewhere(device)
            else settings.threads or _threads(device, [each for each, _ in placed]),
            timeout_s=settings.timeout_s,
            overlap=settings.overlap,
            overlap_from=settings.overlap_from,
            overlap_folder=settings.overlap_folder,
            block=settings.block,
            offload_cache=settings.offload_cache,
            state_dir=settings.state_dir,
        )
        for number, (device, share) in enumerate(placed)
    )
    shape = HeadShape(
        stages=stages,
        micro_batches=micro_batches,
        micro_batch=micro_batch,
        prefill_tokens=settings.prefill_tokens,
        running_prefill_tokens=min(settings.running_prefill_tokens, settings.prefill_tokens),
        mode=settings.mode,
        timeout_s=settings.timeout_s,
    )
    return Assembly(
        specs=specs, shape=shape, context_tokens=context_tokens, max_sequences=settings.max_sequences
    )


def _given(layers: Sequence[int], devices: Sequence[str], total: int) -> tuple[Share, ...]:
    if len(layers) != len(devices) or sum(layers) != total:
        raise ConfigError(
            f"layers = {list(layers)} gives {sum(layers)} layers to {len(layers)} devices; the model has "
            f"{total} layers and there are {len(devices)} devices",
            param="layers",
        )
    return shares(layers)


def _dtype(settings: Settings, devices: Sequence[str]) -> DType:
    return auto_dtype(devices) if settings.dtype == "auto" else settings.dtype


def _transport(settings: Settings, devices: Sequence[str]) -> Transport:
    different = len(set(devices)) == len(devices)
    cuda = all(device.startswith("cuda") for device in devices)
    if settings.transport == "nccl" and not (cuda and different):
        raise ConfigError(
            f"transport 'nccl' needs a GPU of its own for every stage, not {', '.join(devices)}: NCCL "
            "refuses two stages on one GPU; take 'zeromq', 'gloo' or 'threads'",
            param="transport",
        )
    if settings.mode == "seed" and settings.transport == "zeromq":
        raise ConfigError(
            "mode 'seed' needs sends that wait to be taken: transport 'threads' or 'gloo', not 'zeromq'",
            param="transport",
        )
    if settings.transport != "auto":
        return settings.transport
    if any(map(is_elsewhere, devices)):
        return "zeromq"
    if settings.mode == "seed":
        return "gloo"
    return "nccl" if cuda and different and len(devices) > 1 else "zeromq"


def _threads(device: str, devices: Sequence[str]) -> int:
    """Share the cores of a device out among the stages that are on it."""
    own = len(cores_of(device) or ())
    count = own or len(os.sched_getaffinity(0))
    sharing = devices.count(device) if own else sum(each.startswith("cpu") for each in devices)
    return max(1, count // max(1, sharing))
