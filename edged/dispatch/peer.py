"""What the ledger knows of a peer that works for a stage, and of the wish to use it: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from edged.messages import Credit, Seconds

Pace = Annotated[float, msgspec.Meta(ge=0, le=1e9)]

SMOOTHING = 0.3
PEER = "peer:"
"""How the device of a worker that is a peer begins; its name follows."""


class Offer(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """How a peer could serve one more answer of one model now."""

    identity: Annotated[str, msgspec.Meta(max_length=128)]
    """Of the model, as `peers.identity` makes it: where two are equal, token ids mean the same."""
    grant: Credit
    """Most answers that it makes for us at a time."""
    free: Credit
    """Sequences that it would start at once."""
    wait_s: Seconds
    """Until one more would start."""
    service_s: Seconds
    """Its mean for an answer; 0 while it has made none."""
    tokens_per_s: Pace
    """Of one answer, on average; 0 while it has made none."""
    most_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
    """Longest task that its slots hold."""
    hot: bool
    """It hands work away itself, or sheds it: nothing may go there."""


NOTHING = Offer("", 0, 0, 0.0, 0.0, 0.0, 0, hot=True)


@dataclass(slots=True)
class Remote:
    """A worker that is a peer."""

    peer: str
    offer: Offer = NOTHING
    rtt_s: float = 0.0
    same: bool = True
    """It serves what the stage serves itself: answers that have begun go on there too."""
    balance: int = 0
    """Answers that ended less those that were handed over since the offer was asked for."""
    handed: int = 0
    finished: int = 0
    service_s: float = 0.0
    """Smoothed seconds from hand-over to result, as seen from here."""

    @property
    def free(self) -> int:
        """Sequences that it would start at once, by its last offer and what has happened since."""
        return 0 if self.offer.hot else max(0, self.offer.free + self.balance)

    def served(self, seconds: float) -> None:
        """Learn from an answer that it finished."""
        weight = SMOOTHING if self.finished else 1.0
        self.service_s += weight * (seconds - self.service_s)
        self.finished += 1


@dataclass(slots=True)
class Pressure:
    """What the governor wants of peers."""

    away: bool = False
    """New answers are to be made elsewhere, whether there is room here or not."""
    urgent: bool = False
    """Also those that have begun."""
