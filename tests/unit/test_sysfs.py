"""What is read from the kernel's files, whatever is in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.governor.sensors import Sampler, battery
from edged.governor.sysfs import LOOK_AGAIN_S, Clocks, Thermometers, pressure


def put(root: Path, **files: str | bytes) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def test_chips_of_one_name_are_told_apart_by_the_device_they_sit_on(tmp_path):
    for number in range(2):
        put(tmp_path / "devices" / f"nvme{number}")
        folder = tmp_path / "hwmon" / f"hwmon{number}"
        put(folder, name="nvme\n", temp1_label="Composite\n", temp1_input=f"4{number}850\n")
        (folder / "device").symlink_to(tmp_path / "devices" / f"nvme{number}")
    read = Thermometers(tmp_path).read(0.0)
    assert [(each.sensor, each.device, each.celsius) for each in read] == [
        ("nvme0 Composite", "nvme0", 40.85),
        ("nvme1 Composite", "nvme1", 41.85),
    ]


def test_sensors_of_one_name_are_numbered_and_an_unlabelled_one_has_its_channel(tmp_path):
    put(tmp_path / "hwmon/hwmon0", name="acpitz", temp1_input="27800")
    for number in range(2):
        put(tmp_path / f"thermal/thermal_zone{number}", type="SEN1", temp="30000")
    names = [each.sensor for each in Thermometers(tmp_path).read(0.0)]
    assert names == ["acpitz temp1", "SEN1", "SEN1 #2"]


def test_a_zone_that_the_kernel_also_shows_as_a_chip_is_read_once(tmp_path):
    put(tmp_path / "hwmon/hwmon0", name="cpu_thermal", temp1_input="50000")
    put(tmp_path / "thermal/thermal_zone0", type="cpu-thermal", temp="50000")
    put(tmp_path / "thermal/thermal_zone1", type="npu-thermal", temp="51000")
    assert [each.device for each in Thermometers(tmp_path).read(0.0)] == ["cpu", "npu"]


def test_a_vanished_sensor_has_no_value_at_once_and_a_new_one_is_found_soon(tmp_path):
    put(tmp_path / "thermal/thermal_zone0", type="cpu", temp="50000")
    thermometers = Thermometers(tmp_path)
    assert [each.celsius for each in thermometers.read(0.0)] == [50.0]
    (tmp_path / "thermal/thermal_zone0/temp").unlink()
    assert [each.celsius for each in thermometers.read(1.0)] == [None]
    put(tmp_path / "thermal/thermal_zone1", type="npu", temp="40000")
    assert [each.sensor for each in thermometers.read(LOOK_AGAIN_S)] == ["npu"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=40))
def test_whatever_a_driver_writes_is_a_temperature_or_none(tmp_path, text):
    put(tmp_path / "thermal/thermal_zone0", type=text, temp=text)
    put(tmp_path / "pressure", cpu=text, memory=text)
    (read,) = Thermometers(tmp_path).read(0.0)
    assert read.celsius is None or isinstance(read.celsius, float)
    assert set(pressure(tmp_path / "pressure")) <= {"cpu", "memory"}


def test_clocks_are_those_of_our_cores_and_throttling_is_counted(tmp_path):
    for number, (current, cap) in enumerate(((1_000_000, 2_000_000), (2_000_000, 2_000_000), (5, 5))):
        put(
            tmp_path / f"cpufreq/policy{number}",
            affected_cpus=f"{2 * number} {2 * number + 1}\n",
            scaling_cur_freq=str(current),
            scaling_max_freq=str(cap),
            cpuinfo_max_freq="3000000",
        )
    for core in range(4):
        put(tmp_path / f"cpu{core}/thermal_throttle", core_throttle_count=f"{core}\n")
    clocks = Clocks(range(4), tmp_path).read(0.0)
    assert (clocks.mean_mhz, clocks.cap_mhz, clocks.max_mhz, clocks.throttled) == (1500, 2000, 3000, 6)
    assert clocks.capped
    assert clocks.ratio == 0.5


def test_without_frequencies_there_are_no_clocks(tmp_path):
    assert Clocks(range(2), tmp_path).read(0.0) is None


def test_pressure_is_a_share_of_the_last_ten_seconds(tmp_path):
    line = "avg10=12.50 avg60=2.46 avg300=12.43 total=11400832114\n"
    put(tmp_path, memory=f"some {line}full {line}", cpu=f"some {line}", io="")
    found = pressure(tmp_path)
    assert (found["memory"].some, found["memory"].full) == (0.125, 0.125)
    assert (found["cpu"].some, found["cpu"].full, set(found)) == (0.125, 0.0, {"cpu", "memory"})
    assert pressure(tmp_path / "none") == {}


def test_this_machine_can_be_sampled():
    sampler = Sampler()
    sets = {"cpu": frozenset({0}), "none": frozenset()}
    assert sampler.sample(1.0, sets).load == {}
    read = sampler.sample(2.0, sets)
    assert 0 <= read.load["cpu"] <= 1
    assert read.memory.available_bytes <= read.memory.total_bytes
    assert read.battery == battery() or read.battery is not None


@pytest.mark.parametrize("cores", [frozenset(), frozenset({4096})])
def test_a_core_set_that_is_not_there_is_idle(cores):
    sampler = Sampler()
    sampler.sample(1.0, {"cpu:9": cores})
    assert sampler.sample(2.0, {"cpu:9": cores}).load == {"cpu:9": 0.0}
