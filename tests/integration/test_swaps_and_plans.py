"""A swap and a plan: one at a time, and the plan that is applied later wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.errors import AlreadyRunning
from edged.testing.daemon import RunningDaemon

from .test_plan import Box, settled
from .test_rollout import LOAD_MS, of_stage, with_options
from .test_swaps import over


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
