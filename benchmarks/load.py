"""The clients of a measurement, in a process of their own: a closed loop against one server.

    python -m benchmarks.load < order.json > result.json

N clients ask one question after the other, without pause. What counts is a window that begins when the
server has settled; a request counts with the share of its time that lies in the window, so that batches that
end just before or behind its edge favour nobody. Clients that are in the middle of an answer when the window
ends are hung up on.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Literal

import msgspec
import psutil


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure."""

    address: str
    """A Unix socket's path, or `host:port`."""
    dialect: Literal["edged", "plain"]
    questions: tuple[str, ...]
    """Asked in this order by whichever client is free; from the start again when they are spent."""
    clients: int
    settle_s: float
    window_s: float
    server: int
    """Process id of the root of the server's processes."""
    max_tokens: int = 64
    stream: bool = True


class Answered(msgspec.Struct, kw_only=True):
    """One request as its client saw it; times in seconds since the window began."""

    question: int
    began_s: float
    first_s: float = 0.0
    """When the first text came."""
    ended_s: float = 0.0
    """0 while it has not ended."""
    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    error: str = ""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was asked, and what the server's processes used in the window."""

    answered: list[Answered]
    window_s: float
    cpu_s: float
    own_cpu_s: float
    load_average: float


class Usage(msgspec.Struct, frozen=True):
    completion_tokens: int = 0
    prompt_tokens: int = 0


class Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class Choice(msgspec.Struct, frozen=True):
    delta: Delta = Delta()


class Whole(msgspec.Struct, frozen=True):
    text: str
    completion_tokens: int
    prompt_tokens: int


class Event(msgspec.Struct, frozen=True):
    """What either dialect sends, streamed or whole."""

    text: str = ""
    reply: Whole | None = None
    choices: tuple[Choice, ...] = ()
    usage: Usage | None = None
    error: object = None


def body(order: Order, question: str) -> tuple[str, bytes]:
    """Path and body of a request in the server's dialect."""
    if order.dialect == "plain":
        return "/ask", msgspec.json.encode({"question": question, "max_tokens": order.max_tokens})
    asked = {
        "model": "rag",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": order.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return "/v1/chat/completions", msgspec.json.encode(asked)


async def ask(order: Order, number: int, zero: float) -> Answered:
    """Ask one question; whatever goes wrong is its answer's `error`."""
    answered = Answered(question=number, began_s=time.perf_counter() - zero)
    try:
        path, content = body(order, order.questions[number % len(order.questions)])
        async for event in _events(order.address, path, content):
            _take(answered, event, time.perf_counter() - zero)
        if not answered.tokens and not answered.error:
            answered.error = "the answer has no end"
    except (OSError, EOFError, ValueError, msgspec.MsgspecError) as error:
        answered.error = f"{type(error).__name__}: {error}"
    answered.ended_s = time.perf_counter() - zero
    return answered


def _take(answered: Answered, event: Event, now_s: float) -> None:
    new = event.text + "".join(choice.delta.content or "" for choice in event.choices)
    if new and not answered.first_s:
        answered.first_s = now_s
    answered.text += new
    if event.error:
        answered.error = str(event.error)
    if usage := event.usage or event.reply:
        answered.tokens, answered.prompt_tokens = usage.completion_tokens, usage.prompt_tokens
    if event.reply:
        answered.text = event.reply.text
        answered.first_s = answered.first_s or now_s


async def _events(address: str, path: str, content: bytes) -> AsyncIterator[Event]:
    host, _, port = address.rpartition(":")
    opened = asyncio.open_connection(host, int(port)) if host else asyncio.open_unix_connection(address)
    reader, writer = await opened
    try:
        head = f"POST {path} HTTP/1.1\r\nhost: edged\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}connection: close\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content)
        status, *fields = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        if b" 200 " not in status:
            raise ValueError(f"{status.decode()}: {(await reader.read(500)).decode(errors='replace')}")
        pieces = _chunks(reader) if b"transfer-encoding: chunked" in fields else _rest(reader)
        pending = b""
        async for piece in pieces:
            *events, pending = (pending + piece).split(b"\n\n")
            for event in filter(None, map(_decoded, events)):
                yield event
        if last := _decoded(pending):
            yield last
    finally:
        writer.close()


async def _rest(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(1 << 16):
        yield piece


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readline(), 16):
        yield await reader.readexactly(size)
        await reader.readline()


def _decoded(event: bytes) -> Event | None:
    """An event of a stream, or a whole answer; both may have lines that are none of our business."""
    lines = [line for line in event.splitlines() if not line.startswith((b":", b"event:", b"id:"))]
    data = b"".join(line.removeprefix(b"data:").strip() for line in lines)
    return msgspec.json.decode(data, type=Event) if data and data != b"[DONE]" else None


def cpu_s(root: int) -> float:
    """CPU seconds of a process and all below it, the dead ones of each included."""
    total = 0.0
    for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


async def measure(order: Order) -> Result:
    """Let the server settle, take the window, and keep the load up until its last request has ended."""
    loop = _Loop(order)
    await asyncio.sleep(order.settle_s)
    before_s = cpu_s(order.server)
    began_s = time.perf_counter()
    await asyncio.sleep(order.window_s)
    used_s, window_s = cpu_s(order.server) - before_s, time.perf_counter() - began_s
    await loop.finish()
    return Result(
        answered=loop.answered,
        window_s=window_s,
        cpu_s=used_s,
        own_cpu_s=time.process_time(),
        load_average=os.getloadavg()[0],
    )


class _Loop:
    """The clients; made inside a running event loop, and at work from then on."""

    def __init__(self, order: Order) -> None:
        self.answered: list[Answered] = []
        self._order = order
        self._numbers = itertools.count()
        self._zero = time.perf_counter() + order.settle_s
        self._flying: set[asyncio.Task[Answered]] = set()
        self._clients = [asyncio.create_task(self._client()) for _ in range(order.clients)]

    async def _client(self) -> None:
        while True:
            flight = asyncio.create_task(ask(self._order, next(self._numbers), self._zero))
            self._flying.add(flight)
            answered = await flight
            self._flying.discard(flight)
            self.answered.append(answered)
            if answered.error:
                await asyncio.sleep(0.5)

    async def finish(self) -> None:
        """Wait for what is in flight now; then everybody hangs up."""
        await asyncio.wait(set(self._flying))
        await asyncio.sleep(0)
        for task in [*self._clients, *self._flying]:
            task.cancel()
        await asyncio.gather(*self._clients, *self._flying, return_exceptions=True)


def main() -> None:
    """Read the order, print the result."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(measure(order))))


if __name__ == "__main__":
    main()
