"""What layers, embedding and head cost on a device: a few are loaded and run, whatever the model's size.

A stage takes so long for a micro-batch: something whatever it holds, a layer's time for each layer, and what
its ends take. Four stages tell these apart: one layer, several layers, one layer behind the embedding, one
before the head. They take turns, so that whatever slows the machine meanwhile slows all of them; of each the
lower quartile counts, since neighbours only ever make a step longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import quantiles
from typing import NamedTuple

import torch

from edged.backend import Sampling
from edged.errors import ConfigError
from edged.layers.planning.costs import Conditions, MeasuredCosts, Spread
from edged.layers.runners import build, device_of
from edged.layers.share import Architecture, DType, Share
from edged.layers.spec import StageSpec
from edged.layers.stage import Runner
from edged.layers.weights.checkpoint import describe
from edged.layers.wire import Job, Opened, Row

MOST_LAYERS = 5
WARM_UP = 3
SHORTEST_S = 1e-9
"""Of a layer, where the clock tells nothing apart: costs have to be more than nothing."""
Progress = Callable[[int, int], None]
"""Called with the rounds done and their number."""


class Setting(NamedTuple):
    """What is measured: decode steps of one micro-batch."""

    source: str
    """A GGUF file, a folder of safetensors, or `random:...`."""
    device: str
    dtype: DType
    micro_batch: int
    context_tokens: int
    """Tokens that each sequence has in the KV cache."""
    model: str = ""
    """As it was asked for; the source where that is empty."""


class _Probe(NamedTuple):
    runner: Runner
    tensor: torch.Tensor


def measure(setting: Setting, rounds: int, progress: Progress = lambda _done, _of: None) -> MeasuredCosts:
    """Measure decode steps on one device; hops are not measured.

    Raises `ConfigError` for models of fewer than two layers, and what loading a stage raises.
    """
    architecture = describe(setting.source)
    layers = architecture.layers
    if layers <= 1:
        raise ConfigError(f"{setting.source} has {layers} layer: costs are told apart from 2 layers on")
    several = min(MOST_LAYERS, layers)
    shares = {
        "one": Share(first=0, end=1),
        "several": Share(first=0, end=several),
        "embedding": Share(first=0, end=1, embedding=True),
        "head": Share(first=layers - 1, end=layers, head=True),
    }
    probes = {name: _probe(setting, share) for name, share in shares.items()}
    try:
        took = _timed(setting, probes, rounds, progress)
    finally:
        for probe in probes.values():
            probe.runner.close()
    parts = _told_apart({name: quantiles(each, n=4)[0] for name, each in took.items()}, several)
    names = took.keys()
    rounds_s = [
        _told_apart(dict(zip(names, each, strict=True)), several) for each in zip(*took.values(), strict=True)
    ]
    return MeasuredCosts(
        layer_s=max(parts["layer_s"], SHORTEST_S),
        embedding_s=max(0.0, parts["embedding_s"]),
        head_s=max(0.0, parts["head_s"]),
        stage_s=max(0.0, parts["stage_s"]),
        spread=Spread(**{name: _middle_half([each[name] for each in rounds_s]) for name in parts}),
        conditions=_conditions(setting, architecture),
    )


def _told_apart(seconds: dict[str, float], several: int) -> dict[str, float]:
    """Turn seconds of the four stages to those of the parts; below zero where noise outweighs a part."""
    layer_s = (seconds["several"] - seconds["one"]) / (several - 1)
    return {
        "layer_s": layer_s,
        "embedding_s": seconds["embedding"] - seconds["one"],
        "head_s": seconds["head"] - seconds["one"],
        "stage_s": seconds["one"] - layer_s,
    }


def _middle_half(seconds: Sequence[float]) -> tuple[float, float]:
    low, _, high = quantiles(seconds, n=4, method="inclusive")
    return low, high


def _conditions(setting: Setting, architecture: Architecture) -> Conditions:
    return Conditions(
        model=setting.model or setting.source,
        architecture=architecture,
        device=setting.device,
        dtype=setting.dtype,
        micro_batch=setting.micro_batch,
        context_tokens=setting.context_tokens,
    )


def _probe(setting: Setting, share: Share) -> _Probe:
    spec = StageSpec(
        stage=0,
        stages=1,
        share=share,
        device=setting.device,
        source=setting.source,
        dtype=setting.dtype,
        sequences=setting.micro_batch,
        context_tokens=setting.context_tokens,
    )
    runner, _ = build(spec, own_process=False)
    if share.embedding:
        return _Probe(runner, torch.zeros((setting.micro_batch, 1), dtype=torch.int64))
    hidden = describe(setting.source).hidden
    shape = (setting.micro_batch, 1, hidden)
    return _Probe(runner, torch.full(shape, 0.01, dtype=getattr(torch, setting.dtype)))


def _timed(
    setting: Setting, probes: dict[str, _Probe], rounds: int, progress: Progress
) -> dict[str, list[float]]:
    """Let the stages take turns; returns the seconds of every round."""
    last = setting.context_tokens - 1
    rows = tuple(Row(slot, last, 1, emit=True) for slot in range(setting.micro_batch))
    first = Job(number=0, lane=0, rows=rows, opened=tuple(Opened(row.slot, Sampling()) for row in rows))
    job = Job(number=1, lane=0, rows=rows)
    device = device_of(setting.device)
    took: dict[str, list[float]] = {name: [] for name in probes}
    for number in range(WARM_UP + rounds):
        for name, probe in probes.items():
            took[name].append(_once(probe, job if number else first, device))
        progress(max(0, number + 1 - WARM_UP), rounds)
    return {name: each[WARM_UP:] for name, each in took.items()}


def _once(probe: _Probe, job: Job, device: torch.device) -> float:
    tensor = probe.tensor.to(device)
    _wait(device)
    began_s = time.perf_counter()
    probe.runner.run(job, tensor)
    _wait(device)
    return time.perf_counter() - began_s


def _wait(device: torch.device) -> None:
    """Wait until the device has done what it was given: its work is only queued by calls."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
