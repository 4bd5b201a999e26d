"""Simulated encoders: outputs that are a pure function of their inputs, at a declared cost."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edged.backend import Array, Variant
from edged.errors import BackendError
from edged_backends.lanes import Lanes
from edged_backends.simulated_costs import Costs
from edged_backends.simulated_faults import Faults, Saboteur, contains

_ENCODER_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_MATRIX = 2
_LOGIT_SPAN = 8.0


class _TensorSession(ABC):
    """What the simulated tensor sessions share: checks, costs and faults."""

    inputs: tuple[str, ...] = _ENCODER_INPUTS
    outputs: tuple[str, ...] = ()
    lanes = 1
    lone_rows = False

    def __init__(self, costs: Costs, saboteur: Saboteur, lengths: Sequence[int]) -> None:
        self._costs = costs
        self._saboteur = saboteur
        self._lengths = lengths
        self._closed = False
        self._lanes = Lanes(1)

    def run(self, feeds: Mapping[str, Array], /) -> dict[str, Array]:
        """Run one batch; takes `fixed_ms`, `per_item_ms` a row and `per_token_ms` an element of a row."""
        self._check(feeds)
        batch, width = _size(next(iter(feeds.values())))
        faults = self._saboteur.working(batch, lambda faults: _concerned(faults, feeds))
        if faults.raising == "item":
            raise BackendError("the simulated runtime refuses an item, as its fault file asks")
        self._costs.spend(self._costs.batch_ms(batch, width), self._saboteur.slow_factor())
        return {name: _spoilt(array, faults) for name, array in self._compute(feeds).items()}

    def run_each(self, runs: Sequence[Mapping[str, Array]], /) -> list[dict[str, Array]]:
        """Do independent runs one after the other."""
        return self._lanes.each(self.run, runs)

    def attend(self, look: Callable[[], None], /) -> None:
        """See `TensorSession.attend`."""
        self._lanes.attend(look)

    def set_threads(self, _count: int, /) -> bool:
        """See `TensorSession.set_threads`: declared costs hold for any number."""
        return False

    def close(self) -> None:
        """End the session; idempotent."""
        self._closed = True

    @abstractmethod
    def _compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]: ...

    def _check(self, feeds: Mapping[str, Array]) -> None:
        if self._closed:
            raise BackendError("the session is closed")
        if set(feeds) != set(self.inputs):
            wrong = ", ".join(sorted(set(feeds) ^ set(self.inputs)))
            raise BackendError(f"wrong inputs: {wrong}; the model takes {', '.join(self.inputs)}")
        if any(not array.ndim for array in feeds.values()):
            raise BackendError("an input without a batch axis")
        sizes = {_size(array) for array in feeds.values()}
        if len({batch for batch, _ in sizes}) > 1:
            raise BackendError("the inputs disagree about the batch")
        if self._lengths and not {width for _, width in sizes} <= set(self._lengths):
            raise BackendError(
                f"the device has static shapes; lengths compiled for it: {list(self._lengths)}"
            )


class EmptySession(_TensorSession):
    """Returns its inputs unchanged, copied; `details = {"inputs": [...]}` names them."""

    def __init__(self, variant: Variant, costs: Costs, saboteur: Saboteur, lengths: Sequence[int]) -> None:
        super().__init__(costs, saboteur, lengths)
        self.inputs = self.outputs = tuple(variant.details.get("inputs", ("input",)))

    def _compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {name: array.copy() for name, array in feeds.items()}


class _EncoderSession(_TensorSession):
    def _check(self, feeds: Mapping[str, Array]) -> None:
        super()._check(feeds)
        if any(array.ndim != _MATRIX for array in feeds.values()):
            raise BackendError("an encoder takes inputs of shape [batch, tokens]")
        if len({array.shape for array in feeds.values()}) > 1:
            raise BackendError("the inputs disagree about their shape")


class EmbedderSession(_EncoderSession):
    """`last_hidden_state` float32 [batch, tokens, dimension]: at every position the text's bag of tokens.

    Texts that share tokens point the same way, whichever way they are pooled.
    """

    outputs: tuple[str, ...] = ("last_hidden_state",)

    def __init__(self, variant: Variant, costs: Costs, saboteur: Saboteur, lengths: Sequence[int]) -> None:
        super().__init__(costs, saboteur, lengths)
        self._dimension = int(variant.details.get("dimension", 384))

    def _compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        ids, mask = feeds["input_ids"], feeds["attention_mask"]
        bags = [_bag(row[kept > 0], self._dimension) for row, kept in zip(ids, mask, strict=True)]
        pooled = np.stack(bags) if bags else np.zeros((0, self._dimension), np.float32)
        return {"last_hidden_state": np.repeat(pooled[:, np.newaxis, :], ids.shape[1], axis=1)}


class RerankerSession(_EncoderSession):
    """`logits` float32 [batch, 1]: which share of the query's tokens the document has, -4 to 4."""

    outputs: tuple[str, ...] = ("logits",)

    def __init__(self, _variant: Variant, costs: Costs, saboteur: Saboteur, lengths: Sequence[int]) -> None:
        super().__init__(costs, saboteur, lengths)

    def _compute(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        rows = zip(feeds["input_ids"], feeds["attention_mask"], feeds["token_type_ids"], strict=True)
        scores = [_LOGIT_SPAN * (_overlap(ids[mask > 0], types[mask > 0]) - 0.5) for ids, mask, types in rows]
        return {"logits": np.array(scores, np.float32).reshape(-1, 1)}


def _size(array: Array) -> tuple[int, int]:
    return (int(array.shape[0]), int(array.shape[1]) if array.ndim > 1 else 1)


def _overlap(ids: Array, types: Array) -> float:
    query = np.unique(ids[types == 0])
    return float(np.isin(query, ids[types == 1]).mean()) if query.size else 0.0


def _bag(ids: Array, dimension: int) -> Array:
    """Sum a pseudo-random vector per id; the integer hash is the finaliser of SplitMix64."""
    unique, counts = np.unique(ids.astype(np.uint64), return_counts=True)
    with np.errstate(over="ignore"):
        x: npt.NDArray[np.uint64] = np.add.outer(
            unique * np.uint64(dimension), np.arange(dimension, dtype=np.uint64)
        )
        x = (x + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    vectors = x.astype(np.float64) / 2.0**63 - 1.0
    total: Array = (counts @ vectors).astype(np.float32)
    return total


def _concerned(faults: Faults, feeds: Mapping[str, Array]) -> bool:
    """Whether the batch holds what the faults wait for; without a condition, every batch does."""
    text = faults.on_text.encode()
    if text and not any(text in array.tobytes() for array in feeds.values()):
        return False
    return not faults.on_tokens or any(
        contains(row.ravel().tolist(), faults.on_tokens)
        for array in feeds.values()
        if array.dtype.kind in "iu"
        for row in array
    )


def _spoilt(array: Array, faults: Faults) -> Array:
    if faults.garbage:
        noise: Any = np.frombuffer(os.urandom(array.nbytes), array.dtype)
        return np.array(noise).reshape(array.shape)
    if faults.nan and array.dtype.kind == "f":
        return np.full_like(array, np.nan)
    return array


SESSIONS: dict[str, type[EmbedderSession | RerankerSession | EmptySession]] = {
    "embed": EmbedderSession,
    "rerank": RerankerSession,
    "tensor": EmptySession,
}
"""By task."""
