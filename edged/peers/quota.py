"""How much one peer may ask of this node: pure."""

from __future__ import annotations

from dataclasses import dataclass

BURST_S = 2.0
"""A peer may send at once what it may send in so much time."""
MESSAGE_BYTES = 2048
"""What reading a message costs beside its bytes, as bytes."""
READ_AT_ONCE = 64
"""Messages of one connection that are read before the dispatcher has its turn again."""
ANSWERS_BYTES_PER_S = 8 << 20
"""What a peer may always say in answer: some 4000 tokens a second, each in a message of its own."""


@dataclass(slots=True)
class Bucket:
    """Bytes that flow in at a rate; whoever takes more than there is, is refused.

    >>> bucket = Bucket(per_s=1000.0)
    >>> bucket.take(1500, 0.0), bucket.take(1500, 0.0), bucket.take(1500, 1.5)
    (True, False, True)
    """

    per_s: float
    level: float = 0.0
    at: float | None = None

    def take(self, amount: float, now: float) -> bool:
        """Whether there was so much."""
        gained = BURST_S * self.per_s if self.at is None else self.per_s * (now - self.at)
        self.level, self.at = min(BURST_S * self.per_s, self.level + gained), now
        if amount > self.level:
            return False
        self.level -= amount
        return True
