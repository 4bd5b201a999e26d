"""What every endpoint shares: the dispatcher, the names in force, the limits and the metrics."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from edged.api.endpoint import Header, Request
from edged.api.metrics import Metrics
from edged.api.names import Names, Operation, Route, names_of
from edged.config import Config
from edged.dispatch.requests import Completed, FrontDoor, StageTiming, Submission, Ticket
from edged.governor.force import InForce
from edged.messages import Priority

PLAN_TTL_S = 2.0


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """By when a request wants its answer, and whom it lets go first."""

    deadline_s: float
    firm: bool
    """The client named the deadline: see `Submission.firm`."""
    priority: Priority


class Gateway:
    """The API's view of the daemon; `adopt` replaces the configuration after a reload."""

    def __init__(
        self,
        front: FrontDoor,
        config: Config,
        metrics: Metrics,
        force: Callable[[], InForce] = InForce,
    ) -> None:
        """`force` tells the rung in force."""
        self.front = front
        self.force = force
        self.metrics = metrics
        self.created = int(time.time())
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Use this configuration from the next request on."""
        self.config = config
        self.names: Names = names_of(config)
        self._plan: dict[str, str] = {}
        self._passed_by: set[str] = set()
        self._plan_until_s = 0.0

    async def body(self, request: Request) -> bytes:
        """Read a body within `api.max_body_bytes`."""
        return await request.body(self.config.api.max_body_bytes)

    @property
    def slot_text_bytes(self) -> int:
        """How much text goes into one submission, so that its payload fits a slot."""
        return self.config.queue.slot_bytes * 3 // 4

    def terms(self, deadline_ms: int | None, priority: Priority | None = None) -> Terms:
        """What a request asks for, or what holds where it asks for nothing."""
        deadline_s = deadline_ms / 1000 if deadline_ms else self.config.api.request_timeout_s
        return Terms(deadline_s=deadline_s, firm=bool(deadline_ms), priority=priority or "interactive")

    def submit(
        self,
        request: Request,
        route: Route,
        operation: Operation,
        payload: bytes,
        terms: Terms,
        *,
        continues: bool = False,
    ) -> Ticket:
        """Hand a request to the dispatcher, which accepts it or raises at once.

        With `continues` it is a further part of one that was accepted.
        """
        submission = Submission(
            route=route.stages,
            operation=operation,
            payload=payload,
            deadline_s=terms.deadline_s,
            firm=terms.firm,
            priority=terms.priority,
            pipeline=route.name,
            trace=request.id,
            continues=continues,
        )
        return self.front.submit(submission)

    def plan(self, route: Route) -> bytes:
        """Say where each stage of the route runs now, for a stream whose timings are not known yet."""
        now = time.monotonic()
        if now >= self._plan_until_s:
            stages = self.front.status().stages
            self._plan = {stage.name: _place(stage.name, stage.device, stage.variant) for stage in stages}
            self._passed_by = {s.name for s in stages if s.bypass and s.bypass.passing == "everything"}
            self._plan_until_s = now + PLAN_TTL_S
        names = [name for name in route.stages[:-1] if name not in self._passed_by] + [*route.stages[-1:]]
        return ";".join(self._plan.get(name, name) for name in names).encode("ascii", "replace")


def answer_headers(completed: Completed, rung: str, resumed: int | None = None) -> list[Header]:
    """Headers that say how an answer came about; `rung` is the one under which it was accepted."""
    times = completed.resumed if resumed is None else resumed
    return [
        (b"x-edged-plan", plan_of(completed.timings)),
        (b"x-edged-resumed", b"%d" % times),
        (b"x-edged-rung", rung.encode()),
        (b"x-edged-node", completed.node.encode()),
    ]


def plan_of(timings: tuple[StageTiming, ...]) -> bytes:
    """Write a plan as `stage:device:variant;...`."""
    places = (_place(timing.stage, timing.device, timing.variant) for timing in timings)
    return ";".join(dict.fromkeys(places)).encode("ascii", "replace")


def _place(stage: str, device: str, variant: str) -> str:
    return f"{stage}:{device}:{variant}"
