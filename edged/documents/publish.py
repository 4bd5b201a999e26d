"""From the store to the next generation: as little is written anew as the size of the change asks for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from edged.documents import durable, index, kinds
from edged.documents.base import Blocks, Ids, append_base, read_ids, share_base, write_base
from edged.documents.index import WORDS, Manifest, folder_of
from edged.documents.kinds import Base, Wanted
from edged.documents.recovery import known_manifest
from edged.documents.store import Store
from edged.errors import StorageError

BLOCK_PASSAGES = 4096
FREQUENT_WORD = 200
"""Passages that hold a word, from which on it is counted: see `search`."""

Reading = Callable[[int, int], None]


def untold(read: int, passages: int) -> None:
    """Tell nobody how far the reading of vectors is."""


def publish_next(  # noqa: PLR0913 - what is published, and how
    path: Path,
    store: Store,
    family: str,
    digest: str,
    dimension: int,
    *,
    wanted: Wanted | None = None,
    rebuild: bool = False,
    progress: Reading = untold,
) -> Manifest:
    """Publish what the store holds as the next generation, and sweep what no reader needs any more.

    `wanted` is the kind of index, None for the same as before; `rebuild` takes nothing over from the former
    generation, as after passages got other vectors. Raises `OSError`, `sqlite3.Error`.
    """
    number = index.current(path)
    former = known_manifest(path, number, store)
    documents, passages = store.counts(number + 1)
    manifest = Manifest(
        generation=number + 1,
        family=family,
        digest=digest,
        dimension=dimension,
        documents=documents,
        passages=passages,
        published_at=time.time(),
        wanted=wanted or (former.wanted if former else "auto"),
        base=former.base if former and not rebuild else None,
    )
    step = _Step(store, manifest, folder_of(path, number), progress)
    published = index.publish(path, number + 1, step.write)
    oldest = index.remove_unused(path)
    with store:
        store.sweep(oldest, family)
    return published


class _Step:
    """From one generation, whose base `manifest.base` is, to the next."""

    def __init__(self, store: Store, manifest: Manifest, former: Path, progress: Reading) -> None:
        self._store = store
        self._manifest = manifest
        self._former = former
        self._progress = progress

    def write(self, folder: Path) -> Manifest:
        """Fill the folder of the next generation; its manifest. Raises `OSError`."""
        manifest, base = self._manifest, self._manifest.base
        removed = self._removed(base) if base else np.empty(0, np.int64)
        delta = manifest.passages - (base.rows - len(removed) if base else 0)
        kind = kinds.choose_kind(manifest.passages, manifest.wanted, base.kind if base else None)
        work = kinds.choose_work(base, kind, passages=manifest.passages, delta=delta, removed=len(removed))
        if work in {"none", "build"}:
            removed = removed[:0]
        base = self._base(folder, work, kind, base)
        if base:
            base = msgspec.structs.replace(base, removed=len(removed))
            index.write_removed(folder, removed)
        written = index.write_delta(folder, manifest.dimension, self._blocks(base.generation if base else 0))
        expected = manifest.passages - (base.rows - len(removed) if base else 0)
        if written != expected:  # an interrupted change of the embedder leaves passages without vectors
            raise StorageError(
                f"{expected - written} passages have no vector of the embedder in force: the index stays as "
                "it was; run: edgectl ingest --re-embed"
            )
        return msgspec.structs.replace(manifest, base=base)

    def _base(self, folder: Path, work: kinds.Work, kind: kinds.Kind, base: Base | None) -> Base | None:
        manifest = self._manifest
        if work == "keep" and base:
            share_base(folder, self._former, base)
            durable.share(self._former / WORDS, folder / WORDS)
            return base
        if work == "none":
            return None
        words = self._store.frequent_words(FREQUENT_WORD)
        durable.write(folder / WORDS, msgspec.json.encode(words))
        blank = Base(kind=kind, generation=manifest.generation, rows=0, trained_rows=0)
        if work == "build" or base is None:
            return write_base(folder, blank, manifest.dimension, self._blocks(0))
        longer = append_base(folder, self._former, base, manifest.dimension, self._blocks(base.generation))
        return msgspec.structs.replace(longer, generation=manifest.generation)

    def _blocks(self, beyond: int) -> Blocks:
        manifest = self._manifest
        read = 0
        for block in self._store.vectors(manifest.family, manifest.generation, BLOCK_PASSAGES, beyond=beyond):
            yield block
            read += len(block[0])
            self._progress(read, manifest.passages)

    def _removed(self, base: Base) -> Ids:
        """Rows of the former base that the next generation does not show."""
        gone = self._store.removed_passages(base.generation, self._manifest.generation - 1)
        former = index.read_removed(self._former)
        if not gone:
            return former
        return np.union1d(former, np.flatnonzero(np.isin(read_ids(self._former, base), gone)))
