"""What goes wrong with an OpenAI-compatible server, as errors of edged that say what to do."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from edged.errors import ContextOverflow, EdgedError, Overloaded, StageUnavailable, Upstream
from edged_backends.openai_stream import read_chunk, shown

UNAUTHORISED = frozenset({401, 403})
_TOO_LONG = ("context", "too long", "maximum", "exceed")
"""Two of these in a refusal mean that the prompt does not fit: no field says so on every server."""


class Refused(Upstream):
    """The server is well, and does not take this request."""


def refusal(name: str, model: str, reply: httpx.Response, content: bytes) -> EdgedError:
    """The error for an answer that is not 200; `content` is the beginning of its body."""
    status, wait_s = reply.status_code, retry_after_s(reply.headers)
    why = f"{name} answered {status}"
    words = "" if status in UNAUTHORISED else _words(content)  # they may repeat the key
    if status in UNAUTHORISED:
        return Upstream(f"{why}: it does not accept the key; put a valid one into api_key_file")
    if status == httpx.codes.NOT_FOUND:
        return Upstream(f"{why}: {words}; check base_url, and the option model = {model!r}")
    if status == httpx.codes.TOO_MANY_REQUESTS:
        when = f"in {wait_s:g} s" if wait_s else "later"
        return Overloaded(f"{why}: it has too much to do; try again {when}", retry_after_s=wait_s or None)
    if sum(part in words.lower() for part in _TOO_LONG) > 1:  # of whatever status: some say 500
        return ContextOverflow(f"{why}: {words}", param="messages")
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return StageUnavailable(f"{why}: {words}; see that server's log", retry_after_s=wait_s or None)
    return _rejection(why, words, reply)


def _rejection(why: str, words: str, reply: httpx.Response) -> EdgedError:
    if reply.is_redirect:
        return Upstream(f"{why}: moved to {shown(reply.headers.get('location', '?'))}; correct base_url")
    return Refused(f"{why}: {words}")


def unreachable(name: str, error: Exception) -> EdgedError:
    """The error for a connection that did not come about, or that broke."""
    why = shown(str(error)) or type(error).__name__
    if "certificate" in why.lower():
        hint = "its certificate is not trusted: name your authority's file as ca_file"
    elif isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        hint = "is it running, and is base_url right?"
    else:
        hint = "the connection broke; see that server's log"
    return StageUnavailable(f"{name} cannot be reached: {why}; {hint}")


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait; 0 when it does not say, or says a date."""
    text = headers.get("retry-after", "").strip()
    return float(text[:9]) if text.isascii() and text.isdigit() else 0.0


def _words(content: bytes) -> str:
    """What a refusal says: its `message` where it has one, else its beginning."""
    try:
        said = read_chunk(content)
    except Upstream:
        return shown(content) or "no reason given"
    return said.error or shown(content) or "no reason given"
