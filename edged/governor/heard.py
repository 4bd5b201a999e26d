"""From what the sensors are worth to what the governor hears: pure."""

from __future__ import annotations

from edged.governor.bands import Reading
from edged.governor.events import Sampled
from edged.governor.readings import DeviceHeat, Readings, Senses
from edged.governor.senses import Sensing, heating


def heard(sensing: Sensing, senses: Senses, *, horizon_s: float, load: float | None) -> Sampled:
    """The event of one sample; `load` is the share of the entry's slots that are taken, None for unknown.

    Temperatures are filtered and predicted for the load that is now; what is not believed is unknown.
    """
    readings = senses.readings
    return Sampled(
        at_s=readings.at_s,
        temperatures={
            heat.device: _temperature(sensing, heat, readings, horizon_s) for heat in senses.devices
        },
        load=None if load is None else Reading(load),
        memory=_memory(readings),
        stall=Reading(readings.pressure["memory"].some) if "memory" in readings.pressure else None,
    )


def _temperature(sensing: Sensing, heat: DeviceHeat, readings: Readings, horizon_s: float) -> Reading:
    if heat.filtered_c is None:
        return Reading(why=heat.why or "no sensor of it can be believed")
    load = heating(heat.device, readings.load)
    ahead = None if load is None or not horizon_s else sensing.predict(heat.device, horizon_s, load)
    return Reading(heat.filtered_c, ahead)


def _memory(readings: Readings) -> Reading | None:
    memory = readings.memory
    if memory is None or not memory.total_bytes:
        return None
    return Reading(1.0 - memory.available_bytes / memory.total_bytes)
