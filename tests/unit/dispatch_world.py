"""A ledger with stages whose workers do what a test says; no processes."""

from __future__ import annotations

from collections import Counter

from edged.dispatch.admission import admit, enqueue
from edged.dispatch.decide import decide
from edged.dispatch.events import (
    Command,
    Deliver,
    Died,
    Kill,
    Refuse,
    Send,
    Spawn,
    Spoke,
    Stream,
    Waited,
)
from edged.dispatch.ledger import Ledger, Slots, Stage, Worker
from edged.dispatch.requests import Submission
from edged.dispatch.staffing import start, wanted
from edged.messages import (
    Batch,
    Cancel,
    Done,
    Judgement,
    Priority,
    Ready,
    Stop,
    Tokens,
    Work,
)

ROUTE = ("embed", "rank", "speak")


class World:
    """A ledger with three stages, and hands that do what the commands say."""

    def __init__(self, slots: int = 4, max_batch: int = 2) -> None:
        self.now = 0.0
        self.ledger = Ledger(Slots(0, slots))
        self.inbox: dict[str, list[Work]] = {}
        self.cancelled: set[tuple[str, int, int]] = set()
        self.stopped: set[str] = set()
        self.killed: set[str] = set()
        self.waiting: list[str] = []
        self.terminals: Counter[int] = Counter()
        self.streams: dict[int, str] = {}
        self.refusals: dict[int, str] = {}
        self.accepted: set[int] = set()
        self.left: set[int] = set()
        for number, name in enumerate(ROUTE, start=1):
            stage = Stage(name, Slots(number, slots), max_batch, streaming=name == "speak")
            self.ledger.stages[name] = stage
            self.do(start(self.ledger, stage))

    def do(self, commands: list[Command]) -> list[Command]:
        for command in commands:
            match command:
                case Send(worker, Batch(items)):
                    self.inbox[worker].extend(items)
                case Send(worker, Cancel(request, attempt)):
                    self.cancelled.add((worker, request, attempt))
                case Send(worker, Stop()):
                    self.stopped.add(worker)
                case Kill(worker, _):
                    self.killed.add(worker)
                case Spawn(stage, _):
                    self.waiting.append(stage)
                case Stream(request, text, _):
                    self.streams[request] = self.streams.get(request, "") + text
                case Deliver(request):
                    self.terminals[request] += 1
                case Refuse(request, error):
                    self.terminals[request] += 1
                    self.refusals[request] = error.code
        return commands

    def event(self, event: object) -> list[Command]:
        return self.do(decide(self.ledger, event, self.now))  # type: ignore[arg-type]

    def spawn(self, stage: str | None = None) -> str:
        """Start the process of a `Spawn` and let it announce itself."""
        name = self.waiting.pop(0 if stage is None else self.waiting.index(stage))
        self.ledger.last_worker += 1
        worker = f"{name}-{self.ledger.last_worker}"
        self.ledger.workers[worker] = Worker(worker, name, heard_at=self.now, started_at=self.now)
        self.ledger.stages[name].workers.add(worker)
        self.ledger.stages[name].starting -= 1
        self.inbox[worker] = []
        return worker

    def spawn_if_wanted(self) -> str | None:
        """The same for the next one, unless it is called off."""
        name = self.waiting[0]
        if wanted(self.ledger, self.ledger.stages[name]):
            return self.spawn()
        self.waiting.pop(0)
        return None

    def ready(self, worker: str, credit: int = 2) -> None:
        self.event(Spoke(worker, Ready(credit, 1, 0.0, {})))

    def submit(
        self,
        route: tuple[str, ...] = ROUTE,
        deadline_s: float = 1e9,
        *,
        priority: Priority = "interactive",
        firm: bool = False,
    ) -> int:
        asked = Submission(
            route=route,
            operation="chat",
            payload=b"",
            deadline_s=deadline_s,
            priority=priority,
            firm=firm,
        )
        request = admit(self.ledger, asked, self.now)
        self.accepted.add(request.id)
        enqueue(self.ledger, request, request.source, self.now)
        self.event(Waited())
        return request.id

    def done(self, worker: str, work: Work, judgement: Judgement | None = None) -> list[Command]:
        self.inbox[worker].remove(work)
        done = Done(work.request, work.attempt, work.target, 0.01, 1, judgement=judgement)
        return self.event(Spoke(worker, done))

    def say(self, worker: str, work: Work, first: int, text: str) -> None:
        tokens = tuple(range(first, first + len(text)))
        self.event(Spoke(worker, Tokens(work.request, work.attempt, first, tokens, text)))

    def die(self, worker: str, *, killed: bool = False) -> list[Command]:
        self.inbox.pop(worker)
        return self.event(Died(worker, "test", killed))

    def worker(self, stage: str) -> str:
        return next(iter(self.ledger.stages[stage].workers))

    def all_ready(self) -> None:
        while self.waiting:
            self.ready(self.spawn())
