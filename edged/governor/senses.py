"""Sample after sample into what is known of each device's heat: pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

from edged.governor.readings import DeviceHeat, IgnoredSensor, Readings, Senses
from edged.governor.thermal import HORIZONS_S, ThermalModel
from edged.governor.trust import HEATED_BY, REASONS, Change, Judgement, Trust, Vote

NO_SENSOR = "no temperature sensor on this machine: thermal policy is off"
THROTTLED_S = 60.0
"""How long it is told that a processor has slowed itself down."""


class Sensing:
    """The memory behind `Senses`: feed it with `take`, in the order of time."""

    def __init__(self) -> None:
        self._trust = Trust()
        self._models: dict[str, ThermalModel] = {}
        self._ignored: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        self._throttled: deque[tuple[float, int]] = deque()

    def take(self, readings: Readings) -> tuple[Senses, tuple[Change, ...]]:
        """Judge a sample and learn from it; with the sensors whose standing has changed."""
        judgement = self._trust.judge(readings)
        self._ignored.update(each.reason for each in judgement.ignored)
        for vote in judgement.votes:
            model = self._models.setdefault(vote.device, ThermalModel())
            model.observe(readings.at_s, vote.celsius, heating(vote.device, readings.load))
        senses = Senses(
            readings=readings,
            devices=tuple(self._heat(vote, judgement, readings) for vote in judgement.votes),
            ignored=tuple(
                IgnoredSensor(each.sensor, each.device, each.reason, each.why, each.celsius)
                for each in judgement.ignored
            ),
            ignored_readings=dict(self._ignored),
            throttling=self._throttling(readings),
        )
        return senses, judgement.changes

    def predict(self, device: str, horizon_s: float, load: float) -> float | None:
        """Temperature of a device in so many seconds at a load of 0..1; None while nothing is known."""
        model = self._models.get(device)
        return None if model is None else model.predict(horizon_s, load)

    def _heat(self, vote: Vote, judgement: Judgement, readings: Readings) -> DeviceHeat:
        model, known = self._models[vote.device], vote.celsius is not None
        load = heating(vote.device, readings.load)
        ahead = (
            {}
            if load is None or not known
            else {
                f"{horizon_s:g}": celsius
                for horizon_s in HORIZONS_S
                if (celsius := model.predict(horizon_s, load)) is not None
            }
        )
        fit = model.fit
        return DeviceHeat(
            device=vote.device,
            celsius=vote.celsius,
            filtered_c=model.celsius if known else None,
            why="" if known else _why(vote.device, judgement),
            sensors=vote.sensors,
            outvoted=vote.outvoted,
            predicted_c=ahead,
            error_c=model.error_c,
            mean_error_c=model.mean_error_c,
            ambient_c=fit.ambient_c if fit else None,
            rise_c=fit.rise_c if fit else None,
            tau_s=fit.tau_s if fit else None,
        )

    def _throttling(self, readings: Readings) -> str:
        """What holds the clocks down, in a sentence; empty when nothing does."""
        clocks = readings.frequency
        if clocks is None:
            return ""
        counts = self._throttled
        counts.append((readings.at_s, clocks.throttled))
        while counts[0][0] < readings.at_s - THROTTLED_S:
            counts.popleft()
        times = counts[-1][1] - counts[0][1]
        found = []
        if times > 0:
            found.append(f"the processor slowed itself down for heat {times} times in the last minute")
        if clocks.capped:
            found.append(f"clocks are held at {clocks.cap_mhz:.0f} of {clocks.max_mhz:.0f} MHz")
        return "; ".join(found)


def heating(device: str, load: Mapping[str, float]) -> float | None:
    """The load that heats a device: its own, else that of the processor."""
    return load.get(HEATED_BY.get(device, device), load.get("cpu"))


def _why(device: str, judgement: Judgement) -> str:
    return "; ".join(
        f"{each.sensor} is {each.reason}: {each.why}" for each in judgement.ignored if each.device == device
    )


def hottest(senses: Senses) -> float | None:
    """The hottest device whose temperature is known."""
    return max((heat.celsius for heat in senses.devices if heat.celsius is not None), default=None)


def remarks(senses: Senses) -> str:
    """What an operator should know about the sensors, in a sentence; empty when all is well."""
    if not senses.devices:
        return NO_SENSOR
    found = [f"ignored: {each.sensor} is {each.reason}: {each.why}" for each in senses.ignored]
    found += [f"temperature of {heat.device} is unknown" for heat in senses.devices if heat.celsius is None]
    found += [
        f"{', '.join(heat.outvoted)} outvoted: {heat.device} is at {heat.celsius:.0f} °C"
        for heat in senses.devices
        if heat.outvoted and heat.celsius is not None
    ]
    return "; ".join([*found, *filter(None, [senses.throttling])])
