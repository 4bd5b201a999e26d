"""SIGKILLs of stages that pass bytes on: every answer must come, made of the bytes that were sent."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.measurement import say
from benchmarks.overhead import RawClient
from edged.report import Status
from edged.stages.tensor import decode_tensors, encode_tensors
from edged.testing.daemon import RunningDaemon, running

CLIENTS = 4
FLOATS = 16 << 10
"""64 KiB a request."""


class Outcome(msgspec.Struct):
    """What clients saw."""

    answered: int = 0
    lost: int = 0
    wrong: int = 0
    kills: int = 0
    restarts: int = 0
    refused: dict[int, int] = {}

    def detail(self) -> dict[str, Any]:
        """For the row: a kill that no restart followed did not happen."""
        missing = self.kills - self.restarts
        violations = [f"{missing} kills were not seen by the daemon"] if missing > 0 else []
        if self.refused:
            violations.append(f"refused by status: {self.refused}")
        told: dict[str, Any] = msgspec.to_builtins(self, str_keys=True)
        return told | {"violations": violations}


def storm(folder: Path, config: str, pipeline: str, kills: int, chance: random.Random) -> Outcome:
    """Kill ready workers at random under load; count answers that are missing or not what was sent."""
    outcome = Outcome()
    stop = threading.Event()
    refused: Counter[int] = Counter()
    lock = threading.Lock()

    def client(number: int) -> None:
        connection = RawClient(daemon.client.socket)
        draw = np.random.default_rng(number)
        while not stop.is_set():
            sent = draw.standard_normal((1, FLOATS)).astype(np.float32)
            body = b"".join(bytes(part) for part in encode_tensors({"x": sent}))
            status, answer = connection.exchange(f"/edged/v1/tensors/{pipeline}", body)
            with lock:
                _judge(outcome, refused, status, answer, sent)

    with running(folder, config) as daemon:
        threads = [threading.Thread(target=client, args=(n,), daemon=True) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        struck = _kill(daemon, kills, chance)
        outcome.kills = len(struck)
        stop.set()
        for thread in threads:
            thread.join(60)
            outcome.lost += thread.is_alive()
        status = daemon.wait_for(
            lambda s: s.state == "ready" and s.outstanding == 0 and not struck & _pids(s), "healed"
        )
        outcome.restarts = sum(stage.restarts for stage in status.stages)
    outcome.refused = dict(refused)
    return outcome


def _judge(outcome: Outcome, refused: Counter[int], status: int, answer: bytes, sent: Any) -> None:
    if status != 200:
        refused[status] += 1
        return
    outcome.answered += 1
    (got,) = decode_tensors(memoryview(answer)).values()
    outcome.wrong += not np.array_equal(got, sent)


def _kill(daemon: RunningDaemon, kills: int, chance: random.Random) -> set[int]:
    """One after the other, each when all stages serve again; returns the processes that were hit alive."""
    struck: set[int] = set()
    while len(struck) < kills:
        status = daemon.wait_for(
            lambda s: all(stage.state == "ready" for stage in s.stages if stage.workers), "ready"
        )
        pids = _pids(status)
        if pids & struck:  # the daemon has not heard of the last blow yet
            continue
        threading.Event().wait(chance.uniform(0.0, 0.05))  # the moment of the blow is the random part
        with suppress(ProcessLookupError):
            os.kill(victim := chance.choice(sorted(pids)), signal.SIGKILL)
            struck.add(victim)
        if len(struck) % 20 == 0:
            say(f"  {len(struck)} of {kills} kills")
    return struck


def _pids(status: Status) -> set[int]:
    return {worker.pid for stage in status.stages for worker in stage.workers}
