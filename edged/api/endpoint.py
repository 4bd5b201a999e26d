"""One HTTP exchange: read the body within limits, call the handler, turn every error into an answer."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec
from starlette.types import Message, Receive, Scope, Send

from edged.api.connection import Connection, Peer
from edged.api.errors import encode_error, error_headers
from edged.errors import BodyTimeout, Cancelled, EdgedError, TooLarge

logger = logging.getLogger("edged.api")

JSON = b"application/json"
BODY_CHUNK_S = 5.0
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

Header = tuple[bytes, bytes]


class Reply(msgspec.Struct, frozen=True):
    """A whole answer."""

    body: bytes
    status: int = 200
    content_type: bytes = JSON
    headers: list[Header] = []


class Request:
    """What a client asked, and the way back to it."""

    __slots__ = ("_headers", "_receive", "_scope", "_send", "body_read", "id", "started")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))  # the first of a name counts
        self.body_read = scope["method"] in {"GET", "HEAD"}
        self.started = False
        self.id = self._client_id() or f"{random.getrandbits(96):024x}"  # unlike, not secret: no system call
        scope["edged.request_id"] = self.id

    @property
    def path_params(self) -> dict[str, str]:
        """The named parts of the path."""
        return cast("dict[str, str]", self._scope.get("path_params", {}))

    @property
    def query(self) -> bytes:
        """The raw query string."""
        return bytes(self._scope["query_string"])

    @property
    def method(self) -> str:
        """GET, POST, ..."""
        return str(self._scope["method"])

    @property
    def path(self) -> str:
        """The path as the client wrote it, decoded."""
        return str(self._scope["path"])

    @property
    def peer(self) -> Peer:
        """Who asks."""
        return self.connection.peer if self.connection else Peer()

    @property
    def connection(self) -> Connection | None:
        """The connection it came on; None behind another server than edged's."""
        return cast("Connection | None", self._scope.get("edged.connection"))

    def header(self, name: bytes) -> bytes | None:
        """Return the first header of that lower-case name."""
        return self._headers.get(name)

    async def body(self, limit: int) -> bytes:
        """Read the body; `TooLarge` as soon as that is known, `BodyTimeout` when it trickles."""
        declared = self.header(b"content-length")
        if declared is not None and int(declared) > limit:
            raise _too_large(limit)
        chunks, size, more = [], 0, True
        while more:
            chunk, more = await self._chunk()
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
        self.body_read = True
        return b"".join(chunks)

    async def disconnected(self) -> None:
        """Return when the client is gone; only to be called after `body`."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, content_type: bytes, headers: list[Header]) -> None:
        """Send status and headers, once."""
        self.started = True
        own = [(b"content-type", content_type), (b"x-request-id", self.id.encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": own + headers})

    async def write(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the body; waits while the client does not read."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def reply(self, reply: Reply) -> None:
        """Send a whole answer; closes the connection when part of the request was left unread."""
        headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
        if not self.body_read:
            headers.append((b"connection", b"close"))
        await self.start(reply.status, reply.content_type, headers)
        await self.write(reply.body, more=False)

    async def _chunk(self) -> tuple[bytes, bool]:
        if self.connection and self.connection.body_complete:
            message = await self._receive()
        else:
            message = await self._patiently()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client left before its request was complete")
        return message.get("body", b""), message.get("more_body", False)

    async def _patiently(self) -> Message:
        try:
            async with asyncio.timeout(BODY_CHUNK_S):
                return await self._receive()
        except TimeoutError as error:
            raise BodyTimeout(f"the body stalled for {BODY_CHUNK_S:g} s; send it faster") from error

    def _client_id(self) -> str:
        given = self.header(b"x-request-id") or self.header(b"x-client-request-id") or b""
        return given.decode("ascii") if _SANE_ID.fullmatch(given) else ""


Handler = Callable[[Request], Awaitable[Reply | None]]
"""Returns an answer, or None when it has streamed one."""


class Endpoint:
    """An ASGI application around one handler."""

    __slots__ = ("_handler", "_refused")

    def __init__(self, handler: Handler, refused: Callable[[str], None]) -> None:
        self._handler = handler
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; what is no `EdgedError` is a fault of ours, and the server's to tell."""
        request = Request(scope, receive, send)
        try:
            reply = await self._handler(request)
        except EdgedError as error:
            reply = self._shape(error, request)
        if reply is not None and not request.started:
            await request.reply(reply)

    def _shape(self, error: EdgedError, request: Request) -> Reply:
        self._refused(error.code)
        if error.status >= 500 and not error.retryable:  # noqa: PLR2004 - the server's fault
            logger.error(
                "%s: %s", error.code, error.message, extra={"request_id": request.id}, exc_info=error
            )
        return error_reply(error)


def error_reply(error: EdgedError) -> Reply:
    """Make the answer for an error."""
    return Reply(encode_error(error), error.status, JSON, error_headers(error))


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than {limit} bytes (api.max_body_bytes)")
