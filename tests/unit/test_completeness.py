"""Which stages a table calls finished, after any order of calibrations of some of them."""

from __future__ import annotations

from itertools import combinations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from edged.placement.completeness import closed, forgotten, lacking, opened, without_lost
from edged.placement.table import Failure, Pair, Table
from edged.testing.tables import FINGERPRINT, form, gateway, table

NAMES = ("a", "b", "c")
EMPTY = Table(fingerprint=FINGERPRINT, measured_at="")
SOME: st.SearchStrategy[set[str]] = st.sets(st.sampled_from(NAMES))
TASKS: list[tuple[str, ...]] = [*((name,) for name in NAMES), *combinations(NAMES, 2)]


def runs() -> st.SearchStrategy[list[tuple[set[str], list[tuple[str, ...]]]]]:
    """Calibrations of some stages, each with the tasks that it left undone."""
    one = SOME.flatmap(
        lambda stages: st.tuples(
            st.just(stages), st.lists(st.sampled_from(TASKS)).map(lambda left: within(left, stages))
        )
    )
    return st.lists(one, max_size=6)


def within(tasks: list[tuple[str, ...]], stages: set[str]) -> list[tuple[str, ...]]:
    return [task for task in tasks if set(task) <= stages]


@given(runs())
def test_what_is_finished_is_what_the_last_run_with_it_left_nothing_of(history):
    known, alone, beside = EMPTY, set(), set()
    for stages, left in history:
        known = closed(known, stages, left)
        waiting = {name for (name,) in (task for task in left if len(task) == 1)}
        alone = (alone | stages) - waiting
        beside |= set(combinations(sorted(stages), 2))
        beside -= {pair for pair in beside if pair in left or waiting & set(pair)}
        assert (set(known.finished), set(known.finished_pairs)) == (alone, beside)


@given(runs(), SOME)
def test_an_opened_stage_is_lacking_until_a_run_with_it(history, stages):
    known = EMPTY
    for asked, left in history:
        known = closed(known, asked, left)
    assert stages <= set(lacking(opened(known, stages), NAMES))
    assert lacking(closed(known, NAMES, []), NAMES) == []
    assert set(known.finished) - stages == set(opened(known, stages).finished)


def test_forgetting_a_stage_keeps_the_others_and_their_pairs():
    full = gateway()
    names = ("retriever", "reranker", "generator")
    pairs = tuple(
        Pair(
            first=form(one), second=form(other), first_batch=1, second_batch=1,
            first_slowdown=1.0, second_slowdown=1.0,
        )
        for one, other in combinations(names, 2)
    )  # fmt: skip
    broken = tuple(Failure(form=form(name, "onnx"), code="crashed", message="") for name in names)
    full = msgspec.structs.replace(full, pairs=pairs, failures=broken)
    left = forgotten(full, {"generator"})
    forms = [each.form for each in (*left.points, *left.weights, *left.failures)]
    assert {each.stage for each in forms} == {"retriever", "reranker"}
    assert left.points == tuple(point for point in full.points if point.form.stage != "generator")
    assert left.pairs == pairs[:1]
    assert lacking(left, names) == ["generator"]
    assert left.finished_pairs == (("reranker", "retriever"),)


def test_a_lost_figure_opens_its_stage():
    full = gateway()
    assert without_lost(full, full) == full
    gone = full.points[0].form.stage
    assert without_lost(full, msgspec.structs.replace(full, points=full.points[1:])).finished == tuple(
        name for name in full.finished if name != gone
    )
    assert without_lost(full, table([])).finished == ()
