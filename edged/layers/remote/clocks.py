"""Times of another machine's monotonic clock as times of this one. Pure."""

from __future__ import annotations

import math

from msgspec.structs import replace

from edged.layers.wire import Timing


class Clock:
    """Learns the difference from when jobs went there and came back: right to half of a round trip.

    A job cannot have begun there before it was sent from here, nor ended after it was back: two bounds, of
    which the midpoint is taken. Clocks that drift let the bounds cross after a while; then it learns anew.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._least, self._most = -math.inf, math.inf

    def here(self, timing: Timing, sent_s: float, received_s: float) -> Timing:
        """Return a stage's timing by this machine's clock."""
        least, most = sent_s - timing.began_s, received_s - timing.ended_s
        if max(least, self._least) > min(most, self._most):
            self._forget()
        self._least, self._most = max(least, self._least), min(most, self._most)
        ahead_s = (self._least + self._most) / 2
        return replace(
            timing,
            waited_from_s=timing.waited_from_s + ahead_s,
            began_s=timing.began_s + ahead_s,
            ended_s=timing.ended_s + ahead_s,
        )
