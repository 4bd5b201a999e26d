"""Dequantise one tensor of a GGUF file, some rows at a time, straight to the type it is used in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edged.errors import BackendError, ConfigError
from edged.layers.share import DType
from edged.layers.weights.gguf_header import Entry

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

_AT_ONCE = 1 << 20
"""Values dequantised together: a few MB are needed beside the result, however large that is."""


def dequantised(path: Path, name: str, entry: Entry, dtype: DType, heads: int = 0) -> torch.Tensor:
    """Read one tensor; nothing but its bytes is touched.

    `heads`, when not 0, says that llama.cpp's converter interleaved the halves of so many heads' rows, which
    is undone. Raises `BackendError` when the tensor is damaged or its type unknown, `ConfigError` when the
    package gguf is missing.
    """
    quants, constants = _library()
    try:
        kind = constants.GGMLQuantizationType(entry.type)
        rows = _rows(path, entry, *constants.GGML_QUANT_SIZES[kind])
        return _filled(rows, entry, heads, lambda packed: _unpacked(quants, packed, kind), dtype)
    except (KeyError, ValueError) as error:
        raise BackendError(
            f"{path}: gguf cannot dequantise {name} (type {entry.type}): {error}; take the model in another "
            "quantisation, e.g. Q4_K or Q8_0"
        ) from error
    except OSError as error:
        raise BackendError(f"{path}: cannot read {name}: {error}; pull the model again") from error


def _unpacked(quants: Any, packed: npt.NDArray[Any], kind: Any) -> npt.NDArray[Any]:
    """The values of some rows; `ValueError` for a type gguf knows by name only: it has no public list."""
    try:
        values: npt.NDArray[Any] = quants.dequantize(packed, kind)
    except RuntimeError as error:
        raise ValueError(error) from error
    return values


def library_order(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Undo the converter's interleaving of each head's halves.

    >>> import numpy as np
    >>> library_order(np.arange(8), 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return cast("npt.NDArray[Any]", pairs.swapaxes(1, 2).reshape(rows.shape))


def _filled(rows: npt.NDArray[Any], entry: Entry, heads: int, unpack: Any, dtype: DType) -> torch.Tensor:
    import numpy as np
    import torch

    result = torch.empty((len(rows), entry.shape[-1]), dtype=getattr(torch, dtype))
    order = library_order(np.arange(len(rows)), heads) if heads else np.arange(len(rows))
    step = max(1, _AT_ONCE // entry.shape[-1])
    for first in range(0, len(rows), step):
        values = unpack(rows[order[first : first + step]])
        result[first : first + step] = torch.from_numpy(values)
    return result.view(entry.shape)


def _rows(path: Path, entry: Entry, block: int, block_bytes: int) -> npt.NDArray[Any]:
    """Map the packed rows; `ValueError` when they do not lie in the file."""
    import numpy as np

    columns = entry.shape[-1]
    if not entry.elements or columns % block:
        raise ValueError(f"its rows of {columns} are no whole blocks of {block}")
    shape = (entry.elements // columns, columns // block * block_bytes)
    if entry.offset + shape[0] * shape[1] > path.stat().st_size:
        raise ValueError("it runs beyond the end of the file")
    return np.asarray(np.memmap(path, mode="r", offset=entry.offset, shape=shape))


def _library() -> tuple[Any, Any]:
    try:
        from gguf import constants, quants
    except ImportError as error:
        raise ConfigError(
            f"reading GGUF weights needs the package gguf ({error}); run: pip install 'edged[pipeline]'"
        ) from error
    return quants, constants
