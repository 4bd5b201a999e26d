"""P1, P1b and P2: how much of the silicon the pipeline turns into answers.

Caches of answers stay cold: no question is asked twice of a daemon. The generator runs with `exact = false`
on both sides of P1b and P2 (the cheaper arithmetic); the detail has the figure of the default beside it.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.direct import Cost, Script
from benchmarks.measurement import Row, percentile, say, spread
from benchmarks.overhead import RawClient
from benchmarks.setting import NONE_BUILT_IN, STATE, RagLibrary, rag_library
from edged.config import Config
from edged.config import load as load_config
from edged.governor.sensors import cpu_s
from edged.load.drive import Asker, Run
from edged.load.sample import Sample
from edged.stages.tensor import encode_tensors
from edged.testing.daemon import RunningDaemon, running

CLIENTS = 16
MAX_TOKENS = 48
BATCH = 8
MODES = ("together", "turns", "split")


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """A closed loop in its steady state."""

    rate_per_s: float
    cpu_s: float
    """CPU seconds of the daemon and its workers per answer."""
    busy_cores: float
    p50_s: float
    p95_s: float
    first_token_p50_s: float
    batches: dict[str, float]
    """Mean micro-batch of each stage."""


def rag_config(library: RagLibrary, *, exact: bool = False, leases: str = "auto", more: str = "") -> str:
    """The built-in pipeline over HotpotQA."""
    return (
        f"[daemon]\nstate_dir = '{STATE}'\n[library]\ndir = '{library.folder}'\n"
        f"[placement]\nleases = '{leases}'\n"
        f"[stages.generator]\noptions = {{ exact = {str(exact).lower()} }}\n{more}"
    )


def saturate(
    daemon: RunningDaemon, questions: Sequence[str], clients: int, warm_s: float, measured_s: float
) -> Load:
    """Ask with so many clients, and look at a window that begins when the pipeline is full.

    A request counts with the share of its time that lies in the window, so that answers that come in waves
    are counted right.
    """
    run = Run(Asker(daemon.client, "rag", {"max_tokens": MAX_TOKENS}).ask, questions, warm_s + measured_s)
    cpu: list[float] = []
    clocks = [
        threading.Timer(at_s, lambda: cpu.append(daemon_cpu_s(daemon)))
        for at_s in (warm_s, warm_s + measured_s)
    ]
    for clock in clocks:
        clock.start()
    samples = list(run.closed(clients))
    for clock in clocks:
        clock.join()
    if len(samples) > len(questions):
        raise RuntimeError(f"{len(questions)} questions ran out: some came twice, and caches answered them")
    if failed := [sample.error for sample in samples if sample.error]:
        raise RuntimeError(f"{len(failed)} requests failed under load: {failed[0]}")
    count = sum(_share_within(sample, warm_s, warm_s + measured_s) for sample in samples)
    inside = [sample for sample in samples if sample.end_s >= warm_s]
    return Load(
        rate_per_s=round(count / measured_s, 3),
        cpu_s=round((cpu[1] - cpu[0]) / count, 3),
        busy_cores=round((cpu[1] - cpu[0]) / measured_s, 2),
        p50_s=round(percentile([sample.latency_s for sample in inside], 0.5), 2),
        p95_s=round(percentile([sample.latency_s for sample in inside], 0.95), 2),
        first_token_p50_s=round(percentile([_first_s(sample) for sample in inside], 0.5), 2),
        batches=_batches(inside),
    )


def _share_within(sample: Sample, start_s: float, end_s: float) -> float:
    within_s = min(sample.end_s, end_s) - max(sample.due_s, start_s)
    return max(0.0, within_s) / sample.latency_s


def _first_s(sample: Sample) -> float:
    return (sample.first_s or sample.end_s) - sample.due_s


def _batches(samples: Sequence[Sample]) -> dict[str, float]:
    stages = {timing.stage for sample in samples for timing in sample.timings}
    return {
        stage: round(statistics.mean(t.batch for s in samples for t in s.timings if t.stage == stage), 1)
        for stage in sorted(stages)
    }


def daemon_cpu_s(daemon: RunningDaemon) -> float:
    """CPU seconds of the daemon and its workers so far."""
    pids = [daemon.process.pid, *(worker.pid for worker in daemon.workers())]
    return sum(cpu_s(pid) for pid in pids)


# ------------------------------------------------------------- P1: disjoint devices

COSTS_MS = {"first": ("cpu", 4, 2), "second": ("gpu", 10, 10), "third": ("npu", 6, 4)}
"""Simulated device, milliseconds of a run and of each item in it; the second is the slowest at any batch."""
SIMULATED = f"{NONE_BUILT_IN}[pipelines.all]\nstages = ['first', 'second', 'third']\n" + "".join(
    f"[stages.{name}]\nkind = 'tensor'\nbackend = 'simulated'\ndevice = 'sim:{device}'\nmax_batch = {BATCH}\n"
    f"options = {{ fixed_ms = {fixed}, per_item_ms = {item} }}\n"
    for name, (device, fixed, item) in COSTS_MS.items()
)


def disjoint(quick: bool) -> tuple[float, dict[str, Any]]:
    """Requests per second through three simulated devices, divided by the slowest of them alone."""
    body = b"".join(bytes(part) for part in encode_tensors({"input": np.zeros((1, 64), np.float32)}))
    rounds, seconds = (3, 4.0) if quick else (7, 10.0)
    rates: dict[str, list[float]] = {"all": [], "second": []}
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), SIMULATED) as daemon:
        for number in range(rounds):
            for route in list(rates) if number % 2 else reversed(list(rates)):
                rates[route].append(_hammer(daemon, route, body, 3 * BATCH, seconds))
            say(f"P1 {number + 1}: pipeline {rates['all'][-1]:.1f}/s, slowest {rates['second'][-1]:.1f}/s")
    ratios = [whole / alone for whole, alone in zip(rates["all"], rates["second"], strict=True)]
    _, fixed_ms, item_ms = COSTS_MS["second"]
    detail: dict[str, Any] = {
        "ratio": spread(ratios),
        "pipeline_per_s": spread(rates["all"]),
        "slowest_alone_per_s": spread(rates["second"]),
        "slowest_by_its_declared_cost_per_s": round(1e3 * BATCH / (fixed_ms + BATCH * item_ms), 1),
        "clients": 3 * BATCH,
    }
    if not quick:
        detail["disjoint_cores"] = _disjoint_cores()
    return statistics.median(ratios), detail


def _hammer(daemon: RunningDaemon, route: str, body: bytes, clients: int, seconds: float) -> float:
    """Requests per second of a closed loop, its start left out."""
    ends: list[float] = []
    began = time.perf_counter()

    def client() -> None:
        connection = RawClient(daemon.client.socket)
        while time.perf_counter() - began < seconds:
            connection.post(f"/edged/v1/tensors/{route}", body)
            ends.append(time.perf_counter() - began)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    steady = [end for end in ends if seconds / 4 <= end <= seconds]
    return (len(steady) - 1) / (max(steady) - min(steady))


def _disjoint_cores() -> dict[str, Any]:
    """The real pipeline, retriever and reranker on one core and the generator on another."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return {"skipped": "this machine has one core"}
    library = rag_library(quick=False)
    front, back = f"cpu:{cores[0]}", f"cpu:{cores[1]}"
    config = (
        f"[daemon]\nstate_dir = '{STATE}'\n[library]\ndir = '{library.folder}'\n"
        f"[stages.retriever]\ndevice = '{front}'\n[stages.reranker]\ndevice = '{front}'\n"
        f"[stages.generator]\ndevice = '{back}'\noptions = {{ exact = false }}\n"
    )
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), config) as daemon:
        sides = [[w.pid for s in daemon.client.status().stages if (s.name == "generator") == last
                  for w in s.workers] for last in (False, True)]  # fmt: skip
        before = [sum(map(cpu_s, pids)) for pids in sides]
        began = time.monotonic()
        load = saturate(daemon, library.questions, CLIENTS, 10.0, 60.0)
        wall_s = time.monotonic() - began
        busy = [(sum(map(cpu_s, pids)) - was) / wall_s for pids, was in zip(sides, before, strict=True)]
    return {
        "requests_per_s": load.rate_per_s,
        "busy_front": round(busy[0], 3),
        "busy_generator": round(busy[1], 3),
    }


# ---------------------------------------------------------- P1b: the machine's bound


def bound(quick: bool) -> tuple[float, dict[str, Any]]:
    """Answers per second with 16 clients, divided by cores / one-core CPU seconds of the stages alone."""
    library = rag_library(quick=quick)
    fresh = library.questions[4 * BATCH :]
    cores = len(os.sched_getaffinity(0))
    costs = one_core_costs(library, library.questions[: BATCH if quick else 4 * BATCH], exact=False)
    best = cores / sum(cost.cpu_s for cost in costs.values())
    say(f"P1b: bound {best:.3f}/s; CPU seconds { ({n: round(c.cpu_s, 3) for n, c in costs.items()}) }")
    modes = ("auto",) if quick else ("auto", *MODES)
    loads = {mode: _through_daemon(library, fresh, mode, exact=False, quick=quick) for mode in modes}
    detail: dict[str, Any] = {
        "bound_per_s": round(best, 3),
        "one_core_cpu_s": {name: round(cost.cpu_s, 3) for name, cost in costs.items()},
        "cpu_s_of_stages_alone_over_cpu_s_in_daemon": round(cores / best / loads["auto"].cpu_s, 3),
        "by_lease_mode": {mode: msgspec.to_builtins(load) for mode, load in loads.items()},
        "generator": "exact = false on both sides",
    }
    if not quick:
        detail["exact"] = _exact(library, fresh, cores)
    return loads["auto"].rate_per_s / best, detail


def _exact(library: RagLibrary, fresh: Sequence[str], cores: int) -> dict[str, float]:
    costs = one_core_costs(library, library.questions[: 4 * BATCH], exact=True)
    best = cores / sum(cost.cpu_s for cost in costs.values())
    load = _through_daemon(library, fresh, "auto", exact=True, quick=False)
    return {
        "bound_per_s": round(best, 3),
        "per_s": load.rate_per_s,
        "ratio": round(load.rate_per_s / best, 3),
    }


def one_core_costs(library: RagLibrary, questions: Sequence[str], *, exact: bool) -> dict[str, Cost]:
    """What the stages cost alone, on one thread, the generator at its best batch."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config_of(Path(folder), rag_config(library, exact=exact))
        with closing(Script(config, threads=1)) as script:
            script.answer("Is anybody there?", 4)
            return script.costs(questions, MAX_TOKENS, BATCH)


def _config_of(folder: Path, text: str) -> Config:
    path = folder / "edged.toml"
    path.write_text(text)
    path.chmod(0o600)
    return load_config(path)


def _through_daemon(
    library: RagLibrary, fresh: Sequence[str], mode: str, *, exact: bool, quick: bool
) -> Load:
    warm_s, measured_s = (8.0, 20.0) if quick else (15.0, 90.0)
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), rag_config(library, exact=exact, leases=mode)) as daemon,
    ):
        load = saturate(daemon, fresh, CLIENTS, warm_s, measured_s)
    say(f"P1b leases {mode}, exact {exact}: {load}")
    return load


# ------------------------------------------------------------------- P2: a script


def against_script(quick: bool) -> tuple[float, dict[str, Any]]:
    """Answers per second with 16 clients, divided by a script that asks the same stages in sequence."""
    library = rag_library(quick=quick)
    rounds, seconds = (1, 16.0) if quick else (5, 45.0)
    ratios: list[float] = []
    loads: list[Load] = []
    scripts: list[float] = []
    share = len(library.questions) // rounds
    cores = len(os.sched_getaffinity(0))
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), rag_config(library)) as daemon,
        closing(Script(daemon.config, cores)) as script,
    ):
        script.answer("Is anybody there?", 4)
        for number in range(rounds):
            questions = library.questions[number * share : (number + 1) * share]
            sides = [
                lambda q=questions: loads.append(saturate(daemon, q, CLIENTS, seconds / 3, seconds)),
                lambda q=questions: scripts.append(script.rate_per_s(q, MAX_TOKENS, seconds)),
            ]
            for side in sides if number % 2 else reversed(sides):
                side()
                daemon.wait_for(lambda status: status.outstanding == 0, "idle")
            ratios.append(loads[-1].rate_per_s / scripts[-1])
            say(f"P2 {number + 1}: {loads[-1]}, script {scripts[-1]:.3f}/s")
    return statistics.median(ratios), {
        "ratio": spread(ratios),
        "per_s": spread([load.rate_per_s for load in loads]),
        "script_per_s": spread(scripts),
        "cpu_s_per_answer": spread([load.cpu_s for load in loads]),
        "first_token_p50_s": spread([load.first_token_p50_s for load in loads]),
        "clients": CLIENTS,
        "generator": "exact = false on both sides",
        "last": msgspec.to_builtins(loads[-1]),
    }


ROWS = (
    Row(
        id="P1",
        what="pipeline at saturation on three simulated devices / the slowest of them alone",
        unit="ratio",
        gate=0.85,
        goal=0.97,
        better="higher",
        measure=disjoint,
    ),
    Row(
        id="P1b",
        what="RAG with 16 clients, stages on the same cores / the machine's bound",
        unit="ratio",
        gate=0.80,
        goal=0.95,
        better="higher",
        measure=bound,
    ),
    Row(
        id="P2",
        what="RAG with 16 clients / a sequential script on the same stages and cores",
        unit="ratio",
        gate=1.5,
        goal=2.5,
        better="higher",
        measure=against_script,
    ),
)
