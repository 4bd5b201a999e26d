"""The governor in a simulated box, beside one that only pauses and beside none: pure, the same at every run.

All get the same requests, the same weather and the same sensor. The ladder runs through the real path:
readings, trust, estimate, prediction, decision; its commands are carried out at once. The simulated box is
never slowed down by its own silicon, so the seconds above the limit of `none` are what heat would cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal

import msgspec

from edged.config.tables import Governor
from edged.governor.acting import Acting, Laddered, Pausing, Ungoverned
from edged.governor.effects import GENERATORS, Effect
from edged.governor.events import Command
from edged.governor.plant import DEVICE, STEP_S, Plant, Scenario
from edged.governor.readings import Readings

SLOTS = 32.0
"""Requests that can wait."""
LOADING_S = 5.0
"""A change of the rung may load a model beside the old one: the box is busy meanwhile."""
CLOSE_RESUME_C = 9.0
"""Of the second pause-only governor, which runs closer to the limit: 5 °C below where it stops."""
DEFAULT_LIMIT_C = 95.0
PROGRESS_EVERY = 600

Kind = Literal["ladder", "pause", "pause-close", "none"]


class Second(msgspec.Struct, frozen=True):
    """What one second was like: a line of a trace."""

    readings: Readings
    load: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a governor made of a scenario."""

    answers: float
    answered_share: float
    """Of all requests."""
    quality: float
    """Of an answer, on average, in proportion to the best rung."""
    above_limit_s: float
    peak_c: float
    changes: int
    changes_per_hour: float
    on_rung_s: dict[str, float]


class Rehearsal(msgspec.Struct, frozen=True, kw_only=True):
    """The ladder's decisions, and how it compares."""

    scenario: Scenario
    limit_c: float
    effects: tuple[Effect, ...]
    commands: tuple[Command, ...]
    outcomes: dict[Kind, Outcome]
    compared_with_pause: float
    """Answers finished, in proportion to those of the pause-only governor."""
    trace: tuple[Second, ...] = ()
    """What the ladder felt."""


def rehearse(
    governor: Governor,
    scenario: Scenario,
    unavailable: Sequence[str] = (),
    progress: Callable[[float], None] = lambda _: None,
    generators: Collection[str] = GENERATORS,
) -> Rehearsal:
    """Let each governor live through the scenario; rungs that are `unavailable` are not taken.

    `progress` is told each further share of the work that is done, `generators` are the stages that are some.
    """
    thermal = governor.temperature.get(DEVICE)
    limit_c = thermal.critical_c if thermal else DEFAULT_LIMIT_C
    ladder = Laddered(governor, unavailable, generators)
    known = ladder.effects
    rivals: dict[Kind, Acting] = {
        "ladder": ladder,
        "pause": Pausing(known[0], limit_c),
        "pause-close": Pausing(known[0], limit_c, CLOSE_RESUME_C),
        "none": Ungoverned(known[0]),
    }
    names = [effect.name for effect in known]
    outcomes: dict[Kind, Outcome] = {}
    felt: tuple[Second, ...] = ()
    for kind, acting in rivals.items():
        life = _Life(Plant(scenario), acting, limit_c)
        seconds = tuple(_watched(life.run(), len(rivals) * scenario.duration_s / STEP_S, progress))
        outcomes[kind] = life.outcome(names)
        felt = seconds if kind == "ladder" else felt
    return Rehearsal(
        scenario=scenario,
        limit_c=limit_c,
        effects=known,
        commands=tuple(ladder.commands),
        outcomes=outcomes,
        compared_with_pause=outcomes["ladder"].answers / max(outcomes["pause"].answers, 1.0),
        trace=felt,
    )


def _watched(seconds: Iterator[Second], total: float, progress: Callable[[float], None]) -> Iterator[Second]:
    for number, second in enumerate(seconds, 1):
        if not number % PROGRESS_EVERY:
            progress(PROGRESS_EVERY / total)
        yield second


class _Life:
    """One box with one governor."""

    def __init__(self, plant: Plant, acting: Acting, limit_c: float) -> None:
        self._plant = plant
        self._acting = acting
        self._limit_c = limit_c
        self._waiting = self._loading_s = 0.0
        self._asked = self._answers = self._worth = self._above_s = 0.0
        self._peak_c = plant.die_c
        self._seconds: Counter[int] = Counter()

    def run(self) -> Iterator[Second]:
        """Live, second by second."""
        while self._plant.at_s < self._plant.scenario.duration_s:
            busy = self._work(self._acting.effect())
            self._plant.run(busy)
            felt = Second(self._plant.read(busy), self._waiting / SLOTS)
            before = self._acting.rung
            self._acting.feel(felt.readings, felt.load)
            if self._acting.rung != before:
                self._loading_s = LOADING_S
            self._count()
            yield felt

    def _work(self, effect: Effect | None) -> float:
        """Answer for a second, and return the share of it in which the box was busy."""
        asked = self._plant.offered * STEP_S
        self._asked += asked
        self._loading_s = max(0.0, self._loading_s - STEP_S)
        if effect is None:
            return 0.0
        admitted = asked * (1.0 - self._plant.scenario.batch_share if effect.shed_batch else 1.0)
        can = effect.busy_share / effect.cost * STEP_S
        if effect.busy_share < 1.0:
            admitted = min(admitted, can)
        answered = min(can, self._waiting + admitted)
        self._waiting = min(SLOTS, self._waiting + admitted - answered)
        self._answers += answered
        self._worth += answered * effect.quality
        return 1.0 if self._loading_s else answered * effect.cost / STEP_S

    def _count(self) -> None:
        self._seconds[self._acting.rung] += 1
        self._peak_c = max(self._peak_c, self._plant.die_c)
        self._above_s += STEP_S if self._plant.die_c > self._limit_c else 0.0

    def outcome(self, names: Sequence[str]) -> Outcome:
        """Sum up."""
        changes = self._acting.changes
        return Outcome(
            answers=self._answers,
            answered_share=self._answers / self._asked,
            quality=self._worth / self._answers if self._answers else 0.0,
            above_limit_s=self._above_s,
            peak_c=self._peak_c,
            changes=changes,
            changes_per_hour=changes / self._plant.at_s * 3600,
            on_rung_s={names[rung]: STEP_S * count for rung, count in sorted(self._seconds.items())},
        )
