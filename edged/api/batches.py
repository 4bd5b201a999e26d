"""Long lists of texts: cut into submissions that fit a slot, run in a small window, answered in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from edged.api.attendance import Attendance, outcome
from edged.api.endpoint import Request
from edged.api.gateway import Gateway, Terms
from edged.api.names import Operation, Route
from edged.dispatch.requests import Completed, Ticket
from edged.errors import DeadlineExceeded, Overloaded
from edged.messages import encode

MOST_TEXTS = 64
WINDOW = 2
SHORTEST_WAIT_S = 0.05
LONGEST_WAIT_S = 1.0
_FRAMING_BYTES = 8
"""What msgpack and the task around it may add to a text, at most."""


def cut(texts: Sequence[str], most_bytes: int) -> list[tuple[str, ...]]:
    """Cut into runs of at most `MOST_TEXTS` texts and about `most_bytes`; a longer text goes alone.

    >>> cut(["a" * 10, "b" * 10, "c"], 30)
    [('aaaaaaaaaa',), ('bbbbbbbbbb', 'c')]
    """
    runs: list[list[str]] = []
    size = most_bytes
    for text in texts:
        needed = len(text.encode()) + _FRAMING_BYTES
        if not runs or len(runs[-1]) == MOST_TEXTS or size + needed > most_bytes:
            runs.append([])
            size = 0
        runs[-1].append(text)
        size += needed
    return [tuple(run) for run in runs]


class Batches:
    """The submissions of one request: all succeed, or the first failure cancels the rest."""

    def __init__(self, gateway: Gateway, request: Request, route: Route, terms: Terms) -> None:
        self._gateway = gateway
        self._request = request
        self._route = route
        self._terms = terms
        self._until_s = asyncio.get_running_loop().time() + terms.deadline_s

    async def run(self, operation: Operation, tasks: Sequence[msgspec.Struct]) -> list[Completed]:
        """Answer every task, in order."""
        with Attendance(self._request, _nothing_more):
            first = await self._one(operation, tasks[0], patient=False)
            return [first, *await self._rest(operation, tasks[1:])]

    async def _rest(self, operation: Operation, tasks: Sequence[msgspec.Struct]) -> list[Completed]:
        window = asyncio.Semaphore(WINDOW)

        async def guarded(task: msgspec.Struct) -> Completed:
            async with window:
                return await self._one(operation, task, patient=True)

        try:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(guarded(task)) for task in tasks]
        except ExceptionGroup as errors:  # `except*` would raise a group here on Python 3.11.2
            raise errors.exceptions[0] from errors
        return [task.result() for task in running]

    async def _one(self, operation: Operation, task: msgspec.Struct, *, patient: bool) -> Completed:
        ticket = await self._submit(operation, encode(task), patient=patient)
        try:
            return await outcome(ticket)
        finally:
            ticket.cancel()

    async def _submit(self, operation: Operation, payload: bytes, *, patient: bool) -> Ticket:
        """Submit; once the first part was accepted, a full queue is waited for, and no prediction ends it."""
        firm = self._terms.firm and not patient
        while (remaining_s := self._until_s - asyncio.get_running_loop().time()) > 0:
            try:
                terms = msgspec.structs.replace(self._terms, deadline_s=remaining_s, firm=firm)
                return self._gateway.submit(
                    self._request, self._route, operation, payload, terms, continues=patient
                )
            except Overloaded as error:
                if not patient:
                    raise
                await asyncio.sleep(min(error.retry_after_s or SHORTEST_WAIT_S, LONGEST_WAIT_S, remaining_s))
        raise DeadlineExceeded("the deadline passed before every part of the request was answered")


def _nothing_more() -> None:
    """Every part cancels its own ticket."""


def merged(parts: Sequence[Completed]) -> Completed:
    """Add up the timings of all parts; there is no payload of the whole."""
    timings = tuple(timing for part in parts for timing in part.timings)
    return Completed(b"", timings, sum(part.resumed for part in parts))
