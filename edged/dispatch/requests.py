"""What the API sees of the dispatcher: submissions in, events out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from edged.config.tables import Bypass
from edged.errors import EdgedError
from edged.messages import Priority
from edged.placement.table import Plan
from edged.report import BypassStatus, Decision, GovernorStatus, Override, PlanReport, Status, SwapReport


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """A request as the API hands it over: opaque payload, route and deadline."""

    route: tuple[str, ...]
    """Stage names in order."""
    operation: str
    payload: bytes
    """Encoded `ChatTask`, `EmbedTask`, `RerankTask` or tensors; must fit one slot."""
    deadline_s: float
    firm: bool = False
    """The client named the deadline: what is predicted to miss it is refused at once."""
    pipeline: str = ""
    """Label for metrics: the pipeline's or the model's name."""
    priority: Priority = "interactive"
    trace: str = ""
    """The client's request id, for logs."""
    continues: bool = False
    """It is a further part of a request that was accepted, and is not shed."""
    hops: int = 0
    """How many nodes it has come through."""
    resume_tokens: tuple[int, ...] = ()
    """Tokens of an answer that began on another node."""
    resume_characters: int = 0
    """How much of the text of those tokens the client already has."""


class StageTiming(msgspec.Struct, frozen=True, kw_only=True):
    """What one stage did for a request."""

    stage: str
    wait_s: float
    compute_s: float
    batch: int
    device: str
    variant: str
    attempts: int


class Delta(msgspec.Struct, frozen=True):
    """Streamed text; `tokens` is how many new tokens it stands for."""

    text: str
    tokens: int
    ids: tuple[int, ...] = ()
    node: str = ""
    """Who made them."""


class Completed(msgspec.Struct, frozen=True):
    """The terminal event of a request that was answered."""

    payload: bytes
    timings: tuple[StageTiming, ...]
    resumed: int = 0
    skipped: tuple[str, ...] = ()
    """Stages that it passed by."""
    node: str = ""
    """Who finished the answer: this node, or a peer."""


class Rejected(msgspec.Struct, frozen=True):
    """The terminal event of a request that failed."""

    error: EdgedError


Event = Delta | Completed | Rejected


class Ticket(Protocol):
    """An accepted request: iterate for its events; exactly one terminal event comes last."""

    request: int

    def __aiter__(self) -> AsyncIterator[Event]:
        """Yield `Delta`s, then one `Completed` or `Rejected`."""
        ...

    def cancel(self) -> None:
        """Stop working on it: iteration ends without a terminal event. Idempotent, harmless at the end."""
        ...


class FrontDoor(Protocol):
    """The dispatcher as the API uses it."""

    def submit(self, submission: Submission, /) -> Ticket:
        """Accept a request or refuse it at once.

        Raises `Overloaded` or `DeadlineUnmeetable` (with `retry_after_s`), `Draining`,
        `StageUnavailable` or `TooLarge`.
        """
        ...

    def status(self) -> Status:
        """Say how things stand now."""
        ...

    def ready(self) -> bool:
        """Whether every stage has a worker that is loaded."""
        ...


class Swapper(Protocol):
    """Changes one stage at a time while it serves. Each method begins and says what changes: see `report`.

    `NotFound`, `BadRequest`, `ConfigError` or `ModelError` for what cannot be; `AlreadyRunning` while a swap,
    a plan or a reload is on its way.
    """

    @property
    def report(self) -> SwapReport:
        """How far the newest change is."""
        ...

    def swap(self, name: str, asked: Override, /, *, one_copy: bool) -> list[str]:
        """Begin to run a stage with some of it changed; with `one_copy` the old workers go first."""
        ...

    def revert(self, name: str, /, *, one_copy: bool) -> list[str]:
        """Begin to run a stage as the configuration and the plan say."""
        ...

    def scale(self, name: str, workers: int, /) -> list[str]:
        """Begin to run a stage with so many workers."""
        ...


class Governs(Protocol):
    """The quality ladder as the admin socket uses it."""

    def status(self) -> GovernorStatus:
        """The rung in force, and why."""
        ...

    def pin(self, name: str, /) -> None:
        """Stay on a rung; `NotFound` or `BadRequest` for one that cannot be taken."""
        ...

    def release(self) -> None:
        """Leave it to the readings again."""
        ...

    def history(self, count: int, /) -> list[Decision]:
        """The newest decisions, oldest first."""
        ...


class Bypasser(Protocol):
    """Who passes rerankers by, as the admin socket uses it."""

    def choose(self, name: str, mode: Bypass | None, /) -> BypassStatus:
        """Have a mode until the next start, None: the configured one; `NotFound` or `BadRequest`."""
        ...


class Operator(Protocol):
    """The daemon as the admin socket uses it; every method may raise `EdgedError`."""

    @property
    def swaps(self) -> Swapper:
        """Changes of single stages."""
        ...

    @property
    def bypasses(self) -> Bypasser:
        """Who passes rerankers by."""
        ...

    @property
    def governing(self) -> Governs:
        """The rung in force, and what was decided."""
        ...

    async def restart_stage(self, stage: str, /) -> None:
        """Replace the workers of a stage; requests in flight are carried on by the new ones."""
        ...

    async def reload(self) -> list[str]:
        """Read the configuration again; return what changed, a sentence each. All or nothing.

        `ConfigError` says what is wrong with it; `AlreadyRunning` while a plan is on its way.
        """
        ...

    def plan(self) -> PlanReport:
        """The plan in force, and how far the next one is."""
        ...

    async def apply_plan(self, plan: Plan | None, /, *, dry_run: bool) -> list[str]:
        """Begin to run the stages as a plan says, None: as by default; return what changes.

        With `dry_run` nothing does. `NotFound`, `BadRequest`, `ConfigError` or `ModelError` for a plan that
        does not fit; `AlreadyRunning` while another one is on its way.
        """
        ...

    async def clear_caches(self, names: tuple[str, ...], /) -> None:
        """Empty the caches of these names in every worker; no names means all."""
        ...

    async def drain(self) -> None:
        """Begin an orderly stop: refuse new work, finish the accepted, exit 0."""
        ...

    def configuration(self) -> dict[str, object]:
        """The configuration in force, as plain data."""
        ...

    def recent_logs(self, count: int, /) -> list[dict[str, object]]:
        """The newest log records, oldest first."""
        ...
