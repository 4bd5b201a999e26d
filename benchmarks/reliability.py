"""R1, R2 and R5: kills under load, time to come back, overload. A run counts only if the fault was seen."""

from __future__ import annotations

import os
import random
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.measurement import Row, percentile, say, spread
from benchmarks.setting import ALONE, QUESTIONS, real_config, sample_state
from edged.client import Client
from edged.errors import EdgedError
from edged.replies import Delta, Final
from edged.testing.daemon import RunningDaemon, running

CLIENTS = 8
SEED = 20261121


class Outcome:
    """How one request ended, as its client saw it."""

    def __init__(self, question: str) -> None:
        self.question = question
        self.text = ""
        self.terminals = 0
        self.code = ""
        self.resumed = 0


def ask(client: Client, question: str, max_tokens: int = 48) -> Outcome:
    """Stream one answer and note every terminal event."""
    outcome = Outcome(question)
    try:
        for event in client.chat([{"role": "user", "content": question}], max_tokens=max_tokens):
            match event:
                case Delta(text) if not outcome.terminals:
                    outcome.text += text
                case Delta():
                    outcome.code = "text after the end"
                case Final():
                    outcome.terminals += 1
                    outcome.resumed = event.resumed
                    if event.text != outcome.text:
                        outcome.code = "streamed text differs from the final text"
    except EdgedError as error:
        outcome.terminals += 1
        outcome.code = error.code
    return outcome


def kill_test(quick: bool) -> tuple[float, dict[str, Any]]:
    """Random SIGKILLs of stage processes under load; the figure is everything that went wrong."""
    kills = 12 if quick else 200
    state = sample_state()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), real_config(state)) as daemon:
        questions = QUESTIONS[:8]
        reference = {question: ask(daemon.client, question).text for question in questions}
        held_before = _descriptors(daemon)
        outcomes, done = _under_fire(daemon, questions, kills)
        status = daemon.wait_for(lambda s: s.state == "ready" and s.outstanding == 0, "healed")
        heal = ask(daemon.client, questions[0])
        leaked = len(_descriptors(daemon)) - len(held_before)
    restarts = {stage.name: stage.restarts for stage in status.stages}
    differing = [o for o in outcomes if not o.code and o.text != reference[o.question]]
    codes = Counter(o.code for o in outcomes if o.code)
    lost = sum(o.terminals == 0 for o in outcomes)
    twice = sum(o.terminals > 1 for o in outcomes)
    violations = [
        *(f"{count} requests ended in {code}" for code, count in codes.items()),
        *(f"answer differs: {o.question!r}: {o.text!r}, not {reference[o.question]!r}" for o in differing),
        *([] if sum(restarts.values()) >= done else [f"only {restarts} restarts for {done} kills"]),
        *(
            []
            if quick or any(o.resumed for o in outcomes)
            else ["no answer was resumed: the fault did not happen"]
        ),
        *([] if leaked <= 0 else [f"{leaked} descriptors left behind"]),
        *([] if heal.text == reference[questions[0]] else ["not healed"]),
    ]
    return float(lost + twice + sum(codes.values()) + len(differing)), {
        "kills": done,
        "requests": len(outcomes),
        "lost": lost,
        "twice": twice,
        "differing": len(differing),
        "resumed": sum(o.resumed > 0 for o in outcomes),
        "restarts": restarts,
        "descriptors_left_behind": leaked,
        "seed": SEED,
        "violations": violations,
    }


def _descriptors(daemon: RunningDaemon) -> list[str]:
    """What the daemon has open apart from clients' connections: memfds, pidfds, sockets of its own."""
    folder = Path(f"/proc/{daemon.process.pid}/fd")
    targets = [str(entry.readlink()) for entry in folder.iterdir()]
    return [target for target in targets if not target.startswith("socket:")]


def _under_fire(daemon: RunningDaemon, questions: tuple[str, ...], kills: int) -> tuple[list[Outcome], int]:
    """Eight clients ask round and round while random workers are killed."""
    stop = threading.Event()
    outcomes: list[Outcome] = []

    def client(number: int) -> None:
        chooser = random.Random(SEED + number)
        while not stop.is_set():
            outcomes.append(ask(daemon.client, chooser.choice(questions)))

    chooser = random.Random(SEED)
    done = 0
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, number) for number in range(CLIENTS)]
        try:
            while done < kills:
                time.sleep(chooser.uniform(0.5, 2.5))
                done += _kill_one(daemon, chooser)
                say(f"R1: {done} of {kills} kills, {len(outcomes)} answers")
        finally:
            stop.set()
    for ended in clients:
        ended.result()  # a client that broke down would be an answer that nobody counts
    return outcomes, done


def _kill_one(daemon: RunningDaemon, chooser: random.Random) -> int:
    workers = [worker for worker in daemon.workers() if worker.state == "ready"]
    if not workers:
        return 0
    with suppress(ProcessLookupError):
        os.kill(chooser.choice(workers).pid, signal.SIGKILL)
        return 1
    return 0


def back_after_kill(quick: bool) -> tuple[float, dict[str, Any]]:
    """Milliseconds from SIGKILL to a replacement that is ready, loading of the model excluded."""
    state = sample_state()
    took_ms: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), real_config(state)) as daemon:
        for stage in ("retriever", "reranker", "generator") * (2 if quick else 10):
            (old,) = daemon.stage(stage).workers
            began = time.monotonic()
            os.kill(old.pid, signal.SIGKILL)
            status = daemon.wait_for(_replaced(stage, old.pid), f"{stage} back")
            elapsed_s = time.monotonic() - began
            (new,) = next(s for s in status.stages if s.name == stage).workers
            took_ms.setdefault(stage, []).append((elapsed_s - new.load_s) * 1e3)
            say(f"R2: {stage} back after {elapsed_s:.2f} s, {new.load_s:.2f} s of it loading")
    everything = [value for values in took_ms.values() for value in values]
    return statistics.median(everything), {stage: spread(values) for stage, values in took_ms.items()} | {
        "kills": len(everything),
        "note": "start of the process, imports and the poll of the status (20 ms) are included",
    }


def _replaced(stage: str, old_pid: int) -> Callable[[Any], bool]:
    def ready(status: Any) -> bool:
        workers = next(s for s in status.stages if s.name == stage).workers
        return len(workers) == 1 and workers[0].pid != old_pid and workers[0].state == "ready"

    return ready


OVERLOAD = (
    ALONE
    + """
[queue]
slots = 8
[stages.generator]
backend = "simulated"
device = "sim:cpu"
max_batch = 4
options = { decode_ms = 5, max_tokens = 20 }
"""
)


def overload(quick: bool) -> tuple[float, dict[str, Any]]:
    """Goodput with ten times more clients than slots, divided by the peak with just enough of them."""
    duration_s = 5.0 if quick else 20.0
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), OVERLOAD) as daemon:
        fitting = _load(daemon, 8, duration_s)
        before = daemon.client.status()
        crowded = _load(daemon, 80, duration_s)
        after = daemon.client.status()
        peak_outstanding = crowded["peak_outstanding"]
    growth_mib = round((after.memory_bytes - before.memory_bytes) / 2**20, 2)
    violations = [
        *([] if crowded["refused"] else ["nothing was refused: the fault did not happen"]),
        *([] if crowded["refusal_ms_p50"] < 10 else ["half of the refusals take 10 ms or more"]),
        *([] if growth_mib < 8 else [f"memory grew by {growth_mib} MiB"]),
        *([] if peak_outstanding <= before.entry_slots else [f"{peak_outstanding} requests outstanding"]),
        *([f"codes: {crowded['codes']}"] if set(crowded["codes"]) - {"overloaded"} else []),
    ]
    return crowded["goodput_per_s"] / fitting["goodput_per_s"], {
        "fitting": fitting,
        "crowded": crowded,
        "slots": before.entry_slots,
        "memory_growth_mib": growth_mib,
        "note": "refusal times are those that 80 client threads of one process see",
        "violations": violations,
    }


def _load(daemon: RunningDaemon, clients: int, duration_s: float) -> dict[str, Any]:
    """Clients in closed loop; one that is refused comes back a little later, as Retry-After asks."""
    deadline = time.monotonic() + duration_s
    answered: list[float] = []
    refused_ms: list[float] = []
    codes: Counter[str] = Counter()
    peak = 0

    def client(number: int) -> None:
        chooser = random.Random(number)
        while time.monotonic() < deadline:
            began = time.perf_counter()
            try:
                list(daemon.client.chat([{"role": "user", "content": "x"}], model="generator", stream=False))
                answered.append(time.monotonic())
            except EdgedError as error:
                codes[error.code] += 1
                refused_ms.append((time.perf_counter() - began) * 1e3)
                time.sleep(chooser.uniform(0.1, 0.4))

    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(client, number) for number in range(clients)]
        while time.monotonic() < deadline:
            peak = max(peak, daemon.client.status().outstanding)
            time.sleep(0.1)
        for future in futures:
            future.result()
    in_time = sum(moment <= deadline for moment in answered)
    return {
        "clients": clients,
        "goodput_per_s": round(in_time / duration_s, 2),
        "refused": len(refused_ms),
        "refusal_ms_p50": round(percentile(refused_ms, 0.5), 2) if refused_ms else 0.0,
        "refusal_ms_p99": round(percentile(refused_ms, 0.99), 2) if refused_ms else 0.0,
        "codes": dict(codes),
        "peak_outstanding": peak,
    }


ROWS = (
    Row(
        id="R1",
        what="random SIGKILLs of stages under 8 streaming clients: lost + twice + failed + differing answers",
        unit="answers",
        gate=0,
        goal=0,
        better="lower",
        measure=kill_test,
    ),
    Row(
        id="R2",
        what="a killed stage is back, model load excluded, median",
        unit="ms",
        gate=1000,
        goal=200,
        better="lower",
        measure=back_after_kill,
    ),
    Row(
        id="R5",
        what="goodput at ten times more clients than slots / goodput at as many as slots",
        unit="ratio",
        gate=0.95,
        goal=0.99,
        better="higher",
        measure=overload,
    ),
)
