"""What the overlap strategies gain on a device: seeded weights, one stage without ends, decode steps.

On a CPU the copies are plain calls in order, so that nothing can overlap: figures from there say that the
code runs, and nothing about speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Annotated

import msgspec
import torch

from edged.errors import ConfigError
from edged.layers.faults import explained
from edged.layers.offload.layers import OffloadedLayers, shelf_for
from edged.layers.offload.report import CAUTION, PARTS, OverlapCase, OverlapReport, overlap_checks
from edged.layers.offload.shelf import Shelf, shelve
from edged.layers.offload.streams import streams_for
from edged.layers.rows import RowCache
from edged.layers.runners import device_of
from edged.layers.share import Architecture, DType, Share
from edged.layers.spec import Overlap, OverlapFrom, StageSpec
from edged.layers.stage import Ends, Layers, LayerStage, Parts, StageShape
from edged.layers.weights.checkpoint import describe, library_config, weights
from edged.layers.wire import Job, Row

Progress = Callable[[int, int], None]


class OverlapBench(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is measured."""

    source: str = "random:llama:layers=8,hidden=512,heads=8,kv=2,intermediate=1408,vocabulary=1024,seed=1"
    device: str = "cpu"
    dtype: DType = "float32"
    overlap_from: OverlapFrom = "memory"
    overlap_folder: str = "/var/tmp"  # noqa: S108 # the file there has no name
    rows: Annotated[int, msgspec.Meta(ge=1)] = 4
    """Sequences of one part."""
    tokens: Annotated[int, msgspec.Meta(ge=1)] = 1
    """Of each row in a job; more of them make compute longer, loads stay as they are."""
    past: Annotated[int, msgspec.Meta(ge=0)] = 64
    """Tokens that are in the cache already."""
    jobs: Annotated[int, msgspec.Meta(ge=1)] = 3
    """Of each case in a round."""
    rounds: Annotated[int, msgspec.Meta(ge=1)] = 5


def measure_overlap(settings: OverlapBench, progress: Progress = lambda _done, _most: None) -> OverlapReport:
    """Measure all strategies in turn, their order reversed every round.

    `progress` is called with the rounds of parts and strategies so far, and how many there will be.

    Raises `ConfigError` for a model of fewer than four layers, most of which the two rooms would hold.
    """
    architecture = describe(settings.source)
    if architecture.layers < 4:  # noqa: PLR2004 # said in the message
        raise ConfigError(
            f"{settings.source} has {architecture.layers} layers; with fewer than 4 there is next to nothing "
            "to load: name a larger model",
            param="source",
        )
    device = device_of(settings.device)
    with explained(0), _shelved(settings, architecture, device) as shelf:
        bench = _Bench(settings, architecture, device, shelf, progress)
        try:
            return bench.report()
        finally:
            bench.close()


@contextmanager
def _shelved(settings: OverlapBench, architecture: Architecture, device: torch.device) -> Iterator[Shelf]:
    share = Share(first=0, end=architecture.layers)
    spec = StageSpec(
        stage=0,
        stages=1,
        share=share,
        device=settings.device,
        overlap="single",
        overlap_from=settings.overlap_from,
        overlap_folder=settings.overlap_folder,
    )
    shelf = shelf_for(spec, device)
    try:
        shelve(weights(settings.source, share, settings.dtype), shelf)
        yield shelf
    finally:
        shelf.close()


class _Bench:
    """A stage for each case over the same shelf; their caches and rooms are their own."""

    def __init__(
        self,
        settings: OverlapBench,
        architecture: Architecture,
        device: torch.device,
        shelf: Shelf,
        progress: Progress,
    ) -> None:
        self._settings = settings
        self._progress = progress
        self._done = 0
        self._shape = architecture
        self._device = device
        self._shelf = shelf
        self._parts = Parts(library_config(settings.source))
        self._cases: list[tuple[Overlap, int]] = [("none", 1), ("single", 1), ("multi", 1), ("multi", PARTS)]
        self._layers = [self._made(overlap) for overlap, _ in self._cases]
        self._stages = [
            self._stage(layers, block) for layers, (_, block) in zip(self._layers, self._cases, strict=True)
        ]

    def _made(self, overlap: Overlap) -> OffloadedLayers:
        streams = streams_for(self._device)
        return OffloadedLayers(self._shelf, self._parts, streams, self._device, ahead=overlap != "none")

    def _stage(self, layers: Layers, block: int) -> LayerStage:
        shape, settings = self._shape, self._settings
        context_tokens = settings.past + settings.tokens
        rows = settings.rows * block
        whole = rows, shape.key_value_heads, context_tokens, shape.head_dimension
        cache = RowCache.empty(shape.layers, whole, getattr(torch, settings.dtype), self._device)
        ends = Ends(self._parts, Share(first=0, end=shape.layers), {}, self._device)
        stage_shape = StageShape(context_tokens=context_tokens, device=self._device, block=block)
        return LayerStage(layers, ends, cache, self._parts.rotary(self._device), stage_shape)

    def _job(self, rows: int) -> tuple[Job, torch.Tensor]:
        settings = self._settings
        each = [Row(slot, settings.past, settings.tokens, emit=False) for slot in range(rows)]
        generator = torch.Generator().manual_seed(1)
        hidden = torch.randn(rows, settings.tokens, self._shape.hidden, generator=generator)
        return Job(0, 0, tuple(each)), hidden.to(getattr(torch, settings.dtype))

    def report(self) -> OverlapReport:
        """Measure everything."""
        load_s, compute_s, parts_s = self._load_s(), self._compute_s(1), self._compute_s(PARTS)
        cases = self._measured()
        overlaps = self._device.type != "cpu"
        return OverlapReport(
            device=self._settings.device,
            layers=self._shape.layers,
            layer_bytes=self._shelf.layout.bytes if self._shelf.layout is not None else 0,
            load_s=load_s,
            compute_s=compute_s,
            parts_s=parts_s,
            cases=cases,
            checks=overlap_checks(cases, load_s, compute_s, parts_s, overlaps=overlaps),
            caution="" if overlaps else CAUTION,
        )

    def _load_s(self) -> float:
        """Time loads alone: layers are given out and not computed with."""

        def loads() -> None:
            for _ in self._layers[0]:
                pass
            self._settle()

        return self._timed(loads)

    def _compute_s(self, parts: int) -> float:
        """Time compute alone: as many turns of a layer that is there, as there are layers."""
        job, hidden = self._job(self._settings.rows * parts)
        stage = self._stage(_Still(self._layers[1], self._shape.layers), parts)
        return self._timed(lambda: stage.run(job, hidden).cpu())

    def _timed(self, work: Callable[[], object]) -> float:
        work()
        times = []
        for _ in range(self._settings.rounds):
            began_s = time.perf_counter()
            for _ in range(self._settings.jobs):
                work()
            times.append((time.perf_counter() - began_s) / self._settings.jobs)
            self._advance()
        return median(times)

    def _advance(self) -> None:
        """Tell of a round: of loads and of compute with one part and `PARTS`, or of a strategy."""
        self._done += 1
        self._progress(self._done, 3 * self._settings.rounds + len(self._cases) * (1 + self._settings.rounds))

    def _settle(self) -> None:
        """Wait for the stream of compute, which has waited for the loads."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _measured(self) -> tuple[OverlapCase, ...]:
        times: list[list[tuple[float, float]]] = [[] for _ in self._cases]
        for number in range(1 + self._settings.rounds):
            order = range(len(self._cases)) if number % 2 else reversed(range(len(self._cases)))
            for case in order:
                found = self._round(case)
                self._advance()
                if number:  # the first one warms up
                    times[case].append(found)
        return tuple(self._case(number, each) for number, each in enumerate(times))

    def _round(self, case: int) -> tuple[float, float]:
        """Seconds of a job, and of its copies."""
        stage, jobs = self._stages[case], self._settings.jobs
        job, hidden = self._job(self._settings.rows * self._cases[case][1])
        copied_s, began_s = stage.copy_s, time.perf_counter()
        for _ in range(jobs):
            stage.run(job, hidden).cpu()
        return (time.perf_counter() - began_s) / jobs, (stage.copy_s - copied_s) / jobs

    def _case(self, number: int, times: Sequence[tuple[float, float]]) -> OverlapCase:
        overlap, block = self._cases[number]
        job_s = median(each for each, _ in times)
        return OverlapCase(
            overlap=overlap,
            block=block,
            job_s=job_s,
            spread_s=max(times)[0] - min(times)[0],
            tokens_per_s=self._settings.rows * self._settings.tokens * block / job_s,
            copy_s=median(each for _, each in times),
        )

    def close(self) -> None:
        """Give the rooms back."""
        for layers in self._layers:
            layers.close()


class _Still:
    """One loaded layer in the place of all: compute without loads."""

    copy_s = 0.0

    def __init__(self, layers: OffloadedLayers, count: int) -> None:
        self._layer = next(iter(layers))[1]
        self._count = count

    def __iter__(self) -> Iterator[tuple[int, torch.nn.Module]]:
        for number in range(self._count):
            yield number, self._layer

    def close(self) -> None:
        """Keep the layer: it belongs to another."""
