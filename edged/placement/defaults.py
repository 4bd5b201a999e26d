"""Where a stage runs when nobody measured: a documented order, and `status` says that it applies.

A stage that names no backend takes the first one of its model's manifest whose runtime is installed; the
manifests order them by measurement (docs/operations.md, "Default placement").
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from edged.backend import Variant
from edged.config import Config, Stage
from edged.errors import ConfigError
from edged.models.store import ModelStore
from edged.plugins import names
from edged.workers.spec import StageSpec

RUNTIMES: dict[str, tuple[str, str]] = {
    "onnx": ("onnxruntime", "edged"),
    "openvino": ("openvino", "edged"),
    "llama_cpp": ("llama_cpp", "edged[llama]"),
}
"""Module whose presence makes a backend usable, and what to install for it; looked for, not imported."""


def place(name: str, stage: Stage, config: Config, store: ModelStore) -> StageSpec:
    """Choose backend and variant for a stage; `ConfigError` or `ModelError` says what is missing."""
    if stage.backend:
        _check_runtime(name, stage.backend)
    variant = _variant(name, stage, store)
    backend = stage.backend or _first_present(variant, store)
    own_cache = {"cache_dir": str(config.daemon.state_dir / "cache")} if backend == "openvino" else {}
    return StageSpec(
        name=name,
        kind=stage.kind,
        backend=backend,
        device=stage.device,
        max_batch=stage.max_batch,
        variant=variant,
        options=own_cache | stage.options,
        library=config.library.dir,
    )


def _first_present(variant: Variant, store: ModelStore) -> str:
    order = store.catalogue.model(variant.model).variant(variant.name).backends
    return next((backend for backend in order if _installed(backend)), order[0])


def _installed(backend: str) -> bool:
    module, _ = RUNTIMES.get(backend, ("", ""))
    return backend in names() and (not module or find_spec(module) is not None)


def _check_runtime(stage: str, backend: str) -> None:
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
    if stage.backend == "simulated":
        return Variant(
            model=stage.model or name,
            name=stage.variant or "none",
            task="generate" if stage.kind == "generator" else "tensor",
            format="none",
            path=Path("/dev/null"),
        )
    if not stage.model:
        raise ConfigError(f"stage {name!r} names no model", param=f"stages.{name}.model")
    return store.resolve(stage.model, stage.variant, backend=stage.backend)
