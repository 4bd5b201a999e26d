"""What the daemon says about itself: the structs of `edgectl status` and the admin socket."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from edged.governor.readings import Senses
from edged.messages import CacheCounters
from edged.placement.table import Plan


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a stage."""

    incarnation: str
    pid: int
    state: Literal["starting", "ready", "stopping"]
    in_flight: int
    memory_bytes: int
    uptime_s: float
    load_s: float


class CacheReport(msgspec.Struct, frozen=True, kw_only=True):
    """A cache of a stage, all its workers together, as `edgectl cache show` lists it."""

    stage: str
    name: str
    entries: int
    """0 for `prefix`, whose runtime does not count them."""
    bytes: int
    limit_bytes: int
    """0 where the runtime does not tell."""
    hits: int
    """Of `prefix`: prompt tokens; of the others: look-ups."""
    misses: int
    evictions: int


class StageStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A stage as `edgectl status` shows it."""

    name: str
    kind: str
    state: Literal["ready", "starting", "degraded", "failed", "off"]
    """`degraded`: it works, but a worker is missing; `failed`: it gave up restarting."""
    reason: str
    model: str
    variant: str
    backend: str
    device: str
    workers: tuple[WorkerStatus, ...]
    queued: int
    in_flight: int
    slots: int
    slots_used: int
    done: int
    failed: int
    restarts: int
    rate_per_s: float
    """Items finished per second over the last minute."""
    mean_wait_s: float
    mean_compute_s: float
    mean_batch: float
    details: dict[str, Any]
    queued_by_priority: dict[str, int] = {}
    batch_limit: int = 0
    """The largest micro-batch that the controller forms now."""
    batch_reason: str = ""
    """Why the controller chose it, in a sentence."""
    cores: dict[str, int] = {}
    """Core lease of each worker, by incarnation; empty where leases are off."""
    utilisation: float = 0.0
    """Share of the last minute in which the stage held work, 0..1, averaged over its workers."""
    caches: dict[str, CacheCounters] = {}
    """Of all workers together, by cache."""
    swaps: int = 0
    """Changes by `edgectl stage swap` and `scale` since the start that came into force."""
    swaps_failed: int = 0
    """Those that left the stage as it was."""
    override: str = ""
    """What `edgectl stage swap` or `scale` changed against configuration and plan; empty where nothing."""


class PlanReport(msgspec.Struct, frozen=True, kw_only=True):
    """The plan in force, as the admin socket tells it."""

    plan: Plan | None
    under_way: bool = False
    """Whether another one, or none, is on its way to become it."""
    waiting: tuple[str, ...] = ()
    """Stages that are still to be replaced, the one that is being replaced first."""
    problem: str = ""
    """Why the last plan was taken back; empty when it was not."""
    unstored: str = ""
    """Why the next start will not know what is in force, and what to do; empty when it will."""


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """What is to change about how a stage runs; what is empty stays as it is now."""

    variant: str = ""
    backend: str = ""
    device: str = ""


class SwapReport(msgspec.Struct, frozen=True, kw_only=True):
    """The newest change of a stage by `edgectl stage swap` or `scale`, as the admin socket tells it."""

    stage: str = ""
    """Empty while there was none since the start."""
    under_way: bool = False
    phase: Literal["", "stopping", "loading", "draining"] = ""
    """`stopping`: the old workers finish before the new ones load; `draining`: they finish behind them."""
    changes: tuple[str, ...] = ()
    one_copy: bool = False
    """Whether the old workers had to be gone before the new ones were loaded, and work waited meanwhile."""
    memory: str = ""
    """Why that was so, or was not: the figures."""
    problem: str = ""
    """Why the stage runs as before; empty when it does not."""
    code: str = ""
    """Of the error behind `problem`."""
    took_s: float = 0.0
    agreement: dict[str, float] = {}
    """Of a new embedder with the stored vectors, where it was measured: see `Agreement`."""
    overrides: dict[str, str] = {}
    """By stage: what it runs otherwise than the configuration and the plan say, until the next start."""


class PlanStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The plan in force."""

    id: str
    objective: str
    bottleneck: str
    predicted_rate_per_s: float
    observed_rate_per_s: float | None
    """What the bottleneck finished per second when it was last saturated; None while it never was."""
    stale: str = ""
    """Why it should be made anew: fingerprint changed, rates have left the prediction; empty when not."""
    paces: dict[str, float] = {}
    """By stage that was saturated: below 1 it is slower than the plan says, above 1 faster, 1 as planned."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon as `edgectl status` shows it."""

    version: str
    pid: int
    state: Literal["starting", "ready", "degraded", "draining"]
    uptime_s: float
    config_path: str
    accepted: int
    completed: int
    rejected: dict[str, int]
    """By error code."""
    outstanding: int
    entry_slots: int
    entry_slots_used: int
    memory_bytes: int
    """Resident, daemon and workers together."""
    load_average: float
    temperature_c: float | None
    """The hottest plausible sensor; None where the machine has none."""
    temperature_note: str
    stages: tuple[StageStatus, ...]
    pipelines: dict[str, tuple[str, ...]]
    plan: PlanStatus | None = None
    """The applied plan beside what is observed; None while none is applied."""
    senses: Senses | None = None
    """Temperatures by device, whom to believe, clocks, memory, pressure; None before the first sample."""
    notes: tuple[str, ...] = ()
    """Sentences that an operator should read: no calibration, stale index, ..."""
