"""How much memory the workers of a stage take, or will take: measured here, else by the manifest."""

from __future__ import annotations

from collections.abc import Iterator

from edged.dispatch.dispatcher import Dispatcher
from edged.governor.sensors import available_bytes, family_bytes, total_memory_bytes
from edged.models.store import ModelStore
from edged.placement.overrides import expected_bytes
from edged.placement.room import Room
from edged.workers.spec import StageSpec


class Footprints:
    """Remembers what a worker of each model, variant and backend took when it was last seen."""

    def __init__(self, dispatcher: Dispatcher, store: ModelStore) -> None:
        self._dispatcher = dispatcher
        self._store = store
        self._seen: dict[tuple[str, str, str], int] = {}

    def remember(self, stage: str) -> None:
        """Note what the ready workers of a stage take."""
        spec, sizes = self._dispatcher.serving(stage), list(self._sizes(stage))
        if spec is not None and sizes:
            self._seen[_form(spec)] = max(sizes)

    def room(self, spec: StageSpec, workers: int) -> Room:
        """What so many new workers take, and what there is for them.

        By what such a worker took here, else by the manifest, else by what the present workers take.
        """
        self.remember(spec.name)
        held = list(self._sizes(spec.name))
        known = self._seen.get(_form(spec)) or expected_bytes(spec.variant, spec.backend, self._store)
        return Room(
            needed_bytes=(known or max(held, default=0)) * max(workers, 0),
            freed_bytes=sum(held),
            available_bytes=available_bytes(),
            total_bytes=total_memory_bytes(),
        )

    def _sizes(self, stage: str) -> Iterator[int]:
        ledger, processes = self._dispatcher.ledger, self._dispatcher.processes()
        for incarnation in ledger.stages[stage].workers:
            if ledger.workers[incarnation].state == "ready":
                yield family_bytes(processes[incarnation].pid)


def _form(spec: StageSpec) -> tuple[str, str, str]:
    return spec.variant.model, spec.variant.name, spec.backend
