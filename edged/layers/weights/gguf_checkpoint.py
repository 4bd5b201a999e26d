"""A GGUF file as the source of a stage's weights: each tensor dequantised as it is asked for."""

from __future__ import annotations

import math
from array import array
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edged.errors import BackendError, ConfigError
from edged.layers.share import DType
from edged.layers.weights.gguf_header import Entry, Header, read_header
from edged.layers.weights.gguf_weights import dequantised
from edged.layers.weights.model_facts import Facts, facts_of, unknown_family
from edged.layers.weights.tensor_names import gguf_name

if TYPE_CHECKING:
    import torch

_FAMILIES = ("llama", "qwen2", "qwen3")
"""`general.architecture`; files of Mistral models say `llama`."""
_INTERLEAVED = ("llama",)
"""Families whose query and key rows llama.cpp's converter reorders, for its own rotary embedding."""
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Position scaling of Llama 3.1 to 3.3. Files hold its outcome, `rope_freqs.weight`, not these."""
_FACTOR_TOLERANCE = 1e-3
_FLOAT32 = 0
"""`GGML_TYPE_F32`."""


class GgufCheckpoint:
    """One GGUF file of a known family."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.where = str(path)

    @cached_property
    def header(self) -> Header:
        """Metadata and tensor table; arrays of strings as their lengths."""
        return read_header(self._path)

    @property
    def facts(self) -> Facts:
        """What the metadata says; `ConfigError` when edged does not compute such a model."""
        return self._facts

    @cached_property
    def _facts(self) -> Facts:
        family = self._family
        if family not in _FAMILIES:
            raise ConfigError(unknown_family(family, self.where))
        if self._stated("expert_count"):
            raise ConfigError(
                f"{self.where} has experts, which layer pipelines do not run; choose another model"
            )
        facts = facts_of({**self._settings(), "rope_parameters": self._rope()}, self.where)
        self._check_rotated(facts)
        return facts

    def stored(self, layer: int) -> set[str]:
        """Names that the file has for a layer, as the file has them."""
        return {name for name in self.header.tensors if name.startswith(f"blk.{layer}.")}

    def name_in_file(self, name: str) -> str:
        """Name of a tensor of the whole model in this file."""
        return gguf_name(name)

    def tensor(self, name: str, dtype: DType) -> torch.Tensor:
        """Dequantise one tensor; `BackendError` when it is missing or of an unknown type."""
        stored = gguf_name(name)
        entry = self.header.tensors.get(stored)
        if entry is None:
            raise BackendError(f"{self.where} has no tensor {stored}; pull or convert the model again")
        return dequantised(self._path, stored, entry, dtype, self._interleaved_heads(stored))

    @property
    def _family(self) -> Any:
        return self.header.metadata.get("general.architecture")

    def _stated(self, key: str) -> Any:
        return self.header.metadata.get(f"{self._family}.{key}")

    def _settings(self) -> dict[str, Any]:
        heads, hidden = self._stated("attention.head_count"), self._stated("embedding_length")
        embedding = self.header.tensors.get("token_embd.weight")
        settings = {
            "model_type": "mistral" if self._is_mistral() else self._family,
            "num_hidden_layers": self._stated("block_count"),
            "hidden_size": hidden,
            "intermediate_size": self._stated("feed_forward_length"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._stated("attention.head_count_kv"),
            "head_dim": self._stated("attention.key_length"),
            "max_position_embeddings": self._stated("context_length"),
            "rms_norm_eps": self._stated("attention.layer_norm_rms_epsilon"),
            "sliding_window": self._stated("attention.sliding_window"),
            "vocab_size": embedding.shape[0] if embedding else None,
            "tie_word_embeddings": "output.weight" not in self.header.tensors,
        }
        if settings["head_dim"] is None and isinstance(heads, int) and isinstance(hidden, int) and heads:
            settings["head_dim"] = hidden // heads
        return {key: value for key, value in settings.items() if value is not None}

    def _is_mistral(self) -> bool:
        name = f"{self.header.metadata.get('general.name')} {self.header.metadata.get('general.basename')}"
        return self._family == "llama" and "mistral" in name.lower()

    def _rope(self) -> dict[str, Any]:
        scheme = self._stated("rope.scaling.type") or "none"
        rope: dict[str, Any] = {"rope_theta": self._stated("rope.freq_base") or 10_000.0}
        if "rope_freqs.weight" in self.header.tensors:
            return rope | self._llama3()
        if scheme == "linear":
            return rope | {"rope_type": "linear", "factor": self._stated("rope.scaling.factor") or 1.0}
        return rope | {"rope_type": "default" if scheme == "none" else f"{scheme} in GGUF"}

    def _llama3(self) -> dict[str, Any]:
        """Find the settings whose outcome the file holds; `ConfigError` when there are none."""
        held = self._factors(self.header.tensors["rope_freqs.weight"])
        theta = float(self._stated("rope.freq_base") or 10_000.0)
        computed = llama3_factors(theta, len(held), max(held))
        if any(
            not math.isclose(a, b, rel_tol=_FACTOR_TOLERANCE) for a, b in zip(held, computed, strict=True)
        ):
            raise ConfigError(
                f"{self.where} scales positions in a way of its own (rope_freqs.weight); take the model as "
                "safetensors, whose config.json names the scheme"
            )
        return {"rope_type": "llama3", "factor": max(held), **_LLAMA3}

    def _factors(self, entry: Entry) -> list[float]:
        """Plain float32 values, without the gguf package: a description needs no runtime."""
        values = array("f")
        with self._path.open("rb") as file:
            file.seek(entry.offset)
            values.frombytes(file.read(4 * entry.elements))
        if entry.type != _FLOAT32 or len(values) != entry.elements:
            raise BackendError(f"{self.where}: rope_freqs.weight is damaged; pull or convert the model again")
        return values.tolist()

    def _check_rotated(self, facts: Facts) -> None:
        rotated = self._stated("rope.dimension_count")
        if rotated not in (None, facts.architecture.head_dimension):
            raise ConfigError(
                f"{self.where} rotates {rotated} of {facts.architecture.head_dimension} dimensions of a "
                "head, which layer pipelines do not compute; choose another model"
            )

    def _interleaved_heads(self, stored: str) -> int:
        """Heads whose rows the converter put in another order; 0 for tensors in the library's order."""
        shape = self.facts.architecture
        part = stored.partition(".")[2].partition(".")[2]
        heads = {"attn_q.weight": shape.heads, "attn_k.weight": shape.key_value_heads}
        return heads.get(part, 0) if self._family in _INTERLEAVED else 0


def llama3_factors(theta: float, count: int, factor: float) -> list[float]:
    """By how much Llama 3.1 slows each of the `count` frequencies down, for positions beyond its first 8192.

    https://github.com/meta-llama/llama-models/blob/main/models/llama3/model.py, `apply_scaling`.
    """
    length, low, high = (
        _LLAMA3[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    factors = []
    for number in range(count):
        turns = length / (2 * math.pi * theta ** (number / count))
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors
