"""What the sensors are worth becomes what the governor hears."""

from __future__ import annotations

import pytest

from edged.governor.bands import Reading
from edged.governor.events import Sampled
from edged.governor.heard import heard
from edged.governor.readings import Memory, Pressure, Readings, Temperature
from edged.governor.senses import Sensing


def hear(*samples: Readings, load: float | None = None, horizon_s: float = 20.0) -> Sampled:
    sensing = Sensing()
    senses = [sensing.take(readings)[0] for readings in samples][-1]
    return heard(sensing, senses, horizon_s=horizon_s, load=load)


def test_a_machine_without_sensors_says_nothing():
    assert hear(Readings(at_s=3.0)) == Sampled(at_s=3.0)


def test_shares_of_memory_and_waiting():
    event = hear(
        Readings(
            at_s=1.0,
            memory=Memory(total_bytes=100, available_bytes=20, swap_total_bytes=0, swap_free_bytes=0),
            pressure={"memory": Pressure(some=0.3, full=0.1), "cpu": Pressure(some=0.9, full=0.0)},
        ),
        load=0.4,
    )
    assert event.memory is not None
    assert event.memory.value == pytest.approx(0.8)
    assert (event.load, event.stall) == (Reading(0.4), Reading(0.3))


def test_a_temperature_that_is_not_believed_is_unknown_and_says_why():
    good = Readings(at_s=1.0, temperatures=(Temperature("coretemp", "cpu", 50.0),))
    bad = Readings(at_s=2.0, temperatures=(Temperature("coretemp", "cpu", -89.7),))
    assert hear(good).temperatures["cpu"].value == 50.0
    reading = hear(good, bad).temperatures["cpu"]
    assert reading.value is None
    assert "-89.7" in reading.why


def swinging(seconds: int) -> list[Readings]:
    """A device that follows its load by 30 °C within some seconds."""
    samples, celsius = [], 50.0
    for second in range(seconds):
        busy = 1.0 if second // 60 % 2 else 0.0
        celsius += (50.0 + 30.0 * busy - celsius) / 20.0
        samples.append(
            Readings(at_s=second, temperatures=(Temperature("t", "cpu", celsius),), load={"cpu": busy})
        )
    return samples


def test_it_is_predicted_where_the_load_has_taught_something():
    rising = swinging(600 + 65)
    now = hear(*rising).temperatures["cpu"]
    assert now.value is not None
    assert now.predicted is not None
    assert now.predicted > now.value + 5
    assert hear(*rising, horizon_s=0.0).temperatures["cpu"].predicted is None
