"""P12: what the daemon costs while nobody asks anything.

CPU: of the daemon and its workers, by the kernel's counters, over a minute without a request. Memory beyond
models and runtimes: proportional set size (PSS: a page shared by n processes counts 1/n in each) of the
daemon, plus, for each worker, its PSS minus that of a bare process which imports the same runtime and opens
the same model on the same options, and does nothing else (`benchmarks/_bare.py`). Both before the first
request, and all bare processes at the same time, so that they share the pages of libraries as workers do.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks._bare import Order
from benchmarks.measurement import Row, say, spread
from benchmarks.setting import rag_library
from benchmarks.throughput import daemon_cpu_s, rag_config
from edged.catalogue import Catalogue
from edged.config import Config
from edged.models.store import ModelStore
from edged.placement.defaults import place
from edged.testing.daemon import RunningDaemon, running
from edged.workers.spec import StageSpec

STAGE_OPTIONS = frozenset({"candidates", "keep", "max_tokens", "passthrough"})
SETTLE_S = 5.0
MIB = 1 << 20


def idle_cpu(quick: bool) -> tuple[float, dict[str, Any]]:
    """Percent of one core that the daemon and its workers use together."""
    seconds, rounds = (10.0, 1) if quick else (60.0, 3)
    library = rag_library(quick=quick)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), rag_config(library)) as daemon:
        next(iter(daemon.client.chat([{"role": "user", "content": library.questions[0]}], max_tokens=8)))
        daemon.wait_for(lambda status: status.outstanding == 0, "idle")
        time.sleep(SETTLE_S)
        shares = [_share(daemon, seconds) for _ in range(rounds)]
    return statistics.median(shares), {"percent": spread(shares), "seconds": seconds, "of": "one core"}


def _share(daemon: RunningDaemon, seconds: float) -> float:
    before = daemon_cpu_s(daemon)
    began = time.monotonic()
    time.sleep(seconds)
    return 100 * (daemon_cpu_s(daemon) - before) / (time.monotonic() - began)


def idle_memory(quick: bool) -> tuple[float, dict[str, Any]]:
    """Mebibytes of the daemon, and of its workers beyond the runtime with the model."""
    library = rag_library(quick=quick)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), rag_config(library)) as daemon:
        specs = _specs(daemon.config)
        time.sleep(SETTLE_S)
        own = {"daemon": pss_bytes(daemon.process.pid) / MIB}
        workers = {
            stage.name: sum(pss_bytes(worker.pid) for worker in stage.workers) / MIB
            for stage in daemon.client.status().stages
        }
    bare = _bare_mib(specs)
    say(f"P12: workers {workers}, bare {bare}")
    beyond = own | {name: workers[name] - bare[name] for name in bare}
    return sum(beyond.values()), {
        "beyond_mib": {name: round(value, 1) for name, value in beyond.items()},
        "workers_mib": {name: round(value, 1) for name, value in workers.items()},
        "bare_mib": {name: round(value, 1) for name, value in bare.items()},
    }


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _specs(config: Config) -> dict[str, StageSpec]:
    store = ModelStore(config.daemon.state_dir / "models", Catalogue.discover())
    return {name: place(name, stage, config, store) for name, stage in config.stages.items()}


def _bare_mib(specs: dict[str, StageSpec]) -> dict[str, float]:
    """PSS of processes that have the stages' sessions open, and nothing of edged but the adapter."""
    with ExitStack() as stack:
        processes = {name: stack.enter_context(_bare(spec)) for name, spec in specs.items()}
        for name, process in processes.items():
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"the bare process of {name} did not open its model")
        time.sleep(SETTLE_S)
        return {name: pss_bytes(process.pid) / MIB for name, process in processes.items()}


@contextmanager
def _bare(spec: StageSpec) -> Iterator[subprocess.Popen[bytes]]:
    options = {key: value for key, value in spec.options.items() if key not in STAGE_OPTIONS}
    if spec.kind == "generator":
        options.setdefault("max_sequences", spec.max_batch)
    order = msgspec.json.encode(Order(spec.backend, spec.device, spec.variant, options), enc_hook=str)
    command = [sys.executable, "-m", "benchmarks._bare"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(order + b"\n")
        process.stdin.flush()
        yield process
        process.stdin.close()


ROWS = (
    Row(
        id="P12@cpu",
        what="idle: CPU of daemon and workers",
        unit="% of one core",
        gate=1.0,
        goal=0.3,
        better="lower",
        measure=idle_cpu,
    ),
    Row(
        id="P12@memory",
        what="idle: memory beyond models and runtimes",
        unit="MiB",
        gate=150.0,
        goal=80.0,
        better="lower",
        measure=idle_memory,
    ),
)
