"""A change on trial: beside or alone, final with the first worker that is ready, called off otherwise."""

from __future__ import annotations

import pytest

from edged.dispatch.events import CalledOff, GiveUpAsked, ReplaceAsked, ScaleAsked, Spoke, TrialAsked
from edged.dispatch.staffing import start
from edged.messages import Fault

from .dispatch_world import ROUTE, World

STAGE = ROUTE[-1]


@pytest.fixture
def world() -> World:
    world = World()
    world.all_ready()
    return world


def trial(*, alone: bool = False, workers: int = 1, max_batch: int = 5) -> TrialAsked:
    return TrialAsked(stage=STAGE, workers=workers, max_batch=max_batch, alone=alone, guarded=False)


def stage_of(world: World):
    return world.ledger.stages[STAGE]


def test_beside_the_old_one_serves_until_the_new_one_is_ready_and_finishes_what_it_holds(
    world: World,
) -> None:
    world.submit((STAGE,))
    old = world.worker(STAGE)
    (begun,) = world.inbox[old]
    world.event(trial())
    new = world.spawn(STAGE)
    world.submit((STAGE,))
    assert len(world.inbox[old]) == 2
    world.ready(new)
    assert world.stopped == {old}
    assert stage_of(world).trial is None
    world.submit((STAGE,))
    assert len(world.inbox[new]) == 1
    world.done(old, begun)
    assert world.terminals == {begun.request: 1}


def test_alone_the_old_one_is_gone_before_the_new_one_is_started_and_work_waits(world: World) -> None:
    world.submit((STAGE,))
    old = world.worker(STAGE)
    (begun,) = world.inbox[old]
    world.event(trial(alone=True))
    assert (world.stopped, world.waiting) == ({old}, [])
    waiting = world.submit((STAGE,))
    assert len(world.inbox[old]) == 1
    world.done(old, begun)
    assert world.waiting == []
    world.die(old)
    new = world.spawn(STAGE)
    world.ready(new)
    assert [work.request for work in world.inbox[new]] == [waiting]
    assert stage_of(world).restarts == 0


@pytest.mark.parametrize("alone", [False, True])
def test_a_new_one_that_dies_before_it_is_ready_ends_the_trial_at_once(world: World, alone: bool) -> None:
    old = world.worker(STAGE)
    world.event(trial(alone=alone, max_batch=5))
    if alone:
        world.die(old)
    new = world.spawn(STAGE)
    world.event(Spoke(new, Fault("backend", "no memory")))
    assert CalledOff(STAGE) in world.die(new)
    stage = stage_of(world)
    assert (stage.trial, stage.called_off) == (None, ("no memory", "backend"))
    assert (stage.max_batch, stage.failed, stage.restarts) == (2, "", 0)
    assert world.waiting == ([STAGE] if alone else [])
    assert alone or not world.ledger.workers[old].retiring
    world.all_ready()
    request = world.submit((STAGE,))
    (work,) = world.inbox[world.worker(STAGE)]
    world.done(world.worker(STAGE), work)
    assert world.terminals == {request: 1}


def test_an_old_one_that_dies_during_the_trial_does_not_end_it(world: World) -> None:
    old = world.worker(STAGE)
    world.event(trial())
    new = world.spawn(STAGE)
    world.die(old)
    assert stage_of(world).trial is not None
    world.ready(new)
    assert world.waiting == []


def test_a_trial_that_takes_too_long_is_called_off(world: World) -> None:
    old = world.worker(STAGE)
    world.event(trial())
    new = world.spawn(STAGE)
    world.event(GiveUpAsked(STAGE, "too long"))
    assert world.killed == {new}
    world.die(new)
    assert stage_of(world).workers == {old}
    assert world.waiting == []


def test_a_failed_trial_of_a_stage_that_was_down_leaves_it_down_for_the_former_reason() -> None:
    world = World()
    stage = stage_of(world)
    world.all_ready()
    stage.failed, stage.retry_at = "no device", 30.0
    world.die(world.worker(STAGE))
    world.waiting.clear()
    stage.starting = 0
    world.event(trial())
    world.die(world.spawn(STAGE))
    assert (stage.failed, stage.retry_at) == ("no device", 30.0)


def test_more_workers_are_on_trial_too_and_fewer_are_the_idlest(world: World) -> None:
    world.event(ScaleAsked(STAGE, 3))
    assert world.waiting == [STAGE, STAGE]
    world.all_ready()
    world.submit((STAGE,))
    (busy,) = [worker for worker, works in world.inbox.items() if works]
    world.event(ScaleAsked(STAGE, 1))
    assert world.stopped == stage_of(world).workers - {busy}
    for worker in sorted(world.stopped):
        world.die(worker)
    world.event(ScaleAsked(STAGE, 2))
    world.die(world.spawn(STAGE))
    assert (stage_of(world).desired, stage_of(world).workers) == (1, {busy})


def test_alone_a_start_that_was_decided_on_before_waits_for_the_old_ones_to_go(world: World) -> None:
    world.event(ScaleAsked(STAGE, 2))
    old = world.worker(STAGE)
    world.event(trial(alone=True, workers=2))
    assert world.spawn_if_wanted() is None
    world.die(old)
    assert world.waiting == [STAGE, STAGE]


def test_a_crash_of_one_that_was_ready_is_no_verdict_on_more_of_them(world: World) -> None:
    old = world.worker(STAGE)
    world.event(ScaleAsked(STAGE, 2))
    world.die(old)
    assert stage_of(world).desired == 2
    assert sorted(world.waiting) == [STAGE, STAGE]


def test_a_replacement_asked_for_meanwhile_ends_the_trial(world: World) -> None:
    world.do(start(world.ledger, stage_of(world)))
    world.event(trial())
    new = world.spawn(STAGE)
    world.event(ReplaceAsked(STAGE))
    assert new in world.killed
    world.die(new)
    assert stage_of(world).called_off is None
