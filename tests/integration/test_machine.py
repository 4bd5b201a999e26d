"""The daemon feels the machine: real files at the real paths, in a mount namespace of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.governor.readings import DeviceHeat
from edged.report import Status
from edged.testing.daemon import RunningDaemon, running
from edged.testing.sysfs import SensorTree, refusal

from .conftest import simulated

pytestmark = pytest.mark.skipif(bool(refusal()), reason=refusal())

SAMPLE_S = 0.1
CONFIG = f"[governor]\nsample_s = {SAMPLE_S}\n" + simulated(generator="options = { decode_ms = 1 }")


@pytest.fixture
def tree(tmp_path: Path) -> SensorTree:
    return SensorTree(tmp_path / "tree", own_load=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "daemon").mkdir()
    return tmp_path / "daemon"


@pytest.fixture
def fanless(tree: SensorTree) -> dict[str, Path]:
    """A box with a processor, an NPU, a disk; 62 °C."""
    package, core = tree.chip(0, "coretemp", ("Package id 0", 62.0), ("Core 0", 61.0))
    (disk,) = tree.chip(1, "nvme", ("Composite", 41.0))
    return {"package": package, "core": core, "disk": disk, "npu": tree.zone(0, "npu-thermal", 50.0)}


@pytest.fixture
def daemon(tree: SensorTree, folder: Path) -> Iterator[RunningDaemon]:
    with running(folder, CONFIG, command=tree.command()) as started:
        yield started


def heat(status: Status, device: str) -> DeviceHeat | None:
    devices = status.senses.devices if status.senses else ()
    return next((each for each in devices if each.device == device), None)


def celsius(status: Status, device: str) -> float | None:
    found = heat(status, device)
    return found.celsius if found else None


def ignored(status: Status) -> dict[str, str]:
    return {each.sensor: each.reason for each in status.senses.ignored} if status.senses else {}


def unlike_sensors(status: Status) -> tuple[object, ...]:
    """All that a lying sensor must not change."""
    stages = [
        (stage.name, stage.state, stage.restarts, stage.variant, stage.device) for stage in status.stages
    ]
    pids = [worker.pid for stage in status.stages for worker in stage.workers]
    return status.state, stages, pids, status.rejected


def logged(daemon: RunningDaemon, event: str, sensor: str) -> list[dict[str, object]]:
    records = daemon.admin.logs(1000)
    return [each for each in records if each["event"] == event and each.get("sensor") == sensor]


def test_lies_of_a_sensor_are_told_and_change_nothing_else(tree, fanless, daemon):
    status = daemon.wait_for(lambda status: celsius(status, "npu") == 50.0, "the first sample")
    assert (status.temperature_c, status.temperature_note) == (62.0, "")
    assert {each.device for each in status.senses.devices} == {"cpu", "npu", "nvme"}
    before = unlike_sensors(status)

    tree.write(fanless["npu"], -89.7)
    status = daemon.wait_for(lambda status: celsius(status, "npu") is None, "an absurd reading")
    assert ignored(status) == {"npu-thermal": "absurd"}
    assert "npu-thermal is absurd: -89.7 °C is outside of -40 to 150 °C" in status.temperature_note
    assert status.temperature_c == 62.0

    tree.write(fanless["npu"], 51.0)
    daemon.wait_for(lambda status: celsius(status, "npu") == 51.0, "a good reading again")

    tree.vanish(fanless["npu"])
    status = daemon.wait_for(lambda status: celsius(status, "npu") is None, "a vanished sensor")
    assert ignored(status) == {"npu-thermal": "missing"}
    assert heat(status, "npu").why == "npu-thermal is missing: it has gone or cannot be read"

    assert unlike_sensors(daemon.client.status()) == before
    lines = logged(daemon, "sensor ignored", "npu-thermal")
    assert [line["reason"] for line in lines] == ["absurd", "missing"]
    assert lines[0]["readings"] == {"npu-thermal": -89.7}
    assert lines[0]["believed_c"] is None
    assert len(logged(daemon, "sensor believed again", "npu-thermal")) == 1


class Heartbeat(threading.Thread):
    """Keeps every core as busy as `busy` says, in the daemon's eyes."""

    def __init__(self, tree: SensorTree) -> None:
        super().__init__(daemon=True)
        self.tree, self.busy = tree, 0.0
        self.over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.wait(SAMPLE_S / 2):
            self.tree.work(
                self.busy * SAMPLE_S
            )  # twice the time that passes: a full load also on a slow machine

    def stop(self) -> None:
        self.over.set()
        self.join()


def test_a_frozen_sensor_is_told_once_the_load_has_moved_and_the_other_counts(tree, fanless, daemon):
    daemon.wait_for(lambda status: celsius(status, "cpu") == 62.0, "the first sample")
    heartbeat = Heartbeat(tree)
    try:
        heartbeat.busy = 1.0
        status = daemon.wait_for(
            lambda status: ignored(status).get("coretemp Package id 0") == "stuck", "a frozen sensor"
        )
    finally:
        heartbeat.stop()
    assert "62 °C for 20 samples since the load moved by" in status.temperature_note
    assert "coretemp Core 0" in ignored(status), "it stood still as well"
    assert celsius(status, "cpu") is None
    assert celsius(status, "nvme") == 41.0, "of a disk nobody knows the load"
    (line,) = logged(daemon, "sensor ignored", "coretemp Package id 0")
    assert line["readings"] == {"coretemp Package id 0": 62.0, "coretemp Core 0": 61.0}
    assert status.state == "ready"
    tree.write(fanless["package"], 64.0)
    daemon.wait_for(lambda status: celsius(status, "cpu") == 64.0, "it moves")


def test_clocks_battery_and_power_are_shown(tree, fanless, folder):
    tree.clocks(1200, 1800, 3400)
    tree.battery(80, plugged=False)
    tree.energy(1_000_000)
    with running(folder, CONFIG, command=tree.command()) as daemon:

        def powered(status: Status) -> bool:
            return status.senses is not None and status.senses.readings.power_w is not None

        status = daemon.wait_for(powered, "two samples")
        readings = status.senses.readings
        assert readings.frequency.ratio == pytest.approx(1200 / 3400)
        assert readings.battery.percent == 80
        assert readings.memory.total_bytes > 0
        assert status.senses.throttling == "clocks are held at 1800 of 3400 MHz"
        assert status.senses.throttling in status.temperature_note
        text = edgectl(daemon, "status")
        assert "heat  cpu 62 °C  npu 50 °C  nvme 41 °C" in text.replace(
            "nvme 41 °C  npu 50 °C", "npu 50 °C  nvme 41 °C"
        )
        assert "clock 1.2 of 3.4 GHz" in text
        assert "battery 80 %" in text
        page = json.loads(edgectl(daemon, "status", "--json"))
        assert {each["device"]: each["celsius"] for each in page["senses"]["devices"]}["cpu"] == 62.0


def edgectl(daemon: RunningDaemon, *words: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "edged.cli", "--socket", str(daemon.runtime_dir / "edged.sock"), *words],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_without_sensors_the_policy_is_off_and_says_so(tree, folder):
    with running(folder, CONFIG, command=tree.command()) as daemon:
        status = daemon.wait_for(lambda status: status.senses is not None, "the first sample")
        assert status.temperature_c is None
        assert status.temperature_note == "no temperature sensor on this machine: thermal policy is off"
        assert status.state == "ready"


PSUTIL = """
import json, psutil, time
from edged.governor.sysfs import Thermometers
found = psutil.sensors_temperatures().items()
theirs = sorted([chip, entry.label, entry.current] for chip, entries in found for entry in entries)
ours = sorted([each.sensor, each.celsius] for each in Thermometers().read(time.monotonic()))
print(json.dumps([theirs, ours]))
"""


def test_the_tree_is_what_psutil_sees_and_zones_beside_chips_are_seen_too(tree, fanless):
    read = subprocess.run(
        tree.command(sys.executable, "-c", PSUTIL), capture_output=True, text=True, check=True
    )
    theirs, ours = json.loads(read.stdout)
    assert [[f"{chip} {label}", degrees] for chip, label, degrees in theirs] == [
        each for each in ours if each[0] != "npu-thermal"
    ]
    assert ["npu-thermal", 50.0] in ours


def test_a_driver_that_never_answers_is_told_and_the_daemon_goes_on(tree, fanless, folder):
    with running(folder, CONFIG, command=tree.command()) as daemon:
        daemon.wait_for(lambda status: celsius(status, "npu") == 50.0, "the first sample")
        hanging = fanless["npu"]
        tree.hang(hanging)

        def told(status: Status) -> bool:
            return status.senses is not None and bool(status.senses.problem)

        status = daemon.wait_for(told, "a silent driver")
        assert "the sensors do not answer" in status.temperature_note
        assert status.temperature_c is None
        assert status.state == "ready"
        tree.write(hanging, 52.0)
        tree.release()
        daemon.wait_for(lambda status: celsius(status, "npu") == 52.0, "an answer")
        tree.hang(hanging)
        daemon.wait_for(told, "a silent driver again, during which it stops")
