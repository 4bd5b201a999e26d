"""Of which stages everything was measured, alone and beside one another: pure.

A stage is finished by a calibration that has nothing left to do for it; two stages by one that has nothing
left to do for both of them and for the two side by side. A new figure opens its stage again, because what
is promising and what belongs side by side may change with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import combinations

import msgspec

from edged.placement.table import Failure, Form, Point, Table, Work


def opened(table: Table, stages: Collection[str]) -> Table:
    """The table in which these stages, and pairs of stages with them, are not finished."""
    return msgspec.structs.replace(
        table,
        finished=tuple(stage for stage in table.finished if stage not in stages),
        finished_pairs=tuple(pair for pair in table.finished_pairs if not set(stages) & set(pair)),
    )


def closed(table: Table, stages: Collection[str], left: Iterable[Sequence[str]]) -> Table:
    """The table after a calibration of `stages`; `left` names the one or two stages of each task to come."""
    waiting = {frozenset(each) for each in left}
    alone = {stage for each in waiting if len(each) == 1 for stage in each}
    known = opened(table, alone)
    done = [stage for stage in dict.fromkeys(stages) if stage not in alone]
    pairs = {two for one in combinations(done, 2) if frozenset(two := _ordered(*one)) not in waiting}
    held = {two for two in known.finished_pairs if frozenset(two) not in waiting}
    return msgspec.structs.replace(
        known,
        finished=tuple(sorted({*known.finished, *done})),
        finished_pairs=tuple(sorted(held | pairs)),
    )


def lacking(table: Table, stages: Iterable[str]) -> list[str]:
    """What of these stages is not measured to the end: stages, and pairs of stages that are by themselves.

    >>> from edged.placement.table import Fingerprint
    >>> here = Fingerprint(cpu="A", cores=2, memory_bytes=8, kernel="6.1", packages={}, models={})
    >>> lacking(Table(fingerprint=here, measured_at="", finished=("a", "b")), "abc")
    ['c', 'a beside b']
    """
    names = list(dict.fromkeys(stages))
    done = [stage for stage in names if stage in table.finished]
    pairs = [
        f"{a} beside {b}" for a, b in combinations(done, 2) if _ordered(a, b) not in table.finished_pairs
    ]
    return [*(stage for stage in names if stage not in done), *pairs]


def forgotten(table: Table, stages: Collection[str]) -> Table:
    """The table without every figure of these stages, pairs with them included."""

    def stays(form: Form) -> bool:
        return form.stage not in stages

    return msgspec.structs.replace(
        opened(table, stages),
        points=tuple(point for point in table.points if stays(point.form)),
        weights=tuple(weight for weight in table.weights if stays(weight.form)),
        pairs=tuple(pair for pair in table.pairs if stays(pair.first) and stays(pair.second)),
        failures=tuple(failure for failure in table.failures if stays(failure.form)),
    )


def without_lost(former: Table, kept: Table) -> Table:
    """`kept` in which the stages are open that have lost a figure since `former`."""
    lost = set(_figures(former)) - set(_figures(kept))
    return opened(kept, {form.stage for form, *_ in lost})


def _figures(table: Table) -> Iterator[tuple[Form, int, Work]]:
    """What was measured or has failed; a pair is never lost without a figure of one of its forms."""
    figures: tuple[Point | Failure, ...] = (*table.points, *table.failures)
    for each in figures:
        yield each.form, each.batch, each.work


def _ordered(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one < other else (other, one)
