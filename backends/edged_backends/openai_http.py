"""The connection to an OpenAI-compatible server: one client, what it is asked, its refusals as our errors."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import httpx
import msgspec

from edged.errors import ConfigError, StageUnavailable, Upstream
from edged_backends.openai_errors import UNAUTHORISED, refusal, unreachable
from edged_backends.openai_key import read_key
from edged_backends.openai_stream import EventLines, Said, read_chunk, shown

MAX_REFUSAL_BYTES = 64 << 10
MAX_MODELS_BYTES = 4 << 20
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Target(NamedTuple):
    """Where the server is and how it is spoken to."""

    base_url: str
    model: str
    api_key_file: str
    ca_file: str
    connect_timeout_s: float
    timeout_s: float
    connections: int


class Server:
    """A client of one server; it belongs to one event loop, and opens nothing before it is asked."""

    def __init__(self, target: Target, paused_s: Callable[[], float]) -> None:
        """`paused_s` tells how long altogether the loop has stood still: a server is not blamed for that."""
        self._target = target
        self._paused_s = paused_s
        url, self._client = _client(target)
        self._url = url
        self.name = target.base_url

    async def models(self) -> list[dict[str, Any]]:
        """What the server says it serves; none when it has no such list."""
        async with AsyncExitStack() as stack:
            try:
                request = self._client.build_request("GET", self._url + "/models", headers=self._headers())
                reply = await self._within(self._client.send(request, stream=True))
                stack.push_async_callback(reply.aclose)
                content = await self._head(reply, MAX_MODELS_BYTES)
            except (httpx.HTTPError, ssl.SSLError) as error:
                raise unreachable(self.name, error) from error
        if reply.status_code in UNAUTHORISED or reply.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise refusal(self.name, self._target.model, reply, content)
        try:
            return list(msgspec.json.decode(content, type=_Models).data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return []

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Said]:
        """Post a request, give what the chunks of its answer say; closing it closes the connection."""
        async with AsyncExitStack() as stack:
            request = self._client.build_request(
                "POST", self._url + path, content=msgspec.json.encode(body), headers=self._headers()
            )
            try:
                reply = await self._within(self._client.send(request, stream=True))
                stack.push_async_callback(reply.aclose)
                if reply.status_code != httpx.codes.OK:
                    raise refusal(self.name, self._target.model, reply, await self._head(reply))
                chunks = await stack.enter_async_context(aclosing(self._chunks(reply)))
                async for said in chunks:
                    yield said
            except (httpx.HTTPError, httpx.StreamError, ssl.SSLError) as error:
                raise unreachable(self.name, error) from error

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def _chunks(self, reply: httpx.Response) -> AsyncGenerator[Said]:
        kind = reply.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            head = shown(await self._head(reply))
            raise Upstream(f"{self.name} does not stream: it answered {shown(kind) or 'no type'}: {head}")
        lines = EventLines()
        async with aclosing(_pieces(reply)) as pieces:
            while piece := await self._within(anext(pieces, b"")):
                for payload in lines.push(piece):
                    yield read_chunk(payload)

    async def _head(self, reply: httpx.Response, limit: int = MAX_REFUSAL_BYTES) -> bytes:
        head = b""
        async with aclosing(_pieces(reply)) as pieces:
            while len(head) < limit and (piece := await self._within(anext(pieces, b""))):
                head += piece
        return head

    async def _within(self, awaited: Any) -> Any:
        """Await for at most `timeout_s`, not counting the time in which nobody ran this loop."""
        task = asyncio.ensure_future(awaited)
        try:
            while not task.done():
                paused_s = self._paused_s()
                done, _ = await asyncio.wait({task}, timeout=self._target.timeout_s)
                if not done and self._paused_s() == paused_s:
                    raise StageUnavailable(
                        f"{self.name} said nothing for {self._target.timeout_s:g} s (timeout_s)"
                    )
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    def _headers(self) -> dict[str, str]:
        key = read_key(self._target.api_key_file)
        wanted = {"content-type": "application/json", "accept-encoding": "identity"}
        return wanted | ({"authorization": f"Bearer {key}"} if key else {})


async def _pieces(reply: httpx.Response) -> AsyncGenerator[bytes]:
    """The body as it comes in, without empty pieces."""
    async with aclosing(cast("AsyncGenerator[bytes]", reply.aiter_raw())) as pieces:
        async for piece in pieces:
            if piece:
                yield piece


class _Models(msgspec.Struct, frozen=True):
    data: tuple[dict[str, Any], ...] = ()


def check_address(base_url: str, *, key: bool, plain_http: bool) -> None:
    """`ConfigError` for an address that is none, that holds a password, or that would bare the key."""
    parts = urlsplit(base_url)
    if parts.scheme == "unix" and parts.path.startswith("/"):
        return
    if parts.scheme not in {"http", "https"} or not parts.hostname or not _readable(base_url):
        raise ConfigError(
            "base_url must be like https://host:8000/v1 or unix:/run/server.sock", param="base_url"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "base_url may hold neither user, password nor query; a key belongs into api_key_file",
            param="base_url",
        )
    if key and parts.scheme == "http" and parts.hostname not in _LOOPBACK and not plain_http:
        raise ConfigError(
            f"the key would go to {parts.hostname} unencrypted; use https, or say plain_http = true",
            param="base_url",
        )


def _readable(url: str) -> bool:
    try:
        httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return True


def _client(target: Target) -> tuple[str, httpx.AsyncClient]:
    """The base of all URLs, and a client that reads no environment and follows no redirection."""
    unix = target.base_url.removeprefix("unix:") if target.base_url.startswith("unix:") else None
    transport = httpx.AsyncHTTPTransport(
        verify=_trust(target.ca_file),
        trust_env=False,
        uds=unix,
        limits=httpx.Limits(max_connections=target.connections, keepalive_expiry=20),
    )
    timeout = httpx.Timeout(None, connect=target.connect_timeout_s)
    client = httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False)
    return "http://localhost/v1" if unix else target.base_url.rstrip("/"), client


def _trust(ca_file: str) -> ssl.SSLContext:
    try:
        return (
            httpx.create_ssl_context(trust_env=False)
            if not ca_file
            else ssl.create_default_context(cafile=ca_file)
        )
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca_file {ca_file}: {error}", param="ca_file") from error
