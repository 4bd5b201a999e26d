"""P5s: what it brings to read the oldest and the shortest prompt first, by the what-if simulator.

Prices by hand, in the proportions that the default pipeline has on one thread; all prompts are of one length.
The other side of the ratio divides the prompt tokens of a step equally among all prompts being read, and is
the same in all else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any
from unittest import mock

import msgspec

from benchmarks.measurement import Row
from edged.dispatch.leases import Mode
from edged.placement.aim import Aim
from edged.placement.limits import Wishes
from edged.placement.plan import Planner
from edged.placement.simulate import Load, Machine, Prediction, simulate
from edged.placement.table import Plan, Point, Table
from edged.testing.tables import form, limits, point, table

CORES = 2
EMBED_S, RERANK_S, READ_S, STEP_S, ANSWER_S = 0.003, 0.28, 0.33, 0.010, 0.003
"""On one thread: a question, its candidates, its prompt; a step, and each answer in it."""
SECOND_THREAD = 0.55
"""Of the time on one thread, with two."""
PROMPT_TOKENS, CACHED_TOKENS, NEW_TOKENS = 500, 60, 40
CLIENTS = (4, 16)
LENGTHS = tuple(range(15, 64, 4))
CASES: tuple[tuple[Mode, int], ...] = (("single", 64), ("split", 64), ("single", 512), ("split", 512))
"""How cores are lent, and prompt tokens of a step beside running answers."""


def equal_shares(unread: Sequence[int], budget: int, block: int = 1) -> list[int]:
    """As `edged.prefill.shares`, but as equal as blocks allow; what a short prompt leaves others get."""
    takes, left = [0] * len(unread), budget
    order = sorted(range(len(unread)), key=lambda place: unread[place])
    for rank, place in enumerate(order):
        share = left // (len(unread) - rank)
        takes[place] = unread[place] if unread[place] <= share else share // block * block
        left -= takes[place]
    for place in order:
        more = min(unread[place] - takes[place], block)
        if 0 < more <= left:
            takes[place] += more
            left -= more
    return takes


def first_tokens(quick: bool) -> tuple[float, dict[str, Any]]:
    """95th percentile of the time to the first token with 16 clients / with equal shares, worst case."""
    detail, ratios = {}, []
    for (mode, beside), clients in product(CASES, CLIENTS):
        plan, prices = _planned(mode, beside)
        load = Load(clients=clients, duration_s=60 if quick else 200, new_tokens=LENGTHS)
        ours = simulate(plan, prices, Machine(cores=CORES, slots=64), load)
        with mock.patch("edged.placement.sequences.shares", equal_shares):
            equal = simulate(plan, prices, Machine(cores=CORES, slots=64), load)
        detail[f"{mode}, {beside} tokens, {clients} clients"] = {"ours": _said(ours), "equal": _said(equal)}
        if clients == CLIENTS[-1]:
            ratios.append(_p95_s(ours) / _p95_s(equal))
    return max(ratios), detail


def _p95_s(found: Prediction) -> float:
    if found.first_token.p95 is None:
        raise RuntimeError("nothing was answered")
    return found.first_token.p95


def _said(found: Prediction) -> dict[str, float | None]:
    first = found.first_token
    return {
        "first_p50_s": round(first.p50 or 0.0, 3),
        "first_p95_s": round(first.p95 or 0.0, 3),
        "per_s": round(found.throughput_per_s, 3),
    }


def _planned(mode: Mode, beside: int) -> tuple[Plan, Table]:
    workers = CORES if mode == "single" else 1
    heavy = Wishes(
        model="m", variants=("int8",), workers=workers, options={"threads": 1 if mode == "single" else CORES}
    )
    asked = {
        "retriever": msgspec.structs.replace(heavy, workers=1, options={"threads": 1}),
        "reranker": msgspec.structs.replace(heavy, max_batch=1),
        "generator": msgspec.structs.replace(heavy, max_batch=8),
    }
    found = table(_points(beside))
    planner = Planner(found, asked, limits(cores=CORES, modes=(mode,)))
    return planner.plan(Aim()), found


def _points(beside: int) -> Iterator[Point]:
    budgets = (("max_num_batched_tokens", max(beside, 256)), ("running_batch_tokens", beside))
    for threads, factor in ((1, 1.0), (2, SECOND_THREAD)):
        yield point(form("retriever", threads=threads), 1, EMBED_S)
        for batch in (1, 8):
            yield point(form("reranker", threads=threads), batch, batch * RERANK_S * factor, lanes=threads)
        for batch in (1, 4, 8):
            first_s = batch * READ_S * factor
            steps_s = (NEW_TOKENS - 1) * (STEP_S + ANSWER_S * batch)
            yield point(
                form("generator", threads=threads, options=budgets),
                batch,
                first_s + steps_s,
                first_s=first_s,
                new_tokens=NEW_TOKENS,
                length=PROMPT_TOKENS,
                cached_tokens=CACHED_TOKENS,
            )


ROWS = (
    Row(
        id="P5s",
        what="simulated first token (p95), 16 clients, oldest and shortest prompt first / equal shares",
        unit="ratio",
        gate=1.0,
        goal=0.9,
        better="lower",
        measure=first_tokens,
    ),
)
