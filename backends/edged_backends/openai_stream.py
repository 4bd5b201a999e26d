"""Server-sent events and the chunks in them: bytes as they come in, what they say out. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from edged.errors import Upstream

MAX_EVENT_BYTES = 1 << 20
"""A line longer than this is no chunk of an answer."""
DONE = b"[DONE]"


class Said(msgspec.Struct, frozen=True):
    """What one chunk says."""

    text: str = ""
    finish: str = ""
    prompt_tokens: int = -1
    """With the other two: usage, when the chunk carries it; -1 when it does not."""
    completion_tokens: int = -1
    cached_tokens: int = 0
    error: str = ""
    error_code: str = ""
    done: bool = False


class _Text(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Text = _Text()
    text: str | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Error(msgspec.Struct, frozen=True):
    message: str = ""
    code: Any = None
    type: str | None = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None
    error: _Error | str | None = None


_decoder = msgspec.json.Decoder(_Chunk)


class EventLines:
    """Cuts a stream of bytes into the payloads of its events, wherever the pieces of it end."""

    def __init__(self) -> None:
        self._held = b""

    def push(self, data: bytes) -> Iterator[bytes]:
        """Take bytes, give the payloads of the lines that they complete; `Upstream` for an endless line."""
        *lines, self._held = (self._held + data).split(b"\n")
        if max(map(len, (*lines, self._held))) > MAX_EVENT_BYTES:
            raise Upstream(f"the server sent a line of more than {MAX_EVENT_BYTES} bytes")
        for line in lines:
            field, _, value = line.strip(b"\r").partition(b":")
            if field in {b"data", b"error"} and value.strip():
                yield value.strip()


def read_chunk(payload: bytes) -> Said:
    """What a payload says; `Upstream` when it is no chunk of an answer."""
    if payload == DONE:
        return Said(done=True)
    try:
        chunk = _decoder.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Upstream(
            f"the server sent what is no chunk of an answer ({error}): {shown(payload)}"
        ) from error
    if chunk.error:
        problem = chunk.error if isinstance(chunk.error, _Error) else _Error(chunk.error)
        return Said(error=shown(problem.message) or "no reason given", error_code=str(problem.code or ""))
    return _said(chunk)


def _said(chunk: _Chunk) -> Said:
    choice = chunk.choices[0] if chunk.choices else _Choice()
    usage = chunk.usage
    text, finish = choice.delta.content or choice.text or "", choice.finish_reason or ""
    if usage is None or usage.completion_tokens is None:
        return Said(text, finish)
    details = usage.prompt_tokens_details or _Details()
    return Said(text, finish, usage.prompt_tokens, usage.completion_tokens, details.cached_tokens or 0)


def shown(text: bytes | str, limit: int = 200) -> str:
    r"""A server's words for a message of ours: one short line of printable characters.

    >>> shown(b"one\ntwo")
    'one two'
    """
    words = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return "".join(c if c.isprintable() else " " for c in words[: 2 * limit]).strip()[:limit]
