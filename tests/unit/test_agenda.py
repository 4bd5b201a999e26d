"""What is measured next: driven to the end on invented boxes, and the rules one by one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.backend import Variant
from edged.placement.agenda import COARSE_BATCHES, FINE_BATCHES, Cell, Duo, Known, Solo, agenda, dominated
from edged.placement.contention import slowdowns
from edged.placement.estimates import expected_s, total_s
from edged.placement.forms import Candidate
from edged.placement.table import Failure, Fingerprint, Form, Pair, Point, Table, Weight
from edged.workers.spec import StageSpec

VARIANT = Variant(model="m", name="v", task="tensor", format="none", path=Path("/dev/null"))
EMPTY = Table(
    fingerprint=Fingerprint(cpu="c", cores=2, memory_bytes=1, kernel="k", packages={}, models={}),
    measured_at="",
)


def candidate(
    stage: str, backend: str = "a", threads: int = 2, *, silicon: str = "cpu", most_batch: int = 0
) -> Candidate:
    form = Form(stage=stage, model="m", variant="v", backend=backend, device="cpu", threads=threads)
    spec = StageSpec(
        name=stage, kind="reranker", backend=backend, device="cpu", max_batch=1,
        variant=VARIANT, options={}, library=Path(),
    )  # fmt: skip
    return Candidate(form=form, kind="reranker", spec=spec, silicon=silicon, most_batch=most_batch)


def point(of: Candidate, batch: int, wall_s: float, rounds: int = 3, work: str = "typical") -> Point:
    return Point(
        form=of.form, batch=batch, work=work, length=9, wall_s=wall_s, cpu_s=wall_s, rounds=rounds, spread=0.0
    )


def weight(of: Candidate, memory_bytes: int) -> Weight:
    return Weight(form=of.form, memory_bytes=memory_bytes, load_s=1.0)


def with_points(*points: Point, **more: object) -> Table:
    return msgspec.structs.replace(EMPTY, points=points, **more)


def is_dominated(one: Candidate, other: Candidate, table: Table) -> bool:
    return dominated(one, [one, other], Known(table))


BOX = [candidate(stage, backend, threads) for stage in "xy" for backend in "ab" for threads in (2, 1)]


def carried_out(table: Table, task: Solo | Duo, wall_s: dict[Form, float]) -> Table:
    """The table after a task, as a box with these single-request times would leave it."""
    if isinstance(task, Duo):
        pair = Pair(
            first=task.first.form, second=task.second.form, first_batch=task.first_batch,
            second_batch=task.second_batch, first_slowdown=1.0, second_slowdown=1.0,
        )  # fmt: skip
        return msgspec.structs.replace(table, pairs=(*table.pairs, pair))
    keys = {(task.candidate.form, cell.batch, cell.work) for cell in task.cells}
    kept = [p for p in table.points if (p.form, p.batch, p.work) not in keys]
    one_s = wall_s[task.candidate.form]
    fresh = [
        point(task.candidate, cell.batch, one_s * cell.batch, cell.rounds, cell.work) for cell in task.cells
    ]
    return msgspec.structs.replace(table, points=(*kept, *fresh))


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 10), min_size=len(BOX), max_size=len(BOX)), st.floats(0, 1))
def test_it_ends_with_every_form_and_pairs_of_every_two_stages(times, share):
    wall_s = {each.form: time_s for each, time_s in zip(BOX, times, strict=True)}
    table, steps = EMPTY, 0
    while tasks := agenda(BOX, table, share):
        assert total_s(tasks, Known(table)) > 0
        table = carried_out(table, tasks[0], wall_s)
        steps += 1
        assert steps < 200
    known = Known(table)
    assert all(1 in known.typical(each.form) for each in BOX)
    best = min(BOX[:4], key=lambda each: wall_s[each.form])
    assert set(FINE_BATCHES) <= set(known.typical(best.form))
    assert {(pair.first.stage, pair.second.stage) for pair in table.pairs} == {("x", "y")}
    assert {pair.first.threads for pair in table.pairs} == {1, 2}


def test_stages_take_turns_from_their_likeliest_form_on():
    coarse = [task.candidate.form for task in agenda(BOX, EMPTY) if isinstance(task, Solo)]
    assert [form.stage for form in coarse] == ["x", "y"] * 4
    assert (coarse[0].backend, coarse[0].threads) == ("a", 2)


def test_pairs_go_first_when_most_of_the_budget_is_spent():
    x, y = candidate("x"), candidate("y")
    table = with_points(point(x, 1, 1.0), point(y, 1, 1.0))
    assert isinstance(agenda([x, y], table, 0.2)[0], Solo)
    assert isinstance(agenda([x, y], table, 0.7)[0], Duo)


def test_a_form_that_needs_more_than_twice_as_much_is_dominated():
    quick, slow = candidate("x", "a"), candidate("x", "b")
    table = with_points(point(quick, 1, 1.0), point(slow, 1, 2.1))
    assert is_dominated(slow, quick, table)
    assert not is_dominated(quick, slow, table)
    assert not is_dominated(slow, quick, with_points(point(quick, 1, 1.0), point(slow, 1, 1.9)))


def test_a_dominated_form_stays_at_batch_one():
    quick, slow = candidate("x", "a"), candidate("x", "b")
    tasks = agenda([quick, slow], with_points(point(quick, 1, 1.0), point(slow, 1, 3.0)))
    assert {task.candidate.form.backend for task in tasks if isinstance(task, Solo)} == {"a"}


@pytest.mark.parametrize(
    "other", [candidate("x", "b", silicon="npu"), candidate("y", "b")], ids=["silicon", "stage"]
)
def test_only_forms_that_replace_one_another_compare(other):
    quick = candidate("x", "a")
    assert not is_dominated(other, quick, with_points(point(quick, 1, 1.0), point(other, 1, 9.0)))


def test_one_batch_where_it_is_close_saves_a_form():
    quick, slow = candidate("x", "a"), candidate("x", "b")
    table = with_points(point(quick, 1, 1.0), point(slow, 1, 9.0), point(quick, 8, 8.0), point(slow, 8, 9.0))
    assert not is_dominated(slow, quick, table)


def test_a_lean_form_is_not_dominated_by_one_twice_its_size():
    quick, lean = candidate("x", "a"), candidate("x", "b")
    table = with_points(
        point(quick, 1, 1.0), point(lean, 1, 9.0), weights=(weight(quick, 500), weight(lean, 200))
    )
    assert not is_dominated(lean, quick, table)


def test_another_variant_is_not_dominated():
    quick, other = candidate("x", "a"), candidate("x", "b")
    other = msgspec.structs.replace(other, form=msgspec.structs.replace(other.form, variant="fp32"))
    assert not is_dominated(other, quick, with_points(point(quick, 1, 1.0), point(other, 1, 9.0)))


def test_what_does_not_run_is_not_tried_again():
    x = candidate("x")
    dead = Failure(form=x.form, code="crashed", message="signal 11")
    assert agenda([x], msgspec.structs.replace(EMPTY, failures=(dead,))) == []


def test_a_batch_that_fails_bars_larger_ones_only():
    x = candidate("x")
    failure = Failure(form=x.form, code="out_of_memory", message="", batch=4)
    tasks = agenda([x], with_points(point(x, 1, 1.0, rounds=1), failures=(failure,)))
    cells = {cell for task in tasks if isinstance(task, Solo) for cell in task.cells}
    assert {cell.batch for cell in cells if cell.work == "typical"} == {1, 2}
    assert Cell(8, "long") in cells


def test_batches_stay_within_what_the_device_takes():
    one_at_a_time = candidate("x", most_batch=1)
    tasks = agenda([one_at_a_time], with_points(point(one_at_a_time, 1, 1.0, rounds=1)))
    assert {cell.batch for task in tasks if isinstance(task, Solo) for cell in task.cells} == {1}


def test_figures_that_are_there_are_not_taken_again():
    x = candidate("x")
    done = [point(x, batch, float(batch)) for batch in FINE_BATCHES]
    done += [point(x, batch, float(batch), 1, work) for batch in COARSE_BATCHES for work in ("short", "long")]
    assert agenda([x], with_points(*done)) == []


def test_an_estimate_grows_with_the_batch_and_uses_what_is_known():
    x = candidate("x")
    known = Known(with_points(point(x, 1, 2.0)))
    small, large = (expected_s(Solo(x, (Cell(batch),)), known) for batch in (1, 8))
    assert large - small == pytest.approx(2.0 * 7)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([(0, 1), (1, 2), (2, 3)], [(0, 2), (2, 4)], (1.0, 1.0)),
        ([(0, 4)], [(0, 1), (1, 2)], (4.0, 0.5)),
        ([(0, 2), (2, 4), (4, 5)], [(0, 4)], (2.0, 2.0)),
    ],
)
def test_slowdowns_count_laps_beside_the_other(first, second, expected):
    assert slowdowns(first, second, 1.0, 2.0) == expected


def test_a_form_whose_coarse_batches_were_disturbed_waits_with_its_pairs():
    one, other = candidate("x"), candidate("y")
    left = [point(each, batch, 0.1 * batch) for each in (one, other) for batch in (2, 4, 16)]
    tasks = list(agenda([one, other], with_points(*left)))
    assert tasks
    assert not any(isinstance(task, Duo) for task in tasks)
