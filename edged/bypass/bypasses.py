"""The rerankers of a daemon and who passes them by: modes, learning, status."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace

from edged.backend import Variant
from edged.bypass import store
from edged.bypass.calibration import UNMEASURED, Worth, worth_of
from edged.bypass.learner import Learner
from edged.bypass.policy import Choice, choice_of, keep_of, rule_of
from edged.config import Config
from edged.config.tables import Bypass, Stage
from edged.dispatch.dispatcher import Dispatcher
from edged.dispatch.events import SkippingAsked
from edged.errors import BadRequest, NotFound
from edged.governor.force import InForce
from edged.report import BypassStatus, Status

logger = logging.getLogger("edged.bypass")

SAVE_S = 60.0
"""What was learnt is stored at most this often, and at the end."""


class Offer(Protocol):
    """Says what rungs can do; see `Governing.offer`."""

    def __call__(self, what: str, *, available: bool, why: str = "") -> None:
        """From now on `what` can be done, or cannot."""
        ...


class Bypasses:
    """Construct, `begin` on the running loop, `look` every second, `close`."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        config: Callable[[], Config],
        force: Callable[[], InForce],
        offer: Offer,
    ) -> None:
        self._dispatcher = dispatcher
        self._config = config
        self._force = force
        self._offer = offer
        self._learners: dict[str, Learner] = {}
        self._choices: dict[str, Choice] = {}
        self._barred: str | None = None
        self._saved_at = 0.0
        self._unsaved = False

    def begin(self) -> None:
        """Read what was learnt, and tell the dispatcher who passes by."""
        stored = store.load(self._path)
        self._learners |= {name: Learner(learnt) for name, learnt in stored.items()}
        self._saved_at = self._dispatcher.now()
        self.look()

    def close(self) -> None:
        """Store what was learnt last."""
        for name in self._rerankers():
            self._learn(name)
        if self._unsaved:
            self._save()

    def look(self) -> None:
        """Learn from what came since, and follow mode, rung, configuration and library."""
        for name, stage in self._rerankers().items():
            self._learn(name)
            self._steer(name, stage)
        self._tell_governor()
        if self._unsaved and self._dispatcher.now() - self._saved_at >= SAVE_S:
            self._save()

    def choose(self, name: str, mode: Bypass | None) -> BypassStatus:
        """Have a mode for a reranker until the next start, None: the configured one; say what follows.

        `NotFound` for a stage that there is not, `BadRequest` for one that is no reranker.
        """
        stages = self._config().stages
        if name not in stages:
            raise NotFound(f"no stage {name!r}; there is: {', '.join(stages)}", param="name")
        if stages[name].kind != "reranker":
            known = ", ".join(self._rerankers()) or "there is none"
            raise BadRequest(f"stage {name!r} cannot be passed by, only a reranker: {known}", param="name")
        self._learner(name).mode = mode
        logger.info("bypass", extra={"stage": name, "mode": mode or "configured"})
        self.look()
        return self._status(name)

    def shown(self, status: Status) -> Status:
        """The status, with what passes by in its stages."""
        stages = tuple(
            replace(stage, bypass=self._status(stage.name)) if stage.name in self._choices else stage
            for stage in status.stages
        )
        return replace(status, stages=stages)

    # -------------------------------------------------------------- one stage

    @property
    def _path(self) -> Path:
        return self._config().daemon.state_dir / store.FILE

    def _rerankers(self) -> dict[str, Stage]:
        return {name: stage for name, stage in self._config().stages.items() if stage.kind == "reranker"}

    def _learner(self, name: str) -> Learner:
        return self._learners.setdefault(name, Learner())

    def _mode(self, name: str) -> Bypass:
        return self._learner(name).mode or self._config().stages[name].bypass

    def _learn(self, name: str) -> None:
        learner, judged = self._learner(name), self._dispatcher.ledger.stages[name].passing.judged
        reranker = self._variant(name)
        if reranker is not None:
            embedders = self._embedders(name)
            learner.serve("; ".join(map(_named, embedders)), _named(reranker), _worth(embedders, reranker))
        came = [judged.popleft() for _ in range(len(judged))]
        if learner.take(came, reranker.name if reranker else ""):
            self._unsaved = True

    def _variant(self, name: str) -> Variant | None:
        spec = self._dispatcher.serving(name)
        return spec.variant if spec else None

    def _embedders(self, name: str) -> list[Variant]:
        """Of the retrievers whose passages the stage gets."""
        config = self._config()
        lines = [line.stages for line in config.pipelines.values() if name in line.stages]
        before = {stage for line in lines for stage in line[: line.index(name)]}
        retrievers = sorted(stage for stage in before if config.stages[stage].kind == "retriever")
        return [variant for stage in retrievers if (variant := self._variant(stage))]

    def _steer(self, name: str, stage: Stage) -> None:
        learner, force = self._learner(name), self._force()
        choice = choice_of(self._mode(name), force.name, force.settings)
        generation, keep = learner.key.generation, keep_of(stage.options)
        rule = rule_of(choice.passing, learner.curve, learner.shipped, generation, keep)
        if self._dispatcher.ledger.stages[name].passing.rule != rule:
            self._dispatcher.ask(SkippingAsked(name, rule))
        if choice != self._choices.get(name):
            self._choices[name] = choice
            logger.info("who passes by", extra={"stage": name, "who": choice.passing, "why": choice.why})

    def _tell_governor(self) -> None:
        """A rung without reranking changes nothing where no reranker may be passed by."""
        modes = {name: self._mode(name) for name in self._rerankers()}
        off = modes and set(modes.values()) == {"off"}
        why = f"the bypass mode of {', '.join(modes)} is off" if off else ""
        if why != self._barred:
            self._barred = why
            for what in ("bypass_rerank", "bypass_benefit"):
                self._offer(what, available=not why, why=why)

    def _save(self) -> None:
        learnt = {name: each.learnt for name, each in self._learners.items()}
        self._saved_at, self._unsaved = self._dispatcher.now(), False
        if problem := store.save(learnt, self._path):
            logger.warning("what was learnt is not stored", extra={"why": problem})

    def _status(self, name: str) -> BypassStatus:
        learner, choice = self._learner(name), self._choices[name]
        stage, passing = self._config().stages[name], self._dispatcher.ledger.stages[name].passing
        self._learn(name)
        questions = passing.skipped + passing.stayed
        return BypassStatus(
            mode=self._mode(name),
            configured=stage.bypass,
            passing=choice.passing,
            why=choice.why,
            bypassed=passing.skipped,
            questions=questions,
            lost_points=learner.lost_points / questions if questions else 0.0,
            from_margin=learner.curve.from_margin if learner.curve.from_margin <= 1 else None,
            calibration="own" if learner.curve.own else "shipped",
            observations=round(learner.evidence.observations),
            generation=learner.key.generation,
        )


def _named(variant: Variant) -> str:
    return f"{variant.model}/{variant.name}/{variant.digest}"


def _worth(embedders: Sequence[Variant], reranker: Variant) -> Worth:
    models = {variant.model for variant in embedders}
    return worth_of(models.pop(), reranker.model) if len(models) == 1 else UNMEASURED


def remodelled(
    before: Mapping[str, Stage], after: Mapping[str, Stage], names: Iterable[str]
) -> Iterator[str]:
    """What a new configuration changes about stages whose workers stay, a sentence each."""
    for name in names:
        old, new = before[name], after[name]
        if replace(old, bypass=new.bypass) != new:
            yield f"stage {name} forms its batches in another way"
        if old.bypass != new.bypass:
            yield f"stage {name}: bypass {old.bypass} -> {new.bypass}"
