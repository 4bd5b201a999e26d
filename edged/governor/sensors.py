"""Readings of this machine: the only module that imports psutil."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

TICKS_PER_S = os.sysconf("SC_CLK_TCK")

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


def available_bytes() -> int:
    """Memory that programs can still have without swapping, by the kernel's estimate (MemAvailable)."""
    return int(psutil.virtual_memory().available)


def load_average() -> float:
    """One-minute load average."""
    return os.getloadavg()[0]


def total_memory_bytes() -> int:
    """Memory of the machine."""
    return int(psutil.virtual_memory().total)


_NOT_WORK = frozenset({"idle", "iowait", "guest", "guest_nice"})


def busy_s() -> float:
    """CPU seconds that all cores together have worked since boot, for whomever."""
    times = psutil.cpu_times()._asdict()
    # a guest's time is in `user` and `nice` already
    return float(sum(spent_s for name, spent_s in times.items() if name not in _NOT_WORK))


class EnergyCounter(msgspec.Struct, frozen=True):
    """A running total of one package, which starts again at 0 behind `range_uj`."""

    microjoules: int
    range_uj: int


def energy(root: Path = Path("/sys/class/powercap")) -> dict[str, EnergyCounter]:
    """Energy that each processor package has used (RAPL by powercap); empty where nothing measures it.

    Only root may read the counters on most systems: who may not gets an empty answer too.
    """
    counters: dict[str, EnergyCounter] = {}
    for zone in sorted(root.glob("*-rapl:[0-9]")):
        with suppress(OSError, ValueError):
            used, limit = (int((zone / f"{name}_uj").read_text()) for name in ("energy", "max_energy_range"))
            counters[zone.name] = EnergyCounter(used, limit)
    return counters


def joules(before: Mapping[str, EnergyCounter], after: Mapping[str, EnergyCounter]) -> float | None:
    """Energy between two readings of less than one turn of the counter; None where nothing measures it.

    >>> joules({"p": EnergyCounter(90, 100)}, {"p": EnergyCounter(10, 100)})
    2e-05
    """
    spans = [
        (after[name].microjoules - reading.microjoules) % max(reading.range_uj, 1)
        for name, reading in before.items()
        if name in after
    ]
    return sum(spans) / 1e6 if spans else None


def busy_cpu_s(cores: Collection[int], stat: Path = Path("/proc/stat")) -> float:
    """CPU seconds since boot that these cores were busy, or that the hypervisor lent to somebody else.

    By the numbers in the kernel's own lines (proc_stat(5)): a core that is offline has none and counts 0.
    """
    wanted = {f"cpu{core}" for core in cores}
    lines = (line.split() for line in stat.read_text().splitlines())
    return sum(_busy_ticks(ticks) for name, *ticks in filter(None, lines) if name in wanted) / TICKS_PER_S


def _busy_ticks(ticks: Sequence[str]) -> int:
    """All but idle and iowait; guests' time is left out, since it counts in `user` and `nice` as well."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
    return user + nice + system + irq + softirq + steal


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, its own only; 0 when it is gone or cannot be looked at."""
    try:
        times = psutil.Process(pid).cpu_times()
    except (psutil.Error, OSError):
        return 0.0
    return float(times.user + times.system)
