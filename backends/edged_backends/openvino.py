"""Adapter to OpenVINO: tensors on CPU, GPU and NPU by one code path, tokens through OpenVINO GenAI.

What a device needs (fixed shapes, one item at a time) is data in its `Capabilities`; the option
`static_shapes` asks for the same treatment on any device. Only the CPU has been run so far: GPU and NPU
differ by the device name that the runtime is given and by the capabilities.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from edged.backend import Array, Device, TensorSession, TokenSession, Variant
from edged.errors import BackendError
from edged_backends.lanes import Lanes
from edged_backends.onnx_files import check_external_data
from edged_backends.openvino_devices import BACKEND, ERRORS, list_devices, runtime_name, translated
from edged_backends.openvino_generators import TokenOptions, open_tokens
from edged_backends.openvino_runtime import ov
from edged_backends.options import read_options, thread_count
from edged_backends.static_shapes import StaticShapeSession, buckets


class TensorOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the adapter `openvino` for tensor models."""

    threads: int = 0
    """Threads of one run (CPU); 0 means one per core that the stage may use."""
    cache_dir: str = ""
    """Folder for compiled models; empty means compile at every start."""
    hint: Literal["LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT"] = "LATENCY"
    precision: Literal["", "f32", "bf16", "f16"] = ""
    """Type of the arithmetic; empty leaves it to the device."""
    pinning: bool = False
    """Bind threads to cores; off, because the cores are shared."""
    static_shapes: bool = False
    """Run with fixed shapes even where the device does not need them."""
    sequence_lengths: tuple[int, ...] = ()
    """Lengths to compile for fixed shapes; empty means powers of two up to the model's context."""
    static_batch: int = 1
    """Items of one run with fixed shapes."""


class OpenvinoBackend:
    """OpenVINO: opens `onnx` and `openvino` weights as tensors, `gguf` weights as tokens."""

    name = BACKEND
    formats = ("onnx", "openvino", "gguf")

    def devices(self) -> list[Device]:
        """List the devices of the runtime, and the accelerators that it cannot use with the reason."""
        return list_devices(ov.Core(), Path("/"))

    def open(
        self, variant: Variant, device: Device, options: Mapping[str, Any], /
    ) -> TensorSession | TokenSession:
        """Load a model; `BackendError` when file, format or device cannot be used."""
        if variant.format not in self.formats or (variant.task == "generate") != (variant.format == "gguf"):
            raise BackendError(f"openvino does not open {variant.format} weights for the task {variant.task}")
        if device.unusable:
            raise BackendError(f"device {device.id} cannot be used: {device.unusable}")
        core = ov.Core()
        if variant.task == "generate":
            tokens = read_options(TokenOptions, options, self.name)
            return open_tokens(variant, device, runtime_name(core, device), tokens)
        return _open_tensors(core, variant, device, read_options(TensorOptions, options, self.name))


class OpenvinoSession:
    """A model compiled by OpenVINO; `lanes` is how many runs of `run_each` go on at once."""

    def __init__(self, compiled: Any, path: Path, *, lanes: int = 1, lone_rows: bool = False) -> None:
        self._requests: deque[Any] = deque(compiled.create_infer_request() for _ in range(lanes))
        self._closed = False
        self._path = path
        self._lanes = Lanes(lanes)
        self.lanes, self.lone_rows = lanes, lone_rows
        self.inputs = tuple(port.get_any_name() for port in compiled.inputs)
        self.outputs = tuple(port.get_any_name() for port in compiled.outputs)

    def run(self, feeds: Mapping[str, Array], /) -> dict[str, Array]:
        """Run one batch; see `TensorSession.run`."""
        if self._closed:
            raise BackendError(f"the session of {self._path} is closed")
        if set(self.inputs) != set(feeds):
            given = ", ".join(feeds) or "none"
            raise BackendError(f"{self._path} takes the inputs {', '.join(self.inputs)}; given: {given}")
        request = self._requests.popleft()
        try:
            # The runtime reuses its output memory in the next run, so the caller gets copies.
            results = request.infer(dict(feeds), share_inputs=True, share_outputs=False)
            return {name: np.array(results[name]) for name in self.outputs}
        except ERRORS as error:
            raise translated(error, f"openvino failed to run {self._path}") from error
        finally:
            self._requests.append(request)

    def run_each(self, runs: Sequence[Mapping[str, Array]], /) -> list[dict[str, Array]]:
        """Do independent runs side by side; see `TensorSession.run_each`."""
        return self._lanes.each(self.run, runs)

    def attend(self, look: Callable[[], None], /) -> None:
        """See `TensorSession.attend`."""
        self._lanes.attend(look)

    def set_threads(self, count: int, /) -> bool:
        """Keep at most `count` cores busy; only an encoder's session can, whose runs have one thread each."""
        self._lanes.limit(count)
        return self.lone_rows

    def close(self) -> None:
        """Drop the compiled model; idempotent."""
        self._closed = True
        self._requests.clear()


def _open_tensors(core: Any, variant: Variant, device: Device, chosen: TensorOptions) -> TensorSession:
    if variant.format == "onnx":
        check_external_data(variant.path)
    properties = _properties(device, chosen)
    target = runtime_name(core, device)
    try:
        model = core.read_model(os.fspath(variant.path))
        if chosen.static_shapes or device.capabilities.static_shapes:
            return _static(core, model, variant, device, chosen)
        if device.kind == "cpu" and variant.task != "tensor":
            # One thread a run and several runs side by side: a run too small for two threads loses to them.
            lanes = thread_count(chosen.threads, device)
            compiled = core.compile_model(model, target, properties | {"NUM_STREAMS": lanes})
            return OpenvinoSession(compiled, variant.path, lanes=lanes, lone_rows=True)
        return OpenvinoSession(core.compile_model(model, target, properties), variant.path)
    except ERRORS as error:
        raise translated(error, f"openvino cannot load {variant.path} on {device.id}") from error


def _static(core: Any, model: Any, variant: Variant, device: Device, chosen: TensorOptions) -> TensorSession:
    sequence = {port.get_any_name(): _has_sequence(port) for port in model.inputs}

    def compile_shape(batch: int, length: int) -> TensorSession:
        shaped = model.clone()
        shaped.reshape({port.get_any_name(): _shape(port, batch, length) for port in model.inputs})
        compiled = core.compile_model(shaped, runtime_name(core, device), _properties(device, chosen))
        return OpenvinoSession(compiled, variant.path)

    return StaticShapeSession(
        compile_shape,
        buckets(variant.context_tokens, chosen.sequence_lengths) if any(sequence.values()) else (0,),
        device.capabilities.max_batch or chosen.static_batch,
        sequence,
        {port.get_any_name(): _has_sequence(port) for port in model.outputs},
    )


def _has_sequence(port: Any) -> bool:
    shape = port.get_partial_shape()
    return len(shape) > 1 and bool(shape[1].is_dynamic)


def _shape(port: Any, batch: int, length: int) -> list[Any]:
    shape = list(port.get_partial_shape())
    return [batch, length if _has_sequence(port) else shape[1], *shape[2:]] if len(shape) > 1 else [batch]


def _properties(device: Device, chosen: TensorOptions) -> dict[str, Any]:
    properties: dict[str, Any] = {"PERFORMANCE_HINT": chosen.hint}
    if device.kind == "cpu":
        properties["INFERENCE_NUM_THREADS"] = thread_count(chosen.threads, device)
        properties["ENABLE_CPU_PINNING"] = chosen.pinning
    if chosen.precision:
        properties["INFERENCE_PRECISION_HINT"] = chosen.precision
    if chosen.cache_dir:
        properties["CACHE_DIR"] = chosen.cache_dir
    return properties
