"""One request of a load run, as the client saw it: plain data."""

from __future__ import annotations

import msgspec

from edged.replies import Timing


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """A request from the moment it was due to its end; times are seconds since the run began."""

    due_s: float
    """When it should have been sent; later sending is waiting too (no coordinated omission)."""
    end_s: float
    first_s: float | None = None
    """When its first text came; None for a request that failed before."""
    tokens: int = 0
    gaps_s: tuple[float, ...] = ()
    """Between one piece of text and the next."""
    timings: tuple[Timing, ...] = ()
    error: str = ""
    """Code of the error that ended it; empty when it was answered."""

    @property
    def latency_s(self) -> float:
        """From due to end."""
        return self.end_s - self.due_s
