"""Waiting for an answer while the client may leave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from edged.api.endpoint import Request
from edged.dispatch.requests import Completed, Delta, Rejected, Ticket
from edged.errors import Cancelled

KEEP_ALIVE_S = 15.0


class Attendance:
    """Ends the handler inside it when the client goes away: its await raises `Cancelled`.

    `leave` is called whenever the handler ends early, for whatever reason. `beat` is called after each
    `KEEP_ALIVE_S` seconds.
    """

    def __init__(
        self, request: Request, leave: Callable[[], None], beat: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._request = request
        self._leave = leave
        self._beat = beat
        self._client_left = False

    def __enter__(self) -> Self:
        self._handler = asyncio.current_task()
        connection = self._request.connection if self._beat is None else None
        if connection is None:
            task = asyncio.create_task(self._watch())
            self._unwatch: Callable[[], object] = task.cancel
        else:  # a callback costs a tenth of a task
            self._unwatch = connection.on_lost(self._gone)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unwatch()
        if kind is None:
            return
        self._leave()
        if (
            self._client_left
            and kind is asyncio.CancelledError
            and self._handler
            and not self._handler.uncancel()
        ):
            raise Cancelled("the client left before the answer was complete") from error

    async def _watch(self) -> None:
        await self._disconnected()
        self._gone()

    def _gone(self) -> None:
        self._client_left = True
        if self._handler:
            self._handler.cancel()

    async def _disconnected(self) -> None:
        if self._beat is None:
            return await self._request.disconnected()
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    return await self._request.disconnected()
            except TimeoutError:
                await self._beat()


async def outcome(ticket: Ticket, on_delta: Callable[[], None] | None = None) -> Completed:
    """Wait for the terminal event: return the answer, or raise what the dispatcher refused with."""
    async for event in ticket:
        if isinstance(event, Completed):
            return event
        if isinstance(event, Rejected):
            raise event.error
        if on_delta is not None and isinstance(event, Delta):
            on_delta()
            on_delta = None
    raise RuntimeError("a ticket ended without a terminal event")
