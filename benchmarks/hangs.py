"""R3: a stage that hangs is noticed and replaced: how much later than its timeout.

Real models are stopped with SIGSTOP before they get work; the simulated generator hangs in C with the
interpreter lock held, where no thread of its process can run. Every request must be answered all the same.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measurement import Row, say, spread
from benchmarks.setting import ALONE, real_config, sample_state
from edged.client import Client
from edged.testing.daemon import RunningDaemon, running

TIMEOUT_S = 2.0
STAGES = ("retriever", "reranker", "generator")
REAL = "".join(f"[stages.{name}]\ntimeout_s = {TIMEOUT_S}\n" for name in STAGES)
SIMULATED = (
    ALONE
    + """
[stages.generator]
backend = "simulated"
device = "sim:cpu"
timeout_s = {timeout_s}
options = {{ decode_ms = 5, max_tokens = 20, faults = "{faults}" }}
"""
)


def _chat(client: Client) -> object:
    return list(client.chat([{"role": "user", "content": "Say hello."}], model="generator", max_tokens=8))


ASKED: dict[str, Callable[[Client], object]] = {
    "retriever": lambda client: client.embed(["How is it reset?"]),
    "reranker": lambda client: client.rerank("How is it reset?", ["Press the button.", "It is blue."]),
    "generator": _chat,
}


def hung(quick: bool) -> tuple[float, dict[str, Any]]:
    """Seconds beyond the timeout until a replacement is ready, its model's load excluded; the worst."""
    rounds = 1 if quick else 5
    late_s = {f"{stage}, SIGSTOP": found for stage, found in _stopped(rounds).items()}
    late_s["simulated generator, in C"] = _native(rounds)
    everything = [value for found in late_s.values() for value in found]
    return max(everything), {
        "timeout_s": TIMEOUT_S,
        "hangs": len(everything),
        "median_s": round(statistics.median(everything), 3),
        "beyond_the_timeout_s": {name: spread(found) for name, found in late_s.items()},
        "note": "the replacement's start, imports and the poll of the status (20 ms) are included",
    }


def _stopped(rounds: int) -> dict[str, list[float]]:
    state = sample_state()
    late_s: dict[str, list[float]] = {stage: [] for stage in STAGES}
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), real_config(state, REAL)) as daemon:
        for stage in STAGES * rounds:
            (worker,) = daemon.stage(stage).workers
            late_s[stage].append(_late(daemon, stage, partial(os.kill, worker.pid, signal.SIGSTOP)))
    return late_s


def _native(rounds: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        faults = Path(folder) / "faults.json"
        config = SIMULATED.format(timeout_s=TIMEOUT_S, faults=faults)

        def fault() -> None:
            written = faults.with_suffix(".new")
            written.write_text(json.dumps({"hang": "native", "once": True}), "utf-8")
            written.replace(faults)

        with running(Path(folder), config) as daemon:
            return [_late(daemon, "generator", fault) for _ in range(rounds)]


def _late(daemon: RunningDaemon, stage: str, fault: Callable[[], object]) -> float:
    """Seconds from a request that meets the hang to a worker that is ready, less timeout and load."""
    (old,) = daemon.stage(stage).workers
    fault()
    began_s = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ASKED[stage], daemon.client)
        daemon.wait_for(lambda status: _replaced(status, stage, old.pid), f"{stage} replaced")
        elapsed_s = time.monotonic() - began_s
        answer.result()  # raises what the client was told, were it not an answer
    (new,) = daemon.stage(stage).workers
    say(f"R3: {stage} replaced after {elapsed_s:.2f} s; timeout {TIMEOUT_S} s, loading {new.load_s:.2f} s")
    return elapsed_s - new.load_s - TIMEOUT_S


def _replaced(status: Any, stage: str, pid: int) -> bool:
    workers = next(each for each in status.stages if each.name == stage).workers
    return len(workers) == 1 and workers[0].pid != pid and workers[0].state == "ready"


ROWS = (
    Row(
        id="R3",
        what="a hung stage (stopped, or stuck in C) is replaced: seconds beyond its timeout, load excluded",
        unit="s",
        gate=1.0,
        goal=0.2,
        better="lower",
        measure=hung,
    ),
)
