"""Where a stage runs when nobody measured: a documented order, and `status` says that it applies.

The order comes from measurements on a two-core server CPU (docs/operations.md, "Default placement"):
int8 encoders run fastest in onnxruntime; generation in openvino-genai needs no compiler and batches best.
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

ORDER: dict[str, tuple[str, ...]] = {
    "retriever": ("onnx", "openvino"),
    "reranker": ("onnx", "openvino"),
    "generator": ("openvino", "llama_cpp"),
    "tensor": ("onnx", "openvino"),
}
FORMATS: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx",),
    "openvino": ("onnx", "gguf", "openvino"),
    "llama_cpp": ("gguf",),
    "simulated": ("none",),
}
RUNTIMES: dict[str, tuple[str, str]] = {
    "onnx": ("onnxruntime", "edged"),
    "openvino": ("openvino", "edged"),
    "llama_cpp": ("llama_cpp", "edged[llama]"),
}
"""Module whose presence makes a backend usable, and what to install for it; looked for, not imported."""


def place(name: str, stage: Stage, config: Config, store: ModelStore) -> StageSpec:
    """Choose backend and variant for a stage; `ConfigError` or `ModelError` says what is missing."""
    backend = stage.backend or _first_present(stage.kind)
    _check_runtime(name, backend)
    return StageSpec(
        name=name,
        kind=stage.kind,
        backend=backend,
        device=stage.device,
        max_batch=stage.max_batch,
        variant=_variant(name, stage, backend, store),
        options=stage.options,
        library=config.library.dir,
        cache_dir=config.daemon.state_dir / "cache",
    )


def _first_present(kind: str) -> str:
    order = ORDER[kind]
    return next((backend for backend in order if find_spec(RUNTIMES[backend][0])), order[0])


def _check_runtime(stage: str, backend: str) -> None:
    if backend not in names():
        raise ConfigError(
            f"stage {stage!r} asks for the unknown backend {backend!r}; installed: {', '.join(names())}",
            param=f"stages.{stage}.backend",
        )
    module, package = RUNTIMES.get(backend, ("", ""))
    if module and find_spec(module) is None:
        raise ConfigError(
            f"stage {stage!r} asks for backend {backend!r}, whose runtime is missing: pip install '{package}'",
            param=f"stages.{stage}.backend",
        )


def _variant(name: str, stage: Stage, backend: str, store: ModelStore) -> Variant:
    if backend == "simulated" or (stage.kind == "tensor" and not stage.model):
        return Variant(
            model=stage.model or name,
            name=stage.variant or "none",
            task="generate" if stage.kind == "generator" else "tensor",
            format="none",
            path=Path("/dev/null"),
        )
    if not stage.model:
        raise ConfigError(f"stage {name!r} names no model", param=f"stages.{name}.model")
    return store.resolve(stage.model, stage.variant, FORMATS.get(backend, ()), backend=backend)
