"""One stage of a layer pipeline: decoder layers of the library's own classes, run one by one.

The library's model class is not used whole: its forward numbers cache rows by global layer, which is what
makes its own pipeline parallelism wrong on padded batches. Here the layers of a stage are numbered from 0,
and positions and mask are given with every job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import torch

from edged.errors import BackendError
from edged.layers.rows import Cache, Places
from edged.layers.share import Share
from edged.layers.wire import Job, Row

if TYPE_CHECKING:
    from edged.layers.chooser import Chooser

_CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral"}


class Runner(Protocol):
    """What a stage does with a job."""

    @property
    def copy_s(self) -> float:
        """Seconds so far in which compute waited for weights or cache to be copied."""
        ...

    def run(self, job: Job, tensor: torch.Tensor, /) -> torch.Tensor:
        """Compute: see `Job` for what goes in and comes out."""
        ...

    def close(self) -> None:
        """Give the memory back; idempotent."""
        ...


class Layers(Protocol):
    """The decoder layers of a stage, wherever their weights live."""

    @property
    def copy_s(self) -> float:
        """Seconds so far in which compute waited for weights."""
        ...

    def __iter__(self) -> Iterator[tuple[int, torch.nn.Module]]:
        """Yield each layer once, by its number in the stage, ready to run on the stage's device."""
        ...

    def close(self) -> None:
        """Give the memory back; idempotent."""
        ...


class ResidentLayers:
    """All weights on the device."""

    copy_s = 0.0

    def __init__(self, layers: list[torch.nn.Module]) -> None:
        self._layers = layers

    def __iter__(self) -> Iterator[tuple[int, torch.nn.Module]]:
        """See `Layers`."""
        return iter(enumerate(self._layers))

    def close(self) -> None:
        """See `Layers`."""
        self._layers = []


class Parts:
    """The library's classes for one family, as modules without memory until weights are put in."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self._name = _CLASSES[config.model_type]
        self._module = import_module(f"transformers.models.{config.model_type}.modeling_{config.model_type}")

    def layer(self, number: int) -> torch.nn.Module:
        """Return decoder layer `number` of a stage, on the meta device."""
        return self._made("DecoderLayer", self._config, number)

    def norm(self) -> torch.nn.Module:
        """Return the final norm, on the meta device."""
        return self._made("RMSNorm", self._config.hidden_size, self._config.rms_norm_eps)

    def rotary(self, device: torch.device) -> Callable[..., Any]:
        """Return the rotary embedding; it has no weights, and is made where it computes."""
        embedding: torch.nn.Module = getattr(self._module, f"{self._name}RotaryEmbedding")(self._config)
        return embedding.to(device)

    def _made(self, kind: str, *arguments: Any) -> torch.nn.Module:
        with torch.device("meta"):
            module: torch.nn.Module = getattr(self._module, f"{self._name}{kind}")(*arguments)
        return module.eval()


def filled(module: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """Put weights into a module; `BackendError` names what is missing or too much."""
    try:
        module.load_state_dict(dict(weights), assign=True)
    except RuntimeError as error:
        raise BackendError(f"the weights do not fit {type(module).__name__}: {error}") from error
    return module.requires_grad_(requires_grad=False)


def under(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in weights.items() if name.startswith(prefix)}


def resident(
    parts: Parts, share: Share, weights: Mapping[str, torch.Tensor], device: torch.device
) -> ResidentLayers:
    """Put all layers of a share on the device."""
    return ResidentLayers(
        [
            filled(parts.layer(number), _to(under(weights, f"model.layers.{number}."), device))
            for number in range(share.layers)
        ]
    )


def _to(weights: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in weights.items()}


def _chooser() -> Chooser:
    from edged.layers.chooser import Chooser  # the library's: half a second that other stages need not wait

    return Chooser(torch.device("cpu"))


class Ends:
    """What the first and the last stage have beside layers."""

    def __init__(
        self, parts: Parts, share: Share, weights: Mapping[str, torch.Tensor], device: torch.device
    ) -> None:
        self._device = device
        table = weights.get("model.embed_tokens.weight") if share.embedding else None
        self._table = table.to(device) if table is not None else None
        self._norm = filled(parts.norm(), _to(under(weights, "model.norm."), device)) if share.head else None
        self._head = self._matrix(weights["lm_head.weight"], weights) if share.head else None
        self._chooser = _chooser()

    def _matrix(self, head: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        tied = weights.get("model.embed_tokens.weight")
        if self._table is not None and tied is not None and tied.data_ptr() == head.data_ptr():
            return self._table
        return head.to(self._device)

    @property
    def bytes(self) -> int:
        """What the matrices hold; one that serves at both ends counts once."""
        found = {each.data_ptr(): each for each in (self._table, self._head) if each is not None}
        return sum(each.numel() * each.element_size() for each in found.values())

    def embed(self, tensor: torch.Tensor) -> torch.Tensor:
        """Turn ids to hidden states; what is hidden states already goes to the device."""
        tensor = tensor.to(self._device, non_blocking=True)
        return tensor if self._table is None else torch.nn.functional.embedding(tensor, self._table)

    def choose(self, job: Job, hidden: torch.Tensor) -> torch.Tensor:
        """Return the chosen ids where this is the last stage, else the hidden states as they are."""
        if self._norm is None or self._head is None:
            return hidden
        self._chooser.open(job.opened)
        emitting = [(number, row) for number, row in enumerate(job.rows) if row.emit]
        if not emitting:
            return torch.empty(0, dtype=torch.int64)
        rows = torch.tensor([number for number, _ in emitting], device=self._device)
        columns = torch.tensor([row.count - 1 for _, row in emitting], device=self._device)
        logits = torch.nn.functional.linear(self._norm(hidden[rows, columns]), self._head)
        return self._chooser.choose([row.slot for _, row in emitting], logits.cpu())


class StageShape(msgspec.Struct, frozen=True, kw_only=True):
    """The dimensions of a stage."""

    context_tokens: int
    device: torch.device
    block: int = 1
    """Into how many parts a job's rows are cut, so that a layer's weights, once there, serve them all."""


class _Part:
    """Some rows of a job on their way through the layers."""

    def __init__(self, hidden: torch.Tensor, places: Places, turned: Any) -> None:
        self.hidden = hidden
        self.places = places
        self.turned = turned


class LayerStage:
    """A share of a model on a device, with its rows of the KV cache."""

    def __init__(
        self, layers: Layers, ends: Ends, cache: Cache, rotary: Callable[..., Any], shape: StageShape
    ) -> None:
        self._layers = layers
        self._ends = ends
        self._cache = cache
        self._rotary = rotary
        self._shape = shape

    @property
    def copy_s(self) -> float:
        """See `Runner.copy_s`."""
        return self._layers.copy_s

    @torch.inference_mode()
    def run(self, job: Job, tensor: torch.Tensor, /) -> torch.Tensor:
        """See `Runner.run`."""
        hidden = self._ends.embed(tensor)
        parts = [self._part(rows, piece) for rows, piece in self._cut(job.rows, hidden)]
        self._cache.open([part.places for part in parts])
        for number, layer in self._layers:
            for order, part in enumerate(parts):
                self._cache.enter(number, order)
                part.hidden = self._through(layer, part)
                self._cache.leave(number, order)
        computed = self._ends.choose(job, torch.cat([part.hidden for part in parts]))
        self._wait()
        return computed

    def _wait(self) -> None:
        """Let a GPU end what it was told: the next stage needs it, and the time is this stage's."""
        if self._shape.device.type == "cuda":
            torch.cuda.current_stream(self._shape.device).synchronize()

    def _part(self, rows: tuple[Row, ...], hidden: torch.Tensor) -> _Part:
        places = Places.of(rows, hidden.shape[1], self._shape.context_tokens, self._shape.device)
        return _Part(hidden, places, self._rotary(hidden, position_ids=places.positions))

    def _cut(
        self, rows: tuple[Row, ...], hidden: torch.Tensor
    ) -> Iterator[tuple[tuple[Row, ...], torch.Tensor]]:
        size = -(-len(rows) // self._shape.block)
        for first in range(0, len(rows), size):
            yield rows[first : first + size], hidden[first : first + size]

    def _through(self, layer: torch.nn.Module, part: _Part) -> torch.Tensor:
        return layer(  # type: ignore[no-any-return] # the library is untyped
            part.hidden,
            attention_mask=part.places.mask,
            position_embeddings=part.turned,
            position_ids=part.places.positions,
            past_key_values=self._cache,
            use_cache=True,
        )

    def close(self) -> None:
        """See `Runner.close`."""
        self._layers.close()
