"""The applied plan of a state folder, and how stages are placed under it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from edged.config import Config, Stage
from edged.config.tables import MOST_BATCH, MOST_WORKERS
from edged.dispatch.leases import Mode, chosen
from edged.errors import BadRequest, EdgedError, NotFound, StorageError
from edged.models.store import ModelStore
from edged.placement import storage
from edged.placement.defaults import place, workers_of
from edged.placement.fingerprint import known_fingerprint
from edged.placement.standing import (
    choice_of,
    contradiction,
    foreign,
    outdated,
    overruled,
    shared_otherwise,
)
from edged.placement.table import Choice, Fingerprint, Plan
from edged.placement.watch import Reading, Watch
from edged.report import PlanStatus
from edged.workers.spec import StageSpec

logger = logging.getLogger("edged.placement")

OWN_OPTIONS = frozenset({"cache_dir", "state_dir", "timeout_s"})
"""Set by us for every stage of a backend; no news to an operator."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A stage, placed, and how many processes it gets."""

    spec: StageSpec
    workers: int


class AppliedPlan:
    """The plan in force. It fills in what the configuration leaves open, and never wins against it."""

    def __init__(self, state_dir: Path, store: ModelStore) -> None:
        self._path = state_dir / storage.PLAN
        self._store = store
        self.plan: Plan | None = None
        self.unstored = ""
        """Why what is in force could not be stored, and what to do; empty when it was."""
        self._problem = ""
        self._doubt = ""
        self._watch: Watch | None = None
        self._setbacks: dict[str, str] = {}

    def read(self) -> None:
        """Take up the stored plan; one that cannot be read, or is another machine's, is left and told."""
        self.plan, self._watch, self._problem = None, None, ""
        try:
            found = storage.load_plan(self._path)
        except StorageError as error:
            self._problem = error.message
            return
        now = known_fingerprint(found, self._store) if found else None
        why = foreign(found, now) if found and now else ""
        if why and found:
            self._problem = (
                f"plan {found.id} was made on other hardware ({why}) and is not used; run: "
                "edgectl calibrate, then edgectl plan --apply"
            )
        else:
            self._take(found, now)

    def take(self, plan: Plan | None) -> None:
        """From now on this one is in force."""
        self._take(plan, known_fingerprint(plan, self._store) if plan else None)

    def _take(self, plan: Plan | None, now: Fingerprint | None) -> None:
        self.plan, self._problem = plan, ""
        self._watch = Watch(plan) if plan else None
        self._setbacks.clear()
        self._doubt = outdated(plan, now) if plan and now else ""

    def keep(self) -> None:
        """Store what is in force, for the next start; a full disk is a note, not a failure."""
        self.unstored = ""
        try:
            storage.keep_plan(self.plan, self._path)
        except StorageError as error:
            self.unstored = f"{_forgotten(self.plan)}: {error.message}"
            logger.error("plan not stored", extra={"why": error.message})

    def look_again(self) -> None:
        """Compare the plan with the machine and the weights as they are now."""
        plan = self.plan
        self._doubt = outdated(plan, known_fingerprint(plan, self._store)) if plan else ""

    def compare(self, readings: Mapping[str, Reading], config: Config, now: float) -> None:
        """Compare the plan with what stages do that run by it; to be called about once a second."""
        if self.plan is not None and self._watch is not None:
            unplanned = {*overruled(self.plan, config.stages), *self._setbacks}
            if shared_otherwise(self.plan, config.placement.leases):
                unplanned = set(self.plan.choices)
            self._watch.look(readings, now, config.placement.drift_s, unplanned)

    # ------------------------------------------------------------- placing

    def lease_mode(self, config: Config, plan: Plan | None) -> Mode:
        """How cores are shared under a plan."""
        return chosen(config.placement.leases, plan.lease_mode if plan else "")

    def step(self, name: str, stage: Stage, config: Config) -> tuple[Step, str]:
        """Place a stage under the plan in force; where that fails, as if there were none, and say why.

        Changes nothing; who goes by it says so with `note`.
        """
        choice, setback = choice_of(self.plan, name, stage), ""
        if choice is not None:
            try:
                return self._step(name, stage, config, choice), ""
            except EdgedError as error:
                setback = error.message
        return self._step(name, stage, config, None), setback

    def note(self, setbacks: Mapping[str, str]) -> None:
        """From now on these stages run by default, for the reasons given; those without one as planned."""
        for name, why in setbacks.items():
            if why and why != self._setbacks.get(name):
                logger.warning("plan not usable", extra={"stage": name, "why": why})
        self._setbacks = {name: why for name, why in (self._setbacks | dict(setbacks)).items() if why}

    def workers(self, name: str, stage: Stage) -> int:
        """How many processes a stage should get, also where it cannot be placed."""
        return workers_of(stage, choice_of(self.plan, name, stage))

    def steps(self, config: Config, plan: Plan | None) -> dict[str, Step]:
        """Place every stage that is on under another plan, or under none.

        `NotFound`, `BadRequest`, `ConfigError` or `ModelError` says what is wrong with it: all or nothing.
        """
        if plan is not None:
            _check(plan, config)
            self._check_machine(plan)
        placed = {
            name: self._placed(name, stage, config, choice_of(plan, name, stage))
            for name, stage in config.stages.items()
            if stage.workers != 0
        }
        return {name: step for name, step in placed.items() if step is not None}

    def _check_machine(self, plan: Plan) -> None:
        """Refuse here what `read` would refuse at the next start."""
        if why := foreign(plan, known_fingerprint(plan, self._store)):
            raise BadRequest(
                f"the plan was made on other hardware ({why}); run: edgectl calibrate, then plan again",
                param="fingerprint",
            )

    def _placed(self, name: str, stage: Stage, config: Config, choice: Choice | None) -> Step | None:
        """A stage of which the plan says nothing may be broken: then it stays as it is."""
        try:
            return self._step(name, stage, config, choice)
        except EdgedError:
            if choice is not None:
                raise
            return None

    def _step(self, name: str, stage: Stage, config: Config, choice: Choice | None) -> Step:
        spec = place(name, stage, config, self._store, choice)
        return Step(spec=spec, workers=workers_of(stage, choice))

    # --------------------------------------------------------------- words

    def status(self) -> PlanStatus | None:
        """The plan in force as `edgectl status` shows it; None where there is none."""
        plan, watch = self.plan, self._watch
        if plan is None or watch is None:
            return None
        return PlanStatus(
            id=plan.id,
            objective=plan.objective,
            bottleneck=plan.bottleneck,
            predicted_rate_per_s=plan.predicted_rate_per_s,
            observed_rate_per_s=watch.rate_per_s(),
            stale="; ".join(filter(None, (self._doubt, *watch.complaints()))),
            paces=watch.paces(),
        )

    def sentences(self, config: Config) -> Iterator[str]:
        """What an operator should read about the plan."""
        yield from filter(None, (self._problem, self.unstored))
        if self._doubt and self.plan:
            yield (
                f"plan {self.plan.id} rests on figures that no longer hold ({self._doubt}); "
                "run: edgectl calibrate, then edgectl plan --apply"
            )
        if self._watch and (complaints := "; ".join(self._watch.complaints())):
            yield (
                f"the plan no longer tells what happens: {complaints}; run: edgectl calibrate --fresh, "
                "then edgectl plan, which shows what is best now"
            )
        if self.plan:
            yield from overruled(self.plan, config.stages).values()
            yield from filter(None, (shared_otherwise(self.plan, config.placement.leases),))
        for name, why in self._setbacks.items():
            yield f"stage {name} is not as planned but as by default: {why}"


def _forgotten(plan: Plan | None) -> str:
    if plan is None:
        return "the next start takes up the former plan, unless edgectl plan --clear is run again by then"
    return f"the next start does not know plan {plan.id}, unless it is applied again by then"


def _check(plan: Plan, config: Config) -> None:
    for name, choice in plan.choices.items():
        if name not in config.stages:
            known = ", ".join(config.stages)
            raise NotFound(f"the plan names the stage {name!r}; there are: {known}", param="choices")
        if said := contradiction(config.stages[name], choice.form):
            raise BadRequest(
                f"the plan goes against the configuration in force, which says {said} for stage {name!r}; "
                "run: edgectl reload, then plan again",
                param=f"choices.{name}",
            )
        if not (0 < choice.workers <= MOST_WORKERS and 0 < choice.batch <= MOST_BATCH):
            raise BadRequest(
                f"stage {name!r}: workers must be in 1..{MOST_WORKERS} and batch in 1..{MOST_BATCH}",
                param=f"choices.{name}",
            )


def difference(before: Step | None, after: Step) -> str:
    """What changes for a stage, in words; empty when nothing does."""
    if before is None:
        return "starts"
    pairs = [
        (name, _value(before, name), _value(after, name))
        for name in ("model", "variant", "backend", "device", "workers", "max_batch")
    ]
    left, right = before.spec.options, after.spec.options
    pairs += [
        (name, left.get(name, "default"), right.get(name, "default"))
        for name in sorted((left.keys() | right.keys()) - OWN_OPTIONS)
    ]
    return ", ".join(f"{name} {was} -> {is_}" for name, was, is_ in pairs if was != is_)


def _value(step: Step, name: str) -> object:
    spec = step.spec
    found = {"model": spec.variant.model, "variant": spec.variant.name, "workers": step.workers}
    return found[name] if name in found else getattr(spec, name)
