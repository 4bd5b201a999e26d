"""The plan of a layer pipeline: who holds what, what it costs, and what it buys. Pure; needs no runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from edged.errors import ConfigError
from edged.layers.planning.bubble import formula, predicted, span_s
from edged.layers.planning.costs import ID_BYTES, UNIT, LayerCosts, Sizes
from edged.layers.planning.partition import (
    Candidate,
    Load,
    Placed,
    even,
    mib,
    shares,
    stage_bytes,
    stage_seconds,
    weighted,
)
from edged.layers.schedule import Mode, check
from edged.layers.share import DType, Share

__all__ = ["Candidate", "LayerPlan", "PlannedStage", "Work", "even", "plan", "shares", "weighted"]

Kind = Literal["even", "weighted"]
Count = Annotated[int, msgspec.Meta(ge=1)]


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a pipeline is planned for."""

    mode: Mode = "ring"
    micro_batches: Count = 1
    micro_batch: Count = 1
    """Sequences of one micro-batch."""
    prompt_tokens: Count = 1
    tokens: Count = 128
    """Generated for each sequence."""
    requests: Count | None = None
    """At a time; None is as many as the micro-batches hold."""

    @property
    def places(self) -> int:
        """Sequences that can be under way: each has a KV cache."""
        return self.micro_batches * self.micro_batch

    @property
    def served(self) -> int:
        """Requests that are under way at the same time."""
        return self.places if self.requests is None else min(self.requests, self.places)

    @property
    def waiting(self) -> int:
        """Requests that wait for others to end."""
        return max(0, (self.requests or 0) - self.places)

    @property
    def live(self) -> int:
        """Micro-batches that there are requests for."""
        return -(-self.served // self.micro_batch)


class PlannedStage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage."""

    device: str
    share: Share
    weight_bytes: int
    cache_bytes: int
    """KV cache of all sequences that can be under way."""
    seconds: float
    """Of one micro-batch in one decode step; in times of a layer, where only their number is known."""


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """A device that gets no stage."""

    device: str
    why: str


class LayerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a pipeline looks like, and what is predicted of it."""

    kind: Kind
    dtype: DType | None
    """Of weights and KV cache; None where only the number of layers is known."""
    layers: int
    sizes: tuple[int, ...]
    """Decoder layers of each stage."""
    stages: tuple[PlannedStage, ...]
    dropped: tuple[Dropped, ...]
    mode: Mode
    micro_batches: int
    micro_batch: int
    max_sequences: int
    """That all micro-batches together have a KV cache for."""
    context_tokens: int
    """Prompt and answer of each."""
    prompt_tokens: int
    tokens: int
    requests: int
    """Under way at the same time, as planned."""
    waiting: int
    """Requests beyond those: they wait for a place."""
    measured: bool
    """Whether the seconds were measured; else they are estimates, and only their ratios mean something."""
    decode_hop_bytes: int
    """From one stage to the next, for one micro-batch and one token; headers come on top."""
    prefill_hop_bytes: int
    """The same for its prompts."""
    return_bytes: int
    """Ids from the last stage to the first, for one micro-batch and one token."""
    bubble: float
    """Predicted for these stages and requests: the share of stage seconds without work."""
    bubble_formula: float
    """For stages that take equally long, with all micro-batches under way."""
    tokens_per_s: float | None
    """Decoding, of all sequences together; None when nothing is known of the layers but their number."""
    times_one_device: float
    """That, by what the fastest device does alone with micro-batches of the same size."""
    times_one_batch: float
    """That, by what the fastest device does alone with all these sequences in one batch, if such a step takes
    it no longer than one with a micro-batch: true while decoding waits for memory."""
    alone: str
    """The device that both compare with."""
    fits_alone: bool | None
    """Whether the model and all caches fit one of the devices; None where memory is not known."""
    spare_micro_batches: int
    """That the requests leave empty."""


def plan(
    sizes: Sizes, costs: LayerCosts, candidates: Sequence[Candidate], work: Work, kind: Kind = "weighted"
) -> LayerPlan:
    """Plan a pipeline over `candidates`, in their order.

    Raises `ConfigError` when there are more stages than layers (even), when the model does not fit, and for
    what the mode refuses; it names the limit or what is missing.
    """
    placed = _placed(sizes, costs, candidates, work, kind)
    check(work.mode, len(placed), work.micro_batches)
    stages = tuple(_stage(each, sizes, costs, work.places) for each in placed)
    used = {each.place for each in placed}
    stage_s = [each.seconds for each in stages]
    alone = max(candidates, key=lambda each: each.speed)
    alone_s = costs.seconds(sizes.layers, embedding=True, head=True) / alone.speed
    span = span_s(work.mode, stage_s, work.live, work.tokens, costs.hop_s)
    return LayerPlan(
        kind=kind,
        dtype=sizes.dtype,
        layers=sizes.layers,
        sizes=tuple(each.share.layers for each in stages),
        stages=stages,
        dropped=tuple(
            Dropped(device=each.id, why=_why(each, sizes, costs, stages, work))
            for place, each in enumerate(candidates)
            if place not in used
        ),
        mode=work.mode,
        micro_batches=work.micro_batches,
        micro_batch=work.micro_batch,
        max_sequences=work.places,
        context_tokens=work.prompt_tokens + work.tokens,
        prompt_tokens=work.prompt_tokens,
        tokens=work.tokens,
        requests=work.served,
        waiting=work.waiting,
        measured=costs.measured,
        decode_hop_bytes=work.micro_batch * sizes.hidden_bytes,
        prefill_hop_bytes=work.micro_batch * work.prompt_tokens * sizes.hidden_bytes,
        return_bytes=work.micro_batch * ID_BYTES,
        bubble=predicted(work.mode, stage_s, work.live, work.tokens, costs.hop_s),
        bubble_formula=formula(work.mode, len(stages), work.micro_batches, work.tokens),
        tokens_per_s=None if costs == UNIT else work.served * work.tokens / span,
        times_one_device=work.live * work.tokens * alone_s / span,
        times_one_batch=work.tokens * alone_s / span,
        alone=alone.id,
        fits_alone=_fits_alone(sizes, candidates, work.places),
        spare_micro_batches=work.micro_batches - work.live,
    )


def _placed(
    sizes: Sizes, costs: LayerCosts, candidates: Sequence[Candidate], work: Work, kind: Kind
) -> tuple[Placed, ...]:
    if kind == "weighted":
        load = Load(mode=work.mode, micro_batches=work.live, sequences=work.places)
        return weighted(sizes, costs, candidates, load)
    laid = even(sizes.layers, len(candidates))
    placed = tuple(Placed(place, candidates[place], share) for place, share in enumerate(laid))
    for _, each, share in placed:
        needed = stage_bytes(share, sizes, work.places)
        if each.memory_bytes and needed > each.memory_bytes:
            raise ConfigError(
                f"an even split puts {share.layers} layers with {mib(needed)} on {each.id}, which has room "
                f"for {mib(each.memory_bytes)}: {mib(needed - each.memory_bytes)} are missing; split by "
                f"weight instead, or take a smaller context, fewer micro-batches or a narrower dtype",
                param="devices",
            )
    return placed


def _stage(placed: Placed, sizes: Sizes, costs: LayerCosts, sequences: int) -> PlannedStage:
    share = placed.share
    return PlannedStage(
        device=placed.candidate.id,
        share=share,
        weight_bytes=sizes.weights(share),
        cache_bytes=share.layers * sequences * sizes.cache_bytes,
        seconds=stage_seconds(placed, costs),
    )


def _why(
    left_out: Candidate, sizes: Sizes, costs: LayerCosts, stages: Sequence[PlannedStage], work: Work
) -> str:
    """Say why a device has no stage."""
    layer = sizes.layer_bytes + work.places * sizes.cache_bytes
    if left_out.memory_bytes and left_out.memory_bytes < layer:
        return f"it has room for {mib(left_out.memory_bytes)}, and one layer takes {mib(layer)}"
    layer_ms = 1000 * costs.layer_s / left_out.speed
    busiest_ms = 1000 * max(stage.seconds for stage in stages)
    if work.live < len(stages) + 1:
        return (
            f"with {work.live} micro-batches under way another stage shortens nothing: the way through all "
            f"layers counts, and a layer takes {layer_ms:.3g} ms there"
        )
    return (
        f"one layer takes {layer_ms:.3g} ms there, and without it the busiest stage takes {busiest_ms:.3g} "
        "ms for all of its layers: it would not get shorter"
    )


def _fits_alone(sizes: Sizes, candidates: Sequence[Candidate], sequences: int) -> bool | None:
    if not sizes.layer_bytes or not all(each.memory_bytes for each in candidates):
        return None
    needed = sizes.total_bytes + sizes.layers * sequences * sizes.cache_bytes
    return any(needed <= each.memory_bytes for each in candidates)
