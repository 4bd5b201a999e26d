"""Generations of the vector index: built aside, published by one rename, kept while a reader holds them.

`generations/<n>/` holds a FAISS inner-product index over passage ids and its manifest; `CURRENT` names the
generation in force. A reader holds a shared lock on the index file; a generation that no reader locks and
that is not in force is removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import faiss
import msgspec
import numpy as np
import numpy.typing as npt

from edged.errors import IndexMismatch, StorageError

POINTER = "CURRENT"
FOLDER = "generations"
_INDEX = "index.faiss"
_MANIFEST = "manifest.json"
_ATTEMPTS = 20

Blocks = Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a generation is made of."""

    generation: int
    family: str
    """Fingerprint of the embedder: model, pooling, normalisation, dimension, query prefix."""
    digest: str
    """sha256 of the weights that embedded the newest passages."""
    dimension: int
    documents: int
    passages: int
    published_at: float
    """Seconds since the epoch."""


def current(library: Path) -> int:
    """The number of the generation in force; 0 before the first."""
    try:
        return int((library / POINTER).read_text())
    except FileNotFoundError:
        return 0
    except ValueError as error:
        raise StorageError(f"{library / POINTER} is damaged; remove {library} and ingest again") from error


def manifest_of(library: Path, generation: int) -> Manifest:
    """Read a generation's manifest; `FileNotFoundError` when it is gone, `StorageError` when damaged."""
    path = library / FOLDER / str(generation) / _MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except msgspec.MsgspecError as error:
        raise StorageError(f"{path} is damaged; remove {library} and ingest again") from error


def check_family(manifest: Manifest, family: str) -> None:
    """Refuse vectors of an embedder that cannot be compared with the index."""
    if manifest.family != family:
        raise IndexMismatch(
            f"the documents were embedded by [{manifest.family}], but [{family}] is configured; "
            "run `edgectl ingest --re-embed` to embed them again, or configure the former model"
        )


class Generation:
    """An open generation: memory-mapped, held until `close` even when a newer one is published."""

    def __init__(self, manifest: Manifest, index: faiss.Index, descriptor: int) -> None:
        self.manifest = manifest
        self._index = index
        self._descriptor = descriptor

    def search(self, queries: npt.NDArray[np.float32], count: int) -> list[tuple[list[int], list[float]]]:
        """For each row of float32 [n, dimension]: ids of the nearest passages, best first, and cosines."""
        count = min(count, self._index.ntotal)
        if not count:
            return [([], [])] * len(queries)
        scores, ids = self._index.search(np.ascontiguousarray(queries, np.float32), count)
        return [(row_ids.tolist(), row.tolist()) for row_ids, row in zip(ids, scores, strict=True)]

    def close(self) -> None:
        """Let go of it; idempotent."""
        if self._descriptor >= 0:
            del self._index
            os.close(self._descriptor)
            self._descriptor = -1


def open_current(library: Path) -> Generation | None:
    """Open the generation in force and keep it from being removed; None before the first."""
    for _ in range(_ATTEMPTS):
        number = current(library)
        if not number:
            return None
        generation = _open(library, number)
        if generation:
            return generation
    raise StorageError(f"the generation in force of {library} is missing; remove the folder and ingest again")


def _open(library: Path, number: int) -> Generation | None:
    """None when the generation was removed between reading the pointer and locking the file."""
    path = library / FOLDER / str(number) / _INDEX
    try:
        manifest = manifest_of(library, number)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if os.fstat(descriptor).st_nlink == 0:
        os.close(descriptor)
        return None
    return Generation(manifest, _map(path, manifest, descriptor), descriptor)


def _map(path: Path, manifest: Manifest, descriptor: int) -> faiss.Index:
    try:
        index = faiss.read_index(f"/proc/self/fd/{descriptor}", faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        os.close(descriptor)
        raise StorageError(f"{path} is damaged; run `edgectl ingest` to build it again") from error
    if (index.ntotal, index.d) != (manifest.passages, manifest.dimension):
        os.close(descriptor)
        raise StorageError(f"{path} does not match its manifest; run `edgectl ingest` to build it again")
    return index


def publish(library: Path, manifest: Manifest, blocks: Blocks) -> None:
    """Build a generation and put it in force. Raises `OSError`; then the former one stays in force.

    `CURRENT` is replaced by rename after everything it names is on the disk.
    """
    target = library / FOLDER / str(manifest.generation)
    building = target.with_name(f".building-{manifest.generation}")
    shutil.rmtree(building, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        _write_index(building / _INDEX, manifest.dimension, blocks)
        _write(building / _MANIFEST, msgspec.json.encode(manifest))
        _sync(building)
        building.rename(target)
        _sync(target.parent)
        _point(library, manifest.generation)
    except OSError:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _point(library: Path, generation: int) -> None:
    pointer = library / f".{POINTER}"
    _write(pointer, str(generation).encode())
    pointer.replace(library / POINTER)
    _sync(library)


def _write_index(path: Path, dimension: int, blocks: Blocks) -> None:
    """Write through Python's file: FAISS's own writer does not notice a full disk."""
    index = faiss.IndexIDMap(faiss.IndexFlatIP(dimension))
    for ids, vectors in blocks:
        index.add_with_ids(vectors, ids)
    with path.open("wb") as file:
        writer = faiss.PyCallbackIOWriter(file.write)  # type: ignore[attr-defined]  # made by SWIG
        faiss.write_index(index, writer)
        file.flush()
        os.fsync(file.fileno())


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unused(library: Path) -> int:
    """Remove the generations that no reader holds; the number of the oldest that is left."""
    in_force = current(library)
    numbers = [int(path.name) for path in (library / FOLDER).glob("[0-9]*")]
    left = [n for n in numbers if n == in_force or (n < in_force and not _remove(library, n))]
    return min(left, default=in_force)


def _remove(library: Path, number: int) -> bool:
    folder = library / FOLDER / str(number)
    try:
        descriptor = os.open(folder / _INDEX, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        shutil.rmtree(folder, ignore_errors=True)
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / _INDEX).unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    shutil.rmtree(folder, ignore_errors=True)
    return True
