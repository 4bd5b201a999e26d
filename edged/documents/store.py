"""The documents, their passages and their vectors in one SQLite file (WAL: readers never wait).

Visibility is by generation: a document shows from generation `added_in` on and until `removed_in`.
A document without `added_in` is pending: some of its passages have no vector yet.
Rows leave the file only after no reader holds a generation that shows them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from edged.documents.chunk import Chunk
from edged.errors import StorageError

FILE = "library.sqlite"
SCHEMA_VERSION = 2
MAPPED_BYTES = 1 << 40
"""Of the file that SQLite reads in place; it takes what it was compiled for, 2 GiB as a rule."""
_SCHEMA = """
CREATE TABLE documents(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    source TEXT NOT NULL,
    title TEXT NOT NULL,
    media_type TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    recipe TEXT NOT NULL,
    ingested_at REAL NOT NULL,
    chunks INTEGER NOT NULL,
    added_in INTEGER,
    removed_in INTEGER
);
CREATE UNIQUE INDEX documents_live ON documents(source) WHERE added_in IS NOT NULL AND removed_in IS NULL;
CREATE UNIQUE INDEX documents_pending ON documents(source) WHERE added_in IS NULL;
CREATE INDEX documents_removed ON documents(removed_in) WHERE removed_in IS NOT NULL;
CREATE INDEX documents_added ON documents(added_in);
CREATE TABLE passages(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    document INTEGER NOT NULL REFERENCES documents(id),
    heading TEXT NOT NULL,
    text TEXT NOT NULL,
    first_line INTEGER NOT NULL,
    last_line INTEGER NOT NULL,
    page INTEGER NOT NULL
);
CREATE INDEX passages_document ON passages(document);
CREATE VIEW searchable AS
    SELECT passages.id AS id, title, heading, text, document
    FROM passages JOIN documents ON documents.id = passages.document;
CREATE VIRTUAL TABLE terms USING fts5(
    title, heading, text, content='searchable', content_rowid='id', tokenize='unicode61 remove_diacritics 2'
);
CREATE TABLE embedders(
    id INTEGER PRIMARY KEY, family TEXT NOT NULL, digest TEXT NOT NULL, UNIQUE(family, digest)
);
CREATE TABLE embeddings(
    passage INTEGER NOT NULL REFERENCES passages(id),
    embedder INTEGER NOT NULL REFERENCES embedders(id),
    vector BLOB NOT NULL,
    UNIQUE(passage, embedder)
);
"""


_MIGRATIONS = {1: "CREATE INDEX documents_added ON documents(added_in);"}
"""From each older format to the next."""


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A document as it was ingested."""

    id: int
    source: str
    title: str
    media_type: str
    sha256: str
    bytes: int
    mtime_ns: int
    recipe: str
    ingested_at: float
    """Seconds since the epoch."""
    chunks: int


DOCUMENT_COLUMNS = ", ".join(f"documents.{field}" for field in Document.__struct_fields__)
VISIBLE = (
    "documents.added_in <= :generation"
    " AND (documents.removed_in IS NULL OR documents.removed_in > :generation)"
)


def connect(library: Path, *, read_only: bool) -> sqlite3.Connection:
    """Open the file; a reader of a missing one gets `sqlite3.OperationalError`."""
    mode = "ro" if read_only else "rwc"
    uri = f"{(library / FILE).absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=30)
    if not read_only:
        # FULL: a published generation must never name rows that a power cut could still take back.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA mmap_size = {MAPPED_BYTES}")
    connection.execute("CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab(main, terms, row)")
    return connection


class Store:
    """The writer's side; only the holder of the library's lock has one. A `with` block is a transaction."""

    def __init__(self, library: Path) -> None:
        self._connection = connect(library, read_only=False)
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._connection.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
        elif version in _MIGRATIONS:
            steps = "".join(_MIGRATIONS[step] for step in range(version, SCHEMA_VERSION))
            self._connection.executescript(f"BEGIN;{steps}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
        elif version != SCHEMA_VERSION:
            self._connection.close()
            found = f"the library {library} has format {version}, this edged reads {SCHEMA_VERSION}"
            raise StorageError(f"{found}; ingest into a new folder")

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            self._connection.execute("COMMIT")
        elif self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def find(self, source: str) -> tuple[Document | None, bool]:
        """The newest record of a source and whether it is complete (not pending)."""
        row = self._connection.execute(
            f"SELECT {DOCUMENT_COLUMNS}, added_in IS NOT NULL FROM documents"  # noqa: S608 - constant columns
            " WHERE source = ? AND removed_in IS NULL ORDER BY added_in IS NOT NULL, id DESC LIMIT 1",
            (source,),
        ).fetchone()
        return (_document(row), bool(row[-1])) if row else (None, False)

    def touch(self, document: int, mtime_ns: int) -> None:
        """Note that the same content has a new modification time."""
        self._connection.execute("UPDATE documents SET mtime_ns = ? WHERE id = ?", (mtime_ns, document))

    def add(self, document: Document, chunks: Sequence[Chunk]) -> int:
        """Insert a document, pending; an older pending one of the same source is dropped."""
        self._erase_pending(document.source)
        values = msgspec.structs.astuple(document)[1:]
        names = ", ".join(Document.__struct_fields__[1:])
        marks = ", ".join("?" * len(values))
        inserted = self._connection.execute(f"INSERT INTO documents({names}) VALUES({marks})", values)
        identity = inserted.lastrowid or 0
        self._connection.executemany(
            "INSERT INTO passages(document, heading, text, first_line, last_line, page)"
            " VALUES(?, ?, ?, ?, ?, ?)",
            [(identity, c.heading, c.text, c.first_line, c.last_line, c.page) for c in chunks],
        )
        self._connection.execute(
            "INSERT INTO terms(rowid, title, heading, text)"
            " SELECT id, title, heading, text FROM searchable WHERE document = ?",
            (identity,),
        )
        return identity

    def passages(self, document: int) -> list[int]:
        """Ids of a document's passages, in order."""
        rows = self._connection.execute("SELECT id FROM passages WHERE document = ? ORDER BY id", (document,))
        return [passage for (passage,) in rows]

    def embedder(self, family: str, digest: str) -> int:
        """The number of an embedder, registered on first sight."""
        self._connection.execute(
            "INSERT OR IGNORE INTO embedders(family, digest) VALUES(?, ?)", (family, digest)
        )
        row = self._connection.execute(
            "SELECT id FROM embedders WHERE family = ? AND digest = ?", (family, digest)
        )
        return int(row.fetchone()[0])

    def siblings(self, family: str) -> list[int]:
        """Numbers of all embedders of a family."""
        rows = self._connection.execute("SELECT id FROM embedders WHERE family = ?", (family,))
        return [number for (number,) in rows]

    def unembedded(
        self, embedders: Sequence[int], after: int, limit: int, *, beyond: int = 0
    ) -> list[tuple[int, str, str, str]]:
        """Passages (id, title, heading, text) that none of `embedders` has embedded, in order of their ids.

        Only ids above `after`, and documents that came after generation `beyond`.
        """
        numbers = ", ".join(map(str, embedders))
        return self._connection.execute(
            f"SELECT passages.id, title, heading, text FROM {_joined(beyond)}"  # noqa: S608 - integers
            " WHERE passages.id > :after AND removed_in IS NULL AND (added_in IS NULL OR added_in > :beyond)"
            " AND NOT EXISTS (SELECT 1 FROM embeddings"
            f" WHERE passage = passages.id AND embedder IN ({numbers}))"
            " ORDER BY passages.id LIMIT :limit",
            {"after": after, "beyond": beyond, "limit": limit},
        ).fetchall()

    def save_vectors(self, embedder: int, passages: Sequence[int], vectors: npt.NDArray[np.float32]) -> None:
        """Keep the vector of each passage (float32, little endian) in place of one of the same family."""
        self._connection.executemany(
            "DELETE FROM embeddings WHERE passage = ? AND embedder IN (SELECT id FROM embedders"
            " WHERE family = (SELECT family FROM embedders WHERE id = ?))",
            [(passage, embedder) for passage in passages],
        )
        rows = [
            (passage, embedder, row.astype("<f4").tobytes())
            for passage, row in zip(passages, vectors, strict=True)
        ]
        self._connection.executemany("INSERT INTO embeddings VALUES(?, ?, ?)", rows)

    def stage(self, generation: int) -> None:
        """Let every pending document show from `generation` on, in place of its predecessor."""
        self._connection.execute(
            "UPDATE documents SET removed_in = :generation WHERE added_in IS NOT NULL AND removed_in IS NULL"
            " AND source IN (SELECT source FROM documents WHERE added_in IS NULL)",
            {"generation": generation},
        )
        self._connection.execute("UPDATE documents SET added_in = ? WHERE added_in IS NULL", (generation,))

    def remove(self, source: str, generation: int) -> bool:
        """Hide a document from `generation` on; whether there was one."""
        self._erase_pending(source)
        changed = self._connection.execute(
            "UPDATE documents SET removed_in = ? WHERE source = ? AND removed_in IS NULL",
            (generation, source),
        )
        return changed.rowcount > 0

    def sources(self) -> list[str]:
        """Sources of all documents that are not removed."""
        rows = self._connection.execute(
            "SELECT DISTINCT source FROM documents WHERE removed_in IS NULL ORDER BY source"
        )
        return [source for (source,) in rows]

    def changed_since(self, generation: int) -> bool:
        """Whether documents were added or removed that `generation` does not reflect."""
        row = self._connection.execute(
            "SELECT EXISTS(SELECT 1 FROM documents WHERE added_in > :g OR removed_in > :g)", {"g": generation}
        )
        return bool(row.fetchone()[0])

    def counts(self, generation: int) -> tuple[int, int]:
        """Documents and passages that `generation` shows."""
        row = self._connection.execute(
            f"SELECT COUNT(*), COALESCE(SUM(chunks), 0) FROM documents WHERE {VISIBLE}",  # noqa: S608 - constant
            {"generation": generation},
        ).fetchone()
        return int(row[0]), int(row[1])

    def embedder_of_all(self, generation: int) -> tuple[str, str, int] | None:
        """Family, digest and dimension of the newest embedder of everything that `generation` shows.

        None when there is no such embedder, or nothing is shown.
        """
        rows = self._connection.execute(
            "SELECT family, COUNT(*), MAX(LENGTH(vector)) / 4, MAX(embedders.id)"  # noqa: S608 - constant
            f" FROM {_joined(0)} CROSS JOIN embeddings ON embeddings.passage = passages.id"
            f" CROSS JOIN embedders ON embedders.id = embeddings.embedder WHERE {VISIBLE} GROUP BY family",
            {"generation": generation},
        ).fetchall()
        _, passages = self.counts(generation)
        whole = [row for row in rows if row[1] == passages]
        if not whole:
            return None
        family, _, dimension, newest = max(whole, key=lambda row: int(row[3]))
        digest = self._connection.execute("SELECT digest FROM embedders WHERE id = ?", (newest,)).fetchone()
        return str(family), str(digest[0]), int(dimension)

    def vectors(
        self, family: str, generation: int, size: int, *, beyond: int = 0
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """Ids and vectors of all passages that `generation` shows, `size` at a time.

        Only of documents that came after generation `beyond`.
        """
        cursor = self._connection.execute(
            f"SELECT passages.id, vector FROM {_joined(beyond)}"  # noqa: S608 - constant
            " CROSS JOIN embeddings ON embeddings.passage = passages.id"
            " CROSS JOIN embedders ON embedders.id = embeddings.embedder AND family = :family"
            f" WHERE {VISIBLE} AND added_in > :beyond ORDER BY passages.id",
            {"family": family, "generation": generation, "beyond": beyond},
        )
        while rows := cursor.fetchmany(size):
            blob = b"".join(row[1] for row in rows)
            yield (
                np.array([row[0] for row in rows], np.int64),
                np.frombuffer(blob, "<f4").reshape(len(rows), -1),
            )

    def removed_passages(self, base: int, former: int) -> list[int]:
        """Passages that generation `base` showed, and that are removed since generation `former`."""
        rows = self._connection.execute(
            "SELECT passages.id FROM documents CROSS JOIN passages ON passages.document = documents.id"
            " WHERE added_in <= :base AND removed_in > :former",
            {"base": base, "former": former},
        )
        return [passage for (passage,) in rows]

    def frequent_words(self, least: int) -> dict[str, int]:
        """Words, as the tokenizer leaves them, that at least so many passages hold, and how many do."""
        rows = self._connection.execute("SELECT term, doc FROM temp.vocabulary WHERE doc >= ?", (least,))
        return dict(rows.fetchall())

    def sweep(self, oldest_generation: int, family: str) -> None:
        """Erase rows that no generation from `oldest_generation` on shows, and vectors of other families."""
        gone = "SELECT id FROM documents WHERE removed_in <= ?"
        for (document,) in self._connection.execute(gone, (oldest_generation,)).fetchall():
            self._erase(document)
        if self._connection.execute("SELECT 1 FROM embedders WHERE family <> ?", (family,)).fetchone():
            self._forget_others(family)

    def _forget_others(self, family: str) -> None:
        others = "SELECT id FROM embedders WHERE family <> ?"
        self._connection.execute(f"DELETE FROM embeddings WHERE embedder IN ({others})", (family,))  # noqa: S608
        self._connection.execute("DELETE FROM embedders WHERE family <> ?", (family,))

    def _erase_pending(self, source: str) -> None:
        pending = "SELECT id FROM documents WHERE source = ? AND added_in IS NULL"
        for (document,) in self._connection.execute(pending, (source,)).fetchall():
            self._erase(document)

    def _erase(self, document: int) -> None:
        mine = (document,)
        self._connection.execute(
            "INSERT INTO terms(terms, rowid, title, heading, text)"
            " SELECT 'delete', id, title, heading, text FROM searchable WHERE document = ?",
            mine,
        )
        self._connection.execute(
            "DELETE FROM embeddings WHERE passage IN (SELECT id FROM passages WHERE document = ?)", mine
        )
        self._connection.execute("DELETE FROM passages WHERE document = ?", mine)
        self._connection.execute("DELETE FROM documents WHERE id = ?", mine)


def _joined(beyond: int) -> str:
    """All passages are read in their order on the disk; few are found through their documents."""
    tables = ("documents", "passages") if beyond else ("passages", "documents")
    return " CROSS JOIN ".join(tables) + " ON documents.id = passages.document"


def _document(row: Sequence[object]) -> Document:
    fields = Document.__struct_fields__
    return msgspec.convert(dict(zip(fields, row, strict=False)), Document)
