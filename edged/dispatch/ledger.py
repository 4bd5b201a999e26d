"""The ledger: who holds which slot, which request is where, what each worker was handed.

Plain data with small, total operations; it reads no clock and touches no process. `decide.py` is the
only module that changes it, and every invariant of docs/protocol.md is a statement about it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

from edged.dispatch.controller import Controller
from edged.dispatch.duty import Duty
from edged.dispatch.leases import Leases
from edged.dispatch.passing import Grounds, Passing
from edged.dispatch.peer import Pressure, Remote
from edged.dispatch.queues import StageQueue
from edged.dispatch.requests import StageTiming
from edged.dispatch.usage import Steps, Utilisation
from edged.layers.report import LayerReport
from edged.messages import CacheCounters, Priority, SlotRef

ENTRY = 0
"""Arena of the entry: the daemon writes it, the first stage of a route reads it."""

Phase = Literal["queued", "running", "leaving", "ended"]
"""`leaving`: its client has had the terminal event, but a worker may still touch its slots."""


class Slots:
    """The slots of one arena: free, or leased under a generation that no earlier lease had.

    Batch work leaves a quarter of them to interactive work, which would otherwise wait behind it for a slot.

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
        self._free = deque(range(count))
        self._generation = [0] * count
        self._leased: set[int] = set()
        self._batch: set[int] = set()
        self._most_batch = count - count // 4

    @property
    def used(self) -> int:
        """Slots out on lease."""
        return len(self._leased)

    def room(self, priority: Priority) -> int:
        """How many more slots work of this class may lease now."""
        free = len(self._free)
        return min(free, self._most_batch - len(self._batch)) if priority == "batch" else free

    def lease(self, priority: Priority = "interactive") -> SlotRef | None:
        """Lend a slot under a new generation, or None when all are out: that is back-pressure."""
        if self.room(priority) <= 0:
            return None
        slot = self._free.popleft()
        self._generation[slot] = (self._generation[slot] + 1) & 0xFFFFFFFF
        self._leased.add(slot)
        if priority == "batch":
            self._batch.add(slot)
        return SlotRef(self.arena, slot, self._generation[slot])

    def release(self, ref: SlotRef) -> None:
        """Take a slot back; `KeyError` when that lease does not exist: a bug, never a race."""
        if ref.slot not in self._leased or self._generation[ref.slot] != ref.generation:
            raise KeyError(
                f"arena {self.arena}: slot {ref.slot} is not leased at generation {ref.generation}"
            )
        self._leased.remove(ref.slot)
        self._batch.discard(ref.slot)
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
    priority: Priority = "interactive"
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
    company_at_dispatch: float = 0.0
    """Integral of its worker's company when it was sent: for the average since."""
    characters: int = 0
    resumed: int = 0
    hops: int = 0
    """How many nodes it has come through: what comes from a peer is not handed on."""
    trips: int = 0
    """How often it was handed to a peer."""
    recalled: bool = False
    """Its worker was told to drop it, so that a peer goes on with it."""
    timings: list[StageTiming] = field(default_factory=list)
    grounds: Grounds = field(default_factory=Grounds)

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
    company: Steps = field(default_factory=lambda: Steps(0.0))
    """How many requests it holds, over time."""
    batch_items: int = 0
    batch_s: float = 0.0
    """Of the micro-batch in its hands: items that are done, and the compute that they took."""
    largest: int = 0
    """The most that it has held at once."""
    fruitful: bool = False
    pinged_at: float = 0.0
    load_s: float = 0.0
    device: str = ""
    variant: str = ""
    loaded: bool = False
    """It has been ready."""
    fault: str = ""
    fault_code: str = ""
    """Of `fault`, where the worker itself said it."""
    hopeless: bool = False
    """It said itself that trying again changes nothing: a bad option, a missing model."""
    details: dict[str, Any] = field(default_factory=dict)
    trouble: str = ""
    """What keeps it from its work although it lives, in its own words."""
    caches: dict[str, CacheCounters] = field(default_factory=dict)
    layers: LayerReport | None = None
    """Of its layer pipeline, where it has one and has told."""
    cores: int | None = None
    """Its core lease, 0 for a pause; None until it was told one: everything that its device has."""
    lanes: int = 1
    """Cores that a batch in its hands can be given, and taken again; 1: it keeps those it began on."""
    remote: Remote | None = None
    """It is a peer: no process of ours, and none of `Stage.workers`."""

    def company_of(self, request: Request, now: float) -> float:
        """How many requests, this one among them, it has held on average since it was sent this one."""
        elapsed_s = now - request.sent_at
        held = self.company.area(now) - request.company_at_dispatch
        return max(1.0, held / elapsed_s) if elapsed_s > 0 else len(self.held) + 1.0


Proof = Literal["", "warm", "guarded"]
"""What a worker shows before it is ready: nothing; that it can work; also that it fits what is stored."""


@dataclass(slots=True)
class Trial:
    """What a stage goes back to if its first new worker dies before it is ready."""

    desired: int
    max_batch: int
    alone: bool = False
    """The old workers are to be gone before the new ones load: there is no memory for both."""
    guarded: bool = False
    """A new embedder is measured against the vectors of the library first."""
    failed: str = ""
    retry_at: float = 0.0


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
    max_wait_s: float = 0.0
    """How long an idle worker may be kept waiting for a fuller batch; 0: not at all."""
    target_s: float = 0.0
    """Bound on the time in the stage that the batch limit is chosen for; 0: none."""
    given_at: float = 0.0
    """When a worker of it was given work last."""
    queue: StageQueue = field(default_factory=StageQueue)
    control: Controller = field(default_factory=Controller)
    usage: Utilisation = field(default_factory=Utilisation)
    workers: set[str] = field(default_factory=set)
    remotes: set[str] = field(default_factory=set)
    """Peers that would do its work."""
    starting: int = 0
    """Spawns decided on whose process does not exist yet."""
    failed: str = ""
    """Why it gave up restarting; empty while it has not."""
    trouble: str = ""
    """What an operator should know although the stage works."""
    loss: str = ""
    """Why a worker died last, until one is ready again."""
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
    """Smoothed seconds of a worker per item, with the company that items had: for what waits ahead."""
    service_s: float = 0.0
    """Smoothed seconds from hand-over to result: of a whole micro-batch, or of one streamed answer."""
    spread_s: float = 0.0
    """Smoothed distance of single services from `service_s`."""
    services: int = 0
    tokens_per_s: float = 0.0
    """Smoothed, of one streamed answer."""
    trial: Trial | None = None
    called_off: tuple[str, str] | None = None
    """Why the last trial ended before anything was ready, and the error's code (empty: it has none)."""
    changed: bool = False
    """The next worker that becomes ready does the work in another way."""
    served_at: float = 0.0
    finished: deque[float] = field(default_factory=lambda: deque(maxlen=2048))
    passing: Passing = field(default_factory=Passing)

    @property
    def idle(self) -> bool:
        """Whether it has nothing that its workers could run: none is started until it is changed."""
        return bool(self.failed) and self.retry_at == inf

    def turn(self) -> int | None:
        """Whose turn it is, among those that may lease an output slot; None when nobody's."""
        if self.slots.room("interactive") <= 0:
            return None
        return self.queue.first(batch=self.slots.room("batch") > 0)

    def forget_costs(self) -> None:
        """Learn anew what items cost: another model does them from now on."""
        self.control = Controller()
        self.services, self.service_s, self.item_s, self.spread_s = 0, 0.0, 0.0, 0.0
        self.tokens_per_s = 0.0
        self.changed = False

    @property
    def limit(self) -> int:
        """Items of one micro-batch, or sequences of one worker, as the controller has it now."""
        return self.control.limit(self.max_batch)

    def finish_item(self, wait_s: float, compute_s: float, batch: int, now: float) -> None:
        """Count a finished item; smoothing constant 0.1."""
        weight = 0.1 if self.done else 1.0
        self.wait_s += weight * (wait_s - self.wait_s)
        self.compute_s += weight * (compute_s - self.compute_s)
        self.batch += weight * (batch - self.batch)
        self.done += 1
        self.finished.append(now)

    def finish_service(self, size: float, seconds: float, now: float) -> None:
        """Learn from a finished micro-batch, or from an answer with `size` - 1 others beside it on average.

        The first ten are averaged, so that a cold first one is soon forgotten.
        """
        self.services += 1
        weight = max(0.1, 1 / self.services)
        self.spread_s += weight * (abs(seconds - self.service_s) * (self.services > 1) - self.spread_s)
        self.service_s += weight * (seconds - self.service_s)
        self.item_s += weight * (seconds / size - self.item_s)
        self.served_at = now
        self.control.observe(size, seconds, self.max_batch)

    def finish_tokens(self, count: int, seconds: float) -> None:
        """Learn how fast a streamed answer comes."""
        if count and seconds > 0:
            weight = 0.1 if self.tokens_per_s else 1.0
            self.tokens_per_s += weight * (count / seconds - self.tokens_per_s)

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
    pressure: Pressure = field(default_factory=Pressure)
    node: str = ""
    """How this node calls itself."""
    duty: Duty = field(default_factory=Duty)

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

    def hold(self, worker: Worker, request: Request, now: float) -> None:
        """Note that a request is in a worker's hands."""
        worker.held[request.id] = request.attempt
        worker.largest = max(worker.largest, len(worker.held))
        worker.company.set(len(worker.held), now)
        if len(worker.held) == 1:
            self._busy(worker, 1, now)

    def let_go(self, worker: Worker, number: int, now: float) -> None:
        """Note that it no longer is; with the last one a micro-batch has ended."""
        del worker.held[number]
        worker.company.set(len(worker.held), now)
        if worker.held:
            return
        self._busy(worker, -1, now)
        stage = self.stages[worker.stage]
        if worker.batch_items and not stage.streaming:
            stage.finish_service(worker.batch_items, worker.batch_s, now)
        worker.batch_items, worker.batch_s = 0, 0.0

    def lose(self, worker: Worker, now: float) -> None:
        """Forget a dead worker."""
        if worker.held:
            self._busy(worker, -1, now)
        del self.workers[worker.incarnation]
        self.stages[worker.stage].workers.discard(worker.incarnation)
        self.stages[worker.stage].remotes.discard(worker.incarnation)

    def _busy(self, worker: Worker, change: int, now: float) -> None:
        if worker.remote is None:
            busy = self.stages[worker.stage].usage.busy
            busy.set(busy.value + change, now)
