"""A plan on its way into a running daemon: stage by stage, and back when one does not come up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import msgspec

from edged.config import Config
from edged.dispatch.dispatcher import Dispatcher
from edged.errors import AlreadyRunning
from edged.placement.applied import AppliedPlan, Step, difference
from edged.placement.table import Plan
from edged.report import PlanReport

logger = logging.getLogger("edged.rollout")

POLL_S = 0.05
PATIENCE = 2.0
"""Of a stage's `load_timeout_s`, for all its new workers: time for one that hangs, and for another try."""


class _Change(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    before: Step | None
    after: Step


class Rollout:
    """Replaces the workers of one stage after the other, so that one replacement at a time takes memory."""

    def __init__(self, dispatcher: Dispatcher, applied: AppliedPlan, lock: asyncio.Lock) -> None:
        self._dispatcher = dispatcher
        self._applied = applied
        self._lock = lock
        """Held as long as a plan is on its way: a reload waits for it."""
        self._task: asyncio.Task[None] | None = None
        self.waiting: tuple[str, ...] = ()
        """Stages that are not as planned yet, the one that is being replaced first."""
        self.problem = ""
        """Why the last plan was taken back."""

    @property
    def report(self) -> PlanReport:
        """How far it is."""
        under_way = self._task is not None and not self._task.done()
        return PlanReport(
            plan=self._applied.plan, under_way=under_way, waiting=self.waiting, problem=self.problem
        )

    def changes(self, config: Config, plan: Plan | None) -> list[str]:
        """What a plan (None: the defaults) would change, a sentence each; errors as `AppliedPlan.steps`."""
        steps = self._applied.steps(config, plan)
        found = [f"stage {each.name}: {_told(each)}" for each in self._differing(steps)]
        before, after = self._dispatcher.ledger.leases.mode, self._applied.lease_mode(config, plan)
        return found + ([f"cores are shared {after} instead of {before}"] if before != after else [])

    async def begin(self, config: Config, plan: Plan | None) -> list[str]:
        """Start to apply a plan, or to clear it; say what changes.

        Errors as `changes`; `AlreadyRunning` while another one is on its way.
        """
        if self._lock.locked():
            to_go = f"{', '.join(self.waiting)} to go" if self.waiting else "it is almost done"
            raise AlreadyRunning(
                f"a plan is being applied, or a reload is under way: {to_go}; try again later"
            )
        changes = self.changes(config, plan)
        differing = self._differing(self._applied.steps(config, plan))
        await self._lock.acquire()  # at once: nobody has it
        self.problem = ""
        self.waiting = tuple(change.name for change in differing)
        self._task = asyncio.create_task(self._carry_out(config, plan, differing), name="rollout")
        self._task.add_done_callback(lambda _task: self._lock.release())
        return changes

    async def _carry_out(self, config: Config, plan: Plan | None, changes: list[_Change]) -> None:
        for place, change in enumerate(changes):
            self._change(change.name, change.after, config)
            if why := await self._outcome(change.name):
                self._take_back(changes[: place + 1], config, f"stage {change.name}: {why}")
                return
            self.waiting = self.waiting[1:]
        self._dispatcher.share_cores(self._applied.lease_mode(config, plan), config.placement.cores)
        self._applied.take(plan)
        self._applied.keep()
        logger.info("plan applied" if plan else "plan cleared", extra={"plan": plan.id if plan else ""})

    def _take_back(self, changes: list[_Change], config: Config, why: str) -> None:
        """Have what served before serve again, stages that still do so aside."""
        for change in changes:
            if change.before is not None and self._now(change.name) != change.before:
                self._change(change.name, change.before, config)
        self.waiting, self.problem = (), f"the last plan was taken back: {why}"
        logger.error("plan taken back", extra={"why": why})

    def _change(self, name: str, step: Step, config: Config) -> None:
        stage = config.stages[name]
        self._dispatcher.change_stage(step.spec, step.workers, stage.timeout_s, stage.load_timeout_s)

    async def _outcome(self, name: str) -> str:
        """Wait until a stage has all its new workers; else why it has not."""
        ledger = self._dispatcher.ledger
        stage = ledger.stages[name]
        limit_s = PATIENCE * stage.load_timeout_s
        until = self._dispatcher.now() + limit_s
        while self._dispatcher.now() < until:
            if stage.failed or stage.trouble:
                return stage.failed or stage.trouble
            workers = [ledger.workers[worker] for worker in stage.workers]
            ready = [worker for worker in workers if worker.state == "ready" and not worker.retiring]
            if len(ready) >= stage.desired and not any(worker.retiring for worker in workers):
                return ""
            await asyncio.sleep(POLL_S)
        return f"its new workers are not ready after {limit_s:g} s"

    def _differing(self, steps: Mapping[str, Step]) -> list[_Change]:
        found = [_Change(name=name, before=self._now(name), after=step) for name, step in steps.items()]
        return [change for change in found if change.before != change.after]

    def _now(self, name: str) -> Step | None:
        """How a stage runs; None where it never could be placed."""
        spec = self._dispatcher.specs.get(name)
        return Step(spec=spec, workers=self._dispatcher.ledger.stages[name].desired) if spec else None


def _told(change: _Change) -> str:
    return difference(change.before, change.after) or "is replaced"
