"""Metric families about the machine: temperatures, sensors that are not believed, clocks, pressure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from edged.governor.readings import DeviceHeat, Readings, Senses

_DEVICE_GAUGES: dict[str, tuple[str, Callable[[DeviceHeat], float | None]]] = {
    "device_temperature_celsius": (
        "What the believable sensors of a device agree on; absent while it is unknown.",
        lambda heat: heat.celsius,
    ),
    "temperature_prediction_error_celsius": (
        "Temperature, less what was predicted for now ten seconds ago.",
        lambda heat: heat.error_c,
    ),
}


def machine_families(senses: Senses) -> Iterator[Any]:
    """Yield what one sample says."""
    for name, (text, read) in _DEVICE_GAUGES.items():
        family = GaugeMetricFamily(f"edged_{name}", text, labels=["device"])
        for heat in senses.devices:
            if (value := read(heat)) is not None:
                family.add_metric([heat.device], value)
        yield family
    yield _predictions(senses)
    ignored = CounterMetricFamily(
        "edged_sensor_readings_ignored", "Temperature readings that were not believed.", labels=["reason"]
    )
    for reason, count in senses.ignored_readings.items():
        ignored.add_metric([reason], count)
    yield ignored
    yield from _clocks(senses.readings)
    yield _pressure(senses.readings)


def _predictions(senses: Senses) -> Any:
    text = "Temperature in so many seconds if the load stays; absent until the load has moved."
    family = GaugeMetricFamily(
        "edged_device_temperature_predicted_celsius", text, labels=["device", "ahead_s"]
    )
    for heat in senses.devices:
        for ahead_s, celsius in heat.predicted_c.items():
            family.add_metric([heat.device, ahead_s], celsius)
    return family


def _clocks(readings: Readings) -> Iterator[Any]:
    clocks = readings.frequency
    if clocks is not None:
        text = "Clock of the cores against their maximum, 0 to 1; absent where the kernel does not tell."
        yield GaugeMetricFamily("edged_cpu_frequency_ratio", text, value=clocks.ratio)
        text = "What the kernel permits against the maximum, 0 to 1: below 1 they are held down."
        yield GaugeMetricFamily("edged_cpu_frequency_cap_ratio", text, value=clocks.cap_ratio)


def _pressure(readings: Readings) -> Any:
    text = "Share of the last ten seconds in which work waited: `some` task, or `full`, all of them."
    family = GaugeMetricFamily("edged_pressure_ratio", text, labels=["resource", "kind"])
    for resource, pressure in readings.pressure.items():
        family.add_metric([resource, "some"], pressure.some)
        family.add_metric([resource, "full"], pressure.full)
    return family
