"""What the daemon says about itself: the structs of `edgectl status` and the admin socket."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from edged.config.tables import Rung
from edged.governor.readings import Senses
from edged.layers.report import LayerReport
from edged.messages import CacheCounters
from edged.placement.table import Plan


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a stage."""

    incarnation: str
    pid: int
    state: Literal["starting", "ready", "stopping"]
    in_flight: int
    memory_bytes: int
    """Resident; of a layer pipeline, the processes of all its stages together."""
    uptime_s: float
    load_s: float
    layers: LayerReport | None = None
    """How the stages of its layer pipeline do; None where it has none, or has not told yet."""


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


class DeviceLoss(msgspec.Struct, frozen=True, kw_only=True):
    """A device that a stage has lost and is to return to."""

    device: str
    lost_s: float
    """How long ago."""
    why: str
    tries: int
    """How often it has been tried since it was last sound."""
    again_s: float | None
    """Until it is tried again; None while it is."""

    @property
    def sentence(self) -> str:
        """In words."""
        again = "tried now" if self.again_s is None else f"tried again in {self.again_s:.0f} s"
        return f"{self.device} lost {self.lost_s:.0f} s ago: {self.why}; {again}"


class BypassStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Who passes a reranker by, and what that saves and costs."""

    mode: str
    """`off`, `auto`, `benefit` or `always`: what holds now."""
    configured: str
    passing: str
    """`nothing`, `benefit` or `everything`."""
    why: str
    """Whose wish that is."""
    bypassed: int
    """Rerankings saved since the start."""
    questions: int
    """Requests that came to the stage since the start, those that passed by included."""
    lost_points: float
    """Expected loss of nDCG@10, in points, on average over all of them."""
    from_margin: float | None
    """By benefit, from this margin on; None: at no margin."""
    calibration: Literal["shipped", "own"]
    """`own`: learnt from the questions of this library."""
    observations: int
    """Rerankings that it is learnt from."""
    generation: int
    """Of the library that they are about; 0: of none."""


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
    bypass: BypassStatus | None = None
    """Of a reranker."""
    lost_devices: tuple[DeviceLoss, ...] = ()
    """Devices that it would rather run on, and is to return to."""
    device_losses: int = 0
    """Since the start."""
    device_returns: int = 0
    fallback_s: float = 0.0
    """Time not spent on the device on which it belongs."""


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
    options: dict[str, Any] = {}
    """By option; None: without it."""


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


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the governor did or heard of, as `edgectl governor history` lists it."""

    at: float
    """Seconds since the epoch."""
    what: Literal["down", "up", "refused", "signal", "pinned", "released", "offered"]
    """`refused`: a rung could not be taken; `signal`: a reading is not known any more, or is again;
    `offered`: a rung can be taken from now on, or cannot."""
    rung: str
    """That was gone to, refused, pinned or offered, or is in force."""
    before: str = ""
    why: str = ""
    """In a sentence."""
    cause: str = ""
    """`entered`, `predicted`, `critical`, `left`, `unavailable`, `pinned`, `floor`."""
    signal: str = ""
    value: float | None = None
    predicted: float | None = None
    limit: float | None = None
    readings: dict[str, float] = {}
    """All signals that were known then."""


class GovernorStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The rung in force, and why."""

    rung: int
    """0 is the best."""
    name: str
    why: str
    """The reading behind it; empty while none was ever left."""
    since_s: float
    """For how long it has been in force."""
    under_way: bool = False
    """Whether stages are still on their way to the variants that the rung asks for."""
    pin: str = ""
    """The rung that the operator wants, whatever the readings say; empty: the governor decides."""
    floor: str = ""
    """The lowest rung that may be taken."""
    ladder: tuple[Rung, ...] = ()
    """All rungs, best first, each with what it does on top of those before."""
    unavailable: dict[str, str] = {}
    """Rungs that cannot be taken, and why."""
    left_out: dict[str, str] = {}
    """Rungs that were refused, and why: they are tried again after a while, and when a rung is pinned."""
    thermal: bool = False
    """Whether temperatures count: without sensors only load and memory do."""
    unknown: dict[str, str] = {}
    """Signals that are watched and not known now, and why."""
    changes: dict[str, dict[str, int]] = {}
    """Since the start: by direction (`down`, `up`), by the kind of signal or, without one, the reason."""
    refused: int = 0
    """Rungs that could not be taken when they should have been, since the start."""
    on_rung_s: dict[str, float] = {}
    """Seconds on each rung since the start."""
    settings: Rung = Rung(name="full")
    """All that is done on the rung in force."""


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Another node as this one sees it."""

    name: str
    endpoint: str
    """Empty: it is never asked, it only asks."""
    state: Literal["up", "connecting", "ejected", "guest"]
    """`ejected`: it failed, and is left alone for `again_in_s`; `guest`: it only asks."""
    reason: str
    node: str
    """What it calls itself; empty while it is not up, as all that follows."""
    rung: str
    hot: bool
    rtt_ms: float
    free: int
    """Answers that it would begin at once for this node."""
    grant: int
    tokens_per_s: float
    making: int
    """Answers that it makes for this node now."""
    made_here: int
    """Answers that this node makes for it now."""
    handed: int
    """Answers handed to it since the start."""
    returned: int
    """Those of them that came back unfinished and went on at home."""
    failures: int
    again_in_s: float = 0.0


class PeersStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One node among its peers."""

    node: str
    listen: str
    """Where it listens now; empty: it does not."""
    key: str
    """Its public key."""
    problem: str
    """Why peers are off although the configuration wants them; empty when they are not."""
    away: bool
    """The governor wants new answers to be made elsewhere."""
    urgent: bool
    """Also those that have begun."""
    peers: tuple[PeerStatus, ...]
    refused: int
    """Handshakes of keys that are not on the list."""
    messages: int
    """Messages of peers that reached the application."""
    malformed: int
    excessive: int
    taken: int
    declined: int


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
    governor: GovernorStatus | None = None
    """The rung of the quality ladder in force."""
    peers: PeersStatus | None = None
    """Other nodes; None while `peers.enabled` is false."""
    notes: tuple[str, ...] = ()
    """Sentences that an operator should read: no calibration, stale index, ..."""
