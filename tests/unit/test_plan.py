"""The planner: exact against brute force, within its limits, and with reasons that hold."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.errors import NotFound
from edged.placement.aim import INDIFFERENCE, Aim
from edged.placement.flow import flow
from edged.placement.limits import MODES
from edged.placement.modes import suited
from edged.placement.plan import Planner
from edged.placement.prices import Prices
from edged.placement.search import QUANTITIES, amount
from edged.placement.table import Pair
from edged.testing.tables import form, gateway, limits, point, table, wishes

NAMES = ("a", "b", "c")
seconds = st.floats(0.001, 2.0)


@st.composite
def tables(draw):
    points, memory = [], {}
    for stage in NAMES[: draw(st.integers(1, 3))]:
        for backend, threads in draw(
            st.sets(
                st.tuples(st.sampled_from(["onnx", "openvino"]), st.sampled_from([1, 2])),
                min_size=1,
                max_size=3,
            )
        ):
            device = draw(st.sampled_from(["cpu", "cpu", "cpu:0", "npu"]))
            of = form(stage, backend, threads if device == "cpu" else (device != "npu") * 1, device=device)
            memory[of] = draw(st.integers(1, 400)) << 20
            for batch in draw(st.sets(st.sampled_from([1, 4, 8]), min_size=1, max_size=2)):
                wall_s = draw(seconds)
                busy = draw(st.floats(0.3, 1.0))
                points.append(point(of, batch, wall_s, wall_s * max(of.threads, 1) * busy))
    forms = list(dict.fromkeys(each.form for each in points))
    pairs = [
        Pair(
            first=first,
            second=second,
            first_batch=1,
            second_batch=1,
            first_slowdown=draw(st.floats(0.9, 5)),
            second_slowdown=draw(st.floats(0.9, 5)),
        )
        for first, second in product(forms, forms)
        if first.stage < second.stage and draw(st.booleans())
    ]
    return table(points, pairs, memory)


@st.composite
def aims(draw):
    bound = st.none() | st.floats(0.05, 6)
    return Aim(
        objective=draw(st.sampled_from(["throughput", "latency", "energy"])),
        latency_s=draw(bound),
        first_token_s=draw(bound),
        rate_per_s=draw(st.none() | st.floats(0.1, 4)),
        energy=draw(bound),
    )


def brute_force(planner: Planner, aim: Aim):
    """Every assignment that keeps the bounds in every mode that it suits, with its rate and quantities."""
    offers, modes, cores = [o.options for o in planner._offers.values()], planner._limits.modes, 2
    found = list(worth(planner, aim, {mode: suited(offers, mode, cores) for mode in modes}))
    return found if found or len(modes) > 1 else list(worth(planner, aim, dict.fromkeys(modes, offers)))


def worth(planner: Planner, aim: Aim, by_mode):
    machine = planner._machine
    ceilings = aim.ceilings(planner._limits)
    for mode, offers in by_mode.items():
        for chosen in product(*offers):
            rate = flow(chosen, mode, machine.cores, machine.interference).rate_per_s
            totals = {q: sum(amount(o, q, joules=machine.joules) for o in chosen) for q in QUANTITIES}
            if rate >= (aim.rate_per_s or 0) and all(totals[q] <= most for q, most in ceilings.items()):
                yield rate, totals


def objective(aim: Aim, rate: float, totals: dict[str, float]) -> float:
    return {"throughput": -rate, "latency": totals["latency_s"], "energy": totals["energy"]}[aim.objective]


@settings(max_examples=150, deadline=None)
@given(
    tables(),
    aims(),
    st.integers(200, 1200),
    st.sampled_from([MODES, MODES, ("single",), ("single", "together")]),
    st.sampled_from([None, None, None, 1, 2]),
)
def test_it_finds_what_trying_everything_finds(measured, aim, memory_mib, modes, workers):
    stages = sorted({each.form.stage for each in measured.points})
    allowed = limits(memory_bytes=memory_mib << 20, modes=modes)
    planner = Planner(measured, wishes(stages, workers=workers), allowed)
    everything = brute_force(planner, aim) if all(o.options for o in planner._offers.values()) else []
    if not everything:
        with pytest.raises(NotFound):
            planner.plan(aim)
        return
    plan = planner.plan(aim)
    best = min(objective(aim, rate, totals) for rate, totals in everything)
    found = {
        "throughput": -plan.predicted_rate_per_s,
        "latency": plan.predicted_latency_s,
        "energy": plan.predicted_cpu_s,
    }[aim.objective]
    assert found <= best + INDIFFERENCE * abs(best) + 1e-9
    assert plan.predicted_rate_per_s >= (aim.rate_per_s or 0.0) * (1 - 1e-6)
    assert plan.predicted_loaded_latency_s <= (aim.latency_s or float("inf")) * (1 + 1e-6)
    assert plan.predicted_cpu_s <= (aim.energy or float("inf")) * (1 + 1e-6)
    within = [
        (rate, totals)
        for rate, totals in everything
        if objective(aim, rate, totals) <= best + INDIFFERENCE * abs(best) - 1e-9
    ]
    if aim.objective == "throughput":
        assert plan.predicted_loaded_latency_s <= min(t["loaded_latency_s"] for _, t in within) * (1 + 1e-6)
    else:
        assert plan.predicted_rate_per_s >= max(rate for rate, _ in within) * (1 - 1e-6)


def test_it_takes_the_backend_that_measurement_says_not_the_first_one():
    plan = Planner(gateway(), wishes(), limits()).plan(Aim())
    assert {name: choice.form.backend for name, choice in plan.choices.items()} == dict.fromkeys(
        plan.choices, "openvino"
    )
    assert plan.choices["generator"].batch == 8
    assert plan.bottleneck == "generator"
    single = Planner(gateway(), wishes(), limits()).plan(Aim(objective="latency"))
    assert (single.choices["generator"].form.backend, single.choices["generator"].form.threads) == (
        "llama_cpp",
        2,
    )


def test_a_bound_on_latency_lowers_the_batch():
    free = Planner(gateway(), wishes(), limits()).plan(Aim())
    bound = Planner(gateway(), wishes(), limits()).plan(Aim(latency_s=3.0))
    assert bound.predicted_loaded_latency_s <= 3.0 < free.predicted_loaded_latency_s
    assert bound.choices["generator"].batch < free.choices["generator"].batch
    assert bound.bounds == {"latency_s": 3.0}


def test_what_the_operator_wrote_is_never_overridden():
    wanted = wishes() | wishes(
        ["generator"], backend="llama_cpp", workers=1, max_batch=4, options={"threads": 1}
    )
    choice = Planner(gateway(), wanted, limits()).plan(Aim()).choices["generator"]
    assert (choice.form.backend, choice.form.threads, choice.workers, choice.batch) == ("llama_cpp", 1, 1, 4)


def test_a_variant_that_is_not_allowed_is_not_taken_though_no_reason_was_given():
    better = point(form("generator", variant="q4"), 1, 0.1)
    measured = table([*gateway().points, better])
    assert Planner(measured, wishes(), limits()).plan(Aim()).choices["generator"].form.variant == "int8"


def test_memory_is_a_limit_and_the_explanation_says_so():
    memory = {each.form: (900 if each.form.backend == "openvino" else 100) << 20 for each in gateway().points}
    measured = table(gateway().points, memory=memory)
    planner = Planner(measured, wishes(), limits(memory_bytes=1200 << 20))
    plan = planner.plan(Aim())
    assert plan.memory_bytes <= 1200 << 20
    verdicts = planner.explain("generator", plan, Aim())
    assert verdicts[0].fate == "chosen"
    assert any("MiB" in verdict.why for verdict in verdicts if verdict.fate == "ruled out")


def test_every_candidate_is_explained_once():
    planner = Planner(gateway(), wishes(), limits())
    plan = planner.plan(Aim())
    for stage, offer in planner._offers.items():
        verdicts = planner.explain(stage, plan, Aim())
        assert len(verdicts) == len(offer.options) + len(offer.rejections)
        assert [verdict.fate for verdict in verdicts].count("chosen") == 1
        assert all(verdict.why for verdict in verdicts[1:])


def test_inexact_forms_are_used_only_where_they_are_allowed():
    quick = form("generator", options=(("exact", False),))
    measured = table([point(form("generator", options=(("exact", True),)), 1, 2.0), point(quick, 1, 1.0)])
    fast = Planner(measured, wishes(["generator"]), limits()).plan(Aim())
    assert fast.choices["generator"].form == quick
    assert any("exact = false" in note for note in fast.notes)
    for strict in ({"exact": True}, {"options": {"exact": True}}):
        careful = Planner(measured, wishes(["generator"], **strict), limits()).plan(Aim())
        assert careful.choices["generator"].form != quick
        assert not any("exact" in note for note in careful.notes)


def test_stages_that_fight_are_not_run_together():
    first, second = form("a"), form("b")
    points = [point(first, 1, 1.0), point(second, 1, 1.0)]
    fight = Pair(
        first=first, second=second, first_batch=1, second_batch=1, first_slowdown=3, second_slowdown=3
    )
    alone = wishes(["a", "b"], workers=1)
    peaceful = Planner(table(points), alone, limits(modes=("together", "turns"))).plan(Aim())
    fighting = Planner(table(points, [fight]), alone, limits(modes=("together", "turns"))).plan(Aim())
    assert peaceful.lease_mode == "together"
    assert peaceful.predicted_rate_per_s == pytest.approx(1.0)
    assert fighting.predicted_rate_per_s == pytest.approx(0.5)


@pytest.mark.parametrize(("backend", "on_one_core_s"), [("openvino", 0.8), ("llama_cpp", 0.6)])
def test_an_engine_that_keeps_its_threads_is_no_cheaper_on_fewer_cores(backend, on_one_core_s):
    single, double = (form("generator", backend, threads) for threads in (1, 2))
    told = {"new_tokens": 32}
    prices = Prices(table([point(single, 1, 0.6, 0.6, **told), point(double, 1, 0.45, 0.8, **told)]))
    assert prices.seconds(double, 1, 1, 1) == pytest.approx(on_one_core_s)
    assert prices.seconds(double, 1, 1, 2) == pytest.approx(0.45)


def test_disjoint_silicon_runs_at_the_speed_of_the_slowest():
    measured = table([point(form("a", device="npu", threads=0), 1, 0.2, 0.01), point(form("b"), 1, 0.5)])
    plan = Planner(measured, wishes(["a", "b"]), limits(cores=1)).plan(Aim())
    assert plan.predicted_rate_per_s == pytest.approx(1 / 0.51)
    assert plan.bottleneck == "b"


def test_it_says_what_to_run_when_nothing_is_allowed():
    with pytest.raises(NotFound, match="edgectl calibrate"):
        Planner(gateway(), wishes(variants=("fp32",), better_refused="no"), limits()).plan(Aim())
    with pytest.raises(NotFound, match=r"latency_s 0\.01"):
        Planner(gateway(), wishes(), limits()).plan(Aim(latency_s=0.01))


def test_equal_assignments_have_equal_ids():
    one, same = (Planner(gateway(), wishes(), limits()).plan(Aim()) for _ in range(2))
    other = Planner(gateway(), wishes(), limits()).plan(Aim(objective="latency"))
    assert one.id == same.id != other.id
