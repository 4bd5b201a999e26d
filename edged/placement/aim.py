"""What a plan is made for, and what an assignment is worth by it: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from edged.dispatch.leases import Mode
from edged.placement.flow import flow
from edged.placement.limits import Limits
from edged.placement.modes import unsuited
from edged.placement.prices import Option
from edged.placement.search import Found, Goal, Machine, Quantity, Task, amount

Objective = Literal["throughput", "latency", "energy"]
INDIFFERENCE = 0.02
"""Share of the objective below which two placements count as equally good."""
GOALS: Mapping[Objective, Goal] = {"throughput": "rate", "latency": "latency_s", "energy": "energy"}
THEN: Mapping[Objective, Goal] = {"throughput": "loaded_latency_s", "latency": "rate", "energy": "rate"}


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan is made for."""

    objective: Objective = "throughput"
    latency_s: float | None = None
    """Most seconds of a request in full batches that waits for nobody."""
    first_token_s: float | None = None
    """The same up to its first token."""
    rate_per_s: float | None = None
    """Least requests per second at saturation."""
    energy: float | None = None
    """Most joules per request, CPU seconds where joules are not measured."""

    @property
    def bounds(self) -> dict[str, float]:
        """Those that are set."""
        named = msgspec.structs.asdict(self)
        return {name: value for name, value in named.items() if name != "objective" and value is not None}

    def ceilings(self, limits: Limits) -> dict[Quantity, float]:
        """What may not be exceeded, memory included."""
        wanted: dict[Quantity, float | None] = {
            "loaded_latency_s": self.latency_s,
            "loaded_first_s": self.first_token_s,
            "energy": self.energy,
        }
        ceilings: dict[Quantity, float] = {"memory_bytes": limits.memory_bytes}
        ceilings.update((quantity, value) for quantity, value in wanted.items() if value is not None)
        return ceilings


class Judge:
    """Values assignments by an aim."""

    def __init__(self, aim: Aim, limits: Limits, machine: Machine, found: Found) -> None:
        self._aim, self._machine, self._limits = aim, machine, limits
        self._ceilings = aim.ceilings(limits)
        self._strict = not any(unsuited(option, found.mode, machine.cores) for option in found.options)

    def value(self, options: Sequence[Option], mode: Mode) -> float:
        """The objective: the more the better for throughput, the less the better else."""
        if self._aim.objective == "throughput":
            return flow(options, mode, self._machine.cores, self._machine.interference).rate_per_s
        quantity: Quantity = "latency_s" if self._aim.objective == "latency" else "energy"
        return self.total(options, quantity)

    def total(self, options: Sequence[Option], quantity: Quantity) -> float:
        """How much of a quantity an assignment takes."""
        return sum(amount(option, quantity, joules=self._machine.joules) for option in options)

    def objection(self, options: Sequence[Option], mode: Mode) -> str:
        """The bound that an assignment breaks, or why its mode does not suit it; empty when it keeps all."""
        unfit = (unsuited(option, mode, self._machine.cores) for option in options if self._strict)
        if why := next(filter(None, unfit), ""):
            return why
        for quantity, most in self._ceilings.items():
            if (total := self.total(options, quantity)) > most:
                if quantity == "memory_bytes":
                    return f"memory: {round(total) >> 20} MiB of {round(most) >> 20}"
                return f"{quantity} {total:.3g} is over the bound of {most:g}"
        floor = self._aim.rate_per_s
        if floor and (rate := self.rate(options, mode)) < floor:
            return f"{rate:.3g} requests per second are under the bound of {floor:g}"
        return ""

    def rate(self, options: Sequence[Option], mode: Mode) -> float:
        """Requests per second at saturation."""
        return flow(options, mode, self._machine.cores, self._machine.interference).rate_per_s


def second_task(first: Task, found: Found, aim: Aim) -> Task:
    """The task of the second step: keep what was won but for a little, and improve what comes next."""
    then = THEN[aim.objective]
    if first.goal == "rate":
        floor = max(first.floor_per_s, -found.value * (1 - INDIFFERENCE))
        return Task(goal=then, ceilings=first.ceilings, floor_per_s=floor)
    ceilings: dict[Quantity, float] = dict(first.ceilings)
    most = ceilings.get(first.goal, float("inf"))
    ceilings[first.goal] = min(most, found.value * (1 + INDIFFERENCE))
    return Task(goal=then, ceilings=ceilings, floor_per_s=first.floor_per_s)
