"""The watch over a plan's rates: only lasting evidence at saturation counts, and it comes and goes slowly."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.placement.aim import Aim
from edged.placement.plan import Planner
from edged.placement.table import Plan
from edged.placement.watch import BACK, LEFT, Expected, Reading, Watch, off, pace
from edged.testing.tables import gateway, limits, wishes

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def plan() -> Plan:
    made = Planner(gateway(), wishes(), limits()).plan(Aim())
    choices = {
        name: msgspec.structs.replace(choice, predicted_rate_per_s=20.0)
        for name, choice in made.choices.items()
    }
    return msgspec.structs.replace(made, predicted_rate_per_s=10.0, choices=choices)


class Stage:
    """The generator, second by second."""

    def __init__(self, plan: Plan, patience_s: float = PATIENCE_S) -> None:
        self.watch, self.patience_s = Watch(plan), patience_s
        self.workers = plan.choices["generator"].workers
        self.now, self.done, self.busy_s = 100.0, 0.0, 0.0

    def run(
        self, seconds: int, per_s: float, *, busy: float = 1.0, queued: int = 3, planned: bool = True
    ) -> list[str]:
        for _ in range(seconds):
            self.now += 1
            self.done += per_s * busy
            self.busy_s += busy * self.workers
            reading = Reading(int(self.done), self.busy_s, self.workers, queued)
            unplanned = () if planned else ("generator",)
            self.watch.look({"generator": reading}, self.now, self.patience_s, unplanned)
        return list(self.watch.complaints())


def test_a_lasting_slowdown_is_told_and_a_lasting_recovery_too(plan):
    stage = Stage(plan)
    assert not stage.run(300, 11)
    assert not stage.run(40, 5)
    assert stage.run(60, 5) == [
        "generator finishes 5 requests per second at saturation instead of at least 10"
    ]
    assert stage.watch.paces()["generator"] == pytest.approx(0.5, rel=0.05)
    assert stage.run(30, 11), "a short recovery changes nothing"
    assert not stage.run(60, 11)


def test_too_fast_is_off_too(plan):
    assert "at most 20" in Stage(plan).run(200, 40)[0]


def test_around_the_threshold_it_does_not_flap(plan):
    stage = Stage(plan)
    assert stage.run(200, 5)
    for _ in range(20):
        assert stage.run(20, 8.0), "between the thresholds nothing changes"
    fresh = Stage(plan)
    for _ in range(20):
        assert not fresh.run(20, 8.0)


@pytest.mark.parametrize("idle", [{"busy": 0.5}, {"queued": 0}])
def test_a_stage_that_is_not_saturated_says_nothing(plan, idle):
    stage = Stage(plan)
    assert not stage.run(1000, 1, **idle)
    assert (stage.watch.paces(), stage.watch.rate_per_s()) == ({}, None)


def test_a_stage_that_finishes_nothing_is_noticed(plan):
    assert "finishes 0 requests" in Stage(plan).run(200, 0)[0]


def test_a_stage_that_runs_otherwise_than_planned_is_not_judged_and_what_was_said_is_forgotten(plan):
    stage = Stage(plan)
    assert stage.run(200, 5)
    assert not stage.run(1, 5, planned=False)
    assert (stage.watch.paces(), stage.watch.rate_per_s()) == ({}, None)
    assert not stage.run(1000, 5, planned=False)
    assert not stage.run(40, 5), "from the beginning, once it runs as planned again"


def test_workers_that_are_missing_or_loading_say_nothing_and_forget_nothing(plan):
    stage = Stage(plan)
    planned = stage.workers
    assert planned == 2
    for workers in (1, 3):
        stage.workers = workers
        assert not stage.run(1000, 5)
    stage.workers = planned
    told = stage.run(200, 5)
    assert "finishes 5 requests per second" in told[0]
    stage.workers = 1
    assert stage.run(1000, 11) == told


def test_switched_off_it_is_silent(plan):
    assert not Stage(plan, patience_s=0).run(1000, 1)


def test_other_counters_begin_another_window(plan):
    stage = Stage(plan)
    stage.run(55, 5)
    stage.done = stage.busy_s = 0.0
    assert not stage.run(1, 5)


rates = st.floats(0.01, 1000)


@given(rates, rates, rates)
def test_whatever_lies_between_the_two_rates_is_as_expected(one, other, third):
    low, middle, high = sorted((one, other, third))
    assert pace(middle, Expected(low, high)) == 1.0
    assert pace(low, Expected(middle, high)) <= 1.0 <= pace(high, Expected(low, middle))


@given(st.floats(0.01, 100))
def test_what_is_back_is_not_off(factor):
    assert off(factor, LEFT) <= off(factor, BACK)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(8.1, 25), st.floats(0, 1), st.integers(0, 5))))
def test_paces_within_the_thresholds_are_never_complained_about(plan, phases):
    stage = Stage(plan)
    for seconds, per_s, busy, queued in phases:
        assert not stage.run(seconds, per_s, busy=busy, queued=queued)
