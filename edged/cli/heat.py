"""What `edgectl status` says about the machine, in one or two lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edged.cli.output import styled, visible

if TYPE_CHECKING:
    from edged.governor.readings import DeviceHeat, Readings, Senses

AHEAD = "20"
"""Seconds: of the predictions, this one is shown."""


def lines(senses: Senses) -> Iterator[str]:
    """Temperatures and where they go; then load, clocks, power, what work waits for."""
    if senses.devices:
        yield "heat  " + "  ".join(_device(heat) for heat in senses.devices)
    facts = list(_facts(senses.readings))
    if facts:
        yield "machine  " + "  ".join(facts)


def _device(heat: DeviceHeat) -> str:
    name = visible(heat.device)
    if heat.celsius is None:
        return f"{name} {styled('unknown', fg='yellow')}"
    ahead_c = heat.predicted_c.get(AHEAD)
    ahead = "" if ahead_c is None else f" ({ahead_c:.0f} °C in {AHEAD} s)"
    return f"{name} {heat.celsius:.0f} °C{ahead}"


def _facts(readings: Readings) -> Iterator[str]:
    if "cpu" in readings.load:
        yield f"cpu {readings.load['cpu']:.0%}"
    clocks = readings.frequency
    if clocks is not None:
        yield f"clock {clocks.mean_mhz / 1000:.1f} of {clocks.max_mhz / 1000:.1f} GHz"
    if readings.power_w is not None:
        yield f"power {readings.power_w:.1f} W"
    waits = [f"{name} {pressure.some:.0%}" for name, pressure in readings.pressure.items()]
    if waits:
        yield f"waiting for {', '.join(waits)}"
    if readings.battery is not None:
        plugged = ", plugged in" if readings.battery.plugged else ""
        yield f"battery {readings.battery.percent:.0f} %{plugged}"
