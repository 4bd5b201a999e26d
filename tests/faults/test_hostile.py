"""Workers that lie: whatever they say, nobody gets somebody else's answer and the dispatcher lives."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from edged.dispatch.forecast import wait_s
from edged.dispatch.requests import Completed, Rejected
from edged.messages import Done, Failed, Fault, FromWorker, Gone, Pong, Ready, SlotRef, Tokens, encode
from edged.workers.process import Process

from .stand import GEOMETRY, Actor, Stand, outcome, standing, turned

Play = Callable[..., None]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Run a scene on a stand; an exception that reaches the event loop fails the test."""

    def run(scene: Callable[[Stand], Coroutine[Any, Any, None]], **workers: int) -> None:
        async def main() -> None:
            unforeseen: list[dict[str, Any]] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: unforeseen.append(context))
            async with standing(tmp_path, monkeypatch, **workers) as stand:
                await scene(stand)
            assert unforeseen == []

        asyncio.run(main())

    return run


def forgeries(stand: Stand, chooser: random.Random) -> FromWorker:
    """A message about a request of somebody else, as well informed as a thief could be."""
    requests = list(stand.ledger.requests.values())
    victim = chooser.choice(requests) if requests else None
    number = victim.id if victim else chooser.randrange(50)
    attempt = victim.attempt if victim else 1
    target = victim.target if victim and victim.target else SlotRef(1, chooser.randrange(6), 1)
    ref = bent(target, length=chooser.choice([0, 5, 4096, 1 << 31]), checksum=0)
    return chooser.choice(
        [
            Done(number, attempt, ref, 0.1, 1, credit=1000),
            Done(number, attempt, SlotRef(99, 99, 99), 0.1, 1),
            Failed(number, attempt, "bad_request", "no"),
            Failed(number, attempt, "no such code", ""),
            Tokens(number, attempt, len(victim.tokens) if victim else 0, (6, 6, 6), "evil"),
            Tokens(number, attempt, 999, (6,), "evil"),
            Gone(number, attempt),
            Pong(3),
        ]
    )


def test_forged_words_about_the_work_of_others_change_nothing(play: Play, seed: int) -> None:
    chooser = random.Random(seed)

    async def scene(stand: Stand) -> None:
        evil, *honest = [stand.actor(name, credit=None) for name in sorted(stand.ledger.workers)]
        evil.say(Ready(0, 1, 0.0, {}))
        for actor in honest:
            actor.say(Ready(4, 1, 0.0, {}))
            stand.serve(actor)
        done = lies = 0

        async def ask(number: int) -> None:
            nonlocal done
            payload = f"request {number}".encode()
            text, end = await outcome(stand.submit(payload, "first", "speak"))
            assert isinstance(end, Completed), end
            assert end.payload == turned(turned(payload, "first"), "speak")
            assert text == "t"
            done += 1

        def heard() -> bool:
            return lies - stand.ledger.stale < 500

        async def lie() -> None:
            nonlocal lies
            while done < 120:
                message = forgeries(stand, chooser)
                evil.say(message)
                lies += not isinstance(message, Pong)
                await asyncio.sleep(0)
                # A full pipe would block this thread, and the dispatcher on it.
                await stand.until(heard, "the lies to be heard")

        liar = asyncio.ensure_future(lie())
        for first in range(0, 120, 6):
            await asyncio.gather(*(ask(first + n) for n in range(6)))
        await liar
        await stand.until(lambda: not stand.ledger.requests, "the end of all requests")
        await stand.until(lambda: stand.ledger.stale == lies > 100, "the end of all lies")
        assert stand.ledger.entry.used == 0
        assert set(stand.ledger.workers) == set(stand.actors), "an honest worker was punished"

    play(scene, first=2, speak=1)


BAD_RESULTS: dict[str, Callable[[Done], Done]] = {
    "generation": lambda d: msgspec.structs.replace(
        d, target=bent(d.target, generation=d.target.generation + 1)
    ),
    "slot": lambda d: msgspec.structs.replace(d, target=bent(d.target, slot=(d.target.slot + 1) % 6)),
    "slot outside": lambda d: msgspec.structs.replace(d, target=bent(d.target, slot=1 << 40)),
    "arena": lambda d: msgspec.structs.replace(d, target=bent(d.target, arena=0)),
    "attempt": lambda d: msgspec.structs.replace(d, attempt=d.attempt + 1),
    "request": lambda d: msgspec.structs.replace(d, request=d.request + 1),
}


def bent(ref: SlotRef, **fields: int) -> SlotRef:
    return msgspec.structs.replace(ref, **fields)


@pytest.mark.parametrize("lie", BAD_RESULTS)
def test_a_result_that_does_not_match_the_lease_is_stale_and_the_true_one_counts(
    play: Play, lie: str
) -> None:
    async def scene(stand: Stand) -> None:
        (actor,) = await stand.all_ready()
        channel = stand.submit(b"question", "first")
        work = await actor.work()
        true = actor.result(work)
        actor.say(BAD_RESULTS[lie](true))
        await stand.until(lambda: stand.ledger.stale, "the lie to be counted")
        actor.say(true)
        _, end = await outcome(channel)
        assert isinstance(end, Completed)
        assert end.payload == turned(b"question", "first")
        actor.say(true)  # again: it is over
        await stand.until(lambda: stand.ledger.stale == 2, "the echo to be counted")
        assert stand.ledger.completed == 1
        assert stand.ledger.stages["first"].slots.used == stand.ledger.entry.used == 0

    play(scene, first=1)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"checksum": 1}, "corrupt_slot"),
        ({"length": 3}, "corrupt_slot"),
        ({"length": 1 << 40}, "protocol"),
        ({"length": -1}, "protocol"),
    ],
)
def test_a_result_that_is_not_what_its_descriptor_says_is_never_delivered(
    play: Play, fields: dict[str, int], code: str
) -> None:
    async def scene(stand: Stand) -> None:
        (actor,) = await stand.all_ready()
        channel = stand.submit(b"question", "first")
        done = actor.result(await actor.work())
        actor.say(msgspec.structs.replace(done, target=bent(done.target, **fields)))
        _, end = await outcome(channel)
        assert isinstance(end, Rejected)
        assert end.error.code == code
        assert stand.ledger.stages["first"].slots.used == stand.ledger.entry.used == 0
        actor.held.clear()
        again = stand.submit(b"next", "first")
        actor.finish(await actor.work())
        assert isinstance((await outcome(again))[1], Completed)

    play(scene, first=1)


@pytest.mark.parametrize(
    "numbers",
    [{"compute_s": math.nan}, {"compute_s": math.inf}, {"compute_s": -1.0}, {"batch": -5}, {"credit": -9}],
    ids=str,
)
def test_absurd_numbers_cost_the_worker_its_life_and_not_the_books(
    play: Play, numbers: dict[str, Any]
) -> None:
    async def scene(stand: Stand) -> None:
        (actor,) = await stand.all_ready()
        channel = stand.submit(b"question", "first")
        done = actor.result(await actor.work())
        actor.say(msgspec.structs.replace(done, **numbers))
        await stand.until(lambda: actor.incarnation not in stand.ledger.workers, "its death")
        (replacement,) = await stand.all_ready()
        replacement.finish(await replacement.work())
        assert isinstance((await outcome(channel))[1], Completed)
        assert 0 <= wait_s(stand.ledger, ("first",)) < 1

    play(scene, first=1)


def test_credit_out_of_thin_air_buys_no_more_than_the_limit(play: Play) -> None:
    async def scene(stand: Stand) -> None:
        actor = stand.actor(next(iter(stand.ledger.workers)), credit=1 << 16)
        stage = stand.dispatcher.ledger.stages["speak"]
        await stand.until(stage.workers.copy, "a worker")
        channels = [stand.submit(b"x", "speak") for _ in range(GEOMETRY.slots)]
        for _ in range(GEOMETRY.slots // stage.limit):
            await stand.until(lambda: len(actor.take()) == stage.limit, "as many as may run together")
            assert len({(work.target.slot, work.target.generation) for work in actor.held}) == stage.limit
            for work in list(actor.held):
                actor.finish(work)
        assert all([isinstance((await outcome(channel))[1], Completed) for channel in channels])

    play(scene, speak=1)


def test_tokens_that_skip_or_repeat_never_reach_the_client(play: Play) -> None:
    async def scene(stand: Stand) -> None:
        (actor,) = await stand.all_ready()
        channel = stand.submit(b"x", "speak")
        work = await actor.work()
        actor.say(Tokens(work.request, work.attempt, 0, (1, 2), "ab"))
        actor.say(Tokens(work.request, work.attempt, 1, (2, 3), "bc"))
        await stand.until(lambda: actor.incarnation not in stand.ledger.workers, "its death")
        (replacement,) = await stand.all_ready()
        again = await replacement.work()
        assert (again.resume_tokens, again.resume_characters) == ((1, 2), 2)
        replacement.say(Tokens(again.request, again.attempt, 2, (3,), "c"))
        replacement.finish(again)
        text, end = await outcome(channel)
        assert text == "abc"
        assert isinstance(end, Completed)
        assert end.resumed == 1

    play(scene, speak=1)


def test_a_second_owner_of_a_living_name_is_not_heard(play: Play) -> None:
    async def scene(stand: Stand) -> None:
        (actor,) = await stand.all_ready()
        channel = stand.submit(b"question", "first")
        work = await actor.work()
        impostor = Actor(stand, actor.incarnation)
        impostor.say(Failed(work.request, work.attempt, "bad_request", "a lie"))
        impostor.say(Fault("config", "kill my double"))
        with zmq.Context() as context, context.socket(zmq.DEALER) as nameless:
            nameless.linger = 1000
            nameless.connect(f"ipc://{stand.endpoint}")
            nameless.send(encode(Failed(work.request, work.attempt, "bad_request", "a lie")))
            nameless.send_multipart([b"three", b"frames", b"long"])
            await stand.until(lambda: stand.ledger.stale >= 2, "the nameless to be counted")
        actor.finish(work)
        _, end = await outcome(channel)
        assert isinstance(end, Completed)
        assert end.payload == turned(b"question", "first")
        impostor.link.close(linger_ms=0)

    play(scene, first=1)


def test_words_of_a_dead_worker_that_arrive_late_change_nothing(play: Play) -> None:
    """It was killed in the middle; its link lives on for a while, as a slow socket would."""

    async def scene(stand: Stand) -> None:
        (actor,) = await stand.all_ready()
        channel = stand.submit(b"question", "first")
        work = await actor.work()
        os.kill(stand.dispatcher.processes()[actor.incarnation].pid, signal.SIGKILL)
        await stand.until(lambda: actor.incarnation not in stand.ledger.workers, "its death")
        (replacement,) = await stand.all_ready()
        again = await replacement.work()
        late = actor.result(work, b"too late")
        actor.say(late)
        await stand.until(lambda: stand.ledger.stale, "the late word to be counted")
        replacement.finish(again)
        _, end = await outcome(channel)
        assert isinstance(end, Completed)
        assert end.payload == turned(b"question", "first")

    play(scene, first=1)


@pytest.mark.parametrize("word", ["fault", "tokens"])
def test_the_last_word_of_the_dead_may_be_one_that_would_kill_them(play: Play, word: str) -> None:
    """The death is noticed before the word is read: the doorbell is late."""

    async def scene(stand: Stand) -> None:
        (actor,) = await stand.all_ready()
        channel = stand.submit(b"x", "speak")
        work = await actor.work()
        loop, router = asyncio.get_running_loop(), stand.dispatcher._router
        loop.remove_reader(router.fileno)
        last = (
            Fault("backend", "lost") if word == "fault" else Tokens(work.request, work.attempt, 9, (1,), "x")
        )
        actor.say(last)
        while not router.pending():
            pass
        os.kill(stand.dispatcher.processes()[actor.incarnation].pid, signal.SIGKILL)
        await stand.until(lambda: actor.incarnation not in stand.ledger.workers, "its burial")
        loop.add_reader(router.fileno, stand.dispatcher._listen)
        (replacement,) = await stand.all_ready()
        replacement.finish(await replacement.work())
        assert isinstance((await outcome(channel))[1], Completed)

    play(scene, speak=1)


@pytest.mark.parametrize("then", ["it dies", "something is sent", "time passes"])
def test_a_word_whose_doorbell_is_lost_is_found(
    play: Play, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """The descriptor is edge-triggered: a death, a word sent and every tick look for what it did not say."""
    if then != "time passes":
        monkeypatch.setattr("edged.dispatch.dispatcher.BUSY_TICK_S", 3600.0)
        monkeypatch.setattr("edged.dispatch.dispatcher.IDLE_TICK_S", 3600.0)

    async def scene(stand: Stand) -> None:
        actor, _ = await stand.all_ready()
        channel = stand.submit(b"question", "first")
        work = await actor.work()
        asyncio.get_running_loop().remove_reader(stand.dispatcher._router.fileno)
        actor.finish(work)
        while not stand.dispatcher._router.pending():
            pass
        if then == "it dies":
            os.kill(stand.dispatcher.processes()[actor.incarnation].pid, signal.SIGKILL)
        elif then == "something is sent":
            stand.submit(b"another", "second")
        _, end = await outcome(channel)
        assert isinstance(end, Completed)
        assert end.payload == turned(b"question", "first")
        assert stand.ledger.stale == 0

    play(scene, first=1, second=1)


def test_a_process_that_cannot_be_started_is_started_later(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptors, no memory, no process numbers left: `fork` fails for a while."""
    real, refused = Process.__init__, 0

    def scarce(self: Process, spec: Any) -> None:
        nonlocal refused
        refused += 1
        if refused in {3, 4}:
            raise OSError(24, "Too many open files")
        real(self, spec)

    monkeypatch.setattr(Process, "__init__", scarce)

    async def scene(stand: Stand) -> None:
        one, _ = await stand.all_ready()
        channel = stand.submit(b"question", one.stage)
        await one.work()
        os.kill(stand.dispatcher.processes()[one.incarnation].pid, signal.SIGKILL)
        await stand.until(lambda: refused >= 5 and len(stand.ledger.workers) == 2, "a replacement")
        (replacement,) = await stand.all_ready()
        replacement.finish(await replacement.work())
        assert isinstance((await outcome(channel))[1], Completed)
        assert stand.ledger.stages[one.stage].starting == 0

    play(scene, first=1, second=1)
