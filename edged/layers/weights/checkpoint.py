"""Where a stage's weights come from: GGUF, safetensors, or a seed; each stage reads its own tensors only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edged.errors import BackendError, ConfigError
from edged.layers.share import Architecture, DType, Share
from edged.layers.weights.gguf_checkpoint import GgufCheckpoint
from edged.layers.weights.model_facts import Facts, library_settings
from edged.layers.weights.random_checkpoint import PREFIX, RandomCheckpoint
from edged.layers.weights.safetensors_checkpoint import SafetensorsCheckpoint
from edged.layers.weights.tensor_names import EMBEDDING, layer_parts, wanted

if TYPE_CHECKING:
    import torch

_CLASSES = {
    "llama": "LlamaConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "mistral": "MistralConfig",
}


class Checkpoint(Protocol):
    """A model's weights, tensor by tensor under the library's names of the whole model."""

    where: str
    """File, folder or text, for errors."""

    @property
    def facts(self) -> Facts:
        """Shape and position scheme."""
        ...

    def stored(self, layer: int, /) -> set[str]:
        """Names of all tensors that the source has for a layer, in its own spelling."""
        ...

    def name_in_file(self, name: str, /) -> str:
        """The source's spelling of a name."""
        ...

    def tensor(self, name: str, dtype: DType, /) -> torch.Tensor:
        """Read one tensor, on the CPU."""
        ...


def open_checkpoint(source: Path | str) -> Checkpoint:
    """Choose by form: `random:FAMILY:key=value,...`, a `.gguf` file, a folder or file of safetensors.

    Reads nothing yet. Raises `ConfigError` when there is no such thing.
    """
    if str(source).startswith(PREFIX):
        return RandomCheckpoint(str(source))
    path = Path(source)
    if not path.exists():
        raise ConfigError(f"no model at {path}; give a GGUF file, a folder of safetensors, or {PREFIX}llama:")
    if path.suffix == ".gguf":
        return GgufCheckpoint(path)
    if path.is_dir() or path.suffix == ".safetensors":
        return SafetensorsCheckpoint(path)
    raise ConfigError(f"{path} is neither a .gguf file nor safetensors; layer pipelines open those two")


def describe(source: Path | str) -> Architecture:
    """Read a model's shape, without torch; `ConfigError` says what layer pipelines do not run."""
    return open_checkpoint(source).facts.architecture


def library_config(source: Path | str | Checkpoint) -> Any:
    """Return the library's configuration object, from which single layers, norm and rotary are built."""
    facts = _opened(source).facts
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"layer pipelines need torch and transformers ({error}); run: pip install 'edged[pipeline]'"
        ) from error
    return getattr(transformers, _CLASSES[facts.architecture.family])(**library_settings(facts))


def weights(
    source: Path | str | Checkpoint, share: Share, dtype: DType
) -> Iterator[tuple[str, torch.Tensor]]:
    """Read the tensors of a share, one by one in the order of computing, layers renumbered from 0.

    Names are the library's (`model.layers.0.self_attn.q_proj.weight`, `lm_head.weight`, which is the
    embedding where the model ties them: the same object where the share has both). Tensors are on the
    CPU, in `dtype`; those of safetensors in that type already are views of the mapped file. Raises
    `BackendError` for a tensor that is missing, unreadable, of another shape, or that edged does not know.
    """
    checkpoint = _opened(source)
    architecture = checkpoint.facts.architecture
    _check_layers(checkpoint, share)
    kept: dict[str, torch.Tensor] = {}
    for name, stored, shape in wanted(architecture, share):
        tensor = kept.get(stored)
        if tensor is None:
            tensor = checkpoint.tensor(stored, dtype)
            _check_shape(checkpoint, stored, tuple(tensor.shape), shape)
        if architecture.tied and share.head and stored == EMBEDDING:
            kept[stored] = tensor
        yield name, tensor


def _check_shape(checkpoint: Checkpoint, stored: str, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if found != shape:
        raise BackendError(
            f"{checkpoint.where}: {checkpoint.name_in_file(stored)} has shape {found}, not {shape}; its "
            "settings are of another model: pull it again"
        )


def _opened(source: Path | str | Checkpoint) -> Checkpoint:
    return open_checkpoint(source) if isinstance(source, Path | str) else source


def _check_layers(checkpoint: Checkpoint, share: Share) -> None:
    """Refuse what a layer has beyond the known: leaving it out would give wrong answers in silence."""
    architecture = checkpoint.facts.architecture
    if not 0 <= share.first <= share.end <= architecture.layers:
        raise ConfigError(
            f"{checkpoint.where} has {architecture.layers} layers, not {share.first} to {share.end}"
        )
    parts = layer_parts(architecture)
    for layer in range(share.first, share.end):
        known = {checkpoint.name_in_file(f"model.layers.{layer}.{part}") for part in parts}
        unknown = sorted(checkpoint.stored(layer) - known)
        if unknown:
            raise BackendError(
                f"{checkpoint.where} has {', '.join(unknown[:3])}, which a layer of {architecture.family} "
                "does not; choose another model"
            )
