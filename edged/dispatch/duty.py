"""Work in a share of the time only: a budget of working seconds, pure.

Working takes from the budget, time gives to it. Once it is spent, nothing is worked on until there is enough
for the next spell; spells and rests add up to `PERIOD_S`. A batch that nothing can interrupt leaves a debt,
and the next rest is longer by it, so that the share holds however long batches are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PERIOD_S = 1.0
"""Streams stand still for less than this at a time."""
MOST_DEBT_S = 10.0
"""No rest is longer than what pays this back."""


@dataclass(slots=True)
class Duty:
    """What the dispatcher knows about rests; part of the ledger."""

    share: float = 1.0
    """Of the time, 0..1; 1: no rests."""
    working: bool = False
    """Whether anything is worked on from `at_s` on."""
    at_s: float = 0.0
    budget_s: float = 0.0
    resting: bool = False
    paused: set[str] = field(default_factory=set)
    """Workers that were told to rest and whose cores nobody else shares out."""

    def look(self, now: float) -> None:
        """Account for the time since the last look."""
        elapsed_s, self.at_s = max(0.0, now - self.at_s), now
        if self.share >= 1.0:
            self.budget_s, self.resting = 0.0, False
            return
        gain_s = (self.share - self.working) * elapsed_s
        self.budget_s = max(-MOST_DEBT_S, min(self._enough_s, self.budget_s + gain_s))
        self.resting = self.budget_s < self._enough_s - 1e-9 if self.resting else self.budget_s <= 0.0

    @property
    def _enough_s(self) -> float:
        """Of a budget, for a spell of `share * PERIOD_S`, during which it also grows."""
        return PERIOD_S * self.share * (1.0 - self.share)

    def due_s(self) -> float | None:
        """When a rest ends, or the spell at work; None where no end is in sight."""
        if self.share >= 1.0:
            return None
        if self.resting:
            return self.at_s + (self._enough_s - self.budget_s) / self.share
        return self.at_s + self.budget_s / (1.0 - self.share) if self.working else None
