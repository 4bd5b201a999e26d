"""Readings of this machine: the only module that imports psutil."""

from __future__ import annotations

import os

import msgspec
import psutil

PLAUSIBLE_C = (-40.0, 150.0)
"""Silicon outside this range is a broken sensor: a dead accelerator has been seen to report -89.7 °C."""


class Temperature(msgspec.Struct, frozen=True):
    """The hottest plausible sensor, or why there is none."""

    celsius: float | None
    note: str


def temperature() -> Temperature:
    """Read all sensors and return the hottest that can be believed."""
    readings = [
        (entry.current, f"{chip} {entry.label}".strip())
        for chip, entries in psutil.sensors_temperatures().items()
        for entry in entries
        if entry.current is not None
    ]
    if not readings:
        return Temperature(None, "no temperature sensor on this machine: thermal policy is off")
    low, high = PLAUSIBLE_C
    absurd = [f"{name} {celsius:g} °C" for celsius, name in readings if not low <= celsius <= high]
    plausible = [reading for reading in readings if low <= reading[0] <= high]
    ignored = f"ignored absurd readings: {', '.join(absurd)}" if absurd else ""
    if not plausible:
        return Temperature(None, ignored)
    celsius, name = max(plausible)
    return Temperature(celsius, "; ".join(filter(None, (name, ignored))))


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it is gone, or no descriptor is left to look."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (psutil.Error, OSError):
        return 0


def load_average() -> float:
    """One-minute load average."""
    return os.getloadavg()[0]
