"""Bands: which rung a reading asks for. Overlapping limits are in the data, so no clock is needed here: pure.

A reading asks for a lower rung when two samples in a row are above a limit (one alone may be a glitch), or
when two predictions are; a prediction goes one band further than the reading does, never more. It asks for a
better rung again only when reading and prediction are below the lower limit. Who says nothing believable asks
for what he asked for before.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection

import msgspec
from msgspec.structs import replace

from edged.config.tables import Band, Governor, Thermal

PLAUSIBLE_C = (-40.0, 150.0)
"""Silicon outside this range is a broken sensor: a dead accelerator has been seen to report -89.7 °C."""
PLAUSIBLE_SHARE = (0.0, 1.0)
TEMPERATURE = "temperature"
_KIND = re.compile(r"[a-z_]+")


class Reading(msgspec.Struct, frozen=True):
    """What is known of one signal now."""

    value: float | None = None
    """In °C, or a share; None: unknown."""
    predicted: float | None = None
    """The same, `horizon_s` ahead; None: not predicted."""
    why: str = ""
    """Why it is unknown."""


class Limit(msgspec.Struct, frozen=True):
    """From `enter` on a reading asks for this rung or a lower one, until it is below `leave`."""

    rung: int
    enter: float
    leave: float


class Scale(msgspec.Struct, frozen=True):
    """All limits of a kind of signal, in the ladder's order."""

    limits: tuple[Limit, ...]
    plausible: tuple[float, float]
    critical: float = math.inf

    @property
    def margin(self) -> float:
        """Half of the narrowest overlap: less than this is no change of the circumstances."""
        return min((limit.enter - limit.leave for limit in self.limits), default=0.0) / 2


class Policy(msgspec.Struct, frozen=True):
    """`[governor]` in the form that decisions are made with; rungs by number, 0 is the best."""

    rungs: tuple[str, ...]
    floor: int
    dwell_s: float
    climb_after_s: float
    retry_s: float
    scales: dict[str, Scale]
    """By kind of signal: `temperature.cpu`, `load`, `memory`, `stall`."""


class Standing(msgspec.Struct, frozen=True):
    """What one signal asks for, and its last believable reading."""

    rung: int = 0
    value: float | None = None
    predicted: float | None = None
    critical: bool = False
    unknown: str = ""
    """Why it is not known now; empty: it is."""


def policy_of(governor: Governor) -> Policy:
    """Translate the configuration, which `config.load` has checked."""
    names = tuple(rung.name for rung in governor.ladder)
    order = {name: rung for rung, name in enumerate(names)}
    scales = {
        f"{TEMPERATURE}.{kind}": _thermal(thermal, order) for kind, thermal in governor.temperature.items()
    }
    for name, bands in (("load", governor.load), ("memory", governor.memory), ("stall", governor.stall)):
        scales[name] = _shares(bands, order)
    return Policy(
        rungs=names,
        floor=order.get(governor.floor, len(names) - 1),
        dwell_s=governor.dwell_s,
        climb_after_s=governor.climb_after_s,
        retry_s=governor.retry_s,
        scales={name: scale for name, scale in scales.items() if scale.limits},
    )


def _thermal(thermal: Thermal, order: dict[str, int]) -> Scale:
    limits = tuple(Limit(order[band.rung], band.enter_c, band.leave_c) for band in thermal.bands)
    return Scale(limits, PLAUSIBLE_C, thermal.critical_c)


def _shares(bands: tuple[Band, ...], order: dict[str, int]) -> Scale:
    limits = tuple(Limit(order[band.rung], band.enter, band.leave) for band in bands)
    return Scale(limits, PLAUSIBLE_SHARE)


def scale_of(policy: Policy, signal: str) -> Scale | None:
    """The limits of a signal; None where the policy does not watch its kind.

    `temperature.nvme0` and `temperature.cuda:0` are of the kinds `temperature.nvme` and `temperature.cuda`.
    """
    family, dot, device = signal.partition(".")
    kind = _KIND.match(device)
    return policy.scales.get(f"{family}.{kind[0]}" if dot and kind else signal)


def reachable(scale: Scale, unavailable: Collection[int], floor: int) -> Scale:
    """The scale without the limits of rungs that cannot be taken, where the next that can has one of its own.

    So a box without a peer goes on as it is to the next limit; it does not begin to refuse where others would
    begin to ask their peers.

    >>> scale = Scale((Limit(5, 84.0, 76.0), Limit(6, 87.0, 79.0)), PLAUSIBLE_C)
    >>> [[limit.rung for limit in reachable(scale, rungs, 6).limits] for rungs in ({5}, {6})]
    [[6], [5, 6]]
    >>> unwatched_between = Scale((Limit(4, 84.0, 76.0), Limit(6, 87.0, 79.0)), PLAUSIBLE_C)
    >>> [[limit.rung for limit in reachable(unwatched_between, rungs, 6).limits] for rungs in ({4}, {4, 5})]
    [[4, 6], [6]]
    """
    own = {limit.rung for limit in scale.limits}
    if own.isdisjoint(unavailable):
        return scale

    def next_is_watched(rung: int) -> bool:
        lower = (each for each in range(rung + 1, floor + 1) if each not in unavailable)
        return next(lower, -1) in own

    limits = tuple(
        limit for limit in scale.limits if limit.rung not in unavailable or not next_is_watched(limit.rung)
    )
    return replace(scale, limits=limits)


def hear(scale: Scale, before: Standing, reading: Reading) -> Standing:
    """What a signal asks for after one more reading."""
    value = _believable(scale, reading.value)
    if value is None:
        return Standing(rung=before.rung, unknown=reading.why or _doubt(scale, reading.value))
    predicted = _believable(scale, reading.predicted)
    steady = _lower(value, before.value)
    entered = _deepest(scale, steady)
    foreseen = min(_deepest(scale, _lower(predicted, before.predicted)), _next(scale, entered))
    highest = max(value, predicted or value)
    kept = [limit.rung for limit in scale.limits if limit.leave <= highest and limit.rung <= before.rung]
    return Standing(
        rung=max(entered, foreseen, *kept),
        value=value,
        predicted=predicted,
        critical=steady is not None and steady >= scale.critical,
    )


def _believable(scale: Scale, value: float | None) -> float | None:
    low, high = scale.plausible
    return value if value is not None and low <= value <= high else None


def _doubt(scale: Scale, value: float | None) -> str:
    low, high = scale.plausible
    return "no reading" if value is None else f"{value:g} is outside of {low:g} to {high:g}"


def _lower(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else min(now, before)


def _deepest(scale: Scale, value: float | None) -> int:
    if value is None:
        return 0
    return max((limit.rung for limit in scale.limits if limit.enter <= value), default=0)


def _next(scale: Scale, rung: int) -> int:
    return min((limit.rung for limit in scale.limits if limit.rung > rung), default=rung)
