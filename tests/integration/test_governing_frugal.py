"""Rungs on which a stage computes with fewer CPU seconds: other options, in force and taken back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edged.testing.daemon import RunningDaemon, running
from edged.testing.heat_box import Box, governor, hurried, lighter, wait_rung
from edged.testing.sysfs import refusal

from .conftest import simulated
from .test_daemon import ask

pytestmark = pytest.mark.skipif(bool(refusal()), reason=refusal())

HOT_C, HOTTER_C, COLD_C = 80.9, 88.0, -20.0


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "tree")


@contextmanager
def started(box: Box, folder: Path, variants: str, options: str) -> Iterator[RunningDaemon]:
    ladder = lighter(variants).replace(
        f"variants = {variants}", f'variants = {variants}, frugal = ["generator"]'
    )
    config = hurried(ladder, floor="shed-batch") + simulated(
        generator=f"options = {{ decode_ms = 1, max_tokens = 30{options} }}"
    )
    with running(folder, config, command=box.tree.command()) as daemon:
        daemon.wait_for(lambda status: status.temperature_c is not None, "the first sample")
        yield daemon


@pytest.fixture
def daemon(box: Box, tmp_path: Path) -> Iterator[RunningDaemon]:
    (tmp_path / "daemon").mkdir()
    with started(box, tmp_path / "daemon", "{}", ", threads = 4") as daemon:
        yield daemon


def test_the_options_change_on_the_rung_and_go_back_behind_it(box, daemon):
    box.heat(HOT_C)
    wait_rung(daemon, "lighter-models")
    assert daemon.stage("generator").override == "threads 4 -> 2"
    assert ask(daemon.client).timings[0].variant == "none"
    box.heat(COLD_C)
    wait_rung(daemon, "full")
    assert daemon.stage("generator").override == ""
    assert daemon.stage("generator").swaps == 2
    assert ask(daemon.client).timings[0].variant == "none"


def test_a_variant_and_its_options_come_in_one_swap(box, tmp_path):
    (tmp_path / "daemon").mkdir()
    with started(box, tmp_path / "daemon", '{ generator = "light" }', ", threads = 4") as daemon:
        box.heat(HOT_C)
        wait_rung(daemon, "lighter-models")
        stage = daemon.stage("generator")
        assert (stage.variant, stage.swaps) == ("light", 1)
        assert "threads 4 -> 2" in stage.override


def test_a_stage_that_has_nothing_to_save_says_so(box, tmp_path):
    (tmp_path / "daemon").mkdir()
    with started(box, tmp_path / "daemon", "{}", ", threads = 1") as daemon:
        found = governor(daemon).unavailable["lighter-models"]
        assert found == "stage generator cannot run with fewer CPU seconds than it does"
        box.heat(HOTTER_C)
        wait_rung(daemon, "shed-batch")
        assert daemon.stage("generator").swaps == 0


def test_what_the_operator_swapped_in_is_not_made_frugal(box, daemon):
    daemon.admin.swap_stage("generator", variant="mine")
    daemon.wait_for(lambda _: not daemon.admin.swap_report().under_way, "the operator's swap")
    daemon.wait_for(lambda status: "lighter-models" in status.governor.unavailable, "the governor to see it")
    box.heat(HOTTER_C)
    wait_rung(daemon, "shed-batch")
    assert daemon.stage("generator").override == "variant none -> mine"
