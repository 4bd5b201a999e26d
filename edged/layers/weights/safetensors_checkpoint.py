"""A folder of safetensors beside a `config.json` as the source of a stage's weights."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edged.errors import BackendError, ConfigError
from edged.layers.share import DType
from edged.layers.weights.model_facts import Facts, facts_of

if TYPE_CHECKING:
    import torch

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CONFIG = "config.json"


class SafetensorsCheckpoint:
    """A folder, or one file of it, as the library's `save_pretrained` leaves it."""

    def __init__(self, path: Path) -> None:
        self._folder = path if path.is_dir() else path.parent
        self._single = _SINGLE if path.is_dir() else path.name
        self._open: dict[str, Any] = {}
        self.where = str(path)

    @property
    def facts(self) -> Facts:
        """What `config.json` says; `ConfigError` when edged does not compute such a model."""
        return self._facts

    @cached_property
    def _facts(self) -> Facts:
        path = self._folder / _CONFIG
        settings = _json(path)
        return facts_of(settings, str(path))

    def stored(self, layer: int) -> set[str]:
        """Names that the files have for a layer; old ones keep frequencies that are computed anew."""
        prefix = f"model.layers.{layer}."
        names = {name for name in self._files if name.startswith(prefix)}
        return {name for name in names if not name.endswith(".rotary_emb.inv_freq")}

    def name_in_file(self, name: str) -> str:
        """Name of a tensor of the whole model in these files: the library's own."""
        return name

    def tensor(self, name: str, dtype: DType) -> torch.Tensor:
        """Map one tensor from its file; `BackendError` when it is missing or the file is damaged."""
        import torch

        safetensors = _library()
        file = self._files.get(name)
        if file is None:
            raise BackendError(f"{self.where} has no tensor {name}; pull or save the model again")
        try:
            stored: torch.Tensor = self._opened(file).get_tensor(name)
            return stored.to(getattr(torch, dtype))
        except (safetensors.SafetensorError, OSError) as error:
            raise self._unreadable(file, error) from error

    @cached_property
    def _files(self) -> dict[str, str]:
        """The file of each tensor."""
        index = self._folder / _INDEX
        if not (self._folder / self._single).exists() and index.is_file():
            return self._indexed(index)
        safetensors = _library()
        try:
            return dict.fromkeys(self._opened(self._single).keys(), self._single)
        except (safetensors.SafetensorError, OSError) as error:
            raise self._unreadable(self._single, error) from error

    def _indexed(self, index: Path) -> dict[str, str]:
        files = _json(index).get("weight_map")
        if not isinstance(files, dict) or any(not _plain(name) for name in files.values()):
            raise BackendError(f"{index} does not say which file beside it holds which tensor; pull it again")
        return files

    def _opened(self, file: str) -> Any:
        if file not in self._open:
            self._open[file] = _library().safe_open(self._folder / file, framework="pt")
        return self._open[file]

    def _unreadable(self, file: str, error: Exception) -> BackendError:
        return BackendError(f"cannot read {self._folder / file}: {error}; pull or save the model again")


def _plain(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")


def _json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}; a model in safetensors needs its {_CONFIG} beside the weights"
        ) from error


def _library() -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise ConfigError(
            f"reading these weights needs safetensors ({error}); run: pip install 'edged[pipeline]'"
        ) from error
    return safetensors
