"""Independent runs side by side, on threads that live no longer than they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Result = TypeVar("Result")


def side_by_side(function: Callable[[Given], Result], given: Sequence[Given], lanes: int) -> list[Result]:
    """Call a function, which must be safe to call from several threads, on each of `given`; results in order.

    At most `lanes` calls go on at once, the caller's thread being one of them; a call that fails is raised.

    >>> side_by_side(len, ["a", "", "abc"], 2)
    [1, 0, 3]
    """
    lanes = min(lanes, len(given))
    if lanes <= 1:
        return [function(each) for each in given]
    results: dict[int, Result] = {}
    waiting = iter(range(len(given)))  # shared: whoever is free takes the next

    def lane() -> None:
        for number in waiting:
            results[number] = function(given[number])

    with ThreadPoolExecutor(lanes - 1) as threads:
        others = [threads.submit(lane) for _ in range(lanes - 1)]
        lane()
        for other in others:
            other.result()
    return [results[number] for number in range(len(given))]
