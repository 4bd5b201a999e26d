"""F1: the CPU seconds that an answer takes with a frugal generator, on real models and without reranking."""

from __future__ import annotations

import itertools
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.asking import asking
from benchmarks.cabinet import OTHERS
from benchmarks.measurement import Row, say, spread
from benchmarks.mixes import distinct
from benchmarks.setting import STATE, rag_library
from benchmarks.throughput import daemon_cpu_s
from edged.governor.plant import DEVICE
from edged.replies import Final
from edged.rungs.taking import Taking
from edged.testing.daemon import RunningDaemon, running

CLIENTS = 2
USUAL, FRUGAL = "no-rerank", "frugal"
LADDER = (
    f'[governor]\nload = []\nmemory = []\nstall = []\nladder = [{{ name = "full" }}, '
    f'{{ name = "{USUAL}", bypass_rerank = true }}, {{ name = "{FRUGAL}", frugal = ["generator"] }}]\n'
)
OFF = "".join(
    f"[governor.temperature.{kind}]\ncritical_c = 120.0\nbands = []\n" for kind in (DEVICE, *OTHERS)
)


class Rate(msgspec.Struct, frozen=True):
    """What a rung cost in one round."""

    cpu_s: float
    """Of the daemon and its workers, for an answer."""
    answers_per_s: float


def frugal(quick: bool) -> tuple[float, dict[str, Any]]:
    """CPU seconds an answer: frugal / as configured."""
    window_s, rounds = (12.0, 1) if quick else (30.0, 3)
    library = rag_library(quick=False)
    config = (
        f"[daemon]\nstate_dir = '{STATE}'\n[library]\ndir = '{library.folder}'\n"
        f"[stages.generator]\noptions = {{ answers_cache_mib = 0 }}\n{LADDER}{OFF}"
    )
    questions = [text for number in range(5) for text, _ in distinct(library.questions, number)]
    found: dict[str, list[Rate]] = {USUAL: [], FRUGAL: []}
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), config) as daemon:
        fresh = itertools.cycle(questions)
        with Taking(daemon.client, daemon.admin) as ladder:
            for number in range(rounds):
                for rung in (USUAL, FRUGAL)[:: -1 if number % 2 else 1]:
                    ladder.take(rung)
                    found[rung].append(rate := _rate(daemon, fresh, window_s))
                    say(f"F1 {rung}: {rate}")
    ratios = [ours.cpu_s / theirs.cpu_s for ours, theirs in zip(found[FRUGAL], found[USUAL], strict=True)]
    faster = [a.answers_per_s / b.answers_per_s for a, b in zip(found[FRUGAL], found[USUAL], strict=True)]
    ratio = spread(ratios)
    detail = {
        "ratios": ratio,
        "rate_ratios": spread(faster),
        "rounds": msgspec.to_builtins(found),
        "clients": CLIENTS,
        "window_s": window_s,
    }
    return ratio["median"], detail


def _rate(daemon: RunningDaemon, questions: Iterator[str], window_s: float) -> Rate:
    """Clients ask all the time; counted is what ends in the window."""
    lock, ended = threading.Lock(), [0]

    def ask(_chooser: random.Random) -> None:
        with lock:
            question = next(questions)
        events = daemon.client.chat([{"role": "user", "content": question}], max_tokens=192)
        done = any(isinstance(event, Final) for event in events)
        with lock:
            ended[0] += done

    with asking(CLIENTS, 0, ask):
        time.sleep(window_s / 6)
        before, cpu_s, began_s = ended[0], daemon_cpu_s(daemon), time.monotonic()
        time.sleep(window_s)
        answers, cpu_s, took_s = ended[0] - before, daemon_cpu_s(daemon) - cpu_s, time.monotonic() - began_s
    return Rate(round(cpu_s / max(answers, 1), 3), round(answers / took_s, 3))


ROWS = (
    Row(
        id="F1",
        what="CPU seconds of the box for an answer without reranking: frugal generator / as configured",
        unit="ratio",
        gate=0.75,
        goal=0.5,
        better="lower",
        measure=frugal,
    ),
)
