"""Answers for peers: what is made, for whom, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from edged.dispatch.peer import Offer
from edged.dispatch.requests import Completed, Delta, Event, Rejected, Submission
from edged.errors import Cancelled, Overloaded
from edged.messages import Ceiling, ChatTask, Message, decoder, encode
from edged.peers.messages import (
    VERSION,
    Answered,
    Ask,
    Declined,
    Drop,
    Dropped,
    FromServer,
    Offers,
    Said,
    Take,
)
from edged.peers.serving import IGNORED_S, MOST_CONNECTIONS, Limits, Serving
from edged.peers.task import check_task
from edged.transport.curve import Heard

OFFER = Offer("model", 2, 2, 0.0, 1.0, 10.0, 4096, hot=False)
read_any = decoder(FromServer)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until a condition holds."""
    async with asyncio.timeout(10.0):
        while not condition():  # noqa: ASYNC110 (the condition has no event)
            await asyncio.sleep(0)


@dataclass
class FakeServer:
    waiting: list[Heard] = field(default_factory=list)
    sent: list[FromServer] = field(default_factory=list)
    takes: bool = True

    def receive(self):
        while self.waiting:
            yield self.waiting.pop(0)

    def send(self, route: bytes, body: bytes) -> bool:
        self.sent.append(read_any(body))
        return self.takes


class FakeTicket:
    request = 1

    def __init__(self) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.cancelled = False

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            event = await self.events.get()
            yield event
            if isinstance(event, Completed | Rejected):
                return

    def cancel(self) -> None:
        self.cancelled = True


class Shop:
    def __init__(self) -> None:
        self.names = {"K": "a"}
        self.tickets: list[FakeTicket] = []
        self.submitted: list[Submission] = []

    def name_of(self, key: str) -> str:
        return self.names.get(key, "")

    def offers(self, held: int) -> tuple[str, str, tuple[Offer, ...]]:
        return "box-b", "full", (OFFER,)

    def stage_of(self, identity: str) -> str:
        return "speak" if identity == "model" else ""

    def submit(self, submission: Submission) -> FakeTicket:
        self.submitted.append(submission)
        self.tickets.append(FakeTicket())
        return self.tickets[-1]


class Counter:
    """The serving side, with the test at the other end."""

    def __init__(self) -> None:
        self.now = 0.0
        self.server, self.shop = FakeServer(), Shop()
        limits = Limits(requests=2, bytes_per_s=1e6, silence_s=0.7)
        self.serving = Serving(self.server, self.shop, limits, lambda: self.now, lambda: None)  # type: ignore[arg-type]

    def say(self, message: object, key: str = "K", route: bytes = b"r") -> list[FromServer]:
        body = message if isinstance(message, bytes) else encode(message)  # type: ignore[arg-type]
        self.server.waiting.append(Heard(route, key, body))
        before = len(self.server.sent)
        self.serving.listen()
        return self.server.sent[before:]


QUESTION = (Message(role="user", content="why?"),)
TASK = encode(ChatTask(messages=QUESTION))


def take(number: int = 1, **changes: object) -> Take:
    known = {"identity": "model", "tokens": (7, 8), "payload": TASK} | changes
    payload = known["payload"]
    return Take(number, 1, str(known["identity"]), 1, payload, 9, "batch", known["tokens"], 2)  # type: ignore[arg-type]


def test_an_answer_is_made_behind_the_tokens_that_exist():
    async def scene() -> None:
        counter = Counter()
        assert counter.say(take()) == []
        asked = counter.shop.submitted[0]
        assert (asked.route, asked.hops, asked.priority) == (("speak",), 1, "batch")
        assert (asked.resume_tokens, asked.resume_characters) == ((7, 8), 2)
        ticket = counter.shop.tickets[0]
        for event in (Delta("x", 2, (9, 10)), Delta("y", 1, (11,)), Completed(b"answer", ())):
            ticket.events.put_nowait(event)
        await until(lambda: len(counter.server.sent) == 3)
        assert counter.server.sent == [
            Said(1, 1, 2, (9, 10), "x"),
            Said(1, 1, 4, (11,), "y"),
            Answered(1, 1, b"answer", 0.0),
        ]
        assert counter.serving.held() == {"a": 0}

    asyncio.run(scene())


def test_a_quota_holds_over_all_connections_of_a_peer():
    async def scene() -> None:
        counter = Counter()
        counter.say(take(1))
        counter.say(take(2), route=b"s")
        (declined,) = counter.say(take(3), route=b"s")
        assert isinstance(declined, Declined)
        assert declined.code == Overloaded.code
        counter.serving.close()

    asyncio.run(scene())


def test_what_is_not_served_here_is_declined():
    async def scene() -> None:
        counter = Counter()
        (declined,) = counter.say(take(identity="another"))
        assert isinstance(declined, Declined)
        counter.say(take(1))
        (twice,) = counter.say(take(1))
        assert isinstance(twice, Declined)
        assert len(counter.shop.submitted) == 1
        assert counter.serving.held() == {"a": 1}, "the first goes on"
        counter.serving.close()

    asyncio.run(scene())


@pytest.mark.parametrize("how", ["drop", "silence", "removed", "nonsense", "new session"])
def test_nobody_works_for_who_has_left(how):
    async def scene() -> None:
        counter = Counter()
        counter.say(Ask(VERSION, 11, 1))
        counter.say(take())
        await asyncio.sleep(0)  # the answer is waited for
        if how == "drop":
            assert counter.say(Drop(1, 1)) == [Dropped(1, 1)]
        elif how == "silence":
            counter.now += 1.5
            counter.serving.look()
        elif how == "removed":
            counter.shop.names.clear()
            counter.say(Ask(VERSION, 11, 2))
        elif how == "nonsense":
            counter.say(b"nonsense")
        else:
            counter.say(Ask(VERSION, 12, 1), route=b"new")
        await until(lambda: counter.shop.tickets[0].cancelled)

    asyncio.run(scene())


@pytest.mark.parametrize("how", ["drop", "nonsense", "close"])
def test_what_is_given_up_in_the_turn_in_which_it_came_is_given_up(how):
    async def scene() -> None:
        counter = Counter()
        counter.say(take())
        if how == "close":
            counter.serving.close()
        else:
            counter.say(Drop(1, 1) if how == "drop" else b"nonsense")
        assert counter.shop.tickets[0].cancelled, "though its task never ran"

    asyncio.run(scene())


def test_whoever_only_looks_disturbs_nobody():
    async def scene() -> None:
        counter = Counter()
        counter.say(Ask(VERSION, 11, 1))
        counter.say(take())
        (offers,) = counter.say(Ask(VERSION, 0, 1), route=b"cli")
        assert isinstance(offers, Offers)
        assert counter.serving.held() == {"a": 1}
        counter.serving.close()

    asyncio.run(scene())


def test_a_flood_is_cut_off_and_counted():
    counter = Counter()
    for number in range(2000):
        counter.say(Ask(VERSION, 1, number))
    assert counter.serving.counts.messages < 1100
    assert counter.serving.counts.excessive > 900


def test_a_quota_of_bytes_holds_over_all_connections_of_a_peer():
    counter = Counter()
    for number in range(2000):
        counter.say(Ask(VERSION, 1, number), route=b"%d" % number)
    assert counter.serving.counts.messages < 1100


def test_nonsense_does_not_buy_a_new_quota():
    counter = Counter()
    for number in range(2000):
        counter.say(b"nonsense", route=b"%d" % number)
    assert counter.serving.counts.malformed == 1
    assert counter.serving.counts.excessive == 1999
    counter.now += IGNORED_S
    (offers,) = counter.say(Ask(VERSION, 1, 1))
    assert isinstance(offers, Offers), "it is heard again"


def test_a_peer_has_few_connections_and_those_that_work_stay():
    async def scene() -> None:
        counter = Counter()
        counter.say(take(), route=b"works")
        for number in range(10):
            counter.now += 0.01
            counter.say(Ask(VERSION, 0, number), route=b"%d" % number)
        assert len(counter.serving._guests) == MOST_CONNECTIONS
        assert not counter.shop.tickets[0].cancelled
        counter.serving.close()

    asyncio.run(scene())


def test_a_task_beyond_the_quota_is_declined_and_not_left_waiting():
    counter = Counter()
    while not counter.serving.counts.excessive:
        counter.say(Ask(VERSION, 1, 1))
    (declined,) = counter.say(take())
    assert isinstance(declined, Declined)
    assert declined.code == Overloaded.code
    told = sum(len(counter.say(take(number))) for number in range(1000))
    assert told < 100, "a flood of them is not"


def test_who_is_seen_off_is_told_what_it_waits_for_in_vain():
    async def scene() -> None:
        counter = Counter()
        counter.say(take())
        (declined,) = counter.say(b"nonsense")
        assert isinstance(declined, Declined)
        assert (declined.request, declined.attempt, declined.code) == (1, 1, Cancelled.code)

    asyncio.run(scene())


def test_a_peer_that_was_removed_is_seen_off_though_it_says_nothing():
    async def scene() -> None:
        counter = Counter()
        counter.say(take())
        counter.shop.names.clear()
        counter.serving.look()
        assert counter.shop.tickets[0].cancelled
        assert counter.serving.held() == {}

    asyncio.run(scene())


def test_another_key_on_a_connection_is_another_peer():
    async def scene() -> None:
        counter = Counter()
        counter.shop.names["L"] = "c"
        counter.say(take())
        counter.say(Drop(1, 1), key="L")
        counter.say(take(2), key="L")
        assert counter.shop.tickets[0].cancelled
        assert counter.serving.held() == {"c": 1}
        assert counter.shop.submitted[1].pipeline == "peer:c"
        counter.serving.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    "task",
    [
        ChatTask(messages=()),
        ChatTask(messages=QUESTION, max_tokens=-1),
        ChatTask(messages=QUESTION, max_tokens=1 << 21),
        ChatTask(messages=QUESTION, stop=("",)),
        ChatTask(messages=QUESTION, stop=("a", "b", "c", "d", "e")),
        ChatTask(messages=QUESTION, keep=-1),
        ChatTask(messages=QUESTION, ceiling=Ceiling(answer_tokens=-1)),
        ChatTask(messages=QUESTION * 5000),
    ],
)
def test_a_task_that_no_node_sends_reaches_no_worker(task):
    counter = Counter()
    (declined,) = counter.say(take(payload=encode(task)))
    assert isinstance(declined, Declined)
    assert not counter.shop.submitted


@pytest.mark.parametrize("payload", [b"", b"task", encode(QUESTION[0])])
def test_what_is_no_task_reaches_no_worker(payload):
    counter = Counter()
    (declined,) = counter.say(take(payload=payload))
    assert isinstance(declined, Declined)
    assert not counter.shop.submitted


def test_every_task_of_the_api_passes():
    task = ChatTask(messages=QUESTION, max_tokens=64, stop=("\n",), grounded=True, candidates=20, keep=4)
    check_task(encode(task))
