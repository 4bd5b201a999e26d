"""What an operator had a stage run instead of what configuration and plan say: kept until a restart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edged.backend import Variant
from edged.catalogue import Rung
from edged.config import Config, Stage
from edged.errors import BadRequest, NotFound
from edged.models.store import ModelStore
from edged.placement.defaults import RUNTIMES, place, usable
from edged.placement.forms import PRICED
from edged.report import Override
from edged.workers.spec import StageSpec

GENERATORS = frozenset({"max_tokens", "answers_cache_mib"})
"""Options of a generator, whatever runs it."""
RUNTIMES_ALIKE = frozenset({"threads", "max_sequences", "context_tokens"})
"""Options that every generator's runtime has, and means alike."""
LAYERED = RUNTIMES_ALIKE | {
    "block",
    "devices",
    "dtype",
    "layers",
    "micro_batches",
    "mode",
    "offload_cache",
    "overlap",
    "overlap_folder",
    "overlap_from",
    "prefill_tokens",
    "running_prefill_tokens",
    "split",
    "state_dir",
    "timeout_s",
    "transport",
}
"""Options of a layer pipeline."""


def overridden(
    name: str, stage: Stage, asked: Override, now: StageSpec | None, config: Config, store: ModelStore
) -> StageSpec:
    """Place a stage that runs as `now` (None: not at all) with some of it changed.

    `NotFound` for a variant that the model lacks, `BadRequest` for one that the backend does not open,
    `ConfigError` for a backend that is not installed, `ModelError` for weights that are not here.
    """
    wanted = _completed(name, asked, now, stage, store)
    spec = place(name, _filled(stage, wanted), config, store)
    if now is None or spec.backend != now.backend:
        options = _merged(_understood(stage, spec), shared(asked.options, spec))
        return msgspec.structs.replace(spec, options=options)
    options = _merged(_options(stage, now, spec), asked.options)
    return msgspec.structs.replace(spec, options=options, max_batch=now.max_batch)


def shared(options: Mapping[str, Any], spec: StageSpec) -> dict[str, Any]:
    """Of the options of one backend, those that the backend of a stage has as well."""
    known = {*RUNTIMES_ALIKE, *PRICED.get((spec.backend, spec.kind), ())}
    return {name: value for name, value in options.items() if name in known}


def _merged(options: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Options with others instead; None takes one away.

    >>> _merged({"threads": 2, "exact": False}, {"threads": 1, "exact": None})
    {'threads': 1}
    """
    return {key: value for key, value in {**options, **asked}.items() if value is not None}


def _completed(
    name: str, asked: Override, now: StageSpec | None, stage: Stage, store: ModelStore
) -> Override:
    """Name what stays: the variant, the backend and the device where they go together with what is new."""
    backend = asked.backend or (now.backend if now else stage.backend)
    if asked.backend:
        usable(name, asked.backend)
    if _weightless(stage, backend):
        variant = asked.variant or (now.variant.name if now and now.backend == backend else "")
    else:
        known = now is not None and not _weightless(stage, now.backend)
        present = now.variant.name if now and known else stage.variant
        variant, backend = _paired(asked, asked.variant or present, backend, stage, store)
    return Override(variant=variant, backend=backend, device=asked.device or _device(stage, backend, now))


def _weightless(stage: Stage, backend: str) -> bool:
    return msgspec.structs.replace(stage, backend=backend).weightless


def _device(stage: Stage, backend: str, now: StageSpec | None) -> str:
    """The present device where another backend may have it too; else the default."""
    if now is not None and backend == now.backend:
        return now.device
    if now is not None and now.device.startswith("cpu") and not _weightless(stage, backend):
        return now.device
    return stage.device if stage.backend == backend else ""


def _paired(asked: Override, variant: str, backend: str, stage: Stage, store: ModelStore) -> tuple[str, str]:
    """A variant and a backend that opens it; of the two, what was asked for stands."""
    variants = store.catalogue.model(stage.model).variants
    opens = {rung.name: rung.backends for rung in variants}
    if asked.variant and asked.variant not in opens:
        raise NotFound(
            f"{stage.model} has no variant {asked.variant[:80]!r}; it has: {_listed(list(opens))}; "
            "those that are here are listed by: edgectl models list",
            param="variant",
        )
    if not variant or backend in {
        "simulated",
        *opens.get(variant, ()),
    }:  # it borrows a runtime for the weights
        return variant, backend
    if not asked.backend:  # another variant, which the present backend does not open
        return variant, ""
    if not asked.variant:  # another backend, which does not open the present variant
        return "", backend
    raise BadRequest(
        f"{stage.model} {variant} is not for backend {backend!r}, but for: {_listed(opens[variant])}",
        param="backend",
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _filled(stage: Stage, wanted: Override) -> Stage:
    return msgspec.structs.replace(
        stage, variant=wanted.variant, backend=wanted.backend, device=wanted.device
    )


def _understood(stage: Stage, spec: StageSpec) -> dict[str, object]:
    """Without a layer pipeline's options where it becomes something else, and those that none knows."""
    if spec.backend == "torch_pipeline":
        return {key: value for key, value in spec.options.items() if key in LAYERED | GENERATORS}
    layered = LAYERED - RUNTIMES_ALIKE if stage.backend == "torch_pipeline" else frozenset[str]()
    return {key: value for key, value in spec.options.items() if key not in layered}


def _options(stage: Stage, now: StageSpec, spec: StageSpec) -> dict[str, object]:
    """As now; a number of threads that nobody but a plan chose is for the device that it chose."""
    moved = spec.device != now.device and "threads" not in stage.options
    return {key: value for key, value in now.options.items() if not (moved and key == "threads")}


def manifest_entry(variant: Variant, store: ModelStore) -> Rung | None:
    """What the manifest says of a variant; None where there is none, as of a simulated one."""
    model = store.catalogue.models.get(variant.model)
    rungs = {rung.name: rung for rung in model.variants} if model else {}
    return rungs.get(variant.name)


def expected_bytes(variant: Variant, backend: str, store: ModelStore) -> int:
    """What a worker takes by the manifest's measurement; 0 where there is none."""
    rung = manifest_entry(variant, store)
    return rung.memory_bytes.get(backend, 0) if rung and backend in {*RUNTIMES, *rung.backends} else 0
