"""What a placement would do under a load: discrete-event simulation of the calibrated table. Pure.

`simulate(plan, table, machine, load)` lets the daemon's own decisions run in virtual time (`rehearsal.py`)
and looks at a window that begins when the pipeline is full. Equal arguments give equal predictions.
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from edged.dispatch.leases import chosen
from edged.load.report import BUSY, Quantiles, quantiles
from edged.placement.curves import Curve
from edged.placement.interference import Interference
from edged.placement.prices import Prices
from edged.placement.rehearsal import Asked, Part, Process, Rehearsal, Setting
from edged.placement.table import Choice, Plan, Table

if TYPE_CHECKING:
    from simpy import Environment

SEEDS = 3
SHORTEST_WARM_S = 10.0
WARM_BATCHES = 3.0
"""The pipeline counts as full after so many times the latency of full batches."""
MOST_IN_FLIGHT = 4096
"""Of an open loop that is not kept up with: later arrivals are counted as refused."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What the placement runs on, beside what the table says."""

    cores: int
    slots: int = 32
    """`[queue] slots`."""
    max_wait_s: Mapping[str, float] = {}
    """By stage."""
    target_s: Mapping[str, float] = {}


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. Either `clients` that ask again as soon as they are answered, or arrivals at random."""

    clients: int = 0
    rate_per_s: float = 0.0
    """Used where `clients` is 0."""
    duration_s: float = 60.0
    route: tuple[str, ...] = ()
    """Stages that a request passes, in order; empty: all of the plan."""
    new_tokens: tuple[int, ...] = ()
    """Lengths of answers to draw from; empty: as measured."""
    prompt_tokens: int = 0
    """0: as measured."""
    cached_tokens: int | None = None
    """Of a prompt: what the generator need not read, because another one began alike. None: as measured."""
    seeds: int = SEEDS


class StagePrediction(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage does."""

    utilisation: float
    """Share of the time in which its workers hold work, 0..1."""
    mean_batch: float
    wait_s: float
    """Mean per request, before the stage."""
    compute_s: float


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What clients see: medians over the seeds."""

    throughput_per_s: float
    throughput_spread: tuple[float, float]
    """Least and most over the seeds."""
    latency: Quantiles
    first_token: Quantiles
    mean_latency_s: float
    """0 where nothing was answered."""
    in_system: float
    """Requests that are being answered, on average."""
    refused: float
    """Share of the requests that find no slot."""
    busy_cores: float
    stages: dict[str, StagePrediction]
    bottleneck: str
    """Name of the stage; empty when none is busy most of the time."""


def simulate(plan: Plan, table: Table, machine: Machine, load: Load) -> Prediction:
    """Predict what `plan` does on `machine` under `load`.

    `KeyError` when the plan has a form that the table does not know.
    """
    setting = _setting(plan, table, machine)
    runs = [_Run(setting, load, _warm_s(plan), seed).outcome() for seed in range(load.seeds)]
    return _together(runs)


def _setting(plan: Plan, table: Table, machine: Machine) -> Setting:
    prices = Prices(table)
    mode = chosen("auto", plan.lease_mode)
    excess = Interference(table, prices, machine.cores).under(mode)
    parts = {name: _part(name, choice, prices, machine) for name, choice in plan.choices.items()}
    return Setting(parts=parts, mode=mode, cores=machine.cores, slots=machine.slots, excess=excess)


def _part(name: str, choice: Choice, prices: Prices, machine: Machine) -> Part:
    siblings = prices.siblings(choice.form)
    if choice.form.threads not in siblings:
        raise KeyError(f"{choice.form} was not measured")
    return Part(
        curve=Curve(choice.form, siblings),
        batch=choice.batch,
        workers=choice.workers,
        max_wait_s=machine.max_wait_s.get(name, 0.0),
        target_s=machine.target_s.get(name, 0.0),
    )


def _warm_s(plan: Plan) -> float:
    return max(SHORTEST_WARM_S, WARM_BATCHES * plan.predicted_loaded_latency_s)


class _Run:
    """One seed."""

    def __init__(self, setting: Setting, load: Load, warm_s: float, seed: int) -> None:
        from simpy import Environment  # the daemon imports the planner, but never simulates

        self._load, self._from_s, self._to_s = load, warm_s, warm_s + load.duration_s
        self._chance = random.Random(seed)  # noqa: S311 - a reproducible load, not a secret
        self._environment: Environment = Environment()
        self._route = load.route or tuple(setting.parts)
        self._rehearsal = Rehearsal(self._environment, setting, self._route)
        self._asked: list[Asked] = []
        self._over = self._environment.event()
        curves = [setting.parts[name].curve for name in self._route]
        writer = next((curve for curve in curves if curve.streaming), None)
        self._lengths = load.new_tokens or ((writer.new_tokens if writer else 1),)
        prompt = load.prompt_tokens or (writer.prompt_tokens if writer else 1)
        cached = load.cached_tokens
        if cached is None:
            cached = writer.cached_tokens if writer else 0
        self._unread = max(1, prompt - cached)

    def outcome(self) -> Prediction:
        """Run to the end of the window, and on until what began in it has ended."""
        self._begin()
        self._environment.run(until=self._from_s)
        before = self._snapshot()
        self._environment.run(until=self._to_s)
        after = self._snapshot()
        if any(asked.due_s < self._to_s for asked in self._rehearsal.asked.values()):
            late = self._environment.timeout(self._load.duration_s)  # whoever starves is not waited for
            self._environment.run(until=self._over | late)
        return self._summary(before, after)

    def _begin(self) -> None:
        if not self._load.clients:
            self._environment.process(self._arrivals())
        for _ in range(self._load.clients):
            self._environment.process(self._client())

    def _client(self) -> Process:
        yield self._environment.timeout(self._chance.random() * self._from_s / 2)
        while True:
            asked = self._new()
            yield self._rehearsal.ask(asked)
            self._ended(asked)
            if asked.again_s:
                yield self._environment.timeout(asked.again_s)

    def _arrivals(self) -> Process:
        while True:
            yield self._environment.timeout(self._chance.expovariate(self._load.rate_per_s))
            if len(self._rehearsal.asked) < MOST_IN_FLIGHT:
                self._environment.process(self._one())

    def _one(self) -> Process:
        asked = self._new()
        yield self._rehearsal.ask(asked)
        self._ended(asked)

    def _new(self) -> Asked:
        tokens = self._chance.choice(self._lengths)
        return Asked(due_s=self._environment.now, new_tokens=tokens, unread_tokens=self._unread)

    def _ended(self, asked: Asked) -> None:
        self._asked.append(asked)
        over = self._environment.now >= self._to_s and not self._over.triggered
        if over and not any(other.due_s < self._to_s for other in self._rehearsal.asked.values()):
            self._over.succeed()

    # ---------------------------------------------------------------- figures

    def _snapshot(self) -> dict[str, float]:
        """Integrals so far: core-seconds under "", worker-seconds by stage."""
        now, stages = self._environment.now, self._rehearsal.ledger.stages
        return {"": self._rehearsal.silicon.core_seconds()} | {
            name: stage.usage.busy.area(now) for name, stage in stages.items()
        }

    def _summary(self, before: Mapping[str, float], after: Mapping[str, float]) -> Prediction:
        window_s = self._load.duration_s
        good = [asked for asked in self._asked if not asked.error]
        within = [asked for asked in self._asked if self._from_s <= asked.due_s < self._to_s]
        answered = [asked for asked in within if not asked.error]
        rate = sum(self._share(asked) for asked in good) / window_s
        stages = self._stages(answered, before, after)
        busiest = max(stages, key=lambda name: stages[name].utilisation)
        return Prediction(
            throughput_per_s=rate,
            throughput_spread=(rate, rate),
            latency=quantiles(asked.end_s - asked.due_s for asked in answered),
            first_token=quantiles(asked.first_s - asked.due_s for asked in answered),
            mean_latency_s=sum(a.end_s - a.due_s for a in answered) / max(1, len(answered)),
            in_system=sum(self._inside_s(asked) for asked in good) / window_s,
            refused=1 - len(answered) / len(within) if within else 0.0,
            busy_cores=(after[""] - before[""]) / window_s,
            stages=stages,
            bottleneck=busiest if stages[busiest].utilisation >= BUSY else "",
        )

    def _inside_s(self, asked: Asked) -> float:
        return max(0.0, min(asked.end_s, self._to_s) - max(asked.due_s, self._from_s))

    def _share(self, asked: Asked) -> float:
        """How much of a request lies in the window."""
        return self._inside_s(asked) / max(asked.end_s - asked.due_s, 1e-12)

    def _stages(
        self, answered: Sequence[Asked], before: Mapping[str, float], after: Mapping[str, float]
    ) -> dict[str, StagePrediction]:
        found = {}
        for name in self._route:
            part = self._rehearsal.setting.parts[name]
            timings = [timing for asked in answered for timing in asked.timings if timing.stage == name]
            count = max(1, len(timings))
            found[name] = StagePrediction(
                utilisation=min(1.0, (after[name] - before[name]) / self._load.duration_s / part.workers),
                mean_batch=sum(timing.batch for timing in timings) / count,
                wait_s=sum(timing.wait_s for timing in timings) / count,
                compute_s=sum(timing.compute_s for timing in timings) / count,
            )
        return found


def _together(runs: Sequence[Prediction]) -> Prediction:
    rates = [run.throughput_per_s for run in runs]
    return Prediction(
        throughput_per_s=statistics.median(rates),
        throughput_spread=(min(rates), max(rates)),
        latency=_quantiles([run.latency for run in runs]),
        first_token=_quantiles([run.first_token for run in runs]),
        mean_latency_s=statistics.median(run.mean_latency_s for run in runs),
        in_system=statistics.median(run.in_system for run in runs),
        refused=statistics.median(run.refused for run in runs),
        busy_cores=statistics.median(run.busy_cores for run in runs),
        stages={name: _stage([run.stages[name] for run in runs]) for name in runs[0].stages},
        bottleneck=Counter(run.bottleneck for run in runs).most_common(1)[0][0],
    )


def _stage(runs: Sequence[StagePrediction]) -> StagePrediction:
    fields = StagePrediction.__struct_fields__
    return StagePrediction(**{name: statistics.median(getattr(run, name) for run in runs) for name in fields})


def _quantiles(runs: Sequence[Quantiles]) -> Quantiles:
    """Medians, quantile by quantile, of the runs in which anything was answered."""
    told = [run for run in runs if run.p50 is not None]
    fields = Quantiles.__struct_fields__
    return (
        Quantiles(**{n: statistics.median(getattr(run, n) for run in told) for n in fields})
        if told
        else Quantiles()
    )
