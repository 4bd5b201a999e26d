"""The queue in front of a stage: interactive before batch, earliest deadline first inside a class: pure.

Batch work does not starve: while it waits, at most `BATCH_EVERY` - 1 interactive items in a row go before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Protocol

from edged.messages import Priority

BATCH_EVERY = 8
"""Of so many items that a stage is given while batch work waits, one at least is batch work."""


SLACK = 64
"""Entries of the heap that may belong to nobody any more, beside as many as wait, before it is cleaned."""


class Waiting(Protocol):
    """What a queue reads of a request; `deadline` may not change while it waits."""

    id: int
    deadline: float
    priority: Priority
    queued_at: float


class Line:
    """One class: a heap by deadline, then by acceptance; who left from the middle is skipped on surfacing.

    A request that comes back (its worker died) has the deadline and the number that it had: its old place.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._since: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def __iter__(self) -> Iterator[int]:
        """Request ids, first to be served first."""
        return iter(dict.fromkeys(number for _, number in sorted(self._heap) if number in self._since))

    def put(self, request: Waiting) -> None:
        """Join at the place that the deadline gives."""
        heappush(self._heap, (request.deadline, request.id))
        self._since[request.id] = request.queued_at

    def first(self) -> int | None:
        """Who is served next."""
        while self._heap:
            number = self._heap[0][1]
            if number in self._since:
                return number
            heappop(self._heap)
        return None

    def drop(self, number: int) -> bool:
        """Leave from any place; False when it did not wait here."""
        left = self._since.pop(number, None) is not None
        if not self._since:
            self._heap.clear()
        elif len(self._heap) > 2 * len(self._since) + SLACK:
            self._heap = [entry for entry in self._heap if entry[1] in self._since]
            heapify(self._heap)
        return left

    def oldest(self) -> float:
        """Since when the one that has waited longest waits."""
        return min(self._since.values(), default=float("inf"))


class StageQueue:
    """Both classes; `first` and `drop` keep the promise that batch work is served once in `BATCH_EVERY`.

    >>> from edged.dispatch.ledger import Request
    >>> from edged.messages import SlotRef
    >>> queue = StageQueue()
    >>> for number, deadline in ((1, 9.0), (2, 5.0)):
    ...     queue.put(Request(number, ("s",), "chat", SlotRef(0, 0, 1), deadline, accepted_at=0.0))
    >>> list(queue)
    [2, 1]
    """

    def __init__(self) -> None:
        self._interactive = Line()
        self._batch = Line()
        self._passed = 0
        """Interactive items served since batch work was, while some waited."""

    def __len__(self) -> int:
        return len(self._interactive) + len(self._batch)

    def __iter__(self) -> Iterator[int]:
        """Request ids: interactive, then batch; whose turn it is, `first` says."""
        yield from self._interactive
        yield from self._batch

    def line(self, priority: Priority) -> Line:
        """The queue of one class."""
        return self._interactive if priority == "interactive" else self._batch

    def put(self, request: Waiting) -> None:
        """Queue a request, or put one back where it was."""
        self.line(request.priority).put(request)

    def first(self, *, batch: bool = True) -> int | None:
        """Who is served next; without `batch`, the first of the interactive ones, if any."""
        urgent = self._interactive.first()
        if not batch or not self._batch:
            return urgent
        if urgent is None or self._passed >= BATCH_EVERY - 1:
            return self._batch.first()
        return urgent

    def take(self, number: int) -> None:
        """Serve one that waits, and remember whose turn it was."""
        if self._batch.drop(number) or not self._batch:
            self._passed = 0
        else:
            self._passed += 1
        self._interactive.drop(number)

    def remove(self, number: int) -> None:
        """Take out one that ended before it was served."""
        if not self._interactive.drop(number):
            self._batch.drop(number)

    def oldest(self) -> float:
        """Since when the one that has waited longest waits; infinite when nobody does."""
        return min(self._interactive.oldest(), self._batch.oldest())

    def counts(self) -> dict[str, int]:
        """How many wait, by class."""
        return {"interactive": len(self._interactive), "batch": len(self._batch)}
