"""What peers say to one another: typed, bounded, times as what is left and never as a time of day."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from edged.dispatch.peer import Offer
from edged.messages import Priority, Seconds, decoder

VERSION = 1

Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Name = Annotated[str, msgspec.Meta(max_length=64)]
Line = Annotated[str, msgspec.Meta(max_length=2000)]
MOST_REMAINING_MS = 86_400_000
Remaining = Annotated[int, msgspec.Meta(ge=0, le=MOST_REMAINING_MS)]
Token = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
Ids = Annotated[tuple[Token, ...], msgspec.Meta(max_length=1 << 20)]

OVERHEAD_BYTES = 256 << 10
"""Room for the tokens of an answer, beside its task, in the longest message."""


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """Exactly its fields, in order."""


# ----------------------------------------------------------------- to a server


class Ask(Message, frozen=True, tag="ask"):
    """Are you there, and what do you offer? Said all the time: who asks no more is gone."""

    version: Number
    session: Number
    """Of this connection, at random; what a peer's former ones asked for is given up. 0: only looking."""
    nonce: Number


class Take(Message, frozen=True, tag="take"):
    """Make this answer, or go on with it."""

    request: Number
    attempt: Number
    identity: Annotated[str, msgspec.Meta(max_length=128)]
    hops: Annotated[int, msgspec.Meta(ge=1, le=1)]
    """How many nodes it has come through with this one: it goes no further."""
    payload: bytes
    """An encoded `ChatTask`."""
    remaining_ms: Remaining
    priority: Priority
    tokens: Ids
    """What the client has already."""
    characters: Number


class Drop(Message, frozen=True, tag="drop"):
    """Nobody waits for this answer any more."""

    request: Number
    attempt: Number


ToServer = Ask | Take | Drop

# --------------------------------------------------------------- from a server


class Offers(Message, frozen=True, tag="offers"):
    """The answer to `Ask`."""

    version: Number
    nonce: Number
    node: Name
    rung: Name
    models: Annotated[tuple[Offer, ...], msgspec.Meta(max_length=64)]


class Said(Message, frozen=True, tag="said"):
    """New tokens of an answer; `first` continues what was said before."""

    request: Number
    attempt: Number
    first: Number
    tokens: Ids
    text: str


class Answered(Message, frozen=True, tag="answered"):
    """The end of an answer: an encoded `Answer`, and what it cost."""

    request: Number
    attempt: Number
    payload: bytes
    compute_s: Seconds


class Declined(Message, frozen=True, tag="declined"):
    """There will be no answer from here, and why."""

    request: Number
    attempt: Number
    code: Name
    message: Line
    param: Name | None = None


class Dropped(Message, frozen=True, tag="dropped"):
    """The answer to `Drop`: its sequence is free again."""

    request: Number
    attempt: Number


FromServer = Offers | Said | Answered | Declined | Dropped

read_to_server: Callable[[bytes], ToServer] = decoder(ToServer)
read_from_server: Callable[[bytes], FromServer] = decoder(FromServer)
