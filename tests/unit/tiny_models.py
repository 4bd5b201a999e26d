"""Tiny models of every family, saved as the library saves them and as llama.cpp's converter would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SHAPE: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "rms_norm_eps": 3e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "attn_implementation": "sdpa",
}
CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral"}
FAMILIES = tuple(CLASSES)
_ENDS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "o_proj": "attn_output",
    **{f"{name}_proj": f"attn_{name}" for name in "qkv"},
    **{f"{name}_norm": f"attn_{name}_norm" for name in "qk"},
    **{f"{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
}


def tiny(family: str, **settings: Any) -> Any:
    """A model of the library with random weights, norms and biases among them."""
    import torch
    import transformers

    torch.manual_seed(sum(family.encode()))
    config = getattr(transformers, f"{CLASSES[family]}Config")(**{**SHAPE, **settings})
    model = getattr(transformers, f"{CLASSES[family]}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return model


def saved(model: Any, folder: Path, **options: Any) -> Path:
    """Save as safetensors."""
    model.save_pretrained(folder, **options)
    return folder


def as_gguf(
    model: Any, path: Path, quantised: Any = None, tensors: Mapping[str, Any] | None = None, **metadata: Any
) -> Path:
    """Write a GGUF file; matrices in ggml's type `quantised`, float32 when None; `tensors` come with them."""
    import gguf

    config = model.config
    architecture = {"mistral": "llama"}.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"tiny {config.model_type}")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(SHAPE["head_dim"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    for key, value in metadata.items():
        getattr(writer, key)(value)
    for name, tensor in model.state_dict().items():
        if not (config.tie_word_embeddings and name == "lm_head.weight"):
            values = _converted(name, tensor.numpy(), config, architecture)
            _add(writer, gguf_name(name), values, quantised)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    """Name of a tensor in GGUF."""
    if name in _ENDS:
        return _ENDS[name]
    _, _, number, *modules, kind = name.split(".")
    return f"blk.{number}.{_PARTS[modules[-1]]}.{kind}"


def interleaved(rows: Any, heads: int) -> Any:
    """Row i of a head's first half, then row i of its second half: what llama.cpp's converter writes."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(rows.shape)


def _converted(name: str, values: Any, config: Any, architecture: str) -> Any:
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    found = next((count for end, count in heads.items() if name.endswith(end)), 0)
    return interleaved(values, found) if found and architecture == "llama" else values


def _add(writer: Any, name: str, values: Any, quantised: Any) -> None:
    import gguf

    if quantised is None or values.ndim == 1:
        writer.add_tensor(name, np.ascontiguousarray(values))
    else:
        packed = gguf.quants.quantize(np.ascontiguousarray(values), quantised)
        writer.add_tensor(name, packed, raw_dtype=quantised)
