"""A stage's runner from its spec: weights by key range, the cache's rows, or a wait."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import torch

from edged.backend import is_cpu
from edged.birth import pin
from edged.errors import ConfigError
from edged.layers.faults import explained
from edged.layers.offload.cache import CacheShape, OffloadedCache
from edged.layers.offload.layers import offloaded, shelf_for
from edged.layers.offload.overlap import check_overlap
from edged.layers.offload.streams import Streams, streams_for
from edged.layers.rows import Cache, RowCache
from edged.layers.spec import Loaded, StageSpec
from edged.layers.stage import Ends, Layers, LayerStage, Parts, Runner, StageShape, resident
from edged.layers.synthetic import SyntheticStage
from edged.layers.weights.checkpoint import library_config, weights


def device_of(name: str) -> torch.device:
    """Turn edged's name of a device to torch's; `ConfigError` when there is none such."""
    if is_cpu(name):
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if not name.startswith("cuda:") or int(name[5:]) >= count:
        raise ConfigError(
            f"a layer pipeline cannot use device {name!r}; torch sees cpu and {count} CUDA devices",
            param="devices",
        )
    return torch.device(name)


def build(spec: StageSpec, *, own_process: bool = True) -> tuple[Runner, Loaded]:
    """Load a stage. Raises `BackendError` for weights that do not fit, `ConfigError` for a bad device."""
    began_s = time.monotonic()
    if spec.synthetic is not None:
        last = spec.stage == spec.stages - 1
        return SyntheticStage(spec.synthetic, last=last), Loaded(stage=spec.stage)
    if own_process:
        pin(spec.device)
    if spec.threads and own_process:
        torch.set_num_threads(spec.threads)
    check_overlap(spec)
    with explained(spec.stage):
        stage, loaded = _loaded(spec, device_of(spec.device))
    return stage, msgspec.structs.replace(loaded, load_s=time.monotonic() - began_s)


def _loaded(spec: StageSpec, device: torch.device) -> tuple[Runner, Loaded]:
    config = library_config(spec.source)
    parts = Parts(config)
    streams = streams_for(device) if spec.overlap else None
    layers, tensors, loaded = _layers(spec, parts, device, streams)
    if config.tie_word_embeddings and spec.share.embedding and spec.share.head:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    ends = Ends(parts, spec.share, tensors, device)
    cache = _cache(spec, config, device, streams)
    shape = StageShape(context_tokens=spec.context_tokens, device=device, block=spec.block)
    held = {each.data_ptr(): each.nbytes for each in tensors.values()}
    stage: Runner = LayerStage(layers, ends, cache, parts.rotary(device), shape)
    return stage, msgspec.structs.replace(
        loaded,
        weight_bytes=loaded.weight_bytes + sum(held.values()),
        cache_bytes=cache.bytes,
        host_cache_bytes=cache.host_bytes,
    )


def _layers(
    spec: StageSpec, parts: Parts, device: torch.device, streams: Streams | None
) -> tuple[Layers, dict[str, torch.Tensor], Loaded]:
    """Load the layers; returns tensors too of which the device holds a copy beside what is counted so far."""
    loaded = Loaded(stage=spec.stage, layers=spec.share.layers)
    if streams is None:
        tensors = dict(weights(spec.source, spec.share, spec.dtype))
        return resident(parts, spec.share, tensors, device), tensors, loaded
    shelf = shelf_for(spec, device)
    layers, tensors = offloaded(spec, parts, streams, device, shelf)
    counted = msgspec.structs.replace(
        loaded,
        weight_bytes=layers.device_bytes,
        host_weight_bytes=shelf.memory_bytes,
        disk_weight_bytes=shelf.disk_bytes,
    )
    return layers, tensors, counted


def _cache(spec: StageSpec, config: Any, device: torch.device, streams: Streams | None) -> Cache:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    heads, dimension = config.num_key_value_heads, _head_dimension(config)
    if streams is None or not spec.offload_cache:
        shape = spec.sequences, heads, spec.context_tokens, dimension
        return RowCache.empty(spec.share.layers, shape, dtype, device)
    rows = -(-(spec.micro_batch or spec.sequences) // spec.block)
    whole = CacheShape(spec.share.layers, spec.sequences, rows, spec.context_tokens, heads, dimension, dtype)
    return OffloadedCache(whole, streams, device, ahead=spec.overlap != "none")


def _head_dimension(config: object) -> int:
    found = getattr(config, "head_dim", None)
    return int(found or config.hidden_size // config.num_attention_heads)  # type: ignore[attr-defined]
