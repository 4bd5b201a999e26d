"""How jobs that want more cores than there are divide them: max-min fair shares: pure.

Every worker is a session of its own, which Linux schedules as one (autogroup), and the threads of a parallel
step wait for the one that shares its core. Either way whoever wants less than an equal share has all of it,
and what it leaves goes to the others: measured, an encoder on one thread beside a generator on two of two
cores kept 0.9 of a core, where shares in proportion to the threads would have left it 0.67.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import combinations
from operator import or_


def shares(wanted: Sequence[float], masks: Sequence[int]) -> list[float]:
    """Cores that each of these jobs gets; `masks` are the cores that it may run on, as bits.

    >>> shares([1.0, 2.0], [3, 3]), shares([0.5, 2.0], [3, 3]), shares([1.0, 1.0, 1.0], [1, 1, 2])
    ([1.0, 1.0], [0.5, 1.5], [0.5, 0.5, 1.0])
    """
    found = list(wanted)
    open_: set[int] = set(range(len(wanted)))
    sets = sorted(set(masks))
    unions = {reduce(or_, some) for size in range(1, len(sets) + 1) for some in combinations(sets, size)}
    while open_:
        level, union = min((_level(found, masks, open_, union), union) for union in unions)
        if level == float("inf"):
            break
        inside = {place for place in open_ if masks[place] | union == union}
        for place in inside:
            found[place] = min(wanted[place], level)
        open_ -= inside
    return found


def slowdowns(wanted: Sequence[float], masks: Sequence[int]) -> list[float]:
    """By what factor each of these jobs needs longer than alone."""
    got = shares(wanted, masks)
    return [want / have if have else 1.0 for want, have in zip(wanted, got, strict=True)]


def _level(found: Sequence[float], masks: Sequence[int], open_: set[int], union: int) -> float:
    """The share at which a set of cores is full; infinite where those confined to it want no more."""
    inside = [place for place, own in enumerate(masks) if own | union == union]
    left = union.bit_count() - sum(found[place] for place in inside if place not in open_)
    wants = sorted(found[place] for place in inside if place in open_)
    if sum(wants) <= left + 1e-12:
        return float("inf")
    for place, want in enumerate(wants):
        level = left / (len(wants) - place)
        if want >= level:
            return max(0.0, level)
        left -= want
    return float("inf")
