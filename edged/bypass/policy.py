"""Which requests pass a reranker by, by the operator's mode and the rung in force: pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from edged.bypass.calibration import Curve
from edged.config.tables import Bypass, Rung
from edged.dispatch.passing import Rule
from edged.stages.options import KEEP, MOST_KEEP

SAMPLE_EVERY = 16
"""Of the questions whose margin lets them pass, one in so many is reranked, so that it is noticed when the
documents or the questions change: 6 % of the saving."""
LEARNING_EVERY = 4
"""The same until there is enough to go by."""


class Choice(msgspec.Struct, frozen=True):
    """What passes by, and whose wish that is."""

    passing: str
    """`nothing`, `benefit` or `everything`."""
    why: str


def choice_of(mode: Bypass, rung: str, settings: Rung) -> Choice:
    """What a mode means on the rung in force.

    >>> choice_of("auto", "full", Rung(name="full")).passing
    'nothing'
    >>> choice_of("benefit", "no-rerank", Rung(name="no-rerank", bypass_rerank=True)).passing
    'everything'
    """
    if mode in {"off", "always"}:
        return Choice("nothing" if mode == "off" else "everything", f"the mode is {mode!r}")
    if settings.bypass_rerank:
        return Choice("everything", f"rung {rung!r}")
    if mode == "benefit":
        return Choice("benefit", "the mode is 'benefit'")
    if settings.bypass_benefit:
        return Choice("benefit", f"rung {rung!r}")
    return Choice("nothing", f"rung {rung!r} asks for none")


def rule_of(passing: str, curve: Curve, shipped: Curve, generation: int, keep: int) -> Rule | None:
    """What the dispatcher is told; what was learnt holds for `generation` of the library only."""
    if passing == "nothing":
        return None
    if passing == "everything":
        return Rule(keep=keep, everything=True)
    return Rule(
        keep=keep,
        from_margin=shipped.from_margin,
        own_from_margin=curve.from_margin,
        own_generation=generation if curve.own else 0,
        sample_every=SAMPLE_EVERY if curve.own else LEARNING_EVERY,
    )


def keep_of(options: Mapping[str, Any]) -> int:
    """How many passages a reranker with these options keeps; the default where its worker refuses them.

    >>> keep_of({"keep": 3}), keep_of({}), keep_of({"keep": "all"})
    (3, 4, 4)
    """
    keep = options.get("keep", KEEP)
    return keep if type(keep) is int and 1 <= keep <= MOST_KEEP else KEEP
