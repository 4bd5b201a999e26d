"""One look at the machine, as data."""

from __future__ import annotations

import msgspec

CAPPED = 0.95
"""Below this share of the maximum a clock counts as held down."""


class Temperature(msgspec.Struct, frozen=True):
    """What one sensor said."""

    sensor: str
    """Chip and label, or type of the thermal zone: unique on a machine."""
    device: str
    """What it sits on: `cpu`, `igpu`, `gpu`, `npu`, `board`, `nvme0`, `wifi`, ...; see `devices.py`."""
    celsius: float | None
    """None when the sensor is there and cannot be read."""
    part: bool = False
    """Whether it feels one spot of the device only, such as a core."""


class Pressure(msgspec.Struct, frozen=True):
    """Share of the last ten seconds in which work waited for a resource, 0..1 (the kernel's PSI)."""

    some: float
    """At least one task waited."""
    full: float
    """All tasks waited."""


class Frequency(msgspec.Struct, frozen=True):
    """Clocks of the cores that edged may use."""

    mean_mhz: float
    cap_mhz: float
    """What the kernel permits now: below the maximum a policy or heat holds it down."""
    max_mhz: float
    throttled: int = 0
    """Times that the processor itself slowed down for heat since boot; 0 where nobody counts."""

    @property
    def ratio(self) -> float:
        """Clock against the maximum, 0..1; an idle core is slow without being held down."""
        return min(1.0, self.mean_mhz / self.max_mhz) if self.max_mhz > 0 else 1.0

    @property
    def cap_ratio(self) -> float:
        """What the kernel permits against the maximum, 0..1."""
        return min(1.0, self.cap_mhz / self.max_mhz) if self.max_mhz > 0 else 1.0

    @property
    def capped(self) -> bool:
        """Whether the kernel holds the clock more than 5 % below the maximum."""
        return self.cap_ratio < CAPPED


class Battery(msgspec.Struct, frozen=True):
    """The first battery."""

    percent: float
    plugged: bool | None
    """None where the system does not tell."""


class EnergyCounter(msgspec.Struct, frozen=True):
    """A running total of one package, which starts again at 0 behind `range_uj`."""

    microjoules: int
    range_uj: int


class Memory(msgspec.Struct, frozen=True):
    """Memory of the machine."""

    total_bytes: int
    available_bytes: int
    """What programs can still have without swapping, by the kernel's estimate."""
    swap_total_bytes: int
    swap_free_bytes: int


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """One sample of everything; what a machine does not have is empty or None."""

    at_s: float
    """When, by the monotonic clock."""
    temperatures: tuple[Temperature, ...] = ()
    load: dict[str, float] = {}
    """Share of the time since the sample before that was busy, 0..1: by core set (`cpu` is all that edged may
    use), and by accelerator, as far as stages kept it busy."""
    frequency: Frequency | None = None
    memory: Memory | None = None
    pressure: dict[str, Pressure] = {}
    """By resource: `cpu`, `memory`, `io`."""
    battery: Battery | None = None
    power_w: float | None = None
    """Of all processor packages since the sample before."""


class DeviceHeat(msgspec.Struct, frozen=True, kw_only=True):
    """The temperature of one device, and where it goes."""

    device: str
    celsius: float | None
    """What its believable sensors agree on now; None when there is none: unknown, not cool."""
    filtered_c: float | None
    """The same without noise."""
    why: str = ""
    """Why it is unknown."""
    sensors: tuple[str, ...] = ()
    """Those that voted."""
    outvoted: tuple[str, ...] = ()
    predicted_c: dict[str, float] = {}
    """By seconds ahead, if the load stays; empty until the load has moved for long enough."""
    error_c: float | None = None
    """`filtered_c`, less what was predicted ten seconds ago."""
    mean_error_c: float | None = None
    """The same without its sign, averaged over a minute."""
    ambient_c: float | None = None
    """Fitted: where it settles without load."""
    rise_c: float | None = None
    """Fitted: by how much more at full load."""
    tau_s: float | None = None
    """Fitted: time constant."""


class IgnoredSensor(msgspec.Struct, frozen=True):
    """A sensor that is not believed."""

    sensor: str
    device: str
    reason: str
    """`absurd`, `stuck`, `jumping` or `missing`."""
    why: str
    celsius: float | None


class Senses(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of the machine at one sample."""

    readings: Readings
    devices: tuple[DeviceHeat, ...] = ()
    """Those that have, or had, a sensor."""
    ignored: tuple[IgnoredSensor, ...] = ()
    ignored_readings: dict[str, int] = {}
    """Since the start, by reason."""
    throttling: str = ""
    """What holds the clocks down; empty when nothing does."""
    problem: str = ""
    """Why there is no newer sample; empty when this is the present."""
