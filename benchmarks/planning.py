"""P10, P10b and P10c: what the planner chooses, and what the what-if simulator predicts, by measurement.

Calibrates a small space, asks the planner for the best of it, then measures every placement of the space (and
what people do by rule of thumb) as a daemon under a closed loop. One look at each finds out who may be the
best; they, the best rules and the planner's choice then run in turns, and only these rounds count: the best
of many looks is the luckiest, too.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks import rag
from benchmarks.load import Result
from benchmarks.measurement import Row, say, spread
from benchmarks.overhead import RawClient
from benchmarks.placements import (
    Placement,
    Space,
    drift,
    drive_real,
    drive_watched,
    on_cores,
    plan_of,
    real_space,
    real_toml,
    simulated_space,
    slowed,
    wishes_of,
)
from benchmarks.throughput import BATCH
from edged.placement.simulate import Load, Machine, Prediction, simulate
from edged.placement.table import Plan
from edged.report import Status
from edged.stages.generator import PREFIX
from edged.stages.tensor import encode_tensors
from edged.testing.daemon import RunningDaemon, running

CLIENTS = 16
"""The planner promises a rate at saturation: they fill the batches of two generators."""
SETTLE_S, WINDOW_S = 8.0, 12.0
"""Of the first look."""
FINAL_SETTLE_S, FINAL_WINDOW_S = 14.0, 30.0
"""The first answers among sixteen take ten seconds."""
FINAL_ROUNDS = 3
FINALISTS, RULES = 3, 2
"""So many placements and rules meet the planner's choice in the end: the best of the first look."""
QUICK_SETTLE_S, QUICK_S = 1.5, 3.0
FORESEEN = (1, 4, 16)
"""Numbers of clients at which the simulator is compared."""
ON_ONE_CORE = 4
"""Clients of the comparison on another machine: one with a single core."""
SLOTS = 32


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """Answers per second by name: a first look at every placement, then rounds of those that count."""

    first: dict[str, float]
    rounds: dict[str, list[float]]
    elapsed_s: float

    def best(self, names: Iterable[str]) -> str:
        """The fastest of the finalists among these, over all rounds."""
        return max(self.rounds.keys() & set(names), key=lambda name: statistics.median(self.rounds[name]))

    def ratios(self, ours: str, theirs: str) -> list[float]:
        """Round by round."""
        return [mine / other for mine, other in zip(self.rounds[ours], self.rounds[theirs], strict=True)]


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """A load, predicted and measured."""

    what: str
    predicted_per_s: float
    measured_per_s: float
    error: float
    """Relative, signed: predicted / measured - 1."""
    drift: float
    """Of the machine's speed since the calibration: batches took so many times as long around the load."""
    error_undrifted: float
    """The same with the table as it was."""
    predicted_p50_s: float
    measured_p50_s: float
    predicted_cpu_s: float
    measured_cpu_s: float
    """CPU seconds an answer: these hardly depend on who else computes."""
    batches: dict[str, float]
    """Predicted mean batch by stage."""


# --------------------------------------------------------------- P10 and P10c


@cache
def space(*, quick: bool) -> Space:
    """Calibrated, with the planner's choice."""
    return simulated_space() if quick else real_space()


@cache
def ranking(*, quick: bool) -> Ranking:
    """Look at every placement, then measure in turns those that the planner's choice is compared with."""
    began_s, all_of_it = time.monotonic(), space(quick=quick)
    look = _quick_look if quick else _look
    first = {placement.name: look(placement, 0) for placement in all_of_it.placements}
    by_rate = sorted(first, key=lambda name: -first[name])
    rules = [name for name in by_rate if name in all_of_it.rules.values()]
    others = [name for name in by_rate if name != all_of_it.chosen.name]
    finalists = {all_of_it.chosen.name, *others[:FINALISTS], *rules[:RULES]}
    running_order = [placement for placement in all_of_it.placements if placement.name in finalists]
    rounds: dict[str, list[float]] = {placement.name: [] for placement in running_order}
    for number in range(1, 1 + (1 if quick else FINAL_ROUNDS)):
        for placement in running_order if number % 2 else reversed(running_order):
            rounds[placement.name].append(look(placement, number))
    return Ranking(first=first, rounds=rounds, elapsed_s=round(time.monotonic() - began_s, 1))


@cache
def _questions(number: int) -> rag.Asked:
    return rag.load("same work", CLIENTS, number, quick=False)


def _asked(clients: int, number: int, settle_s: float, window_s: float) -> rag.Asked:
    return msgspec.structs.replace(_questions(number), clients=clients, settle_s=settle_s, window_s=window_s)


def _look(placement: Placement, number: int) -> float:
    times = (FINAL_SETTLE_S, FINAL_WINDOW_S) if number else (SETTLE_S, WINDOW_S)
    asked = _asked(CLIENTS, number, *times)
    turn = rag.summarised(placement.name, drive_real(placement.config, asked), asked.gold)
    say(f"P10 {placement.name:52} {turn.per_s:.3f}/s  CPU {turn.cpu_s:.2f} s  busy {turn.busy_cores:.2f}")
    return turn.per_s


def _quick_look(placement: Placement, _number: int) -> float:
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), placement.config) as daemon:
        rate, _ = _closed_loop(daemon, 3 * BATCH)
    say(f"P10 {placement.name:30} {rate:.1f}/s")
    return rate


def _closed_loop(daemon: RunningDaemon, clients: int) -> tuple[float, float]:
    """Requests per second and median latency; answers come in waves, so each counts with its share."""
    body = b"".join(bytes(part) for part in encode_tensors({"input": np.zeros((1, 1), np.float32)}))
    times: list[tuple[float, float]] = []
    began_s = time.perf_counter() + QUICK_SETTLE_S

    def client() -> None:
        connection = RawClient(daemon.client.socket)
        sent_s = time.perf_counter() - began_s
        while sent_s < QUICK_S:
            connection.post("/edged/v1/tensors/all", body)
            times.append((sent_s, time.perf_counter() - began_s))
            sent_s = time.perf_counter() - began_s
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shares = [max(0.0, min(end, QUICK_S) - max(sent, 0.0)) / (end - sent) for sent, end in times]
    return sum(shares) / QUICK_S, statistics.median(end - sent for sent, end in times if end > 0)


def planner(quick: bool) -> tuple[float, dict[str, Any]]:
    """The planner's choice, divided by the best of all placements."""
    all_of_it, ranked = space(quick=quick), ranking(quick=quick)
    best = ranked.best(ranked.rounds)
    ratios = ranked.ratios(all_of_it.chosen.name, best)
    return statistics.median(ratios), {"best": best, "ratio": spread(ratios)} | _told(all_of_it, ranked)


def rule_of_thumb(quick: bool) -> tuple[float, dict[str, Any]]:
    """The planner's choice, divided by the best of the rules of thumb."""
    all_of_it, ranked = space(quick=quick), ranking(quick=quick)
    best = ranked.best(all_of_it.rules.values())
    ratios = ranked.ratios(all_of_it.chosen.name, best)
    return statistics.median(ratios), {"best_rule": best, "ratio": spread(ratios)} | _told(all_of_it, ranked)


def _told(all_of_it: Space, ranked: Ranking) -> dict[str, Any]:
    first = sorted(ranked.first, key=lambda name: -ranked.first[name])
    return {
        "chosen": all_of_it.chosen.name,
        "predicted_per_s": round(all_of_it.plan.predicted_rate_per_s, 3),
        "rounds": {name: [round(rate, 3) for rate in rates] for name, rates in ranked.rounds.items()},
        "first_look": {name: round(ranked.first[name], 3) for name in first},
        "placements": len(first),
        "rules": dict(all_of_it.rules),
        "clients": CLIENTS,
        "disturbed_points": sum(point.others > 0.25 for point in all_of_it.table.points),
        "elapsed_s": ranked.elapsed_s,
    }


# ----------------------------------------------------------------------- P10b


def foresight(quick: bool) -> tuple[float, dict[str, Any]]:
    """The worst relative error of the predicted throughput, over numbers of clients and cores."""
    points = _quick_points() if quick else _real_points()
    worst = max(points, key=lambda point: abs(point.error))
    return abs(worst.error), {"worst": worst.what, "points": [msgspec.to_builtins(p) for p in points]}


def _quick_points() -> list[Compared]:
    found = space(quick=True)
    points = []
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), found.chosen.config) as daemon:
        for clients in (1, 4, 3 * BATCH):
            predicted = simulate(
                found.plan, found.table, Machine(cores=2), Load(clients=clients, duration_s=20)
            )
            rate, p50_s = _closed_loop(daemon, clients)
            points.append(_compared(f"{clients} clients", predicted, rate, p50_s, 0.0))
    return points


def _real_points() -> list[Compared]:
    """The planner's choice at several numbers of clients, and its choice for a machine with one core.

    How long answers and prompts are, and how much of these the generator had read before, are properties of
    the load: the simulator is told those that were measured. So is the machine's own speed, which on shared
    cores changes by a fifth within minutes: the plan's batches are measured again before and after each load.
    """
    found = real_space()
    points = [_point(f"{clients} clients", found.plan, found, clients, ()) for clients in FORESEEN]
    single = plan_of(found.table, wishes_of(1), 1)
    first = min(os.sched_getaffinity(0))
    return [*points, _point("4 clients, 1 core", single, found, ON_ONE_CORE, (first,))]


def _point(what: str, plan: Plan, found: Space, clients: int, cores: tuple[int, ...]) -> Compared:
    asked = _asked(clients, 2, 2.0 + clients * 0.75, 30.0)
    before = drift(found.table, plan)
    result, status = drive_watched(real_toml(plan), asked, on_cores(cores) if cores else ())
    slower = statistics.mean((before, drift(found.table, plan)))
    turn = rag.summarised(what, result, asked.gold)
    machine = Machine(cores=len(cores) or found.table.fingerprint.cores, slots=SLOTS)
    load = _load(clients, result, status)
    predicted, undrifted = (
        simulate(plan, table, machine, load) for table in (slowed(found.table, slower), found.table)
    )
    return _compared(what, predicted, turn.per_s, turn.p50_s, turn.cpu_s, slower, undrifted)


def _load(clients: int, result: Result, status: Status) -> Load:
    """The load that was measured: clients, lengths of answers and prompts, what prompts had in common."""
    good = [answered for answered in result.answered if not answered.error and answered.ended_s > 0]
    prompt_tokens = statistics.mean(answered.prompt_tokens for answered in good)
    return Load(
        clients=clients,
        duration_s=200.0,
        new_tokens=tuple(answered.tokens for answered in good),
        prompt_tokens=round(prompt_tokens),
        cached_tokens=round(prompt_tokens * _cached_share(status)),
    )


def _cached_share(status: Status) -> float:
    """Share of the prompt tokens that the generator found in its cache of prompts' beginnings."""
    caches = next(stage.caches for stage in status.stages if stage.name == "generator")
    prefix = caches.get(PREFIX)
    return prefix.hits / max(1, prefix.hits + prefix.misses) if prefix else 0.0


def _compared(
    what: str,
    predicted: Prediction,
    rate: float,
    p50_s: float,
    cpu_s: float,
    slower: float = 1.0,
    undrifted: Prediction | None = None,
) -> Compared:
    compared = Compared(
        what=what,
        predicted_per_s=round(predicted.throughput_per_s, 3),
        measured_per_s=round(rate, 3),
        error=round(predicted.throughput_per_s / rate - 1, 3),
        drift=round(slower, 3),
        error_undrifted=round((undrifted or predicted).throughput_per_s / rate - 1, 3),
        predicted_p50_s=round(predicted.latency.p50 or 0.0, 3),
        measured_p50_s=round(p50_s, 3),
        predicted_cpu_s=round(predicted.busy_cores / predicted.throughput_per_s, 3),
        measured_cpu_s=round(cpu_s, 3),
        batches={name: round(stage.mean_batch, 1) for name, stage in predicted.stages.items()},
    )
    say(f"P10b {compared}")
    return compared


ROWS = (
    Row(
        id="P10",
        what="throughput of the planner's choice / the best of all placements, measured one by one",
        unit="ratio",
        gate=0.90,
        goal=0.98,
        better="higher",
        measure=planner,
    ),
    Row(
        id="P10b",
        what="what-if: worst relative error of the predicted throughput over clients and cores",
        unit="ratio",
        gate=0.15,
        goal=0.10,
        better="lower",
        measure=foresight,
    ),
    Row(
        id="P10c",
        what="throughput of the planner's choice / the best single rule of thumb",
        unit="ratio",
        gate=1.0,
        goal=1.1,
        better="higher",
        measure=rule_of_thumb,
    ),
)
