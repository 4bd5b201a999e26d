"""The machine in two lines of `edgectl status`: what is not there is left out."""

from __future__ import annotations

from edged.cli.heat import lines
from edged.governor.readings import Battery, DeviceHeat, Frequency, Pressure, Readings, Senses


def heat(device: str, celsius: float | None, **more: object) -> DeviceHeat:
    return DeviceHeat(device=device, celsius=celsius, filtered_c=celsius, **more)


def test_a_machine_with_everything():
    readings = Readings(
        at_s=1.0,
        load={"cpu": 0.38, "cpu:0": 0.5},
        frequency=Frequency(2100.0, 3400.0, 3400.0),
        pressure={"cpu": Pressure(0.04, 0.0)},
        battery=Battery(80.0, plugged=True),
        power_w=7.94,
    )
    devices = (heat("cpu", 62.0, predicted_c={"10": 64.0, "20": 66.0}), heat("npu", None, why="it has gone"))
    assert list(lines(Senses(readings=readings, devices=devices))) == [
        "heat  cpu 62 °C (66 °C in 20 s)  npu unknown",
        "machine  cpu 38%  clock 2.1 of 3.4 GHz  power 7.9 W  waiting for cpu 4%  battery 80 %, plugged in",
    ]


def test_a_machine_that_tells_nothing():
    assert list(lines(Senses(readings=Readings(at_s=1.0)))) == []


def test_a_sensor_cannot_write_control_codes_to_the_terminal():
    (line,) = lines(Senses(readings=Readings(at_s=1.0), devices=(heat("\x1b[2J", 40.0),)))
    assert "\x1b" not in line
