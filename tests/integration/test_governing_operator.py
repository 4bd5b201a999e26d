"""Rungs that ask for other variants, while the operator changes the same stages or a device is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.errors import StageUnavailable
from edged.rungs.taking import Taking
from edged.testing.daemon import RunningDaemon, running
from edged.testing.heat_box import governor, hurried, lighter, wait_rung

from .conftest import NO_BUILT_IN
from .test_daemon import ask, fault

LADDER = lighter('{ generator = "light" }')
LIGHT = "lighter-models"


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    return tmp_path / "faults.json"


@pytest.fixture
def daemon(tmp_path: Path, faults: Path) -> Iterator[RunningDaemon]:
    folder = tmp_path / "daemon"
    folder.mkdir()
    stage = f'options = {{ decode_ms = 2, max_tokens = 8, load_ms = 700, faults = "{faults}" }}'
    config = hurried(LADDER) + (
        f"[placement]\nlost_first_s = 0.5\n{NO_BUILT_IN}"
        f"[stages.generator]\nbackend = 'simulated'\ndevice = 'sim:gpu'\n{stage}\n"
    )
    with running(folder, config) as started:
        yield started


def variant(daemon: RunningDaemon) -> str:
    return daemon.stage("generator").variant


def pin(daemon: RunningDaemon, name: str) -> None:
    daemon.admin.pin_rung(name)
    wait_rung(daemon, name)


def changed(daemon: RunningDaemon) -> None:
    daemon.wait_for(lambda _: not daemon.admin.swap_report().under_way, "the operator's change")


def test_an_operators_swap_that_is_still_loading_stands(daemon):
    daemon.admin.swap_stage("generator", variant="mine")
    daemon.admin.pin_rung(LIGHT)
    assert daemon.admin.swap_report().under_way
    daemon.wait_for(lambda status: LIGHT in status.governor.unavailable, "the governor to see it")
    wait_rung(daemon, LIGHT)
    assert variant(daemon) == "mine"
    pin(daemon, "full")
    assert variant(daemon) == "mine"
    assert daemon.stage("generator").swaps == 1


def test_a_stage_that_was_only_scaled_goes_back_and_keeps_its_workers(daemon):
    pin(daemon, LIGHT)
    daemon.admin.scale_stage("generator", 2)
    changed(daemon)
    assert variant(daemon) == "light"
    pin(daemon, "full")
    stage = daemon.stage("generator")
    assert (stage.variant, len(stage.workers), stage.override) == ("none", 2, "workers 1 -> 2")


def test_an_operators_swap_that_fails_while_the_rung_changes_changes_nothing(daemon, faults):
    pin(daemon, LIGHT)
    fault(faults, crash="exit", at_load=True, once=True)
    daemon.admin.swap_stage("generator", variant="mine")
    pin(daemon, "full")
    assert daemon.stage("generator").swaps_failed == 1
    assert variant(daemon) == "none"
    assert LIGHT not in governor(daemon).unavailable


def test_a_rung_is_left_while_a_device_is_lost_and_the_stage_returns_to_it(daemon, faults):
    pin(daemon, LIGHT)
    fault(faults, gone=["sim:gpu"])
    ask(daemon.client)
    daemon.wait_for(lambda _: daemon.stage("generator").device == "sim:cpu", "the stage elsewhere")
    pin(daemon, "full")
    assert (variant(daemon), daemon.stage("generator").device) == ("none", "sim:cpu")
    faults.unlink()
    daemon.wait_for(lambda _: daemon.stage("generator").device == "sim:gpu", "the device again")
    stage = daemon.stage("generator")
    assert (stage.variant, stage.override) == ("none", "")


def test_a_rung_that_was_refused_is_done_as_a_whole_when_it_is_pinned_again(daemon, faults):
    fault(faults, crash="exit", at_load=True)
    daemon.admin.pin_rung("shed-half")
    daemon.wait_for(lambda status: LIGHT in status.governor.left_out, "the refusal")
    assert "exit status 3" in governor(daemon).left_out[LIGHT]
    assert not governor(daemon).settings.variants
    with Taking(daemon.client, daemon.admin) as taking, pytest.raises(StageUnavailable, match="was refused"):
        taking.take("shed-batch")
    daemon.wait_for(lambda status: LIGHT in status.governor.left_out, "the try of the pin that was put back")
    faults.unlink()
    pin(daemon, "shed-batch")
    assert governor(daemon).settings.variants == {"generator": "light"}
    assert (variant(daemon), governor(daemon).left_out) == ("light", {})


def test_a_reload_with_a_shorter_ladder_goes_on(daemon):
    pin(daemon, "shed-most")
    text = daemon.config_path.read_text()
    watched = ("cpu", "igpu", "npu", "gpu", "board", "nvme")
    bands = ", ".join(f"{each} = {{ critical_c = 120.0, bands = [] }}" for each in watched)
    ladder = f'ladder = [{{ name = "full" }}, {{ name = "peer", peer = true }}]\ntemperature = {{ {bands} }}'
    assert LADDER in text
    daemon.config_path.write_text(text.replace(LADDER, ladder))
    daemon.admin.reload()
    daemon.wait_for(lambda status: status.governor.name == "full", "the best rung")
    assert [rung.name for rung in governor(daemon).ladder] == ["full", "peer"]
