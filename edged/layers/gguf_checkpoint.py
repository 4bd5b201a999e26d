"""A GGUF file as the source of a stage's weights: each tensor dequantised as it is asked for."""

from __future__ import annotations

import math
from array import array
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edged.errors import BackendError, ConfigError
from edged.layers.gguf_header import Entry, Header, read_header
from edged.layers.model_facts import Facts, facts_of, unknown_family
from edged.layers.tensor_names import gguf_name

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

_FAMILIES = ("llama", "qwen2", "qwen3")
"""`general.architecture`; files of Mistral models say `llama`."""
_PERMUTED = {"llama": ("attn_q.weight", "attn_k.weight")}
"""Rows that llama.cpp's converter puts in another order, for its own rotary embedding."""
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

    def tensor(self, name: str) -> torch.Tensor:
        """Dequantise one tensor to float32; `BackendError` when it is missing or of an unknown type."""
        import torch

        stored = gguf_name(name)
        entry = self.header.tensors.get(stored)
        if entry is None:
            raise BackendError(f"{self.where} has no tensor {stored}; pull or convert the model again")
        values = self._values(stored, entry).reshape(entry.shape)
        if stored.partition(".")[2].partition(".")[2] in _PERMUTED.get(self._family, ()):
            values = _in_library_order(values, self._heads(stored))
        return torch.from_numpy(values)

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

    def _heads(self, stored: str) -> int:
        shape = self.facts.architecture
        return shape.heads if "attn_q" in stored else shape.key_value_heads

    def _values(self, stored: str, entry: Entry) -> npt.NDArray[Any]:
        """Read and dequantise; nothing but this tensor's bytes is touched."""
        quants, constants = _library()
        try:
            kind = constants.GGMLQuantizationType(entry.type)
            values = quants.dequantize(self._rows(entry, *constants.GGML_QUANT_SIZES[kind]), kind)
        except (NotImplementedError, KeyError, ValueError) as error:
            raise BackendError(
                f"{self.where}: gguf cannot dequantise {stored} (type {entry.type}): {error}; take the model "
                "in another quantisation, e.g. Q4_K or Q8_0"
            ) from error
        except OSError as error:
            raise BackendError(
                f"{self.where}: cannot read {stored}: {error}; pull the model again"
            ) from error
        return cast("npt.NDArray[Any]", values if values.flags.writeable else values.copy())

    def _rows(self, entry: Entry, block: int, block_bytes: int) -> npt.NDArray[Any]:
        """Map the packed rows; `ValueError` when they do not lie in the file."""
        import numpy as np

        columns = entry.shape[-1]
        if not entry.elements or columns % block:
            raise ValueError(f"its rows of {columns} are no whole blocks of {block}")
        shape = (entry.elements // columns, columns // block * block_bytes)
        if entry.offset + shape[0] * shape[1] > self._path.stat().st_size:
            raise ValueError("it runs beyond the end of the file")
        return np.asarray(np.memmap(self._path, mode="r", offset=entry.offset, shape=shape))


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


def _in_library_order(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Undo the converter's interleaving of each head's halves.

    >>> import numpy as np
    >>> _in_library_order(np.arange(8), 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return cast("npt.NDArray[Any]", pairs.swapaxes(1, 2).reshape(rows.shape))


def _library() -> tuple[Any, Any]:
    try:
        from gguf import constants, quants
    except ImportError as error:
        raise ConfigError(
            f"reading GGUF weights needs the package gguf ({error}); run: pip install 'edged[pipeline]'"
        ) from error
    return quants, constants
