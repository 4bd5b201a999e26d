"""A library of documents, opened for reading: what the retriever and `edgectl documents` use."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt

from edged.documents import index, search
from edged.documents.access import Owner, locked, translated
from edged.documents.index import Generation, Manifest
from edged.documents.kinds import Kind, Wanted
from edged.documents.publish import Reading, publish_next, untold
from edged.documents.recovery import known_manifest
from edged.documents.sample import Sample, sample
from edged.documents.store import DOCUMENT_COLUMNS, VISIBLE, Document, Store, connect
from edged.documents.words import passages_with
from edged.errors import NotFound, StorageError
from edged.messages import Passage


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """A library in numbers."""

    path: str
    generation: int
    """0 while nothing has been ingested."""
    documents: int
    passages: int
    bytes: int
    """Of the documents as they were ingested."""
    disk_bytes: int
    """Of the library's own files."""
    index: Kind
    """Kind of the base; `flat` while there is none."""
    base_passages: int
    """Found through the base; the other passages are compared one by one."""
    removed_rows: int
    """Of the base, that are passed over."""
    index_bytes: int
    """Of the generation in use, vectors included."""
    recall: float
    """Share of the true 20 nearest that the base finds, measured on its own passages when it was built."""
    family: str
    digest: str
    published_at: float
    """Seconds since the epoch; 0 while nothing has been ingested."""


class Library:
    """Reads the generation in force, and moves on to a newer one between two calls, never within one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._generation: Generation | None = None
        self._connection: sqlite3.Connection | None = None
        self._stamp: tuple[int, int] = (0, 0)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the library in a folder; one that does not exist yet is empty."""
        library = cls(path)
        library.refresh()
        return library

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def manifest(self) -> Manifest | None:
        """What the generation in use is made of; None while the library is empty."""
        return self._generation.manifest if self._generation else None

    @property
    def generation(self) -> int:
        """The number of the generation in use, 0 while the library is empty: what caches are keyed by."""
        return self._generation.manifest.generation if self._generation else 0

    def refresh(self) -> None:
        """Move on to the newest generation; costs one `stat` when there is none."""
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        with translated(self.path):
            newer = index.open_current(self.path)
            with ExitStack() as opened:
                if newer:
                    opened.callback(newer.close)
                connection = connect(self.path, read_only=True) if newer else None
                opened.pop_all()
        self.close()
        self._generation, self._connection, self._stamp = newer, connection, stamp

    def _read_stamp(self) -> tuple[int, int]:
        """The pointer is replaced by rename, so a new one has another inode or time."""
        try:
            status = (self.path / index.POINTER).stat()
        except FileNotFoundError:
            return 0, 0
        return status.st_ino, status.st_mtime_ns

    def search(
        self, queries: Sequence[str], vectors: npt.NDArray[np.float32], family: str, count: int
    ) -> list[list[Passage]]:
        """For each query the best `count` passages; `vectors` is float32 [len(queries), dimension].

        Raises `IndexMismatch` when the documents were embedded by another family, `StorageError`.
        """
        self.refresh()
        if not (self._generation and self._connection):
            return [[] for _ in queries]
        index.check_family(self._generation.manifest, family)
        dense = self._generation.search(vectors, max(count, search.DEPTH))
        with translated(self.path):
            return search.search(self._connection, self._generation, queries, dense, count)

    def sample(self, count: int) -> Sample:
        """About `count` passages at even distances through the library, with their stored vectors."""
        self.refresh()
        if not (self._generation and self._connection):
            return Sample(ids=[], texts=[], vectors=np.empty((0, 0), np.float32))
        with translated(self.path):
            return sample(self._connection, self._generation.manifest, count)

    def nearest(self, vectors: npt.NDArray[np.float32], count: int) -> list[list[int]]:
        """Ids of the `count` passages nearest to each vector, best first, in the generation in use."""
        found = self._generation.search(vectors, count) if self._generation else [([], [])] * len(vectors)
        return [ids for ids, _ in found]

    def passages(self, ids: Sequence[int]) -> list[Passage]:
        """The passages with these ids, in their order; `StorageError` when the library lacks one."""
        self.refresh()
        if not self._connection:
            return []
        with translated(self.path):
            return search.fetch(self._connection, {identity: {} for identity in ids})

    def holding(self, words: Sequence[str]) -> dict[str, int]:
        """By word, how many passages hold it, as the search by words counts them; 0 for a word unheard of."""
        if not self._connection:
            return dict.fromkeys(words, 0)
        with translated(self.path):
            return passages_with(self._connection, words)

    def documents(self) -> list[Document]:
        """All documents, by source."""
        return self._select("1 ORDER BY source", {})

    def show(self, source: str) -> tuple[Document, list[Passage]]:
        """A document and its passages in order; `source` is its path or the end of it. `NotFound`."""
        document = self._find(source)
        assert self._connection is not None
        with translated(self.path):
            rows = self._connection.execute(
                "SELECT id FROM passages WHERE document = ? ORDER BY id", (document.id,)
            )
            ids = [identity for (identity,) in rows]
            return document, search.fetch(self._connection, {identity: {} for identity in ids})

    def remove(self, sources: Sequence[str]) -> list[str]:
        """Remove documents and publish a generation without them; the sources that were removed.

        Raises `NotFound` (then nothing is removed), `AlreadyRunning`, `StorageError`.
        """
        found = [self._find(source).source for source in sources]
        assert self.manifest is not None
        with translated(self.path), Owner(self.path).acting(), locked(self.path):
            _remove(self.path, found)
        self.refresh()
        return found

    def statistics(self) -> Statistics:
        """The library in numbers."""
        self.refresh()
        manifest = self.manifest
        base = manifest.base if manifest else None
        number = self.generation
        return Statistics(
            path=str(self.path),
            generation=number,
            documents=manifest.documents if manifest else 0,
            passages=manifest.passages if manifest else 0,
            bytes=sum(document.bytes for document in self.documents()),
            disk_bytes=_file_bytes(self.path),
            index=base.kind if base else "flat",
            base_passages=base.rows - base.removed if base else 0,
            removed_rows=base.removed if base else 0,
            index_bytes=_file_bytes(index.folder_of(self.path, number)) if number else 0,
            recall=base.recall if base else 1.0,
            family=manifest.family if manifest else "",
            digest=manifest.digest if manifest else "",
            published_at=manifest.published_at if manifest else 0.0,
        )

    def _find(self, source: str) -> Document:
        exact = self._select("source = :source", {"source": source})
        ending = "/" + source.lstrip("./")
        found = exact or self._select("substr(source, -length(:ending)) = :ending", {"ending": ending})
        if len(found) == 1:
            return found[0]
        candidates = ", ".join(document.source for document in found[:5])
        reason = f"several documents end so: {candidates}" if found else "see `edgectl documents list`"
        raise NotFound(f"no single document {source!r} in the library; {reason}")

    def _select(self, condition: str, values: dict[str, object]) -> list[Document]:
        self.refresh()
        if not (self._generation and self._connection):
            return []
        query = f"SELECT {DOCUMENT_COLUMNS} FROM documents WHERE {VISIBLE} AND {condition}"  # noqa: S608 - constants
        generation = self._generation.manifest.generation
        with translated(self.path):
            rows = self._connection.execute(query, {"generation": generation, **values}).fetchall()
        names = Document.__struct_fields__
        return [msgspec.convert(dict(zip(names, row, strict=True)), Document) for row in rows]

    def close(self) -> None:
        """Let go of the files; idempotent."""
        if self._generation:
            self._generation.close()
        if self._connection:
            self._connection.close()
        self._generation, self._connection, self._stamp = None, None, (0, 0)


def _file_bytes(folder: Path) -> int:
    """Of all files below; one with two names counts once."""
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({status.st_ino: status.st_size for status in files}.values())


def reindex(path: Path, wanted: Wanted, progress: Reading = untold) -> Manifest:
    """Build the index anew from the vectors that the library holds, and publish it.

    Where the generation in force is missing, what it was made of is read from the passages. `progress` is
    told how many passages of how many are read. Raises `NotFound` for an empty library, `AlreadyRunning`,
    `StorageError`.
    """
    with translated(path):
        number = index.current(path)
    if not number:
        raise NotFound(f"the library {path} is empty; fill it with `edgectl ingest PATH`")
    with translated(path), Owner(path).acting(), locked(path):
        store = Store(path)
        try:
            former = _former(path, store)
            return publish_next(
                path,
                store,
                former.family,
                former.digest,
                former.dimension,
                wanted=wanted,
                rebuild=True,
                progress=progress,
            )
        finally:
            store.close()


def _former(path: Path, store: Store) -> Manifest:
    """What the next generation has in common with the one in force; `StorageError` when nothing tells."""
    number = index.current(path)
    former = known_manifest(path, number, store)
    if former is None:
        raise StorageError(
            f"generation {number}, which {path / index.POINTER} names, is missing from {path / index.FOLDER} "
            "or damaged, and the library does not hold the vectors of all passages to build it again; "
            "run `edgectl ingest --re-embed PATH`"
        )
    return former


def _remove(path: Path, sources: Sequence[str]) -> None:
    store = Store(path)
    try:
        former = _former(path, store)
        number = former.generation
        with store:
            for source in sources:
                store.remove(source, number + 1)
        publish_next(path, store, former.family, former.digest, former.dimension)
    finally:
        store.close()
