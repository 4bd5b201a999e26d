"""How much of the time something was at work: step functions and their integrals: pure."""

from __future__ import annotations

from collections import deque

WINDOW_S = 60.0


class Steps:
    """A number that changes now and then, and its integral over time.

    >>> steps = Steps(0.0)
    >>> steps.set(2, 1.0)
    >>> steps.area(3.0)
    4.0
    """

    __slots__ = ("_area", "_at", "value")

    def __init__(self, now: float) -> None:
        self.value = 0
        self._area = 0.0
        self._at = now

    def set(self, value: int, now: float) -> None:
        """From now on it is `value`."""
        self._area += self.value * (now - self._at)
        self.value, self._at = value, now

    def area(self, now: float) -> float:
        """The integral from the beginning until now."""
        return self._area + self.value * (now - self._at)


class Utilisation:
    """The share of the last `WINDOW_S` in which workers held work."""

    __slots__ = ("_samples", "busy")

    def __init__(self) -> None:
        self.busy = Steps(0.0)
        """How many workers hold work."""
        self._samples: deque[tuple[float, float]] = deque(maxlen=round(WINDOW_S) + 1)

    def sample(self, now: float) -> None:
        """Remember how things stand, once a second at most."""
        if not self._samples or now - self._samples[-1][0] >= 1.0:
            self._samples.append((now, self.busy.area(now)))

    def share(self, workers: int, now: float) -> float:
        """Of the last minute, or of the time since the first sample where that is less; 0..1."""
        within = [(at, area) for at, area in self._samples if at >= now - WINDOW_S]
        if not within or now <= within[0][0]:
            return 0.0
        at, area = within[0]
        return min(1.0, max(0.0, (self.busy.area(now) - area) / ((now - at) * max(workers, 1))))
