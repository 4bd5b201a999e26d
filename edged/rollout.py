"""A plan on its way into a running daemon: stage by stage, and back when one does not come up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from edged.config import Config
from edged.dispatch.dispatcher import Dispatcher
from edged.dispatch.ledger import Stage
from edged.errors import AlreadyRunning
from edged.placement.applied import AppliedPlan, Step, difference
from edged.placement.table import Plan
from edged.report import PlanReport
from edged.workers.spec import StageSpec

logger = logging.getLogger("edged.rollout")

POLL_S = 0.05
PATIENCE = 2.0
"""Of a stage's `load_timeout_s`, for all its new workers: time for one that hangs, and for another try."""


class _Change(msgspec.Struct, frozen=True, kw_only=True):
    """A stage that does not run as it should, and what it takes to have it as it was."""

    name: str
    before: Step | None
    """None where it never could be placed."""
    after: Step
    down: str
    """Why it lacks workers; empty where it has all."""
    wanted: int


class Rollout:
    """Replaces the workers of one stage after the other, so that one replacement at a time takes memory.

    One plan at a time is on its way, and no reload meanwhile: see `check_free` and `ended`.
    """

    def __init__(self, dispatcher: Dispatcher, applied: AppliedPlan) -> None:
        self._dispatcher = dispatcher
        self._applied = applied
        self._task: asyncio.Task[None] | None = None
        self.waiting: tuple[str, ...] = ()
        """Stages that are to be replaced yet, the one that is being replaced first."""
        self.problem = ""
        """Why the last plan was taken back, and what did not come back with it."""
        self.in_force = 0
        """How many plans have come into force, and how often none has again."""
        self.begins: Callable[[], None] = lambda: None
        """Told before a plan that can be placed changes anything: tries of lost devices end."""
        self.settled: Callable[[Iterable[StageSpec] | None], None] = lambda _specs: None
        """Told how all stages are to run once a plan is in force; None: it was taken back."""
        self.home: Callable[[str], StageSpec | None] = lambda _name: None
        """What a stage runs again once its lost device is back; None where it has lost none."""

    @property
    def report(self) -> PlanReport:
        """How far it is."""
        return PlanReport(
            plan=self._applied.plan,
            under_way=self.under_way,
            waiting=self.waiting,
            problem=self.problem,
            unstored=self._applied.unstored,
        )

    @property
    def under_way(self) -> bool:
        """Whether a plan is on its way."""
        return self._task is not None and not self._task.done()

    def check_free(self) -> None:
        """Nothing may change stages while a plan does: `AlreadyRunning` then.

        What the caller does next has the stages to itself until it awaits something.
        """
        if self.under_way:
            to_go = f"{', '.join(self.waiting)} to go" if self.waiting else "it is almost done"
            raise AlreadyRunning(f"a plan is being applied: {to_go}; try again when it is in force")

    async def ended(self) -> None:
        """Return when no plan is on its way; then as `check_free`."""
        while self._task is not None and not self._task.done():
            await asyncio.wait((self._task,))

    def changes(self, config: Config, plan: Plan | None) -> list[str]:
        """What a plan (None: the defaults) would change, a sentence each; errors as `AppliedPlan.steps`."""
        return self._sentences(self._differing(self._applied.steps(config, plan)), config, plan)

    def begin(self, config: Config, plan: Plan | None) -> list[str]:
        """Start to apply a plan, or to clear it; say what changes.

        Errors as `changes`; `AlreadyRunning` while another one is on its way.
        """
        self.check_free()
        steps = self._applied.steps(config, plan)
        self.begins()
        differing = self._differing(steps)
        self.problem = ""
        self.waiting = tuple(change.name for change in differing)
        self._task = asyncio.create_task(self._carry_out(config, plan, steps, differing), name="rollout")
        return self._sentences(differing, config, plan)

    def _sentences(self, changes: Sequence[_Change], config: Config, plan: Plan | None) -> list[str]:
        found = [f"stage {change.name}: {_told(change)}" for change in changes]
        before, after = self._dispatcher.ledger.leases.mode, self._applied.lease_mode(config, plan)
        return found + ([f"cores are shared {after} instead of {before}"] if before != after else [])

    async def _carry_out(
        self, config: Config, plan: Plan | None, steps: Mapping[str, Step], changes: list[_Change]
    ) -> None:
        for place, change in enumerate(changes):
            self._change(change.name, change.after, config)
            if why := await self._outcome(change.name):
                await self._take_back(changes[: place + 1], config, f"stage {change.name}: {why}")
                return
            self.waiting = self.waiting[1:]
        self._dispatcher.share_cores(self._applied.lease_mode(config, plan), config.placement.cores)
        self._applied.take(plan)
        self.in_force += 1
        self.settled([step.spec for step in steps.values()])
        self._applied.keep()
        logger.info("plan applied" if plan else "plan cleared", extra={"plan": plan.id if plan else ""})

    async def _take_back(self, changes: Sequence[_Change], config: Config, why: str) -> None:
        """Have what served before serve again, the last change first; stages that still do so aside."""
        back = [change for change in reversed(changes) if self._now(change.name) != change.before]
        self.waiting = tuple(change.name for change in back)
        self.problem = f"the last plan is being taken back: {why}"
        lost = ""
        for change in back:
            lost += await self._restore(change, config)
            self.waiting = self.waiting[1:]
        self.settled(None)
        self.problem = f"the last plan was taken back: {why}{lost}"
        logger.error("plan taken back", extra={"why": why + lost})

    async def _restore(self, change: _Change, config: Config) -> str:
        """Have a stage run as it did; say if it does not, unless it did not before."""
        if change.before is None:
            self._dispatcher.idle_stage(change.name, wanted=change.wanted, reason=change.down)
            return ""
        self._change(change.name, change.before, config)
        why = await self._outcome(change.name)
        return f"; stage {change.name} did not come back: {why}" if why and not change.down else ""

    def _change(self, name: str, step: Step, config: Config) -> None:
        stage = config.stages[name]
        self._dispatcher.change_stage(step.spec, step.workers, stage.timeout_s, stage.load_timeout_s)
        self._dispatcher.form_batches(name, stage.max_wait_ms, stage.target_ms)

    async def _outcome(self, name: str) -> str:
        """Wait until a stage has all its new workers; else why it has not."""
        stage = self._dispatcher.ledger.stages[name]
        limit_s = PATIENCE * stage.load_timeout_s
        until = self._dispatcher.now() + limit_s
        while self._dispatcher.now() < until:
            if stage.failed or stage.trouble:
                return stage.failed or stage.trouble
            workers = [self._dispatcher.ledger.workers[worker] for worker in stage.workers]
            if self._ready(stage) >= stage.desired and not any(worker.retiring for worker in workers):
                return ""
            await asyncio.sleep(POLL_S)
        return f"its new workers are not ready after {limit_s:g} s"

    def _ready(self, stage: Stage) -> int:
        workers = [self._dispatcher.ledger.workers[worker] for worker in stage.workers]
        return sum(worker.state == "ready" and not worker.retiring for worker in workers)

    def _differing(self, steps: Mapping[str, Step]) -> list[_Change]:
        """Stages that run in another way, and those that do not run although they should."""
        found = [self._compared(name, step) for name, step in steps.items()]
        return [change for change in found if change.down or not self._as_meant(change)]

    def _as_meant(self, change: _Change) -> bool:
        """Whether a stage runs so already, or will once its lost device is back."""
        before, home = change.before, self.home(change.name)
        returning = Step(spec=home, workers=before.workers) if home and before else before
        return change.after in (before, returning)

    def _compared(self, name: str, step: Step) -> _Change:
        stage = self._dispatcher.ledger.stages[name]
        lacking = stage.trouble if self._ready(stage) < stage.desired else ""
        return _Change(
            name=name,
            before=self._now(name),
            after=step,
            down=stage.failed or lacking,
            wanted=stage.desired,
        )

    def _now(self, name: str) -> Step | None:
        """How a stage runs; None where it never could be placed."""
        spec = self._dispatcher.specs.get(name)
        return Step(spec=spec, workers=self._dispatcher.ledger.stages[name].desired) if spec else None


def _told(change: _Change) -> str:
    again = f"is tried again ({change.down})" if change.down else "is replaced"
    return difference(change.before, change.after) or again
