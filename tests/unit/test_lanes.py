"""Runs side by side whose number changes while they go on."""

from __future__ import annotations

import threading

import pytest
from edged_backends.lanes import Lanes


class Runs:
    """Runs that wait until so many others go on at the same time."""

    def __init__(self) -> None:
        self.others: list[int] = []
        self._together = threading.Barrier(2, timeout=10)

    def meet(self, number: int) -> int:
        """A run that ends once another one is at work beside it."""
        self._together.wait()
        return self.note(number)

    def note(self, number: int) -> int:
        self.others.append(threading.get_ident())
        return number


def test_a_lane_more_is_opened_while_runs_go_on():
    lanes, runs = Lanes(2), Runs()
    lanes.limit(1)
    lanes.attend(lambda: lanes.limit(2) if runs.others else None)
    given = [runs.note, *[runs.meet] * 4]
    assert lanes.each(lambda number: given[number](number), range(5)) == [0, 1, 2, 3, 4]
    assert len(set(runs.others)) == 2


def test_a_lane_is_closed_while_runs_go_on_and_opened_again():
    lanes, me = Lanes(2), threading.get_ident()
    both, closed, helped = threading.Barrier(2, timeout=10), threading.Event(), threading.Event()
    alone, done = range(2, 8), dict[int, int]()

    def look() -> None:
        if len(done) in {1, 2}:  # the other's first run goes on until it may take no more
            lanes.limit(1)
            closed.set()
        if len(done) >= len(alone) + 2:
            lanes.limit(2)

    def run(number: int) -> None:
        mine = threading.get_ident() == me
        if number < alone.start:
            both.wait()
            assert mine or closed.wait(10)
        elif number < alone.stop:
            helped.wait(0.02)  # time enough for a lane that was not closed to take the next
        else:
            helped.wait(0.05) if mine else helped.set()
        done[number] = threading.get_ident()

    lanes.attend(look)
    lanes.each(run, range(200))
    assert {done[number] for number in alone} == {me}
    assert helped.is_set()


def test_no_more_lanes_than_there_are_and_never_none():
    lanes, runs = Lanes(1), Runs()
    for count in (5, 0):
        lanes.limit(count)
        assert lanes.each(runs.note, range(3)) == [0, 1, 2]
    assert set(runs.others) == {threading.get_ident()}


@pytest.mark.parametrize("bad", [0, 3])
def test_a_run_that_fails_in_any_lane_is_raised(bad):
    def run(number: int) -> int:
        if number == bad:
            raise ValueError(number)
        return number

    for most in (1, 2):
        with pytest.raises(ValueError, match=str(bad)):
            Lanes(most).each(run, range(4))
