"""A stage that runs in another way while it serves: `edgectl stage swap` and `stage scale`.

One change at a time is on its way. What it did is kept in memory only: the next start, a reload and an
applied plan go by the configuration again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

import msgspec

from edged.config import Config, Stage
from edged.config.tables import MOST_WORKERS
from edged.dispatch.dispatcher import Dispatcher
from edged.dispatch.events import ScaleAsked, TrialAsked
from edged.dispatch.ledger import Worker
from edged.errors import AlreadyRunning, BadRequest, EdgedError, NotFound, StageUnavailable
from edged.footprints import Footprints
from edged.models.store import ModelStore
from edged.placement.applied import AppliedPlan, Step, difference
from edged.placement.overrides import overridden
from edged.placement.room import Room
from edged.placement.table import Plan
from edged.report import Override, StageStatus, Status, SwapReport
from edged.rollout import Rollout
from edged.workers.spec import StageSpec

logger = logging.getLogger("edged.swaps")

POLL_S = 0.02
PATIENCE = 2.0
"""Of a stage's `load_timeout_s`, for all its new workers."""


class _Kept(msgspec.Struct, frozen=True):
    """A stage that runs otherwise than the configuration and the plan of that moment say."""

    step: Step
    planned: Step | None
    """None where they say what cannot be placed."""
    plan: Plan | None
    firm: bool = True
    """It names where the stage runs, so that no fallback goes on behind it."""


class Swaps:
    """Changes one stage at a time; see `Operator.swaps`."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        applied: AppliedPlan,
        rollout: Rollout,
        store: ModelStore,
        config: Callable[[], Config],
    ) -> None:
        self._dispatcher = dispatcher
        self._applied = applied
        self._rollout = rollout
        self._store = store
        self._footprints = Footprints(dispatcher, store)
        self._config = config
        self._task: asyncio.Task[None] | None = None
        self._report = SwapReport()
        self._kept: dict[str, _Kept] = {}
        self._ended: Counter[tuple[str, bool]] = Counter()
        """By stage, and whether it came into force."""
        self.give_way: Callable[[str], None] = lambda _name: None
        """Told before a stage is changed: the try of its lost device ends."""
        self.settled: Callable[[StageSpec, bool], None] = lambda _spec, _firm: None
        """Told when a stage is as somebody wants it, and whether where it is, too: then it stays there."""
        self.home: Callable[[str], StageSpec | None] = lambda _name: None
        """What a stage runs again once its lost device is back; None where it has lost none."""

    # ------------------------------------------------------------- questions

    @property
    def report(self) -> SwapReport:
        """How far the newest change is, and what is not as configured."""
        return msgspec.structs.replace(self._report, under_way=self.under_way, overrides=self.overrides)

    @property
    def overrides(self) -> dict[str, str]:
        """By stage: how it differs from the configuration and the plan."""
        kept = ((name, kept) for name, kept in self._kept.items() if self.is_overridden(name))
        return {name: difference(each.planned, each.step) for name, each in kept}

    def is_overridden(self, name: str) -> bool:
        """Whether a stage runs otherwise than configuration and plan say, because it was changed here."""
        kept = self._kept.get(name)
        return kept is not None and self._applied.plan is kept.plan and self.meant(name) == kept.step

    @property
    def under_way(self) -> bool:
        """Whether a change is on its way."""
        return self._task is not None and not self._task.done()

    @property
    def plans(self) -> tuple[int, bool]:
        """How many plans have come into force, and whether another one is on its way."""
        return self._rollout.in_force, self._rollout.under_way

    @property
    def changing(self) -> str:
        """The stage that is being changed now; empty when none is."""
        return self._report.stage if self.under_way else ""

    def check_own(self) -> None:
        """Nothing may touch the workers while a swap does: `AlreadyRunning` then."""
        if self.under_way:
            raise AlreadyRunning(
                f"stage {self._report.stage} is being changed ({self._report.phase}); try again when that "
                "has ended: see `edgectl status`"
            )

    def check_free(self) -> None:
        """Nothing else may change stages while a swap or a plan does: `AlreadyRunning` then."""
        self.check_own()
        self._rollout.check_free()

    async def ended(self) -> None:
        """Return when neither a swap nor a plan is on its way; then as `check_free`."""
        while self.under_way:
            assert self._task is not None
            await asyncio.wait((self._task,))
        await self._rollout.ended()

    def shown(self, status: Status) -> Status:
        """The status with what is not as configured, as the reason of its stage and as a note."""
        overrides = self.overrides
        notes = [
            f"stage {name} runs otherwise than configured until the next start, reload or plan ({what}); "
            f"back with: edgectl stage swap {name} --revert"
            for name, what in overrides.items()
        ]
        stages = tuple(self._marked(stage, overrides.get(stage.name, "")) for stage in status.stages)
        problem = [self._report.problem] if self._report.problem else []
        return msgspec.structs.replace(status, stages=stages, notes=(*status.notes, *notes, *problem))

    # --------------------------------------------------------------- changes

    def swap(self, name: str, asked: Override, *, one_copy: bool) -> list[str]:
        """See `Swapper.swap`."""
        stage = self._changeable(name)
        spec = overridden(name, stage, asked, self._dispatcher.specs.get(name), self._config(), self._store)
        desired = self._dispatcher.ledger.stages[name].desired
        firm = bool(asked.device or asked.backend)
        step = Step(spec=spec, workers=desired)
        return self._replace(step, one_copy=one_copy, guarded=True, firm=firm)

    def revert(self, name: str, *, one_copy: bool) -> list[str]:
        """See `Swapper.revert`."""
        stage = self._changeable(name)
        step, _ = self._applied.step(name, stage, self._config())
        return self._replace(step, one_copy=one_copy, guarded=False, firm=True)

    def scale(self, name: str, workers: int) -> list[str]:
        """See `Swapper.scale`."""
        self._changeable(name)
        if not 1 <= workers <= MOST_WORKERS:
            raise BadRequest(f"workers must be in 1..{MOST_WORKERS}", param="workers")
        before = self.running(name)
        if before is None:
            reason = self._dispatcher.ledger.stages[name].failed
            raise StageUnavailable(f"stage {name!r} has nothing to run: {reason}")
        step = Step(spec=before.spec, workers=workers)
        room = self._footprints.room(step.spec, workers - before.workers)
        if workers > before.workers and room.verdict != "beside":
            raise BadRequest(f"there is no memory for more workers: {room.sentence}", param="workers")
        return self._begin(before, step, ScaleAsked(name, workers), room, firm=False)

    def forget(self) -> list[str]:
        """Everything is as configured from now on; which stages were not."""
        dropped = list(self.overrides)
        self._kept.clear()
        self._note(problem="", code="")
        return dropped

    def _changeable(self, name: str) -> Stage:
        """A stage that is on and at rest; `NotFound`, `BadRequest` or `AlreadyRunning` otherwise."""
        stages = self._config().stages
        if name not in stages:
            raise NotFound(f"there is no stage {name!r}; there are: {', '.join(stages)}", param="stage")
        self.check_free()
        if stages[name].workers == 0:
            raise BadRequest(f"stage {name!r} is switched off (workers = 0)", param="stage")
        self.give_way(name)
        if any(
            worker.state == "stopping" or (worker.retiring and worker.state != "dying")
            for worker in self._workers(name)
        ):
            raise AlreadyRunning(
                f"the workers of stage {name} are being replaced; wait for it: edgectl status --wait 120"
            )
        return stages[name]

    def _replace(self, step: Step, *, one_copy: bool, guarded: bool, firm: bool) -> list[str]:
        before, name = self.running(step.spec.name), step.spec.name
        if before == step and not self._dispatcher.ledger.stages[name].failed:
            self._keep(_Kept(step, self.planned(name), self._applied.plan, firm))
            return []
        room = self._footprints.room(step.spec, step.workers)
        if room.verdict == "none" and not one_copy:
            raise BadRequest(
                f"there is no memory for it, even with the old workers gone: {room.sentence}; "
                "--one-copy tries all the same"
            )
        asked = TrialAsked(
            stage=name,
            workers=step.workers,
            max_batch=step.spec.max_batch,
            alone=one_copy or room.verdict != "beside",
            guarded=guarded,
        )
        return self._begin(before, step, asked, room, firm=firm)

    def _begin(
        self, before: Step | None, step: Step, asked: TrialAsked | ScaleAsked, room: Room, *, firm: bool
    ) -> list[str]:
        name = step.spec.name
        told = difference(before, step) or "is started anew"
        alone = isinstance(asked, TrialAsked) and asked.alone
        self._report = SwapReport(
            stage=name,
            phase="stopping" if alone else "loading",
            changes=(f"stage {name}: {told}",),
            one_copy=alone,
            memory=room.sentence,
        )
        self._dispatcher.try_out(step.spec, asked)
        kept = _Kept(step, self.planned(name), self._applied.plan, firm)
        self._task = asyncio.create_task(self._carry_out(before, kept), name=f"swap of {name}")
        logger.info("stage changes", extra={"stage": name, "how": told, "one_copy": alone})
        return list(self._report.changes)

    def planned(self, name: str) -> Step | None:
        """How a stage runs by the configuration and the plan; None where that cannot be placed."""
        try:
            return self._applied.step(name, self._config().stages[name], self._config())[0]
        except EdgedError:
            return None

    # --------------------------------------------------------------- effects

    async def _carry_out(self, before: Step | None, kept: _Kept) -> None:
        name, began = kept.step.spec.name, self._dispatcher.now()
        why, code = await self._outcome(name)
        if why:
            why += await self._restored(name, before)
        await self._drained(name)
        took_s = round(self._dispatcher.now() - began, 3)
        self._note(phase="", took_s=took_s)
        self._ended[name, not why] += 1
        if why:
            self._note(problem=f"stage {name} runs as before its last change, which failed: {why}", code=code)
            logger.error("stage change failed", extra={"stage": name, "why": why, "code": code})
            return
        self._keep(kept)
        self._footprints.remember(name)
        self._note(agreement=self._agreement(name))
        logger.info("stage changed", extra={"stage": name, "took_s": took_s})

    def _keep(self, kept: _Kept) -> None:
        name = kept.step.spec.name
        self.settled(kept.step.spec, kept.firm)
        self._kept.pop(name, None)
        meant = self.meant(name)
        if meant is not None and meant != kept.planned:
            self._kept[name] = msgspec.structs.replace(kept, step=meant)

    async def _outcome(self, name: str) -> tuple[str, str]:
        """Wait for all new workers; else why there are not, and the error's code.

        The old workers of a stage that stops first may take as long as their answers do.
        """
        stage = self._dispatcher.ledger.stages[name]
        while stage.trial and stage.trial.alone and self._leaving(name):  # noqa: ASYNC110 - data wakes nobody
            await asyncio.sleep(POLL_S)
        self._note(phase="loading")
        return await self._loaded(name, lambda: stage.called_off)

    async def _loaded(self, name: str, ended: Callable[[], tuple[str, str] | None]) -> tuple[str, str]:
        """Wait until a stage has all its workers and only those; else why it has not."""
        stage = self._dispatcher.ledger.stages[name]
        limit_s = PATIENCE * stage.load_timeout_s
        until = self._dispatcher.now() + limit_s
        while self._dispatcher.now() < until:
            if found := ended():
                return found
            if stage.failed or stage.trouble:
                return stage.failed or stage.trouble, ""
            workers = self._workers(name)
            ready = sum(worker.state == "ready" and not worker.retiring for worker in workers)
            if ready >= stage.desired and not any(worker.retiring for worker in workers):
                return "", ""
            await asyncio.sleep(POLL_S)
        why = f"its new workers are not ready after {limit_s:g} s"
        self._dispatcher.call_off(name, why)
        return why, ""

    async def _restored(self, name: str, before: Step | None) -> str:
        """Have a stage work as before; say if it does not."""
        if before is None:
            return ""
        if before not in (self.running(name), self.meant(name)):  # some workers had been replaced already
            stage = self._config().stages[name]
            self._dispatcher.change_stage(before.spec, before.workers, stage.timeout_s, stage.load_timeout_s)
        why, _ = await self._loaded(name, lambda: None)
        return f"; and what served before does not work either: {why}" if why else ""

    async def _drained(self, name: str) -> None:
        """Return when nobody is left who is on his way out: only then are there no two copies."""
        self._note(phase="draining")
        while self._leaving(name):  # noqa: ASYNC110 - the ledger is data: it wakes nobody
            await asyncio.sleep(POLL_S)

    def _leaving(self, name: str) -> bool:
        return any(worker.state in {"stopping", "dying"} for worker in self._workers(name))

    def _workers(self, name: str) -> list[Worker]:
        return [
            self._dispatcher.ledger.workers[worker] for worker in self._dispatcher.ledger.stages[name].workers
        ]

    def _note(self, **what: object) -> None:
        self._report = msgspec.structs.replace(self._report, **what)

    def _agreement(self, name: str) -> dict[str, float]:
        """What the newest worker measured before it was ready."""
        found = [worker.details for worker in self._workers(name) if "agreement" in worker.details]
        return dict(found[-1]["agreement"]) if found else {}

    def _marked(self, stage: StageStatus, override: str) -> StageStatus:
        said = f"not as configured: {override}" if override else ""
        return msgspec.structs.replace(
            stage,
            reason="; ".join(filter(None, (stage.reason, said))),
            override=override,
            swaps=self._ended[stage.name, True],
            swaps_failed=self._ended[stage.name, False],
        )

    def running(self, name: str) -> Step | None:
        """How a stage runs; None where it has nothing to run."""
        spec = self._dispatcher.specs.get(name)
        return Step(spec=spec, workers=self._dispatcher.ledger.stages[name].desired) if spec else None

    def meant(self, name: str) -> Step | None:
        """How a stage is to run: on the device where it belongs, also while that is lost."""
        running, home = self.running(name), self.home(name)
        return Step(spec=home, workers=running.workers) if running and home else running
