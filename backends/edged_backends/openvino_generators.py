"""Open a GGUF file for generation with OpenVINO GenAI: options, scheduler, properties."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from edged.backend import Device, Variant
from edged.errors import BackendError
from edged.prefill import least_tokens
from edged_backends.openvino_cache import load_engine
from edged_backends.openvino_devices import ERRORS, translated
from edged_backends.openvino_prefixes import BLOCK_TOKENS
from edged_backends.openvino_runtime import genai
from edged_backends.openvino_tokens import OpenvinoTokens, Shape
from edged_backends.options import thread_count

LEAST_TOKENS = least_tokens(BLOCK_TOKENS)
_MIB_PER_GIB = 1024
_EXACT = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "KV_CACHE_PRECISION": "f32"}


class TokenOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the adapter `openvino` for generators."""

    threads: int = 0
    """Threads of one step (CPU); 0 means one per core that the stage may use."""
    cache_dir: str = ""
    """Folder for the converted model, which halves the time of later starts; empty converts every time."""
    context_tokens: int = 0
    """Prompt and answer together; 0 means what the variant says."""
    max_sequences: int = 8
    max_num_batched_tokens: int = 256
    """Most tokens of one step while no answer runs: larger reads prompts faster."""
    running_batch_tokens: int = 128
    """Prompt tokens of one step while answers run: smaller keeps them smoother. Of no effect without
    `prefix_caching`, through which prompts are read in parts. 128: with 64, short prompts among four answers
    cost 7 % more CPU a token (`python -m benchmarks P4@4`), and gaps grew half as much (G1)."""
    cache_size_mib: int = 1024
    """Memory for the KV cache; the engine takes whole GiB, so this is rounded up."""
    prefix_caching: bool = True
    exact: bool = True
    """Give the same greedy tokens whether a token was read in a prompt or produced by a step (CPU).

    Activations are not quantised then, and the KV cache is float32: about 1.5 times the CPU time
    (`python -m benchmarks I1`). Without it a greedy answer may take another word in other company, where
    two are about equally probable, and an interrupted one is repeated from its prompt before it goes on.
    """


def open_tokens(variant: Variant, device: Device, target: str, chosen: TokenOptions) -> OpenvinoTokens:
    """Load a GGUF file into a continuous-batching pipeline; `BackendError` when it cannot be read."""
    if not variant.path.is_file():
        raise BackendError(f"{variant.path} is missing; fetch the model again")
    max_sequences = min(chosen.max_sequences, device.capabilities.max_sequences or chosen.max_sequences)
    shape = Shape(
        context_tokens=chosen.context_tokens or variant.context_tokens,
        max_sequences=max_sequences,
        batch_tokens=max(chosen.max_num_batched_tokens, LEAST_TOKENS),
        running_batch_tokens=max(
            min(chosen.running_batch_tokens, chosen.max_num_batched_tokens), LEAST_TOKENS
        ),
        exact=chosen.exact,
        prefixes=chosen.prefix_caching and max_sequences > 1,
    )
    scheduler = _scheduler(chosen, shape)
    properties = _properties(device, chosen)
    load = partial(load_engine, variant, scheduler, target, properties, chosen.cache_dir)
    try:
        return OpenvinoTokens(load, variant, shape)
    except ERRORS as error:
        raise translated(error, f"openvino cannot load {variant.path} on {device.id}") from error


def _scheduler(chosen: TokenOptions, shape: Shape) -> Any:
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_seqs = shape.max_sequences
    scheduler.max_num_batched_tokens = shape.batch_tokens + shape.max_sequences
    scheduler.cache_size = -(-chosen.cache_size_mib // _MIB_PER_GIB)
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = chosen.prefix_caching
    return scheduler


def _properties(device: Device, chosen: TokenOptions) -> dict[str, Any]:
    if device.kind != "cpu":
        return {}
    properties = {
        "INFERENCE_NUM_THREADS": thread_count(chosen.threads, device),
        "ENABLE_CPU_PINNING": False,
        # bfloat16, the default where the CPU has it, was no faster and changed more answers.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return properties | _EXACT if chosen.exact else properties
