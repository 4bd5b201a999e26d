"""Check of ONNX files before a runtime opens them: external data must lie beside the model.

An ONNX tensor may name a file that holds its bytes. Runtimes have followed such names out of the model's
folder more than once (CVE-2022-25882, CVE-2024-27318), so the names are checked here, from the protobuf
wire format alone. Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import mmap
import stat
from collections.abc import Iterator
from pathlib import Path

from edged.errors import BackendError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
_DEEPEST = 64

Fields = Iterator[tuple[int, int, int]]


def check_external_data(path: Path) -> None:
    """Refuse a model whose external data lies elsewhere than in plain files beside it (`BackendError`)."""
    for location in external_locations(path):
        problem = _problem(path.parent, location)
        if problem:
            raise BackendError(f"{path} names external data {location!r}, which {problem}; refused")


def external_locations(path: Path) -> list[str]:
    """Return the file names of all external tensors of a model."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return sorted(set(_locations(data, "model", 0, len(data), 0)))
    except OSError as error:
        raise BackendError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, IndexError) as error:
        raise BackendError(f"{path} is not an ONNX file; fetch it again") from error


def _locations(data: mmap.mmap, kind: str, start: int, end: int, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    for number, first, last in _fields(data, start, end):
        child = _CHILDREN[kind].get(number)
        if child == "entry":
            yield from _location(data, first, last)
        elif child:
            yield from _locations(data, child, first, last, depth + 1)


def _location(data: mmap.mmap, start: int, end: int) -> Iterator[str]:
    entry = {number: data[first:last] for number, first, last in _fields(data, start, end)}
    if entry.get(1) == b"location":
        yield entry.get(2, b"").decode("utf-8", errors="replace")


def _fields(data: mmap.mmap, start: int, end: int) -> Fields:
    """Give number, start and end of each length-delimited field; the others hold no message."""
    position = start
    while position < end:
        key, position = _varint(data, position)
        first, position = _skip(data, key & 7, position)
        if position > end:
            raise ValueError("a field runs over the end of its message")
        if key & 7 == _BYTES:
            yield key >> 3, first, position


def _skip(data: mmap.mmap, wire: int, position: int) -> tuple[int, int]:
    """Return where the content of a field starts and where it ends."""
    if wire == _VARINT:
        return position, _varint(data, position)[1]
    if wire == _BYTES:
        size, first = _varint(data, position)
        return first, first + size
    if wire in {_FIXED64, _FIXED32}:
        return position, position + (8 if wire == _FIXED64 else 4)
    raise ValueError(f"unknown wire type {wire}")


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the continuation bit
            return value, position
    raise ValueError("a number is longer than 64 bits")


def _problem(folder: Path, location: str) -> str:
    """Say why a location is refused; empty when it is a plain file in the model's folder."""
    name = Path(location)
    if not location or name.is_absolute() or ".." in name.parts or "\0" in location:
        return "does not stay in the model's folder"
    target = folder
    for part in name.parts:
        target /= part
        if target.is_symlink():
            return "goes through a symbolic link"
    if not target.exists():
        return "does not exist"
    status = target.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        return "is not a plain file of its own"
    return ""
