"""Rungs that ask for other variants: swapped in the background, taken back, never against the operator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.testing.daemon import RunningDaemon, running
from edged.testing.heat_box import Box, changes, governor, hurried, lighter, wait_rung
from edged.testing.sysfs import refusal

from .conftest import simulated
from .test_daemon import Streaming, ask, fault

pytestmark = pytest.mark.skipif(bool(refusal()), reason=refusal())

LADDER = lighter('{ generator = "light" }')
HOT_C, HOTTER_C, COOL_C, COLD_C = 80.9, 88.0, 58.0, -20.0
"""In the band of `lighter-models`; in that of `shed-batch`; below all limits; so far below that what the
governor hears is there at once, and would be long in rising again."""


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "tree")


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    return tmp_path / "faults.json"


@pytest.fixture
def daemon(box: Box, tmp_path: Path, faults: Path) -> Iterator[RunningDaemon]:
    folder = tmp_path / "daemon"
    folder.mkdir()
    stage = f'options = {{ decode_ms = 5, max_tokens = 30, faults = "{faults}" }}'
    config = hurried(LADDER, floor="shed-batch") + simulated(generator=stage)
    with running(folder, config, command=box.tree.command()) as started:
        started.wait_for(lambda status: status.temperature_c is not None, "the first sample")
        yield started


def test_streams_go_on_while_variants_come_and_go(box, daemon):
    streams = [Streaming(daemon.client) for _ in range(4)]
    assert all(stream.begun.wait(30) for stream in streams)
    box.heat(HOT_C)
    wait_rung(daemon, "lighter-models")
    assert {stream.result().finish for stream in streams} == {"length"}
    assert ask(daemon.client).timings[0].variant == "light"
    box.heat(COLD_C)
    wait_rung(daemon, "full")
    assert ask(daemon.client).timings[0].variant == "none"
    assert daemon.stage("generator").override == ""
    assert daemon.stage("generator").swaps == 2


def test_a_swap_that_fails_is_refused_and_the_rung_is_skipped(box, daemon, faults):
    fault(faults, crash="exit", at_load=True)
    box.heat(HOT_C)
    found = wait_rung(daemon, "shed-batch")
    assert found.refused == 1
    assert [row.rung for row in changes(daemon)] == ["shorter-answers", "lighter-models", "shed-batch"]
    (refused,) = [row for row in daemon.admin.decisions(1000) if row.what == "refused"]
    assert refused.rung == "lighter-models"
    assert "exit status 3" in refused.why
    assert (daemon.stage("generator").variant, daemon.client.status().state) == ("none", "ready")
    assert ask(daemon.client).usage.completion_tokens == 7, "what the rungs before do stands"
    faults.unlink()
    box.heat(COLD_C)
    wait_rung(daemon, "full")


def test_heat_does_not_wait_for_a_variant_that_loads_for_long(box, daemon, faults):
    fault(faults, hang="sleep", at_load=True)
    box.heat(90.0)
    status = daemon.wait_for(lambda status: status.governor.name == "shed-batch", "the rung behind it")
    assert status.governor.under_way
    assert [row.rung for row in changes(daemon)] == ["shorter-answers", "lighter-models", "shed-batch"]
    assert daemon.stage("generator").variant == "none"
    assert ask(daemon.client).rung == "shed-batch"


def test_what_the_operator_swapped_in_stands_and_the_rung_cannot_be_taken(box, daemon):
    daemon.admin.swap_stage("generator", variant="mine")
    daemon.wait_for(lambda _: not daemon.admin.swap_report().under_way, "the operator's swap")
    daemon.wait_for(lambda status: "lighter-models" in status.governor.unavailable, "the governor to see it")
    assert "what the operator swapped in" in governor(daemon).unavailable["lighter-models"]
    box.heat(HOTTER_C)
    wait_rung(daemon, "shed-batch")
    assert daemon.stage("generator").variant == "mine"
    box.heat(COLD_C)
    wait_rung(daemon, "full")
    assert daemon.stage("generator").variant == "mine"
    daemon.admin.revert_stage("generator")
    daemon.wait_for(lambda status: "lighter-models" not in status.governor.unavailable, "it can be taken")


def test_what_the_operator_takes_back_stays_back_until_the_best_rung(box, daemon):
    box.heat(HOT_C)
    wait_rung(daemon, "lighter-models")
    daemon.admin.revert_stage("generator")
    wait_rung(daemon, "shorter-answers")
    assert "what the operator" in governor(daemon).unavailable["lighter-models"]
    box.heat(HOTTER_C)
    wait_rung(daemon, "shed-batch")
    assert daemon.stage("generator").variant == "none"
    box.heat(COOL_C)
    wait_rung(daemon, "full")
    box.heat(HOT_C)
    wait_rung(daemon, "lighter-models")
    assert daemon.stage("generator").variant == "light"


def test_a_reload_keeps_the_rung_and_its_variants(box, daemon):
    box.heat(HOT_C)
    wait_rung(daemon, "lighter-models")
    daemon.config_path.write_text(
        daemon.config_path.read_text().replace("max_tokens = 30", "max_tokens = 31")
    )
    daemon.admin.reload()
    found = wait_rung(daemon, "lighter-models")
    assert found.why.startswith("temperature.cpu reached 78 °C")
    daemon.wait_for(
        lambda status: (status.stages[-1].variant, status.stages[-1].state) == ("light", "ready"),
        "the lighter variant again",
    )
    assert len(changes(daemon)) == 2
