"""Adapter to onnxruntime: encoders, rerankers and other tensor models in ONNX form.

The CPU is always there. Other devices come from the execution providers that the installed onnxruntime
reports; the hardware that they name is opened by the same code path. Only the CPU has been run so far.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from edged.backend import Array, Capabilities, Device, Kind, TensorSession, Variant
from edged.errors import BackendError, DeviceLost
from edged_backends.lanes import Lanes
from edged_backends.onnx_files import check_external_data
from edged_backends.onnx_runtime import native, ort
from edged_backends.options import read_options, thread_count
from edged_backends.static_shapes import StaticShapeSession, buckets

_ERRORS: tuple[type[Exception], ...] = (
    *(error for error in vars(native).values() if isinstance(error, type) and issubclass(error, Exception)),
    RuntimeError,
    ValueError,
    TypeError,
)
_KINDS: dict[str, Kind] = {
    "CUDAExecutionProvider": "cuda",
    "NvTensorRTRTXExecutionProvider": "cuda",
    "WebGpuExecutionProvider": "webgpu",
    "QNNExecutionProvider": "npu",
}
_LOST = re.compile(
    r"CUDA failure (?:46|79|100|101|214|220|226|7(?:00|02|09|10|1[4-9])|999)\b"
    r"|887A00(?:05|06|07|20)\b"
    r"|NPU crashed\. SSR detected"
)
"""Errors after which a device is of no more use to this process: of CUDA those that stick to its context or
say that there is no device, of DirectX a device removed, hung, reset or broken, of QNN a restart of the NPU's
subsystem. Taken from the runtimes' sources and reports; never seen on hardware here."""
_FATAL = 4
_SLOW_FUSIONS = ["SkipLayerNormFusion"]
"""Left out on the CPU: the fused kernel takes eight times as long as its two parts (onnxruntime 1.31)."""


class OnnxOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the adapter `onnx` in a stage's table."""

    threads: int = 0
    """Threads of one run; 0 means one per core that the stage may use."""
    arena: bool = True
    """Keep freed activation memory for the next run: faster, and memory stays at the largest batch."""
    optimisation: Literal["all", "extended", "basic", "off"] = "all"
    static_shapes: bool = False
    """Run with fixed shapes even where the device does not need them."""
    sequence_lengths: tuple[int, ...] = ()
    """Lengths to compile for fixed shapes; empty means powers of two up to the model's context."""
    static_batch: int = 1
    """Items of one run with fixed shapes."""


class OnnxBackend:
    """onnxruntime: opens `onnx` weights as tensor sessions."""

    name = "onnx"
    formats = ("onnx",)

    def devices(self) -> list[Device]:
        """List the CPU and whatever the execution providers of this onnxruntime see."""
        return [
            cpu_device(),
            *accelerators(ort.get_ep_devices(), ort.get_available_providers(), Path("/dev")),
        ]

    def open(self, variant: Variant, device: Device, options: Mapping[str, Any], /) -> TensorSession:
        """Load an ONNX model; `BackendError` when file, format or device cannot be used."""
        chosen = read_options(OnnxOptions, options, self.name)
        if variant.format != "onnx" or variant.task == "generate":
            raise BackendError(
                f"onnx opens tensor models in onnx form, not {variant.format} for {variant.task}"
            )
        if device.unusable:
            raise BackendError(f"device {device.id} cannot be used: {device.unusable}")
        check_external_data(variant.path)
        if chosen.static_shapes or device.capabilities.static_shapes:
            return _open_static(variant, device, chosen)
        cores = thread_count(chosen.threads, device)
        if device.kind == "cpu" and variant.task != "tensor":
            # One thread a run and several runs side by side: a run too small for two threads loses to them.
            options = _session_options(msgspec.structs.replace(chosen, threads=1), device)
            return OnnxSession(variant.path, options, lanes=cores, lone_rows=True)
        return OnnxSession(variant.path, _session_options(chosen, device))


class OnnxSession:
    """A model held by onnxruntime.

    `lanes` is how many runs of `run_each` go on at once; the runtime's `run` may be called by many threads.
    """

    def __init__(self, path: Path, options: Any, *, lanes: int = 1, lone_rows: bool = False) -> None:
        providers = None if options.has_providers() else ["CPUExecutionProvider"]
        unwanted = _SLOW_FUSIONS if providers else None
        try:
            session = ort.InferenceSession(
                os.fspath(path), options, providers=providers, disabled_optimizers=unwanted
            )
        except _ERRORS as error:
            raise translated(error, f"onnxruntime cannot load {path}") from error
        self._session: Any = session
        self._path = path
        self._lanes = Lanes(lanes)
        self.lanes, self.lone_rows = lanes, lone_rows
        self.symbols = {node.name: _symbols(node.shape) for node in session.get_inputs()}
        """The names of the free axes of each input, in order; None where an axis is fixed."""
        self.output_symbols = {node.name: _symbols(node.shape) for node in session.get_outputs()}
        self.inputs = tuple(node.name for node in session.get_inputs())
        self.outputs = tuple(node.name for node in session.get_outputs())

    def run(self, feeds: Mapping[str, Array], /) -> dict[str, Array]:
        """Run one batch; see `TensorSession.run`."""
        check_names(self.inputs, feeds, self._path)
        if self._session is None:
            raise BackendError(f"the session of {self._path} is closed")
        try:
            results = self._session.run(self.outputs, dict(feeds))
        except _ERRORS as error:
            raise translated(error, f"onnxruntime failed to run {self._path}") from error
        return {name: np.asarray(array) for name, array in zip(self.outputs, results, strict=True)}

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
        """Drop the model; idempotent."""
        self._session = None


def _symbols(shape: list[int | str | None]) -> list[str | None]:
    return [None if isinstance(axis, int) else str(axis) for axis in shape]


def _open_static(variant: Variant, device: Device, chosen: OnnxOptions) -> TensorSession:
    """Open one session per sequence length, its free axes fixed by their names in the model."""
    described = OnnxSession(variant.path, _session_options(chosen, cpu_device()))
    described.close()
    inputs = {name: axes[1:2] not in ([], [None]) for name, axes in described.symbols.items()}

    def compile_shape(batch: int, length: int) -> TensorSession:
        options = _session_options(chosen, device)
        for axes in described.symbols.values():
            for symbol, size in zip(axes[:2], (batch, length), strict=False):
                if symbol:
                    options.add_free_dimension_override_by_name(symbol, size)
        return OnnxSession(variant.path, options)

    return StaticShapeSession(
        compile_shape,
        buckets(variant.context_tokens, chosen.sequence_lengths) if any(inputs.values()) else (0,),
        device.capabilities.max_batch or chosen.static_batch,
        inputs,
        {name: axes[1:2] not in ([], [None]) for name, axes in described.output_symbols.items()},
    )


def check_names(inputs: tuple[str, ...], feeds: Mapping[str, Array], path: Path) -> None:
    """Refuse feeds that lack an input of the model or have one too many (`BackendError`)."""
    if set(inputs) != set(feeds):
        raise BackendError(
            f"{path} takes the inputs {', '.join(inputs)}; given: {', '.join(feeds) or 'none'}"
        )


def translated(error: Exception, what: str) -> BackendError:
    """Turn an exception of the runtime to ours; a lost device is told by its type or its words."""
    lost = isinstance(error, native.DeviceReset) or _LOST.search(str(error)) is not None
    return (DeviceLost if lost else BackendError)(f"{what}: {error}")


def _session_options(chosen: OnnxOptions, device: Device) -> Any:
    levels = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.intra_op_num_threads = thread_count(chosen.threads, device)
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.enable_cpu_mem_arena = chosen.arena
    # A memory pattern is kept per input shape; texts give many shapes, so memory would creep up.
    options.enable_mem_pattern = False
    options.graph_optimization_level = {
        "all": levels.ORT_ENABLE_ALL,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "basic": levels.ORT_ENABLE_BASIC,
        "off": levels.ORT_DISABLE_ALL,
    }[chosen.optimisation]
    # Spinning threads starve the stages that share these cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if device.kind != "cpu":
        _choose_provider(options, device)
    return options


def _choose_provider(options: Any, device: Device) -> None:
    """Bind the session to the accelerator that carries the device's id."""
    for entry in ort.get_ep_devices():
        if _described(entry).id == device.id:
            options.add_provider_for_devices([entry], {})
            return
    if device.kind == "cuda" and "CUDAExecutionProvider" in ort.get_available_providers():
        options.add_provider("CUDAExecutionProvider", {"device_id": device.id.partition(":")[2] or "0"})
        return
    raise DeviceLost(f"onnxruntime no longer reports the device {device.id}")


def cpu_device() -> Device:
    """Describe the CPU with the cores that this process may use."""
    return Device(
        id="cpu",
        kind="cpu",
        name=_cpu_name(Path("/proc/cpuinfo")),
        backend=OnnxBackend.name,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        capabilities=Capabilities(dtypes=("f32", "i8")),
    )


def _cpu_name(cpuinfo: Path) -> str:
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def accelerators(entries: Iterable[Any], providers: Iterable[str], dev: Path) -> list[Device]:
    """Describe the accelerators that execution providers report, one per id.

    `entries` are onnxruntime's `OrtEpDevice`s; CUDA is built in rather than plugged in, so it is known
    from `providers` and from the driver's node under `dev`.
    """
    found = {device.id: device for device in map(_described, entries) if device.kind != "cpu"}
    if "CUDAExecutionProvider" in providers and not any(item.startswith("cuda") for item in found):
        found["cuda:0"] = _cuda(dev)
    return [found[key] for key in sorted(found)]


def _cuda(dev: Path) -> Device:
    reason = "" if (dev / "nvidia0").exists() else f"{dev / 'nvidia0'} is missing: install NVIDIA's driver"
    return Device(id="cuda:0", kind="cuda", name="NVIDIA GPU", backend=OnnxBackend.name, unusable=reason)


def _described(entry: Any) -> Device:
    """Describe one `OrtEpDevice`."""
    hardware = entry.device
    kind = _kind(entry.ep_name, hardware.type.name, dict(hardware.metadata))
    number = int(dict(hardware.metadata).get("index", 0))
    single = kind in {"cpu", "npu", "igpu"}
    return Device(
        id=kind if single else f"{kind}:{number}",
        kind=kind,
        name=f"{hardware.vendor} {hardware.type.name} through {entry.ep_name}",
        backend=OnnxBackend.name,
        capabilities=_capabilities(kind),
    )


def _kind(provider: str, hardware: str, metadata: Mapping[str, str]) -> Kind:
    if hardware == "CPU":
        return "cpu"
    if provider in _KINDS:
        return _KINDS[provider]
    if hardware == "NPU":
        return "npu"
    return "gpu" if metadata.get("Discrete") == "1" else "igpu"


def _capabilities(kind: Kind) -> Capabilities:
    if kind == "npu":
        return Capabilities(dtypes=("f16", "i8"), static_shapes=True, max_batch=1, max_sequences=1)
    return Capabilities(dtypes=("f32", "f16"))
