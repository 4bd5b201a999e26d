"""R10s: the governor's decision in a simulated cabinet, without a daemon: heat, changes, answers, hovering.

The plant, the sensor's faults and the readings are simulated; trust, estimate, prediction and decision are
the real ones. Work and quality of rungs are the documented estimates, which the detail says. The figure of a
row is the worst over the seeds.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from msgspec.structs import replace

from benchmarks.measurement import Row, say
from edged.config import Governor
from edged.governor.bands import policy_of
from edged.governor.events import GoTo, Report
from edged.governor.ladder import without
from edged.governor.plant import SCENARIOS
from edged.governor.simulate import Rehearsal, rehearse
from edged.governor.trace import Raw, judged, replay

GOVERNOR = Governor()
UNAVAILABLE = ("peer",)
HOT = ("cabinet-45c", "cabinet-45c-overload", "cabinet-45c-sensor")
SEEDS = (1, 2, 3, 4, 5)
HOUR_S = 3600
HOVER_C = 2.0
HOVERS = {"slow": 600.0, "quick": 40.0, "quicker": 7.0}
"""Seconds of a period."""
SWAY = 250.0
"""Seconds of a period of the load while a reading hovers: so there is something to predict from."""


@cache
def lived(name: str, seed: int) -> Rehearsal:
    """A scenario by name, with other noise and other waves."""
    scenario = next(each for each in SCENARIOS if each.name == name)
    found = rehearse(GOVERNOR, replace(scenario, seed=seed), UNAVAILABLE)
    say(f"R10s {name} {seed}: {found.outcomes['ladder']}")
    return found


def seeds(*, quick: bool) -> tuple[int, ...]:
    """One for a first look."""
    return SEEDS[:1] if quick else SEEDS


def _told(found: Rehearsal) -> dict[str, Any]:
    return {
        kind: {
            "answered_share": round(outcome.answered_share, 3),
            "quality": round(outcome.quality, 3),
            "above_limit_s": outcome.above_limit_s,
            "peak_c": round(outcome.peak_c, 1),
            "changes_per_hour": round(outcome.changes_per_hour, 2),
        }
        for kind, outcome in found.outcomes.items()
    }


def answers(quick: bool) -> tuple[float, dict[str, Any]]:
    """Answers finished / those of a governor that only pauses, in the cabinet with sun and a fan failure."""
    ran = [lived("cabinet-45c", seed) for seed in seeds(quick=quick)]
    worst = min(ran, key=lambda each: each.compared_with_pause)
    close = [each.outcomes["ladder"].answers / each.outcomes["pause-close"].answers for each in ran]
    overload = [lived("cabinet-45c-overload", seed).compared_with_pause for seed in seeds(quick=quick)]
    detail = {
        "governors": _told(worst),
        "beside a governor that pauses 5 °C apart": round(min(close), 3),
        "in cabinet-45c-overload": round(min(overload), 3),
        "estimated": sorted({figure for each in worst.effects for figure in each.estimated}),
    }
    return worst.compared_with_pause, detail


def limit(quick: bool) -> tuple[float, dict[str, Any]]:
    """Seconds above the limit in all hot scenarios."""
    ran = {(name, seed): lived(name, seed) for name in HOT for seed in seeds(quick=quick)}
    worst = max(ran.values(), key=lambda each: each.outcomes["ladder"].peak_c)
    tame = [f"{key}: not hot" for key, each in ran.items() if not each.outcomes["none"].above_limit_s]
    detail = {"governors": _told(worst), "scenario": worst.scenario.name, "limit_c": worst.limit_c}
    return max(each.outcomes["ladder"].above_limit_s for each in ran.values()), detail | {"violations": tame}


def changes(quick: bool) -> tuple[float, dict[str, Any]]:
    """Changes of the rung an hour; a sensor that is absurd or gone must cause none, and must be reported."""
    ran = {(name, seed): lived(name, seed) for name in HOT for seed in seeds(quick=quick)}
    rates = {f"{name} {seed}": each.outcomes["ladder"].changes_per_hour for (name, seed), each in ran.items()}
    violations = [problem for (name, _), each in ran.items() for problem in _blind(each)]
    return max(rates.values()), {"by_run": rates, "violations": violations}


def _blind(found: Rehearsal) -> list[str]:
    """Faults of the sensor that changed something, or that nobody was told of.

    A frozen one cannot be told from a steady one before the load moves: it is not asked for a report.
    """
    problems = []
    for fault in found.scenario.faults:
        during = [each for each in found.commands if fault.from_s <= each.at_s < fault.until_s]
        if any(isinstance(each, GoTo) and each.cause.signal != "load" for each in during):
            problems.append(f"{fault.kind}: changed something")
        if fault.kind != "frozen" and not any(isinstance(each, Report) and each.why for each in during):
            problems.append(f"{fault.kind}: not reported")
    return problems


def hovering(quick: bool) -> tuple[float, dict[str, Any]]:
    """Changes in an hour in which the reading hovers by ±2 °C at a limit, the worst limit and period."""
    limits = policy_of(GOVERNOR).scales["temperature.cpu"].limits
    centres = [celsius for each in limits for celsius in (each.enter, each.leave)]
    periods = ["quick"] if quick else list(HOVERS)
    found = {
        f"{centre:g} °C from {side}, {period}": _hover(centre, HOVERS[period], start_c)
        for centre in centres
        for period in periods
        for side, start_c in (("below", centre - 8.0), ("above", centre + 8.0))
    }
    worst = max(found, key=lambda name: found[name])
    return float(found[worst]), {"worst": worst, "hours": len(found)}


def _hover(centre_c: float, period_s: float, start_c: float) -> int:
    """Changes in the hour behind one in which the reading comes from `start_c` and rests beside the limit."""
    policy = policy_of(GOVERNOR)
    near_c = centre_c + math.copysign(HOVER_C + 0.5, start_c - centre_c)
    raw = [_sample(at_s, near_c) for at_s in range(HOUR_S)]
    raw += [
        _sample(HOUR_S + at_s, centre_c + HOVER_C * math.sin(2 * math.pi * at_s / period_s))
        for at_s in range(HOUR_S)
    ]
    events = [*without(policy, UNAVAILABLE), *judged(raw, GOVERNOR.horizon_s)]
    said = replay(policy, events).commands
    return sum(isinstance(each, GoTo) and each.at_s >= HOUR_S for each in said)


def _sample(at_s: float, celsius: float) -> Raw:
    busy = 0.5 + 0.4 * math.sin(2 * math.pi * at_s / SWAY)
    return Raw(at_s=at_s, temperatures={"cpu": celsius}, busy=busy)


ROWS = (
    Row(
        id="R10s@answers",
        what="simulated plant without a daemon: answers finished / those of a governor that only pauses",
        unit="ratio",
        gate=1.5,
        goal=2.0,
        better="higher",
        measure=answers,
    ),
    Row(
        id="R10s@limit",
        what="simulated plant without a daemon: time above the limit in 4 hours, worst scenario",
        unit="s",
        gate=0.0,
        goal=0.0,
        better="lower",
        measure=limit,
    ),
    Row(
        id="R10s@changes",
        what="simulated plant without a daemon: changes of the rung an hour, worst scenario",
        unit="1/h",
        gate=6.0,
        goal=2.0,
        better="lower",
        measure=changes,
    ),
    Row(
        id="R10s@hover",
        what="changes in an hour in which a reading hovers by ±2 °C at a limit, worst limit",
        unit="changes",
        gate=2.0,
        goal=2.0,
        better="lower",
        measure=hovering,
    ),
)
