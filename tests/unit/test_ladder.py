"""The governor's decisions, one situation at a time."""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import pytest
from msgspec.structs import replace

from edged.config import Governor
from edged.config.tables import Rung
from edged.governor.bands import Reading, policy_of
from edged.governor.events import (
    AnyEvent,
    Cause,
    Command,
    Confirmed,
    GoTo,
    Offered,
    Pinned,
    Refused,
    Released,
    Sampled,
)
from edged.governor.ladder import GAP_S, LONGEST_REFUSED_S, REFUSED_S, REPEAT_S, State, carried, decide
from tests.unit.governing import CPU, POLICY, World, sampled

FLOOR = POLICY.floor
ENTER_1, LEAVE_1 = CPU.limits[0].enter, CPU.limits[0].leave


def test_a_cool_box_stays_at_its_best():
    world = World()
    world.feel(50.0, 600)
    assert not world.said


def test_one_rung_at_a_time_and_the_reading_behind_it():
    world = World()
    world.feel(CPU.limits[2].enter + 1, 20)
    (step,) = world.steps
    assert (step.rung, step.name, step.before) == (1, "fewer-passages", 0)
    assert step.cause == Cause(
        "entered", "temperature.cpu", CPU.limits[2].enter + 1, None, CPU.limits[2].enter
    )
    world.feel(CPU.limits[2].enter + 1, 200)
    assert [step.rung for step in world.steps] == [1, 2, 3]
    assert [b.at_s - a.at_s for a, b in pairwise(world.steps)] == [POLICY.dwell_s] * 2


def test_a_single_hot_sample_is_a_glitch():
    world = World()
    for celsius in (50.0, 140.0, 50.0, 149.0, 50.0):
        world.feel(celsius)
    assert not world.steps


def test_it_descends_before_the_limit_when_the_prediction_says_so():
    world = World()
    world.feel(ENTER_1 - 3, 5, predicted=ENTER_1 + 1)
    (step,) = world.steps
    assert (step.rung, step.cause.why, step.cause.predicted) == (1, "predicted", ENTER_1 + 1)


def test_a_wrong_prediction_costs_one_rung_only():
    world = World()
    world.feel(50.0, 3600, predicted=149.0)
    assert [step.rung for step in world.steps] == [1]


def test_no_climb_while_the_prediction_is_hot():
    world = World()
    world.feel(ENTER_1 + 1, 5)
    world.feel(LEAVE_1 - 2, 1200, predicted=LEAVE_1 + 1)
    assert world.rung == "fewer-passages"
    world.feel(LEAVE_1 - 2, 300, predicted=LEAVE_1 - 1)
    assert world.rung == "full"
    assert world.steps[-1].cause == Cause("left", "temperature.cpu", LEAVE_1 - 2, LEAVE_1 - 1, LEAVE_1)


def test_between_the_limits_nothing_changes():
    world = World()
    world.feel(ENTER_1 + 1, 5)
    world.feel(LEAVE_1 + 1, 7200, step=5)
    assert len(world.steps) == 1


def test_a_critical_temperature_takes_the_floor_at_once():
    world = World()
    world.feel(CPU.critical, 3)
    (step,) = world.steps
    assert (step.rung, step.cause.why, step.cause.limit) == (FLOOR, "critical", CPU.critical)


def test_a_critical_temperature_overtakes_a_step_that_is_under_way():
    world = World(confirms=False)
    world.feel(ENTER_1 + 1, 5)
    world.feel(CPU.critical + 1, 5)
    assert [step.rung for step in world.steps] == [1, FLOOR]


def test_heat_that_overtakes_an_operators_climb_is_told_as_heat():
    world = World()
    world.feel(CPU.critical, 3)
    world.confirms = False
    world.hear(Pinned(at_s=world.now, rung=0))
    world.hear(Released(at_s=world.now))
    world.feel(CPU.critical, 3)
    step = world.steps[-1]
    assert (step.rung, step.cause.why, step.cause.limit) == (FLOOR, "critical", CPU.critical)


def climbing(hot_c: float) -> World:
    """On its way up to the second rung, which nobody confirms."""
    world = World()
    world.feel(hot_c, 400)
    assert world.state.rung == 3
    world.confirms = False
    world.feel(LEAVE_1 - 5, int(POLICY.climb_after_s) + 30)
    assert (world.state.rung, world.state.asked.rung) == (3, 2)
    return world


@pytest.mark.parametrize("again_c", [CPU.limits[2].enter + 1, CPU.critical - 0.1])
def test_heat_takes_a_climb_back_that_nobody_has_confirmed(again_c):
    world = climbing(CPU.limits[2].enter + 1)
    climb = world.steps[-1]
    world.feel(again_c, int(POLICY.dwell_s) + 10)
    back = world.steps[-1]
    assert (back.rung, back.before, back.cause.why) == (3, 2, "entered")
    assert back.at_s - climb.at_s >= POLICY.dwell_s
    assert world.state.proof.rung == 2, "a climb that was undone"


def test_a_climb_that_the_operator_asked_for_is_waited_for():
    world = climbing(CPU.limits[2].enter + 1)
    world.hear(Pinned(at_s=world.now, rung=2))
    world.feel(CPU.critical - 0.1, 600)
    assert world.state.asked.rung == 2


def test_it_returns_step_by_step():
    world = World()
    world.feel(CPU.critical, 3)
    world.feel(30.0, FLOOR * int(POLICY.climb_after_s) + 60)
    assert world.rung == "full"
    assert [step.rung for step in world.steps] == [FLOOR, *range(FLOOR - 1, -1, -1)]


@pytest.mark.parametrize("bad", [-89.7, 151.0, math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("held", [50.0, CPU.limits[1].enter + 1])
def test_an_unknown_reading_changes_nothing_and_is_reported_once(bad, held):
    world = World()
    world.feel(held, 200)
    before = world.rung
    world.said.clear()
    world.feel(bad, 3600, step=5)
    assert (world.rung, world.steps) == (before, [])
    (report,) = world.reports
    assert report.what == "temperature.cpu"
    assert report.why
    world.feel(held, 2)
    assert [report.why for report in world.reports][1:] == [""]


def test_a_sensor_that_vanishes_changes_nothing_and_is_reported():
    world = World()
    world.feel(CPU.limits[1].enter + 1, 200)
    world.said.clear()
    for _ in range(600):
        world.now += 5
        world.hear(Sampled(at_s=world.now))
    assert not world.steps
    assert [report.why for report in world.reports] == ["the reading has vanished"]


def test_releasing_forgets_what_a_vanished_sensor_asked_for():
    world = World()
    world.feel(ENTER_1 + 1, 5)
    world.feel(None, 10)
    world.hear(Released(at_s=world.now))
    world.feel(None, 300)
    assert world.rung == "full"


def test_the_signal_that_asks_for_most_counts():
    world = World()
    for second in range(200):
        world.hear(sampled(float(second), ENTER_1 + 1, load=Reading(0.97), memory=Reading(0.5)))
    assert world.rung == "shed-batch"
    assert {step.cause.signal for step in world.steps} == {"load"}


def test_a_device_that_has_no_bands_is_not_watched():
    world = World()
    for second in range(100):
        hot = {"toaster": Reading(140.0), "nvme0": Reading(30.0), "cuda:0": Reading(149.0)}
        world.hear(Sampled(at_s=float(second), temperatures=hot))
    assert (world.said, list(world.state.standings)) == ([], ["temperature.nvme0"])


def test_a_pin_holds_and_the_floor_bounds_it():
    policy = policy_of(Governor(floor="no-rerank"))
    world = World(policy)
    assert isinstance(world.hear(Pinned(at_s=0.0, rung=99))[0], GoTo)
    assert world.rung == "no-rerank"
    assert not world.hear(Pinned(at_s=1.0, rung=4))
    world.hear(Pinned(at_s=2.0, rung=0))
    world.feel(CPU.critical + 5, 600)
    assert (world.rung, world.steps[-1].cause.why) == ("full", "pinned")
    world.hear(Released(at_s=world.now))
    world.feel(CPU.critical + 5, 3)
    assert world.rung == "no-rerank"


def test_never_below_the_floor():
    world = World(policy_of(Governor(floor="shorter-answers")))
    world.feel(CPU.critical + 10, 3600)
    assert max(step.rung for step in world.steps) == 2


def test_a_rung_that_cannot_be_taken_is_left_out():
    world = World()
    world.hear(Offered(at_s=0.0, rung=2, available=False))
    world.feel(CPU.limits[2].enter + 1, 200)
    assert [step.rung for step in world.steps] == [1, 3]
    world.hear(Offered(at_s=world.now, rung=2, available=True))
    world.feel(50.0, 600)
    assert [step.rung for step in world.steps] == [1, 3, 2, 1, 0]


def test_a_rung_that_goes_away_while_it_is_in_force_is_left_for_the_one_that_the_other_limits_ask_for():
    world = World()
    world.feel(CPU.limits[1].enter + 1, 100)
    world.hear(Offered(at_s=world.now, rung=2, available=False))
    world.feel(CPU.limits[1].enter + 1, 100)
    assert world.state.rung == 2, "a step up waits"
    world.feel(CPU.limits[1].enter + 1, int(POLICY.climb_after_s))
    assert world.state.rung == 1
    world.feel(CPU.limits[2].enter + 1, 100)
    assert world.state.rung == 3


def test_the_limits_of_a_rung_that_cannot_be_taken_count_for_nothing_while_lower_ones_are_left():
    world = World()
    world.hear(Offered(at_s=0.0, rung=2, available=False))
    world.feel(CPU.limits[2].enter - 0.5, 600)
    assert world.state.rung == 1
    world.feel(CPU.limits[2].enter + 1, 100)
    assert world.state.rung == 3
    world.feel(CPU.limits[2].leave - 1, 2 * int(POLICY.climb_after_s))
    assert world.state.rung == 1


def test_where_the_last_rungs_are_missing_the_lowest_possible_is_taken():
    world = World()
    for rung in range(FLOOR - 1, FLOOR + 1):
        world.hear(Offered(at_s=0.0, rung=rung, available=False))
    world.feel(CPU.limits[-1].enter + 1, 600)
    assert world.state.rung == FLOOR - 2


def test_a_refused_rung_is_reported_and_tried_again_later():
    world = World(confirms=False)
    world.feel(ENTER_1 + 1, 5)
    (report,) = world.hear(Refused(at_s=world.now, rung=1, why="no memory"))
    assert (report.what, report.why) == ("rung fewer-passages", "no memory")
    assert world.state.rung == 0
    world.said.clear()
    world.feel(ENTER_1 + 1, int(POLICY.dwell_s) + 5)
    assert [step.rung for step in world.steps] == [2]
    world.hear(Confirmed(at_s=world.now, rung=2))
    world.feel(ENTER_1 + 1, int(REFUSED_S + POLICY.climb_after_s))
    assert [step.rung for step in world.steps] == [2, 1]


def test_a_rung_that_is_refused_again_and_again_is_left_out_twice_as_long_until_it_was_in_force():
    world, out_s = World(), []
    for at_s in (0.0, 1e4, 2e4, 3e4, 4e4, 5e4):
        world.hear(Refused(at_s=at_s, rung=3, why="no memory"))
        out_s.append(world.state.refusals[3].until_s - at_s)
    assert out_s == [REFUSED_S * factor for factor in (1, 2, 4, 8)] + [LONGEST_REFUSED_S] * 2
    world.hear(Confirmed(at_s=6e4, rung=4))
    world.hear(Refused(at_s=6e4, rung=3, why="no memory"))
    assert world.state.refusals[3].until_s - 6e4 == LONGEST_REFUSED_S, "rung 4 is in force without it"
    world.now = 7e4
    world.feel(LEAVE_1 - 5)
    world.hear(Confirmed(at_s=world.now, rung=3, whole=False))
    world.hear(Refused(at_s=world.now, rung=3, why="no memory"))
    assert world.state.refusals[3].until_s - world.now == LONGEST_REFUSED_S, "its variants were still loading"
    world.now = 7.5e4
    world.feel(LEAVE_1 - 5)
    world.hear(Confirmed(at_s=world.now, rung=3))
    world.hear(Refused(at_s=8e4, rung=3, why="no memory"))
    assert world.state.refusals[3].until_s - 8e4 == REFUSED_S


def test_a_pin_gives_refused_rungs_another_try_but_not_those_that_cannot_be_taken():
    world = World()
    world.hear(Offered(at_s=0.0, rung=5, available=False))
    world.hear(Refused(at_s=1.0, rung=3, why="no memory"))
    world.hear(Pinned(at_s=2.0, rung=4))
    assert world.state.barred == {5}


def test_a_command_that_nobody_confirms_is_said_again_word_for_word():
    world = World(confirms=False)
    world.feel(ENTER_1 + 1, int(3 * REPEAT_S))
    assert len(world.steps) == 3
    assert len(set(map(msgspec.json.encode, world.steps))) == 1


def test_confirming_twice_is_confirming_once():
    world = World(confirms=False)
    world.feel(ENTER_1 + 1, 5)
    world.hear(Confirmed(at_s=6.0, rung=1))
    once = world.state
    world.hear(Confirmed(at_s=7.0, rung=1))
    assert world.state == once


def test_samples_out_of_order_are_ignored():
    world = World()
    world.feel(50.0, 10)
    before = world.state
    for at_s in (10.0, 9.0, -1.0, math.nan, math.inf):
        assert not world.hear(sampled(at_s, 140.0))
    assert world.state == before


def test_time_asleep_is_no_time_of_calm():
    world = World()
    world.feel(ENTER_1 + 1, 40)
    world.feel(50.0, 10)
    world.now += GAP_S + POLICY.climb_after_s
    world.feel(50.0, int(POLICY.climb_after_s) - 10)
    assert world.rung == "fewer-passages"
    world.feel(50.0, 20)
    assert world.rung == "full"


class HotRung(World):
    """The best rung heats to `hot_c`, every other cools to `cool_c`."""

    def live(self, hot_c: float, cool_c: float, seconds: int) -> None:
        for _ in range(0, seconds, 5):
            self.now += 5
            self.hear(sampled(self.now, hot_c if self.state.rung == 0 else cool_c))


def test_a_climb_that_was_undone_is_not_tried_again_for_an_hour():
    world = HotRung()
    world.live(ENTER_1 + 1, LEAVE_1 - 2, 4 * 3600)
    assert len(world.steps) / 4 <= 2.5
    hours = [step.at_s for step in world.steps if step.rung == 0]
    assert all(b - a >= POLICY.retry_s for a, b in pairwise(hours))


def test_it_is_tried_at_once_when_it_has_become_cooler():
    world = HotRung()
    world.live(ENTER_1 + 1, LEAVE_1 - 2, 900)
    assert world.rung == "fewer-passages"
    world.live(LEAVE_1 - 1, LEAVE_1 - 2 - CPU.margin, 300)
    assert world.rung == "full"


def test_another_ladder_goes_on_at_the_rung_of_the_same_name():
    after = policy_of(Governor(floor="shorter-answers"))
    state = State(rung=4, pin=5)
    moved = carried(state, POLICY, after)
    assert (moved.rung, moved.pin) == (4, 2)
    assert decide(after, moved, sampled(1.0, 50.0))[1][0].rung == 2
    short = policy_of(
        Governor(
            ladder=(Rung(name="best"), Rung(name="no-rerank")), load=(), memory=(), stall=(), temperature={}
        )
    )
    assert carried(replace(state, pin=None), POLICY, short).rung == 1


@pytest.mark.parametrize(
    "event", [sampled(1.0, 50.0, 55.0), Pinned(at_s=1.0, rung=2), Refused(at_s=2.0, rung=1, why="no")]
)
def test_events_and_commands_survive_a_log(event):
    assert msgspec.json.decode(msgspec.json.encode(event), type=AnyEvent) == event
    command = GoTo(1, "x", 0, 3.0, Cause("left"))
    assert msgspec.json.decode(msgspec.json.encode(command), type=Command) == command
