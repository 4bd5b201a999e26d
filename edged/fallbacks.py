"""Stages whose device is lost: onto the next device, and back when the lost one works again.

What is done is decided in `dispatch/losses.py`. Whatever an operator, a plan or a reload has a stage run
otherwise ends its fallback once it is in force; a try of a lost device gives way to them.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator

import msgspec

from edged.away import Away
from edged.config import Config
from edged.dispatch import losses
from edged.dispatch.dispatcher import Dispatcher
from edged.dispatch.events import TrialAsked
from edged.dispatch.ledger import Stage, Worker
from edged.errors import EdgedError
from edged.footprints import Footprints
from edged.models.store import ModelStore
from edged.placement.applied import AppliedPlan
from edged.placement.fallback import places, silicon
from edged.placement.overrides import overridden
from edged.report import DeviceLoss, Override, StageStatus, Status
from edged.rollout import Rollout
from edged.swaps import PATIENCE, Swaps
from edged.workers.spec import StageSpec

logger = logging.getLogger("edged.fallbacks")

LOOK_S = 0.25


class Fallbacks:
    """Moves stages between their devices: at once when one is lost, and back once `begin` was called."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        applied: AppliedPlan,
        swaps: Swaps,
        rollout: Rollout,
        store: ModelStore,
        config: Callable[[], Config],
    ) -> None:
        self._dispatcher = dispatcher
        self._applied = applied
        self._swaps = swaps
        self._rollout = rollout
        self._store = store
        self._footprints = Footprints(dispatcher, store)
        self._config = config
        self._stages: dict[str, Away] = {}
        self._before_plan: dict[str, Away] = {}
        self._lost: Counter[str] = Counter()
        self._returned: Counter[str] = Counter()
        self._away_s: defaultdict[str, float] = defaultdict(float)
        self._looked_at = 0.0
        self._task: asyncio.Task[None] | None = None
        dispatcher.elsewhere = self.elsewhere
        swaps.give_way, swaps.settled, swaps.home = self.give_way, self.settled, self.home
        rollout.begins, rollout.settled, rollout.home = self.plan_begins, self.plan_ends, self.home

    def begin(self) -> None:
        """See to lost devices from now on, on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="watch over lost devices")

    def close(self) -> None:
        """No more tries."""
        if self._task is not None:
            self._task.cancel()

    # ------------------------------------------------------------ a loss

    def elsewhere(self, worker: Worker, spec: StageSpec, why: str) -> StageSpec | None:
        """What a stage is to run instead, now that a worker has lost its device; None: as before.

        A change that its old workers can wait for goes back by itself.
        """
        stage = self._dispatcher.ledger.stages[worker.stage]
        if worker.state == "stopping" or self._goes_back(stage, worker, spec, why) or worker.retiring:
            return None
        away = self._known(worker.stage)
        if away is None or spec not in away.specs:
            return None
        place = away.specs.index(spec)
        self._lost[worker.stage] += 1
        event = losses.Lost(place, why, self._barred(away))
        command = self._decide(away, event)
        details = {"stage": away.name, "device": spec.device, "backend": spec.backend, "why": why}
        if not isinstance(command, losses.Move):
            logger.error("device lost, and nowhere to go", extra=details)
            return None
        logger.warning("device lost", extra=details | {"now": away.wanted.device})
        return away.wanted

    def _goes_back(self, stage: Stage, worker: Worker, spec: StageSpec, why: str) -> bool:
        """Whether a change of the stage is on its way that sees to a loss itself.

        A trial on a device that has just taken away what served before it is called off here.
        """
        if stage.trial is None:
            return self._serves_elsewhere(stage, spec)
        tried = self._dispatcher.specs[stage.name]
        if not worker.loaded or silicon(tried.device) != silicon(spec.device):
            return True
        self._dispatcher.call_off(stage.name, f"device {spec.device} is lost: {why}")
        return False

    def _serves_elsewhere(self, stage: Stage, spec: StageSpec) -> bool:
        """Whether what a plan is about to replace serves on another device, so that it is taken back."""
        if self._rollout.waiting[:1] != (stage.name,):
            return False
        away, gone = self._stages.get(stage.name), silicon(spec.device)
        known = away.lost if away else frozenset()
        old = (self._dispatcher.ledger.workers[name] for name in stage.workers)
        serving = (worker for worker in old if worker.state == "ready" and worker.retiring)
        return gone not in known and any(silicon(worker.device) != gone for worker in serving)

    def _known(self, name: str) -> Away | None:
        """The books of a stage, opened where it has none; None where it has nowhere to go."""
        away, wanted = self._current(name), self._wanted(name)
        if away is not None and away.wanted != wanted:
            self._follow(away, wanted)
        if (away := self._stages.get(name)) is not None:
            return away
        home, config = self._dispatcher.specs.get(name), self._config()
        if home is None or name not in config.stages:
            return None
        found = places(name, config.stages[name], home, config, self._applied.plan, self._store)
        if len(found) == 1:
            return None
        return self._stages.setdefault(name, Away(name, found))

    def _barred(self, away: Away) -> frozenset[int]:
        """Places on silicon that other stages have lost."""
        others = (other.lost for other in self._stages.values() if other is not away)
        gone = frozenset[str]().union(*others)
        return frozenset(
            place
            for place, spec in enumerate(away.specs)
            if losses.is_accelerator(spec.device) and silicon(spec.device) in gone
        )

    def _decide(self, away: Away, event: losses.Event) -> losses.Command | None:
        luck = random.random()  # noqa: S311 - of a pause, not of a secret
        rules = losses.Rules(len(away.specs), self._patience, luck)
        away.state, command = losses.decide(away.state, event, self._dispatcher.now(), rules)
        return command

    @property
    def _patience(self) -> losses.Patience:
        chosen = self._config().placement
        return losses.Patience(chosen.lost_first_s, chosen.lost_longest_s, chosen.lost_forgiven_s)

    def _taken(self, name: str) -> bool:
        """Whether a swap or a plan has a stage in its hands: they may yet put it back."""
        return self._swaps.changing == name or self._rollout.under_way

    # ----------------------------------------------------------- the return

    async def _run(self) -> None:
        self._looked_at = self._dispatcher.now()
        while True:
            now = self._dispatcher.now()
            for name in self.away:
                self._away_s[name] += now - self._looked_at
            self._looked_at = now
            for name in list(self._stages):
                self._look(name)
            await asyncio.sleep(LOOK_S)

    @property
    def away(self) -> list[str]:
        """Stages that are not on the device on which they belong."""
        return [name for name, away in self._stages.items() if away.state.at]

    def _look(self, name: str) -> None:
        away = self._current(name)
        if away is None or away.trial is not None:
            return
        stage, now = self._dispatcher.ledger.stages[name], self._dispatcher.now()
        if away.state.lost(away.state.at) and self._serves(stage, away.wanted):
            self._decide(away, losses.Served(away.state.at))
        if losses.sound(away.state, now, self._patience):
            del self._stages[name]
        elif self._at_rest(stage):
            command = self._decide(away, losses.Looked())
            if isinstance(command, losses.Try):
                self._try(away, stage, command.place)

    def _current(self, name: str) -> Away | None:
        """The books of a stage, brought up to what it is to run; None where somebody changed that."""
        away = self._stages.get(name)
        if away is None or self._taken(name):
            return away
        wanted, stage = self._dispatcher.specs.get(name), self._dispatcher.ledger.stages[name]
        if away.trial is not None:
            self._end_try(away, stage, wanted)
        if away.trial is None and wanted != away.wanted:
            self._follow(away, wanted)
        return self._stages.get(name)

    def _follow(self, away: Away, wanted: StageSpec | None) -> None:
        """Somebody has the stage want something else."""
        if wanted in away.specs:
            away.state = msgspec.structs.replace(away.state, at=away.specs.index(wanted), trying=None)
        elif wanted is None or not self._rebased(away, wanted):
            logger.info("fallback ended: the stage is changed", extra={"stage": away.name})
            del self._stages[away.name]

    def _rebased(self, away: Away, wanted: StageSpec) -> bool:
        """Whether only the variant of a stage was changed where it is now; then it returns with that one."""
        if (wanted.device, wanted.backend) != (away.wanted.device, away.wanted.backend):
            return False
        name, config = away.name, self._config()
        stage, asked = config.stages[name], Override(variant=wanted.variant.name)
        try:
            home = overridden(name, stage, asked, away.specs[0], config, self._store)
        except EdgedError:
            return False
        found = places(name, stage, home, config, self._applied.plan, self._store)
        away.rebase(found, wanted)
        return True

    def home(self, name: str) -> StageSpec | None:
        """What a stage is to run again once its device is back; None where it has lost none."""
        away = self._current(name)
        return away.specs[0] if away and away.state.at else None

    def _end_try(self, away: Away, stage: Stage, wanted: StageSpec | None) -> None:
        """Note how a try has ended, if it has."""
        place = away.state.trying
        assert place is not None
        spec = away.specs[place]
        if stage.trial is away.trial:
            if self._dispatcher.now() > away.until:
                self._dispatcher.call_off(away.name, f"not ready after {PATIENCE * stage.load_timeout_s:g} s")
            return
        away.trial = None
        if wanted == spec:
            self._decide(away, losses.Served(place))
            self._returned[away.name] += 1
            logger.info("device back", extra={"stage": away.name, "device": spec.device})
        elif stage.called_off is not None:
            why, _ = stage.called_off
            self._decide(away, losses.Failed(place, why))
            details = {
                "stage": away.name,
                "device": spec.device,
                "why": why,
                "again_s": self._again_s(away, place),
            }
            logger.warning("device still lost", extra=details)
        else:
            self._decide(away, losses.Disturbed(place))

    def _try(self, away: Away, stage: Stage, place: int) -> None:
        """Load beside what serves; one without memory for that is not tried, and what serves stays."""
        spec = away.specs[place]
        room = self._footprints.room(spec, stage.desired)
        if room.verdict != "beside":
            self._decide(
                away, losses.Failed(place, f"no memory to try it beside what serves: {room.sentence}")
            )
            return
        asked = TrialAsked(
            stage=away.name, workers=stage.desired, max_batch=spec.max_batch, alone=False, guarded=False
        )
        logger.info("lost device is tried", extra={"stage": away.name, "device": spec.device})
        self._dispatcher.try_out(spec, asked)
        away.trial, away.until = stage.trial, self._dispatcher.now() + PATIENCE * stage.load_timeout_s

    def give_way(self, name: str) -> None:
        """Break off the try of a stage's lost device: somebody wants to change the stage."""
        away = self._stages.get(name)
        if away is None or away.trial is None or away.state.trying is None:
            return
        if self._dispatcher.ledger.stages[name].trial is away.trial:
            self._dispatcher.call_off(name, "it gives way to another change of the stage")
        away.trial = None
        self._decide(away, losses.Disturbed(away.state.trying))

    def settled(self, spec: StageSpec, firm: bool) -> None:  # noqa: FBT001 - a callback's only flag
        """A swap of a stage is in force; a firm one names where the stage is to be.

        A stage that has lost that device meanwhile is on its way back to it.
        """
        away, wanted = self._stages.get(spec.name), self._dispatcher.specs.get(spec.name)
        if firm and wanted == spec:
            self.forget(spec.name)
        elif away is not None and wanted != away.wanted:
            self._follow(away, wanted)

    def plan_begins(self) -> None:
        """Stages are about to be compared with a plan, and may have to be put back."""
        for name in self._stages:
            self.give_way(name)
        self._before_plan = {name: msgspec.structs.replace(away) for name, away in self._stages.items()}

    def plan_ends(self, specs: Iterable[StageSpec] | None) -> None:
        """A plan is in force that has stages run so, or was taken back (None)."""
        if specs is None:
            put_back = self._before_plan.items()
            self._stages |= {name: away for name, away in put_back if away.wanted == self._wanted(name)}
            return
        for spec in specs:
            if spec.name in self._stages and self._stages[spec.name].specs[0] != spec:
                self.forget(spec.name)

    def _wanted(self, name: str) -> StageSpec | None:
        return self._dispatcher.specs.get(name)

    def forget(self, name: str) -> None:
        """A stage belongs where it is from now on."""
        self.give_way(name)
        self._stages.pop(name, None)

    def forget_all(self) -> None:
        """All stages are to run as they are told anew."""
        for name in list(self._stages):
            self.forget(name)

    def _at_rest(self, stage: Stage) -> bool:
        """Whether nobody comes or goes, so that a trial would be in nobody's way."""
        if self._swaps.changing or self._rollout.under_way or self._dispatcher.ledger.draining:
            return False
        workers = [self._dispatcher.ledger.workers[name] for name in stage.workers]
        settled = all(worker.state == "ready" and not worker.retiring for worker in workers)
        return bool(stage.failed) or (settled and not stage.starting)

    def _serves(self, stage: Stage, spec: StageSpec) -> bool:
        ready = any(self._dispatcher.ledger.workers[name].state == "ready" for name in stage.workers)
        return ready and self._dispatcher.serving(stage.name) == spec

    # -------------------------------------------------------------- status

    def shown(self, status: Status) -> Status:
        """The status with the devices that are lost, as the reason of their stage."""
        for name in list(self._stages):
            self._current(name)  # a try may have ended since the last look
        stages = tuple(self._marked(stage) for stage in status.stages)
        return msgspec.structs.replace(status, stages=stages)

    def _marked(self, stage: StageStatus) -> StageStatus:
        away = self._stages.get(stage.name)
        lost = tuple(self._losses(away)) if away else ()
        said = "; ".join(loss.sentence for loss in lost)
        return msgspec.structs.replace(
            stage,
            reason="; ".join(filter(None, (stage.reason, f"device {stage.device} ({said})" if said else ""))),
            lost_devices=lost,
            device_losses=self._lost[stage.name],
            device_returns=self._returned[stage.name],
            fallback_s=round(self._away_s[stage.name], 3),
        )

    def _losses(self, away: Away) -> Iterator[DeviceLoss]:
        now = self._dispatcher.now()
        for place, loss in sorted(away.state.losses.items()):
            if away.state.lost(place):
                yield DeviceLoss(
                    device=away.specs[place].device,
                    lost_s=now - loss.since,
                    why=loss.why,
                    tries=loss.tries,
                    again_s=None if away.state.trying == place else self._again_s(away, place),
                )

    def _again_s(self, away: Away, place: int) -> float:
        return round(max(0.0, away.state.losses[place].again_at - self._dispatcher.now()), 1)
