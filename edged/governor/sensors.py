"""Readings of this machine: the only module that imports psutil."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from edged.governor.readings import Battery, EnergyCounter, Memory, Readings
from edged.governor.sysfs import Clocks, Thermometers, contents, pressure

_libc = ctypes.CDLL(None)
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SLOW_S = 10.0
"""Battery and swap are read this often: both cost more than all the rest."""


class Sampler:
    """Reads everything that the governor wants to know; it may block for as long as a driver does."""

    def __init__(self) -> None:
        self._thermometers = Thermometers()
        self._clocks = Clocks(os.sched_getaffinity(0))
        self._before_s: float | None = None
        self._busy_s: dict[int, float] = {}
        self._energy: dict[str, EnergyCounter] = {}
        self._slow_at = -SLOW_S
        self._battery: Battery | None = None
        self._swap = (0, 0)

    def sample(self, now: float, core_sets: Mapping[str, frozenset[int]]) -> Readings:
        """Read the machine; `now` is a monotonic clock. The first sample has no load and no power."""
        elapsed_s = max(0.0, now - self._before_s) if self._before_s is not None else 0.0
        self._before_s = now
        if now - self._slow_at >= SLOW_S:
            self._slow_at, self._battery, self._swap = now, battery(), _swap()
        return Readings(
            at_s=now,
            temperatures=self._thermometers.read(now),
            load=self._load(elapsed_s, core_sets),
            frequency=self._clocks.read(now),
            memory=Memory(*_memory(), *self._swap),
            pressure=pressure(),
            battery=self._battery,
            power_w=self._power_w(elapsed_s),
        )

    def _load(self, elapsed_s: float, sets: Mapping[str, frozenset[int]]) -> dict[str, float]:
        before, self._busy_s = self._busy_s, busy_by_core_s()
        if elapsed_s <= 0:
            return {}
        share = {
            core: min(1.0, max(0.0, busy - before.get(core, busy)) / elapsed_s)
            for core, busy in self._busy_s.items()
        }
        return {
            name: sum(share.get(core, 0.0) for core in cores) / max(len(cores), 1)
            for name, cores in sets.items()
        }

    def _power_w(self, elapsed_s: float) -> float | None:
        before, self._energy = self._energy, energy()
        used_j = joules(before, self._energy)
        return used_j / elapsed_s if used_j is not None and elapsed_s > 0 else None


def battery() -> Battery | None:
    """The first battery; None where there is none."""
    try:
        found = psutil.sensors_battery()
    except (OSError, ValueError):
        return None
    return None if found is None else Battery(float(found.percent), found.power_plugged)


def _memory() -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def _swap() -> tuple[int, int]:
    swap = psutil.swap_memory()
    return int(swap.total), int(swap.free)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it is gone, or no descriptor is left to look."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (psutil.Error, OSError):
        return 0


def family(pid: int) -> list[int]:
    """Return a process and those that its main thread has started, as the stages of a layer pipeline are."""
    try:
        return [pid, *map(int, contents(f"/proc/{pid}/task/{pid}/children").split())]
    except (OSError, ValueError):  # it is gone, or the kernel does not tell
        return [pid]


def family_bytes(pid: int) -> int:
    """Resident memory of a process and of those that it has started, pages that they share counted twice."""
    return sum(resident_bytes(each) for each in family(pid))


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
    return sum(busy_s for core, busy_s in busy_by_core_s(stat).items() if core in cores)


def busy_by_core_s(stat: Path = Path("/proc/stat")) -> dict[int, float]:
    """The same for each core that is online, by its number."""
    # Only the lines of cores are taken apart: those of interrupts are long.
    lines = [line.split() for line in contents(stat).decode().splitlines() if line.startswith("cpu")]
    return {int(name[3:]): _busy_ticks(ticks) / TICKS_PER_S for name, *ticks in lines if name != "cpu"}


def _busy_ticks(ticks: Sequence[str]) -> int:
    """All but idle and iowait; guests' time is left out, since it counts in `user` and `nice` as well."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
    return user + nice + system + irq + softirq + steal


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, its own only; 0 when it is gone.

    Its CPU clock (clock_getcpuclockid(3)) has nanoseconds, where /proc and psutil count ticks of 10 ms: the
    answer of a small model takes less than one.
    """
    clock = ctypes.c_int()
    if pid <= 0 or _libc.clock_getcpuclockid(pid, ctypes.byref(clock)):  # 0 would be this process
        return 0.0
    try:
        return time.clock_gettime(clock.value)
    except OSError:
        return 0.0
