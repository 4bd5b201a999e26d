"""Which temperature readings can be believed, and what a device's sensors agree on: pure.

A reading is ignored, with its reason, when it is

- `absurd`: outside of `PLAUSIBLE_C`; a dead accelerator has been seen to report -89.7 °C;
- `jumping`: faster than heat moves. Boards and disks: four times the quickest rise that was seen on one,
  5 °C in 2 s. Dies follow a step of load within a second by the drop across their own interface, 0.5-1 K/W
  on parts of up to 40 W. What stays at its new level is believed after `SETTLED` readings;
- `stuck`: the same to the last digit for so many samples (`STUCK_AFTER`) after the load on what heats the
  device moved by `SWING`; where no load is known (a disk, a radio) nothing can be said;
- `missing`: the sensor was there before, and has gone or cannot be read.

Once ignored, a sensor is believed again after `SETTLED` good readings in a row.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal

import msgspec

from edged.governor.devices import DIES
from edged.governor.readings import Readings, Temperature

Reason = Literal["absurd", "stuck", "jumping", "missing"]
REASONS: tuple[Reason, ...] = ("absurd", "stuck", "jumping", "missing")

PLAUSIBLE_C = (-40.0, 150.0)
FASTEST_DIE_C_PER_S, FASTEST_C_PER_S = 40.0, 10.0
STEP_C = 3.0
"""What quantisation and averaging in a driver may add to a step, however short."""
STUCK_AFTER = {"cpu": 20, "igpu": 20, "gpu": 20, "npu": 20, "board": 300}
"""Samples by device. Boards are slow, and many of their sensors know whole degrees only."""
HEATED_BY = {"board": "cpu"}
"""Whose load heats a device that has none of its own."""
SWING = 0.5
LOAD_SAMPLES = 5.0
"""Time constant of the load that counts for a swing: a burst of a second heats nothing."""
SETTLED = 3
AGREE_C = 15.0
"""Sensors of one device that are further from the vote than this are outvoted: within a package, cores differ
by up to about 10 °C."""


class Ignored(msgspec.Struct, frozen=True):
    """A reading that does not count."""

    sensor: str
    device: str
    reason: Reason
    why: str
    celsius: float | None


class Vote(msgspec.Struct, frozen=True):
    """What the sensors of a device agree on."""

    device: str
    celsius: float | None
    """The median of the plausible ones, the upper of two; None when none can be believed."""
    sensors: tuple[str, ...]
    """Those that voted."""
    outvoted: tuple[str, ...] = ()


class Change(msgspec.Struct, frozen=True):
    """A sensor that is ignored from now on, or for another reason; or, without a reason, believed again."""

    sensor: str
    device: str
    reason: Reason | None
    why: str


class Judgement(msgspec.Struct, frozen=True):
    """What one sample is worth."""

    votes: tuple[Vote, ...]
    ignored: tuple[Ignored, ...]
    changes: tuple[Change, ...]


@dataclass(slots=True)
class _Sensor:
    """What is known of one sensor."""

    device: str
    at_s: float
    celsius: float | None = None
    """The last value at all, absurd ones left out."""
    level: float | None = None
    """The last value that was believed, and when."""
    level_at_s: float = 0.0
    low: float = 1.0
    high: float = 0.0
    """Extremes of the load since the value last changed."""
    still: int = 0
    """Samples since the load has swung without a change of the value."""
    good: int = SETTLED
    steady: int = 0
    """Samples in which it moved no faster than it may."""
    reason: Reason | None = None

    def judge(self, celsius: float | None, load: float | None, now: float) -> tuple[Reason | None, str]:
        """Name what is wrong with a reading, if anything."""
        if celsius is None:
            return "missing", "it has gone or cannot be read"
        low, high = PLAUSIBLE_C
        if not (isfinite(celsius) and low <= celsius <= high):
            return "absurd", f"{celsius:g} °C is outside of {low:g} to {high:g} °C"
        jump = self._jump(celsius, now)
        stuck = self._stuck(celsius, load)
        self.celsius, self.at_s = celsius, now
        if jump:
            return "jumping", jump
        self.level, self.level_at_s = celsius, now
        return ("stuck", stuck) if stuck else (None, "")

    def _jump(self, celsius: float, now: float) -> str:
        """In a sentence, if it is further from the last level than heat gets; empty once it has settled."""
        rate = FASTEST_DIE_C_PER_S if self.device in DIES else FASTEST_C_PER_S
        if self.celsius is not None and abs(celsius - self.celsius) <= STEP_C + rate * (now - self.at_s):
            self.steady += 1
        else:
            self.steady = 1
        if self.level is None or self.steady >= SETTLED:
            return ""
        elapsed_s = now - self.level_at_s
        if abs(celsius - self.level) <= STEP_C + rate * elapsed_s:
            return ""
        return f"from {self.level:g} to {celsius:g} °C within {elapsed_s:.1f} s"

    def _stuck(self, celsius: float, load: float | None) -> str:
        """In a sentence, if the value stands still although the load has moved; empty when not."""
        if celsius != self.celsius:
            self.low, self.high, self.still = 1.0, 0.0, 0
        if load is not None:
            self.low, self.high = min(self.low, load), max(self.high, load)
        if self.high - self.low < SWING:
            return ""
        self.still += 1
        if self.still < STUCK_AFTER[self.device]:
            return ""
        return f"{celsius:g} °C for {self.still} samples since the load moved by {self.high - self.low:.0%}"


@dataclass(slots=True)
class Trust:
    """Remembers every sensor that ever said something, and judges sample after sample."""

    _sensors: dict[str, _Sensor] = field(default_factory=dict)
    _loads: dict[str, float] = field(default_factory=dict)

    def judge(self, readings: Readings) -> Judgement:
        """Judge one sample; `changes` has each sensor whose standing is another than before."""
        self._smooth(readings.load)
        found = {reading.sensor: reading for reading in readings.temperatures}
        for name, reading in found.items():
            if name not in self._sensors and reading.celsius is not None:
                self._sensors[name] = _Sensor(reading.device, readings.at_s)
        judged = [self._one(name, found, readings.at_s) for name in self._sensors]
        ignored = tuple(each for each, _ in judged if each)
        out = {each.sensor for each in ignored}
        believed = [found[name] for name in self._sensors if name not in out]
        devices = dict.fromkeys(sensor.device for sensor in self._sensors.values())
        return Judgement(
            votes=tuple(
                vote(device, [reading for reading in believed if reading.device == device])
                for device in devices
            ),
            ignored=ignored,
            changes=tuple(change for _, change in judged if change),
        )

    def _smooth(self, loads: Mapping[str, float]) -> None:
        for name, load in loads.items():
            before = self._loads.get(name, load)
            self._loads[name] = before + (load - before) / LOAD_SAMPLES

    def _load(self, device: str) -> float | None:
        """The load by which a stuck sensor of the device would be known."""
        if device not in STUCK_AFTER:
            return None
        return self._loads.get(HEATED_BY.get(device, device))

    def _one(
        self, name: str, found: Mapping[str, Temperature], now: float
    ) -> tuple[Ignored | None, Change | None]:
        sensor = self._sensors[name]
        celsius = found[name].celsius if name in found else None
        reason, why = sensor.judge(celsius, self._load(sensor.device), now)
        sensor.good = 0 if reason else sensor.good + 1
        if reason is None and sensor.reason and sensor.good < SETTLED:
            reason, why = sensor.reason, f"{celsius:g} °C: not long enough to be believed again"
        change = None
        if reason != sensor.reason:
            sensor.reason = reason
            change = Change(name, sensor.device, reason, why or f"{celsius:g} °C: {SETTLED} good readings")
        return (Ignored(name, sensor.device, reason, why, celsius) if reason else None), change


def vote(device: str, readings: Sequence[Temperature]) -> Vote:
    """Let the believable sensors of a device vote: each whole one, and the hottest of its parts as one.

    The upper median: of two that disagree nobody knows which is right, and the hotter one is the safer.

    >>> vote("cpu", [Temperature(name, "cpu", c) for name, c in (("a", 61.0), ("b", 60.0), ("c", 20.0))])
    Vote(device='cpu', celsius=60.0, sensors=('a', 'b', 'c'), outvoted=('c',))
    """
    voices = [
        (reading.sensor, reading.celsius) for reading in _voices(readings) if reading.celsius is not None
    ]
    if not voices:
        return Vote(device, None, ())
    median = statistics.median_high(celsius for _, celsius in voices)
    outvoted = tuple(sensor for sensor, celsius in voices if abs(celsius - median) > AGREE_C)
    return Vote(device, median, tuple(sensor for sensor, _ in voices), outvoted)


def _voices(readings: Sequence[Temperature]) -> Iterator[Temperature]:
    yield from (reading for reading in readings if not reading.part)
    parts = [reading for reading in readings if reading.part and reading.celsius is not None]
    if parts:
        yield max(parts, key=lambda reading: reading.celsius or 0.0)
