"""One reranker stage: its mode, what is learnt about it, what passing it by has saved and cost."""

from __future__ import annotations

from collections.abc import Iterable

from edged.bypass.calibration import SHIPPED_CURVE, Curve, Evidence, curve_of
from edged.bypass.store import Key, Learnt
from edged.config.tables import Bypass
from edged.dispatch.passing import Judged


class Learner:
    """Takes what came to its stage, a second's worth at a time."""

    def __init__(self, stored: Learnt | None) -> None:
        self.mode: Bypass | None = None
        """What the operator said; None: as configured."""
        self.lost_points = 0.0
        """Sum of what is expected to be lost by those that passed by."""
        self.key = stored.key if stored else Key(generation=0, reranker="", keep=0)
        self.evidence = stored.evidence if stored else Evidence()
        self.curve: Curve = curve_of(self.evidence)

    @property
    def learnt(self) -> Learnt:
        """What is worth storing."""
        return Learnt(self.key, self.evidence)

    def serve(self, reranker: str, keep: int) -> None:
        """Learn about this reranker from now on: what is known of another is not used."""
        if (reranker, keep) != (self.key.reranker, self.key.keep):
            self._begin(Key(generation=self.key.generation, reranker=reranker, keep=keep))

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
            self.curve = curve_of(self.evidence)
        return changed

    def _note(self, judged: Judged) -> None:
        if judged.generation != self.key.generation:
            key = Key(generation=judged.generation, reranker=self.key.reranker, keep=self.key.keep)
            self._begin(key)
        self.evidence.add(judged.margin, judged.missed)

    def _curve(self, generation: int) -> Curve:
        return self.curve if generation == self.key.generation else SHIPPED_CURVE

    def _begin(self, key: Key) -> None:
        self.key, self.evidence, self.curve = key, Evidence(), SHIPPED_CURVE
