"""A machine's sensors as files that a test writes, for a daemon that sees them in place of the real ones.

The daemon runs in a mount namespace of its own in which `/sys/class/thermal`, `hwmon`, `powercap` and
`power_supply`, the clocks and `/proc/stat` are those of a prepared folder. Everything is read by the real
code from the real paths; a test, or a thermal plant, writes temperatures and load while the daemon runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPLACED = ("thermal", "hwmon", "powercap", "power_supply")
CLASSES = Path("/sys/class")
CPUFREQ = Path("/sys/devices/system/cpu/cpufreq")
STAT = Path("/proc/stat")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

# The real /sys stays within reach, so that the links in all other classes still lead somewhere.
_SCRIPT = """
set -e
mount --make-rprivate /
mount --rbind /sys "$1/sys"
if [ -d /sys/devices/system/cpu/cpufreq ]; then mount --bind "$1/cpufreq" /sys/devices/system/cpu/cpufreq; fi
mount --bind "$1/class" /sys/class
if [ -n "$2" ]; then mount --bind "$1/stat" /proc/stat; fi
shift 2
exec "$@"
"""


def refusal() -> str:
    """Why no such namespace can be made here; empty when it can."""
    if shutil.which("unshare") is None:
        return "no unshare(1) on this machine"
    tried = subprocess.run(
        [*_unshare(), "mount", "--bind", "/sys", "/sys"], capture_output=True, text=True, check=False
    )
    return f"no mount namespace: {tried.stderr.strip()}" if tried.returncode else ""


def _unshare() -> list[str]:
    return ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]


class SensorTree:
    """Chips and zones under a folder, empty at first; `command` starts a program that sees them."""

    def __init__(self, folder: Path, *, own_load: bool = False) -> None:
        self.folder = folder
        self._own_load = own_load
        for name in ("sys", "class", "cpufreq"):
            (folder / name).mkdir(parents=True)
        for name in {*REPLACED, *(path.name for path in CLASSES.iterdir())}:
            if name in REPLACED:
                (folder / "class" / name).mkdir()
            else:
                (folder / "class" / name).symlink_to(folder / "sys" / "class" / name)
        self._ticks = dict.fromkeys(sorted(os.sched_getaffinity(0)), 0)
        self._idle_ticks = 0
        (folder / "stat").write_bytes(self._stat())

    def command(self, *program: str) -> tuple[str, ...]:
        """The command line of a program, the daemon if none is named, in the namespace; the pid stays one."""
        load = "own" if self._own_load else ""
        inside = program or (sys.executable, "-m", "edged")
        return (*_unshare(), "sh", "-c", _SCRIPT, "sh", str(self.folder), load, *inside)

    def zone(self, number: int, kind: str, celsius: float) -> Path:
        """Make a thermal zone; the file to `write` to."""
        folder = self.folder / "class" / "thermal" / f"thermal_zone{number}"
        folder.mkdir()
        _put(folder / "type", kind)
        return self.write(folder / "temp", celsius)

    def chip(self, number: int, name: str, *sensors: tuple[str, float]) -> tuple[Path, ...]:
        """Make a hwmon chip with a label and a temperature for each sensor; the files to `write` to."""
        folder = self.folder / "class" / "hwmon" / f"hwmon{number}"
        folder.mkdir()
        _put(folder / "name", name)
        files = []
        for channel, (label, celsius) in enumerate(sensors, start=1):
            _put(folder / f"temp{channel}_label", label)
            files.append(self.write(folder / f"temp{channel}_input", celsius))
        return tuple(files)

    def write(self, file: Path, celsius: float) -> Path:
        """Set a temperature, at once: no reader ever sees half of it."""
        _put(file, str(round(celsius * 1000)))
        return file

    def vanish(self, file: Path) -> None:
        """Take a sensor away."""
        file.unlink()

    def hang(self, file: Path) -> None:
        """Let reading a sensor block, as a driver does whose bus is stuck, until `write` and `release`."""
        pipe = self.folder / "hanging"
        if not pipe.exists():
            os.mkfifo(pipe)
        beside = file.with_name(f".{file.name}")
        beside.hardlink_to(pipe)
        beside.replace(file)

    def release(self) -> None:
        """Let the readers go that hang."""
        with (self.folder / "hanging").open("wb"):
            """Whoever reads finds the end."""

    def clocks(self, current_mhz: float, cap_mhz: float, max_mhz: float) -> None:
        """Set the clock of all cores, what the kernel permits, and the most they can."""
        policy = self.folder / "cpufreq" / "policy0"
        policy.mkdir(exist_ok=True)
        _put(policy / "affected_cpus", " ".join(map(str, self._ticks)))
        _put(policy / "cpuinfo_max_freq", str(round(max_mhz * 1000)))
        _put(policy / "scaling_min_freq", "400000")
        _put(policy / "scaling_max_freq", str(round(cap_mhz * 1000)))
        _put(policy / "scaling_cur_freq", str(round(current_mhz * 1000)))

    def battery(self, percent: int, *, plugged: bool) -> None:
        """Set the only battery."""
        folder = self.folder / "class" / "power_supply" / "BAT0"
        folder.mkdir(exist_ok=True)
        _put(folder / "capacity", str(percent))
        _put(folder / "status", "Charging" if plugged else "Discharging")

    def energy(self, microjoules: int) -> None:
        """Set the energy that the only package has used."""
        folder = self.folder / "class" / "powercap" / "intel-rapl:0"
        folder.mkdir(exist_ok=True)
        _put(folder / "max_energy_range_uj", "262143328850")
        _put(folder / "energy_uj", str(microjoules))

    def work(self, seconds: float) -> None:
        """Let every core have been busy for so much longer; for trees with `own_load`."""
        for core in self._ticks:
            self._ticks[core] += round(seconds * TICKS_PER_S)
        # In place, unlike the other files: the kernel has bound the file itself.
        with (self.folder / "stat").open("r+b") as file:
            os.pwrite(file.fileno(), self._stat(), 0)

    def _stat(self) -> bytes:
        """/proc/stat with these cores, padded so that its length never changes; everything else as it is."""
        zeros = " ".join(["0".zfill(10)] * 7)
        lines = [f"cpu  {sum(self._ticks.values()):010d} {zeros} 0 0"]
        lines += [f"cpu{core} {ticks:010d} {zeros} 0 0" for core, ticks in self._ticks.items()]
        rest = [line for line in STAT.read_text().splitlines() if line.startswith(("btime", "processes"))]
        return "\n".join([*lines, *(f"{line:<30}" for line in rest), ""]).encode()


def _put(file: Path, text: str) -> None:
    """Replace a file by another one, so that readers get the old text or the new one."""
    beside = file.with_name(f".{file.name}")
    beside.write_text(f"{text}\n")
    beside.replace(file)
