"""Weights of a megabyte, and a wheel that holds them."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from edged.catalogue import Part

WEIGHTS = bytes(range(256)) * 4096
TOKENIZER = b'{"model": {}}'
HALF_BYTES = len(WEIGHTS) // 2


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel(folder: Path, package: str, members: dict[str, bytes]) -> Part:
    """Build a wheel in a folder; the part of a source that names its first member."""
    stem = f"{package}-1.0"
    path = folder / f"{stem}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(f"{stem}.dist-info/METADATA", metadata)
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    content = path.read_bytes()
    return Part(
        package=package,
        version="1.0",
        archive_bytes=len(content),
        archive_sha256=sha256(content),
        member=next(iter(members)),
    )
