"""Lines of the dispatcher that random histories do not reach: each test fails when its line is deleted."""

from __future__ import annotations

import pytest

from edged.dispatch.admission import admit, enqueue
from edged.dispatch.events import Kill, Left, ReplaceAsked, Send, Spoke, Ticked, Waited
from edged.dispatch.queues import SLACK
from edged.dispatch.requests import Submission
from edged.errors import DeadlineUnmeetable
from edged.messages import Done, Fault, Ready, Stop, Tokens

from .dispatch_world import World


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


def batches_measured(world: World, worker: str, item_s: float = 0.5) -> None:
    """Let a worker's stage learn from full batches."""
    for _ in range(5):
        asked = Submission(route=("rank",), operation="chat", payload=b"", deadline_s=1e9)
        for request in [admit(world.ledger, asked, world.now) for _ in range(16)]:
            enqueue(world.ledger, request, request.source, world.now)
        world.event(Waited())
        batch, world.inbox[worker] = world.inbox[worker], []
        world.now += item_s * len(batch)
        for work in batch:
            world.event(Spoke(worker, Done(work.request, work.attempt, work.target, item_s, len(batch))))


@pytest.fixture
def ranking() -> World:
    world = World(slots=32, max_batch=16)
    while world.waiting:
        world.ready(world.spawn(), credit=16)
    batches_measured(world, world.worker("rank"))
    assert world.ledger.stages["rank"].service_s == pytest.approx(8.0)
    return world


def test_a_lone_request_is_judged_by_what_it_takes_alone(ranking: World) -> None:
    ranking.now += 0.1
    request = ranking.submit(("rank",), deadline_s=3.0, firm=True)
    assert [work.request for work in ranking.inbox[ranking.worker("rank")]] == [request]


def test_one_more_of_a_batch_is_judged_by_the_batch(ranking: World) -> None:
    for _ in range(9):
        ranking.submit(("rank",), deadline_s=2.9)
    with pytest.raises(DeadlineUnmeetable):
        ranking.submit(("rank",), deadline_s=3.0, firm=True)


def test_a_busy_stage_that_has_finished_nothing_for_long_predicts_nothing(ranking: World) -> None:
    """One long-running item beside it: what was measured an hour ago says nothing about today."""
    ranking.now += 3600.0
    for _ in range(9):
        ranking.submit(("rank",), deadline_s=2.9)
    ranking.now += 0.001
    ranking.submit(("rank",), deadline_s=3.0, firm=True)


def test_a_changed_stage_learns_anew_when_its_first_new_worker_is_ready(ranking: World) -> None:
    stage = ranking.ledger.stages["rank"]
    control = stage.control
    stage.changed = True
    ranking.event(ReplaceAsked("rank"))
    assert stage.services > 0, "the old workers still serve as they did"
    worker = ranking.spawn("rank")
    ranking.ready(worker, credit=16)
    assert (stage.services, stage.service_s, stage.item_s, stage.spread_s) == (0, 0.0, 0.0, 0.0)
    assert stage.control is not control
    batches_measured(ranking, worker, item_s=0.01)
    services = stage.services
    ranking.event(ReplaceAsked("rank"))
    ranking.ready(ranking.spawn("rank"), credit=16)
    assert stage.services == services > 0, "only a change makes it forget"


def test_clients_that_leave_the_middle_of_a_queue_leave_nothing_behind() -> None:
    world = World(slots=8, max_batch=1)
    world.all_ready()
    _, *waiting = [world.submit(("rank",)) for _ in range(3)]
    for _ in range(500):
        world.event(Left(world.submit(("rank",), deadline_s=2e9)))
    line = world.ledger.stages["rank"].queue.line("interactive")
    assert len(line._heap) < 3 * SLACK
    assert list(line) == waiting
