"""A stage's runner from its spec: weights by key range, the cache's rows, or a wait."""

from __future__ import annotations

import time

import torch

from edged.birth import pin
from edged.errors import ConfigError
from edged.layers.checkpoint import library_config, weights
from edged.layers.faults import explained
from edged.layers.rows import RowCache
from edged.layers.spec import Loaded, StageSpec
from edged.layers.stage import Ends, LayerStage, Parts, Runner, StageShape, resident
from edged.layers.synthetic import SyntheticStage


def device_of(name: str) -> torch.device:
    """Turn edged's name of a device to torch's; `ConfigError` when there is none such."""
    if name.partition(":")[0] == "cpu":
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
    with explained(spec.stage):
        stage, loaded = _loaded(spec, device_of(spec.device))
    return stage, Loaded(
        stage=spec.stage,
        layers=spec.share.layers,
        weight_bytes=loaded[0],
        cache_bytes=loaded[1],
        load_s=time.monotonic() - began_s,
    )


def _loaded(spec: StageSpec, device: torch.device) -> tuple[Runner, tuple[int, int]]:
    config = library_config(spec.source)
    dtype: torch.dtype = getattr(torch, spec.dtype)
    tensors = dict(weights(spec.source, spec.share, spec.dtype))
    if config.tie_word_embeddings and spec.share.embedding and spec.share.head:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    parts = Parts(config)
    layers = resident(parts, spec.share, tensors, device)
    ends = Ends(parts, spec.share, tensors, device)
    dimensions = (spec.sequences, config.num_key_value_heads, spec.context_tokens, _head_dimension(config))
    cache = RowCache.empty(spec.share.layers, dimensions, dtype, device)
    shape = StageShape(context_tokens=spec.context_tokens, device=device, block=spec.block)
    held = {each.data_ptr(): each.nbytes for each in tensors.values()}
    stage: Runner = LayerStage(layers, ends, cache, parts.rotary(device), shape)
    return stage, (sum(held.values()), cache.bytes)


def _head_dimension(config: object) -> int:
    found = getattr(config, "head_dim", None)
    return int(found or config.hidden_size // config.num_attention_heads)  # type: ignore[attr-defined]
