"""The ledger: who holds which slot, which request is where, what each worker was handed.

Plain data with small, total operations; it reads no clock and touches no process. `decide.py` is the
only module that changes it, and every invariant of docs/protocol.md is a statement about it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

from edged.dispatch.leases import Leases
from edged.dispatch.requests import StageTiming
from edged.messages import CacheCounters, SlotRef

ENTRY = 0
"""Arena of the entry: the daemon writes it, the first stage of a route reads it."""

Phase = Literal["queued", "running", "leaving", "ended"]
"""`leaving`: its client has had the terminal event, but a worker may still touch its slots."""


class Slots:
    """The slots of one arena: free, or leased under a generation that no earlier lease had.

    >>> slots = Slots(arena=1, count=1)
    >>> first = slots.lease()
    >>> slots.lease() is None
    True
    >>> slots.release(first)
    >>> slots.lease().generation > first.generation
    True
    """

    def __init__(self, arena: int, count: int) -> None:
        self.arena = arena
        self.count = count
        self.peak = 0
        self._free = deque(range(count))
        self._generation = [0] * count
        self._leased: set[int] = set()

    @property
    def used(self) -> int:
        """Slots out on lease."""
        return len(self._leased)

    def lease(self) -> SlotRef | None:
        """Lend a slot under a new generation, or None when all are out: that is back-pressure."""
        if not self._free:
            return None
        slot = self._free.popleft()
        self._generation[slot] = (self._generation[slot] + 1) & 0xFFFFFFFF
        self._leased.add(slot)
        self.peak = max(self.peak, len(self._leased))
        return SlotRef(self.arena, slot, self._generation[slot])

    def release(self, ref: SlotRef) -> None:
        """Take a slot back; `KeyError` when that lease does not exist: a bug, never a race."""
        if ref.slot not in self._leased or self._generation[ref.slot] != ref.generation:
            raise KeyError(
                f"arena {self.arena}: slot {ref.slot} is not leased at generation {ref.generation}"
            )
        self._leased.remove(ref.slot)
        self._free.append(ref.slot)


@dataclass(slots=True)
class Request:
    """An accepted request; it ends in exactly one terminal event."""

    id: int
    route: tuple[str, ...]
    operation: str
    source: SlotRef
    """Its input at the present stage: kept until the stage is done, so the work can be done again."""
    deadline: float
    accepted_at: float
    pipeline: str = ""
    phase: Phase = "queued"
    position: int = 0
    attempt: int = 0
    attempts_here: int = 0
    queued_at: float = 0.0
    sent_at: float = 0.0
    worker: str = ""
    target: SlotRef | None = None
    suspicion: int = 0
    """Points for deaths of workers that held it and had made no progress on it."""
    deaths: int = 0
    tokens: list[int] = field(default_factory=list)
    """Ids of the answer sent so far: with them, another worker goes on where one died."""
    tokens_at_dispatch: int = 0
    characters: int = 0
    resumed: int = 0
    timings: list[StageTiming] = field(default_factory=list)

    @property
    def stage(self) -> str:
        """Where it is now."""
        return self.route[self.position]


@dataclass(slots=True)
class Worker:
    """One process of a stage; its name is never used twice, so nothing of a dead one can match."""

    incarnation: str
    stage: str
    heard_at: float
    started_at: float
    state: Literal["starting", "ready", "stopping", "dying"] = "starting"
    retiring: bool = False
    """Serves on until its replacement is ready."""
    credit: int = 0
    held: dict[int, int] = field(default_factory=dict)
    """Request id to attempt."""
    fruitful: bool = False
    pinged_at: float = 0.0
    load_s: float = 0.0
    device: str = ""
    variant: str = ""
    fault: str = ""
    hopeless: bool = False
    """It said itself that trying again changes nothing: a bad option, a missing model."""
    details: dict[str, Any] = field(default_factory=dict)
    caches: dict[str, CacheCounters] = field(default_factory=dict)
    cores: int | None = None
    """Its core lease, 0 for a pause; None until it was told one: everything that its device has."""


@dataclass(slots=True)
class Stage:
    """A stage: its output slots, its queue and its workers."""

    name: str
    slots: Slots
    max_batch: int
    streaming: bool
    """Token stage: items join one by one and run side by side; else whole batches."""
    desired: int = 1
    timeout_s: float = 60.0
    load_timeout_s: float = 300.0
    queue: deque[int] = field(default_factory=deque)
    workers: set[str] = field(default_factory=set)
    starting: int = 0
    """Spawns decided on whose process does not exist yet."""
    failed: str = ""
    """Why it gave up restarting; empty while it has not."""
    trouble: str = ""
    """What an operator should know although the stage works."""
    retry_at: float = 0.0
    misfortunes: deque[tuple[float, int]] = field(default_factory=deque)
    """When a worker died without having finished anything, and how much that weighs."""
    restarts: int = 0
    done: int = 0
    errors: int = 0
    wait_s: float = 0.0
    compute_s: float = 0.0
    batch: float = 0.0
    item_s: float = 0.0
    """Smoothed seconds of the stage per item at its present parallelism: for predicted waits."""
    finished: deque[float] = field(default_factory=lambda: deque(maxlen=2048))

    def observe(self, wait_s: float, compute_s: float, batch: int, now: float) -> None:
        """Count a finished item; smoothing constant 0.1."""
        weight = 0.1 if self.done else 1.0
        parallel = self.max_batch if self.streaming else max(batch, 1)
        self.wait_s += weight * (wait_s - self.wait_s)
        self.compute_s += weight * (compute_s - self.compute_s)
        self.batch += weight * (batch - self.batch)
        self.item_s += weight * (compute_s / parallel - self.item_s)
        self.done += 1
        self.finished.append(now)

    def rate_per_s(self, now: float, window_s: float = 60.0) -> float:
        """Items finished per second over the last minute."""
        while self.finished and self.finished[0] < now - window_s:
            self.finished.popleft()
        if not self.finished:
            return 0.0
        return len(self.finished) / max(now - self.finished[0], 1.0)


@dataclass(slots=True)
class Ledger:
    """Everything the dispatcher knows."""

    entry: Slots
    stages: dict[str, Stage] = field(default_factory=dict)
    requests: dict[int, Request] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    draining: bool = False
    accepted: int = 0
    completed: int = 0
    stale: int = 0
    """Messages that matched no lease: late words of the dead, counted and dropped."""
    rejected: dict[str, int] = field(default_factory=dict)
    last_request: int = 0
    last_worker: int = 0
    leases: Leases = field(default_factory=Leases)

    def slots_of(self, ref: SlotRef) -> Slots:
        """The arena that a descriptor points into."""
        if ref.arena == ENTRY:
            return self.entry
        return next(stage.slots for stage in self.stages.values() if stage.slots.arena == ref.arena)

    def release(self, ref: SlotRef) -> None:
        """Take a slot of any arena back."""
        self.slots_of(ref).release(ref)

    def count_rejection(self, code: str) -> None:
        """Count a request that ended in an error, or never was accepted."""
        self.rejected[code] = self.rejected.get(code, 0) + 1

    @property
    def outstanding(self) -> int:
        """Requests that hold a slot."""
        return len(self.requests)

    def predicted_wait_s(self, route: tuple[str, ...]) -> float:
        """How long a new request would wait: queued and running work ahead of it, stage by stage."""
        stages = [self.stages[name] for name in route]
        return sum(
            (len(stage.queue) + sum(len(self.workers[worker].held) for worker in stage.workers))
            * stage.item_s
            / max(stage.desired, 1)
            for stage in stages
        )
