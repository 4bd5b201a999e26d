"""W1: how long OpenMP's threads look for work before they sleep, on idle cores and beside busy neighbours.

`edged.birth.SPINS` beside what libgomp does on its own (300,000 looks, its manual says) and beside sleeping
at once (`OMP_WAIT_POLICY=passive`). One process a turn, because libgomp reads the setting when it is loaded.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, cast

from benchmarks.measurement import Row, say
from benchmarks.setting import STATE, sample_models
from edged.backend import Sampling, TokenSession
from edged.birth import SPINS
from edged.catalogue import Catalogue
from edged.models.store import ModelStore
from edged.plugins import load

LIBRARY = "300000"
ASLEEP = "0"
TOKENS = 120


def alone(quick: bool) -> tuple[float, dict[str, Any]]:
    """Decoding on idle cores: seconds of edged's choice over the better of the two others."""
    found = _turns(quick)
    best = min(found[LIBRARY]["seconds"], found[ASLEEP]["seconds"])
    return found[SPINS]["seconds"] / best, {"by GOMP_SPINCOUNT": found}


def beside(quick: bool) -> tuple[float, dict[str, Any]]:
    """The same with every core busy: CPU seconds of edged's choice over the library's own."""
    with _neighbours():
        found = _turns(quick)
    return found[SPINS]["cpu_s"] / found[LIBRARY]["cpu_s"], {"by GOMP_SPINCOUNT": found}


def _turns(quick: bool) -> dict[str, dict[str, float]]:
    sample_models()
    found: dict[str, list[dict[str, float]]] = {SPINS: [], LIBRARY: [], ASLEEP: []}
    for number in range(2 if quick else 5):
        for spins in found if number % 2 else reversed(found):
            found[spins].append(_decoded(spins))
    for spins, turns in found.items():
        say(f"GOMP_SPINCOUNT={spins}: {[turn['seconds'] for turn in turns]} s")
    return {
        spins: {key: round(statistics.median(turn[key] for turn in turns), 3) for key in turns[0]}
        for spins, turns in found.items()
    }


def _decoded(spins: str) -> dict[str, float]:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.spinning"],
        env=os.environ | {"GOMP_SPINCOUNT": spins},
        cwd=STATE.parent,
        stdout=subprocess.PIPE,
        check=True,
    )
    return cast("dict[str, float]", json.loads(ran.stdout))


@contextmanager
def _neighbours() -> Iterator[None]:
    """A busy process for every core."""
    cores = len(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    """Decode on every core, and print seconds and CPU seconds."""
    backend = load("llama_cpp")
    variant = ModelStore(STATE / "models", Catalogue.discover()).resolve("smollm2-135m-instruct", "q4_1")
    options = {"threads": len(os.sched_getaffinity(0)), "context_tokens": 512}
    with closing(cast("TokenSession", backend.open(variant, backend.devices()[0], options))) as session:
        prompt = session.vocabulary.encode("Numbers: 1, 2, 3, 4, 5, 6, 7, 8,", special=False)
        session.admit(1, prompt, Sampling(), TOKENS + 10)
        for _ in range(5):
            session.step()
        began_s, used_s = time.perf_counter(), time.process_time()
        events = [event for _ in range(TOKENS) for event in session.step()]
        took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - used_s
    if sum(len(event.tokens) for event in events) != TOKENS:
        raise RuntimeError("the answer ended early: another prompt is needed")
    print(json.dumps({"seconds": round(took_s, 3), "cpu_s": round(cpu_s, 3)}))


ROWS = (
    Row(
        id="W1@alone",
        what="decoding on idle cores: seconds as OpenMP's threads wait here / spinning long or not at all",
        unit="ratio",
        gate=1.10,
        goal=1.0,
        better="lower",
        measure=alone,
    ),
    Row(
        id="W1@beside",
        what="decoding beside busy neighbours: CPU seconds as OpenMP's threads wait here / spinning long",
        unit="ratio",
        gate=0.7,
        goal=0.5,
        better="lower",
        measure=beside,
    ),
)

if __name__ == "__main__":
    main()
