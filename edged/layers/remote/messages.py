"""What the head's host and a stage on another host say to each other."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from edged.errors import ProtocolError
from edged.layers.limits import MOST_SEQUENCES
from edged.layers.schedule import Mode
from edged.layers.share import DTYPE_BYTES, Architecture, DType, Share
from edged.layers.spec import Loaded, Overlap, OverlapFrom

VERSION = 1
MOST_TOKENS = 4096
"""Of one job, all its sequences together: bounds what a stage on another host accepts as a message."""
HEADER_BYTES = 1 << 20
_SIZE_BYTES = 4

Few = Annotated[int, msgspec.Meta(ge=1, le=1024)]


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which model a host has."""

    architecture: Architecture
    fingerprint: str
    """See `edged.layers.weights.fingerprint`."""


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a stage is to be: all of a `StageSpec` that is not the other host's own business."""

    stage: Few
    stages: Few
    share: Share
    dtype: DType
    sequences: Annotated[int, msgspec.Meta(ge=1, le=MOST_SEQUENCES)]
    micro_batch: Annotated[int, msgspec.Meta(ge=0, le=MOST_SEQUENCES)]
    context_tokens: Annotated[int, msgspec.Meta(ge=1)]
    mode: Mode
    overlap: Overlap | None
    overlap_from: OverlapFrom
    block: Few
    offload_cache: bool
    silence_s: Annotated[float, msgspec.Meta(gt=0, le=60)]
    """How long the other side may say nothing."""


class Hello(msgspec.Struct, frozen=True, tag="hello", array_like=True, forbid_unknown_fields=True):
    """The head asks for a stage."""

    version: int
    session: str
    identity: Identity
    task: Task


class Accepted(msgspec.Struct, frozen=True, tag="accepted", array_like=True, forbid_unknown_fields=True):
    """The stage is loaded."""

    session: str
    loaded: Loaded


class Refused(msgspec.Struct, frozen=True, tag="refused", array_like=True, forbid_unknown_fields=True):
    """There is no stage, or not any more."""

    session: str
    code: Literal["busy", "backend", "device_lost", "config"]
    why: str


class Hop(msgspec.Struct, frozen=True, tag="hop", array_like=True, forbid_unknown_fields=True):
    """A message between stages: its header as it is; the tensor's bytes follow."""

    session: str
    header: bytes


class Ping(msgspec.Struct, frozen=True, tag="ping", array_like=True, forbid_unknown_fields=True):
    """Whether the other side is there; both ask."""

    session: str


class Pong(msgspec.Struct, frozen=True, tag="pong", array_like=True, forbid_unknown_fields=True):
    """It is."""

    session: str


Said: TypeAlias = Hello | Accepted | Refused | Hop | Ping | Pong

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Said] = msgspec.msgpack.Decoder(Said)


def pack(said: Said, payload: bytes | memoryview = b"") -> bytes:
    """Encode a message and what follows it as one frame.

    >>> unpack(pack(Ping("a"), b"xyz"))[0]
    Ping(session='a')
    """
    head = _encoder.encode(said)
    return b"".join((len(head).to_bytes(_SIZE_BYTES, "little"), head, payload))


def unpack(body: bytes) -> tuple[Said, memoryview]:
    """Decode what `pack` made; `ProtocolError` for anything else."""
    size = int.from_bytes(body[:_SIZE_BYTES], "little")
    try:
        said = _decoder.decode(body[_SIZE_BYTES : _SIZE_BYTES + size])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"no message of a layer pipeline: {error}") from error
    return said, memoryview(body)[_SIZE_BYTES + size :]


def most_bytes(hidden: int, tokens: int = MOST_TOKENS) -> int:
    """Bytes of the largest message: hidden states of so many tokens, and a header."""
    return HEADER_BYTES + tokens * hidden * max(DTYPE_BYTES.values())
