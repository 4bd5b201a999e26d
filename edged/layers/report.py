"""What a layer pipeline says about itself: a noun that the adapter, the daemon and its clients share."""

from __future__ import annotations

import msgspec

from edged.layers.schedule import Mode


class StageReport(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a layer pipeline. Seconds are since its worker started, while the pipeline had work."""

    stage: int
    device: str
    first: int
    """Its first decoder layer."""
    end: int
    """The one behind its last."""
    pid: int
    """Of its process; the first stage has the worker's."""
    jobs: int
    """Turns of micro-batches that it computed."""
    busy_s: float
    wait_receive_s: float
    wait_send_s: float
    copy_s: float
    """What copies between host and device took, as far as compute waited for them."""
    received_bytes: int
    weight_bytes: int
    cache_bytes: int


class LayerReport(msgspec.Struct, frozen=True, kw_only=True):
    """A layer pipeline since its worker started."""

    mode: Mode
    transport: str
    micro_batches: int
    """How many there are room for."""
    working_micro_batches: float
    """How many had work, on average over the time in which any had."""
    span_s: float
    """Time in which there was work."""
    tokens: int
    """Chosen so far."""
    bubble: float
    """Share of all stages' time, 0..1, in which they computed nothing although there was work: measured."""
    bubble_formula: float
    """The same by the formula for stages that take equally long and hops that cost nothing, with as many
    micro-batches as had work at each moment: see `edged.layers.planning.bubble.steady`."""
    bubble_unequal: float
    """By the formula for stages that take as long as these do."""
    stages: tuple[StageReport, ...]
