"""The least server around one engine alone: what rows P4 and P4L compare the daemon with.

    python -m benchmarks._engine_server SOCKET < engine.json

One process: a thread that steps the engine, and an event loop that speaks to the clients of `_streams.py`. A
token becomes text and an event as soon as it is there; no queue is bounded, nothing is checked, and a client
that leaves is not noticed: what it would take to be a product is left out.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from queue import SimpleQueue
from typing import cast

import msgspec
import uvloop

from benchmarks._engines import ENGINES, Bare, Engine, tokenised
from edged.stages.detokenizer import Detokenizer

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
_encoder = msgspec.json.Encoder()


class Said(msgspec.Struct, frozen=True):
    """A message of a question."""

    role: str
    content: str


class Asked(msgspec.Struct, frozen=True):
    """What the clients send, as far as this server cares."""

    messages: tuple[Said, ...]
    max_tokens: int


class Chat(asyncio.Protocol):
    """One connection, one question."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the question."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Submit the question once it is whole."""
        self._received += data
        head, _, body = self._received.partition(b"\r\n\r\n")
        if f"content-length: {len(body)}\r\n".encode() in head + b"\r\n" and body:
            self._transport.write(_HEAD)
            self._server.submit(self, msgspec.json.decode(body, type=Asked))

    def tell(self, event: dict[str, object], *, last: bool) -> None:
        """Send an event, and hang up behind the last."""
        self._transport.write(b"data: " + _encoder.encode(event) + b"\n\n")
        if last:
            self._transport.close()


class Server:
    """The engine's thread and what it tells the loop."""

    def __init__(self, engine: Bare, sequences: int) -> None:
        self._engine = engine
        self._room = sequences
        self._asked: SimpleQueue[tuple[Chat, Asked]] = SimpleQueue()
        self._live: dict[int, tuple[Chat, Detokenizer, int]] = {}
        self._numbers = 0

    def submit(self, chat: Chat, asked: Asked) -> None:
        """Have a question answered."""
        self._asked.put((chat, asked))

    def run(self, loop: asyncio.AbstractEventLoop) -> None:
        """Step for ever; sleeps only while nobody asks."""
        while True:
            while len(self._live) < self._room and (not self._live or not self._asked.empty()):
                self._admit(*self._asked.get())
            events = [self._event(*told) for told in self._engine.step()]
            if events:
                loop.call_soon_threadsafe(_deliver, events)

    def _admit(self, chat: Chat, asked: Asked) -> None:
        self._numbers += 1
        (prompt,) = tokenised(self._engine.vocabulary, [asked.messages[0].content])
        self._live[self._numbers] = chat, Detokenizer(self._engine.vocabulary.decode), 0
        self._engine.add(self._numbers, prompt, asked.max_tokens)

    def _event(self, number: int, tokens: list[int], over: bool) -> tuple[Chat, dict[str, object], bool]:
        chat, detokenizer, count = self._live.pop(number)
        text = detokenizer.push(tokens)
        count += len(tokens)
        if over:
            usage = {"completion_tokens": count}
            return (
                chat,
                {"choices": [{"delta": {"content": text + detokenizer.flush()}}], "usage": usage},
                True,
            )
        self._live[number] = chat, detokenizer, count
        return chat, {"choices": [{"delta": {"content": text}}]}, False


def _deliver(events: list[tuple[Chat, dict[str, object], bool]]) -> None:
    for chat, event, last in events:
        chat.tell(event, last=last)


async def serve(path: str, server: Server) -> None:
    """Listen until killed."""
    loop = asyncio.get_running_loop()
    threading.Thread(target=server.run, args=(loop,), daemon=True).start()
    listening = await loop.create_unix_server(lambda: Chat(server), path)
    print("ready", flush=True)
    await listening.serve_forever()


def main() -> None:
    """Load, then serve."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Engine)
    uvloop.run(serve(sys.argv[1], Server(ENGINES[order.backend](order), order.sequences)))


if __name__ == "__main__":
    main()
