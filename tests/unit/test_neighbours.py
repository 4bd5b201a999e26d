"""Cores that other processes take: noticed, smoothed, and ours not counted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.dispatch import surroundings
from edged.dispatch.surroundings import Surroundings
from edged.governor import neighbours
from edged.governor.neighbours import DEAD_BAND, SMOOTHING_S, Neighbours, settled, smoothed
from edged.governor.sensors import TICKS_PER_S, busy_cpu_s, cpu_s

OWN = 1000


class Machine:
    """Two cores whose counters a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.busy_s = self.own_s = 0.0
        monkeypatch.setattr(neighbours, "busy_cpu_s", lambda _: self.busy_s)
        monkeypatch.setattr(neighbours, "cpu_s", lambda _: self.own_s)
        self.watch = Neighbours({0, 1})

    def run(self, seconds: int, *, own: float, others: float) -> list[int]:
        """The answer at each tenth of a second, with so many cores kept busy."""
        answers = []
        for _ in range(seconds * 10):
            self.now += 0.1
            self.own_s += own / 10
            self.busy_s += (own + others) / 10
            answers.append(self.watch.taken([OWN], self.now))
        return answers


def test_our_own_work_is_not_a_neighbour(monkeypatch):
    assert set(Machine(monkeypatch).run(30, own=2.0, others=0.05)) == {0}


def test_a_neighbour_is_noticed_within_seconds_and_missed_when_it_is_gone(monkeypatch):
    machine = Machine(monkeypatch)
    machine.run(5, own=1.0, others=0.0)
    arriving = machine.run(15, own=1.0, others=1.0)
    assert arriving == sorted(arriving)
    assert (arriving[0], arriving[60]) == (0, 1)
    leaving = machine.run(15, own=2.0, others=0.0)
    assert leaving == sorted(leaving, reverse=True)
    assert (leaving[0], leaving[60]) == (1, 0)


def test_a_burst_of_a_second_changes_nothing(monkeypatch):
    machine = Machine(monkeypatch)
    machine.run(5, own=0.0, others=0.0)
    assert set(machine.run(1, own=0.0, others=2.0) + machine.run(9, own=0.0, others=0.0)) == {0}


def test_a_worker_that_dies_between_two_looks_takes_no_core_away(monkeypatch):
    machine = Machine(monkeypatch)
    machine.run(5, own=1.0, others=0.0)
    machine.own_s = 0.0
    assert machine.watch.taken([OWN], machine.now + 2.0) == 0


@given(st.integers(0, 8), st.floats(0, 8))
def test_a_settled_number_is_near_the_estimate_and_stays(before, estimate):
    after = settled(before, estimate)
    assert abs(after - estimate) <= DEAD_BAND
    assert settled(after, estimate) == after


@given(st.floats(0, 8), st.floats(0, 8), st.floats(0.01, 100))
def test_smoothing_goes_towards_what_was_measured_and_not_beyond(before, measured, elapsed_s):
    after = smoothed(before, measured, elapsed_s)
    assert min(before, measured) - 1e-9 <= after <= max(before, measured) + 1e-9
    assert smoothed(0.0, 1.0, SMOOTHING_S) == pytest.approx(0.632, abs=0.001)


def test_the_real_counters_grow_with_work():
    cores = os.sched_getaffinity(0)
    busy_before, own_before = busy_cpu_s(cores), cpu_s(os.getpid())
    while cpu_s(os.getpid()) < own_before + 0.1:
        sum(range(100_000))
    assert busy_cpu_s(cores) >= busy_before + 0.05
    assert cpu_s(1 << 22) == 0.0
    assert cpu_s(0) == 0.0, "nobody, not this process"


def test_work_of_less_than_a_tick_counts():
    own = [cpu_s(os.getpid()) for _ in range(1000)]
    assert 0 < own[-1] - own[0] < 1000 / TICKS_PER_S
    assert len(set(own)) > 500


STAT = """cpu  350 20 30 4000 500 6 7 8 90 9
cpu0 100 10 20 3000 400 5 6 7 80 8
cpu2 200 10 10 1000 100 1 1 1 10 1
intr 5 0 1
ctxt 1

btime 1700000000
"""


def test_cores_are_read_by_their_numbers_and_one_that_is_offline_was_never_busy(tmp_path: Path):
    stat = tmp_path / "stat"
    stat.write_text(STAT)
    first, third = 100 + 10 + 20 + 5 + 6 + 7, 200 + 10 + 10 + 1 + 1 + 1
    assert busy_cpu_s({0, 1, 2}, stat) == pytest.approx((first + third) / TICKS_PER_S)
    assert busy_cpu_s({2}, stat) == pytest.approx(third / TICKS_PER_S)
    assert busy_cpu_s({1, 4}, stat) == 0.0


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), ValueError("not a number")])
def test_while_the_machine_cannot_be_read_the_last_readings_stand(monkeypatch, error):
    machine = Machine(monkeypatch)
    monkeypatch.setattr(surroundings, "Neighbours", lambda _: machine.watch)
    around = Surroundings()
    machine.run(10, own=0.0, others=1.0)
    assert around.look({}, busy=True, now=machine.now + 1.0) is not None
    assert around.taken == 1

    def fail(_: object) -> float:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(neighbours, "busy_cpu_s", fail)
        assert around.look({}, busy=True, now=machine.now + 3.0) is None
        assert around.taken == 1
    machine.now += 3.0
    machine.run(15, own=0.0, others=0.0)
    assert around.look({}, busy=True, now=machine.now + 1.0) is not None
    assert around.taken == 0
