"""The daemon in virtual time: the dispatcher's own decisions, workers that take what the table says. Pure.

Nothing of the dispatcher is imitated: `decide`, `admit` and the core leases are the daemon's, over a ledger
of their own. What is modelled is how long batches and token steps take (`curves.py`, `sequences.py`) and how
they slow one another down (`silicon.py`). The daemon's own work, and that of the clients, costs nothing here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from edged.dispatch.admission import admit, enqueue
from edged.dispatch.decide import decide_all
from edged.dispatch.events import Command, Deliver, Event, Memory, Refuse, Send, Spoke, Ticked, Waited, Wake
from edged.dispatch.leases import Mode
from edged.dispatch.ledger import Ledger, Slots, Stage, Worker
from edged.dispatch.requests import StageTiming, Submission
from edged.errors import EdgedError
from edged.messages import Batch, Cores, Done, Ready, Tokens, Work
from edged.placement.curves import Curve
from edged.placement.interference import Excess
from edged.placement.sequences import Sequences, budget_of
from edged.placement.silicon import Silicon

if TYPE_CHECKING:
    from simpy import Environment
    from simpy import Event as Occurrence

TICK_S = 0.1
"""The dispatcher's, while it holds requests."""
LOOKS_EVERY = 10
"""Ticks from one look at the memory, which makes controllers think, to the next."""
RUNS = 8
"""Pieces of an item after which a lease counts: coarser than pairs of a question, and fine enough."""
PLENTY_BYTES = 1 << 40
"""Whether the memory suffices is for the planner to say."""
PATIENT_S = 1e6
"""Deadlines end nothing here: a request that waits too long shows in the latencies."""
CLOCKED: frozenset[Mode] = frozenset({"turns", "single"})
"""Modes in which leases change while nothing ends, so that every step is a look whose turn it is."""

Process = Generator["Occurrence", Any, None]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A stage as it is set up."""

    curve: Curve
    batch: int
    workers: int
    max_wait_s: float = 0.0
    target_s: float = 0.0


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon as it is set up: `parts` in the order of the pipeline."""

    parts: Mapping[str, Part]
    mode: Mode
    cores: int
    slots: int
    excess: Excess | None
    """None: neighbours cost nothing beyond a fair share of cores."""


class Asked(msgspec.Struct, kw_only=True):
    """One request as its client sees it; virtual seconds."""

    due_s: float
    new_tokens: int
    unread_tokens: int
    """Of the prompt: those that the generator's cache does not hold."""
    first_s: float = 0.0
    end_s: float = 0.0
    timings: tuple[StageTiming, ...] = ()
    error: str = ""
    again_s: float = 0.0
    """What a refused client is told to wait."""


class _Acting(Protocol):
    """A worker's side of the wire."""

    def hear(self, items: tuple[Work, ...]) -> None:
        """Take items, or no item: its lease has changed."""
        ...


class Rehearsal:
    """A daemon with its workers on some silicon."""

    def __init__(self, environment: Environment, setting: Setting, route: tuple[str, ...]) -> None:
        self.environment = environment
        self.setting = setting
        self._route = route
        leased = setting.mode in {"split", "turns"}  # `single` knows the excess on a thread each
        self.silicon = Silicon(environment, setting.cores, setting.excess, leased=leased)
        self.ledger = _ledger(setting)
        self.asked: dict[int, Asked] = {}
        self._ends: dict[int, Occurrence] = {}
        self._acting: dict[str, _Acting] = {}
        for name, part in setting.parts.items():
            for number in range(part.workers):
                self._employ(name, part, f"{name}-{number + 1}")
        environment.process(self._tick())

    def ask(self, asked: Asked) -> Occurrence:
        """Send a request; the event comes when it is answered or refused."""
        end = self.environment.event()
        asked_for = Submission(route=self._route, operation="chat", payload=b"", deadline_s=PATIENT_S)
        try:
            request = admit(self.ledger, asked_for, self.environment.now)
        except EdgedError as error:
            asked.error, asked.end_s = error.code, self.environment.now
            asked.again_s = error.retry_after_s or 0.0
            return end.succeed()
        self.asked[request.id], self._ends[request.id] = asked, end
        enqueue(self.ledger, request, request.source, self.environment.now)
        self._on(Waited())
        return end

    def say(self, worker: str, *messages: Tokens | Done) -> None:
        """What a worker says at once reaches the dispatcher; nothing at all is a look whose turn it is."""
        self._on(*(Spoke(worker, message) for message in messages))

    def threads(self, worker: str, curve: Curve) -> int:
        """How many threads a worker has under its present lease."""
        return curve.lent(self.ledger.workers[worker].cores)

    def paused(self, worker: str) -> bool:
        """Whether its lease is for no core at all."""
        return self.ledger.workers[worker].cores == 0

    def _employ(self, stage: str, part: Part, name: str) -> None:
        worker = Worker(name, stage, 0.0, 0.0, device=part.curve.form.device)
        self.ledger.workers[name] = worker
        self.ledger.stages[stage].workers.add(name)
        acting = (TokenWorker if part.curve.streaming else BatchWorker)(self, name, part.curve)
        self._acting[name] = acting
        self._on(Spoke(name, Ready(part.batch, 1, 0.0, {}, part.curve.lanes)))

    def _tick(self) -> Process:
        ticks = 0
        while True:
            yield self.environment.timeout(TICK_S)
            ticks += 1
            self._on(Ticked(None if ticks % LOOKS_EVERY else Memory(PLENTY_BYTES, {})))

    def _on(self, *events: Event) -> None:
        self._do(decide_all(self.ledger, events, self.environment.now))

    def _do(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Send(worker, Batch(items)):
                    self._acting[worker].hear(items)
                case Send(worker, Cores()):
                    self._acting[worker].hear(())
                case Wake(at):
                    self._wake(at - self.environment.now)
                case Deliver(request, _, timings):
                    self._end(request, timings, "")
                case Refuse(request, error):
                    self._end(request, (), error.code)

    def _wake(self, delay_s: float) -> None:
        timer = self.environment.timeout(max(0.0, delay_s))
        assert timer.callbacks is not None
        timer.callbacks.append(lambda _: self._on(Waited()))

    def _end(self, request: int, timings: tuple[StageTiming, ...], error: str) -> None:
        asked = self.asked.pop(request)
        asked.end_s, asked.timings, asked.error = self.environment.now, timings, error
        asked.first_s = asked.first_s or asked.end_s
        self._ends.pop(request).succeed()


def _ledger(setting: Setting) -> Ledger:
    ledger = Ledger(Slots(0, setting.slots))
    ledger.leases.cores, ledger.leases.mode = frozenset(range(setting.cores)), setting.mode
    for number, (name, part) in enumerate(setting.parts.items(), 1):
        ledger.stages[name] = Stage(
            name,
            Slots(number, setting.slots),
            part.batch,
            streaming=part.curve.streaming,
            desired=part.workers,
            timeout_s=float("inf"),
            max_wait_s=part.max_wait_s,
            target_s=part.target_s,
        )
    return ledger


class BatchWorker:
    """Answers micro-batches, whole or item by item as its stage does."""

    def __init__(self, rehearsal: Rehearsal, name: str, curve: Curve) -> None:
        self._rehearsal = rehearsal
        self._name = name
        self._curve = curve

    def hear(self, items: tuple[Work, ...]) -> None:
        """Take a batch; a lease counts from the next piece on that is run."""
        if items:
            self._rehearsal.environment.process(self._answer(items))

    def _answer(self, items: tuple[Work, ...]) -> Process:
        parts = len(items) if self._curve.one_by_one else 1
        pieces = parts * (RUNS if self._curve.lanes > 1 else 1)
        began_s = self._rehearsal.environment.now
        for number in range(parts):
            for _ in range(pieces // parts):
                whole = self._curve.batch(len(items), self._rehearsal.threads(self._name, self._curve))
                piece = msgspec.structs.replace(whole, seconds=whole.seconds / pieces)
                yield self._rehearsal.silicon.run(piece)
            for work in items[number::parts]:
                elapsed_s = self._rehearsal.environment.now - began_s
                began_s = self._rehearsal.environment.now
                self._rehearsal.say(self._name, _done(work, elapsed_s, len(items)))


class TokenWorker:
    """Runs sequences side by side; they join and leave between steps."""

    def __init__(self, rehearsal: Rehearsal, name: str, curve: Curve) -> None:
        self._rehearsal = rehearsal
        self._name = name
        self._curve = curve
        self._sequences = Sequences(budget_of(curve.form))
        self._held: dict[int, tuple[Work, float]] = {}
        self._waiting: deque[Work] = deque()
        self._news = rehearsal.environment.event()
        rehearsal.environment.process(self._live())

    def hear(self, items: tuple[Work, ...]) -> None:
        """Take items, or a lease; both count from the next step on."""
        self._waiting.extend(items)
        if not self._news.triggered:
            self._news.succeed()

    def _live(self) -> Process:
        while True:
            while not self._waiting and (not self._held or self._rehearsal.paused(self._name)):
                yield self._news
                self._news = self._rehearsal.environment.event()
            self._admit()
            if not self._rehearsal.paused(self._name):
                yield from self._step()

    def _admit(self) -> None:
        while self._waiting:
            work = self._waiting.popleft()
            asked = self._rehearsal.asked[work.request]
            self._held[work.request] = work, self._rehearsal.environment.now
            self._sequences.admit(work.request, asked.unread_tokens, asked.new_tokens)

    def _step(self) -> Process:
        threads, live = self._rehearsal.threads(self._name, self._curve), len(self._sequences)
        step = self._sequences.step()
        yield self._rehearsal.silicon.run(self._curve.step(step, live, threads))
        now = self._rehearsal.environment.now
        for request in step.first:
            self._rehearsal.asked[request].first_s = now
        first = [_first(self._held[request][0]) for request in step.first]
        held = [self._held.pop(request) for request in step.finished]
        done = [_done(work, now - began_s, live) for work, began_s in held]
        if first or done or self._rehearsal.setting.mode in CLOCKED:
            self._rehearsal.say(self._name, *first, *done)


def _first(work: Work) -> Tokens:
    """The first token of an answer: the leases ask whether it has one."""
    return Tokens(work.request, work.attempt, 0, (0,), "")


def _done(work: Work, compute_s: float, batch: int) -> Done:
    return Done(work.request, work.attempt, work.target, compute_s, batch)
