"""A circuit breaker: after failures in a row nobody asks for a while, then one asks to see. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

State = Literal["closed", "open", "half-open"]


class Breaker(msgspec.Struct):
    """Counts failures in a row; every time is a monotonic one of the caller's, in seconds."""

    failures_to_open: int
    first_wait_s: float
    longest_wait_s: float
    state: State = "closed"
    failures: int = 0
    """In a row: no answer was complete between them."""
    reason: str = ""
    """The last failure, as a sentence."""
    _waits: int = 0
    _until_s: float = 0.0

    def refusal_s(self, now_s: float) -> float:
        """Seconds after which a request may be tried; 0 when it may now. Says nothing of the probe."""
        if self.state == "open":
            return max(0.0, self._until_s - now_s)
        return self.first_wait_s if self.state == "half-open" else 0.0

    def begin(self, now_s: float) -> bool:
        """Whether a request may go out now: the first one behind the wait is the probe, alone."""
        if self.refusal_s(now_s) > 0:
            return False
        if self.state == "open":
            self.state = "half-open"
        return True

    def heard(self) -> bool:
        """The probe has an answer coming; returns whether that closed the breaker.

        The next failure opens it again, for longer, until one answer was complete.
        """
        if self.state != "half-open":
            return False
        self.state, self.failures = "closed", self.failures_to_open - 1
        return True

    def completed(self) -> None:
        """A whole answer came. While the breaker is open that says nothing: the answer began before."""
        if self.state == "closed":
            self.failures, self._waits, self.reason = 0, 0, ""

    def failed(self, now_s: float, reason: str, at_least_s: float = 0.0) -> bool:
        """The server failed, and may have said how long to wait; returns whether that opened the breaker."""
        self.failures += 1
        self.reason = reason
        if self.state == "closed" and self.failures < self.failures_to_open and not at_least_s:
            return False
        was_open = self.state == "open"
        if was_open:  # an answer that had begun before it opened: nothing new
            self._until_s = max(self._until_s, now_s + at_least_s)
            return False
        wait_s = min(self.longest_wait_s, self.first_wait_s * 2**self._waits)
        self.state, self._waits = "open", min(self._waits + 1, 30)
        self._until_s = now_s + max(wait_s, min(at_least_s, self.longest_wait_s))
        return True

    def reset(self) -> None:
        """Somebody says that the server is mended: nothing is held against it."""
        self.state, self.failures, self._waits, self.reason = "closed", 0, 0, ""

    def abandoned(self) -> None:
        """A probe was given up before it told anything: the next request probes."""
        if self.state == "half-open":
            self.state = "open"
