"""What the ledger knows of stages that requests may pass by: plain data."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import inf

import msgspec

MOST_JUDGED = 4096
"""Judgements that wait to be learnt from; older ones are forgotten."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """Which requests pass a stage by."""

    keep: int
    """How many passages a later stage uses of a request that does, unless its task says so itself."""
    everything: bool = False
    from_margin: float = inf
    """Those whose margin is at least this."""
    own_from_margin: float = inf
    """The same for questions that were answered from one generation of the library."""
    own_generation: int = 0
    """Which one that is; 0: none."""
    sample_every: int = 16
    """Of those, one in so many does not pass by, so that there is something to learn from."""


class Judged(msgspec.Struct, frozen=True):
    """A request that came to a stage that can be passed by."""

    generation: int
    """Of the library that its passages are from; 0: unknown."""
    margin: float | None
    missed: float | None
    """What the stage before had missed, by this one's judgement; None: it was passed by."""
    variant: str = ""
    """Of the worker that judged."""


@dataclass(slots=True)
class Passing:
    """Of a stage."""

    rule: Rule | None = None
    """None: nothing passes it by."""
    skipped: int = 0
    stayed: int = 0
    """Requests of the kind that may pass by, and did not."""
    eligible: int = 0
    """Those that might have passed by for their margin, sampled ones included."""
    judged: deque[Judged] = field(default_factory=lambda: deque(maxlen=MOST_JUDGED))


@dataclass(slots=True)
class Grounds:
    """Of a request: what is known of its passages."""

    margin: float | None = None
    generation: int = 0
    skipped: tuple[str, ...] = ()
    """Stages that it passed by."""
    keep: int = 0
    """How many of its passages are used where its task does not say; 0: all."""
