"""Generations of the vector index: built aside, published by one rename, kept while a reader holds them.

`generations/<n>/` holds a manifest, a flat FAISS index over passage ids (the delta), and the base beside it,
if there is one; `CURRENT` names the generation in force. A reader holds a shared lock on the delta; a
generation that no reader locks and that is not in force is removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import msgspec
import numpy as np

from edged.documents import durable
from edged.documents.base import REMOVED, Blocks, Ids, OpenBase, Vectors, map_index, write_index
from edged.documents.kinds import Base, Wanted
from edged.errors import EdgedError, IndexMismatch, StorageError

POINTER = "CURRENT"
FOLDER = "generations"
WORDS = "base.words"
_DELTA = "index.faiss"
_MANIFEST = "manifest.json"
_ATTEMPTS = 20
_MEND = "run `edgectl documents reindex` to build it again"


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
    wanted: Wanted = "auto"
    """Kind of index, as configured when it was published."""
    base: Base | None = None


def current(library: Path) -> int:
    """The number of the generation in force; 0 before the first."""
    try:
        return int((library / POINTER).read_text())
    except FileNotFoundError:
        return 0
    except ValueError as error:
        raise StorageError(f"{library / POINTER} is damaged; remove {library} and ingest again") from error


def folder_of(library: Path, generation: int) -> Path:
    """Where the files of a generation are."""
    return library / FOLDER / str(generation)


def manifest_of(library: Path, generation: int) -> Manifest:
    """Read a generation's manifest; `FileNotFoundError` when it is gone, `StorageError` when damaged."""
    path = folder_of(library, generation) / _MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except msgspec.MsgspecError as error:
        raise StorageError(f"{path} is damaged; {_MEND}") from error


def check_family(manifest: Manifest, family: str) -> None:
    """Refuse vectors of an embedder that cannot be compared with the index."""
    if manifest.family != family:
        raise IndexMismatch(
            f"the documents were embedded by [{manifest.family}], but [{family}] is configured; "
            "run `edgectl ingest --re-embed` to embed them again, or configure the former model"
        )


class Generation:
    """An open generation: memory-mapped, held until `close` even when a newer one is published."""

    def __init__(
        self, manifest: Manifest, delta: Any, base: OpenBase | None, words: dict[str, int], descriptor: int
    ) -> None:
        self.manifest = manifest
        self.words = words
        """How many passages hold each of the commonest words."""
        self._delta = delta
        self._base = base
        self._descriptor = descriptor

    def search(self, queries: Vectors, count: int) -> list[tuple[list[int], list[float]]]:
        """For each row of float32 [n, dimension]: ids of the nearest passages, best first, and cosines."""
        count = min(count, self.manifest.passages)
        if not count:
            return [([], [])] * len(queries)
        queries = np.ascontiguousarray(queries, np.float32)
        if self._base is None:
            return _listed(*self._delta.search(queries, count))
        scores, ids = self._base.search(queries, count)
        if not self._delta.ntotal:
            return _listed(scores, ids)
        more_scores, more_ids = self._delta.search(queries, count)
        return _merged(np.hstack([scores, more_scores]), np.hstack([ids, more_ids]), count)

    def close(self) -> None:
        """Let go of it; idempotent."""
        if self._descriptor >= 0:
            del self._delta
            self._base = None
            os.close(self._descriptor)
            self._descriptor = -1


def _merged(scores: Vectors, ids: Ids, count: int) -> list[tuple[list[int], list[float]]]:
    """The best of base and delta in each row; id -1 stands for no passage."""
    order = np.argsort(np.where(ids >= 0, -scores, np.inf), axis=1, kind="stable")[:, :count]
    return _listed(np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1))


def _listed(scores: Vectors, ids: Ids) -> list[tuple[list[int], list[float]]]:
    """Ids and scores of each row, without those that stand for no passage."""
    return [
        (row_ids[row_ids >= 0].tolist(), row[row_ids >= 0].tolist())
        for row_ids, row in zip(ids, scores, strict=True)
    ]


def open_current(library: Path) -> Generation | None:
    """Open the generation in force and keep it from being removed; None before the first."""
    number = 0
    for _ in range(_ATTEMPTS):
        number = current(library)
        if not number:
            return None
        generation = _open(library, number)
        if generation:
            return generation
    raise StorageError(
        f"generation {number}, which {library / POINTER} names, is missing from {library / FOLDER}; {_MEND}"
    )


def _open(library: Path, number: int) -> Generation | None:
    """None when the generation was removed between reading the pointer and locking the file."""
    folder = folder_of(library, number)
    try:
        manifest = manifest_of(library, number)
        descriptor = os.open(folder / _DELTA, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if os.fstat(descriptor).st_nlink == 0:
        os.close(descriptor)
        return None
    try:
        return _map(folder, manifest, descriptor)
    except (RuntimeError, ValueError, FileNotFoundError, msgspec.MsgspecError) as error:
        os.close(descriptor)
        raise StorageError(f"{folder} is damaged; {_MEND}") from error


def _map(folder: Path, manifest: Manifest, descriptor: int) -> Generation:
    delta = map_index(f"/proc/self/fd/{descriptor}")
    base = manifest.base
    expected = manifest.passages - (base.rows - base.removed if base else 0)
    if (delta.ntotal, delta.d) != (expected, manifest.dimension):
        raise ValueError("the index does not match its manifest")
    if base is None:
        return Generation(manifest, delta, None, {}, descriptor)
    opened = OpenBase(folder, base, manifest.dimension, read_removed(folder))
    words = msgspec.json.decode((folder / WORDS).read_bytes(), type=dict[str, int])
    return Generation(manifest, delta, opened, words, descriptor)


def publish(library: Path, number: int, build: Callable[[Path], Manifest]) -> Manifest:
    """Let `build` fill a folder, and put it in force. Raises `OSError`; then the former one stays in force.

    `CURRENT` is replaced by rename after everything it names is on the disk.
    """
    target = folder_of(library, number)
    building = target.with_name(f".building-{number}")
    shutil.rmtree(building, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        manifest = build(building)
        durable.write(building / _MANIFEST, msgspec.json.encode(manifest))
        durable.sync_folder(building)
        building.rename(target)
        durable.sync_folder(target.parent)
        _point(library, number)
    except (OSError, EdgedError, KeyboardInterrupt):
        shutil.rmtree(building, ignore_errors=True)
        raise
    return manifest


def _point(library: Path, generation: int) -> None:
    pointer = library / f".{POINTER}"
    durable.write(pointer, str(generation).encode())
    pointer.replace(library / POINTER)
    durable.sync_folder(library)


def write_delta(folder: Path, dimension: int, blocks: Blocks) -> int:
    """Write the passages that are not in the base; how many those were."""
    index = faiss.IndexIDMap(faiss.IndexFlatIP(dimension))
    for ids, vectors in blocks:
        index.add_with_ids(vectors, ids)
    durable.write_with(folder / _DELTA, lambda file: write_index(index, file))
    return int(index.ntotal)


def write_removed(folder: Path, rows: Ids) -> None:
    """Write the rows of the base that are not shown any more."""
    durable.write(folder / REMOVED, rows.astype("<i8").tobytes())


def read_removed(folder: Path) -> Ids:
    """The rows of the base that are not shown any more."""
    return np.frombuffer((folder / REMOVED).read_bytes(), "<i8")


def remove_unused(library: Path) -> int:
    """Remove the generations that no reader holds; the number of the oldest that is left."""
    in_force = current(library)
    numbers = [int(path.name) for path in (library / FOLDER).glob("[0-9]*")]
    left = [n for n in numbers if n == in_force or (n < in_force and not _remove(library, n))]
    return min(left, default=in_force)


def _remove(library: Path, number: int) -> bool:
    folder = folder_of(library, number)
    try:
        descriptor = os.open(folder / _DELTA, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        shutil.rmtree(folder, ignore_errors=True)
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / _DELTA).unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    shutil.rmtree(folder, ignore_errors=True)
    return True
