"""Clients that stream chat answers over the Unix socket, in a process of their own: rows P4, P4L, G1, G1L.

    python -m benchmarks._streams < order.json > result.json

As little client as possible, so that the daemon is what is measured: what arrives is kept with its time, and
read when everything is over.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from bisect import bisect_left
from collections.abc import Callable

import msgspec

from benchmarks._engines import SETTLED, Heard, Load, Result

LAST_CHUNK = b"0\r\n\r\n"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to ask, and what."""

    socket: str
    model: str
    load: Load


class Usage(msgspec.Struct, frozen=True):
    completion_tokens: int


class Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class Choice(msgspec.Struct, frozen=True):
    delta: Delta


class Chunk(msgspec.Struct, frozen=True):
    """One event of a stream."""

    choices: tuple[Choice, ...] = ()
    usage: Usage | None = None
    error: object = None


class Stream(asyncio.Protocol):
    """One request on a connection of its own."""

    def __init__(self, request: bytes, settled: Callable[[], None]) -> None:
        self.arrived: list[tuple[float, bytes]] = []
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._settle = settled
        self._settled = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Keep what comes, and when."""
        self.arrived.append((time.perf_counter(), data))
        if len(self.arrived) == SETTLED:
            self._settles()
        if data.endswith(LAST_CHUNK):
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio names it
        """Nothing more comes."""
        self._end()

    def _end(self) -> None:
        self._settles()
        if not self.over.done():
            self.over.set_result(None)

    def _settles(self) -> None:
        """Once: an answer that ends early is waited for no longer."""
        if not self._settled:
            self._settled = True
            self._settle()


def request(model: str, prompt: str, max_tokens: int) -> bytes:
    """A streamed chat request, as bytes."""
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body = msgspec.json.encode(asked)
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: edged\r\nconnection: close\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def read(stream: Stream, asked_s: float, began: float) -> Heard:
    """What a stream said; `RuntimeError` when that was no answer."""
    heard = Heard(asked_s=asked_s)
    ends = list(itertools.accumulate(len(data) for _, data in stream.arrived))
    whole = b"".join(data for _, data in stream.arrived)
    if not whole.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(whole[-500:].decode(errors="replace"))
    place = 0
    for line in whole.split(b"\n"):
        place += len(line) + 1
        if line.startswith(b"data: {"):
            chunk = msgspec.json.decode(line.removeprefix(b"data: "), type=Chunk)
            if chunk.error:
                raise RuntimeError(str(chunk.error))
            if any(choice.delta.content for choice in chunk.choices):
                heard.marks_s.append(stream.arrived[bisect_left(ends, place)][0] - began)
            heard.tokens += chunk.usage.completion_tokens if chunk.usage else 0
    return heard


class Clients:
    """So many at a time, each asking the next question as soon as it is answered."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._waiting = list(enumerate(order.load.prompts))[::-1]
        self._streams: dict[int, tuple[float, Stream]] = {}
        self._unsettled = order.load.streams
        self._all_settled = asyncio.Event()

    async def run(self) -> Result:
        """Ask everything."""
        load = self._order.load
        began, cpu = time.perf_counter(), time.process_time()
        late = [self._late()] if load.late else []
        await asyncio.gather(*(self._client() for _ in range(load.streams)), *late)
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        heard = [read(stream, asked - began, began) for _, (asked, stream) in sorted(self._streams.items())]
        return Result(wall_s=wall_s, cpu_s=cpu_s, heard=heard)

    async def _client(self) -> None:
        while self._waiting:
            number, prompt = self._waiting.pop()
            await self._ask(number, prompt, self._order.load.max_tokens)

    async def _late(self) -> None:
        await self._all_settled.wait()
        load = self._order.load
        await self._ask(len(load.prompts), load.late, 1)

    def _one_settled(self) -> None:
        self._unsettled -= 1
        if not self._unsettled:
            self._all_settled.set()

    async def _ask(self, number: int, prompt: str, max_tokens: int) -> None:
        asked = time.perf_counter()
        asking = request(self._order.model, prompt, max_tokens)
        transport, stream = await asyncio.get_running_loop().create_unix_connection(
            lambda: Stream(asking, self._one_settled), self._order.socket
        )
        self._streams[number] = (asked, stream)
        await stream.over
        transport.close()


def main() -> None:
    """Read the order, print the result."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)

    async def run() -> Result:
        return await Clients(order).run()

    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(run())))


if __name__ == "__main__":
    main()
