"""What the governor hears and says: plain data, as it stands in logs and traces."""

from __future__ import annotations

from typing import Literal

import msgspec

from edged.governor.bands import Reading

Why = Literal["entered", "predicted", "critical", "left", "unavailable", "pinned", "floor"]


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", forbid_unknown_fields=True):
    """Something that happened; times are of one monotonic clock."""

    at_s: float


class Sampled(Event, frozen=True, kw_only=True, tag="sampled"):
    """One look at the machine; a signal that is left out after it was there has vanished."""

    temperatures: dict[str, Reading] = {}
    """By device: `cpu`, `igpu`, `nvme0`, `cuda:0`."""
    load: Reading | None = None
    """Share of the entry's slots that are taken."""
    memory: Reading | None = None
    """Share of memory in use."""
    stall: Reading | None = None
    """Share of the time in which some task waited for memory."""


class Pinned(Event, frozen=True, kw_only=True, tag="pinned"):
    """The operator wants this rung, whatever the readings say; one below the floor becomes the floor."""

    rung: int


class Released(Event, frozen=True, kw_only=True, tag="released"):
    """The operator leaves it to the governor again; what unknown signals asked for is forgotten."""


class Offered(Event, frozen=True, kw_only=True, tag="offered"):
    """A rung can be taken from now on, or can not: no peer, no lighter variant."""

    rung: int
    available: bool


class Confirmed(Event, frozen=True, kw_only=True, tag="confirmed"):
    """A rung is in force."""

    rung: int
    whole: bool = True
    """Whether nothing of it is still on its way."""


class Refused(Event, frozen=True, kw_only=True, tag="refused"):
    """A rung could not be taken; the one before is in force."""

    rung: int
    why: str


class Cause(msgspec.Struct, frozen=True):
    """The reading behind a change."""

    why: Why
    signal: str = ""
    value: float | None = None
    predicted: float | None = None
    limit: float | None = None
    """The limit that counted, in the signal's unit."""


class GoTo(msgspec.Struct, frozen=True, tag_field="command", tag="go_to"):
    """Take this rung. Doing it twice is doing it once; it is said again when nobody confirms it."""

    rung: int
    name: str
    before: int
    at_s: float
    cause: Cause


class Report(msgspec.Struct, frozen=True, tag_field="command", tag="report"):
    """Tell the operator: a signal is not known any more, or (empty `why`) is again; a rung was refused."""

    what: str
    why: str
    at_s: float


AnyEvent = Sampled | Pinned | Released | Offered | Confirmed | Refused
Command = GoTo | Report
