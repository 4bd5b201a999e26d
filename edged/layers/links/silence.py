"""Whether the other side of a link is still there, by questions and answers. Pure: told the time."""

from __future__ import annotations

QUESTIONS = 4
"""Asked in the time that a silence may last."""


class Silence:
    """Counts from the first question that nobody has answered, and never through a sleep of its own."""

    def __init__(self, silence_s: float, now_s: float) -> None:
        self.silence_s = silence_s
        self._every_s = silence_s / QUESTIONS
        self._asked_s = self._looked_s = now_s
        self._open_s: float | None = None

    def heard(self) -> None:
        """Anything has come."""
        self._open_s = None

    def ask(self, now_s: float) -> bool:
        """Whether to ask now."""
        if now_s - self._looked_s > self.silence_s / 2 and self._open_s is not None:
            self._open_s = now_s  # this process stood still, not the other
        self._looked_s = now_s
        if now_s - self._asked_s < self._every_s:
            return False
        self._asked_s = now_s
        self._open_s = now_s if self._open_s is None else self._open_s
        return True

    def lost(self, now_s: float) -> bool:
        """Whether a question has been open for too long."""
        return self._open_s is not None and now_s - self._open_s > self.silence_s

    @property
    def tick_s(self) -> float:
        """How long its owner may sleep at a time."""
        return self._every_s / 2
