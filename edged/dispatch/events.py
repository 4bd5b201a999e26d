"""What can happen to the dispatcher (past participles) and what it can do about it (imperatives)."""

from __future__ import annotations

import msgspec

from edged.dispatch.passing import Rule
from edged.dispatch.requests import StageTiming
from edged.errors import EdgedError
from edged.messages import FromWorker, SlotRef, ToWorker


class Spoke(msgspec.Struct, frozen=True):
    """A worker sent a message."""

    worker: str
    message: FromWorker


class Died(msgspec.Struct, frozen=True):
    """The kernel says that a worker is gone: only now may its slots be lent again."""

    worker: str
    reason: str
    killed: bool
    """By a SIGKILL that neither the dispatcher nor the kernel's OOM killer sent."""
    excused: bool = False
    """Its device is lost, and others go on with its work elsewhere: no evidence against anybody."""
    moved: bool = False
    """What its stage wants from now on is another device."""


class Joined(msgspec.Struct, frozen=True):
    """A peer will do the work of a stage, so many items at a time."""

    worker: str
    stage: str
    peer: str
    credit: int
    variant: str


class Returned(msgspec.Struct, frozen=True):
    """A peer does not do what it was handed: it goes on elsewhere."""

    worker: str
    request: int
    attempt: int


class Left(msgspec.Struct, frozen=True):
    """The client no longer waits for a request."""

    request: int


class Memory(msgspec.Struct, frozen=True):
    """How much memory is left on the machine, and what workers take of it."""

    available_bytes: int
    resident_bytes: dict[str, int]
    """By incarnation; those that were not looked at are absent."""


class Ticked(msgspec.Struct, frozen=True):
    """Time passed; about once a second with a look at the memory."""

    memory: Memory | None = None


class Waited(msgspec.Struct, frozen=True):
    """The moment that a `Wake` asked for has come."""


class ReplaceAsked(msgspec.Struct, frozen=True):
    """An operator or a reload wants new workers for a stage."""

    stage: str


class IdleAsked(msgspec.Struct, frozen=True):
    """A stage is to have no workers, as one that cannot be placed."""

    stage: str
    reason: str
    wanted: int
    """How many it should have if it could."""


class TrialAsked(msgspec.Struct, frozen=True, kw_only=True):
    """A stage is to work in another way, and to go on as before if that fails."""

    stage: str
    workers: int
    max_batch: int
    alone: bool
    """Its old workers are to be gone before the new ones load."""
    guarded: bool
    """See `Trial`."""


class ScaleAsked(msgspec.Struct, frozen=True):
    """A stage is to have so many workers."""

    stage: str
    workers: int


class GiveUpAsked(msgspec.Struct, frozen=True):
    """A trial has taken too long."""

    stage: str
    reason: str


class SkippingAsked(msgspec.Struct, frozen=True):
    """Other requests than before are to pass a stage by; no rule: none are."""

    stage: str
    rule: Rule | None


Asked = ReplaceAsked | IdleAsked | TrialAsked | ScaleAsked | GiveUpAsked | SkippingAsked
"""What an operator, a plan or a reload wants of a stage."""
Event = Spoke | Died | Joined | Returned | Left | Ticked | Waited | Asked

# ---------------------------------------------------------------------- commands


class Send(msgspec.Struct, frozen=True):
    """Ring a worker's bell."""

    worker: str
    message: ToWorker


class Kill(msgspec.Struct, frozen=True):
    """SIGKILL a worker; its slots stay leased until `Died`."""

    worker: str
    reason: str


class Spawn(msgspec.Struct, frozen=True):
    """Start a worker under a fresh incarnation, after a pause."""

    stage: str
    delay_s: float


class CalledOff(msgspec.Struct, frozen=True):
    """From now on workers of a stage are what they were before its trial."""

    stage: str


class Wake(msgspec.Struct, frozen=True):
    """Say `Waited` at this time: a batch that is kept back for company is due then."""

    at: float


class Stream(msgspec.Struct, frozen=True):
    """Pass text on to the client."""

    request: int
    text: str
    tokens: int
    ids: tuple[int, ...] = ()
    node: str = ""
    """Who made them."""


class Deliver(msgspec.Struct, frozen=True):
    """Terminal: read the result out of its slot, now, and hand it to the client."""

    request: int
    result: SlotRef
    timings: tuple[StageTiming, ...]
    resumed: int
    skipped: tuple[str, ...] = ()
    """Stages that it passed by."""
    node: str = ""
    """Who finished the answer."""


class Refuse(msgspec.Struct, frozen=True):
    """Terminal: tell the client why there is no answer."""

    request: int
    error: EdgedError


Command = Send | Kill | Spawn | CalledOff | Wake | Stream | Deliver | Refuse
