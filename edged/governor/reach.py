"""Which rungs can be taken here, and why others can not: pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edged.config.tables import Config, Rung

NOTHING = Rung(name="nothing")
"""What a rung does where nothing is said."""
DOES = tuple(name for name in Rung.__struct_fields__ if name not in {"name", "cost", "quality"})
"""Fields of `Rung` that say what it does."""
NEEDS = {
    "candidates": "retriever",
    "keep": "retriever",
    "answer_tokens": "generator",
    "bypass_benefit": "reranker",
    "bypass_rerank": "reranker",
}
"""Kind of the stage without which this changes nothing."""


def unbuilt(config: Config) -> dict[str, str]:
    """By what a rung does: why it would change nothing with the configured stages."""
    kinds = {stage.kind for stage in config.stages.values() if stage.workers != 0}
    return {what: f"there is no {kind}" for what, kind in NEEDS.items() if kind not in kinds}


def lacking(rung: Rung, missing: Mapping[str, str]) -> str:
    """Why a rung cannot be taken: nothing of what it does can be done, for these reasons; empty if it can.

    >>> lacking(Rung(name="peer", peer=True), {"peer": "no peer answers"})
    'no peer answers'
    >>> lacking(Rung(name="both", peer=True, keep=2), {"peer": "no peer answers"})
    ''
    """
    reasons = [missing.get(what, "") for what in _does(rung)]
    return "; ".join(dict.fromkeys(reasons)) if reasons and all(reasons) else ""


def _does(rung: Rung) -> Iterator[str]:
    return (what for what in DOES if getattr(rung, what) != getattr(NOTHING, what))


def only_swaps(rung: Rung) -> bool:
    """Whether nothing is left of a rung whose stages go on running as planned.

    >>> only_swaps(Rung(name="light", variants={"generator": "lighter"}, frugal=("generator",)))
    True
    >>> only_swaps(Rung(name="full"))
    False
    """
    does = {*_does(rung)}
    return bool(does) and does <= {"variants", "frugal"}
