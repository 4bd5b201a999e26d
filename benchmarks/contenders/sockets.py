"""As little HTTP as a hand-written program needs: one request a connection, server-sent events back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import msgspec

from benchmarks.contenders.lane import Ask
from benchmarks.contenders.work import Piece

Emit = Callable[[Piece], object]
Submit = Callable[[Ask, Emit], object]

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


def event(piece: Piece) -> bytes:
    """A piece as a server-sent event."""
    return b"data: " + msgspec.json.encode({"text": piece.text, "reply": piece.reply}) + b"\n\n"


def listen(address: str) -> socket.socket:
    """A listening Unix socket, which processes may share."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(128)
    listener.settimeout(0.0)
    return listener


def serve(listener: socket.socket, submit: Submit, room: int = 128) -> None:
    """Answer until killed; `submit` gets each question and where its pieces go.

    No connection is taken beyond `room` at once: another process on the same socket may have room.
    """
    asyncio.run(_serve(listener, submit, asyncio.Semaphore(room)))


async def _serve(listener: socket.socket, submit: Submit, room: asyncio.Semaphore) -> None:
    loop = asyncio.get_running_loop()
    answers: set[asyncio.Task[None]] = set()
    while True:
        await room.acquire()
        connection, _ = await loop.sock_accept(listener)
        answer = loop.create_task(_answer(connection, submit))
        answers.add(answer)
        answer.add_done_callback(answers.discard)
        answer.add_done_callback(lambda _: room.release())


async def _answer(connection: socket.socket, submit: Submit) -> None:
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[Piece] = asyncio.Queue()
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    ask = msgspec.json.decode(await _body(reader), type=Ask)
    submit(ask, lambda piece: loop.call_soon_threadsafe(pieces.put_nowait, piece))
    writer.write(_HEAD)
    piece = Piece(None, "")
    while piece.reply is None:
        piece = await pieces.get()
        writer.write(event(piece))
        with contextlib.suppress(ConnectionError):
            await writer.drain()
    writer.close()


async def _body(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return await reader.readexactly(int(lengths[0].partition(b":")[2]))
