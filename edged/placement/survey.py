"""What this box has to measure: runtimes with their devices, variants that are present, passages."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from edged import plugins
from edged.backend import Variant
from edged.catalogue import Catalogue
from edged.config import Config, Stage
from edged.errors import ConfigError, EdgedError
from edged.models.store import ModelStore
from edged.placement import passages
from edged.placement.completeness import forgotten, without_lost
from edged.placement.defaults import DELIBERATE
from edged.placement.fingerprint import take
from edged.placement.forms import Box, Candidate, Present, Runtime, candidates
from edged.placement.staleness import stale, still_valid, undisturbed, workload_changes
from edged.placement.table import Fingerprint, Table
from edged.placement.workload import NEW_TOKENS, Workload, draw

PASSING = frozenset({"hung", "out_of_memory"})
"""Failures that a busy machine may have caused: tried again by the next calibration."""
CANDIDATES, KEEP = 20, 4
"""Of a request where the configuration says nothing: defaults of the retriever and of the reranker."""


def runtimes(stages: Mapping[str, Stage]) -> tuple[tuple[Runtime, ...], dict[str, str]]:
    """Installed backends that a stage may use, and why others cannot be used."""
    fixed = {stage.backend for stage in stages.values()}
    found, missing = [], {}
    for name in plugins.names():
        if name not in fixed and ("" not in fixed or name in DELIBERATE):
            continue
        try:
            backend = plugins.load(name)
            found.append(Runtime(name=name, formats=backend.formats, devices=tuple(backend.devices())))
        except EdgedError as error:
            missing[name] = error.message
    return tuple(found), missing


def stages_of(config: Config, names: Sequence[str]) -> dict[str, Stage]:
    """The stages to measure: those that are named, else all that are not switched off."""
    if unknown := [name for name in names if name not in config.stages]:
        known = ", ".join(config.stages)
        raise ConfigError(f"there is no stage {unknown[0]!r}; the configuration has: {known}", param="stage")
    wanted = {name: stage for name, stage in config.stages.items() if stage.workers != 0}
    return {name: config.stages[name] for name in names} if names else wanted


def present(stage: Stage, name: str, store: ModelStore) -> list[Present]:
    """The variants of a stage's model that are here, the default first, then best first."""
    if stage.weightless:
        variant = Variant(
            model=stage.model or name,
            name=stage.variant or "none",
            task="generate" if stage.kind == "generator" else "tensor",
            format="none",
            path=Path("/dev/null"),
        )
        return [Present(variant=variant)]
    if not stage.model:
        return []
    manifest = store.catalogue.model(stage.model)
    default = manifest.variant()
    rungs = [default, *(rung for rung in manifest.variants if rung is not default)]
    return [
        Present(variant=store.resolve(stage.model, rung.name), preferred=rung.backends)
        for rung in rungs
        if store.present(stage.model, rung.name)
    ]


def all_candidates(
    stages: dict[str, Stage], config: Config, store: ModelStore, found: tuple[Runtime, ...]
) -> list[Candidate]:
    """Every form of every stage; `ConfigError` when a stage has none, with what to do."""
    box = Box(
        runtimes=found,
        cores=len(os.sched_getaffinity(0)),
        library=config.library.dir,
        cache_dir=config.daemon.state_dir / "cache",
    )
    everything: list[Candidate] = []
    for name, stage in stages.items():
        forms = candidates(name, stage, present(stage, name, store), box)
        if not forms:
            raise ConfigError(
                f"stage {name!r} has no form to measure: no variant of {stage.model!r} is here that an "
                " installed backend opens on the configured device; try: edgectl models pull",
                param=f"stages.{name}",
            )
        everything += forms
    return everything


def workload(config: Config) -> Workload:
    """What requests are made of: the operator's documents, else the samples; sizes as configured."""
    found = passages.from_library(config.library.dir)
    samples = config.library
    drawn = draw(found or passages.from_samples(samples.chunk_tokens, samples.overlap_tokens))
    return Workload(
        passages=drawn,
        source="library" if found else "samples",
        searchable=bool(found),
        candidates=_option(config, "retriever", "candidates", CANDIDATES),
        keep=_option(config, "reranker", "keep", KEEP),
        new_tokens=min(NEW_TOKENS, _option(config, "generator", "max_tokens", NEW_TOKENS)),
    )


def _option(config: Config, kind: str, name: str, default: int) -> int:
    """A whole number of the options of the first stage of that kind."""
    values = [stage.options.get(name, default) for stage in config.stages.values() if stage.kind == kind]
    return values[0] if values and isinstance(values[0], int) else default


def open_store(config: Config, environment: Mapping[str, str]) -> ModelStore:
    """The weights of this configuration."""
    return ModelStore(config.daemon.state_dir / "models", Catalogue.discover(), environment)


Forget = Literal["", "disturbed", "all"]
"""What to measure again of the stages at hand: nothing, what other processes disturbed, everything."""


def starting_table(
    former: Table | None, everything: Sequence[Candidate], work: Workload, forget: Forget = ""
) -> tuple[Table, list[str]]:
    """What a calibration of these forms begins with: the figures that still hold, and why others do not.

    Of stages that have no form among them, whatever still holds is kept.
    """
    now = fingerprint(everything)
    empty = Table(fingerprint=now, measured_at="", workload=work.summary())
    if former is None:
        return empty, []
    if changes := workload_changes(former.workload, work.summary()):
        return empty, changes
    stages = {candidate.form.stage for candidate in everything}
    kept = still_valid(_remembered(former, stages, forget), now)
    again = tuple(f for f in kept.failures if f.code not in PASSING or f.form.stage not in stages)
    kept = msgspec.structs.replace(kept, failures=again)
    return without_lost(former, kept), stale(former, now)


def _remembered(former: Table, stages: Collection[str], forget: Forget) -> Table:
    match forget:
        case "all":
            return forgotten(former, stages)
        case "disturbed":
            return undisturbed(former, stages)
        case _:
            return former


def fingerprint(everything: Sequence[Candidate]) -> Fingerprint:
    """The fingerprint of the machine with the weights of these forms."""
    models = {f"{c.form.model}/{c.form.variant}": c.spec.variant.digest for c in everything}
    return take({name: digest for name, digest in models.items() if digest})
