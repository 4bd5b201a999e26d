"""A peer's place as a worker of one stage: what it holds, and since when nothing came of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from edged.dispatch.peer import NOTHING, Offer
from edged.messages import Work

FIRST_TOKEN = 4.0
"""A first token takes longer than the next: it may take so many times as long."""


@dataclass(slots=True)
class Held:
    """An answer that the peer makes."""

    work: Work
    moved_at: float
    begun: bool = False
    dropped_at: float | None = None
    """When the peer was told that nobody waits for it; None: somebody does."""

    def move(self, now: float) -> None:
        """A token came."""
        self.moved_at, self.begun = now, True

    def drop(self, now: float) -> None:
        """Nobody waits for it any more."""
        # Once only: who sends more words instead of letting go would never be found out.
        self.dropped_at = now if self.dropped_at is None else self.dropped_at

    def stalled(self, now: float, stall_s: float) -> bool:
        """Whether nothing came of it, or it was not let go, for too long."""
        if self.dropped_at is not None:
            return now - self.dropped_at > stall_s
        return now - self.moved_at > stall_s * (1.0 if self.begun else FIRST_TOKEN)


@dataclass(slots=True)
class Seat:
    """The peer as one worker."""

    identity: str
    grant: int
    worker: str = ""
    """Its name in the ledger."""
    offer: Offer = NOTHING
    held: dict[tuple[int, int], Held] = field(default_factory=dict)
    """By request and attempt."""
    _handed: int = 0
    _marks: dict[int, int] = field(default_factory=dict)

    def hand(self, work: Work, now: float) -> None:
        """Note what it was sent."""
        self._handed += 1
        self.held[work.request, work.attempt] = Held(work, now)

    def mark(self, nonce: int) -> None:
        """Remember what it had been sent when it was asked this."""
        self._marks[nonce] = self._handed

    def since(self, nonce: int) -> int:
        """How many it was sent after that question, and what it offers does not know of."""
        mark = self._marks.get(nonce, self._handed)
        self._marks = {number: handed for number, handed in self._marks.items() if number > nonce}
        return self._handed - mark
