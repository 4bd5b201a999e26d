"""How a stage comes back: nothing stays given up, and nobody is blamed for what another did."""

from __future__ import annotations

import pytest

from edged.dispatch.deaths import RETRY_FAILED_S
from edged.dispatch.events import IdleAsked, ReplaceAsked, Ticked
from edged.dispatch.staffing import start, wanted

from .dispatch_world import ROUTE, World

STAGE = ROUTE[-1]


@pytest.fixture
def world() -> World:
    world = World()
    world.all_ready()
    return world


def crash_until_given_up(world: World, worker: str) -> None:
    while STAGE in world.waiting or worker in world.ledger.workers:
        world.now += 1
        if worker in world.ledger.workers:
            world.die(worker)
        if STAGE in world.waiting:
            worker = world.spawn(STAGE)


def with_workers(count: int) -> World:
    world = World()
    stage = world.ledger.stages[STAGE]
    stage.desired = count
    world.do(start(world.ledger, stage))
    world.all_ready()
    return world


def test_a_stage_whose_last_worker_is_leaving_is_down_and_is_tried_again(world: World) -> None:
    """A worker that finishes its last answer does not stand in for replacements that all crashed."""
    world.submit((STAGE,))
    old = world.worker(STAGE)
    (work,) = world.inbox[old]
    world.event(ReplaceAsked(STAGE))
    new = world.spawn(STAGE)
    world.ready(new)
    crash_until_given_up(world, new)
    assert world.ledger.stages[STAGE].failed
    world.done(old, work)
    world.die(old)
    world.now += RETRY_FAILED_S
    world.event(Ticked())
    assert world.waiting == [STAGE]


def test_one_of_two_workers_that_crash_loops_is_tried_again_later() -> None:
    world = with_workers(2)
    stage = world.ledger.stages[STAGE]
    crash_until_given_up(world, min(stage.workers))
    assert stage.trouble
    assert not stage.failed
    world.event(Ticked())
    assert world.waiting == []
    world.now += RETRY_FAILED_S
    world.event(Ticked())
    assert world.waiting == [STAGE]
    world.all_ready()
    for _ in range(3):
        world.now += RETRY_FAILED_S
        world.event(Ticked())
    assert len(stage.workers) == 2
    assert world.waiting == []


def test_a_spawn_that_a_reload_made_superfluous_is_called_off() -> None:
    world = with_workers(3)
    stage = world.ledger.stages[STAGE]
    for worker in sorted(stage.workers):
        world.die(worker)
    assert stage.starting == 3
    stage.desired = 1
    world.event(ReplaceAsked(STAGE))
    assert [wanted(world.ledger, stage) for _ in range(3)] == [False, False, True]
    assert stage.starting == 1


def test_an_idle_worker_that_is_told_to_stop_gets_time_to_do_so(world: World) -> None:
    stage = world.ledger.stages[STAGE]
    stage.timeout_s = 2
    old = world.worker(STAGE)
    world.now += 4
    world.event(ReplaceAsked(STAGE))
    world.ready(world.spawn(STAGE))
    world.event(Ticked())
    assert world.killed == set()
    world.now += 2.1
    world.event(Ticked())
    assert world.killed == {old}


def test_nobody_joins_a_suspect_before_it_has_shown_progress(world: World) -> None:
    suspect = world.submit((STAGE,))
    world.die(world.worker(STAGE))
    worker = world.spawn(STAGE)
    world.ready(worker, 4)
    innocent = world.submit((STAGE,))
    assert [work.request for work in world.inbox[worker]] == [suspect]
    world.say(worker, world.inbox[worker][0], 0, "x")
    assert [work.request for work in world.inbox[worker]] == [suspect, innocent]
    world.die(worker)
    assert world.ledger.requests[suspect].suspicion == 0


def test_an_idle_stage_finishes_what_it_holds_and_starts_nobody_until_it_is_changed() -> None:
    world = with_workers(3)
    stage = world.ledger.stages[STAGE]
    first, crashed, other = sorted(stage.workers)
    held = [world.submit((STAGE,)) for _ in range(3)]
    served = {worker: works[0] for worker in stage.workers if (works := world.inbox[worker])}
    world.die(crashed)
    world.event(IdleAsked(STAGE, "nothing fits", 3))
    assert world.stopped == {first, other}
    assert not wanted(world.ledger, stage)
    for worker in (first, other):
        world.done(worker, served[worker])
        world.die(worker)
    world.now += 10 * RETRY_FAILED_S
    world.event(Ticked())
    assert (stage.workers, stage.starting, stage.failed) == (set(), 0, "nothing fits")
    assert sorted(world.terminals) == sorted(held)
    world.waiting.clear()
    world.event(ReplaceAsked(STAGE))
    assert world.waiting == [STAGE] * 3


def test_work_on_its_way_to_an_idle_stage_is_refused(world: World) -> None:
    request = world.submit(ROUTE[-2:])
    world.event(IdleAsked(STAGE, "nothing fits", 1))
    before = world.worker(ROUTE[-2])
    world.done(before, world.inbox[before][0])
    world.event(Ticked())
    assert world.refusals == {request: "stage_unavailable"}
