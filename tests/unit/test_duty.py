"""Work in a share of the time: the share holds however long the batches are, and everything is answered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.dispatch.duty import MOST_DEBT_S, PERIOD_S, Duty
from edged.dispatch.events import Send, Waited, Wake
from edged.messages import Batch, Cores

from .dispatch_world import World

shares = st.floats(0.05, 0.95)


class Box:
    """Work without end, in batches of given lengths; `duty` says when the next may begin."""

    def __init__(self, share: float) -> None:
        self.duty, self.now, self.worked_s = Duty(share=share), 0.0, 0.0

    def work(self, batch_s: float) -> None:
        self.duty.look(self.now)
        while self.duty.resting:
            self.duty.working = False
            due_s = self.duty.due_s()
            assert due_s is not None
            assert due_s > self.now
            self.now = due_s
            self.duty.look(self.now)
        self.duty.working = True
        self.now += batch_s
        self.worked_s += batch_s
        self.duty.look(self.now)
        self.duty.working = False


@given(share=shares, batches=st.lists(st.floats(0.001, 1.5), min_size=20, max_size=60))
def test_the_share_holds_however_long_batches_are(share, batches):
    box = Box(share)
    for batch_s in batches:
        box.work(batch_s)
    rest_of_the_last_s = max(batches) / share + 2 * PERIOD_S
    assert box.worked_s <= share * (box.now + rest_of_the_last_s) + 1e-6
    assert box.worked_s >= share * box.now - PERIOD_S - 1e-6, "nor is time given away"


@given(share=shares, began=st.floats(0, 1e6))
def test_a_stream_stands_still_for_less_than_a_period(share, began):
    duty = Duty(share=share, at_s=began)
    now, paused_s = began, 0.0
    for _ in range(50):
        duty.look(now)
        duty.working = not duty.resting
        due_s = duty.due_s()
        assert due_s is not None
        if duty.resting:
            paused_s = max(paused_s, due_s - now)
        now = max(due_s, now + 1e-6)
    assert paused_s <= PERIOD_S * (1 - share) + 1e-3


def test_no_rest_pays_back_more_than_the_most_debt():
    duty = Duty(share=0.5, working=True)
    duty.look(1000.0)
    assert duty.due_s() <= 1000.0 + (MOST_DEBT_S + PERIOD_S) / 0.5


def test_without_a_share_nothing_rests_and_nobody_is_woken():
    duty = Duty(working=True)
    duty.look(1e6)
    assert (duty.resting, duty.due_s()) == (False, None)


def told(commands, kind):
    sent = [command.message for command in commands if isinstance(command, Send)]
    return [message for message in sent if isinstance(message, kind)]


def work(world: World) -> None:
    """Whoever is not paused ends what he holds."""
    for name, held in world.inbox.items():
        if world.ledger.workers[name].cores != 0:
            for each in list(held):
                world.done(name, each)


def test_while_it_rests_no_batch_is_handed_out_and_then_it_goes_on():
    world = World()
    world.all_ready()
    duty = world.ledger.duty
    duty.share, duty.resting = 0.5, True
    world.submit()
    assert not any(world.inbox.values())
    commands = world.event(Waited())
    (wake,) = [command for command in commands if isinstance(command, Wake)]
    assert wake.at > world.now
    world.now = wake.at
    commands = world.event(Waited())
    assert told(commands, Batch), "the rest is over"
    assert all(cores.count for cores in told(commands, Cores))


def test_a_token_is_enough_for_a_rest_to_begin():
    world = World()
    world.all_ready()
    world.ledger.duty.share, world.ledger.duty.budget_s = 0.5, 0.25
    world.submit(("speak",))
    speaker = world.worker("speak")
    (answer,) = world.inbox[speaker]
    world.now += 2.0
    world.say(speaker, answer, 0, "x")
    assert world.ledger.workers[speaker].cores == 0


def test_a_drain_does_not_rest():
    world = World()
    world.all_ready()
    world.ledger.duty.share, world.ledger.duty.resting = 0.15, True
    world.submit()
    world.ledger.draining = True
    assert told(world.event(Waited()), Batch)


@pytest.mark.parametrize("share", [0.15, 0.5])
def test_all_is_answered_at_any_share_and_cores_come_back(share):
    world = World()
    world.all_ready()
    world.ledger.duty.share = share
    for _ in range(4):
        world.submit()
    for _ in range(400):
        world.now += 0.05
        world.event(Waited())
        work(world)
    assert (len(world.terminals), set(world.terminals.values())) == (4, {1})
    assert not world.ledger.requests
    world.ledger.duty.share = 1.0
    world.event(Waited())
    world.submit()
    assert all(worker.cores != 0 for worker in world.ledger.workers.values())
