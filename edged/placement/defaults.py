"""Where a stage runs: as the operator wrote, else as the applied plan says, else by a documented order.

A stage for which nobody names a backend takes the first one of its model's manifest whose runtime is
installed; the manifests order them by measurement (docs/operations.md, "Default placement").
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from edged.backend import Variant
from edged.config import Config, Stage
from edged.config.tables import MOST_BATCH
from edged.errors import ConfigError
from edged.layers.spec import is_elsewhere
from edged.models.store import ModelStore
from edged.placement.standing import options_of
from edged.placement.table import Choice
from edged.plugins import names
from edged.workers.spec import StageSpec

RUNTIMES: dict[str, tuple[str, str]] = {
    "onnx": ("onnxruntime", "edged"),
    "openvino": ("openvino", "edged"),
    "llama_cpp": ("llama_cpp", "edged[llama]"),
    "openai": ("httpx", "edged[openai]"),
    "torch_pipeline": ("torch", "edged[pipeline]"),
}
"""Module whose presence makes a backend usable, and what to install for it; looked for, not imported."""
DELIBERATE = frozenset({"simulated", "torch_pipeline"})
"""Backends that a stage has only where somebody names them: a layer pipeline is for models that fit no
device, and on one device it is slower than the others."""


DEVICE, WORKERS, MAX_BATCH = "cpu", 1, 8
"""Of a stage for which neither the operator nor a plan says anything."""
STUCK = 0.75
"""Of a stage's `timeout_s`: a layer pipeline names the part that is stuck before its worker is killed."""
REMOTE = "remote"
"""The device of a stage whose work a server does."""


def place(
    name: str, stage: Stage, config: Config, store: ModelStore, choice: Choice | None = None
) -> StageSpec:
    """Choose backend, variant, device and batch of a stage; a plan's `choice` fills what was left empty.

    `ConfigError` or `ModelError` says what is missing.
    """
    if choice is not None:
        stage = filled(stage, choice)
    if stage.backend:
        usable(name, stage.backend)
    variant = _variant(name, stage, store)
    backend = stage.backend or _first_present(variant, store)
    return StageSpec(
        name=name,
        kind=stage.kind,
        backend=backend,
        device=stage.device or _device(backend, stage),
        max_batch=stage.max_batch or _batch(stage),
        variant=variant,
        options=own_options(backend, stage, config.daemon.state_dir / "cache") | stage.options,
        library=config.library.dir,
        stream_interval_ms=stage.stream_interval_ms,
    )


def _batch(stage: Stage) -> int:
    """The default; of a generator, as many as the operator gives a KV cache, so that none lies idle."""
    wanted = stage.options.get("max_sequences") if stage.kind == "generator" else None
    return wanted if isinstance(wanted, int) and 1 <= wanted <= MOST_BATCH else MAX_BATCH


def own_options(backend: str, stage: Stage, cache_dir: Path) -> dict[str, Any]:
    """Options of a backend that nobody has to write."""
    match backend:
        case "openvino":
            return {"cache_dir": str(cache_dir)}
        case "torch_pipeline":
            return {"timeout_s": STUCK * stage.timeout_s} | _elsewhere(stage, cache_dir.parent)
        case _:
            return {}


def _elsewhere(stage: Stage, state_dir: Path) -> dict[str, Any]:
    """Where a layer pipeline finds the keys for its stages on other hosts."""
    devices = stage.options.get("devices", ())
    return {"state_dir": str(state_dir)} if any(is_elsewhere(str(each)) for each in devices) else {}


def _device(backend: str, stage: Stage) -> str:
    """The default; of a layer pipeline, its first accelerator, with which the stage is lost."""
    devices = stage.options.get("devices", ()) if backend == "torch_pipeline" else ()
    here = [str(each) for each in devices if not is_elsewhere(str(each))]
    found = next((each for each in here if not each.startswith(DEVICE)), DEVICE)
    return REMOTE if backend == "openai" else str(found)


def filled(stage: Stage, choice: Choice) -> Stage:
    """The stage with what the operator left empty taken from a plan; what he wrote stands."""
    form = choice.form
    return msgspec.structs.replace(
        stage,
        variant=stage.variant or form.variant,
        backend=stage.backend or form.backend,
        device=stage.device or form.device,
        workers=choice.workers if stage.workers is None else stage.workers,
        max_batch=stage.max_batch or choice.batch,
        options=options_of(form) | stage.options,
    )


def workers_of(stage: Stage, choice: Choice | None = None) -> int:
    """How many processes a stage gets: the operator's number, else the plan's, else one."""
    if stage.workers is not None:
        return stage.workers
    return choice.workers if choice else WORKERS


def _first_present(variant: Variant, store: ModelStore) -> str:
    return first_present(store.catalogue.model(variant.model).variant(variant.name).backends)


def first_present(order: Sequence[str]) -> str:
    """The first backend of a manifest's list whose runtime is here, none of those that must be named."""
    free = [backend for backend in order if backend not in DELIBERATE] or order
    return next((backend for backend in free if _installed(backend)), free[0])


def _installed(backend: str) -> bool:
    module, _ = RUNTIMES.get(backend, ("", ""))
    return backend in names() and (not module or find_spec(module) is not None)


def usable(stage: str, backend: str) -> None:
    """`ConfigError` unless the backend is installed with its runtime; it names what there is."""
    if backend not in names():
        raise ConfigError(
            f"stage {stage!r} asks for the unknown backend {backend!r}; installed: {', '.join(names())}",
            param=f"stages.{stage}.backend",
        )
    module, package = RUNTIMES.get(backend, ("", ""))
    if module and find_spec(module) is None:
        raise ConfigError(
            f"stage {stage!r} asks for backend {backend!r}, whose runtime is missing; "
            f"run: pip install '{package}'",
            param=f"stages.{stage}.backend",
        )


def _variant(name: str, stage: Stage, store: ModelStore) -> Variant:
    if stage.weightless:
        return Variant(
            model=str(stage.options.get("model") or stage.model or name),
            name=stage.variant or "none",
            task="generate" if stage.kind == "generator" else "tensor",
            format="none",
            path=Path("/dev/null"),
        )
    if not stage.model:
        raise ConfigError(f"stage {name!r} names no model", param=f"stages.{name}.model")
    backend = str(stage.options["runtime"]) if stage.backend == "simulated" else stage.backend
    return store.resolve(stage.model, stage.variant, backend=backend)
