"""The dispatcher's decisions, without processes: a test for each rule."""

from __future__ import annotations

import pytest

from edged.dispatch.events import (
    Deliver,
    Left,
    ReplaceAsked,
    Send,
    Spoke,
    Ticked,
)
from edged.dispatch.forecast import wait_s
from edged.dispatch.status import stage_reason
from edged.errors import Overloaded, StageUnavailable
from edged.messages import (
    Batch,
    Done,
    Fault,
    SlotRef,
    Work,
)

from .dispatch_world import ROUTE, World


@pytest.fixture
def world() -> World:
    world = World()
    world.all_ready()
    return world


def test_a_request_walks_its_route_and_gives_every_slot_back(world: World) -> None:
    request = world.submit()
    for stage in ROUTE:
        worker = world.worker(stage)
        (work,) = world.inbox[worker]
        assert work.request == request
        world.done(worker, work)
    assert world.terminals == {request: 1}
    assert world.ledger.entry.used == 0
    assert all(stage.slots.used == 0 for stage in world.ledger.stages.values())


def test_a_full_entry_refuses_with_a_predicted_wait() -> None:
    world = World(slots=2)
    world.submit(), world.submit()
    with pytest.raises(Overloaded) as refused:
        world.submit()
    assert refused.value.retry_after_s == 1.0  # nothing was measured yet
    assert world.ledger.entry.used == 2
    assert world.ledger.rejected == {"overloaded": 1}


def test_a_stage_that_nobody_will_start_promises_no_return() -> None:
    world = World()
    stage = world.ledger.stages["rank"]
    stage.failed, stage.retry_at = "it is switched off", float("inf")
    with pytest.raises(StageUnavailable, match="switched off") as refused:
        world.submit()
    assert refused.value.retry_after_s is None
    world.submit(("embed",))


def test_the_predicted_wait_counts_what_is_ahead(world: World) -> None:
    worker = world.worker("speak")
    for _ in range(3):
        world.submit(("speak",))
    work = world.inbox[worker][0]
    world.event(Spoke(worker, Done(work.request, work.attempt, work.target, 4.0, 1)))
    assert wait_s(world.ledger, ("speak",)) == pytest.approx(2 * 4.0 / 2)


def test_no_free_output_slot_means_no_dispatch() -> None:
    world = World(slots=1, max_batch=1)
    world.all_ready()
    world.submit()
    worker = world.worker("embed")
    world.done(worker, world.inbox[worker][0])
    world.submit()
    rank = world.worker("rank")
    assert world.inbox[worker] == []  # its one output slot waits for `rank`
    world.done(rank, world.inbox[rank][0])
    assert len(world.inbox[worker]) == 1


def test_waiting_items_form_one_batch_when_the_worker_is_free(world: World) -> None:
    worker = world.worker("embed")
    first = world.submit()
    others = [world.submit(), world.submit()]
    assert [work.request for work in world.inbox[worker]] == [first]
    sent = world.done(worker, world.inbox[worker][0])
    batches = [
        c.message for c in sent if isinstance(c, Send) and isinstance(c.message, Batch) and c.worker == worker
    ]
    assert [[work.request for work in batch.items] for batch in batches] == [others]


def test_work_of_a_dead_worker_goes_on_in_order_at_the_head(world: World) -> None:
    first = world.submit()
    world.submit(), world.submit()
    world.die(world.worker("embed"), killed=True)
    assert world.ledger.stages["embed"].queue.first() == first
    replacement = world.spawn()
    world.ready(replacement)
    assert world.inbox[replacement][0].request == first
    assert world.inbox[replacement][0].attempt == 2


def test_words_of_the_dead_change_nothing(world: World) -> None:
    world.submit()
    worker = world.worker("embed")
    work = world.inbox[worker][0]
    world.die(worker, killed=True)
    assert world.event(Spoke(worker, Done(work.request, work.attempt, work.target, 0.0, 1))) == []
    assert world.ledger.stale == 1


def test_a_result_under_another_generation_is_dropped(world: World) -> None:
    world.submit()
    worker = world.worker("embed")
    work = world.inbox[worker][0]
    forged = SlotRef(work.target.arena, work.target.slot, work.target.generation + 1)
    world.event(Spoke(worker, Done(work.request, work.attempt, forged, 0.0, 1)))
    assert world.ledger.stale == 1
    assert world.ledger.requests[work.request].stage == "embed"


def at_generator(world: World) -> tuple[int, str, Work]:
    request = world.submit()
    for stage in ROUTE[:2]:
        worker = world.worker(stage)
        world.done(worker, world.inbox[worker][0])
    worker = world.worker("speak")
    return request, worker, world.inbox[worker][-1]


def test_an_answer_is_continued_from_the_tokens_already_sent(world: World) -> None:
    request, worker, work = at_generator(world)
    world.say(worker, work, 0, "abc")
    world.die(worker, killed=True)
    replacement = world.spawn()
    world.ready(replacement)
    (again,) = world.inbox[replacement]
    assert again.resume_tokens == (0, 1, 2)
    assert again.resume_characters == 3
    world.say(replacement, again, 3, "de")
    (deliver,) = [c for c in world.done(replacement, again) if isinstance(c, Deliver)]
    assert world.streams[request] == "abcde"
    assert deliver.resumed == 1


def test_tokens_out_of_order_cost_the_worker_its_life(world: World) -> None:
    _, worker, work = at_generator(world)
    world.say(worker, work, 1, "x")
    assert worker in world.killed
    assert world.streams == {}


def test_two_crashes_without_progress_poison_a_request(world: World) -> None:
    poison = world.submit()
    for _ in range(2):
        world.die(world.worker("embed"))
        if world.waiting:
            world.ready(world.spawn())
    assert world.refusals == {poison: "poisoned"}


def test_kills_from_outside_hardly_count(world: World) -> None:
    request = world.submit()
    for _ in range(15):
        world.die(world.worker("embed"), killed=True)
        world.ready(world.spawn())
    assert world.terminals[request] == 0
    world.die(world.worker("embed"), killed=True)
    assert world.refusals == {request: "poisoned"}


def test_a_suspect_runs_alone_and_the_innocent_survive(world: World) -> None:
    worker = world.worker("embed")
    blocker = world.submit()
    innocent, poison = world.submit(), world.submit()
    world.done(worker, world.inbox[worker][0])
    assert [work.request for work in world.inbox[worker]] == [innocent, poison]
    world.die(worker)
    replacement = world.spawn()
    world.ready(replacement)
    assert [work.request for work in world.inbox[replacement]] == [innocent]
    world.done(replacement, world.inbox[replacement][0])
    assert [work.request for work in world.inbox[replacement]] == [poison]
    world.die(replacement)
    assert world.refusals == {poison: "poisoned"}
    assert blocker in world.ledger.requests


def test_a_crash_loop_gives_up_refuses_and_tries_again_later() -> None:
    world = World()
    waiting = world.submit()
    for _ in range(6):
        world.die(world.spawn("embed"))
    assert world.ledger.stages["embed"].failed
    assert world.refusals == {waiting: "stage_unavailable"}
    with pytest.raises(StageUnavailable):
        world.submit()
    world.now += 31
    world.event(Ticked())
    assert "embed" in world.waiting
    world.ready(world.spawn("embed"))
    world.submit()


def test_a_fault_that_would_repeat_is_not_repeated() -> None:
    world = World()
    worker = world.spawn("embed")
    world.event(Spoke(worker, Fault("config", "no such device")))
    assert worker in world.killed
    world.die(worker)
    assert world.ledger.stages["embed"].failed == "no such device"
    assert "embed" not in world.waiting


def test_a_replacement_takes_over_when_it_is_ready_and_not_before(world: World) -> None:
    old = world.worker("embed")
    world.event(ReplaceAsked("embed"))
    new = world.spawn("embed")
    world.submit()
    assert len(world.inbox[old]) == 1
    world.ready(new)
    assert old in world.stopped
    world.submit()
    assert len(world.inbox[new]) == 1
    world.done(old, world.inbox[old][0])
    world.die(old)
    assert world.waiting == []


def test_a_replacement_that_never_loads_leaves_the_old_worker_serving(world: World) -> None:
    old = world.worker("embed")
    world.event(ReplaceAsked("embed"))
    for _ in range(6):
        world.die(world.spawn("embed"))
    assert world.waiting == []
    assert not world.ledger.stages["embed"].failed
    assert world.ledger.stages["embed"].trouble
    world.submit()
    assert len(world.inbox[old]) == 1


def test_a_silent_worker_with_work_is_killed(world: World) -> None:
    world.submit()
    world.now += 61
    world.event(Ticked())
    assert world.worker("embed") in world.killed


def test_an_idle_worker_is_asked_for_a_sign_of_life(world: World) -> None:
    world.now += 6
    world.event(Ticked())
    world.now += 61
    world.event(Ticked())
    assert world.killed == set(world.ledger.workers)


def test_a_deadline_ends_a_request_once_and_frees_its_slots_when_the_worker_lets_go(world: World) -> None:
    request = world.submit(deadline_s=5.0)
    worker = world.worker("embed")
    work = world.inbox[worker][0]
    world.now = 6.0
    world.event(Ticked())
    assert world.refusals == {request: "deadline_exceeded"}
    assert world.ledger.entry.used == 1
    world.done(worker, work)
    assert world.terminals[request] == 1
    assert world.ledger.entry.used == 0


def test_a_client_that_leaves_frees_a_queued_request_at_once() -> None:
    world = World()
    request = world.submit()
    world.event(Left(request))
    assert world.ledger.entry.used == 0
    assert world.terminals[request] == 0


def test_why_a_worker_died_is_told_until_another_is_ready(world: World) -> None:
    ledger = world.ledger
    stage, lost = ledger.stages["speak"], world.worker("speak")
    world.event(Spoke(lost, Fault("backend", "stage 1 of 2: host box-b has said nothing for 10 s")))
    world.die(lost)
    told = "another worker is started; the last one ended: stage 1 of 2: host box-b has said nothing for 10 s"
    assert stage_reason(ledger, stage) == told
    again = world.spawn("speak")
    assert stage_reason(ledger, stage) == told
    world.ready(again)
    assert not stage_reason(ledger, stage)
    world.die(again, killed=True)
    assert stage_reason(ledger, stage) == "another worker is started; the last one ended: test"
