"""A look at a GGUF file before any native parser sees it."""

from __future__ import annotations

import struct
from pathlib import Path

from edged.errors import ModelError

# Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER = struct.Struct("<4sIQQ")
TENSOR_LIMIT = 65_536
ENTRY_LIMIT = 65_536
SMALLEST_ENTRY_BYTES = 8 + 1 + 4 + 1
"""A key of one byte with its length, a type, a value of one byte."""
SMALLEST_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8
"""A name of one byte with its length, one dimension, a type, an offset."""


def header_fault(head: bytes, size_bytes: int) -> str:
    """Say what is wrong with the first 24 bytes of a GGUF file of `size_bytes`; empty when nothing is.

    >>> header_fault(HEADER.pack(b"GGUF", 3, 2, 5), 4096)
    ''
    >>> header_fault(b"GGML", 4096)
    'it is truncated'
    """
    if len(head) < HEADER.size:
        return "it is truncated"
    magic, version, tensors, entries = HEADER.unpack(head[: HEADER.size])
    if magic != MAGIC:
        return "it is no GGUF file"
    if version not in VERSIONS:
        return f"GGUF version {version} is not among {VERSIONS}"
    if not 0 < tensors <= TENSOR_LIMIT or not 0 < entries <= ENTRY_LIMIT:
        return f"its header declares {tensors} tensors and {entries} entries"
    least_bytes = HEADER.size + tensors * SMALLEST_TENSOR_BYTES + entries * SMALLEST_ENTRY_BYTES
    return "" if size_bytes >= least_bytes else "it is shorter than its header declares"


def check_header(path: Path) -> None:
    """Raise `ModelError` when the file cannot be a GGUF file."""
    with path.open("rb") as file:
        fault = header_fault(file.read(HEADER.size), path.stat().st_size)
    if fault:
        raise ModelError(f"{path.name} is refused: {fault}; correct the source in the model's manifest")
