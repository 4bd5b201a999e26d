"""The metadata and the tensor table of a GGUF file, without its tensors.

The `gguf` package makes an array object of every string: 2 s of CPU for SmolLM2's 50 k tokens and 8 s for
Qwen2.5's 150 k, in every process that opens the file. Here a string that nobody asked for is stepped over.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Container
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from edged.errors import BackendError, ModelError
from edged.models.gguf import HEADER, check_header

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
"""Numbers of the types of values: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""
_DIMENSION_LIMIT = 4
_ALIGNMENT = 32


class Entry(NamedTuple):
    """Where a tensor is: its shape (rows first), ggml's number of its type, its first byte in the file."""

    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def elements(self) -> int:
        """Number of values."""
        return prod(self.shape)


class Header(NamedTuple):
    """What stands before the tensors; arrays of strings that were not asked for are their length."""

    metadata: dict[str, Any]
    tensors: dict[str, Entry]


def read_header(path: Path, strings: Container[str] = ()) -> Header:
    """Read the header; `strings` names the arrays of strings to read whole.

    Raises `BackendError` when the file is no GGUF file or is damaged.
    """
    try:
        check_header(path)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).header(strings)
    except (ModelError, OSError, struct.error, ValueError) as error:
        raise BackendError(f"cannot read {path} as GGUF: {error}; pull or convert the model again") from error


class _Reader:
    """A position in the header; what would lie beyond the end of the file is a `struct.error`."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = HEADER.size

    def header(self, strings: Container[str]) -> Header:
        _, _, tensors, entries = HEADER.unpack_from(self._data)
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            name = self._string()
            metadata[name] = self._value(self._take("I"), keep=name in strings)
        found = [self._tensor() for _ in range(tensors)]
        alignment = int(metadata.get("general.alignment", _ALIGNMENT))
        if alignment < 1:
            raise ValueError(f"it says general.alignment = {alignment}")
        start = -(-self._at // alignment) * alignment
        return Header(metadata, {name: entry._replace(offset=start + entry.offset) for name, entry in found})

    def _take(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        length = self._take("Q")
        text = self._data[self._at : self._at + length]
        if len(text) < length:
            raise ValueError("a string in it runs beyond its end")
        self._at += length
        return text.decode("utf-8", "replace")

    def _value(self, kind: int, *, keep: bool) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array(self._take("I"), self._take("Q"), keep=keep)
        if kind not in _SCALARS:
            raise ValueError(f"it has a value of unknown type {kind}")
        return self._take(_SCALARS[kind])

    def _array(self, kind: int, count: int, *, keep: bool) -> Any:
        if kind == _STRING and keep:
            return [self._string() for _ in range(count)]
        if kind == _STRING:
            return self._step_over(count)
        if kind not in _SCALARS:
            raise ValueError(f"it has an array of unknown type {kind}")
        form = f"<{count}{_SCALARS[kind]}"
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return list(values)

    def _step_over(self, count: int) -> int:
        length = struct.Struct("<Q")
        at = self._at
        for _ in range(count):
            at += 8 + length.unpack_from(self._data, at)[0]
        self._at = at
        return count

    def _tensor(self) -> tuple[str, Entry]:
        name = self._string()
        dimensions = self._take("I")
        if not 1 <= dimensions <= _DIMENSION_LIMIT:
            raise ValueError(f"its tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self._take("Q") for _ in range(dimensions))
        return name, Entry(shape[::-1], self._take("I"), self._take("Q"))
