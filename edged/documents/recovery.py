"""What a lost generation was made of, from the passages and vectors that the library still holds."""

from __future__ import annotations

from pathlib import Path

from edged.documents import index
from edged.documents.index import Manifest
from edged.documents.store import Store
from edged.errors import StorageError


def lost(path: Path, number: int) -> bool:
    """Whether the pointer names a generation whose manifest is missing or damaged."""
    try:
        return bool(number) and not index.manifest_of(path, number)
    except (FileNotFoundError, StorageError):
        return True


def known_manifest(path: Path, number: int, store: Store) -> Manifest | None:
    """The manifest of a generation; when it is lost, one that names its embedder and shares no file.

    None for generation 0, and when no embedder has embedded every passage that is shown.
    """
    if not number or not lost(path, number):
        return index.manifest_of(path, number) if number else None
    embedder = store.embedder_of_all(number + 1)
    if embedder is None:
        return None
    family, digest, dimension = embedder
    documents, passages = store.counts(number + 1)
    return Manifest(
        generation=number,
        family=family,
        digest=digest,
        dimension=dimension,
        documents=documents,
        passages=passages,
        published_at=0.0,
    )
