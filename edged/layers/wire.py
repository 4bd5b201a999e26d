"""What travels between the stages of a layer pipeline: a header, and a tensor behind it where it has one."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from edged.backend import Sampling
from edged.errors import ProtocolError


class Row(msgspec.Struct, frozen=True, array_like=True):
    """One sequence's part of a job."""

    slot: int
    """Row of the KV cache that the sequence has in every stage."""
    start: int
    """Position of its first token in this job: so many are in the cache already."""
    count: int
    """Its tokens in this job; the tensor is padded on the right to the longest."""
    emit: bool
    """Whether the last stage chooses a token behind it."""


class Opened(msgspec.Struct, frozen=True, array_like=True):
    """A sequence begins: what the last stage must know to choose its tokens."""

    slot: int
    sampling: Sampling


class Timing(msgspec.Struct, frozen=True, array_like=True):
    """One stage's share of one job; seconds of the monotonic clock of its machine."""

    stage: int
    waited_from_s: float
    """When it began to wait for the job."""
    began_s: float
    """When it had the job."""
    ended_s: float
    copy_s: float
    """Of the time between, what copies between host and device took, as far as compute waited for them."""
    sending_s: float
    """How long its previous message kept it waiting."""
    received_bytes: int


class Job(msgspec.Struct, frozen=True, tag="job", array_like=True):
    """One micro-batch's turn.

    The tensor behind it: ids [rows, tokens] int64 into the first stage, hidden states [rows, tokens, hidden]
    between stages, chosen ids [emitting rows] int64 back to the first.
    """

    number: int
    lane: int
    """The micro-batch."""
    rows: tuple[Row, ...]
    opened: tuple[Opened, ...] = ()
    shape: tuple[int, ...] = ()
    dtype: str = ""
    timings: tuple[Timing, ...] = ()


class Broken(msgspec.Struct, frozen=True, tag="broken", array_like=True):
    """A stage failed; it travels on to the first stage in place of the job."""

    stage: int
    code: Literal["backend", "device_lost"]
    why: str


class End(msgspec.Struct, frozen=True, tag="end", array_like=True):
    """No more jobs: pass it on and leave."""


Header: TypeAlias = Job | Broken | End

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Header] = msgspec.msgpack.Decoder(Header)


def encode(header: Header) -> bytes:
    """Encode a header.

    >>> decode(encode(End()))
    End()
    """
    return _encoder.encode(header)


def decode(data: bytes | memoryview) -> Header:
    """Decode a header; `ProtocolError` when it is none."""
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"a stage of the layer pipeline sent what is no header: {error}") from error
