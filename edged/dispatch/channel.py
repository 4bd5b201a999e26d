"""The client's end of an accepted request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

from edged.dispatch.requests import Completed, Event, Rejected

_TERMINAL = (Completed, Rejected)


class Channel:
    """A `Ticket`: events in order, exactly one terminal event last.

    An iterator and no generator: the loop closes a generator that is left early with a task of its own.
    """

    def __init__(self, request: int, left: Callable[[int], None]) -> None:
        self.request = request
        self._left = left
        self._events: deque[Event] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._ended = False

    def put(self, event: Event) -> None:
        """Append an event; what comes after a terminal event is a bug."""
        assert not self._ended
        self._ended = isinstance(event, _TERMINAL)
        self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event; the terminal one is the last, and after `cancel` there is none."""
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        return self._events.popleft()

    def cancel(self) -> None:
        """Tell the dispatcher that nobody waits any more; harmless when it is over."""
        if not self._ended:
            self._ended = True
            self._events.clear()
            self._wake()
            self._left(self.request)
