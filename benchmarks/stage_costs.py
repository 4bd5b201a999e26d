"""The machine's bound: what one question costs the stages alone, on one core, each in its cheapest form.

    python -m benchmarks.stage_costs LIBRARY [QUESTIONS]     print the CPU seconds as JSON

A process of its own, with nothing else in it. Forms tried: runs of 1 to 8 pairs sorted by length for the
reranker; batches of 1, 4, 8 and 16 answers for the generator.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from benchmarks.contenders.environments import environment
from benchmarks.contenders.settings import Settings
from benchmarks.setting import STATE

if TYPE_CHECKING:
    from benchmarks.contenders.work import Engine, Front, Reply
    from edged.messages import Passage
    from edged.stages.prompt import Prompt

ROWS = (1, 2, 4, 8)
BATCHES = (1, 4, 8, 16)
MAX_TOKENS = 64
Result = TypeVar("Result")


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """CPU seconds of one question on one core."""

    embed_s: float
    search_s: float
    rerank_s: dict[int, float]
    """By the number of pairs in a run."""
    generate_s: dict[int, float]
    """By the number of answers decoded together."""
    tokens: float
    """Of an answer, on average."""

    def bound_per_s(self, batch: int = max(BATCHES)) -> float:
        """Questions per second of all cores with nothing lost, at this batch of the generator."""
        fitting = [cost for size, cost in self.generate_s.items() if size <= batch]
        spent_s = self.embed_s + self.search_s + min(self.rerank_s.values()) + min(fitting)
        return len(os.sched_getaffinity(0)) / spent_s


def stage_costs(library: Path, count: int) -> Costs:
    """Measure in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.stage_costs", str(library), str(count)],
        env=environment({}),
        cwd=STATE.parent,
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(ran.stdout, type=Costs)


def _measure(library: str, questions: Sequence[str]) -> Costs:
    from benchmarks.contenders.work import Engine, Front  # loads the runtimes

    given = Settings(
        library=library,
        models=str(STATE / "models"),
        cache=str(STATE / "cache"),
        address="",
        threads=1,
        sequences=max(BATCHES),
    )
    fronts = {rows: Front(msgspec.structs.replace(given, rerank_rows=rows)) for rows in ROWS}
    engine = Engine(given)
    front = fronts[ROWS[0]]
    engine.finish([engine.prompt(questions[-1], front.passages(questions[-1]), 4)])
    asked = questions[:-1]
    vectors, embed_s = _timed(lambda: [front.embed(question) for question in asked])
    pairs = list(zip(asked, vectors, strict=True))
    found, search_s = _timed(lambda: [front.search(question, vector) for question, vector in pairs])
    rerank_s = {}
    for rows, one in fronts.items():
        jobs = list(zip(asked, found, strict=True))
        _, spent_s = _timed(partial(_reranked, one, jobs))
        rerank_s[rows] = spent_s / len(asked)
    kept = [(question, front.passages(question)) for question in asked]
    # Each batch size gets prompts of its own, so that none finds its prefixes in the cache.
    shares = [kept[start :: len(BATCHES)] for start in range(len(BATCHES))]
    generate_s, tokens = {}, []
    for batch, share in zip(BATCHES, shares, strict=True):
        prompts = [engine.prompt(question, passages, MAX_TOKENS) for question, passages in share]
        cuts = [prompts[first : first + batch] for first in range(0, len(prompts), batch)]
        replies, spent_s = _timed(partial(_answered, engine, cuts))
        tokens += [reply.completion_tokens for reply in replies]
        generate_s[batch] = spent_s / len(share)
    return Costs(
        embed_s=embed_s / len(asked),
        search_s=search_s / len(asked),
        rerank_s=rerank_s,
        generate_s=generate_s,
        tokens=sum(tokens) / len(tokens),
    )


def _reranked(front: Front, jobs: Sequence[tuple[str, list[Passage]]]) -> None:
    for question, found in jobs:
        front.rerank(question, found)


def _answered(engine: Engine, cuts: Sequence[list[Prompt]]) -> list[Reply]:
    return [reply for cut in cuts for reply in engine.finish(cut)]


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    began_s = time.process_time()
    return work(), time.process_time() - began_s


def main() -> None:
    """Print the costs."""
    library, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 64
    raw = json.loads((STATE / "cache" / "hotpotqa" / "hotpotqa.json").read_bytes())
    questions = [entry["question"] for entry in raw[-count - 1 :]]
    sys.stdout.buffer.write(msgspec.json.encode(_measure(library, questions)))


if __name__ == "__main__":
    main()
