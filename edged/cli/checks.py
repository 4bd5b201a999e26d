"""What `edgectl config check` looks up beyond the file: models in the catalogue, backends installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edged.errors import ConfigError, NotFound

if TYPE_CHECKING:
    from edged.config import Config, Stage
    from edged.models.store import ModelStore

TASKS = {"retriever": "embed", "reranker": "rerank", "generator": "generate"}


def check_names(config: Config) -> None:
    """Raise `ConfigError` for the first stage that names something unknown, or a runtime that is missing."""
    from edged.placement.defaults import usable

    for name, stage in config.stages.items():
        for field, problem in _problems(stage):
            raise ConfigError(f"stages.{name}.{field}: {problem}", param=f"stages.{name}.{field}")
        if stage.backend and stage.workers != 0:
            usable(name, stage.backend)


def _problems(stage: Stage) -> Iterator[tuple[str, str]]:
    from edged.catalogue import Catalogue
    from edged.plugins import names

    if stage.backend and stage.backend not in names():
        yield "backend", f"unknown backend {stage.backend!r}; installed: {', '.join(names())}"
    entries = [entry for entry in stage.fallback or () if not isinstance(entry, str)]
    for entry in entries:
        if entry.backend and entry.backend not in names():
            yield "fallback", f"unknown backend {entry.backend!r}; installed: {', '.join(names())}"
    if stage.weightless or not stage.model:
        return
    try:
        model = Catalogue.discover().model(stage.model)
        for variant in (stage.variant, *(entry.variant for entry in entries)):
            model.variant(variant)
    except NotFound as error:
        yield ("model" if error.param == "model" else "variant"), error.message
        return
    if TASKS.get(stage.kind, model.task) != model.task:
        yield "model", f"{stage.model!r} is a model for {model.task!r}, which a {stage.kind} cannot use"


def absent(config: Config) -> Iterator[str]:
    """Say of each stage in use whose weights are not on this machine what to run."""
    from edged.catalogue import Catalogue
    from edged.models.store import ModelStore

    store = ModelStore(config.daemon.state_dir / "models", Catalogue.discover())
    for name, stage in config.stages.items():
        if stage.workers != 0 and stage.model and not stage.weightless and not _here(store, stage):
            wanted = f"{stage.model} {stage.variant}".rstrip()
            yield (
                f"stages.{name}.model: {wanted} is not on this machine ({store.path}); "
                f"run `edgectl models pull {wanted}`"
            )


def unused(config: Config) -> Iterator[str]:
    """Say of each generator that has more room for sequences than it may ever fill."""
    for name, stage in config.stages.items():
        room = stage.options.get("max_sequences")
        if stage.kind == "generator" and stage.max_batch and isinstance(room, int) and room > stage.max_batch:
            yield (
                f"stages.{name}.options.max_sequences = {room}: the KV cache is for {room} sequences, and "
                f"max_batch = {stage.max_batch} lets no more be decoded together; make both the same, or "
                "leave max_batch out"
            )


def _here(store: ModelStore, stage: Stage) -> bool:
    """Whether a variant that the stage may use is here; without a name, any that its backend opens."""
    backend = stage.options.get("runtime", "") if stage.backend == "simulated" else stage.backend
    return any(
        store.present(stage.model, rung.name)
        for rung in store.catalogue.model(stage.model).variants
        if stage.variant in {"", rung.name} and (not backend or backend in rung.backends)
    )
