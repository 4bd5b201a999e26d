"""Where the passages of the workload come from: the operator's library, else the sample documents."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from edged.catalogue import CHECKOUT
from edged.documents.chunk import chunk
from edged.documents.library import Library
from edged.documents.readers import reader_for
from edged.errors import ConfigError, DocumentError
from edged.messages import Passage
from edged.placement.workload import MOST_PASSAGES

SAMPLES = (CHECKOUT / "examples/documents", Path(sys.prefix) / "share/edged/examples/documents")
TOKENS_PER_WORD = 1.5
"""Of technical English in a BERT vocabulary, markup included; decides where the samples are cut only."""


def from_library(folder: Path) -> list[Passage]:
    """Passages of documents that are drawn at random, the same ones at every run; empty for no library."""
    with Library.open(folder) as library:
        documents = library.documents()
        random.Random(1).shuffle(documents)  # noqa: S311 - a sample, not a secret
        passages = (passage for document in documents for passage in library.show(document.source)[1])
        return list(islice(passages, MOST_PASSAGES))


def from_samples(chunk_tokens: int, overlap_tokens: int) -> list[Passage]:
    """Passages of the sample documents; `ConfigError` when the installation lacks them."""
    folder = next((folder for folder in SAMPLES if folder.is_dir()), None)
    if folder is None:
        raise ConfigError("the sample documents are not installed; ingest some of your own: edgectl ingest")
    return list(_cut(sorted(folder.iterdir()), chunk_tokens, overlap_tokens))


def _cut(paths: Sequence[Path], chunk_tokens: int, overlap_tokens: int) -> Iterator[Passage]:
    for path in paths:
        reader = reader_for(path)
        if reader is None:
            continue
        try:
            parsed = reader(path.read_bytes(), path)
        except (OSError, DocumentError):
            continue
        pieces = chunk(
            parsed,
            _count_tokens,
            chunk_tokens=chunk_tokens,
            overlap_tokens=overlap_tokens,
            capacity_tokens=chunk_tokens,
        )
        for number, piece in enumerate(pieces):
            yield Passage(
                id=number, text=piece.text, source=path.name, title=parsed.title, heading=piece.heading
            )


def _count_tokens(texts: Sequence[str]) -> list[int]:
    return [round(len(text.split()) * TOKENS_PER_WORD) for text in texts]
