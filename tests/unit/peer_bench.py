"""A link whose clock, connections and dispatcher are the test's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from edged.breaker import Breaker
from edged.dispatch.peer import Offer
from edged.messages import (
    Answer,
    Batch,
    ChatTask,
    FromWorker,
    Message,
    SlotRef,
    ToWorker,
    Work,
    encode,
)
from edged.peers.book import Peer
from edged.peers.identity import Kin
from edged.peers.link import Link
from edged.peers.messages import (
    VERSION,
    Ask,
    FromServer,
    Offers,
    read_to_server,
)
from edged.peers.seams import Patience
from edged.transport.curve import new_keys

KEYS = new_keys()
TASK = encode(ChatTask(messages=(Message(role="user", content="why?"),), max_tokens=32))
ANSWER = encode(Answer(text="x", finish="stop", prompt_tokens=1, completion_tokens=3, model="m"))
OFFER = Offer("model", 2, 2, 0.0, 1.0, 10.0, 4096, hot=False)


@dataclass
class FakeQuarrel:
    dead: bool = False

    def refused(self) -> bool:
        return self.dead

    def reason(self) -> str:
        return "does not know this node's key" if self.dead else "does not answer"


@dataclass
class FakeLine:
    sent: list[object] = field(default_factory=list)
    waiting: list[bytes] = field(default_factory=list)
    open: bool = True
    takes: bool = True
    quarrel: FakeQuarrel = field(default_factory=FakeQuarrel)

    def send(self, body: bytes) -> bool:
        if self.takes:
            self.sent.append(read_to_server(body))
        return self.takes

    def receive(self):
        while self.waiting:
            yield self.waiting.pop(0)


@dataclass
class FakeWires:
    lines: list[FakeLine] = field(default_factory=list)
    later: list[Callable[[], None]] = field(default_factory=list)

    def open(self, peer: Peer, heard: Callable[[], None]) -> FakeLine:
        self.lines.append(FakeLine())
        return self.lines[-1]

    def close(self, line: FakeLine) -> None:
        line.open = False

    def soon(self, call: Callable[[], None]) -> None:
        self.later.append(call)


@dataclass
class FakeRemotes:
    mailbox: Callable[[ToWorker], None] | None = None
    said: list[FromWorker] = field(default_factory=list)
    returned: list[Work] = field(default_factory=list)
    joined: int = 0
    left: list[str] = field(default_factory=list)
    offers: list[tuple[Offer, int]] = field(default_factory=list)
    same: bool | None = None

    def join(self, stage, peer, credit, variant, mailbox) -> str:
        self.mailbox, self.joined = mailbox, self.joined + 1
        return f"{stage}-{self.joined}"

    def leave(self, worker, reason) -> None:
        self.left.append(reason)

    def offered(self, worker, offer, rtt_s, balance, *, same) -> None:
        self.offers.append((offer, balance))
        self.same = same

    def say(self, worker, message) -> None:
        self.said.append(message)

    def give_back(self, worker, work) -> None:
        self.returned.append(work)

    def task(self, work):
        return TASK, "interactive"

    def result(self, work, payload):
        return work.target


class Bench:
    """A link whose clock, connections and dispatcher are the test's."""

    def __init__(self) -> None:
        self.now = 100.0
        self.kin = Kin("model", frozenset({"better"}))
        self.wires, self.remotes = FakeWires(), FakeRemotes()
        self.link = Link(
            Peer(name="b", key=KEYS.public, endpoint="tcp://192.0.2.1:1"),
            wires=self.wires,  # type: ignore[arg-type]
            remotes=self.remotes,  # type: ignore[arg-type]
            kins=lambda: {"speak": self.kin},
            patience=Patience(ping_s=0.2, silence_s=0.7, stall_s=2.5),
            breaker=Breaker(1, 1.0, 60.0),
            bytes_per_s=1e6,
            clock=lambda: self.now,
            wanted=lambda: True,
            changed=lambda: None,
        )

    @property
    def line(self) -> FakeLine:
        return self.wires.lines[-1]

    def look(self, seconds: float = 0.0, step_s: float = 0.05, *, answered: bool = False) -> None:
        end = self.now + seconds
        while True:
            self.link.look()
            if answered:
                self.answer()
            if self.now >= end:
                return
            self.now = min(end, self.now + step_s)

    def answer(self, offer: Offer = OFFER, version: int = VERSION) -> None:
        asks = [message for message in self.line.sent if isinstance(message, Ask)]
        if self.line.open and asks:
            self.hear(Offers(version, asks[-1].nonce, "box-b", "full", (offer,)))

    def hear(self, message: FromServer) -> None:
        self.line.waiting.append(encode(message))
        self.link.listen()

    def up(self) -> None:
        self.look()
        self.answer()
        assert self.link.up

    def hand(self, number: int = 1, remaining_ms: int = 5000) -> Work:
        ref = SlotRef(1, 0, 1)
        work = Work(number, 1, "chat", ref, ref, remaining_ms, (7, 8), 2)
        assert self.remotes.mailbox is not None
        self.remotes.mailbox(Batch((work,)))
        return work
