"""Passages of a library with the vectors that it holds for them."""

from __future__ import annotations

import sqlite3

import msgspec
import numpy as np
import numpy.typing as npt

from edged.documents.chunk import embedded_text
from edged.documents.index import Manifest
from edged.documents.store import VISIBLE

_NEXT = (
    "SELECT passages.id, title, heading, text, vector FROM passages"  # noqa: S608 - constants
    " CROSS JOIN documents ON documents.id = passages.document"
    " CROSS JOIN embeddings ON embeddings.passage = passages.id"
    " CROSS JOIN embedders ON embedders.id = embeddings.embedder AND family = :family"
    f" WHERE passages.id >= :least AND {VISIBLE} ORDER BY passages.id LIMIT 1"
)


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Passages as they were embedded; `vectors` is float32 [len(ids), dimension]."""

    ids: list[int]
    texts: list[str]
    vectors: npt.NDArray[np.float32]


def sample(connection: sqlite3.Connection, manifest: Manifest, count: int) -> Sample:
    """About `count` passages of a generation at even distances; the same ones every time."""
    least, most = connection.execute("SELECT MIN(id), MAX(id) FROM passages").fetchone()
    targets = np.linspace(least or 0, most or 0, count).astype(int)
    known = {"family": manifest.family, "generation": manifest.generation}
    rows = {
        row[0]: row
        for target in targets
        if (row := connection.execute(_NEXT, known | {"least": int(target)}).fetchone())
    }
    vectors = [np.frombuffer(row[4], "<f4") for row in rows.values()]
    return Sample(
        ids=list(rows),
        texts=[embedded_text(title, heading, text) for _, title, heading, text, _ in rows.values()],
        vectors=np.stack(vectors) if vectors else np.empty((0, manifest.dimension), np.float32),
    )
