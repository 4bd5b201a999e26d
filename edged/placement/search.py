"""The best assignment among all: branch and bound over options without the dominated ones. Pure and exact.

An option is left out when another of the same stage on the same silicon, with the same contention, is no
worse in everything that goal, bounds and model look at: any assignment with the first is then matched by one
with the second. A branch is cut when even the best of what is left cannot win.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from operator import le
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from edged.dispatch.leases import Mode
from edged.placement.cores import mask
from edged.placement.flow import flow
from edged.placement.interference import Interference
from edged.placement.modes import least_core_seconds, met_s, most_per_s, one_core_s
from edged.placement.prices import Option
from edged.placement.table import Form

Quantity = Literal["latency_s", "first_s", "loaded_latency_s", "loaded_first_s", "energy", "memory_bytes"]
QUANTITIES: tuple[Quantity, ...] = (
    "latency_s",
    "first_s",
    "loaded_latency_s",
    "loaded_first_s",
    "energy",
    "memory_bytes",
)
"""What adds up over stages."""
Goal = Literal["rate"] | Quantity
"""`rate` is made as large as possible, anything else as small."""
EPSILON = 1e-9
TINY = 1e-12
Vector: TypeAlias = npt.NDArray[np.float64]
Matrix: TypeAlias = npt.NDArray[np.float64]


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What to find: the best by `goal`, of equals the least `then`."""

    goal: Goal
    ceilings: Mapping[Quantity, float]
    floor_per_s: float = 0.0


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """An assignment, one option a stage, and its value: the smaller the better."""

    options: tuple[Option, ...]
    mode: Mode
    value: float


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What assignments are judged on."""

    cores: int
    interference: Interference
    joules: bool
    """Whether energy is measured for every option; else CPU seconds stand for it."""


def amount(option: Option, quantity: Quantity, *, joules: bool) -> float:
    """How much of a quantity an option takes."""
    if quantity == "energy":
        return option.joules if joules and option.joules is not None else option.cpu_s
    return float(getattr(option, quantity))


def best(by_mode: Mapping[Mode, Sequence[Sequence[Option]]], task: Task, machine: Machine) -> Found | None:
    """The best assignment in any of the modes; of equals the first mode, then the first options."""
    found: Found | None = None
    for mode, offers in by_mode.items():
        found = _Search(offers, mode, task, machine).run(found)
    return found


class _Useful:
    """The options of one stage that no other one makes superfluous, as columns."""

    def __init__(self, options: Sequence[Option], mode: Mode, machine: Machine) -> None:
        self.options = options
        self.amounts = amounts(options, joules=machine.joules)
        self.cost: Vector = np.array([least_core_seconds(o, mode, machine.cores) for o in options])
        # In turns the workers of a stage run one at a time, which the cost says already.
        caps = [float("inf") if mode == "turns" else most_per_s(option, mode) for option in options]
        self.cap: Vector = np.array(caps)

    def __len__(self) -> int:
        return len(self.options)


class _Search:
    """One mode.

    A branch is judged by what the chosen options take plus the least that any options of the other stages
    take. Taken criterion by criterion that is weak where a bound trades one quantity for another, so there
    are Lagrangian bounds too: for a target p, a bounded quantity q with the ceiling Q and any l >= 0,
    p >= (least of p + l q) - l Q for everything that keeps the ceiling.
    """

    def __init__(self, offers: Sequence[Sequence[Option]], mode: Mode, task: Task, machine: Machine) -> None:
        self._mode: Mode = mode
        self._task, self._machine = task, machine
        self._excess = machine.interference.under(mode)
        self._limits: Vector = np.array([task.ceilings.get(quantity, np.inf) for quantity in QUANTITIES])
        self._goal = -1 if task.goal == "rate" else QUANTITIES.index(task.goal)
        useful = [self._useful(index, offers) for index in range(len(offers))]
        self._possible = all(useful)
        if self._possible:
            # Stages with much at stake first: wrong branches are cut early.
            self._order = sorted(range(len(useful)), key=lambda place: -float(np.ptp(useful[place].cost)))
            self._stages = [useful[place] for place in self._order]

    def run(self, found: Found | None) -> Found | None:
        """Return something better than `found`, if there is any, else `found`."""
        self._found = found
        if not self._possible:
            return found
        if self._contended:
            if self._goal < 0 and found is None:
                self._explore(leaves=1)
            self._stretch()
        self._explore(leaves=None)
        return self._found

    def _explore(self, leaves: int | None) -> None:
        self._leaves = leaves
        self._prepare()
        self._descend((), np.zeros(len(QUANTITIES)), 0.0, np.inf, np.zeros(len(self._offset)))

    @property
    def _contended(self) -> bool:
        """Whether stages slow one another down by more than sharing cores."""
        return self._mode in {"together", "single"} and not self._machine.interference.nothing_known

    def _stretch(self) -> None:
        """Raise the least costs by the contention that no assignment escapes that is fast enough to count."""
        rate = max(self._task.floor_per_s, -self._found.value if self._goal < 0 and self._found else 0.0)
        factors = [self._least_factors(stage, rate) for stage in self._stages]
        for stage, factor in zip(self._stages, factors, strict=True):
            stage.cap = stage.cap / factor
            if not self._feeding:
                stage.cost = stage.cost * factor

    @property
    def _feeding(self) -> bool:
        """Whether the CPU may feed an accelerator: `flow` bounds all costs without contention then."""
        options = [option for stage in self._stages for option in stage.options]
        return any(not mask(option.form.device, self._machine.cores) for option in options)

    def _least_factors(self, stage: _Useful, rate: float) -> Vector:
        others = [other for other in self._stages if other is not stage]
        added = {
            form: sum(min(self._least_added(form, o, rate) for o in other.options) for other in others)
            for form in {option.form for option in stage.options}
        }
        return np.array([1 + added[option.form] for option in stage.options])

    def _least_added(self, form: Form, beside: Option, rate: float) -> float:
        """The share by which a form is slower beside an option, in the smallest group that has both."""
        own, theirs = (mask(device, self._machine.cores) for device in (form.device, beside.form.device))
        if not own & theirs:
            return 0.0
        met = min(1.0, rate * met_s(beside, self._mode, (own | theirs).bit_count()))
        return met * (self._excess(form, beside.form) - 1)

    # --------------------------------------------------------------- dominance

    def _useful(self, index: int, offers: Sequence[Sequence[Option]]) -> _Useful:
        offer = [option for option in offers[index] if self._within(option)]
        others = sorted(
            {option.form for place, each in enumerate(offers) if place != index for option in each}
        )
        classes = {form: self._silicon(form, others) for form in {option.form for option in offer}}
        frontiers: dict[tuple[object, ...], list[tuple[float, ...]]] = defaultdict(list)
        kept: list[Option] = []
        ranked = sorted(((self._criteria(option), place) for place, option in enumerate(offer)))
        for criteria, place in ranked:
            option = offer[place]
            frontier = frontiers[(*classes[option.form], option.streaming)]
            if not any(all(map(le, known, criteria)) for known in frontier):
                frontier.append(criteria)
                kept.append(option)
        return _Useful(kept, self._mode, self._machine)

    def _within(self, option: Option) -> bool:
        """Whether it keeps every bound if the other stages take nothing."""
        alone = amounts([option], joules=self._machine.joules)[0]
        fast = self._mode == "turns" or most_per_s(option, self._mode) >= self._task.floor_per_s
        return fast and bool((alone <= self._limits).all())

    def _criteria(self, option: Option) -> tuple[float, ...]:
        """Everything that decides about an option here; less is better."""
        alone = amounts([option], joules=self._machine.joules)[0]
        looked_at = [
            float(each)
            for place, each in enumerate(alone)
            if place == self._goal or np.isfinite(self._limits[place])
        ]
        rated = self._goal < 0 or self._task.floor_per_s > 0
        return (*looked_at, *self._flow_criteria(option)) if rated else tuple(looked_at)

    def _flow_criteria(self, option: Option) -> tuple[float, ...]:
        match self._mode:
            case "together":
                return option.cpu_s, -option.rate_per_s
            case "single":
                return option.cpu_s, one_core_s(option), -most_per_s(option, self._mode)
            case "turns":
                return option.cpu_s, option.batch_s, option.batch_s / option.batch
            case "split":
                return option.cpu_s, -option.rate_per_s, *option.core_s

    def _silicon(self, form: Form, others: Sequence[Form]) -> tuple[object, ...]:
        """Where it runs, and how it gets on with the others: options that differ here do not compare."""
        if not self._contended:
            return (form.device,)
        excess = self._excess
        return (form.device, tuple((excess(form, other), excess(other, form)) for other in others))

    # ------------------------------------------------------------------ bounds

    def _prepare(self) -> None:
        """What the stages from each one on take at least, and carry at most."""
        stages = self._stages
        self._targets = [self._weighed(stage) for stage in stages]
        self._offset = self._budgets()
        self._least = _from_behind([stage.amounts.min(axis=0) for stage in stages], np.add)
        self._least_cost = _from_behind([stage.cost.min() for stage in stages], np.add)
        self._least_target = _from_behind([target.min(axis=0) for target in self._targets], np.add)
        self._most_rate = [*_from_behind([stage.cap.max() for stage in stages], np.minimum)[:-1], np.inf]

    def _target(self, stage: _Useful) -> Vector:
        """What is made small: the goal, or the core-seconds that bound the rate."""
        return stage.cost if self._goal < 0 else stage.amounts[:, self._goal]

    def _bounded(self) -> list[tuple[list[Vector], float]]:
        """Every bounded quantity that can bind: by stage its columns, and its ceiling."""
        found = [
            ([stage.amounts[:, place] for stage in self._stages], float(most))
            for place, most in enumerate(self._limits)
            if np.isfinite(most) and place != self._goal
        ]
        if self._task.floor_per_s and self._goal >= 0:
            found.append(
                ([stage.cost for stage in self._stages], self._machine.cores / self._task.floor_per_s)
            )
        return [(columns, most) for columns, most in found if sum(column.max() for column in columns) > most]

    def _multipliers(self) -> list[tuple[list[Vector], float, float]]:
        """Columns, ceiling and l: from where q hardly counts to where it is all that counts."""
        scale = sum(float(np.ptp(self._target(stage))) for stage in self._stages) or 1.0
        return [
            (columns, most, scale / (sum(float(np.ptp(column)) for column in columns) or 1.0) * 2.0**power)
            for columns, most in self._bounded()
            for power in range(-5, 6)
        ]

    def _weighed(self, stage: _Useful) -> Matrix:
        """The target of each option, alone and with each multiple of a bounded quantity added."""
        place = self._stages.index(stage)
        target = self._target(stage)
        rows = [target, *(target + factor * columns[place] for columns, _, factor in self._multipliers())]
        return np.stack(rows, axis=1)

    def _budgets(self) -> Vector:
        return np.array([0.0, *(factor * most for _, most, factor in self._multipliers())])

    # ---------------------------------------------------------------- branches

    def _descend(
        self, chosen: tuple[Option, ...], sums: Vector, cost: float, cap: float, target: Vector
    ) -> None:
        depth = len(chosen)
        if depth == len(self._stages):
            self._judge(chosen, sums)
            return
        stage = self._stages[depth]
        all_sums, all_targets = sums + stage.amounts, target + self._targets[depth]
        caps = np.minimum(stage.cap, cap)
        promises = self._promises(depth + 1, all_sums, cost + stage.cost, caps, all_targets)
        for place in np.argsort(promises, kind="stable"):
            if not self._beats(float(promises[place])) or self._leaves == 0:
                return
            self._descend(
                (*chosen, stage.options[place]),
                all_sums[place],
                cost + float(stage.cost[place]),
                float(caps[place]),
                all_targets[place],
            )

    def _promises(self, depth: int, sums: Matrix, costs: Vector, caps: Vector, targets: Matrix) -> Vector:
        """The value that each branch cannot beat; infinite where a bound is broken already."""
        least: Vector = (targets + self._least_target[depth] - self._offset).max(axis=1)
        rate = np.minimum(caps, self._most_rate[depth])
        wanted = costs + self._least_cost[depth]
        if self._goal < 0:
            wanted = np.maximum(wanted, least)
        rate = np.minimum(rate, self._machine.cores / np.maximum(wanted, TINY))
        values = -rate if self._goal < 0 else least
        kept = (sums + self._least[depth] <= self._limits).all(axis=1) & (rate >= self._task.floor_per_s)
        return np.where(kept, values, np.inf)

    def _beats(self, value: float) -> bool:
        """Whether it is better than what was found, by more than rounding."""
        if value == np.inf:
            return False
        return self._found is None or value < self._found.value - EPSILON * abs(self._found.value)

    def _judge(self, chosen: tuple[Option, ...], sums: Vector) -> None:
        options = tuple(
            option for _, option in sorted(zip(self._order, chosen, strict=True), key=lambda pair: pair[0])
        )
        rate, floor = 0.0, self._task.floor_per_s
        if self._goal < 0 and self._found is not None:
            floor = max(floor, -self._found.value)
        if self._goal < 0 or floor:
            running = flow(options, self._mode, self._machine.cores, self._machine.interference, floor)
            rate = running.rate_per_s
        value = -rate if self._goal < 0 else float(sums[self._goal])
        if rate >= self._task.floor_per_s and self._beats(value):
            self._found = Found(options=options, mode=self._mode, value=value)


def amounts(options: Sequence[Option], *, joules: bool) -> Matrix:
    """A row of all quantities for each option."""
    rows = [[amount(option, quantity, joules=joules) for quantity in QUANTITIES] for option in options]
    return np.array(rows).reshape(len(options), len(QUANTITIES))


def _from_behind(columns: Sequence[Any], join: Callable[[Any, Any], Any]) -> list[Any]:
    """Entry i joins the columns from i on; the last entry is zero."""
    joined = [np.zeros_like(columns[0])]
    for place, column in enumerate(reversed(columns)):
        joined.append(join(column, joined[-1]) if place else column)
    return joined[::-1]
