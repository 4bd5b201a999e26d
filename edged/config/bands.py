"""Rules of `[governor]`: the ladder, and bands that overlap so that no reading can make it flap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from edged.config.tables import Config, Governor, Rung

MIN_OVERLAP_C, MIN_STEP_C = 5.0, 3.0
"""A reading that hovers by ±2 °C crosses both limits of no band, and the upper limits of two at most."""
MIN_OVERLAP, MIN_STEP = 0.04, 0.02
MAX_RUNGS = 32

Problems = Iterator[tuple[str, str]]


class _Limits(NamedTuple):
    rung: str
    enter: float
    leave: float


class _Margins(NamedTuple):
    overlap: float
    step: float
    suffix: str
    unit: str


_CELSIUS = _Margins(MIN_OVERLAP_C, MIN_STEP_C, "_c", " °C")
_SHARES = _Margins(MIN_OVERLAP, MIN_STEP, "", "")


def governor_problems(config: Config) -> Problems:
    """Every rule that the governor's tables break: the option and what is wrong."""
    governor = config.governor
    yield from _ladder_problems(governor, config)
    order = {rung.name: place for place, rung in enumerate(governor.ladder)}
    for kind, thermal in governor.temperature.items():
        where = f"governor.temperature.{kind}"
        found = [_Limits(band.rung, band.enter_c, band.leave_c) for band in thermal.bands]
        yield from _band_problems(f"{where}.bands", found, order, _CELSIUS)
        if found and thermal.critical_c <= found[-1].enter:
            yield (
                f"{where}.critical_c",
                f"= {thermal.critical_c:g} °C has to be above the last enter_c = {found[-1].enter:g} °C",
            )
    for name, bands in (("load", governor.load), ("memory", governor.memory), ("stall", governor.stall)):
        found = [_Limits(band.rung, band.enter, band.leave) for band in bands]
        yield from _band_problems(f"governor.{name}", found, order, _SHARES)


def _ladder_problems(governor: Governor, config: Config) -> Problems:
    names = [rung.name for rung in governor.ladder]
    if not 1 <= len(names) <= MAX_RUNGS:
        yield "governor.ladder", f"has {len(names)} rungs; it needs 1 to {MAX_RUNGS}"
        return
    if twice := {name for name in names if names.count(name) > 1}:
        yield "governor.ladder", f"names the rung {min(twice)!r} twice"
    if _acts(governor.ladder[0]):
        yield (
            "governor.ladder",
            f"starts with {names[0]!r}, which changes something; the first rung is the best",
        )
    if governor.floor and governor.floor not in names:
        yield "governor.floor", f"= {governor.floor!r} is not a rung; rungs: {', '.join(names)}"
    for rung in governor.ladder:
        if unknown := sorted({*rung.variants, *rung.frugal} - set(config.stages)):
            known = ", ".join(config.stages)
            yield "governor.ladder", f"{rung.name!r}: {unknown[0]!r} is not a stage; stages: {known}"


def _acts(rung: Rung) -> bool:
    figures = {"name", "cost", "quality"}
    return any(
        getattr(rung, field.name) != field.default
        for field in msgspec.structs.fields(rung)
        if field.name not in figures and field.default_factory is msgspec.NODEFAULT
    ) or bool(rung.variants)


def _band_problems(where: str, bands: Sequence[_Limits], order: dict[str, int], need: _Margins) -> Problems:
    for band in bands:
        if problem := _problem_of(band, order, need):
            yield where, problem
            return
    for better, worse in pairwise(bands):
        if problem := _problem_between(better, worse, order, need):
            yield where, problem
            return


def _problem_of(band: _Limits, order: dict[str, int], need: _Margins) -> str:
    enter, leave = (f"{name}{need.suffix}" for name in ("enter", "leave"))
    if band.rung not in order:
        return f"names the rung {band.rung!r}, which governor.ladder lacks; rungs: {', '.join(order)}"
    if order[band.rung] == 0:
        return f"has a limit for {band.rung!r}, the best rung, which needs none"
    if band.leave >= band.enter:
        return (
            f"{band.rung!r}: {leave} = {band.leave:g}{need.unit} has to be below "
            f"{enter} = {band.enter:g}{need.unit}"
        )
    if band.enter - band.leave < need.overlap - 1e-9:
        return (
            f"{band.rung!r}: {leave} = {band.leave:g}{need.unit} and {enter} = {band.enter:g}{need.unit} "
            f"overlap by less than {need.overlap:g}{need.unit}, so it would flap"
        )
    return ""


def _problem_between(better: _Limits, worse: _Limits, order: dict[str, int], need: _Margins) -> str:
    if order[worse.rung] <= order[better.rung]:
        return f"lists {worse.rung!r} behind {better.rung!r}; the order is that of governor.ladder"
    if worse.enter - better.enter < need.step - 1e-9 or worse.leave <= better.leave:
        return (
            f"{worse.rung!r} enters at {worse.enter:g}{need.unit} and leaves at {worse.leave:g}{need.unit}: "
            f"it has to enter at least {need.step:g}{need.unit} above {better.rung!r} "
            f"({better.enter:g}{need.unit}), and leave above its {better.leave:g}{need.unit}"
        )
    return ""
