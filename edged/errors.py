"""Every error that edged raises on purpose, each with a stable code.

A code is part of the interface: it appears in HTTP bodies, in metrics and in logs, and
`docs/operations.md` says what to do about each (a test compares the two).
A class of its own exists only where some caller acts differently.
"""

from __future__ import annotations

from typing import ClassVar


class EdgedError(Exception):
    """Base of all errors; the message is one plain sentence, safe to show to a client."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class BadRequest(EdgedError):
    """A field of a request is missing, of the wrong type, or out of range."""

    code = "bad_request"
    status = 400


class UnknownField(BadRequest):
    """A request carries a field that edged does not know."""

    code = "unknown_field"


class UnsupportedField(BadRequest):
    """A request carries a field that would change the answer and that edged cannot honour."""

    code = "unsupported_field"


class ContextOverflow(BadRequest):
    """The prompt and the requested tokens do not fit the model's context."""

    code = "context_overflow"


class NotFound(EdgedError):
    """The named model, document, stage or path does not exist."""

    code = "not_found"
    status = 404


class MethodNotAllowed(EdgedError):
    """The path exists, but not with this HTTP method."""

    code = "method_not_allowed"
    status = 405


class BodyTimeout(EdgedError):
    """The client sent its request too slowly."""

    code = "body_timeout"
    status = 408
    retryable = True


class TooLarge(EdgedError):
    """A request body or a payload exceeds its limit."""

    code = "too_large"
    status = 413


class Overloaded(EdgedError):
    """No free slot at the entry: the client may try again after the predicted wait."""

    code = "overloaded"
    status = 429
    retryable = True


class Shed(EdgedError):
    """The governor's rung lets this work wait: the box is too hot, too busy or short of memory."""

    code = "shed"
    status = 429
    retryable = True


class Draining(EdgedError):
    """The daemon is stopping and takes no new work."""

    code = "draining"
    status = 503
    retryable = True


class DeadlineExceeded(EdgedError):
    """The request's deadline passed before its answer was ready."""

    code = "deadline_exceeded"
    status = 504
    retryable = True


class DeadlineUnmeetable(EdgedError):
    """By what is queued and measured, the answer would come after the request's deadline: refused at once."""

    code = "deadline_unmeetable"
    status = 429
    retryable = True


class Cancelled(EdgedError):
    """The client left, or an operator cancelled the request."""

    code = "cancelled"
    status = 499


class SlowConsumer(EdgedError):
    """The client did not read its stream for too long and was cut off."""

    code = "slow_consumer"
    status = 499


class StageUnavailable(EdgedError):
    """A stage that the request needs is not running and did not come back."""

    code = "stage_unavailable"
    status = 503
    retryable = True


class Poisoned(EdgedError):
    """The request was being worked on at two deaths of a stage and is not tried again."""

    code = "poisoned"
    status = 500


class ProtocolError(EdgedError):
    """A worker, or whoever speaks on its behalf, broke the slot protocol."""

    code = "protocol"


class CorruptSlot(ProtocolError):
    """The checksum of a slot does not match its descriptor."""

    code = "corrupt_slot"
    retryable = True


class ConfigError(EdgedError):
    """The configuration, or what it names on this machine, cannot be used."""

    code = "config"
    status = 400


class ModelError(EdgedError):
    """A model cannot be found, fetched, verified or derived."""

    code = "model"
    status = 400


class DigestMismatch(ModelError):
    """A model file does not have the bytes that its manifest promises."""

    code = "digest_mismatch"


class IndexMismatch(EdgedError):
    """The document index was built by another embedder than the one configured."""

    code = "index_mismatch"
    status = 409


class DocumentError(EdgedError):
    """A document cannot be read or is of a kind that edged does not ingest."""

    code = "document"
    status = 400


class StorageError(EdgedError):
    """The disk is full, or the library's files cannot be read or written."""

    code = "storage"
    status = 507


class AlreadyRunning(EdgedError):
    """Another daemon, or another ingest, holds the lock."""

    code = "already_running"
    status = 409


class Unreachable(EdgedError):
    """No daemon answers on the socket."""

    code = "unreachable"
    status = 503
    retryable = True


class ConnectionLost(EdgedError):
    """The daemon went away in the middle of an answer."""

    code = "connection_lost"
    status = 502
    retryable = True


class BackendError(EdgedError):
    """A runtime failed while it loaded or ran a model."""

    code = "backend"


class DeviceLost(BackendError):
    """The device vanished; the stage must be placed elsewhere."""

    code = "device_lost"
    status = 503
    retryable = True


class DeviceAbsent(ConfigError):
    """A backend does not see the device that a stage is to run on, or cannot use it."""

    code = "device_absent"


class Upstream(EdgedError):
    """A server to which a stage hands its work refused it, or answered what is no answer."""

    code = "upstream"
    status = 502


def _leaves(cls: type[EdgedError]) -> list[type[EdgedError]]:
    return [cls] + [leaf for child in cls.__subclasses__() for leaf in _leaves(child)]


BY_CODE: dict[str, type[EdgedError]] = {cls.code: cls for cls in _leaves(EdgedError)}
"""Every error class by its code."""


def from_code(code: str, message: str, param: str | None = None) -> EdgedError:
    """Rebuild an error that crossed a process boundary; an unknown code becomes `internal`.

    >>> from_code("overloaded", "full").status
    429
    """
    return BY_CODE.get(code, EdgedError)(message, param=param)
