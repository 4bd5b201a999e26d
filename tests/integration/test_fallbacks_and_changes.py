"""A device that is lost while somebody changes its stage: a swap, a scaling, a plan, one that is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edged.errors import BadRequest
from edged.placement.fingerprint import take
from edged.placement.table import Choice, Form, Plan
from edged.testing.daemon import RunningDaemon

from .test_daemon import Streaming, ask
from .test_fallbacks import config, lose, on

Start = Callable[..., RunningDaemon]
LOAD = ", load_ms = 600"
CHANGES: dict[str, Callable[[RunningDaemon], object]] = {
    "variant": lambda running: running.admin.swap_stage("generator", variant="light"),
    "one copy": lambda running: running.admin.swap_stage("generator", variant="light", one_copy=True),
    "scale": lambda running: running.admin.scale_stage("generator", 2),
}


def over(running: RunningDaemon) -> str:
    """The problem of a swap that has ended."""
    running.wait_for(lambda _: not running.admin.swap_report().under_way, "the end of the change")
    return running.admin.swap_report().problem


def applied(running: RunningDaemon) -> str:
    """The problem of a plan that is on its way no more."""
    running.wait_for(lambda _: not running.admin.plan().under_way, "the end of the plan")
    return running.admin.plan().problem


def form(stage: str, device: str, **options: int) -> Form:
    model, fixed = "smollm2-135m-instruct", tuple(sorted(options.items()))
    return Form(
        stage=stage, model=model, variant="none", backend="simulated", device=device, threads=0, options=fixed
    )


def plan(*forms: Form) -> Plan:
    def chosen(of: Form) -> Choice:
        return Choice(
            form=of,
            batch=1,
            predicted_rate_per_s=1.0,
            latency_s=1.0,
            loaded_latency_s=1.0,
            cpu_s=1.0,
            utilisation=1.0,
            memory_bytes=1,
            why="",
        )

    return Plan(
        id="some",
        objective="rate",
        choices={of.stage: chosen(of) for of in forms},
        lease_mode="turns",
        bottleneck="",
        predicted_rate_per_s=1.0,
        predicted_latency_s=1.0,
        predicted_first_token_s=1.0,
        predicted_loaded_latency_s=1.0,
        predicted_cpu_s=1.0,
        memory_bytes=1,
        fingerprint=take({}),
    )


def two_stages(tmp_path: Path) -> str:
    """The configuration of `config`, which leaves the device to a plan, and a second stage."""
    first = config(tmp_path).replace("device = 'sim:gpu'\n", "fallback = ['sim:cpu']\n")
    return first + (
        "[stages.second]\nkind = 'generator'\nmodel = 'smollm2-135m-instruct'\nbackend = 'simulated'\n"
        "device = 'sim:npu'\n"
    )


@pytest.mark.parametrize("change", CHANGES)
def test_a_loss_during_a_change_costs_nobody_an_answer(daemon: Start, tmp_path: Path, change: str) -> None:
    running = daemon(config(tmp_path, options=LOAD))
    undisturbed = ask(running.client).text
    stream = Streaming(running.client)
    assert stream.begun.wait(30)
    CHANGES[change](running)
    lose(tmp_path, "sim:gpu")
    assert stream.result().text == undisturbed
    assert "sim:gpu" in over(running)
    away = on(running, "sim:cpu")
    assert ([lost.device for lost in away.lost_devices], away.variant, away.override) == (
        ["sim:gpu"],
        "none",
        "",
    )
    lose(tmp_path)
    assert on(running, "sim:gpu").variant == "none"
    assert running.client.status().rejected == {}


def test_a_device_that_is_lost_while_nobody_uses_it_is_noticed_by_the_new_worker(
    daemon: Start, tmp_path: Path
) -> None:
    running = daemon(config(tmp_path, options=LOAD))
    running.admin.swap_stage("generator", variant="light")
    lose(tmp_path, "sim:gpu")
    assert "sim:gpu" in over(running)
    assert ask(running.client).timings[0].device == "sim:cpu"
    lose(tmp_path)
    assert on(running, "sim:gpu").variant == "none"


def test_a_change_to_another_device_goes_on(daemon: Start, tmp_path: Path) -> None:
    running = daemon(config(tmp_path, options=LOAD))
    running.admin.swap_stage("generator", device="sim:npu")
    lose(tmp_path, "sim:gpu")
    assert ask(running.client).timings[0].device == "sim:npu"
    assert over(running) == ""
    assert on(running, "sim:npu").lost_devices == ()


def test_a_plan_that_is_refused_leaves_a_stage_on_its_way_back(daemon: Start, tmp_path: Path) -> None:
    running = daemon(config(tmp_path))
    lose(tmp_path, "sim:gpu")
    ask(running.client)
    on(running, "sim:cpu")
    with pytest.raises(BadRequest, match="against the configuration"):
        running.admin.apply_plan(plan(form("generator", "sim:npu")))
    assert [lost.device for lost in running.stage("generator").lost_devices] == ["sim:gpu"]
    lose(tmp_path)
    on(running, "sim:gpu")


def test_a_plan_that_has_a_stage_where_it_belongs_leaves_it_on_its_way_back(
    daemon: Start, tmp_path: Path
) -> None:
    running = daemon(config(tmp_path))
    lose(tmp_path, "sim:gpu")
    ask(running.client)
    serving = on(running, "sim:cpu").workers[0].pid
    assert running.admin.apply_plan(None) == []
    assert applied(running) == ""
    away = on(running, "sim:cpu")
    assert ([lost.device for lost in away.lost_devices], away.workers[0].pid) == (["sim:gpu"], serving)
    lose(tmp_path)
    on(running, "sim:gpu")


def test_a_plan_in_force_ends_a_fallback_and_one_taken_back_does_not(daemon: Start, tmp_path: Path) -> None:
    running = daemon(two_stages(tmp_path))
    good = plan(form("generator", "sim:gpu"), form("second", "sim:npu"))
    running.admin.apply_plan(good)
    assert applied(running) == ""
    on(running, "sim:gpu")
    lose(tmp_path, "sim:gpu")
    ask(running.client)
    on(running, "sim:cpu")
    running.admin.apply_plan(
        plan(form("generator", "sim:gpu", max_tokens=7), form("second", "sim:npu", no=1))
    )
    assert "taken back" in applied(running)
    on(running, "sim:cpu")
    lose(tmp_path)
    on(running, "sim:gpu")
    lose(tmp_path, "sim:gpu")
    ask(running.client)
    on(running, "sim:cpu")
    running.admin.apply_plan(plan(form("generator", "sim:cpu"), form("second", "sim:npu")))
    assert applied(running) == ""
    assert on(running, "sim:cpu").lost_devices == ()


def test_a_plan_that_moves_a_stage_within_a_device_that_is_lost_meanwhile(
    daemon: Start, tmp_path: Path
) -> None:
    running = daemon(two_stages(tmp_path))
    running.admin.apply_plan(plan(form("generator", "sim:gpu"), form("second", "sim:npu")))
    assert applied(running) == ""
    on(running, "sim:gpu")
    running.admin.apply_plan(plan(form("generator", "sim:gpu", load_ms=600), form("second", "sim:npu")))
    lose(tmp_path, "sim:gpu")
    assert ask(running.client).timings[0].device == "sim:cpu"
    assert applied(running) == ""
    assert [lost.device for lost in on(running, "sim:cpu").lost_devices] == ["sim:gpu"]
    lose(tmp_path)
    on(running, "sim:gpu")
    assert running.client.status().rejected == {}


def test_another_variant_while_the_next_device_has_one_of_its_own(daemon: Start, tmp_path: Path) -> None:
    running = daemon(config(tmp_path, more="fallback = [{ device = 'sim:cpu', variant = 'mine' }]"))
    lose(tmp_path, "sim:gpu")
    ask(running.client)
    assert on(running, "sim:cpu").variant == "mine"
    running.admin.swap_stage("generator", variant="light")
    assert over(running) == ""
    away = on(running, "sim:cpu")
    assert (away.variant, [lost.device for lost in away.lost_devices]) == ("light", ["sim:gpu"])
    lose(tmp_path)
    assert on(running, "sim:gpu").variant == "light"
