"""What the governor has done since the daemon's start, counted: changes by cause, time on each rung. Pure."""

from __future__ import annotations

from collections import Counter


class Tally:
    """Counts for metrics; times are of one monotonic clock."""

    def __init__(self) -> None:
        self.changes: Counter[tuple[str, str]] = Counter()
        """By direction (`down`, `up`) and by the kind of signal, or the reason where there is none."""
        self.refused = 0
        self.since_s: float | None = None
        """When the rung in force was taken."""
        self._rung = ""
        self._spent_s: dict[str, float] = {}

    def on(self, rung: str, now: float) -> None:
        """From now on this rung is in force."""
        if rung != self._rung:
            if self.since_s is not None:
                self._spent_s = self.spent_s(now)
            self._rung, self.since_s = rung, now

    def spent_s(self, now: float) -> dict[str, float]:
        """Seconds on each rung that was in force."""
        if self.since_s is None:
            return {}
        before_s = self._spent_s.get(self._rung, 0.0)
        return self._spent_s | {self._rung: before_s + now - self.since_s}

    def by_direction(self) -> dict[str, dict[str, int]]:
        """The changes: by direction, then by cause."""
        found: dict[str, dict[str, int]] = {"down": {}, "up": {}}
        for (direction, cause), times in self.changes.items():
            found[direction][cause] = times
        return found
