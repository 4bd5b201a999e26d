"""A node of the scripted world with one generator, and peers that join, offer and leave."""

from __future__ import annotations

from dataclasses import dataclass, field

from edged.dispatch.admission import admit, enqueue
from edged.dispatch.events import Joined, Spoke, Ticked, Waited
from edged.dispatch.ledger import Request
from edged.dispatch.peer import Offer, Pressure
from edged.dispatch.requests import Submission
from edged.messages import Gone, Priority, Tokens, Work
from tests.unit.dispatch_world import World

AWAY, URGENT, CALM = Pressure(away=True), Pressure(away=True, urgent=True), Pressure()


def offer(free: int = 2, *, hot: bool = False, most_bytes: int = 4096, **more: float) -> Offer:
    known = {"wait_s": 0.0, "service_s": 1.0, "tokens_per_s": 0.0} | more
    return Offer(identity="m", grant=4, free=free, most_bytes=most_bytes, hot=hot, **known)  # type: ignore[arg-type]


@dataclass
class Site:
    """A node with one generator, and peers."""

    world: World = field(default_factory=lambda: World(slots=8, max_batch=2))

    def __post_init__(self) -> None:
        self.world.all_ready()

    @property
    def home(self) -> str:
        return self.world.worker("speak")

    def join(self, peer: str, offered: Offer | None = None) -> str:
        self.world.ledger.last_worker += 1
        worker = f"speak-{self.world.ledger.last_worker}"
        self.world.inbox[worker] = []
        self.world.event(Joined(worker, "speak", peer, 4, ""))
        self.offers(worker, offered or offer())
        return worker

    def offers(self, worker: str, offered: Offer) -> None:
        remote = self.world.ledger.workers[worker].remote
        assert remote is not None
        remote.offer, remote.balance = offered, 0
        self.world.event(Waited())

    def press(self, pressure: Pressure) -> None:
        self.world.ledger.pressure = pressure
        self.world.event(Ticked())

    def ask(self, *, hops: int = 0, priority: Priority = "interactive", tokens: tuple[int, ...] = ()) -> int:
        asked = Submission(
            route=("speak",),
            operation="chat",
            payload=b"",
            deadline_s=1e6,
            priority=priority,
            hops=hops,
            resume_tokens=tokens,
            resume_characters=len(tokens),
        )
        request = admit(self.world.ledger, asked, self.world.now)
        self.world.accepted.add(request.id)
        enqueue(self.world.ledger, request, request.source, self.world.now)
        self.world.event(Waited())
        return request.id

    def request(self, number: int) -> Request:
        return self.world.ledger.requests[number]

    def where(self, number: int) -> str:
        """The peer that has a request, `home`, or `queue`."""
        request = self.request(number)
        if request.phase == "queued":
            return "queue"
        remote = self.world.ledger.workers[request.worker].remote
        return remote.peer if remote else "home"

    def work(self, number: int) -> tuple[str, Work]:
        worker = self.request(number).worker
        return worker, next(work for work in self.world.inbox[worker] if work.request == number)

    def say(self, number: int, count: int = 1) -> None:
        worker, work = self.work(number)
        first = len(self.request(number).tokens)
        ids = tuple(range(first, first + count))
        self.world.event(Spoke(worker, Tokens(number, work.attempt, first, ids, "x" * count)))

    def dropped(self, worker: str, number: int, attempt: int) -> None:
        """A worker obeys a cancel."""
        self.world.inbox[worker] = [work for work in self.world.inbox[worker] if work.request != number]
        self.world.event(Spoke(worker, Gone(number, attempt)))
