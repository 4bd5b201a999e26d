"""P14o: the retriever waits for the disk while the generator decodes.

A pipeline of the real retriever, over a library that is dropped from memory without pause, and of a simulated
generator, whose answers take about as long as a retrieval: one after the other they would give half of what
each gives alone. Rate of the pipeline / rate of its slower stage alone, each with the same clients and with
the library being dropped. A round counts only if the retriever was seen to wait for the disk as often in both
stretches: dropping pages can fall behind. Dropping another process's pages needs CAP_SYS_NICE.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks._eviction import forgetful, major_faults
from benchmarks._scale_library import library, seed
from benchmarks.measurement import Row, say, spread
from benchmarks.setting import STATE
from edged.governor.sensors import cpu_s
from edged.load.drive import Asker, Run
from edged.testing.daemon import RunningDaemon, running

FULL, QUICK = 100_000, 20_000
CLIENTS = 8
DECODE_MS = 10
MOST_TOKENS = 400
PROMPT = "context_tokens = 4096, batch_tokens = 4096"
"""A prompt is read in one step, so that an answer costs the same with passages and without."""
FEWEST_ANSWERS = 8
FEWEST_READS = 5
"""Page faults of a retrieval that waited for the disk; with fewer the disk was not in the way."""
ALIKE = 0.5
"""Of the reads of one stretch, in the other of its round."""
FEWEST_ROUNDS = 2


def _config(folder: Path) -> str:
    return f"""
[daemon]
state_dir = '{STATE}'
[library]
dir = '{folder.resolve()}'
[stages.retriever]
options = {{ passages_cache_mib = 0, candidates = 4 }}
[stages.reranker]
workers = 0
[stages.generator]
backend = 'simulated'
device = 'sim:npu'
options = {{ decode_ms = {DECODE_MS}, {PROMPT}, max_tokens = {MOST_TOKENS} }}
[stages.instant]
kind = 'generator'
model = 'smollm2-135m-instruct'
backend = 'simulated'
device = 'sim:gpu'
options = {{ {PROMPT}, max_tokens = 1 }}
[pipelines.both]
stages = ["retriever", "generator"]
[pipelines.retrieval]
stages = ["retriever", "instant"]
[pipelines.generation]
stages = ["generator"]
"""


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """A closed loop on one pipeline."""

    rate_per_s: float
    reads: float
    """Page faults of the retriever that waited for the disk, per answer."""
    retriever_cpu_s: float
    """Per answer."""


class _Loop:
    """Closed loops on a daemon, one after the other; no question comes twice."""

    def __init__(self, daemon: RunningDaemon, questions: Sequence[str], seconds: float) -> None:
        self._daemon = daemon
        self._questions = questions
        self._seconds = seconds
        self._number = 0
        self.retrievers = [worker.pid for worker in daemon.stage("retriever").workers]

    def stretch(self, pipeline: str, max_tokens: int) -> Stretch:
        """Ask for some seconds; the first quarter, in which the pipeline fills, does not count."""
        ask = Asker(self._daemon.client, pipeline, {"max_tokens": max_tokens}).ask
        reads, cpu = self._reads(), self._cpu_s()
        samples = list(Run(ask, self._fresh(), self._seconds).closed(CLIENTS))
        if failed := [sample.error for sample in samples if sample.error]:
            raise RuntimeError(f"{len(failed)} requests failed: {failed[0]}")
        ends = sorted(sample.end_s for sample in samples)
        steady = [end for end in ends if self._seconds / 4 <= end <= self._seconds]
        if len(steady) < FEWEST_ANSWERS:
            raise RuntimeError(f"{len(steady)} answers in {self._seconds:g} s: the disk is too slow to tell")
        return Stretch(
            rate_per_s=round((len(steady) - 1) / (steady[-1] - steady[0]), 3),
            reads=round((self._reads() - reads) / len(samples)),
            retriever_cpu_s=round((self._cpu_s() - cpu) / len(samples), 3),
        )

    def _fresh(self) -> list[str]:
        self._number += 1
        return [f"{question} ({self._number}.{n})" for n, question in enumerate(self._questions)]

    def _reads(self) -> int:
        return sum(map(major_faults, self.retrievers))

    def _cpu_s(self) -> float:
        return sum(map(cpu_s, self.retrievers))


def overlap(quick: bool) -> tuple[float, dict[str, Any]]:
    """P14o: see the module."""
    source = seed()
    folder, _ = library(source, QUICK if quick else FULL)
    seconds, rounds = (5.0, 3) if quick else (15.0, 4)
    stretches = _with(folder, source.questions, seconds, rounds)
    sound = [each for each in stretches if _sound(each)]
    if len(sound) < FEWEST_ROUNDS:
        raise RuntimeError(f"the disk was in the way in {len(sound)} of {rounds} rounds: too few to tell")
    ratios = [
        each["both"].rate_per_s / min(each["retrieval"].rate_per_s, each["generation"].rate_per_s)
        for each in sound
    ]
    return statistics.median(ratios), {
        "ratio": spread(ratios),
        "one_after_the_other": round(statistics.median(map(_in_turn, sound)), 3),
        "rounds": msgspec.to_builtins(stretches),
        "rounds_that_count": len(sound),
    }


def _with(folder: Path, questions: Sequence[str], seconds: float, rounds: int) -> list[dict[str, Stretch]]:
    with tempfile.TemporaryDirectory() as run, running(Path(run), _config(folder)) as daemon:
        loop = _Loop(daemon, questions, seconds)
        with forgetful(loop.retrievers, folder):
            first = loop.stretch("retrieval", 1)
            tokens = max(1, min(MOST_TOKENS, round(1e3 / first.rate_per_s / DECODE_MS)))
            say(f"retrieval: {first.rate_per_s} per second; answers of {tokens} tokens")
            return [_round(loop, tokens, number) for number in range(rounds)]


def _round(loop: _Loop, tokens: int, number: int) -> dict[str, Stretch]:
    lengths = {"retrieval": 1, "generation": tokens, "both": tokens}
    names = list(lengths) if number % 2 else list(lengths)[::-1]
    began = time.monotonic()
    stretches = {name: loop.stretch(name, lengths[name]) for name in names}
    rates = ", ".join(f"{name} {stretch.rate_per_s}/s" for name, stretch in stretches.items())
    say(f"round {number + 1}: {rates}, {time.monotonic() - began:.0f} s")
    return stretches


def _in_turn(stretches: dict[str, Stretch]) -> float:
    """What the ratio would be if a question's retrieval began when the answer before it was complete."""
    rates = [stretches[name].rate_per_s for name in ("retrieval", "generation")]
    return 1 / sum(1 / rate for rate in rates) / min(rates)


def _sound(stretches: dict[str, Stretch]) -> bool:
    least, most = sorted(stretches[name].reads for name in ("retrieval", "both"))
    return least >= max(FEWEST_READS, ALIKE * most)


ROWS = (
    Row(
        id="P14o",
        what="pipeline whose retriever waits for the disk / its slower stage alone",
        unit="ratio",
        gate=0.85,
        goal=0.97,
        better="higher",
        measure=overlap,
    ),
)
