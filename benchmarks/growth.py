"""P13: what more clients cost: never throughput, waiting in proportion, no memory."""

from __future__ import annotations

import tempfile
from itertools import combinations, islice, pairwise
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.idle import pss_bytes
from benchmarks.measurement import Row, say
from benchmarks.setting import rag_library
from benchmarks.throughput import CLIENTS, MAX_TOKENS, Load, rag_config, saturate
from edged.load.drive import Asker, Run
from edged.testing.daemon import RunningDaemon, running

STEPS = (1, 2, 4, 8, CLIENTS)
QUESTIONS = {1: 130, 2: 130, 4: 180, 8: 220, CLIENTS: 230}
"""More than are answered in a step: one that came twice would be answered by caches."""
TOLERANCE = 0.9
"""Of the throughput with fewer clients: what a run of this length on a shared machine can tell apart."""
TAIL = 1.25
"""The p95 with n clients, divided by n, may be so many times what it is with fewer: linear growth keeps it at
1, quadratic growth doubles it at every step; the rest is what 60 answers can tell apart."""
MEMORY = 1.1
"""Of the memory under a full load, at ten times that load."""
MIB = 1 << 20


def growth(quick: bool) -> tuple[float, dict[str, Any]]:
    """The least of: throughput with more clients / throughput with fewer, over all steps from 1 to 16."""
    library = rag_library(quick=quick)
    fresh = iter(library.questions)
    steps = (1, CLIENTS) if quick else STEPS
    warm_s, measured_s = (4.0, 16.0) if quick else (10.0, 60.0)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), rag_config(library)) as daemon:
        loads: dict[int, Load] = {}
        for clients in steps:
            questions = list(islice(fresh, QUESTIONS[clients]))
            loads[clients] = saturate(daemon, questions, clients, warm_s * (1 + (clients > 4)), measured_s)
            say(f"P13 {clients} clients: {loads[clients]}")
            daemon.wait_for(lambda status: status.outstanding == 0, "idle")
        full_mib = _memory_mib(daemon)
        answered, refused = _overload(daemon, list(islice(fresh, 60 if quick else 200)), measured_s)
        daemon.wait_for(lambda status: status.outstanding == 0, "idle")
        overloaded_mib = _memory_mib(daemon)
    worst = min(loads[more].rate_per_s / loads[fewer].rate_per_s for fewer, more in pairwise(steps))
    tails = {n: round(load.p95_s / n, 2) for n, load in loads.items()}
    return worst, {
        "violations": _violations(tails, full_mib, overloaded_mib),
        "tolerance": TOLERANCE,
        "p95_s_over_clients": tails,
        "memory_mib": {"full": round(full_mib, 1), "ten_times": round(overloaded_mib, 1)},
        "at_ten_times": {"clients": 10 * CLIENTS, "answered": answered, "refused": refused},
        "loads": {str(n): msgspec.to_builtins(load) for n, load in loads.items()},
        "generator": "exact = false",
    }


def _violations(tails: dict[int, float], full_mib: float, overloaded_mib: float) -> list[str]:
    found = [
        f"p95 / clients grows from {tails[fewer]} s with {fewer} to {tails[more]} s with {more}"
        for fewer, more in combinations(sorted(tails), 2)
        if tails[more] > TAIL * tails[fewer]
    ]
    if overloaded_mib > MEMORY * full_mib:
        found.append(f"memory grew from {full_mib:.0f} to {overloaded_mib:.0f} MiB at ten times the load")
    return found


def _overload(daemon: RunningDaemon, questions: list[str], seconds: float) -> tuple[int, int]:
    """Ten times as many clients as saturate the daemon: how many were answered and how many refused."""
    ask = Asker(daemon.client, "rag", {"max_tokens": MAX_TOKENS}).ask
    samples = list(Run(ask, questions, seconds).closed(10 * CLIENTS))
    answered = sum(not sample.error for sample in samples)
    return answered, len(samples) - answered


def _memory_mib(daemon: RunningDaemon) -> float:
    pids = [daemon.process.pid, *(worker.pid for worker in daemon.workers())]
    return sum(map(pss_bytes, pids)) / MIB


ROWS = (
    Row(
        id="P13",
        what="from 1 to 16 clients: throughput of a step / of the step before, the worst",
        unit="ratio",
        gate=TOLERANCE,
        goal=1.0,
        better="higher",
        measure=growth,
    ),
)
