"""Independent runs side by side, on threads that live no longer than they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Result = TypeVar("Result")


class Lanes:
    """Calls a function on many things, side by side on as many threads as wanted; the caller's is one.

    >>> Lanes(2).each(len, ["a", "", "abc"])
    [1, 0, 3]
    """

    def __init__(self, most: int) -> None:
        self.most = self._open = most
        self._look: Callable[[], None] = lambda: None

    def limit(self, count: int) -> None:
        """Keep at most `count` lanes open, at least one; what is under way heeds it, too."""
        self._open = max(1, min(count, self.most))

    def attend(self, look: Callable[[], None]) -> None:
        """Call `look` before each thing that the caller's own thread takes: it may call `limit`."""
        self._look = look

    def each(self, function: Callable[[Given], Result], given: Sequence[Given]) -> list[Result]:
        """Call a function, which must be safe to call from several threads, on each of `given`; in order.

        A call that fails is raised.
        """
        results: dict[int, Result] = {}
        waiting = iter(range(len(given)))  # shared: whoever is free takes the next
        others: dict[int, Future[None]] = {}

        def work(lane: int) -> None:
            while lane < self._open and (number := next(waiting, None)) is not None:
                results[number] = function(given[number])

        with ThreadPoolExecutor(max(1, self.most - 1)) as threads:  # each begins when it is first needed
            for number in waiting:
                self._look()
                for lane in range(1, min(self._open, len(given) - number)):
                    if lane not in others or _left(others[lane]):
                        others[lane] = threads.submit(work, lane)
                results[number] = function(given[number])
            for other in others.values():
                other.result()
        return [results[number] for number in range(len(given))]


def _left(lane: Future[None]) -> bool:
    """Whether a lane was closed meanwhile; one that failed says so here."""
    return lane.done() and lane.result() is None
