"""Tokens of a stream that are told together, so that fast decoding does not wake everybody at each token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from edged.stages.contract import Broken, Finished, Progress

Event = Progress | Finished | Broken


class Coalescing:
    """Holds the progress of each answer back until `interval_s` after what was told of it last.

    The first tokens of an answer are told at once, and so are the last. A small model decodes in a few
    milliseconds; every message wakes the daemon, and whoever reads the stream, on the cores that it computes
    on.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._told_at: dict[int, float] = {}
        self._held: dict[int, Progress] = {}

    def pass_on(self, events: Iterable[Event], now: float) -> list[Event]:
        """What is to be told at `now`, in the order of each answer."""
        told: list[Event] = []
        for event in events:
            told += self._progress(event, now) if isinstance(event, Progress) else self._end(event)
        return [*told, *self._due(now)]

    def flush(self) -> list[Event]:
        """All that is held back: nothing will come for a while."""
        held = list(self._held.values())
        self._held.clear()
        return [*held]

    def forget(self, request: int) -> None:
        """Drop what is held of an answer that nobody waits for."""
        self._held.pop(request, None)
        self._told_at.pop(request, None)

    def _due(self, now: float) -> list[Event]:
        """What has been held back for an interval: its answer stands still."""
        due = [number for number in self._held if now >= self._told_at[number] + self._interval_s]
        self._told_at |= dict.fromkeys(due, now)
        return [self._held.pop(number) for number in due]

    def _progress(self, event: Progress, now: float) -> Iterator[Event]:
        held = self._held.pop(event.request, None)
        if held is not None:
            event = replace(held, tokens=held.tokens + event.tokens, text=held.text + event.text)
        if now < self._told_at.get(event.request, float("-inf")) + self._interval_s:
            self._held[event.request] = event
        else:
            self._told_at[event.request] = now
            yield event

    def _end(self, event: Finished | Broken) -> Iterator[Event]:
        held = self._held.get(event.request)
        self.forget(event.request)
        if held is not None:
            yield held
        yield event
