"""llama.cpp through llama-cpp-python: GGUF generators on the CPU and on what the build supports."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from edged.backend import Device, TokenSession, Variant
from edged.errors import BackendError, ConfigError
from edged.layers.planning.llama_split import MAX_SEQUENCES, described
from edged_backends.llama_cpp_devices import BACKEND, NODES, cpu, gpu, without_support
from edged_backends.llama_cpp_layout import Layout, confirm, divided, whole
from edged_backends.llama_cpp_runtime import (
    accelerators,
    explained,
    free_model,
    load_model,
    overheard,
    runtime,
)
from edged_backends.llama_cpp_tokens import LlamaTokenSession, Shape
from edged_backends.options import read_options, thread_count

_CONTEXT_STEP = 256
"""llama.cpp rounds the context of a sequence up to a multiple of this."""
_BF16 = 30
"""`GGML_TYPE_BF16`. With values and keys of one type, ggml's flash attention takes other kernels, which round
differently, for 64 rows or more (tiles) and for one row of one sequence over 512 cells or more (a part per
thread). Values in bfloat16 beside keys in float16 have one kernel, whatever stands beside a row."""

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
    max_sequences: Annotated[int, msgspec.Meta(ge=1, le=MAX_SEQUENCES)] = 8
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
    devices: tuple[str, ...] = ()
    """Devices that the layers are split over, in this order, the stage's device among them. The CPU can
    only be the first. Loading fails when llama.cpp splits otherwise."""
    layers: tuple[Annotated[int, msgspec.Meta(ge=1, le=1024)], ...] = ()
    """Layers of each of `devices`; empty means as even as possible."""


class LlamaCppBackend:
    """The runtime llama.cpp."""

    name = BACKEND
    formats = ("gguf",)

    def devices(self) -> list[Device]:
        """List the CPU, the accelerators of ggml's registry, and those that this build cannot use."""
        found = [gpu(accelerator) for accelerator in accelerators()]
        return [cpu(), *found, *without_support({device.kind for device in found}, NODES)]

    def open(self, variant: Variant, device: Device, options: Mapping[str, Any], /) -> TokenSession:
        """Load a GGUF generator; see `Options`. `BackendError` says which file and why not."""
        settings = read_options(Options, options, self.name)
        _check(variant, device)
        layout = _layout(settings, variant, device)
        model, where = _loaded(variant, layout)
        exact = settings.exact and settings.flash_attention and not layout.used
        shape = _shape(settings, variant, exact=exact, accelerated=bool(layout.used))
        context = _context(model, settings, shape, device)
        if context is None:
            free_model(model)
            raise BackendError(
                f"llama.cpp has no memory for {shape.slots} sequences of {shape.context_tokens} "
                f"tokens with {variant.path.name}; lower context_tokens or max_sequences"
            )
        return LlamaTokenSession(model, context, shape, {"layers": described(where)} if where else {})


def _layout(settings: Options, variant: Variant, device: Device) -> Layout:
    if not settings.devices:
        if settings.layers:
            raise ConfigError("options.layers belongs to options.devices; name them", param="layers")
        return whole(device, settings.gpu_layers)
    if settings.gpu_layers != -1:
        raise ConfigError("give options.devices (and layers), or gpu_layers, not both", param="gpu_layers")
    return divided(device, settings.devices, settings.layers, variant.path)


def _loaded(variant: Variant, layout: Layout) -> tuple[Any, tuple[str, ...]]:
    """Load the weights; give the model and the device of every layer."""
    with explained() as complaints, overheard() as told:
        model = load_model(os.fsencode(variant.path), layout.used, layout.split)
    if not model:
        raise BackendError(f"llama.cpp cannot load {variant.path}: {_why(complaints)}")
    try:
        return model, confirm(layout, told, variant.path)
    except BackendError:
        free_model(model)
        raise


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
        # A spare one, so that a prefix outlives a full house; llama.cpp has none to spare beyond its limit.
        slots=min(MAX_SEQUENCES, settings.max_sequences + bool(settings.prefix_cache_mib)),
        batch_tokens=batch_tokens,
        running_batch_tokens=min(
            batch_tokens, max(settings.running_batch_tokens, 2 * settings.max_sequences)
        ),
        prefix_bytes=settings.prefix_cache_mib << 20,
        exact=exact,
        accelerated=accelerated,
        most_threads=settings.threads,
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
