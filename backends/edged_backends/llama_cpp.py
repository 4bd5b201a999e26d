"""llama.cpp through llama-cpp-python: GGUF generators on the CPU and on what the build supports."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from edged.backend import Capabilities, Device, TokenSession, Variant
from edged.errors import BackendError, DeviceLost
from edged_backends.llama_cpp_runtime import (
    Accelerator,
    accelerators,
    explained,
    free_model,
    load_model,
    runtime,
)
from edged_backends.llama_cpp_tokens import LlamaTokenSession, Shape
from edged_backends.options import read_options, thread_count

_DTYPES = ("f32", "f16", "q8_0", "q4_0", "q4_1")
_CONTEXT_STEP = 256
"""llama.cpp rounds the context of a sequence up to a multiple of this."""
_BF16 = 30
"""`GGML_TYPE_BF16`. With values and keys of one type, ggml's flash attention takes other kernels, which round
differently, for 64 rows or more (tiles) and for one row of one sequence over 512 cells or more (a part per
thread). Values in bfloat16 beside keys in float16 have one kernel, whatever stands beside a row."""
_NODES = Path("/dev")

Count = Annotated[int, msgspec.Meta(ge=0, le=1024)]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `options` of a stage may say to this adapter."""

    threads: Count = 0
    """Threads that decode; 0 means one per core of the device."""
    threads_batch: Count = 0
    """Threads that read prompts; 0 means as `threads`."""
    context_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Prompt and answer of one sequence; 0 means the model's, at most 2048. Every sequence has its own
    KV cache of this size, taken at load."""
    max_sequences: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8
    batch_tokens: Annotated[int, msgspec.Meta(ge=8, le=65536)] = 256
    """Most tokens of one step while no answer runs: larger reads prompts faster."""
    running_batch_tokens: Annotated[int, msgspec.Meta(ge=8, le=65536)] = 48
    """Most tokens of one step while answers run: smaller keeps them smoother while prompts are read."""
    prefix_cache_mib: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 256
    """What ended sequences may keep of the KV cache, for prompts that begin alike; 0 keeps nothing."""
    flash_attention: bool = True
    exact: bool = True
    """Compute a row alike whatever stands beside it (CPU, with flash attention): greedy answers are the
    same alone, in a batch and resumed. The KV cache holds its values as bfloat16 then."""
    gpu_layers: Annotated[int, msgspec.Meta(ge=-1)] = -1
    """Layers on the accelerator; -1 means all. Of no effect on a CPU."""


class LlamaCppBackend:
    """The runtime llama.cpp."""

    name = "llama_cpp"
    formats = ("gguf",)

    def devices(self) -> list[Device]:
        """List the CPU, the accelerators of ggml's registry, and those that this build cannot use."""
        found = [_gpu(accelerator) for accelerator in accelerators()]
        return [_cpu(), *found, *_without_support({device.kind for device in found}, _NODES)]

    def open(self, variant: Variant, device: Device, options: Mapping[str, Any], /) -> TokenSession:
        """Load a GGUF generator; see `Options`. `BackendError` says which file and why not."""
        settings = read_options(Options, options, self.name)
        _check(variant, device)
        accelerator = _accelerator(device)
        with explained() as complaints:
            model = load_model(os.fsencode(variant.path), accelerator, settings.gpu_layers)
        if not model:
            raise BackendError(f"llama.cpp cannot load {variant.path}: {_why(complaints)}")
        exact = settings.exact and settings.flash_attention and accelerator is None
        shape = _shape(settings, variant, exact=exact, accelerated=accelerator is not None)
        context = _context(model, settings, shape, device)
        if context is None:
            free_model(model)
            raise BackendError(
                f"llama.cpp has no memory for {shape.slots} sequences of {shape.context_tokens} "
                f"tokens with {variant.path.name}; lower context_tokens or max_sequences"
            )
        return LlamaTokenSession(model, context, shape)


def _check(variant: Variant, device: Device) -> None:
    if device.unusable:
        raise BackendError(f"device {device.id} cannot be used: {device.unusable}")
    if variant.format not in LlamaCppBackend.formats:
        raise BackendError(f"llama.cpp opens gguf, not {variant.format}, which {variant.path} is said to be")
    if not variant.path.is_file():
        raise BackendError(f"no file {variant.path}; pull the model again")


def _why(complaints: list[str]) -> str:
    """Pick the first complaint: the others only repeat that loading failed."""
    return complaints[0] if complaints else "it gave no reason"


def _shape(settings: Options, variant: Variant, *, exact: bool, accelerated: bool) -> Shape:
    wanted = settings.context_tokens or min(variant.context_tokens, 2048)
    batch_tokens = max(settings.batch_tokens, settings.max_sequences)
    return Shape(
        context_tokens=-(-wanted // _CONTEXT_STEP) * _CONTEXT_STEP,
        max_sequences=settings.max_sequences,
        slots=settings.max_sequences + bool(settings.prefix_cache_mib),
        batch_tokens=batch_tokens,
        running_batch_tokens=min(
            batch_tokens, max(settings.running_batch_tokens, 2 * settings.max_sequences)
        ),
        prefix_bytes=settings.prefix_cache_mib << 20,
        exact=exact,
        accelerated=accelerated,
    )


def _context(model: Any, settings: Options, shape: Shape, device: Device) -> Any:
    parameters = runtime.llama_context_default_params()
    parameters.n_ctx = shape.context_tokens * shape.slots
    parameters.n_seq_max = shape.slots
    parameters.kv_unified = False
    parameters.n_batch = parameters.n_ubatch = shape.batch_tokens
    parameters.n_threads = thread_count(settings.threads, device)
    parameters.n_threads_batch = settings.threads_batch or parameters.n_threads
    parameters.flash_attn_type = int(settings.flash_attention)
    if shape.exact:
        parameters.type_v = _BF16
    return runtime.llama_init_from_model(model, parameters)


def _cpu() -> Device:
    return Device(
        id="cpu",
        kind="cpu",
        name=_processor(),
        backend=LlamaCppBackend.name,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        capabilities=Capabilities(dtypes=_DTYPES, max_sequences=256),
    )


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text("utf-8", "replace") if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else "CPU"


def _gpu(accelerator: Accelerator) -> Device:
    number = re.sub(r"\D", "", accelerator.name) or "0"
    cuda = accelerator.name.startswith("CUDA")
    kind = "cuda" if cuda else "igpu" if accelerator.integrated else "gpu"
    return Device(
        id="igpu" if kind == "igpu" and number == "0" else f"{kind}:{number}",
        kind=kind,  # type: ignore[arg-type] # one of the three above
        name=f"{accelerator.description} ({accelerator.name})",
        backend=LlamaCppBackend.name,
        memory_bytes=accelerator.memory_bytes,
        capabilities=Capabilities(dtypes=_DTYPES, max_sequences=256),
    )


def _accelerator(device: Device) -> Accelerator | None:
    if device.kind == "cpu":
        return None
    for accelerator in accelerators():
        if _gpu(accelerator).id == device.id:
            return accelerator
    raise DeviceLost(f"llama.cpp sees no device {device.id}; `edgectl devices` lists what it sees")


def _without_support(usable: set[str], nodes: Path) -> list[Device]:
    """List GPUs whose device nodes exist while llama.cpp was built without their API."""
    missing = []
    if "cuda" not in usable and (nodes / "nvidia0").exists():
        missing.append(_unusable("cuda:0", "cuda", "GGML_CUDA"))
    if not usable and any(nodes.glob("dri/renderD*")) and not missing:
        missing.append(_unusable("gpu:0", "gpu", "GGML_VULKAN"))
    return missing


def _unusable(identity: str, kind: Any, flag: str) -> Device:
    remedy = (
        f"CMAKE_ARGS=-D{flag}=on pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python"
    )
    return Device(
        id=identity,
        kind=kind,
        name="a GPU that this build cannot use",
        backend=LlamaCppBackend.name,
        unusable=f"llama-cpp-python was built without {flag}: {remedy}",
    )
