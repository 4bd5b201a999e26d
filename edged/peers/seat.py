"""A peer's place as a worker of one stage: what it holds, and since when nothing came of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from edged.dispatch.peer import NOTHING, Offer
from edged.messages import Work

FIRST_TOKEN = 4.0
"""A first token takes longer than the next: it may take so many times as long."""


MOST_QUESTIONS = 64
"""Far more than go unanswered before a peer is gone."""
CHARACTERS_A_TOKEN = 256
"""More than the longest token of any known vocabulary decodes to."""
CHARACTERS_BESIDE = 4096
"""Of sentences that no model made: that nothing was found, a note."""


@dataclass(slots=True)
class Held:
    """An answer that the peer makes."""

    work: Work
    moved_at: float
    most_tokens: int
    """Of the whole answer, with what was known when it was handed over."""
    tokens: int = 0
    characters: int = 0
    begun: bool = False
    dropped_at: float | None = None
    """When the peer was told that nobody waits for it; None: somebody does."""

    def hear(self, tokens: int, characters: int, now: float) -> bool:
        """Count what it said; False where no such answer was asked for."""
        self.tokens += tokens
        self.characters += characters
        if tokens:
            self.moved_at, self.begun = now, True
        too_many = tokens > 0 and self.tokens > self.most_tokens
        return not too_many and self.characters <= CHARACTERS_BESIDE + CHARACTERS_A_TOKEN * self.tokens

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
    answer_tokens: int = 0
    """See `Kin`."""
    offer: Offer = NOTHING
    held: dict[tuple[int, int], Held] = field(default_factory=dict)
    """By request and attempt."""
    _handed: int = 0
    _marks: dict[int, int] = field(default_factory=dict)

    def hand(self, work: Work, most_tokens: int, now: float) -> None:
        """Note what it was sent, and how long its answer may be."""
        self._handed += 1
        known, characters = len(work.resume_tokens), work.resume_characters
        self.held[work.request, work.attempt] = Held(work, now, most_tokens, known, characters)

    def mark(self, nonce: int) -> None:
        """Remember what it had been sent when it was asked this."""
        self._marks[nonce] = self._handed
        while len(self._marks) > MOST_QUESTIONS:
            del self._marks[next(iter(self._marks))]

    def since(self, nonce: int) -> int:
        """How many it was sent after that question, and what it offers does not know of."""
        mark = self._marks.get(nonce, self._handed)
        self._marks = {number: handed for number, handed in self._marks.items() if number > nonce}
        return self._handed - mark
