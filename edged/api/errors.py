"""How an error looks on the wire: one JSON shape, a status, and headers that say when to come back."""

from __future__ import annotations

import math

import msgspec

from edged.errors import EdgedError, Overloaded

_encoder = msgspec.json.Encoder()

INTERNAL = "something went wrong inside edged; its log has the details under this request id"


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong: `code` is stable, `message` is for people, `param` names the field."""

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer whose status is 400 or more."""

    error: ErrorDetail


def _type_of(status: int) -> str:
    if status == 429:  # noqa: PLR2004 - the number is the name
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004 - as above


def error_body(error: EdgedError) -> ErrorBody:
    """Shape an error for a body or for an event of a stream."""
    return ErrorBody(ErrorDetail(error.message, _type_of(error.status), error.code, error.param))


def encode_error(error: EdgedError) -> bytes:
    """Encode an error's body.

    >>> encode_error(Overloaded("full"))
    b'{"error":{"message":"full","type":"rate_limit_error","code":"overloaded","param":null}}'
    """
    return _encoder.encode(error_body(error))


def error_headers(error: EdgedError) -> list[tuple[bytes, bytes]]:
    """Headers that tell a client when to try again; empty for errors where waiting does not help."""
    wait_s = error.retry_after_s
    if wait_s is None and not isinstance(error, Overloaded):
        return []
    wait_s = wait_s if wait_s is not None and math.isfinite(wait_s) else 1.0
    seconds = max(1, math.ceil(wait_s))
    predicted_ms = max(0, round(wait_s * 1000))
    return [(b"retry-after", b"%d" % seconds), (b"x-edged-predicted-wait-ms", b"%d" % predicted_ms)]


def raw_response(error: EdgedError, status: int | None = None) -> bytes:
    """Return a whole HTTP/1.1 response for places below the application; closes the connection."""
    body = encode_error(error)
    head = [b"HTTP/1.1 %d Refused" % (status or error.status), b"content-type: application/json"]
    head += [name + b": " + value for name, value in error_headers(error)]
    head += [b"content-length: %d" % len(body), b"connection: close", b"", b""]
    return b"\r\n".join(head) + body
