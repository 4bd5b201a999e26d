"""A dispatcher on the test's own event loop, whose workers the test plays: idle processes give the pidfds."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edged.backend import Variant
from edged.dispatch.channel import Channel
from edged.dispatch.dispatcher import Dispatcher
from edged.dispatch.requests import Completed, Event, Rejected, Submission
from edged.messages import Batch, Done, FromWorker, Ready, Stop, Tokens, ToWorker, Work
from edged.transport.links import Dealer
from edged.transport.slots import Arena, Geometry
from edged.workers.spec import StageSpec

GEOMETRY = Geometry(slots=6, slot_bytes=4096)
WAIT_S = 10.0


def turned(payload: bytes, stage: str) -> bytes:
    """What an honest worker makes of a payload: nobody else can guess it."""
    return payload[::-1] + b"|" + stage.encode()


class Actor:
    """The test's hands on one worker: its link and its writable arena."""

    def __init__(self, stand: Stand, incarnation: str) -> None:
        self.incarnation = incarnation
        self.stage = incarnation.rpartition("-")[0]
        self.stand = stand
        self.link = Dealer(stand.endpoint, incarnation)
        self.held: list[Work] = []
        self.other: list[ToWorker] = []

    def say(self, message: FromWorker) -> None:
        self.link.send(message)

    def take(self) -> list[Work]:
        """Read what has been sent; give the works that are held."""
        while (message := self.link.receive(0)) is not None:
            if isinstance(message, Batch):
                self.held += message.items
            else:
                self.other.append(message)
        return self.held

    async def work(self) -> Work:
        """Wait for one item and keep holding it."""
        await self.stand.until(self.take, f"work for {self.incarnation}")
        return self.held[0]

    def result(self, work: Work, payload: bytes | None = None) -> Done:
        """Do the work honestly, or write `payload`, and give the message that says so."""
        arenas = self.stand.arenas
        made = (
            turned(bytes(arenas[work.source.arena].read(work.source)), self.stage)
            if payload is None
            else payload
        )
        return Done(work.request, work.attempt, arenas[work.target.arena].write(work.target, made), 0.001, 1)

    def finish(self, work: Work) -> None:
        self.held.remove(work)
        self.say(self.result(work))

    async def serve(self) -> None:
        """Be an honest worker until cancelled."""
        while not any(isinstance(message, Stop) for message in self.other):
            for work in list(self.take()):
                if self.stage == "speak":
                    self.say(Tokens(work.request, work.attempt, len(work.resume_tokens), (1,), "t"))
                self.finish(work)
            await asyncio.sleep(0.001)


class Stand:
    """The dispatcher, and an actor for each of its workers."""

    def __init__(self, folder: Path, workers: dict[str, int]) -> None:
        self.endpoint = folder / "workers.sock"
        self.dispatcher = Dispatcher(folder, GEOMETRY, "info", "text")
        self.ledger = self.dispatcher.ledger
        self.workers = workers
        self.actors: dict[str, Actor] = {}
        self.arenas: dict[int, Arena] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        self.dispatcher.start()
        for name, count in self.workers.items():
            self.dispatcher.add_stage(_spec(name), count, timeout_s=60.0, load_timeout_s=60.0)
        for number, (descriptor, _) in self.dispatcher.arenas.descriptors.items():
            self.arenas[number] = Arena(descriptor, GEOMETRY, writable=True)
        self.dispatcher.start_workers()

    def actor(self, incarnation: str, *, credit: int | None = 4) -> Actor:
        """Take a worker's part; announce it unless told not to."""
        actor = Actor(self, incarnation)
        self.actors[incarnation] = actor
        if credit is not None:
            actor.say(Ready(credit, 1, 0.0, {}))
        return actor

    async def all_ready(self) -> list[Actor]:
        actors = [self.actor(name) for name in sorted(self.ledger.workers) if name not in self.actors]
        await self.until(lambda: all(w.state == "ready" for w in self.ledger.workers.values()), "ready")
        return actors

    def serve(self, actor: Actor) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(actor.serve()))

    def submit(self, payload: bytes, *route: str, deadline_s: float = 60.0) -> Channel:
        return self.dispatcher.submit(
            Submission(route=route, operation="tensor", payload=payload, deadline_s=deadline_s)
        )

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Let the loop run until a condition holds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WAIT_S
        while not condition():
            assert loop.time() < deadline, f"waited in vain for {what}"
            await asyncio.sleep(0.002)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for actor in self.actors.values():
            actor.link.close(linger_ms=0)
        await self.dispatcher.stop()
        for arena in self.arenas.values():
            arena.close()


async def outcome(channel: Channel) -> tuple[str, Completed | Rejected]:
    """Read a channel to its end: the streamed text and the one terminal event."""
    events: list[Event] = []
    async with asyncio.timeout(WAIT_S):
        async for event in channel:
            events.append(event)  # noqa: PERF401 (what came before a timeout is worth seeing)
    *deltas, last = events
    assert isinstance(last, Completed | Rejected)
    assert not any(isinstance(event, Completed | Rejected) for event in deltas)
    return "".join(delta.text for delta in deltas if not isinstance(delta, Completed | Rejected)), last


def _spec(name: str) -> StageSpec:
    return StageSpec(
        name=name,
        kind="generator" if name == "speak" else "tensor",
        backend="simulated",
        device="sim:cpu",
        max_batch=2,
        variant=Variant(model=name, name="none", task="tensor", format="none", path=Path("/dev/null")),
        options={},
        library=Path("/dev/null"),
    )


@asynccontextmanager
async def standing(folder: Path, monkeypatch: pytest.MonkeyPatch, **workers: int) -> AsyncIterator[Stand]:
    """Open a stand whose worker processes do nothing at all: the test says what they say."""
    idle = folder / "idle"
    idle.write_text("#!/bin/sh\nexec sleep 300\n")
    idle.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(idle))
    stand = Stand(folder, workers)
    stand.open()
    try:
        yield stand
    finally:
        await stand.close()
