"""What the kernel shows as files: temperatures, clocks, pressure.

psutil reads temperatures too, but it leaves out thermal zones as soon as there is one hwmon chip, joins chips
of one name (two NVMe disks) and opens four files for each sensor. Here each sensor keeps its zone and its
device, and costs one read; what there is to read is looked up again every `LOOK_AGAIN_S`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from edged.governor.devices import device_of, is_part
from edged.governor.readings import Frequency, Pressure, Temperature

CLASSES = Path("/sys/class")
CPUS = Path("/sys/devices/system/cpu")
PRESSURE = Path("/proc/pressure")
LOOK_AGAIN_S = 10.0
MOST_BYTES = 1 << 16


class _Source(msgspec.Struct, frozen=True):
    """A file with millidegrees."""

    path: str
    sensor: str
    device: str
    part: bool


class Thermometers:
    """All temperature sensors: hwmon chips, and the thermal zones that no chip shows."""

    def __init__(self, root: Path = CLASSES) -> None:
        self._root = root
        self._sources: tuple[_Source, ...] = ()
        self._looked_at = -LOOK_AGAIN_S

    def read(self, now: float) -> tuple[Temperature, ...]:
        """Read every sensor; one that is there and cannot be read has no value."""
        if now - self._looked_at >= LOOK_AGAIN_S:
            self._sources, self._looked_at = _unique([*self._chips(), *self._zones()]), now
        return tuple(
            Temperature(source.sensor, source.device, None if milli is None else milli / 1000, source.part)
            for source in self._sources
            for milli in (_number(source.path),)
        )

    def _chips(self) -> Iterator[_Source]:
        found = {
            *self._root.glob("hwmon/hwmon*/temp*_input"),
            *self._root.glob("hwmon/hwmon*/device/temp*_input"),
        }
        for path in sorted(found):
            channel = path.name.removesuffix("_input")
            chip = _text(path.with_name("name")) or _text(path.parent.parent / "name")
            label = _text(path.with_name(f"{channel}_label"))
            unit = _unit(path.parent)
            sensor = f"{unit or chip} {label or channel}"
            yield _Source(str(path), sensor, device_of(chip, label, unit), is_part(chip, label))

    def _zones(self) -> Iterator[_Source]:
        """Zones of a type that has a hwmon chip are left out: the kernel shows them there as well."""
        chips = {_text(path) for path in self._root.glob("hwmon/hwmon*/name")}
        for path in sorted(self._root.glob("thermal/thermal_zone*/temp")):
            kind = _text(path.with_name("type"))
            if kind.replace("-", "_") not in chips:
                yield _Source(str(path), kind or path.parent.name, device_of(kind), is_part(kind, ""))


def _unique(sources: list[_Source]) -> tuple[_Source, ...]:
    """Number sensors of one name in their order."""
    seen: dict[str, int] = {}
    numbered = []
    for source in sources:
        seen[source.sensor] = count = seen.get(source.sensor, 0) + 1
        name = source.sensor if count == 1 else f"{source.sensor} #{count}"
        numbered.append(msgspec.structs.replace(source, sensor=name))
    return tuple(numbered)


def _unit(folder: Path) -> str:
    """The device that a chip belongs to as the kernel numbers it, where that is a name such as `nvme0`."""
    name = (folder / "device").resolve().name if (folder / "device").is_symlink() else ""
    return name if name[:1].isalpha() and name.isalnum() and name[-1:].isdecimal() else ""


class Clocks:
    """Frequencies of cores, against their maximum."""

    def __init__(self, cores: Collection[int], root: Path = CPUS) -> None:
        self._cores = cores
        self._root = root
        self._max_khz: dict[str, int] = {}
        """By the folder of a policy."""
        self._throttle_counts: tuple[str, ...] = ()
        self._looked_at = -LOOK_AGAIN_S

    def read(self, now: float) -> Frequency | None:
        """Average over the cores' policies; None where the kernel shows no frequencies, as in most guests."""
        if now - self._looked_at >= LOOK_AGAIN_S:
            self._look(now)
        current = [khz for policy in self._max_khz if (khz := _number(f"{policy}/scaling_cur_freq"))]
        caps = [khz for policy in self._max_khz if (khz := _number(f"{policy}/scaling_max_freq"))]
        if not current or len(caps) < len(self._max_khz):
            return None
        throttled = sum(_number(path) or 0 for path in self._throttle_counts)
        return Frequency(_mean_mhz(current), _mean_mhz(caps), _mean_mhz([*self._max_khz.values()]), throttled)

    def _look(self, now: float) -> None:
        ours = {str(core) for core in self._cores}
        policies = sorted(self._root.glob("cpufreq/policy*"))
        policies = [policy for policy in policies if ours & {*_text(policy / "affected_cpus").split()}]
        maxima = {str(policy): _number(policy / "cpuinfo_max_freq") for policy in policies}
        self._max_khz = {policy: khz for policy, khz in maxima.items() if khz}
        counts = [self._root / f"cpu{core}/thermal_throttle/core_throttle_count" for core in self._cores]
        self._throttle_counts = tuple(str(path) for path in counts if path.exists())
        self._looked_at = now


def pressure(root: Path = PRESSURE) -> dict[str, Pressure]:
    """Pressure stall information by resource; empty on a kernel without it."""
    found = {}
    for resource in ("cpu", "memory", "io"):
        shares = {}
        with suppress(OSError, ValueError, IndexError):
            for line in contents(f"{root}/{resource}").splitlines():
                kind, average, *_ = line.decode().split(maxsplit=2)
                shares[kind] = float(average.removeprefix("avg10=")) / 100
        if "some" in shares:
            found[resource] = Pressure(shares["some"], shares.get("full", 0.0))
    return found


def _mean_mhz(khz: Collection[int]) -> float:
    return sum(khz) / len(khz) / 1000


def _text(path: Path | str) -> str:
    """A file's text; empty when it cannot be read."""
    try:
        return contents(path).decode(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path | str) -> int | None:
    """A file's whole number; None when it cannot be read, or holds something else."""
    try:
        return int(contents(path))
    except (OSError, ValueError):
        return None


def contents(path: Path | str) -> bytes:
    """A small file of the kernel's in one read, without what a file object costs. May raise `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, MOST_BYTES)
    finally:
        os.close(descriptor)
