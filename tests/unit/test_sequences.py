"""What the simulator takes for a token engine and for shared cores, held to the adapters' own rules."""

from __future__ import annotations

from functools import reduce
from operator import or_

import msgspec
import pytest
from edged_backends import llama_cpp as llama_cpp_adapter
from edged_backends import openvino_generators, openvino_prefixes
from hypothesis import given
from hypothesis import strategies as st

from edged.placement import fairness
from edged.placement.curves import Curve
from edged.placement.sequences import BUDGETS, Budget, Sequences, Step
from edged.testing.tables import form, point

prompts = st.lists(st.integers(1, 2000), min_size=1, max_size=16)
jobs = st.lists(st.tuples(st.floats(0.0, 4.0), st.integers(1, 7)), min_size=1, max_size=6)


def test_budgets_are_what_the_adapters_do_by_default():
    openvino, llama_cpp = openvino_generators.TokenOptions(), llama_cpp_adapter.Options()
    assert (BUDGETS["openvino"].alone, BUDGETS["openvino"].beside) == (
        openvino.max_num_batched_tokens,
        openvino.running_batch_tokens,
    )
    assert BUDGETS["openvino"].block == openvino_prefixes.BLOCK_TOKENS
    assert (BUDGETS["llama_cpp"].alone, BUDGETS["llama_cpp"].beside) == (
        llama_cpp.batch_tokens,
        llama_cpp.running_batch_tokens,
    )


def test_beside_an_answer_prompts_alike_are_read_one_after_the_other():
    live = Sequences(BUDGETS["openvino"])
    live.admit(0, 1, 1000)
    live.step()
    for number in range(1, 5):
        live.admit(number, 640, 10)
    steps = [live.step() for _ in range(20)]
    assert [step.read for step in steps] == [128] * 20
    assert [step.first for step in steps if step.first] == [(1,), (2,), (3,), (4,)]
    assert [number for number, step in enumerate(steps, 1) if step.first] == [5, 10, 15, 20]


def test_a_budget_of_one_block_is_a_step_of_two():
    """Else the shortest prompt would wait for the oldest: an adapter reads no less either."""
    for budget in (Budget(32, 32, block=32), Budget(32, 8, block=32)):
        live = Sequences(budget)
        live.admit(0, 1, 1000)
        live.step()
        live.admit(1, 320, 10)
        live.admit(2, 30, 10)
        assert live.step() == Step(read=62, running=1, first=(2,), finished=())


def test_what_the_cache_holds_is_not_read():
    live = Sequences(Budget(256, 64))
    live.admit(1, 100, 1)
    assert live.step() == Step(read=100, running=0, first=(1,), finished=(1,))


def generator(backend="openvino", **other):
    of = form("generator", backend)
    fields = {"new_tokens": 11, "length": 356, "cached_tokens": 100} | other
    points = {
        1: point(
            of, 1, 1.0 + 10 * 0.010, first_s=0.264 + 1 * 0.008 if backend == "openvino" else 0.264, **fields
        ),
        4: point(of, 4, 4.0 + 10 * 0.016, first_s=4.0, **fields),
    }
    points[1] = msgspec.structs.replace(points[1], wall_s=points[1].first_s + 10 * 0.010)
    return Curve(of, {1: points})


def test_a_step_that_reads_and_writes_passes_the_weights_once():
    curve = generator()
    alone = curve.step(Step(256, 0, (), ()), 1, 1).seconds
    writes = curve.step(Step(0, 1, (), ()), 1, 1).seconds
    both = curve.step(Step(256, 1, (), ()), 1, 1).seconds
    assert (alone, writes) == (pytest.approx(0.272), pytest.approx(0.010))
    assert both == pytest.approx(alone + writes - 0.008)


def test_in_llama_cpp_reading_and_writing_add_up():
    curve = generator("llama_cpp")
    alone, writes, both = (
        curve.step(Step(read, running, (), ()), 1, 1).seconds
        for read, running in ((256, 0), (0, 1), (256, 1))
    )
    assert both == pytest.approx(alone + writes)


def test_a_small_part_of_a_prompt_costs_more_per_token_than_a_large_one():
    curve = generator()
    few, many = (curve.step(Step(read, 0, (), ()), 1, 1).seconds / read for read in (32, 256))
    assert few > 1.15 * many


def test_tokens_in_the_cache_cost_nothing_to_read():
    cached, whole = generator(), generator(cached_tokens=0)
    assert cached.step(Step(64, 0, (), ()), 1, 1).seconds > whole.step(Step(64, 0, (), ()), 1, 1).seconds


# ------------------------------------------------------------------- cores


@given(jobs)
def test_shares_are_what_is_wanted_or_what_there_is(wants):
    wanted, masks = [want for want, _ in wants], [own for _, own in wants]
    got = fairness.shares(wanted, masks)
    assert all(0 <= have <= want for have, want in zip(got, wanted, strict=True))
    for place, have in enumerate(got):
        if have < wanted[place] - 1e-9:
            assert any(_full(got, masks, union) for union in _unions(masks) if masks[place] | union == union)
    assert all(_used(got, masks, union) <= union.bit_count() + 1e-9 for union in _unions(masks))


@given(jobs)
def test_nobody_has_less_than_a_neighbour_on_the_same_cores_unless_it_wants_no_more(wants):
    wanted, masks = [want for want, _ in wants], [own for _, own in wants]
    got = fairness.shares(wanted, masks)
    for a, b in ((a, b) for a in range(len(got)) for b in range(len(got)) if masks[a] == masks[b]):
        assert got[a] >= min(wanted[a], got[b]) - 1e-9


def test_one_thread_beside_two_keeps_its_core():
    assert fairness.slowdowns([1.0, 2.0], [3, 3]) == [1.0, 2.0]
    assert fairness.slowdowns([2.0, 2.0], [3, 3]) == [2.0, 2.0]


def _unions(masks):
    found = set(masks)
    for _ in masks:
        found |= {reduce(or_, (one, other)) for one in found for other in found}
    return found


def _used(got, masks, union):
    return sum(have for have, own in zip(got, masks, strict=True) if own | union == union)


def _full(got, masks, union):
    return _used(got, masks, union) >= union.bit_count() - 1e-9
