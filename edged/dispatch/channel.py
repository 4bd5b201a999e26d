"""The client's end of an accepted request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from edged.dispatch.requests import Completed, Event, Rejected


class Channel:
    """A `Ticket`: events in order, exactly one terminal event last."""

    def __init__(self, request: int, left: Callable[[int], None]) -> None:
        self.request = request
        self._left = left
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._ended = False

    def put(self, event: Event) -> None:
        """Append an event; what comes after a terminal event is a bug."""
        assert not self._ended
        self._ended = isinstance(event, Completed | Rejected)
        self._events.append(event)
        self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield events until the terminal one; end without one after `cancel`."""
        while True:
            while self._events:
                event = self._events.popleft()
                yield event
                if isinstance(event, Completed | Rejected):
                    return
            if self._ended:
                return
            self._arrived.clear()
            await self._arrived.wait()

    def cancel(self) -> None:
        """Tell the dispatcher that nobody waits any more; harmless when it is over."""
        if not self._ended:
            self._ended = True
            self._events.clear()
            self._arrived.set()
            self._left(self.request)
