"""Stages that run otherwise for as long as a rung says so: swaps, one at a time, and back again.

What the operator did to a stage stands: a stage that he swapped is left alone, and one that he had go back
until the box is on its best rung again.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from edged.config import Config
from edged.config.tables import Rung
from edged.errors import AlreadyRunning, EdgedError
from edged.governor.wishes import Wish, wishes
from edged.models.store import ModelStore
from edged.placement.applied import Step
from edged.placement.frugal import CHANGES, frugal
from edged.placement.overrides import shared
from edged.report import Override
from edged.swaps import Swaps

logger = logging.getLogger("edged.governor")

LIGHTER = "lighter"
BUSY_S = 0.2
"""Workers that are being replaced for another reason are waited for, and looked at this often."""


class _Aim(msgspec.Struct, frozen=True):
    """What a rung asks for, by stage, and who is told when that is in force, or why not."""

    wanted: dict[str, Wish]
    told: Callable[[str], None]


class Variants:
    """Has stages run as is aimed at, in the background. Construct, `aim`, `close`."""

    def __init__(self, swaps: Swaps, store: ModelStore, config: Callable[[], Config]) -> None:
        self._swaps = swaps
        self._store = store
        self._config = config
        self._own: dict[str, Step] = {}
        """Stages that run otherwise because of a rung, and how."""
        self._left_alone: set[str] = set()
        self._changing = ""
        """The stage that is on its way because of a rung."""
        self._aim: _Aim | None = None
        self._task: asyncio.Task[None] | None = None
        self._seen: object = None
        self._plans = 0
        """How many had come into force when stages were changed."""

    def close(self) -> None:
        """Begin nothing more."""
        if self._task is not None:
            self._task.cancel()

    def forget(self) -> None:
        """Every stage is as configured again: the configuration was read anew."""
        self._own.clear()
        self._left_alone.clear()

    def leave_none_alone(self) -> None:
        """From now on rungs may change every stage again: the box is back where nothing is asked of any."""
        self._notice()
        self._left_alone.clear()

    @property
    def pursuing(self) -> bool:
        """Whether an aim is not reached yet."""
        return self._aim is not None

    def stirred(self) -> bool:
        """Whether somebody else has changed how stages run since this was asked last."""
        if self._aim is not None or self._swaps.under_way or self._swaps.plans[1]:
            return False
        self._notice()
        before, self._seen = self._seen, (self._swaps.overrides, set(self._left_alone), self._plans)
        return before != self._seen

    def at(self, wanted: Mapping[str, Wish]) -> bool:
        """Whether nothing has to be done for these wishes."""
        return self._aim is None and not self._superfluous(wanted) and not any(self._differing(wanted))

    def aim(self, wanted: Mapping[str, Wish], told: Callable[[str], None]) -> None:
        """Have stages run like this and all others as configured; `told` gets why it failed, or ''.

        A later aim replaces one that is not reached yet, of which nobody is told.
        """
        self._aim = _Aim(dict(wanted), told)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._pursue(), name="variants of the rung")

    def lacking(self, ladder: Sequence[Rung]) -> list[dict[str, str]]:
        """By rung: why no stage that it names can run as it asks, by field of `Rung`; empty when one can."""
        asked = [wishes(rung) for rung in ladder]
        names = {name for wanted in asked for name in wanted}
        planned = {name: self._swaps.planned(name) for name in names}  # costly: weights are looked at
        return [self._lacking(wanted, planned) for wanted in asked]

    def _lacking(self, wanted: Mapping[str, Wish], planned: Mapping[str, Step | None]) -> dict[str, str]:
        asked = [(name, wish, planned[name]) for name, wish in wanted.items()]
        reasons = {
            "variants": [
                self._unchangeable(name, step) or self._lacks_variant(name, wish.variant, step)
                for name, wish, step in asked
                if wish.variant
            ],
            "frugal": [
                self._unchangeable(name, step) or self._lacks_thrift(name, step)
                for name, wish, step in asked
                if wish.frugal
            ],
        }
        return {what: "; ".join(dict.fromkeys(each)) for what, each in reasons.items() if all(each)}

    def _unchangeable(self, name: str, planned: Step | None) -> str:
        """Why a stage stays as it is, whatever is asked for."""
        if self._config().stages[name].workers == 0:
            return f"stage {name} is switched off"
        if self._theirs(name):
            return f"stage {name} runs what the operator swapped in"
        return "" if planned else f"stage {name} cannot be placed"

    def _lacks_thrift(self, name: str, planned: Step | None) -> str:
        if self._thrift(name, planned):
            return ""
        return f"stage {name} cannot run with fewer CPU seconds than it does"

    def _thrift(self, name: str, planned: Step | None) -> dict[str, Any]:
        """The options to change so that a stage takes few CPU seconds."""
        config, cores = self._config(), len(os.sched_getaffinity(0))
        leased = min(cores, config.placement.cores or cores)
        return frugal(planned.spec, config.stages[name], cores, leased) if planned else {}

    def _lacks_variant(self, name: str, variant: str, planned: Step | None) -> str:
        stage = self._config().stages[name]
        if variant == LIGHTER and planned:
            return (
                "" if self._lighter(planned) else f"{name} has no lighter variant here: edgectl models list"
            )
        if stage.weightless or self._present(stage.model, variant):
            return ""
        return f"{stage.model} {variant} is not here: edgectl models pull {stage.model}:{variant}"

    def _present(self, model: str, variant: str) -> bool:
        try:
            return self._store.present(model, variant)
        except EdgedError:
            return False

    def _lighter(self, planned: Step) -> str:
        """The next variant of its manifest that is smaller, here, and for the same runtime; else empty."""
        spec = planned.spec
        manifest = self._store.catalogue.models.get(spec.variant.model)
        rungs = manifest.variants if manifest else ()
        place = next((n for n, rung in enumerate(rungs) if rung.name == spec.variant.name), len(rungs))
        fitting = (
            rung.name
            for rung in rungs[place + 1 :]
            if spec.backend in rung.backends
            and rung.bytes < rungs[place].bytes
            and self._present(spec.variant.model, rung.name)
        )
        return next(fitting, "")

    # --------------------------------------------------------------- effects

    async def _pursue(self) -> None:
        while (aim := self._aim) is not None:
            why = await self._reach(aim)
            if self._aim is aim:
                self._notice()
                self._aim = None
                aim.told(why)

    async def _reach(self, aim: _Aim) -> str:
        """Go stage by stage, as long as the aim stays; why it cannot be reached, or ''."""
        for name in self._superfluous(aim.wanted):
            if self._aim is aim and (why := await self._back(name, aim)):
                return why
        for name in self._differing(aim.wanted):
            if self._aim is aim and (why := await self._swap(name, aim)):
                return why
        return ""

    def _superfluous(self, wanted: Mapping[str, Wish]) -> list[str]:
        """Own stages of which nothing is wanted any more."""
        self._notice()
        return [name for name in self._own if name not in wanted]

    def _differing(self, wanted: Mapping[str, Wish]) -> Iterator[str]:
        """Stages that do not run as wanted and can: what is lacking is no failure of a rung."""
        self._notice()
        for name, wish in wanted.items():
            planned = self._swaps.planned(name)
            if planned is None or self._unchangeable(name, planned):
                continue
            target = self._target(name, wish, planned)
            if not self._runs(name, target) and (name in self._own or target != _manner(planned)):
                yield name

    def _target(self, name: str, wish: Wish, planned: Step) -> Override:
        """How a stage is to run: as planned where a wish says nothing or cannot be fulfilled."""
        usual, variant = _manner(planned), ""
        if wish.variant and not self._lacks_variant(name, wish.variant, planned):
            variant = self._lighter(planned) if wish.variant == LIGHTER else wish.variant
        thrift = self._thrift(name, planned) if wish.frugal else {}
        return Override(variant=variant or usual.variant, options=usual.options | thrift)

    def _theirs(self, name: str) -> bool:
        swapped = name not in self._own and self._swaps.is_overridden(name)
        return name in self._left_alone or (swapped and name != self._changing)

    def _notice(self) -> None:
        """Stages that somebody else has put on another variant since are his, once that is done.

        A plan is nobody's choice for a stage: what it changed is changed again where a rung asks for it, and
        while it may still be taken back nothing is known.
        """
        plans, under_way = self._swaps.plans
        if under_way:
            return
        if plans != self._plans:
            self._plans = plans
            self._own.clear()
        for name, step in list(self._own.items()):
            if name != self._swaps.changing and not self._runs(name, _manner(step)):
                del self._own[name]
                self._left_alone.add(name)

    def _runs(self, name: str, target: Override) -> bool:
        """Whether a stage runs so, as far as the backend that it is on by now has such options."""
        running = self._swaps.meant(name)
        if running is None or running.spec.variant.name != target.variant:
            return False
        options = shared(target.options, running.spec)
        return all(running.spec.options.get(option) == value for option, value in options.items())

    async def _swap(self, name: str, aim: _Aim) -> str:
        target = Override()

        def begin() -> list[str]:
            nonlocal target
            planned = self._swaps.planned(name)  # now: what was waited for may have been another plan
            if planned is None:
                return []
            target = self._target(name, aim.wanted[name], planned)
            return self._to(name, target)

        def permitted() -> bool:
            return self._aim is aim and not self._theirs(name)

        why = await self._changed(name, begin, permitted)
        self._changing = ""
        if why is None:
            return ""
        running = self._swaps.meant(name)
        if running is None or not self._runs(name, target):
            return why or f"stage {name} was changed by somebody else meanwhile"
        self._own[name] = running
        return ""

    async def _back(self, name: str, aim: _Aim) -> str:
        def permitted() -> bool:
            return self._aim is aim and name in self._own

        own = self._own.get(name)
        why = await self._changed(name, lambda: self._homewards(name), permitted)
        self._changing = ""
        if why is None:
            return ""
        if why and own is not None and self._runs(name, _manner(own)):
            return why
        self._own.pop(name, None)
        return ""

    def _to(self, name: str, target: Override) -> list[str]:
        if self._swaps.home(name) is not None:  # where it is for now, options are those of that place
            target = msgspec.structs.replace(target, options={})
        return self._swaps.swap(name, target, one_copy=False)

    def _homewards(self, name: str) -> list[str]:
        """Go back to the variant that is planned; all of it only where nothing else differs since."""
        planned = self._swaps.planned(name)
        changed = self._swaps.meant(name) != self._own[name] or self._swaps.home(name) is not None
        if planned is not None and changed:
            return self._to(name, _manner(planned))
        return self._swaps.revert(name, one_copy=False)

    async def _changed(
        self, name: str, begin: Callable[[], list[str]], permitted: Callable[[], bool]
    ) -> str | None:
        """Begin a change as soon as no other is on its way, and wait for its end; why it failed, or ''.

        None where it is not permitted any more once the others have ended.
        """
        while True:
            await self._swaps.ended()
            self._notice()
            if not permitted():
                return None
            try:
                begun = begin()
            except AlreadyRunning:
                await asyncio.sleep(BUSY_S)
                continue
            except EdgedError as error:
                return f"stage {name}: {error.message}"
            if begun:
                self._changing = name
                await self._swaps.ended()
            return self._swaps.report.problem if begun else ""


def _manner(step: Step) -> Override:
    """What rungs may change about how a stage runs."""
    return Override(
        variant=step.spec.variant.name, options={name: step.spec.options.get(name) for name in CHANGES}
    )
