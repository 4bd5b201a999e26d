"""What a batch worker does with messages that come while a batch runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import pytest

from edged.errors import ProtocolError
from edged.messages import Batch, Cores, Done, Ping, Pong, SlotRef, Stop, Work
from edged.stages.contract import Item
from edged.workers.loop import BatchLoop


class Link:
    """A wire with what is to come, and what was said on it."""

    def __init__(self, *messages: object) -> None:
        self.coming, self.said = deque(messages), []

    def receive(self, _timeout_ms: int | None = None) -> object:
        message = self.coming.popleft() if self.coming else None
        if isinstance(message, ProtocolError):
            raise message
        return message

    def send(self, *messages: object) -> None:
        self.said += messages


class Slot:
    """An arena of one slot."""

    def read(self, _source: SlotRef) -> memoryview:
        return memoryview(b"question")

    def write(self, target: SlotRef, _payload: bytes) -> SlotRef:
        return target


class Slow:
    """A stage whose items take two runs each, between which it looks."""

    lanes = 2

    def __init__(self, during: Callable[[], None]) -> None:
        self.cores: list[int] = []
        self._during = during

    def attend(self, look: Callable[[], None]) -> None:
        self._look = look

    def run(self, items: Sequence[Item]) -> Iterator[bytes]:
        for _ in items:
            self._during()
            self._look()
            self.cores.append(0)
            yield b"answer"

    def set_cores(self, count: int) -> None:
        self.cores.append(count)

    def cache_counters(self) -> dict[str, object]:
        return {}


def work(number: int) -> Work:
    return Work(number, 1, "rerank", SlotRef(0, 0, 1), SlotRef(1, 0, 1), 1000, (), 0, 0)


def test_while_a_batch_runs_its_lease_counts_and_a_ping_is_answered_and_the_rest_waits():
    link = Link(Batch((work(1),)))
    during = deque([Cores(1), Ping(7), Batch((work(2),)), Cores(2), Stop()])

    def speak() -> None:
        while during:
            link.coming.append(during.popleft())

    stage = Slow(speak)
    BatchLoop(stage, link, {0: Slot(), 1: Slot()}).run()  # type: ignore[arg-type]
    assert stage.cores == [1, 2, 0, 0], "both leases before the first item went on, in order"
    told = [message for message in link.said if isinstance(message, Pong | Done)]
    assert told[:2] == [Pong(0), Pong(7)], "alive between two runs, asked or not"
    assert [type(message) for message in told[2:]] == [Done, Done], "what came meanwhile was answered later"


def test_a_pause_leaves_the_batch_in_hand_one_core():
    link = Link(Cores(0), Batch((work(1),)), Stop())
    stage = Slow(lambda: link.coming.appendleft(Cores(0)))
    BatchLoop(stage, link, {0: Slot(), 1: Slot()}).run()  # type: ignore[arg-type]
    assert stage.cores == [1, 1, 0]


def test_what_is_wrong_with_the_wire_while_a_batch_runs_is_not_the_fault_of_its_item():
    link = Link(Batch((work(1),)), ProtocolError("garbage"))
    with pytest.raises(ProtocolError, match="garbage"):
        BatchLoop(Slow(lambda: None), link, {0: Slot(), 1: Slot()}).run()  # type: ignore[arg-type]
    assert [type(message) for message in link.said if not isinstance(message, Pong)] == [Done]
