"""Plans with a worker of one thread for every core: when they are made, what they say, what forbids it."""

from __future__ import annotations

import msgspec
import pytest

from edged.errors import NotFound
from edged.placement.aim import Aim
from edged.placement.interference import Interference
from edged.placement.plan import Planner, label
from edged.placement.prices import Prices
from edged.placement.table import Choice, Pair, Plan, Table
from edged.testing.tables import form, gateway, limits, point, table, wishes

RETRIEVER_S, RERANKER_S, GENERATOR_S = 0.0022, 0.318, 6.06 / 8
"""CPU seconds of a request on one thread in `gateway()`."""
SPREAD_S = 2 * 0.169
"""Of a question reranked on two threads."""


def planned(measured: Table, wanted=None, aim: Aim | None = None, **fields: object) -> Plan:
    return Planner(measured, wanted or wishes(), limits(**fields)).plan(aim or Aim())


def pair(threads: int, slowdown: float) -> Pair:
    return Pair(
        first=form("reranker", threads=threads),
        second=form("generator", threads=threads),
        first_batch=8,
        second_batch=8,
        first_slowdown=slowdown,
        second_slowdown=slowdown,
    )


def beside(*pairs: Pair) -> Table:
    return msgspec.structs.replace(gateway(), pairs=pairs)


def test_one_thread_a_core_is_bound_by_the_cpu_seconds_of_one_thread():
    plan = planned(gateway())
    assert plan.lease_mode == "single"
    told = {name: (choice.form.threads, choice.workers) for name, choice in plan.choices.items()}
    assert told["generator"] == (1, 2)
    assert told["reranker"] == (2, 1), "it spreads its batches: sooner done, and hardly less of them"
    assert plan.choices["retriever"].workers == 1, "what is over at once waits for no core"
    assert plan.predicted_rate_per_s == pytest.approx(2 / (RETRIEVER_S + SPREAD_S + GENERATOR_S))
    assert plan.memory_bytes == sum(choice.memory_bytes for choice in plan.choices.values()) == 400 << 20


def test_a_core_more_is_a_worker_more():
    plan = planned(gateway(), cores=4, modes=("single",))
    assert [choice.workers for choice in plan.choices.values()] == [1, 4, 4]
    assert plan.predicted_rate_per_s == pytest.approx(4 / (RETRIEVER_S + RERANKER_S + GENERATOR_S))


def test_on_more_cores_than_are_tried_one_by_one_there_is_a_worker_for_each():
    plan = planned(gateway(), cores=12, modes=("single",))
    assert [choice.workers for choice in plan.choices.values()] == [1, 12, 12]


def test_a_stage_that_is_confined_has_a_worker_for_each_core_of_its_own():
    here = [point(form("a", device=f"cpu:{cores}"), 1, 0.5) for cores in ("0", "0-1")]
    plans = [planned(table([one]), wishes(["a"]), cores=4, modes=("single",)) for one in here]
    assert [plan.choices["a"].workers for plan in plans] == [1, 2]


def test_memory_counts_for_each_worker_and_can_forbid_it():
    assert planned(gateway(), memory_bytes=400 << 20).lease_mode == "single"
    plan = planned(gateway(), memory_bytes=399 << 20)
    assert plan.lease_mode != "single"
    assert plan.memory_bytes <= 399 << 20


@pytest.mark.parametrize(("memory_mib", "expected"), [(500, (1, 2)), (499, (2, 1))])
def test_where_two_lanes_cost_more_than_two_workers_memory_decides(memory_mib, expected):
    dear = [
        msgspec.structs.replace(each, cpu_s=each.cpu_s * 1.1)
        if (each.form.stage, each.form.threads) == ("reranker", 2)
        else each
        for each in gateway().points
    ]
    plan = planned(msgspec.structs.replace(gateway(), points=tuple(dear)), memory_bytes=memory_mib << 20)
    choice = plan.choices["reranker"]
    assert (plan.lease_mode, choice.form.threads, choice.workers) == ("single", *expected)


def test_one_worker_that_spreads_answers_as_many_as_one_a_core():
    points = [point(form("a", threads=threads), 1, 0.5 / threads, lanes=threads) for threads in (1, 2)]
    plan = planned(table(points), wishes(["a"], options={"threads": 2}), modes=("single",))
    assert plan.choices["a"].workers == 1
    assert plan.predicted_rate_per_s == pytest.approx(2 / 0.5)


def test_a_stage_whose_batches_keep_the_cores_that_they_began_on_has_a_worker_for_every_core():
    points = [point(form("a", threads=threads), 1, 0.5 / threads) for threads in (1, 2)]
    choice = planned(table(points), wishes(["a"]), modes=("single",)).choices["a"]
    assert (choice.form.threads, choice.workers) == (1, 2)


def test_what_single_needs_and_the_operator_does_not_allow_is_not_planned():
    assert planned(gateway(), wishes(options={"threads": 2})).lease_mode != "single"


def test_workers_that_the_operator_fixed_stand():
    wanted = wishes(["retriever"]) | wishes(["reranker", "generator"], workers=1)
    plan = planned(gateway(), wanted, modes=("single",))
    assert plan.choices["generator"].workers == plan.choices["reranker"].workers == 1
    assert plan.predicted_rate_per_s == pytest.approx(1 / GENERATOR_S), "its one worker has one core"


@pytest.mark.parametrize(
    "fields", [{"options": {"threads": 2}}, {"options": {"threads": 2}, "workers": 1}], ids=str
)
def test_a_mode_that_the_operator_wrote_is_kept_though_nothing_suits_it(fields):
    plan = planned(gateway(), wishes(**fields), modes=("single",))
    assert plan.lease_mode == "single"
    assert {choice.form.threads for choice in plan.choices.values()} == {2}
    with pytest.raises(NotFound, match="MiB"):
        planned(gateway(), wishes(**fields), modes=("single",), memory_bytes=250 << 20)


def test_only_what_threads_of_one_core_did_to_one_another_counts():
    calm = planned(gateway(), modes=("single",)).predicted_rate_per_s
    fighting = planned(beside(pair(2, 9.0)), modes=("single",)).predicted_rate_per_s
    crowded = planned(beside(pair(1, 1.2)), modes=("single",)).predicted_rate_per_s
    assert fighting == pytest.approx(calm)
    assert calm / 1.2 < crowded < calm


def test_where_one_thread_beside_another_costs_much_cores_are_not_shared_like_that():
    assert planned(beside(pair(2, 2.0), pair(1, 1.0))).lease_mode == "single"
    assert planned(beside(pair(2, 2.0), pair(1, 3.0))).lease_mode != "single"


def test_a_pair_counts_for_its_backend_and_single_threads_alone():
    measured = beside(pair(1, 1.5), pair(2, 2.5))
    excess = Interference(measured, Prices(measured), 2)
    one, two = (form("reranker", threads=threads) for threads in (1, 2))
    generator, other = form("generator"), form("generator", "llama_cpp")
    assert excess.on_single_cores(one, generator) == excess.on_single_cores(two, generator) == 1.5
    assert excess.on_single_cores(one, other) == 1.0
    assert excess.under("together")(one, other) > 1.0


def test_more_workers_than_cores_are_never_planned_for_a_mode_in_which_all_run():
    for mode in ("together", "split", "turns"):
        plan = planned(gateway(), modes=(mode,))
        assert [choice.workers for choice in plan.choices.values()] == [1, 1, 1], mode


def test_the_explanation_says_what_single_rules_out():
    planner = Planner(gateway(), wishes(), limits())
    plan = planner.plan(Aim())
    told = {
        (label(verdict.form), verdict.batch, verdict.workers): (verdict.fate, verdict.why)
        for verdict in planner.explain("generator", plan, Aim())
    }
    assert told["openvino cpu int8, 1 thread", 8, 2][0] == "chosen"
    for threads, workers in (("1 thread", 1), ("2 threads", 1)):
        fate, why = told[f"openvino cpu int8, {threads}", 8, workers]
        assert fate == "ruled out"
        assert "a worker of one thread for each of 2 cores" in why


def test_a_plan_from_before_there_were_several_workers_has_one():
    choice = planned(gateway()).choices["generator"]
    old = {name: value for name, value in msgspec.to_builtins(choice).items() if name != "workers"}
    assert msgspec.convert(old, Choice).workers == 1


def test_the_cheapest_form_is_not_taken_where_it_slows_its_neighbours():
    quick, calm, generator = form("reranker", "onnx"), form("reranker"), form("generator")
    fight = Pair(
        first=quick,
        second=generator,
        first_batch=1,
        second_batch=1,
        first_slowdown=2.0,
        second_slowdown=2.0,
    )
    peace = msgspec.structs.replace(fight, first=calm, first_slowdown=1.0, second_slowdown=1.0)
    points = [point(quick, 1, 0.5), point(calm, 1, 0.55), point(generator, 1, 0.5)]
    wanted = wishes(["reranker", "generator"])
    for pairs, backend in (((), "onnx"), ((fight, peace), "openvino")):
        plan = planned(table(points, pairs), wanted, modes=("single",))
        assert plan.choices["reranker"].form.backend == backend
