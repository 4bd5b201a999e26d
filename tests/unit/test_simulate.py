"""The what-if simulator: laws that hold for any table, and what it says about the default pipeline."""

from __future__ import annotations

from itertools import pairwise, product

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simpy import Environment

from edged.placement.aim import Aim
from edged.placement.flow import flow
from edged.placement.interference import Interference
from edged.placement.plan import Planner
from edged.placement.prices import Prices
from edged.placement.rehearsal import Asked, Rehearsal
from edged.placement.sequences import Budget, Sequences
from edged.placement.silicon import Job, slowdowns
from edged.placement.simulate import Load, Machine, _setting, simulate
from edged.placement.table import Pair
from edged.testing.tables import form, gateway, limits, point, table, wishes

MODES = ("together", "turns", "single", "split")
BATCHES = (1, 8)


@st.composite
def tables(draw):
    """One form a stage at one and two threads; larger batches never cost more per request."""
    points = []
    for stage in ("a", "b", "c")[: draw(st.integers(1, 3))]:
        single_s = draw(st.floats(0.03, 0.2))
        saving, scaling = draw(st.floats(0.3, 1.0)), draw(st.floats(0.5, 1.0))
        answers = 16 if stage == "c" else 0
        for threads, factor in ((1, 1.0), (2, scaling)):
            of = form(stage, "llama_cpp", threads)
            for batch in BATCHES:
                wall_s = single_s * factor * (1 + (batch - 1) * saving)
                busy = single_s * (1 + (batch - 1) * saving)
                points.append(
                    point(of, batch, wall_s, busy, first_s=wall_s / 3 * (answers > 0), new_tokens=answers)
                )
    return table(points)


def planned(measured, mode, cores=2):
    stages = dict.fromkeys(each.form.stage for each in measured.points)
    return Planner(measured, wishes(stages), limits(modes=(mode,), cores=cores)).plan(Aim())


def throughput(plan, measured, clients, cores=2, **load):
    wanted = {"clients": clients, "seeds": 1, "duration_s": 20} | load
    return simulate(plan, measured, Machine(cores=cores), Load(**wanted))


@settings(max_examples=12, deadline=None)
@given(tables(), st.sampled_from(MODES), st.integers(1, 24))
def test_littles_law(measured, mode, clients):
    found = throughput(planned(measured, mode), measured, clients, duration_s=60)
    assert found.in_system == pytest.approx(clients, rel=0.02)
    assert found.throughput_per_s * found.mean_latency_s == pytest.approx(clients, rel=0.1)


@settings(max_examples=12, deadline=None)
@given(tables(), st.sampled_from(MODES))
def test_no_more_than_the_cores_and_the_slowest_stage_allow(measured, mode):
    plan = planned(measured, mode)
    found = throughput(plan, measured, 24)
    wanted = sum(choice.cpu_s for choice in plan.choices.values())
    assert found.busy_cores <= 2 + 1e-6
    assert found.throughput_per_s <= 2 / wanted * 1.05
    assert found.throughput_per_s <= min(c.predicted_rate_per_s for c in plan.choices.values()) * 1.05


@settings(max_examples=12, deadline=None)
@given(tables(), st.floats(1.0, 3.0), st.floats(1.0, 3.0))
def test_at_saturation_it_agrees_with_the_planners_bound_on_contention(measured, first, second):
    forms = [choice.form for choice in planned(measured, "together").choices.values()]
    pairs = [
        Pair(first=a, second=b, first_batch=8, second_batch=8, first_slowdown=first, second_slowdown=second)
        for a, b in pairwise(forms)
    ]
    contended = msgspec.structs.replace(measured, pairs=tuple(pairs))
    plan = planned(contended, "together")
    prices = Prices(contended)
    offers = Planner(contended, wishes(list(plan.choices)), limits())._offers
    options = [
        next(o for o in offers[n].options if (o.form, o.batch, o.workers) == (c.form, c.batch, c.workers))
        for n, c in plan.choices.items()
    ]
    bound = flow(options, "together", 2, Interference(contended, prices, 2)).rate_per_s
    assert throughput(plan, contended, 32).throughput_per_s <= bound * 1.1


@settings(max_examples=10, deadline=None)
@given(tables(), st.sampled_from(MODES), st.integers(1, 16))
def test_more_cores_are_never_worse(measured, mode, clients):
    plan = planned(measured, mode)
    rates = [throughput(plan, measured, clients, cores).throughput_per_s for cores in (2, 4)]
    assert rates[1] >= rates[0] * 0.97


@settings(max_examples=12, deadline=None)
@given(tables(), st.sampled_from(MODES))
def test_one_client_waits_for_the_sum_of_the_stages(measured, mode):
    plan = planned(measured, mode)
    found = throughput(plan, measured, 1)
    assert found.latency.p50 == pytest.approx(plan.predicted_latency_s, rel=1e-6)
    assert found.first_token.p50 == pytest.approx(plan.predicted_first_token_s, rel=1e-6)


@given(st.lists(st.integers(1, 700), min_size=1, max_size=8), st.integers(1, 20))
def test_sequences_read_every_prompt_and_write_every_token(prompts, new_tokens):
    live, read, written, ended = Sequences(Budget(256, 64)), 0, 0, set()
    for number, prompt in enumerate(prompts):
        live.admit(number, prompt, new_tokens)
    while len(live):
        step = live.step()
        assert step.read <= (64 if step.running else 256)
        read, written = read + step.read, written + step.running + len(step.first)
        ended |= set(step.finished)
    assert read == sum(prompts)
    assert written == new_tokens * len(prompts)
    assert ended == set(range(len(prompts)))


@pytest.mark.parametrize("backend", ["openvino", "llama_cpp"])
@pytest.mark.parametrize("mode", MODES)
def test_the_default_pipeline_reaches_what_the_planner_predicts(mode, backend):
    wanted = wishes()
    wanted["generator"] = msgspec.structs.replace(wanted["generator"], backend=backend)
    plan = Planner(gateway(), wanted, limits(modes=(mode,))).plan(Aim())
    found = simulate(plan, gateway(), Machine(cores=2), Load(clients=16))
    assert found.throughput_per_s == pytest.approx(plan.predicted_rate_per_s, rel=0.05)
    assert found.bottleneck == plan.bottleneck == "generator"


def test_equal_arguments_give_equal_predictions_and_seeds_differ():
    plan, load = planned(gateway(), "split"), Load(rate_per_s=1.0, seeds=2)
    first, again = (simulate(plan, gateway(), Machine(cores=2), load) for _ in range(2))
    assert first == again
    assert first.throughput_spread[0] < first.throughput_spread[1]


def test_an_open_loop_below_saturation_is_answered_at_its_rate():
    plan = planned(gateway(), "split")
    found = simulate(plan, gateway(), Machine(cores=2), Load(rate_per_s=0.5, duration_s=400))
    assert found.throughput_per_s == pytest.approx(0.5, rel=0.15)
    assert found.refused == 0
    assert found.bottleneck == ""


def test_an_open_loop_above_saturation_is_refused_for_want_of_slots():
    plan = planned(gateway(), "split")
    found = simulate(plan, gateway(), Machine(cores=2, slots=8), Load(rate_per_s=10.0))
    assert found.refused > 0.5
    assert found.throughput_per_s == pytest.approx(plan.predicted_rate_per_s, rel=0.2)


def test_longer_answers_and_prompts_take_longer():
    plan = planned(gateway(), "split")
    usual, longer, wordy = (
        throughput(plan, gateway(), 4, **load).throughput_per_s
        for load in ({}, {"new_tokens": (128,)}, {"prompt_tokens": 512})
    )
    assert longer < usual
    assert wordy < usual


def test_an_accelerator_works_beside_the_cores():
    def faster(device):
        points = [point(form("retriever"), 1, 0.01), point(form("generator"), 1, 0.2, 0.2, new_tokens=8)]
        points += [point(form("reranker", threads=1 if device == "cpu" else 0, device=device), 1, 0.2, 0.2)]
        measured = table(points)
        plan = Planner(measured, wishes(), limits(cores=1)).plan(Aim())
        return simulate(plan, measured, Machine(cores=1), Load(clients=4)).throughput_per_s

    free = [point(form("reranker", threads=0, device="npu"), 1, 0.2, 0.001)]
    points = [point(form("retriever"), 1, 0.01), point(form("generator"), 1, 0.2, 0.2, new_tokens=8), *free]
    measured = table(points)
    plan = Planner(measured, wishes(), limits(cores=1)).plan(Aim())
    beside = simulate(plan, measured, Machine(cores=1), Load(clients=4)).throughput_per_s
    assert beside > 1.5 * faster("cpu")


@pytest.mark.parametrize("clients", [1, 2, 16])
def test_a_worker_for_every_core_carries_so_many_requests_at_once(clients):
    points = [point(form(stage), 1, 0.1) for stage in ("a", "b")]
    measured = table([*points, *(point(form("c"), batch, 0.2 * batch, new_tokens=8) for batch in (1, 8))])
    plan = Planner(measured, wishes("abc"), limits(modes=("single",))).plan(Aim())
    assert {choice.workers for choice in plan.choices.values()} == {2}
    found = throughput(plan, measured, clients)
    assert found.throughput_per_s == pytest.approx(min(clients, 2) / 0.4, rel=0.03)
    assert found.busy_cores == pytest.approx(min(clients, 2), rel=0.03)


def test_on_single_cores_stages_slow_one_another_as_they_did_on_a_thread_each():
    points = [point(form(stage), 1, 0.2) for stage in ("a", "b")]
    pair = Pair(
        first=points[0].form,
        second=points[1].form,
        first_batch=1,
        second_batch=1,
        first_slowdown=1.5,
        second_slowdown=1.5,
    )
    rates = [
        throughput(planned(table(points, pairs), "single"), table(points, pairs), 8).throughput_per_s
        for pairs in ((), (pair,))
    ]
    assert rates[0] == pytest.approx(5.0, rel=0.02)
    assert 2 / 3 * 5.0 - 0.1 < rates[1] < 4.9


def test_jobs_share_cores_only_where_they_meet():
    a, b, c = (
        Job(form(stage, device=device), 1.0, 1.0)
        for stage, device in (("a", "cpu:0"), ("b", "cpu:0"), ("c", "cpu:1"))
    )
    assert slowdowns([a, b, c], 2, None) == [2.0, 2.0, 1.0]


def test_a_form_that_was_not_measured_is_named():
    plan = planned(gateway(), "split")
    other = msgspec.structs.replace(
        gateway(), points=tuple(p for p in gateway().points if p.form.backend == "onnx")
    )
    with pytest.raises(KeyError, match="not measured"):
        simulate(plan, other, Machine(cores=2), Load(clients=1))


def test_a_batch_that_spreads_heeds_its_lease_while_it_runs():
    """Halfway through the second question's `a`, the first one's `b` leaves it the other core."""
    costs = product((("a", 1.0), ("b", 0.5)), (1, 2))
    measured = table(
        point(form(name, threads=threads), 1, core_s / threads, lanes=threads)
        for (name, core_s), threads in costs
    )
    wanted = wishes("ab", workers=1, options={"threads": 2})
    plan = Planner(measured, wanted, limits(modes=("split",))).plan(Aim())
    environment = Environment()
    rehearsal = Rehearsal(environment, _setting(plan, measured, Machine(cores=2)), ("a", "b"))
    assert {worker.lanes for worker in rehearsal.ledger.workers.values()} == {2}
    asked = [Asked(due_s=0.0, new_tokens=1, unread_tokens=1) for _ in range(2)]
    for ended in [rehearsal.ask(each) for each in asked]:
        environment.run(ended)
    assert asked[0].end_s == pytest.approx(1.0)
    assert asked[1].end_s == pytest.approx(1.5, abs=0.07), "1.75 on the core that it began on"


def test_the_leases_know_which_answers_have_their_first_token():
    measured = gateway()
    setting = _setting(planned(measured, "single"), measured, Machine(cores=2))
    environment = Environment()
    rehearsal = Rehearsal(environment, setting, ("generator",))
    asked = Asked(due_s=0.0, new_tokens=8, unread_tokens=300)
    ended = rehearsal.ask(asked)
    (request,) = rehearsal.ledger.requests.values()
    while not asked.first_s:
        assert not request.tokens
        environment.step()
    assert request.tokens
    environment.run(ended)
    assert asked.first_s < asked.end_s
