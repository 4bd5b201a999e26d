"""Any pipelines, rates, limits and failures, in virtual time: the real decisions, simulated workers."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import nan

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edged.dispatch.admission import admit, enqueue
from edged.dispatch.decide import decide
from edged.dispatch.events import (
    Command,
    Deliver,
    Died,
    Event,
    Kill,
    Memory,
    Refuse,
    Send,
    Spawn,
    Spoke,
    Ticked,
    Waited,
    Wake,
)
from edged.dispatch.ledger import Ledger, Slots, Stage, Worker
from edged.dispatch.passing import Passing, Rule
from edged.dispatch.queues import BATCH_EVERY
from edged.dispatch.requests import Submission
from edged.dispatch.staffing import start, wanted
from edged.errors import EdgedError
from edged.messages import (
    Batch,
    Cancel,
    Done,
    Failed,
    Gone,
    Judgement,
    Ping,
    Pong,
    Priority,
    Ready,
    Tokens,
    Work,
)

TICK_S = 0.1
TIMEOUT_S = 2.0
PATIENT_S = 1e6
"""The deadline of who names none: nothing is swept away by it that was forgotten."""
HORIZON_S = 900.0
"""Virtual time after the last arrival in which everything must have ended."""


@dataclass(frozen=True)
class StagePlan:
    streaming: bool
    max_batch: int
    workers: int
    max_wait_s: float
    target_s: float
    service_s: float
    passing: Rule | None


@dataclass(frozen=True)
class Arrival:
    gap_s: float
    route: int
    priority: Priority
    deadline_s: float | None


@dataclass(frozen=True)
class Scene:
    slots: int
    stages: tuple[StagePlan, ...]
    routes: tuple[tuple[int, ...], ...]
    crowd: int
    """Clients that ask again as soon as they are answered, 12 times each."""
    arrivals: tuple[Arrival, ...]
    faults: tuple[str, ...]
    """What becomes of the batches, in order; when they are used up, workers behave."""
    shared: bool
    """Whether all stages share two cores by leases."""
    memory_bytes: int


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    seconds = st.sampled_from([0.001, 0.02, 0.3])
    plan = st.builds(
        StagePlan,
        streaming=st.booleans(),
        max_batch=st.integers(1, 6),
        workers=st.integers(1, 2),
        max_wait_s=st.sampled_from([0.0, 0.0, 0.013, 0.4]),
        target_s=st.sampled_from([0.0, 0.0, 0.05]),
        service_s=seconds,
        passing=st.one_of(
            st.none(),
            st.builds(
                Rule,
                keep=st.just(4),
                everything=st.booleans(),
                from_margin=st.sampled_from([0.0, 0.5]),
                sample_every=st.integers(1, 3),
            ),
        ),
    )
    stages = tuple(draw(st.lists(plan, min_size=1, max_size=4)))
    order = st.permutations(range(len(stages)))
    cut = st.integers(1, len(stages))
    routes = tuple(tuple(draw(order)[: draw(cut)]) for _ in range(draw(st.integers(1, 3))))
    arrival = st.builds(
        Arrival,
        gap_s=st.sampled_from([0.0, 0.0, 0.001, 0.05, 1.0]),
        route=st.integers(0, len(routes) - 1),
        priority=st.sampled_from(["interactive", "interactive", "batch"]),
        deadline_s=st.sampled_from([None, None, 0.01, 0.5, 5.0]),
    )
    return Scene(
        slots=draw(st.integers(1, 16)),
        stages=stages,
        routes=routes,
        crowd=draw(st.integers(0, 12)),
        arrivals=tuple(draw(st.lists(arrival, min_size=1, max_size=60))),
        faults=tuple(
            draw(st.lists(st.sampled_from(["", "", "fail", "die", "hang", "reverse"]), max_size=20))
        ),
        shared=draw(st.booleans()),
        memory_bytes=draw(st.sampled_from([100 << 20, 8 << 30])),
    )


@dataclass
class Simulation:
    """Time, workers and clients of a scene."""

    scene: Scene
    now: float = 0.0
    agenda: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    turn: itertools.count[int] = field(default_factory=itertools.count)
    accepted: set[int] = field(default_factory=set)
    ends: Counter[int] = field(default_factory=Counter)
    alive: set[str] = field(default_factory=set)
    held: dict[str, dict[int, Work]] = field(default_factory=dict)
    hung: set[str] = field(default_factory=set)
    passed: Counter[str] = field(default_factory=Counter)
    regulars: dict[int, int] = field(default_factory=dict)
    """By request of the crowd: how often its client asks again."""
    expected: int = 0

    def __post_init__(self) -> None:
        self.faults = iter(self.scene.faults)
        self.ledger = Ledger(Slots(0, self.scene.slots))
        if self.scene.shared:
            self.ledger.leases.cores = frozenset({0, 1})
            self.ledger.leases.mode = "turns"
        for number, plan in enumerate(self.scene.stages):
            stage = Stage(
                f"s{number}",
                Slots(number + 1, self.scene.slots),
                plan.max_batch,
                streaming=plan.streaming,
                desired=plan.workers,
                timeout_s=TIMEOUT_S,
                max_wait_s=plan.max_wait_s,
                target_s=plan.target_s,
                passing=Passing(plan.passing),
            )
            self.ledger.stages[stage.name] = stage
            self.do(start(self.ledger, stage))

    # ---------------------------------------------------------------- time

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.agenda, (self.now + delay_s, next(self.turn), action))

    def run(self) -> None:
        arrives_s = 0.0
        for arrival in self.scene.arrivals:
            arrives_s += arrival.gap_s
            self.later(arrives_s, arrival, 0)
        for client in range(self.scene.crowd):
            self.later(0.0, Arrival(0.0, client % len(self.scene.routes), "interactive", None), 12)
        self.at(TICK_S, self.tick)
        while self.expected or self.ledger.requests:
            self.now, _, action = heapq.heappop(self.agenda)
            action()
            assert self.now < arrives_s + HORIZON_S, "not everything came to its end"
            self.check_books()

    def tick(self) -> None:
        resident = {worker: (50 << 20) * (1 + len(self.held[worker])) for worker in self.alive}
        self.event(Ticked(Memory(self.scene.memory_bytes, resident)))
        self.at(TICK_S, self.tick)

    def later(self, delay_s: float, arrival: Arrival, again: int) -> None:
        def come() -> None:
            self.expected -= 1
            self.arrive(arrival, again)

        self.expected += 1
        self.at(delay_s, come)

    def arrive(self, arrival: Arrival, again: int) -> None:
        asked = Submission(
            route=tuple(f"s{number}" for number in self.scene.routes[arrival.route]),
            operation="chat",
            payload=b"",
            deadline_s=arrival.deadline_s or PATIENT_S,
            firm=arrival.deadline_s is not None,
            priority=arrival.priority,
        )
        try:
            request = admit(self.ledger, asked, self.now)
        except EdgedError:
            return
        self.accepted.add(request.id)
        self.regulars[request.id] = again
        enqueue(self.ledger, request, request.source, self.now)
        self.event(Waited())

    # ------------------------------------------------------------- commands

    def event(self, event: Event) -> None:
        self.do(decide(self.ledger, event, self.now))

    def do(self, commands: list[Command]) -> None:
        self.check_order(commands)
        for command in commands:
            match command:
                case Send(worker, Batch(items)):
                    self.take(worker, items)
                case Send(worker, Cancel(request, attempt)):
                    self.at(0.0, lambda w=worker, r=request, a=attempt: self.cancel(w, r, a))  # type: ignore[misc]
                case Send(worker, Ping(nonce)) if worker not in self.hung:
                    self.at(0.0, self.saying(worker, Pong(nonce)))
                case Kill(worker, _):
                    self.at(0.01, self.dying(worker))
                case Spawn(stage, delay_s):
                    self.at(delay_s, self.spawning(stage))
                case Wake(at):
                    self.at(max(0.0, at - self.now), self.woken)
                case Deliver(request) | Refuse(request):
                    self.ended(request)

    def ended(self, request: int) -> None:
        self.ends[request] += 1
        if again := self.regulars.pop(request, 0):
            self.later(0.0, Arrival(0.0, request % len(self.scene.routes), "interactive", None), again - 1)

    def woken(self) -> None:
        self.event(Waited())

    def spawning(self, name: str) -> Callable[[], None]:
        def spawn() -> None:
            stage = self.ledger.stages[name]
            if not wanted(self.ledger, stage):
                return
            self.ledger.last_worker += 1
            worker = f"{name}-{self.ledger.last_worker}"
            self.ledger.workers[worker] = Worker(worker, name, self.now, self.now, device="cpu")
            stage.workers.add(worker)
            stage.starting -= 1
            self.alive.add(worker)
            self.held[worker] = {}
            self.at(0.05, self.saying(worker, Ready(stage.max_batch, 1, 0.05, {})))

        return spawn

    def saying(
        self, worker: str, message: Ready | Failed | Done | Tokens | Gone | Pong
    ) -> Callable[[], None]:
        def say() -> None:
            if worker in self.alive:
                self.event(Spoke(worker, message))

        return say

    def dying(self, worker: str) -> Callable[[], None]:
        def die() -> None:
            if worker in self.alive:
                self.alive.discard(worker)
                self.event(Died(worker, "test", killed=False))

        return die

    # -------------------------------------------------------------- workers

    def plan(self, worker: str) -> StagePlan:
        return self.scene.stages[int(worker[1 : worker.index("-")])]

    def take(self, worker: str, items: tuple[Work, ...]) -> None:
        """Work on a batch, or suffer the next fault."""
        plan = self.plan(worker)
        fault = next(self.faults, "")
        self.held[worker].update((work.request, work) for work in items)
        if fault == "die":
            self.at(plan.service_s / 2, self.dying(worker))
        if fault == "hang":
            self.hung.add(worker)
        if fault in {"die", "hang"}:
            return
        order = items[::-1] if fault == "reverse" else items
        for place, work in enumerate(order):
            self.at(plan.service_s, self.finishing(worker, work, plan, fails=fault == "fail" and place == 0))

    def finishing(self, worker: str, work: Work, plan: StagePlan, *, fails: bool) -> Callable[[], None]:
        def finish() -> None:
            if self.held[worker].pop(work.request, None) is None:
                return
            if fails:
                self.saying(worker, Failed(work.request, work.attempt, "bad_request", "no"))()
                return
            if plan.streaming:
                self.saying(worker, Tokens(work.request, work.attempt, len(work.resume_tokens), (1,), "x"))()
            margin = (None, 0.1, 0.7, nan)[work.request % 4]
            done = Done(work.request, work.attempt, work.target, plan.service_s, 1)
            self.saying(worker, replace(done, judgement=Judgement(margin, 1, margin)))()

        return finish

    def cancel(self, worker: str, request: int, attempt: int) -> None:
        """A token worker drops it; a batch worker has it in its hands to the end."""
        work = self.held[worker].get(request)
        if work is not None and work.attempt == attempt and self.plan(worker).streaming:
            del self.held[worker][request]
            self.saying(worker, Gone(request, attempt))()

    # --------------------------------------------------------------- checks

    def check_order(self, commands: list[Command]) -> None:
        """What is handed over goes before all of its class that still waits; batch work has its turn."""
        for command in commands:
            if not isinstance(command, Send) or not isinstance(command.message, Batch):
                continue
            stage = self.ledger.stages[command.worker[: command.worker.index("-")]]
            if stage.streaming:
                assert len(self.ledger.workers[command.worker].held) <= stage.limit
            assert len(command.message.items) <= (1 if stage.streaming else stage.max_batch)
            waits = {
                priority: [place(self.ledger, number) for number in stage.queue.line(priority)]
                for priority in ("interactive", "batch")
            }
            for work in command.message.items:
                request = self.ledger.requests[work.request]
                last = request.position + 1 == len(request.route)
                assert last or not stage.passing.rule or not stage.passing.rule.everything
                assert work.keep == (4 if request.grounds.skipped else 0)
                assert all(place(self.ledger, work.request) < other for other in waits[request.priority])
                behind = request.priority == "interactive" and waits["batch"] and stage.slots.room("batch")
                self.passed[stage.name] = self.passed[stage.name] + 1 if behind else 0
                assert self.passed[stage.name] < BATCH_EVERY

    def check_books(self) -> None:
        assert all(count == 1 for count in self.ends.values())
        refs = [ref for r in self.ledger.requests.values() for ref in (r.source, r.target) if ref is not None]
        used = Counter(ref.arena for ref in refs)
        for arena in (self.ledger.entry, *(stage.slots for stage in self.ledger.stages.values())):
            assert used[arena.arena] == arena.used <= arena.count
        for stage in self.ledger.stages.values():
            assert 1 <= stage.limit <= stage.max_batch
            for name in stage.workers:
                assert len(self.ledger.workers[name].held) <= stage.max_batch


def place(ledger: Ledger, number: int) -> tuple[float, int]:
    return ledger.requests[number].deadline, number


@settings(max_examples=150, deadline=None)
@given(scenes())
def test_everything_accepted_ends_once_in_order_and_within_its_slots(scene: Scene) -> None:
    simulation = Simulation(scene)
    simulation.run()
    assert simulation.accepted == set(simulation.ends)
    assert simulation.ledger.entry.used == 0
    assert all(stage.slots.used == 0 for stage in simulation.ledger.stages.values())
    assert all(not stage.queue for stage in simulation.ledger.stages.values())
    assert all(stage.usage.busy.value == 0 for stage in simulation.ledger.stages.values())
