"""What a pipeline's meter makes of turns, rests and pauses, and what is told of it."""

from __future__ import annotations

import pytest

from edged.layers.account import account
from edged.layers.meter import PAUSE_S, Meter
from edged.layers.share import Share
from edged.layers.spec import Loaded, StageSpec
from edged.layers.wire import Job, Timing

SPECS = tuple(
    StageSpec(stage=number, stages=2, share=Share(first=number, end=number + 1), device="cpu", source="")
    for number in range(2)
)
LOADED = tuple(Loaded(stage=number, weight_bytes=7, cache_bytes=3) for number in range(2))


def job(began_s: float, stage_s: tuple[float, float] = (1.0, 1.0)) -> Job:
    """A micro-batch's turn through both stages."""
    first = Timing(0, began_s, began_s, began_s + stage_s[0], 0.0, 0.0, 0)
    second = Timing(1, began_s, first.ended_s, first.ended_s + stage_s[1], 0.0, 0.0, 8)
    return Job(number=1, lane=0, rows=(), timings=(first, second))


def alone(meter: Meter, count: int, from_s: float = 0.0, stage_s: tuple[float, float] = (1.0, 1.0)) -> float:
    """One micro-batch at a time, its turns at once behind each other; returns when it is over."""
    now_s = from_s
    for _ in range(count):
        meter.turn(now_s, 1)
        meter.begin(now_s)
        meter.turned(now_s + stage_s[0])
        meter.turn(now_s + stage_s[0], 1)
        meter.add(job(now_s, stage_s), 1)
        now_s += sum(stage_s)
        meter.turned(now_s)
    return now_s


def test_one_micro_batch_leaves_half_of_two_stages_idle() -> None:
    meter = Meter(2)
    alone(meter, 10)
    told = account(SPECS, 2, LOADED, {1: 77}, meter)
    assert (told.span_s, told.working_micro_batches, told.tokens) == (20.0, 1.0, 10)
    assert told.bubble == told.bubble_formula == told.bubble_unequal == 0.5
    assert [stage.jobs for stage in told.stages] == [10, 10]
    assert (told.stages[1].pid, told.stages[1].received_bytes, told.stages[1].weight_bytes) == (77, 80, 7)


def test_stages_that_are_unlike_have_a_formula_of_their_own() -> None:
    meter = Meter(2)
    meter.turn(0.0, 2)
    meter.begin(0.0)
    for number in range(10):  # two micro-batches keep the slow stage busy
        meter.add(job(number * 3.0, (1.0, 3.0)), 1)
    meter.turned(30.0)
    told = account(SPECS, 2, LOADED, {}, meter)
    assert told.bubble_formula == 0.0
    assert told.bubble == told.bubble_unequal == pytest.approx(1 / 3)


def test_neither_rest_nor_pause_is_a_bubble() -> None:
    meter = Meter(2)
    over_s = alone(meter, 5)
    meter.rest(over_s)
    meter.turn(over_s + 1000, 0)
    meter.turned(over_s + 1000)
    over_s = alone(meter, 5, over_s + 2000)
    alone(meter, 5, over_s + PAUSE_S + 1)  # not a turn came in between: its owner paused
    told = account(SPECS, 2, LOADED, {}, meter)
    assert told.span_s == pytest.approx(30.0)
    assert told.bubble == pytest.approx(0.5)
    assert told.bubble_formula == pytest.approx(0.5)


def test_nothing_is_said_to_change_while_nothing_happens() -> None:
    meter = Meter(2)
    assert account(SPECS, 2, LOADED, {}, meter) == account(SPECS, 2, LOADED, {}, meter)
    alone(meter, 3)
    told = account(SPECS, 2, LOADED, {}, meter)
    assert told == account(SPECS, 2, LOADED, {}, meter)
    assert told.bubble == 0.5
