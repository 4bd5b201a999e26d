"""A swap and a plan: one at a time, and the plan that is applied later wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.errors import AlreadyRunning
from edged.testing.daemon import RunningDaemon
from edged.testing.heat_box import wait_rung

from .test_plan import CONFIG, Box, settled
from .test_rollout import LOAD_MS, of_stage, with_options
from .test_swaps import over

WARM = """
[governor]
load = []
memory = []
stall = []
ladder = [{ name = "full" }, { name = "light", variants = { second = "light" } }]
""" + "".join(
    f"[governor.temperature.{kind}]\nbands = []\n" for kind in ("cpu", "igpu", "npu", "gpu", "board", "nvme")
)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def alone(daemon: RunningDaemon) -> None:
    daemon.wait_for(lambda s: all(len(stage.workers) < 2 for stage in s.stages), "the old ones gone")


def test_a_plan_that_is_applied_takes_the_place_of_what_was_swapped(box):
    with box.start() as daemon:
        daemon.admin.swap_stage("second", device="sim:gpu")
        assert over(daemon).overrides == {"second": "device sim:npu -> sim:gpu"}
        told = daemon.admin.apply_plan(box.plan())
        assert any("device sim:gpu -> sim:npu" in line for line in told)
        assert settled(daemon).problem == ""
        assert of_stage(daemon, "second").device == "sim:npu"
        assert daemon.admin.swap_report().overrides == {}
        alone(daemon)
        daemon.admin.swap_stage("second", device="sim:gpu")
        over(daemon)
        daemon.admin.revert_stage("second")
        assert over(daemon).problem == ""
        assert of_stage(daemon, "second").batch_limit == box.plan().choices["second"].batch


def test_a_plan_that_is_taken_back_leaves_what_was_swapped(box):
    with box.start() as daemon:
        daemon.admin.swap_stage("second", device="sim:gpu")
        over(daemon)
        daemon.admin.apply_plan(with_options(box.plan(), "second", no_such_option=1))
        assert "no_such_option" in settled(daemon).problem
        assert of_stage(daemon, "second").device == "sim:gpu"
        assert daemon.admin.swap_report().overrides == {"second": "device sim:npu -> sim:gpu"}


def test_no_swap_while_a_plan_is_on_its_way(box):
    with box.start() as daemon:
        daemon.admin.apply_plan(with_options(box.plan(), "second", load_ms=3 * LOAD_MS))
        with pytest.raises(AlreadyRunning, match="a plan is being applied"):
            daemon.admin.swap_stage("second", device="sim:gpu")
        assert settled(daemon).problem == ""
        alone(daemon)
        daemon.admin.swap_stage("second", device="sim:gpu")
        assert over(daemon).problem == ""


def variant_of(daemon: RunningDaemon) -> str:
    return of_stage(daemon, "second").variant


def test_a_plan_on_a_warm_rung_is_no_choice_of_the_operators_and_the_rung_has_its_way(box):
    with box.start(CONFIG + WARM) as daemon:
        daemon.admin.pin_rung("light")
        wait_rung(daemon, "light")
        assert variant_of(daemon) == "light"
        daemon.admin.apply_plan(box.plan())
        assert settled(daemon).problem == ""
        daemon.wait_for(lambda _: variant_of(daemon) == "light", "the rung's variant under the new plan")
        daemon.admin.pin_rung("full")
        wait_rung(daemon, "full")
        daemon.wait_for(lambda _: not daemon.admin.swap_report().overrides, "all as planned")
        assert variant_of(daemon) != "light"


def test_clearing_where_there_is_no_plan_is_no_choice_of_the_operators_either(box):
    with box.start(CONFIG + WARM) as daemon:
        daemon.admin.pin_rung("light")
        wait_rung(daemon, "light")
        assert daemon.admin.apply_plan(None)
        assert settled(daemon).problem == ""
        daemon.wait_for(lambda _: variant_of(daemon) == "light", "the rung's variant again")
        assert daemon.client.status().governor.unavailable == {}


def test_a_plan_that_is_taken_back_on_a_warm_rung_leaves_the_rung_its_variant_to_take_back(box):
    with box.start(CONFIG + WARM) as daemon:
        usual = variant_of(daemon)
        daemon.admin.pin_rung("light")
        wait_rung(daemon, "light")
        daemon.admin.apply_plan(with_options(box.plan(), "second", no_such_option=1))
        assert "no_such_option" in settled(daemon).problem
        daemon.wait_for(lambda _: variant_of(daemon) == "light", "the rung's variant")
        daemon.admin.pin_rung("full")
        wait_rung(daemon, "full")
        assert variant_of(daemon) == usual
        assert daemon.admin.swap_report().overrides == {}
