"""The only importer of llama-cpp-python: its log, its devices, its models.

Everything here is a thin, typed edge over ctypes; handles of the runtime are `Any`.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from edged.birth import SPINS

os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read once, when libgomp is loaded

import llama_cpp as runtime
from llama_cpp import llama_cpp as _bindings

from edged.layers.planning.llama_split import MAX_DEVICES, LlamaSplit

__all__ = ["Accelerator", "accelerators", "explained", "free_model", "load_model", "overheard", "runtime"]

LOGGER = logging.getLogger(__name__)
_LAYERS = logging.getLogger(f"{__name__}.layers")
"""What the runtime says of where it puts layers: at a level that no log is kept at."""
_LAYERS.propagate = False
_LAYERS.setLevel(logging.DEBUG)
_ABOUT_LAYERS = "load_tensors: layer"
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.WARNING}
"""By `ggml_log_level`. What is an error to the runtime becomes an exception here, which tells it."""
_GPU, _IGPU = 1, 2
"""`GGML_BACKEND_DEVICE_TYPE_GPU` and `..._IGPU` of ggml-backend.h."""


@runtime.llama_log_callback  # type: ignore[untyped-decorator] # a ctypes function type
def _log(level: int, text: bytes, _user_data: int) -> None:
    line = text.decode("utf-8", "replace").rstrip()
    LOGGER.log(_LEVELS.get(level, logging.DEBUG), "%s", line)
    if line.startswith(_ABOUT_LAYERS):
        _LAYERS.debug("%s", line)


runtime.llama_log_set(_log, ctypes.c_void_p())


class _Lines(logging.Handler):
    """Keeps what the runtime says."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def explained() -> Iterator[list[str]]:
    """Collect the runtime's error messages while the block runs: its calls return no reasons."""
    with _collected(LOGGER, logging.WARNING) as lines:
        yield lines


@contextmanager
def overheard() -> Iterator[list[str]]:
    """Collect what the runtime says of where it puts layers while the block runs: no call tells."""
    with _collected(_LAYERS, logging.DEBUG) as lines:
        yield lines


@contextmanager
def _collected(logger: logging.Logger, level: int) -> Iterator[list[str]]:
    handler = _Lines(level)
    logger.addHandler(handler)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)


class Accelerator(NamedTuple):
    """A device other than the CPU in ggml's registry."""

    handle: int
    name: str
    """As ggml numbers it: `CUDA0`, `Vulkan0`, `SYCL0`."""
    description: str
    memory_bytes: int
    integrated: bool


def accelerators() -> list[Accelerator]:
    """List the GPUs that this build of llama.cpp can use."""
    ggml = _ggml()
    handles = [ggml.ggml_backend_dev_get(index) for index in range(ggml.ggml_backend_dev_count())]
    return [
        _accelerator(ggml, handle)
        for handle in handles
        if ggml.ggml_backend_dev_type(handle) in (_GPU, _IGPU)
    ]


def _accelerator(ggml: ctypes.CDLL, handle: int) -> Accelerator:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
    return Accelerator(
        handle=handle,
        name=ggml.ggml_backend_dev_name(handle).decode(),
        description=ggml.ggml_backend_dev_description(handle).decode(),
        memory_bytes=total.value,
        integrated=ggml.ggml_backend_dev_type(handle) == _IGPU,
    )


def _ggml() -> ctypes.CDLL:
    """Type the registry's functions, which the bindings leave out; libllama's handle resolves them."""
    library: ctypes.CDLL = _bindings._lib  # noqa: SLF001 - no public name for the loaded library
    size_pointer = ctypes.POINTER(ctypes.c_size_t)
    for name, arguments, result in (
        ("count", [], ctypes.c_size_t),
        ("get", [ctypes.c_size_t], ctypes.c_void_p),
        ("type", [ctypes.c_void_p], ctypes.c_int),
        ("name", [ctypes.c_void_p], ctypes.c_char_p),
        ("description", [ctypes.c_void_p], ctypes.c_char_p),
        ("memory", [ctypes.c_void_p, size_pointer, size_pointer], None),
    ):
        function = getattr(library, f"ggml_backend_dev_{name}")
        function.argtypes, function.restype = arguments, result
    return library


def load_model(path: bytes, used: Sequence[Accelerator], split: LlamaSplit) -> Any:
    """Load a GGUF file onto the CPU, or its layers onto accelerators as `split` says; None when it cannot."""
    runtime.llama_backend_init()
    handles = (ctypes.c_void_p * (len(used) + 1))(*[accelerator.handle for accelerator in used], None)
    fractions = (ctypes.c_float * MAX_DEVICES)(*split.tensor_split)
    parameters: Any = runtime.llama_model_default_params()
    parameters.devices = ctypes.cast(handles, ctypes.c_void_p)
    parameters.n_gpu_layers = split.n_gpu_layers
    parameters.tensor_split = ctypes.cast(fractions, ctypes.POINTER(ctypes.c_float))
    parameters.main_gpu = split.main_gpu
    if used:
        parameters.split_mode = split.split_mode
    return runtime.llama_model_load_from_file(path, parameters)


def free_model(model: Any) -> None:
    """Give a model's memory back."""
    runtime.llama_model_free(model)
