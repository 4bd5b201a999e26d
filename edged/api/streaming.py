"""A chat answer as server-sent events."""

from __future__ import annotations

import asyncio
from functools import cached_property

import msgspec
from msgspec import UNSET

from edged.api.answers import Ending, ending_of
from edged.api.attendance import Attendance
from edged.api.endpoint import Request
from edged.api.errors import encode_error
from edged.api.metrics import Stopwatch
from edged.api.openai import ChatChunk, ChunkChoice, Delta, EdgedInfo, Usage
from edged.dispatch import requests
from edged.errors import EdgedError

_EVENT_STREAM = b"text/event-stream; charset=utf-8"
_DONE = b"data: [DONE]\n\n"
_COMMENT = b": keep-alive\n\n"
_encoder = msgspec.json.Encoder()


class ChatStream:
    """Sends a ticket's events to one client, in order, and ends the ticket when the client leaves.

    Nothing is sent before the first event, so a request that fails at once still gets its status; after
    `KEEP_ALIVE_S` of silence the head and comments go out to keep the connection alive.
    """

    def __init__(
        self,
        request: Request,
        ticket: requests.Ticket,
        model: str,
        watch: Stopwatch,
        *,
        plan: bytes,
        rung: str,
        usage: bool,
    ) -> None:
        self._request = request
        self._ticket = ticket
        self._watch = watch
        self._plan = plan
        self._rung = rung
        self._usage = usage
        self._node = ""
        self._quiet = True
        self._opened = False
        self._opening = asyncio.Lock()
        self._id = f"chatcmpl-{request.id}"
        self._model = model

    async def run(self) -> None:
        """Send everything; raises the refusal when nothing has been sent yet."""
        try:
            with Attendance(self._request, self._ticket.cancel, self._beat):
                async for event in self._ticket:
                    await self._send(event)
                    if isinstance(event, requests.Completed):
                        break
        except EdgedError as error:
            await self._fail(error)

    async def _send(self, event: requests.Event) -> None:
        if isinstance(event, requests.Delta):
            self._watch.first_token()
            self._node = event.node
            if event.text:
                await self._emit(self._text(event.text), more=True)
        elif isinstance(event, requests.Completed):
            await self._finish(event, ending_of(event, self._request.id, self._rung))
        else:
            raise event.error

    async def _finish(self, completed: requests.Completed, ending: Ending) -> None:
        self._watch.completed(completed, ending.usage.prompt_tokens, ending.usage.completion_tokens)
        last = Delta(citations=ending.citations, passages=ending.passages)
        events = [self._event(last, finish=ending.answer.finish, edged=ending.edged)]
        if self._usage:
            events.append(self._chunk((), usage=ending.usage))
        await self._emit(b"".join([*events, _DONE]), more=False)

    async def _fail(self, error: EdgedError) -> None:
        if not self._request.started:
            raise error
        self._watch.failed(error.code)
        await self._emit(b"data: " + encode_error(error) + b"\n\n", more=False)

    async def _emit(self, data: bytes, *, more: bool) -> None:
        """Send events; before the first of them, the head and the chunk that names the role."""
        self._quiet = False
        if not self._opened:
            data = await self._open() + data
        await self._request.write(data, more=more)

    async def _open(self) -> bytes:
        async with self._opening:
            if self._opened:
                return b""
            headers = [
                (b"cache-control", b"no-cache"),
                (b"x-edged-plan", self._plan),
                (b"x-edged-rung", self._rung.encode()),
                *([(b"x-edged-node", self._node.encode())] if self._node else []),
            ]
            await self._request.start(200, _EVENT_STREAM, headers)
            self._opened = True
            return self._event(Delta(role="assistant", content=""))

    def _text(self, text: str) -> bytes:
        """An event of new text: all but the text is the same in each, and is encoded once."""
        before, after = self._frame
        return before + _encoder.encode(text) + after

    @cached_property
    def _frame(self) -> tuple[bytes, bytes]:
        before, _, after = self._event(Delta(content="")).rpartition(b'""')
        return before, after

    def _event(
        self, delta: Delta, *, finish: str | None = None, edged: EdgedInfo | msgspec.UnsetType = UNSET
    ) -> bytes:
        usage = None if self._usage else UNSET
        return self._chunk((ChunkChoice(delta=delta, finish_reason=finish),), usage=usage, edged=edged)

    def _chunk(
        self,
        choices: tuple[ChunkChoice, ...],
        *,
        usage: Usage | msgspec.UnsetType | None,
        edged: EdgedInfo | msgspec.UnsetType = UNSET,
    ) -> bytes:
        chunk = ChatChunk(
            id=self._id,
            created=self._watch.created,
            model=self._model,
            choices=choices,
            usage=usage,
            edged=edged,
        )
        return b"data: " + _encoder.encode(chunk) + b"\n\n"

    async def _beat(self) -> None:
        """Break a long silence."""
        if self._quiet:
            await self._emit(_COMMENT, more=True)
        self._quiet = True
