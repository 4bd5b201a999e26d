"""P7: requests a second through three stages that do nothing, beside mosec doing the same."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.contenders.environments import environment, python
from benchmarks.contenders.line_up import CONTENDERS
from benchmarks.measurement import Row, say, spread
from benchmarks.overhead import EMPTY_STAGES, RawClient
from edged.stages.tensor import encode_tensors
from edged.testing.daemon import running

CLIENTS = 8
EDGED = "/edged/v1/tensors/empty"
Connect = Callable[[], RawClient]


class Throughput:
    """What a server did in a window: requests a second, and CPU seconds of its processes for each."""

    def __init__(self, rate_per_s: float, cpu_s: float) -> None:
        self.rate_per_s = rate_per_s
        self.cpu_s = cpu_s


def load(connect: Connect, path: str, body: bytes, server: int, window_s: float) -> Throughput:
    """Drive a server with `CLIENTS` connections that ask again as soon as they are answered."""
    counts, stop = [0] * CLIENTS, threading.Event()

    def client(number: int) -> None:
        connection = connect()
        while not stop.is_set():
            connection.post(path, body)
            counts[number] += 1
        connection.close()

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    before, used, began = sum(counts), _cpu_s(server), time.perf_counter()
    time.sleep(window_s)
    answered, elapsed_s = sum(counts) - before, time.perf_counter() - began
    cpu_s = (_cpu_s(server) - used) / max(answered, 1)
    stop.set()
    for thread in threads:
        thread.join(30)
    return Throughput(answered / elapsed_s, cpu_s)


def _cpu_s(server: int) -> float:
    root = psutil.Process(server)
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return sum(each.user + each.system for each in times)


@contextmanager
def mosec(batch: int) -> Iterator[tuple[Connect, int]]:
    """A mosec server with three empty stages; gives what connects to it, and its process."""
    contender = next(each for each in CONTENDERS if any(p.startswith("mosec") for p in each.packages))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).parent / "contenders" / "mosec_empty.py"
    process = subprocess.Popen(
        [python(contender), script, "--address", "127.0.0.1", "--port", str(port)],
        env=environment({"MAX_BATCH": str(batch)}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def connect() -> RawClient:
        return RawClient(("127.0.0.1", port))

    try:
        _wait(connect)
        yield connect, process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _wait(connect: Connect) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            client = connect()
            client.post("/inference", b"x")
            client.close()
            return
        except (OSError, RuntimeError, IndexError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def empty_throughput(quick: bool) -> tuple[float, dict[str, Any]]:
    """Give edged over the better of mosec with and without batches, in turn, order reversed every round."""
    body = b"".join(bytes(part) for part in encode_tensors({"x": np.zeros((1, 256), np.float32)}))
    rounds, window_s = (2, 2.0) if quick else (7, 6.0)
    found: dict[str, list[Throughput]] = {"edged": [], "mosec": [], "mosec, batches of 8": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), EMPTY_STAGES) as daemon,
        mosec(1) as (single, single_pid),
        mosec(8) as (batched, batched_pid),
    ):
        sides = [
            ("edged", lambda: RawClient(daemon.client.socket), EDGED, daemon.process.pid),
            ("mosec", single, "/inference", single_pid),
            ("mosec, batches of 8", batched, "/inference", batched_pid),
        ]
        for number in range(rounds):
            for name, connect, path, pid in sides if number % 2 else reversed(sides):
                found[name].append(load(connect, path, body, pid, window_s))
            say(f"  round {number + 1} of {rounds}")
    ours = found.pop("edged")
    theirs = max(found, key=lambda name: statistics.median(each.rate_per_s for each in found[name]))
    ratios = [a.rate_per_s / b.rate_per_s for a, b in zip(ours, found[theirs], strict=True)]
    return statistics.median(ratios), {
        "ratio": spread(ratios),
        "against": theirs,
        "clients": CLIENTS,
        "rates_per_s": {"edged": _rates(ours)} | {name: _rates(values) for name, values in found.items()},
        "cpu_us": {"edged": _cpu_us(ours)} | {name: _cpu_us(values) for name, values in found.items()},
        "python": sys.version.split()[0],
    }


def _rates(values: list[Throughput]) -> dict[str, float]:
    return spread([each.rate_per_s for each in values])


def _cpu_us(values: list[Throughput]) -> float:
    return round(statistics.median(each.cpu_s for each in values) * 1e6, 1)


ROWS = (
    Row(
        id="P7",
        what="three empty stages, 8 clients, requests/s / mosec doing the same",
        unit="ratio",
        gate=0.5,
        goal=1.0,
        better="higher",
        measure=empty_throughput,
    ),
)
