"""The governor acts: heat is written into the sysfs tree that the real daemon reads, and answers change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from edged.errors import BadRequest, NotFound, Shed
from edged.testing.daemon import RunningDaemon, running
from edged.testing.heat_box import Box, changes, governor, hurried, lighter, wait_rung
from edged.testing.sysfs import refusal

from .conftest import simulated
from .test_daemon import Streaming, ask
from .test_machine import Heartbeat, edgectl

pytestmark = pytest.mark.skipif(bool(refusal()), reason=refusal())

COLD_C = -20.0
"""So far below all limits that what the governor hears is there at once."""
STAGE = "options = { decode_ms = 1, max_tokens = 40 }"


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "tree")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "daemon").mkdir()
    return tmp_path / "daemon"


@pytest.fixture
def config() -> str:
    return hurried(lighter('{ generator = "light" }')) + simulated(generator=STAGE)


@pytest.fixture
def daemon(box: Box, folder: Path, config: str) -> Iterator[RunningDaemon]:
    with running(folder, config, command=box.tree.command()) as started:
        started.wait_for(lambda status: status.temperature_c is not None, "the first sample")
        yield started


def tokens(daemon: RunningDaemon) -> int:
    final = ask(daemon.client)
    assert final.usage is not None
    return final.usage.completion_tokens


def test_heat_takes_it_down_one_rung_at_a_time_and_cooling_back_to_the_best(box, daemon):
    assert tokens(daemon) == 40
    box.heat(92.5)
    wait_rung(daemon, "shed-half")
    down = changes(daemon)
    can = ["full", "shorter-answers", "lighter-models", "shed-batch", "shed-half"]
    assert [(row.before, row.rung) for row in down] == list(pairwise(can)), (
        "without a retriever, a reranker and a peer, the rungs that need them are passed by"
    )
    assert {(row.what, row.signal, row.cause) for row in down} == {("down", "temperature.cpu", "entered")}
    assert all(row.readings["temperature.cpu"] >= row.value - 1e-3 for row in down)
    status = governor(daemon)
    assert "peers are switched off" in status.unavailable["peer"]
    assert status.unavailable["fewer-passages"] == "there is no retriever"
    assert daemon.stage("generator").variant == "light"

    final = ask(daemon.client)
    assert (final.rung, final.usage.completion_tokens) == ("shed-half", 7)
    with pytest.raises(
        Shed, match=r"'shed-half'.*temperature.cpu reached.*no work of priority batch"
    ) as shed:
        ask(daemon.client, edged={"priority": "batch"})
    assert shed.value.retry_after_s >= 1.0
    assert daemon.client.status().rejected == {"shed": 1}

    box.heat(COLD_C)
    wait_rung(daemon, "full")
    up = changes(daemon)[len(down) :]
    assert [(row.before, row.rung) for row in up] == [
        (after, before) for before, after in reversed(list(pairwise(can)))
    ]
    assert daemon.stage("generator").variant == "none"
    final = ask(daemon.client, edged={"priority": "batch"})
    assert (final.rung, final.usage.completion_tokens) == ("full", 40)
    page = daemon.client.metrics()
    assert 'edged_governor_changes_total{cause="temperature",direction="down"} 4.0' in page
    assert "edged_governor_rung 0.0" in page
    assert 'edged_governor_rung_seconds_total{rung="shed-half"}' in page


def test_what_was_accepted_before_is_answered_as_it_was_asked(box, daemon):
    streams = [Streaming(daemon.client) for _ in range(4)]
    assert all(stream.begun.wait(30) for stream in streams)
    box.heat(110.0)
    wait_rung(daemon, "shed-most")
    results = [stream.result() for stream in streams]
    assert {(final.finish, final.usage.completion_tokens) for final in results} == {("length", 40)}


def test_a_critical_temperature_does_not_wait(box, folder, config):
    patient = config.replace("dwell_s = 0.15", "dwell_s = 60")
    with running(folder, patient, command=box.tree.command()) as daemon:
        daemon.wait_for(lambda status: status.temperature_c is not None, "the first sample")
        box.heat(110.0)
        wait_rung(daemon, "shed-most")
        first, last = changes(daemon)
        assert (first.rung, first.cause) == ("shorter-answers", "entered")
        assert (last.rung, last.cause, last.limit) == ("shed-most", "critical", 95.0)


@pytest.fixture
def heartbeats() -> Iterator[list[Heartbeat]]:
    started: list[Heartbeat] = []
    yield started
    for heartbeat in started:
        heartbeat.stop()


@pytest.mark.parametrize("lie", ["absurd", "vanished", "frozen"])
def test_a_sensor_that_lies_changes_nothing_and_is_told(box, daemon, heartbeats, lie):
    box.heat(77.5)
    wait_rung(daemon, "shorter-answers")
    before, known = len(changes(daemon)), len(daemon.admin.decisions(1000))
    if lie == "absurd":
        box.heat(-89.7)
    elif lie == "vanished":
        box.tree.vanish(box.package)
    else:
        heartbeat = Heartbeat(box.tree)  # every core gets busy, and the reading stands still
        heartbeat.busy = 1.0
        heartbeats.append(heartbeat)
    unknown = daemon.wait_for(
        lambda status: "temperature.cpu" in (status.governor.unknown if status.governor else {}), lie
    ).governor
    reason = {"absurd": "-89.7 °C is outside", "vanished": "missing", "frozen": "77.5 °C for"}[lie]
    assert reason in unknown.unknown["temperature.cpu"]
    assert unknown.name == "shorter-answers"
    (row,) = daemon.admin.decisions(1000)[known:]
    assert (row.what, row.signal) == ("signal", "temperature.cpu")
    assert reason in row.why
    daemon.wait_for(lambda status: status.governor.since_s > 1.0, "twenty more samples")
    assert len(changes(daemon)) == before
    if lie != "frozen":
        return
    box.heat(COLD_C)
    wait_rung(daemon, "full")


def test_a_pin_holds_whatever_the_readings_say_until_it_is_released(box, daemon):
    box.heat(77.5)
    wait_rung(daemon, "shorter-answers")
    assert daemon.admin.pin_rung("shed-batch").pin == "shed-batch"
    wait_rung(daemon, "shed-batch")
    assert daemon.stage("generator").variant == "light"
    daemon.admin.pin_rung("full")
    wait_rung(daemon, "full")
    assert tokens(daemon) == 40
    box.heat(110.0)
    daemon.wait_for(lambda status: status.temperature_c == 110.0, "heat")
    daemon.wait_for(lambda status: status.governor.since_s > 1.0, "twenty more samples")
    assert governor(daemon).name == "full"
    daemon.admin.reload()
    assert (governor(daemon).pin, governor(daemon).name) == ("full", "full"), "a pin survives a reload"
    assert daemon.admin.release_rung().pin == ""
    wait_rung(daemon, "shed-most")
    shown = edgectl(daemon, "governor", "show")
    assert shown.startswith("rung shed-most (8 of 8)")
    assert ": temperature.cpu reached " in shown
    assert "cannot be taken: there is no retriever" in shown
    assert "released" in edgectl(daemon, "governor", "history", "-n", "50")
    assert "rung full" in edgectl(daemon, "governor", "pin", "full")
    assert "pinned to full" in edgectl(daemon, "status")
    assert json.loads(edgectl(daemon, "governor", "auto", "--json"))["pin"] == ""
    whats = [row.what for row in daemon.admin.decisions(1000)]
    assert (whats.count("pinned"), whats.count("released")) == (3, 2)
    with pytest.raises(NotFound, match="no rung 'attic'; from best to worst: full, fewer"):
        daemon.admin.pin_rung("attic")
    with pytest.raises(BadRequest, match="'peer' cannot be taken: peers are switched off"):
        daemon.admin.pin_rung("peer")


def test_nothing_below_the_floor_and_a_reload_moves_it(box, folder, config):
    floored = config.replace('floor = ""', 'floor = "shorter-answers"')
    with running(folder, floored, command=box.tree.command()) as daemon:
        box.heat(110.0)
        wait_rung(daemon, "shorter-answers")
        with pytest.raises(BadRequest, match=r"'shed-half' is below governor.floor = 'shorter-answers'"):
            daemon.admin.pin_rung("shed-half")
        daemon.wait_for(lambda status: status.governor.since_s > 1.0, "twenty more samples")
        assert [row.rung for row in changes(daemon)] == ["shorter-answers"]
        daemon.config_path.write_text(config.replace('floor = ""', 'floor = "shed-batch"'))
        daemon.admin.reload()
        wait_rung(daemon, "shed-batch")
        assert governor(daemon).floor == "shed-batch"


def test_the_history_survives_a_restart(box, folder, config):
    with running(folder, config, command=box.tree.command()) as daemon:
        daemon.wait_for(lambda status: status.temperature_c is not None, "the first sample")
        box.heat(77.5)
        wait_rung(daemon, "shorter-answers")
        before = daemon.admin.decisions(1000)
        daemon.admin.pin_rung("shed-batch")
        wait_rung(daemon, "shed-batch")
    box.heat(40.0)
    with running(folder, config, command=box.tree.command()) as daemon:
        assert governor(daemon).pin == "", "a pin does not survive a restart"
        assert governor(daemon).name == "full"
        assert daemon.admin.decisions(1000)[: len(before)] == before


def test_without_sensors_load_counts(tmp_path, folder):
    from edged.testing.sysfs import SensorTree

    tree = SensorTree(tmp_path / "tree", own_load=True)
    load = 'load = [{ rung = "shorter-answers", enter = 0.5, leave = 0.2 }]'
    config = hurried(lighter('{ generator = "light" }')).replace("load = []", load)
    slow = simulated(generator="max_batch = 1\noptions = { decode_ms = 50, max_tokens = 10 }")
    queue = "[queue]\nslots = 10\n"
    with running(folder, config + slow + queue, command=tree.command()) as daemon:
        daemon.wait_for(lambda status: status.senses is not None, "the first sample")
        assert not governor(daemon).thermal
        assert daemon.client.status().temperature_note.endswith("thermal policy is off")
        streams = [Streaming(daemon.client) for _ in range(9)]
        wait_rung(daemon, "shorter-answers")
        (row,) = changes(daemon)
        assert (row.signal, row.limit) == ("load", 0.5)
        assert {stream.result().finish for stream in streams} == {"length"}
        wait_rung(daemon, "full")
