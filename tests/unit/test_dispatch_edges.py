"""Lines of the dispatcher that random histories do not reach: each test fails when its line is deleted."""

from __future__ import annotations

from edged.dispatch.events import Kill, ReplaceAsked, Send, Spoke, Ticked
from edged.messages import Fault, Ready, Stop, Tokens

from .test_dispatch import World


def speaking(requests: int = 1) -> tuple[World, str]:
    """A world whose generator holds so many requests."""
    world = World()
    world.all_ready()
    for _ in range(requests):
        world.submit(("speak",))
    return world, world.worker("speak")


def replaced(world: World, dead: str) -> str:
    """Let a worker crash and its replacement announce itself."""
    world.die(dead)
    worker = world.spawn()
    world.ready(worker)
    return worker


def test_a_suspect_waits_until_the_one_beside_it_has_made_progress() -> None:
    world, worker = speaking(requests=2)
    replacement = replaced(world, worker)
    (first,) = world.inbox[replacement]
    world.say(replacement, first, 0, "a")
    assert len(world.inbox[replacement]) == 2


def test_tokens_of_an_earlier_attempt_are_no_progress_of_this_one() -> None:
    world, worker = speaking()
    world.say(worker, world.inbox[worker][0], 0, "abc")
    first = replaced(world, worker)
    second = replaced(world, first)
    world.die(second)
    assert list(world.refusals.values()) == ["poisoned"]


def test_a_token_clears_a_request_of_suspicion() -> None:
    world, worker = speaking()
    replacement = replaced(world, worker)
    for _ in range(3):
        (work,) = world.inbox[replacement]
        count = len(world.ledger.requests[work.request].tokens)
        world.say(replacement, work, count, "a")
        assert world.ledger.requests[work.request].suspicion == 0
        world.ledger.stages["speak"].misfortunes.clear()
        replacement = replaced(world, replacement)
    assert world.refusals == {}


def test_the_silence_of_an_idle_worker_does_not_count_against_it() -> None:
    world, worker = speaking(requests=0)
    world.now += 100
    world.submit(("speak",))
    world.event(Ticked())
    assert worker not in world.killed


def test_a_dying_worker_is_killed_once() -> None:
    world, worker = speaking()
    (command,) = world.event(Spoke(worker, Fault("backend", "lost")))
    assert isinstance(command, Kill)
    assert world.event(Spoke(worker, Fault("backend", "lost again"))) == []
    assert world.ledger.workers[worker].fault == "lost"


def test_words_for_a_client_that_left_are_not_streamed() -> None:
    world, worker = speaking()
    (work,) = world.inbox[worker]
    world.ledger.requests[work.request].deadline = 0.0
    world.event(Ticked())
    assert world.event(Spoke(worker, Tokens(work.request, work.attempt, 0, (1,), "late"))) == []
    assert world.streams == {}


def test_fewer_workers_than_before_leave_no_surplus() -> None:
    world = World()
    world.ledger.stages["speak"].desired = 3
    world.event(ReplaceAsked("speak"))
    world.all_ready()
    old = set(world.ledger.stages["speak"].workers)
    assert len(old) == 3
    world.ledger.stages["speak"].desired = 1
    world.event(ReplaceAsked("speak"))
    world.ready(world.spawn("speak"))
    assert world.stopped >= old


def test_a_worker_is_ready_once() -> None:
    """A second announcement would be credit for nothing, and revive one that was told to stop."""
    world, worker = speaking()
    world.event(ReplaceAsked("speak"))
    sent = world.event(Spoke(world.spawn("speak"), Ready(2, 1, 0.0, {})))
    assert sent == [Send(worker, Stop())]
    world.event(Spoke(worker, Ready(5, 1, 0.0, {})))
    assert (world.ledger.workers[worker].state, world.ledger.workers[worker].credit) == ("stopping", 0)
