"""How a rung wants stages to run otherwise than planned: pure."""

from __future__ import annotations

import msgspec

from edged.config.tables import Rung


class Wish(msgspec.Struct, frozen=True):
    """Another way for a stage to run."""

    variant: str = ""
    """Empty: that of the plan; `lighter`: the next lighter one that is here."""
    frugal: bool = False
    """With as few CPU seconds as it can: see `placement/frugal.py`."""


def wishes(rung: Rung) -> dict[str, Wish]:
    """By stage: what a rung, with all that the rungs before it do, asks for.

    >>> wishes(Rung(name="a", variants={"reranker": "int8"}, frugal=("generator",)))["generator"]
    Wish(variant='', frugal=True)
    """
    names = dict.fromkeys((*rung.variants, *rung.frugal))
    return {name: Wish(rung.variants.get(name, ""), name in rung.frugal) for name in names}
