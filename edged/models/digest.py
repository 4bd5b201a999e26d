"""Files whose sha256 is known beforehand: written, and checked again later."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from edged.errors import DigestMismatch, ModelError

CHUNK_BYTES = 1 << 20


class Record(msgspec.Struct, frozen=True):
    """What a file was when its digest was last computed."""

    bytes: int
    mtime_ns: int
    sha256: str


class VerifiedFile:
    """A file being written, hashed on the way through one descriptor.

    `resumable` keeps what was written when the writing breaks off; entering again goes on behind it.
    """

    def __init__(self, path: Path, size_bytes: int, sha256: str, *, resumable: bool = False) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.written_bytes = 0
        self._sha256 = sha256
        self._resumable = resumable
        self._descriptor = -1
        self._hash = hashlib.sha256()

    def __enter__(self) -> Self:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self.path, flags, 0o644)
        if not self._resumable or os.fstat(self._descriptor).st_size > self.size_bytes:
            self.restart()
        while chunk := os.read(self._descriptor, CHUNK_BYTES):
            self._count(chunk)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        if kind is not None and (not self._resumable or issubclass(kind, DigestMismatch)):
            self.path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Append; `DigestMismatch` as soon as there are more bytes than promised."""
        self._count(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def restart(self) -> None:
        """Forget everything written so far."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self.written_bytes = 0

    def commit(self) -> None:
        """Make it durable; `DigestMismatch` when these are not the promised bytes."""
        if self.written_bytes != self.size_bytes or self._hash.hexdigest() != self._sha256:
            raise mismatch(self.path.name, self._sha256, self._hash.hexdigest())
        os.fsync(self._descriptor)

    def _count(self, chunk: bytes) -> None:
        self.written_bytes += len(chunk)
        if self.written_bytes > self.size_bytes:
            raise DigestMismatch(
                f"{self.path.name} is larger than the {self.size_bytes} bytes of its manifest"
            )
        self._hash.update(chunk)


def check(path: Path, sha256: str, known: Record | None) -> Record:
    """Check a file, by `known` when its size and time are unchanged, else by hashing it.

    An empty `sha256` accepts any bytes. Raises `DigestMismatch`, or `ModelError` when it is no plain file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ModelError(f"cannot open {path}: {error.strerror}; pull the model again") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path} is not a plain file; remove it and pull the model again")
        if known and (known.bytes, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
            found = known
        else:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            found = Record(status.st_size, status.st_mtime_ns, digest)
    if sha256 and found.sha256 != sha256:
        raise mismatch(str(path), sha256, found.sha256)
    return found


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mismatch(what: str, wanted: str, found: str) -> DigestMismatch:
    """Say which file differs, and what to do."""
    return DigestMismatch(
        f"{what}: sha256 is {found[:12]}…, its manifest promises {wanted[:12]}…; "
        "pull the model again, and if that fails too, do not trust the source"
    )
