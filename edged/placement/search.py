"""The best assignment among all: branch and bound over options without the dominated ones. Pure and exact.

An option is left out when another of the same stage on the same silicon, with the same contention, is no worse
in everything that goal, bounds and model look at: any assignment with the first is then matched by one with the
second. A branch is cut when even the best of what is left, each criterion taken for itself, cannot win.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from edged.dispatch.leases import Mode
from edged.placement.interference import Interference
from edged.placement.flow import flow, least_core_seconds
from edged.placement.prices import Option

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


def best(
    offers: Sequence[Sequence[Option]], modes: Sequence[Mode], task: Task, machine: Machine
) -> Found | None:
    """The best assignment in any of the modes; of equals the first mode, then the first options."""
    found: Found | None = None
    for mode in modes:
        found = _Search(offers, mode, task, machine).run(found)
    return found


class _Node(msgspec.Struct, frozen=True):
    """An option with everything about it that the search adds up."""

    option: Option
    cost: float
    """Core-seconds per request, at least."""
    amounts: tuple[float, ...]


class _Search:
    """One mode."""

    def __init__(self, offers: Sequence[Sequence[Option]], mode: Mode, task: Task, machine: Machine) -> None:
        self._mode, self._task, self._machine = mode, task, machine
        self._limits = tuple(task.ceilings.get(quantity, float("inf")) for quantity in QUANTITIES)
        self._goal = -1 if task.goal == "rate" else QUANTITIES.index(task.goal)
        self._stages = [self._useful(index, offers) for index in range(len(offers))]
        self._bounds()

    def run(self, found: Found | None) -> Found | None:
        """Return something better than `found`, if there is any, else `found`."""
        self._found = found
        if all(self._stages):
            self._descend(0, (), 0.0, float("inf"), (0.0,) * len(QUANTITIES))
        return self._found

    # --------------------------------------------------------------- dominance

    def _useful(self, index: int, offers: Sequence[Sequence[Option]]) -> list[_Node]:
        """The options of a stage that no other one makes superfluous, the most promising first."""
        others = sorted(
            {option.form for place, offer in enumerate(offers) if place != index for option in offer}
        )
        kept: dict[tuple[object, ...], list[tuple[float, ...]]] = {}
        nodes: list[_Node] = []
        ranked = [(self._criteria(option), option) for option in offers[index] if self._possible(option)]
        for criteria, option in sorted(ranked, key=lambda pair: pair[0]):
            silicon = self._silicon(option, others)
            frontier = kept.setdefault(silicon, [])
            if any(all(a <= b for a, b in zip(known, criteria, strict=True)) for known in frontier):
                continue
            frontier.append(criteria)
            nodes.append(self._node(option))
        return nodes

    def _possible(self, option: Option) -> bool:
        amounts = self._node(option).amounts
        within = all(each <= most for each, most in zip(amounts, self._limits, strict=True))
        return within and (self._mode == "turns" or option.rate_per_s >= self._task.floor_per_s)

    def _node(self, option: Option) -> _Node:
        joules = self._machine.joules
        amounts = tuple(amount(option, quantity, joules=joules) for quantity in QUANTITIES)
        return _Node(option, least_core_seconds(option, self._mode, self._machine.cores), amounts)

    def _criteria(self, option: Option) -> tuple[float, ...]:
        """Everything that decides about an option here; less is better."""
        node = self._node(option)
        amounts = tuple(
            each
            for place, each in enumerate(node.amounts)
            if place == self._goal or self._limits[place] != float("inf")
        )
        if self._goal >= 0 and not self._task.floor_per_s:
            return amounts
        return (*amounts, *self._flow_criteria(option))

    def _flow_criteria(self, option: Option) -> tuple[float, ...]:
        match self._mode:
            case "together":
                return option.cpu_s, -option.rate_per_s
            case "turns":
                return option.cpu_s, option.batch_s, *option.core_s
            case "split":
                return option.cpu_s, -option.rate_per_s, *option.core_s

    def _silicon(self, option: Option, others: Sequence[object]) -> tuple[object, ...]:
        """Where it runs, and how it gets on with the others: options that differ here do not compare."""
        interference = self._machine.interference
        if interference.nothing_known or self._mode == "turns":
            return (option.form.device, option.streaming)
        form = option.form
        beside = [(interference(form, other), interference(other, form)) for other in others]  # type: ignore[arg-type]
        return (form.device, option.streaming, tuple(beside))

    # ---------------------------------------------------------------- branches

    def _bounds(self) -> None:
        """What the stages from each one on take at least, and carry at most."""
        depth = len(self._stages)
        self._least_cost = [0.0] * (depth + 1)
        self._most_rate = [float("inf")] * (depth + 1)
        self._least = [(0.0,) * len(QUANTITIES)] * (depth + 1)
        for place in reversed(range(depth if all(self._stages) else 0)):
            nodes = self._stages[place]
            self._least_cost[place] = self._least_cost[place + 1] + min(node.cost for node in nodes)
            self._most_rate[place] = min(self._most_rate[place + 1], max(self._cap(node) for node in nodes))
            least = [min(column) for column in zip(*(node.amounts for node in nodes), strict=True)]
            self._least[place] = _plus(tuple(least), self._least[place + 1])

    def _cap(self, node: _Node) -> float:
        """The rate of a stage; in turns its workers run one at a time, which its cost says already."""
        return float("inf") if self._mode == "turns" else node.option.rate_per_s

    def _descend(
        self, depth: int, chosen: tuple[Option, ...], cost: float, cap: float, sums: tuple[float, ...]
    ) -> None:
        if depth == len(self._stages):
            self._judge(chosen, sums)
            return
        for node, cost_here, cap_here, sums_here in self._branches(depth, cost, cap, sums):
            if self._hopeful(depth + 1, cost_here, cap_here, sums_here):
                self._descend(depth + 1, (*chosen, node.option), cost_here, cap_here, sums_here)

    def _branches(
        self, depth: int, cost: float, cap: float, sums: tuple[float, ...]
    ) -> Iterator[tuple[_Node, float, float, tuple[float, ...]]]:
        """The options of a stage in the order of what they promise."""
        branches = [
            (node, cost + node.cost, min(cap, self._cap(node)), _plus(sums, node.amounts))
            for node in self._stages[depth]
        ]
        yield from sorted(
            branches, key=lambda branch: self._promise(depth + 1, branch[1], branch[2], branch[3])
        )

    def _promise(self, depth: int, cost: float, cap: float, sums: tuple[float, ...]) -> float:
        """The value that a branch cannot beat."""
        if self._goal >= 0:
            return sums[self._goal] + self._least[depth][self._goal]
        return -self._rate_bound(depth, cost, cap)

    def _rate_bound(self, depth: int, cost: float, cap: float) -> float:
        wanted = cost + self._least_cost[depth]
        return min(cap, self._most_rate[depth], self._machine.cores / wanted if wanted else float("inf"))

    def _hopeful(self, depth: int, cost: float, cap: float, sums: tuple[float, ...]) -> bool:
        least = self._least[depth]
        if any(each + rest > most for each, rest, most in zip(sums, least, self._limits, strict=True)):
            return False
        if self._rate_bound(depth, cost, cap) < self._task.floor_per_s:
            return False
        return self._found is None or _less(self._promise(depth, cost, cap, sums), self._found.value)

    def _judge(self, chosen: tuple[Option, ...], sums: tuple[float, ...]) -> None:
        rated = self._goal < 0 or self._task.floor_per_s > 0
        rate = (
            flow(chosen, self._mode, self._machine.cores, self._machine.interference).rate_per_s
            if rated
            else 0
        )
        if rate < self._task.floor_per_s:
            return
        value = -rate if self._goal < 0 else sums[self._goal]
        if self._found is None or _less(value, self._found.value):
            self._found = Found(options=chosen, mode=self._mode, value=value)


def _less(value: float, than: float) -> bool:
    """Smaller by more than rounding."""
    return value < than - EPSILON * abs(than)


def _plus(left: tuple[float, ...], right: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))
