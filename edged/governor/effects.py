"""What a rung does, all in all, and what that costs and is worth: pure.

Figures of the configuration (`cost`, `quality`) count. Where it has none, an answer's work is put together
from the parts below, and its quality is assumed, both in proportion to the rung before; whoever shows such
figures says so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from edged.config.tables import Rung
from edged.governor.reach import DOES, NOTHING

SEARCH, RERANK, PREFILL, DECODE = 0.02, 0.48, 0.23, 0.27
"""Shares of the CPU seconds of an answer: `edgectl calibrate` with the built-in models on two x86 cores, 20
candidates, 4 passages, 64 new tokens, batches of 8."""
GENERATORS = ("generator",)
"""Of the built-in pipeline."""
CANDIDATES, KEEP, ANSWER_TOKENS = 20, 4, 256
"""What the built-in stages do when nothing is said."""
PASSAGES_IN_PROMPT = 0.7
"""Share of a prompt that is passages; the rest is the question and the instructions."""
UNCUT = 0.25
"""Share of the decoding in answers that end long before any limit. Assumed."""
UNMOVED = 0.5
"""Share of the questions whose reranking changes little (row B1)."""
LIGHTER = 0.85
"""Work of a lighter variant, in proportion. Assumed."""
FRUGAL = 0.5
"""Work of a frugal generator, in proportion: docs/decisions/0034-frugal-stages.md."""
QUALITY = {
    "passages": 0.98,
    "answer": 0.97,
    "variants": 0.97,
    "frugal": 0.99,
    "benefit": 0.995,
    "rerank": 0.93,
}
"""Factors of quality, by what is taken away. Assumed, until `cost` and `quality` are measured."""


class Effect(msgspec.Struct, frozen=True):
    """A rung with all that the rungs before it do, in proportion to the first rung."""

    name: str
    cost: float
    """Work on this box for one answer."""
    quality: float
    shed_batch: bool
    busy_share: float
    estimated: tuple[str, ...]
    """Figures that are not measured: `cost`, `quality`."""


def settings(ladder: Sequence[Rung], rung: int, without: Collection[int] = ()) -> Rung:
    """All that is done on a rung: what the rungs before it do, and what it does itself.

    What rungs do that cannot be taken, those in `without`, is left out.

    >>> settings((Rung(name="a", keep=3), Rung(name="b", peer=True)), 1).keep
    3
    """
    whole = ladder[0]
    for number in range(1, rung + 1):
        if number not in without:
            whole = _both(whole, ladder[number])
    return replace(whole, name=ladder[rung].name, cost=ladder[rung].cost, quality=ladder[rung].quality)


def _both(whole: Rung, more: Rung) -> Rung:
    said = [name for name in DOES if getattr(more, name) != getattr(NOTHING, name)]
    return replace(whole, **{name: _joined(getattr(whole, name), getattr(more, name)) for name in said})


def _joined(before: Any, more: Any) -> Any:
    """Stages are added to stages; any other value takes the place of the one before."""
    if isinstance(more, dict):
        return before | more
    return tuple(dict.fromkeys((*before, *more))) if isinstance(more, tuple) else more


def effects(
    ladder: Sequence[Rung], without: Collection[int] = (), generators: Collection[str] = GENERATORS
) -> tuple[Effect, ...]:
    """What each rung costs and is worth, where those in `without` cannot be taken.

    A figure that is not known is estimated from the rung before it: what that costs or is worth, known or
    estimated, times what the assumed shares say of the step between the two. Of what frugal stages save only
    the part of `generators` is known.
    """
    found: list[Effect] = []
    whole = [_weighed(settings(ladder, rung, without), generators) for rung in range(len(ladder))]
    for rung, above in zip(whole, (None, *whole), strict=False):
        found.append(_effect(rung, above, found[-1] if found else None))
    return tuple(found)


def _weighed(rung: Rung, generators: Collection[str]) -> Rung:
    return replace(rung, frugal=tuple(name for name in rung.frugal if name in generators))


def _effect(rung: Rung, above: Rung | None, before: Effect | None) -> Effect:
    figures = {"cost": rung.cost, "quality": rung.quality}
    cost, quality = _work(rung), _worth(rung)
    if above is not None and before is not None:
        cost *= before.cost / _work(above)
        quality *= before.quality / _worth(above)
    return Effect(
        name=rung.name,
        cost=cost if rung.cost is None else rung.cost,
        quality=quality if rung.quality is None else rung.quality,
        shed_batch=rung.shed_batch,
        busy_share=rung.busy_share,
        estimated=tuple(name for name, value in figures.items() if value is None),
    )


def _work(rung: Rung) -> float:
    lighter = LIGHTER if rung.variants else 1.0
    moved = 0.0 if rung.bypass_rerank else 1 - UNMOVED if rung.bypass_benefit else 1.0
    rerank = moved * RERANK * _cut(rung.candidates, CANDIDATES) * lighter
    prefill = PREFILL * (1 - PASSAGES_IN_PROMPT + PASSAGES_IN_PROMPT * _cut(rung.keep, KEEP))
    decode = DECODE * (UNCUT + (1 - UNCUT) * _cut(rung.answer_tokens, ANSWER_TOKENS))
    frugal = FRUGAL if rung.frugal else 1.0
    generate = 0.0 if rung.peer else (prefill + decode) * lighter * frugal
    return SEARCH + rerank + generate


def _cut(limit: int, usual: int) -> float:
    return min(1.0, limit / usual) if limit else 1.0


def _worth(rung: Rung) -> float:
    taken = {
        "passages": bool(rung.candidates or rung.keep),
        "answer": bool(rung.answer_tokens),
        "variants": bool(rung.variants),
        "frugal": bool(rung.frugal),
        "benefit": rung.bypass_benefit and not rung.bypass_rerank,
        "rerank": rung.bypass_rerank,
    }
    worth = 1.0
    for what, is_taken in taken.items():
        worth *= QUALITY[what] if is_taken else 1.0
    return worth
