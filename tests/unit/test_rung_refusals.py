"""What `edgectl ladder measure` says of itself: why it does not begin, how far it is, what it keeps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edged.cli.ladder_progress import made_so_far, measured_so_far
from edged.config import Governor
from edged.errors import BadRequest, Overloaded, Shed
from edged.report import Decision, GovernorStatus
from edged.rungs.invent import Making
from edged.rungs.measure import Stand
from edged.rungs.prepare import _differences
from edged.rungs.quiet import check_quiet
from edged.rungs.record import Question

from .rungs_world import recorded

LADDER = tuple(Governor().ladder)
SHORTER = GovernorStatus(rung=2, name="shorter-answers", why="", since_s=1.0, ladder=LADDER)
HOT = Decision(at=1.0, what="down", rung="shorter-answers", why="temperature.cpu reached 72 °C (73)")
CALM = Decision(at=2.0, what="up", rung="shorter-answers", why="load is below 0.2 (0)")
FREED = Decision(at=3.0, what="released", rung="shorter-answers", why="by the operator")
OFFERED = Decision(at=4.0, what="offered", rung="peer", why="it can be taken from now on")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([CALM, HOT, OFFERED], "has gone down to 'shorter-answers' .temperature.cpu reached 72"),
        ([HOT, CALM], "is on its way up and has come to 'shorter-answers' .load is below 0.2"),
        ([CALM, FREED], "rung 'shorter-answers' was pinned and released"),
        ([], "the governor is on 'shorter-answers',"),
    ],
)
def test_why_the_governor_is_down_fits_the_way_it_came(rows, says):
    with pytest.raises(Shed, match=says) as refused:
        check_quiet(0, SHORTER, rows, 60.0)
    assert "'full' in 120 s at the earliest" in refused.value.message
    assert "edgectl governor pin full" in refused.value.message
    assert "--while-serving" in refused.value.message
    assert refused.value.retry_after_s == 120.0


def test_a_rung_that_cannot_be_taken_costs_no_time_on_the_way_up():
    with pytest.raises(Shed, match="in 60 s"):
        check_quiet(0, replace(SHORTER, unavailable={"fewer-passages": "no retriever"}), [], 60.0)


@pytest.mark.parametrize(
    "governor", [None, replace(SHORTER, rung=0), replace(SHORTER, pin="shorter-answers")]
)
def test_nothing_is_said_on_the_best_rung_or_a_pinned_one(governor):
    check_quiet(0, governor, [HOT], 60.0)
    with pytest.raises(Overloaded, match=r"--while-serving"):
        check_quiet(1, governor, [], 60.0)


@given(st.integers(0, 99), st.integers(0, 99), st.none() | st.floats(0, 1e5), st.floats(-5, 1e5))
def test_progress_has_units_and_no_times_that_nobody_can_know(done, left, expected_s, left_s):
    stand = Stand(what="full", done=done, left=left, expected_s=expected_s, budget_left_s=left_s)
    said = measured_so_far(stand) + made_so_far(Making(made=done, wanted=done + left, left_s=left_s))
    assert f"{done} of {done + left} batches of questions done" in said
    assert " ms" not in said
    assert ("not known yet" in said) == (expected_s is None)


@pytest.mark.parametrize("change", [{"count": 9}, {"seed": 9}, {"origin": "generator"}])
def test_other_questions_do_not_discard_what_holds(change):
    former = recorded((), [])
    assert _differences(former, former) == []
    with pytest.raises(BadRequest, match=r"--count 1 --seed 0 --made-by words.*--fresh"):
        _differences(former, replace(former, **change))


def test_other_questions_of_ones_own_do_not_discard_what_holds():
    former = replace(recorded((), []), origin="file")
    assert _differences(former, replace(former, seed=3, count=7)) == [], "of those that are made"
    with pytest.raises(BadRequest, match=r"--questions with a file of 1.*--fresh"):
        _differences(former, replace(former, questions=(Question(text="other"),)))


def test_what_does_not_hold_any_more_is_measured_anew():
    former = recorded((), [])
    now = replace(former, count=9, fingerprint=replace(former.fingerprint, generation=2))
    assert _differences(former, now) == ["documents: generation 1 of the library -> 2"]


def test_another_pipeline_does_not_discard_what_holds():
    former = recorded((), [])
    now = replace(former, fingerprint=replace(former.fingerprint, pipeline="plain"))
    with pytest.raises(BadRequest, match=r"--pipeline rag.*--fresh"):
        _differences(former, now)
