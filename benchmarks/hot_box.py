"""R10: the real daemon in a hot cabinet, with real models, real sensor files and its own CPU seconds as heat.

With `--quick`, one generator of declared cost stands for the models, so that there are answers enough. The
plant is simulated and lives in a hurry; what the figures leave out is said in `benchmarks/cabinet.py`.
Quality is that of the rungs under which requests were answered, by `governor.ladder` or, where that has no
figure, as assumed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import msgspec

from benchmarks.cabinet import (
    BUILT_IN,
    LIMIT_C,
    Box,
    Cabinet,
    Lived,
    Load,
    cabinet,
    hover,
    hurried,
    live,
    pausing,
)
from benchmarks.measurement import Row, say
from benchmarks.mixes import distinct
from benchmarks.setting import ALONE, STATE, generators, rag_library
from edged.governor.bands import policy_of
from edged.governor.effects import effects

CAPACITY_S = 6.0
PER_HOUR = 6.0


class Both(msgspec.Struct, frozen=True, kw_only=True):
    """The ladder, and a governor that only pauses, under the same requests."""

    held: Cabinet
    box: Box
    ladder: Lived
    pause: Lived
    load: Load


def real_box() -> Box:
    """The built-in pipeline on real models; every question is asked once."""
    library = rag_library(quick=False)
    generators("q4_0")  # what the ladder lightens the generator to
    questions = [text for number in range(5) for text, _ in distinct(library.questions, number)]
    return Box(
        stages=f"[library]\ndir = '{library.folder}'\n"
        "[stages.generator]\noptions = { answers_cache_mib = 0 }\n",
        model="rag",
        questions=tuple(questions),
        max_tokens=192,
        borrowed=STATE,
    )


def brief_box() -> Box:
    """A generator of declared cost, which burns a core: starts at once and answers often."""
    return Box(
        stages=f"{ALONE}[stages.generator]\n"
        "backend = 'simulated'\ndevice = 'sim:cpu'\noptions = { per_item_ms = 1.0, busy = true }\n",
        model="generator",
        questions=("What does a steady red light mean?",),
        max_tokens=256,
    )


@cache
def both(*, quick: bool) -> Both:
    """Live through the cabinet twice."""
    box, held = brief_box() if quick else real_box(), cabinet(quick=quick)
    warm_s = CAPACITY_S / 2 if quick else 2 * CAPACITY_S
    ladder, load = live("ladder", held, hurried(held.compression), box, warm_s=warm_s)
    ladder.quality = _quality(ladder)
    say(f"R10 {msgspec.to_builtins(ladder)}")
    pause, _ = live("pause only", held, pausing(held.compression), box, warm_s=warm_s, load=load)
    pause.quality = 1.0
    say(f"R10 {msgspec.to_builtins(pause)}")
    return Both(held=held, box=box, ladder=ladder, pause=pause, load=load)


def _quality(lived: Lived) -> float:
    known = {effect.name: effect.quality for effect in effects(BUILT_IN.ladder)}
    answers = sum(lived.answers_by_rung.values())
    return sum(known[rung] * count for rung, count in lived.answers_by_rung.items()) / max(answers, 1)


def _told(ran: Both) -> dict[str, Any]:
    scenario = ran.held.scenario
    cool = [each.governor for each in (ran.ladder, ran.pause) if each.peak_c < LIMIT_C - 25]
    return {
        "ladder": msgspec.to_builtins(ran.ladder),
        "pause only": msgspec.to_builtins(ran.pause),
        "requests_per_s": round(ran.load.per_s, 2),
        "pipeline": ran.box.model,
        "plant": f"{scenario.duration_s / 3600:.1f} h in {ran.held.seconds:.0f} s, "
        f"{scenario.ambient_c:g} °C, sun, the fan stops after {scenario.fan_fails_s / 60:.0f} min",
        "quality": f"{ran.ladder.quality:.3f} of an answer at the best rung; figures of rungs are assumed",
        "limit_c": LIMIT_C,
        "violations": [f"{name}: it never got hot" for name in cool],
    }


def answers(quick: bool) -> tuple[float, dict[str, Any]]:
    """Answers finished / those of a governor that only pauses."""
    ran = both(quick=quick)
    return ran.ladder.answers / max(ran.pause.answers, 1), _told(ran)


def limit(quick: bool) -> tuple[float, dict[str, Any]]:
    """Seconds of the plant above the limit, behind the first quarter."""
    ran = both(quick=quick)
    return ran.ladder.above_limit_settled_s, _told(ran)


def changes(quick: bool) -> tuple[float, dict[str, Any]]:
    """Changes of the rung an hour of the plant; quick: only those behind the first quarter count."""
    ran = both(quick=quick)
    lived = ran.ladder
    if quick:
        return lived.changes_settled / (0.75 * lived.hours), _told(ran) | {"gate": 4 * PER_HOUR}
    return lived.changes / lived.hours, _told(ran)


def hovering(quick: bool) -> tuple[float, dict[str, Any]]:
    """Changes in an hour in which a reading hovers by ±2 °C at a limit, through the daemon's own sensors."""
    limits = policy_of(BUILT_IN).scales["temperature.cpu"].limits
    chosen = limits[1:2] if quick else (limits[1], limits[2], limits[6])
    compression, seconds = (180.0, 20.0) if quick else (60.0, 60.0)
    cases = {
        f"{centre:g} °C from {side}": (centre, centre + step)
        for each in chosen
        for centre in (each.enter, each.leave)
        for side, step in (("below", -8.0), ("above", 8.0))
    }
    with ThreadPoolExecutor(4) as pool:
        ran = {
            name: pool.submit(hover, centre_c, start_c, compression, seconds, 1200.0)
            for name, (centre_c, start_c) in cases.items()
        }
        found = {name: each.result() for name, each in ran.items()}
    worst = max(found, key=lambda name: found[name])
    detail = {"changes": found, "worst": worst, "hour": f"in {seconds:.0f} s", "period_s": 1200.0}
    return float(found[worst]), detail


ROWS = (
    Row(
        id="R10@answers",
        what="real daemon in a hot cabinet: answers finished / those of a governor that only pauses",
        unit="ratio",
        gate=1.5,
        goal=2.0,
        better="higher",
        measure=answers,
    ),
    Row(
        id="R10@limit",
        what="real daemon in a hot cabinet: time above the limit once settled",
        unit="s",
        gate=0.0,
        goal=0.0,
        better="lower",
        measure=limit,
    ),
    Row(
        id="R10@changes",
        what="real daemon in a hot cabinet: changes of the rung an hour",
        unit="1/h",
        gate=PER_HOUR,
        goal=2.0,
        better="lower",
        measure=changes,
    ),
    Row(
        id="R10@hover",
        what="real daemon: changes in an hour in which its sensor hovers by ±2 °C at a limit, worst limit",
        unit="changes",
        gate=2.0,
        goal=2.0,
        better="lower",
        measure=hovering,
    ),
)
