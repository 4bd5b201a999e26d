"""Whether a measurement of the ladder still holds: what it was about, and what there is now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from edged.config import Config, Stage
from edged.documents import index
from edged.errors import ConfigError, EdgedError
from edged.models.store import ModelStore
from edged.placement.fingerprint import take
from edged.placement.staleness import machine_changes
from edged.placement.storage import PLAN, load_plan
from edged.rungs.record import Fingerprint

PATIENCE = frozenset({"timeout_s", "load_timeout_s"})
"""Settings of a stage that change neither answers nor their cost."""


def pipeline_of(config: Config, name: str = "") -> str:
    """The pipeline to measure: the named one, else `rag`, else the first that ends in a generator."""
    ends = {each: config.stages[line.stages[-1]].kind for each, line in config.pipelines.items()}
    able = [each for each, kind in ends.items() if kind == "generator"]
    wanted = name or ("rag" if "rag" in able else next(iter(able), ""))
    if wanted not in able:
        known = ", ".join(able) or "none"
        raise ConfigError(
            f"no pipeline {wanted!r} that ends in a generator; there is: {known}", param="pipeline"
        )
    return wanted


def fingerprint(config: Config, store: ModelStore, pipeline: str) -> Fingerprint:
    """What figures taken now would be about."""
    stages = {name: config.stages[name] for name in config.pipelines[pipeline].stages}
    return Fingerprint(
        machine=take(_digests(stages, store)),
        pipeline=pipeline,
        stages={name: _configured(stage) for name, stage in stages.items()},
        plan=plan.id if (plan := load_plan(config.daemon.state_dir / PLAN)) else "",
        generation=_generation(config.library.dir),
        generators=tuple(name for name, stage in stages.items() if stage.kind == "generator"),
    )


def stale(then: Fingerprint, now: Fingerprint) -> list[str]:
    """Why figures of `then` do not hold now, a sentence each; empty when they do."""
    reasons = machine_changes(then.machine, now.machine)
    if then.pipeline != now.pipeline:
        reasons.append(f"pipeline: {then.pipeline} -> {now.pipeline}")
    if then.generation != now.generation:
        reasons.append(f"documents: generation {then.generation} of the library -> {now.generation}")
    if then.plan != now.plan:
        reasons.append(f"plan: {then.plan or 'none'} -> {now.plan or 'none'}")
    packages = _differing(then.machine.packages, now.machine.packages)
    reasons += [f"package {name}: another version" for name in packages]
    reasons += [f"stage {name}: configured otherwise" for name in _differing(then.stages, now.stages)]
    models = _differing(then.machine.models, now.machine.models)
    return reasons + [f"model {name}: other weights than measured" for name in models]


def _differing(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names that both know with another value; a stage that came or went differs in the other's eyes too."""
    return sorted(name for name, value in then.items() if now.get(name, value) != value)


def _digests(stages: Mapping[str, Stage], store: ModelStore) -> dict[str, str]:
    """By `model/variant`: digests of all variants of the stages' models that are here."""
    models = {stage.model for stage in stages.values() if stage.model in store.catalogue.models}
    names = [(model, rung.name) for model in models for rung in store.catalogue.model(model).variants]
    found = {f"{model}/{name}": _digest(store, model, name) for model, name in names}
    return {name: digest for name, digest in found.items() if digest}


def _digest(store: ModelStore, model: str, variant: str) -> str:
    try:
        return store.recorded_digest(model, variant)
    except EdgedError:
        return ""


def _configured(stage: Stage) -> str:
    """What the operator says about a stage, as far as answers depend on it."""
    said = {name: value for name, value in msgspec.to_builtins(stage).items() if name not in PATIENCE}
    return msgspec.json.encode(said, order="sorted").decode()


def _generation(library: Path) -> int:
    try:
        return index.current(library)
    except OSError:
        return 0
