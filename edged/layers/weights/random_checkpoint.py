"""A model of any size without a file: its weights are drawn from a seed."""

from __future__ import annotations

import math
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from edged.errors import ConfigError
from edged.layers.share import DType
from edged.layers.weights.model_facts import Facts, facts_of
from edged.layers.weights.tensor_names import EMBEDDING, HEAD, NORM, layer_parts

if TYPE_CHECKING:
    import torch

PREFIX = "random:"
_BLOCK = 1_048_573
"""Values drawn for a tensor; a larger one repeats them. A prime, so that no two rows are alike."""

Count = Annotated[int, msgspec.Meta(ge=1)]


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may stand behind `random:FAMILY:`."""

    layers: Count = 4
    hidden: Count = 256
    heads: Count = 8
    kv: Count = 0
    """Key-value heads; 0 means as many as heads."""
    head: Count = 0
    """Dimensions of a head; 0 means hidden / heads."""
    intermediate: Count = 688
    vocabulary: Annotated[int, msgspec.Meta(ge=8)] = 1024
    context: Count = 2048
    tied: Literal[0, 1] = 0
    theta: Annotated[float, msgspec.Meta(gt=1)] = 10_000.0
    seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 1


class RandomCheckpoint:
    """The same tensors for the same text, whichever stage asks for which."""

    def __init__(self, text: str) -> None:
        self.where = text
        family, _, rest = text.removeprefix(PREFIX).partition(":")
        self._family = family
        self._recipe = _recipe(rest, text)

    @property
    def facts(self) -> Facts:
        """The shape that the text spells; `ConfigError` when it spells none."""
        return self._facts

    @cached_property
    def _facts(self) -> Facts:
        return facts_of(_settings(self._family, self._recipe), self.where)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shape = self.facts.architecture
        matrix = (shape.vocabulary, shape.hidden)
        return {EMBEDDING: matrix, HEAD: matrix, NORM: (shape.hidden,)}

    def stored(self, layer: int) -> set[str]:
        """Names of the tensors of a layer."""
        return {f"model.layers.{layer}.{part}" for part in layer_parts(self.facts.architecture)}

    def name_in_file(self, name: str) -> str:
        """There is no file: the library's own name."""
        return name

    def tensor(self, name: str, dtype: DType) -> torch.Tensor:
        """Draw one tensor: norms 1, biases small, matrices that keep the variance."""
        import torch

        part = name.removeprefix("model.layers.").partition(".")[2]
        shape = self._shapes.get(name) or layer_parts(self.facts.architecture)[part]
        kind: torch.dtype = getattr(torch, dtype)
        if "norm" in name:
            return torch.ones(shape, dtype=kind)
        count = math.prod(shape)
        block = (self._drawn(name, min(count, _BLOCK)) * self._deviation(name, shape)).to(kind)
        return block.repeat(-(-count // len(block)))[:count].view(shape)

    def _drawn(self, name: str, count: int) -> torch.Tensor:
        import torch

        digest = blake2b(f"{self._recipe.seed} {name}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        return torch.randn(count, generator=generator)

    def _deviation(self, name: str, shape: tuple[int, ...]) -> float:
        """A matrix gives deviation 1; what layers add to the residual stream adds up to 1."""
        if len(shape) == 1:
            return 0.02
        adding = "o_proj" in name or "down_proj" in name
        return float((shape[-1] * (2 * self.facts.architecture.layers if adding else 1)) ** -0.5)


def _settings(family: str, recipe: Recipe) -> dict[str, Any]:
    return {
        "model_type": family,
        "num_hidden_layers": recipe.layers,
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.intermediate,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.kv or recipe.heads,
        "head_dim": recipe.head or recipe.hidden // recipe.heads,
        "vocab_size": recipe.vocabulary,
        "max_position_embeddings": recipe.context,
        "tie_word_embeddings": bool(recipe.tied),
        "rms_norm_eps": 1e-5,
        "rope_theta": recipe.theta,
    }


def _recipe(text: str, where: str) -> Recipe:
    cut = [pair.partition("=") for pair in text.split(",") if pair]
    pairs = {key: value for key, _, value in cut}
    try:
        return msgspec.convert(pairs, Recipe, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{where!r} spells no model: {error}; write e.g. "
            "random:llama:layers=8,hidden=256,heads=8,kv=2,intermediate=688,vocabulary=1024,seed=1"
        ) from error
