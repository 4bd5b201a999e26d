"""Governors as a simulated box sees them: the ladder, one that only pauses, and none. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from edged.config.tables import Governor
from edged.governor.bands import Policy, policy_of
from edged.governor.effects import GENERATORS, Effect, effects
from edged.governor.events import AnyEvent, Command, Confirmed, GoTo, Sampled
from edged.governor.heard import heard
from edged.governor.ladder import State, decide, without
from edged.governor.plant import DEVICE
from edged.governor.readings import Readings
from edged.governor.senses import Sensing

PAUSE_BELOW_C, RESUME_BELOW_C, PAUSE_S = 4.0, 19.0, 30.0
"""Of the pause-only governor, below the limit: work stops 4 °C under it and goes on 15 °C further down, after
30 s at least; the gap and the time are those of a published daemon that pauses containers."""


class Acting(Protocol):
    """A governor from outside: it feels, and says which effect is in force."""

    changes: int

    @property
    def rung(self) -> int:
        """In force."""
        ...

    def effect(self) -> Effect | None:
        """What is in force does; None: nothing is answered."""
        ...

    def feel(self, readings: Readings, load: float) -> None:
        """Take a sample: `load` is the share of the slots that are taken."""
        ...


class Laddered:
    """The real decision, whose commands are carried out at once."""

    def __init__(
        self, governor: Governor, unavailable: Sequence[str] = (), generators: Collection[str] = GENERATORS
    ) -> None:
        self.policy: Policy = policy_of(governor)
        self.commands: list[Command] = []
        self.changes = 0
        self._horizon_s = governor.horizon_s
        self._sensing = Sensing()
        self._state = State()
        missing = without(self.policy, unavailable)
        self.effects = effects(governor.ladder, [event.rung for event in missing], generators)
        for event in missing:
            self._hear(event)

    @property
    def rung(self) -> int:
        """In force."""
        return self._state.rung

    def effect(self) -> Effect | None:
        """Of the rung in force."""
        return self.effects[self.rung]

    def feel(self, readings: Readings, load: float) -> None:
        """Judge, decide, act."""
        senses, _ = self._sensing.take(readings)
        self._hear(heard(self._sensing, senses, horizon_s=self._horizon_s, load=load))

    def _hear(self, event: AnyEvent) -> None:
        self._state, commands = decide(self.policy, self._state, event)
        self.commands += commands
        for command in commands:
            if isinstance(command, GoTo) and isinstance(event, Sampled):
                self.changes += 1
                confirmed = Confirmed(at_s=event.at_s, rung=command.rung)
                self._state, _ = decide(self.policy, self._state, confirmed)


class Pausing:
    """Answers everything as always, or nothing."""

    def __init__(self, best: Effect, limit_c: float, resume_below_c: float = RESUME_BELOW_C) -> None:
        self.changes = 0
        self._best = best
        self._pause_c, self._resume_c = limit_c - PAUSE_BELOW_C, limit_c - resume_below_c
        self._sensing = Sensing()
        self._paused_at_s: float | None = None

    @property
    def rung(self) -> int:
        """Always the best."""
        return 0

    def effect(self) -> Effect | None:
        """None while it pauses."""
        return None if self._paused_at_s is not None else self._best

    def feel(self, readings: Readings, load: float) -> None:
        """Pause above one limit, resume below another."""
        del load
        senses, _ = self._sensing.take(readings)
        celsius = next((heat.filtered_c for heat in senses.devices if heat.device == DEVICE), None)
        if celsius is None:
            return
        if self._paused_at_s is None and celsius >= self._pause_c:
            self._paused_at_s = readings.at_s
            self.changes += 1
        elif self._paused_at_s is not None and self._may_resume(celsius, readings.at_s - self._paused_at_s):
            self._paused_at_s = None
            self.changes += 1

    def _may_resume(self, celsius: float, paused_s: float) -> bool:
        return celsius <= self._resume_c and paused_s >= PAUSE_S


class Ungoverned:
    """Always the best rung."""

    changes = 0
    rung = 0

    def __init__(self, best: Effect) -> None:
        self._best = best

    def effect(self) -> Effect | None:
        """Of the best rung."""
        return self._best

    def feel(self, readings: Readings, load: float) -> None:
        """Feel nothing."""
