"""What a rung does, in words: pure."""

from __future__ import annotations

from collections.abc import Iterator

from edged.config.tables import Rung


def does(rung: Rung) -> str:
    """Say what a rung adds to those before it.

    >>> does(Rung(name="fewer", candidates=10, keep=2))
    '10 candidates, 2 passages kept'
    """
    return ", ".join(_parts(rung)) or "all as configured"


def _parts(rung: Rung) -> Iterator[str]:
    if rung.candidates:
        yield f"{rung.candidates} candidates"
    if rung.keep:
        yield f"{rung.keep} passages kept"
    if rung.answer_tokens:
        yield f"{rung.answer_tokens} tokens an answer"
    yield from (f"{stage} {variant}" for stage, variant in rung.variants.items())
    yield from (f"{stage} frugal" for stage in rung.frugal)
    if rung.bypass_benefit:
        yield "no reranking where it changes least"
    if rung.bypass_rerank:
        yield "no reranking"
    if rung.peer:
        yield "generation by a peer"
    if rung.shed_batch:
        yield "refuses batch work"
    if rung.busy_share < 1:
        yield f"works {rung.busy_share:.0%} of the time"
