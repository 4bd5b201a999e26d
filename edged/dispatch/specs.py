"""What the workers of each stage are started as: from now on, at present, and before a trial."""

from __future__ import annotations

from collections.abc import Iterable

from edged.dispatch.events import Spoke
from edged.dispatch.ledger import Ledger
from edged.messages import Ready
from edged.workers.spec import StageSpec


class Specs:
    """Which spec belongs to which stage and worker. Plain bookkeeping; the ledger decides."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.wanted: dict[str, StageSpec] = {}
        """By stage: what its next worker will be."""
        self._of: dict[str, StageSpec] = {}
        """By incarnation: what each live worker was started as."""
        self._proven: dict[str, StageSpec] = {}
        """By stage: what its newest worker that became ready was started as."""
        self._former: dict[str, StageSpec | None] = {}
        """By stage on trial: what its workers were before; None where it had nothing to run."""

    def born(self, incarnation: str, stage: str) -> StageSpec:
        """A worker was started as what its stage wants now."""
        spec = self._of[incarnation] = self.wanted[stage]
        return spec

    def heard(self, words: Iterable[Spoke]) -> None:
        """Note which workers have shown that they can be loaded as what they were started as."""
        for spoke in words:
            if isinstance(spoke.message, Ready) and (spec := self._of.get(spoke.worker)):
                self._proven[spec.name] = spec

    def died(self, incarnation: str) -> None:
        """A worker is gone.

        After a change whose workers never became ready, replacements are what serves, not what failed.
        """
        name = self._of.pop(incarnation).name
        stage = self._ledger.stages[name]
        if stage.trouble and name in self._proven:
            self.wanted[name] = self._proven[name]
            stage.max_batch = self.wanted[name].max_batch

    def forget(self, stage: str) -> None:
        """A stage has nothing to run any more."""
        self.wanted.pop(stage, None)
        self._proven.pop(stage, None)

    def move(self, spec: StageSpec) -> None:
        """From now on a stage wants this, and what it costs is to be learnt anew."""
        stage = self._ledger.stages[spec.name]
        self.wanted[spec.name], stage.max_batch, stage.changed = spec, spec.max_batch, True

    def try_out(self, spec: StageSpec) -> None:
        """From now on a stage wants this, until `call_off` says otherwise."""
        self._former[spec.name] = self.wanted.get(spec.name)
        self.wanted[spec.name] = spec

    def call_off(self, stage: str) -> None:
        """A stage wants what it wanted before its trial."""
        former = self._former.pop(stage, self.wanted.get(stage))
        if former is None:
            self.forget(stage)
        else:
            self.wanted[stage] = former

    def of(self, incarnation: str) -> StageSpec:
        """What a live worker was started as."""
        return self._of[incarnation]

    def serving(self, name: str) -> StageSpec | None:
        """What the newest ready worker of a stage runs; else what the next one will."""
        workers = map(self._ledger.workers.__getitem__, self._ledger.stages[name].workers)
        ready = [worker for worker in workers if worker.state == "ready"]
        newest = max(ready, key=lambda worker: worker.started_at, default=None)
        return self._of[newest.incarnation] if newest else self.wanted.get(name)
