"""A box in a cabinet, as two heat capacities: a die on a heat sink, and the sink in the cabinet's air. Pure.

    C_die  dT_die/dt  = P - (T_die - T_sink) / R_die
    C_sink dT_sink/dt = (T_die - T_sink) / R_die - (T_sink - T_air) / R_sink

The power P rises with the share of the time in which the box works. Everything follows from the numbers of a
scenario, noise and waves of requests included, so a run repeats bit for bit.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np

from edged.governor.readings import Readings, Temperature

STEP_S = 1.0
DEVICE = "cpu"
WAVE_S = 60.0
"""For so long as many requests come as drawn."""
LULL_EVERY_S, LULL_S, LULL = 1500.0, 180.0, 0.2
ABSURD_C = -89.7


class Fault(msgspec.Struct, frozen=True):
    """What happens to the sensor, and when."""

    kind: Literal["absurd", "frozen", "vanished"]
    from_s: float
    until_s: float


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of a box, its surroundings and its clients."""

    name: str
    what: str
    duration_s: float = 4 * 3600.0
    ambient_c: float
    sun_c: float = 0.0
    """By how much the sun heats the cabinet's air at noon; it shines for half of the time."""
    fan_fails_s: float = math.inf
    """When the cabinet's fan stops."""
    fan_failed: float = 1.8
    """Factor of the sink's thermal resistance from then on."""
    idle_w: float = 6.0
    busy_w: float = 20.0
    """More than idle when it works all the time."""
    die_k_per_w: float = 0.45
    die_j_per_k: float = 12.0
    sink_k_per_w: float = 1.1
    sink_j_per_k: float = 400.0
    offered: float = 0.9
    """Requests, in proportion to what the box can answer at most on the best rung."""
    swing: float = 0.25
    """By how much that varies from minute to minute, at most."""
    batch_share: float = 0.3
    """Requests of priority `batch`."""
    noise_c: float = 0.5
    """Standard deviation of the sensor, which knows whole degrees."""
    seed: int = 1
    faults: tuple[Fault, ...] = ()


SCENARIOS = (
    Scenario(
        name="cabinet-45c",
        what="45 °C in the cabinet, sun for two of four hours, the fan stops after an hour",
        ambient_c=45.0,
        sun_c=12.0,
        fan_fails_s=3600.0,
    ),
    Scenario(
        name="cabinet-45c-overload",
        what="the same, with half as many requests again as the box could answer cool",
        ambient_c=45.0,
        sun_c=12.0,
        fan_fails_s=3600.0,
        offered=1.5,
    ),
    Scenario(
        name="cabinet-45c-sensor",
        what="the same as cabinet-45c, with a sensor that is absurd, frozen and gone for ten minutes each",
        ambient_c=45.0,
        sun_c=12.0,
        fan_fails_s=3600.0,
        faults=(
            Fault("absurd", 2400.0, 3000.0),
            Fault("frozen", 7200.0, 7800.0),
            Fault("vanished", 9600.0, 10200.0),
        ),
    ),
    Scenario(name="office-25c", what="25 °C and a fan that works", ambient_c=25.0),
)


class Plant:
    """A scenario in motion: `run` the box for a second, then `read` its sensor."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        seconds = math.ceil(scenario.duration_s / STEP_S) + 1
        draws = np.random.default_rng(scenario.seed)
        self._noise_c = draws.normal(0.0, scenario.noise_c, seconds)
        self._waves = draws.uniform(
            -scenario.swing, scenario.swing, math.ceil(scenario.duration_s / WAVE_S) + 1
        )
        self._frozen_c: float | None = None
        self.at_s = 0.0
        self.sink_c = scenario.ambient_c + scenario.idle_w * scenario.sink_k_per_w
        self.die_c = self.sink_c + scenario.idle_w * scenario.die_k_per_w

    @property
    def offered(self) -> float:
        """Requests a second now; the box answers one a second at most on the best rung."""
        wave = 1.0 + float(self._waves[int(self.at_s // WAVE_S)])
        lull = LULL if self.at_s % LULL_EVERY_S >= LULL_EVERY_S - LULL_S else 1.0
        return self.scenario.offered * wave * lull

    @property
    def air_c(self) -> float:
        """In the cabinet."""
        day = self.at_s / self.scenario.duration_s
        height = max(0.0, -math.cos(2 * math.pi * day))
        return self.scenario.ambient_c + self.scenario.sun_c * height

    def run(self, busy: float) -> None:
        """One second in which the box works for this share of the time."""
        box = self.scenario
        failed = self.at_s >= box.fan_fails_s
        outwards_k_per_w = box.sink_k_per_w * (box.fan_failed if failed else 1.0)
        through_w = (self.die_c - self.sink_c) / box.die_k_per_w
        out_w = (self.sink_c - self.air_c) / outwards_k_per_w
        self.die_c += STEP_S * (box.idle_w + box.busy_w * busy - through_w) / box.die_j_per_k
        self.sink_c += STEP_S * (through_w - out_w) / box.sink_j_per_k
        self.at_s += STEP_S

    def read(self, busy: float) -> Readings:
        """What the box can know of itself, faults of the sensor included."""
        felt_c = float(round(self.die_c + float(self._noise_c[int(self.at_s / STEP_S)])))
        kind = next(
            (each.kind for each in self.scenario.faults if each.from_s <= self.at_s < each.until_s), None
        )
        self._frozen_c = (self._frozen_c or felt_c) if kind == "frozen" else None
        celsius = {"absurd": ABSURD_C, "frozen": self._frozen_c, None: felt_c}.get(kind)
        return Readings(
            at_s=self.at_s,
            temperatures=() if celsius is None else (Temperature(DEVICE, DEVICE, celsius),),
            load={"cpu": busy},
        )
