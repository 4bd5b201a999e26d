"""One answer of a server, from the first request to its end, over failures that it survives."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from edged.backend import Finish, TokenEvent, Usage
from edged.breaker import Breaker
from edged.errors import BadRequest, EdgedError, StageUnavailable, Upstream
from edged_backends.openai_errors import Refused
from edged_backends.openai_http import Server
from edged_backends.openai_request import Dialect, Repetition, request_for
from edged_backends.openai_stream import Said, shown
from edged_backends.openai_vocabulary import Asked, answer_tokens

AHEAD = 32
"""Pieces that an answer may be ahead of its reader; then the connection is not read, and the server waits."""
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
_FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length", "max_tokens": "length"}
logger = logging.getLogger("edged.openai")


class Task(msgspec.Struct, frozen=True):
    """What a sequence was admitted with."""

    sequence: int
    asked: Asked
    fields: dict[str, Any]
    """Sampling in the server's words, and the model."""
    max_tokens: int
    """Of ours, may follow behind what is known."""

    @property
    def limit(self) -> int:
        """Of the server's tokens, may be in the whole answer."""
        return self.asked.known + self.max_tokens


class Ending(msgspec.Struct):
    """How the server ended an answer, as far as it has said."""

    finish: str = ""
    usage: Usage | None = None
    cached_tokens: int = 0


class Conversation:
    """A sequence: what it said so far, and the events that nobody has taken yet."""

    def __init__(self, task: Task, server: Server, dialect: Dialect, breaker: Breaker) -> None:
        self.task = task
        self.probing = breaker.state == "half-open"
        self.events: asyncio.Queue[TokenEvent] = asyncio.Queue(AHEAD)
        self.ending = Ending()
        self._server, self._dialect, self._breaker = server, dialect, breaker
        self._said = task.asked.text if task.asked.turns else ""
        self._spent = task.asked.spent
        """Of the server's tokens, on the answer so far."""

    async def run(self, tries: int, news: Callable[[], None]) -> None:
        """Ask until the answer is complete, `tries` times at most; the last event says how it ended."""
        tried = 0
        while (error := await self._try(news)) is not None:
            pause_s = max(FIRST_PAUSE_S * 2**tried, error.retry_after_s or 0.0)
            tried += 1
            if tried >= tries or not error.retryable or not await self._again_after(pause_s):
                event = TokenEvent(self.task.sequence, finish="error", error=error.message, code=error.code)
                await self._tell(event, news)
                return
        finish = _FINISHES[self.ending.finish]
        await self._tell(TokenEvent(self.task.sequence, finish=finish, usage=self.ending.usage), news)

    async def _try(self, news: Callable[[], None]) -> EdgedError | None:
        try:
            await self._ask(news)
        except EdgedError as error:
            self._note(error)
            return error
        return None

    async def _again_after(self, pause_s: float) -> bool:
        if pause_s > LONGEST_PAUSE_S:
            return False
        await asyncio.sleep(pause_s)
        allowed = self._breaker.begin(time.monotonic())
        self.probing = allowed and self._breaker.state == "half-open"
        return allowed

    async def _ask(self, news: Callable[[], None]) -> None:
        task = self.task
        request = request_for(task.asked, self._said, max(1, task.limit - self._spent), self._dialect)
        continued = self._spent
        if request.repeated:
            request.body["max_tokens"], continued = task.limit, 0
        repetition = Repetition(request.repeated)
        self.ending = Ending()
        stream = self._server.stream(request.path, task.fields | request.body)
        try:
            async for said in stream:
                self._heard()
                await self._take(said, repetition, continued, news)
                if said.done:
                    break
        except EdgedError:
            if not self.ending.finish:  # an answer that is complete needs no further word
                raise
        finally:
            await stream.aclose()
        self._check_end(repetition)
        self._breaker.completed()

    async def _take(
        self, said: Said, repetition: Repetition, continued: int, news: Callable[[], None]
    ) -> None:
        if said.error:
            raise StageUnavailable(f"{self._server.name} failed in mid-answer: {said.error}")
        fresh = repetition.push(said.text)
        if fresh is None:
            raise _diverged(self._server.name)
        self._said += fresh
        inside = len(fresh) < len(said.text)
        self._spent += bool(fresh) and not inside
        for token in answer_tokens(fresh, inside=inside):
            await self._tell(TokenEvent(self.task.sequence, (token,)), news)
        self.ending.finish = said.finish or self.ending.finish
        if said.completion_tokens >= 0:
            prompt_tokens = max(0, said.prompt_tokens - continued)
            self.ending.usage = Usage(prompt_tokens, said.completion_tokens + continued)
            self.ending.cached_tokens = said.cached_tokens

    def _check_end(self, repetition: Repetition) -> None:
        name, finish = self._server.name, self.ending.finish
        if not finish:
            raise StageUnavailable(f"{name} broke off in mid-answer; see the log of that server")
        if finish not in _FINISHES:
            raise Upstream(f"{name} ended the answer for a reason that edged does not know: {shown(finish)}")
        if not repetition.complete:
            raise _diverged(name)

    async def _tell(self, event: TokenEvent, news: Callable[[], None]) -> None:
        await self.events.put(event)
        news()

    def _heard(self) -> None:
        if self.probing and self._breaker.heard():
            logger.info("server answers again", extra={"server": self._server.name})
        self.probing = False

    def _note(self, error: EdgedError) -> None:
        """Tell the breaker, unless the server only said that it does not like this request."""
        if isinstance(error, BadRequest | Refused):
            self._heard()
            self._breaker.completed()
            return
        self.probing = False
        fields = {"server": self._server.name, "code": error.code, "why": error.message}
        if self._breaker.failed(time.monotonic(), error.message, error.retry_after_s or 0.0):
            wait_s = round(self._breaker.refusal_s(time.monotonic()), 1)
            logger.warning("server left alone for a while", extra={**fields, "wait_s": wait_s})
        else:
            logger.warning("server failed", extra=fields)


def _diverged(name: str) -> Upstream:
    return Upstream(
        f"{name} cannot go on with an interrupted answer, and worded it differently when asked again; "
        "ask again, or name a dialect that continues"
    )
