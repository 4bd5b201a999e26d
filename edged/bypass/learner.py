"""One reranker stage: its mode, what is learnt about it, what passing it by has saved and cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from edged.bypass.calibration import UNMEASURED, Curve, Evidence, Worth, curve_of, shipped
from edged.bypass.store import Key, Learnt
from edged.config.tables import Bypass
from edged.dispatch.passing import Judged

MOST_KNOWN = 4
"""Rerankers of a stage of which something is remembered: the ladder takes another one and gives it back."""


class Learner:
    """Takes what came to its stage, a second's worth at a time."""

    def __init__(self, stored: Sequence[Learnt] = ()) -> None:
        self.mode: Bypass | None = None
        """What the operator said; None: as configured."""
        self.lost_points = 0.0
        """Sum of what is expected to be lost by those that passed by."""
        self._others = list(stored[:MOST_KNOWN])
        self._worth = UNMEASURED
        self._take_up(Learnt(Key(generation=0, embedder="", reranker=""), Evidence()))

    @property
    def learnt(self) -> list[Learnt]:
        """What is worth storing, what is in use first."""
        known = [Learnt(self.key, self.evidence), *self._others]
        return [each for each in known if each.evidence.observations][:MOST_KNOWN]

    def serve(self, embedder: str, reranker: str, worth: Worth) -> None:
        """Learn about these from now on, and go by what is known of them, not of others."""
        if (embedder, reranker) == (self.key.embedder, self.key.reranker):
            return
        self._others, self._worth = self.learnt, worth
        key = Key(generation=self.key.generation, embedder=embedder, reranker=reranker)
        pair = (embedder, reranker)
        same = [each for each in self._others if (each.key.embedder, each.key.reranker) == pair]
        if same:
            self._others.remove(same[0])
        self._take_up(same[0] if same else Learnt(key, Evidence()))

    @property
    def shipped(self) -> Curve:
        """What holds for what nothing was learnt about."""
        return shipped(self._worth)

    def take(self, judged: Iterable[Judged], variant: str) -> bool:
        """Learn from what came; words of workers with another variant do not count. Whether any counted."""
        changed = False
        for each in judged:
            if each.missed is None:
                self.lost_points += self._curve(each.generation).points(each.margin)
            if each.generation and (each.missed is None or each.variant == variant):
                changed = True
                self._note(each)
        if changed:
            self.curve = curve_of(self.evidence, self._worth)
        return changed

    def _note(self, judged: Judged) -> None:
        if judged.generation != self.key.generation:
            key = replace(self.key, generation=judged.generation)
            self._others = [each for each in self._others if each.key.generation == judged.generation]
            self._take_up(Learnt(key, Evidence()))
        self.evidence.add(judged.margin, judged.missed)

    def _curve(self, generation: int) -> Curve:
        return self.curve if generation == self.key.generation else self.shipped

    def _take_up(self, learnt: Learnt) -> None:
        self.key, self.evidence = learnt.key, learnt.evidence
        self.curve = curve_of(self.evidence, self._worth)
