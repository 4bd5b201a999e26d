"""Libraries of any size: HotpotQA's passages recombined, with vectors that follow the recombination.

A passage takes two sentences of one passage of the collection and one of another; its vector is the unit
vector along a weighted mean of theirs and a little noise. So words and meaning stay linked, near neighbours
are near for a reason, and questions of the collection are questions to the library. Kept in the cache.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import faiss
import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.collections import hotpotqa
from benchmarks.measurement import say
from benchmarks.retrieval import DEFAULT_EMBEDDER, build, open_session, read_collection
from benchmarks.setting import STATE
from edged.catalogue import Catalogue
from edged.documents import index
from edged.documents.chunk import Chunk
from edged.documents.publish import publish_next
from edged.documents.store import Document, Store, connect
from edged.models import ModelStore
from edged.stages.encoder import Encoder

CACHE = STATE / "cache"
PASSAGES_EACH = 10
"""Of a document."""
BLOCK = 20_000
NOISE = 0.35
SEED = 7
QUESTIONS = 200
TRUTH_DEPTH = 10

Vectors = npt.NDArray[np.float32]


class Seed(msgspec.Struct, frozen=True):
    """What is recombined, and the questions."""

    titles: list[str]
    sentences: list[list[str]]
    vectors: Vectors
    questions: list[str]
    question_vectors: Vectors
    family: str
    """Fingerprint of the embedder, so that a daemon searches the libraries too."""
    digest: str


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """What building a library took, embedding excluded."""

    store_s: float
    publish_s: float


def seed() -> Seed:
    """The collection with its vectors, embedded once and kept."""
    models = ModelStore(STATE / "models", Catalogue.discover())
    session, variant = open_session(models, *DEFAULT_EMBEDDER)
    try:
        encoder = Encoder(session, variant)
        paths = hotpotqa(CACHE / "hotpotqa")
        collection = read_collection(*paths, quick=False)
        folder = CACHE / "retrieval" / f"full-{variant.model}-{variant.name}-{variant.digest[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        if not index.current(folder):
            build(folder, collection, encoder)
        titles, vectors = _vectors(folder)
        questions = [entry["question"] for entry in json.loads(paths[0].read_bytes())[:QUESTIONS]]
        lines: dict[str, list[str]] = json.loads(paths[1].read_bytes())
        return Seed(
            titles=titles,
            sentences=[lines[title] for title in titles],
            vectors=vectors,
            questions=questions,
            question_vectors=_asked(encoder, questions),
            family=encoder.fingerprint,
            digest=encoder.digest,
        )
    finally:
        session.close()


def _vectors(folder: Path) -> tuple[list[str], Vectors]:
    connection = connect(folder, read_only=True)
    rows = connection.execute(
        "SELECT source, vector FROM embeddings JOIN passages ON passages.id = passage"
        " JOIN documents ON documents.id = document ORDER BY passage"
    ).fetchall()
    connection.close()
    return [row[0] for row in rows], np.stack([np.frombuffer(row[1], "<f4") for row in rows])


def _asked(encoder: Encoder, questions: list[str]) -> Vectors:
    return np.concatenate([encoder.embed([question], "query")[0] for question in questions])


def blocks(source: Seed, passages: int) -> Iterator[tuple[list[str], list[str], Vectors]]:
    """Titles, texts and vectors of a library of that size, a block at a time; the same in every run."""
    random = np.random.default_rng(SEED)
    for start in range(0, passages, BLOCK):
        count = min(BLOCK, passages - start)
        first, second = random.integers(0, len(source.titles), (2, count))
        weight = random.uniform(0.5, 1, (count, 1)).astype(np.float32)
        noise = random.standard_normal((count, source.vectors.shape[1]), np.float32)
        mixed = weight * source.vectors[first] + (1 - weight) * source.vectors[second]
        mixed += noise * NOISE / np.sqrt(noise.shape[1])
        texts = [_text(source, one, other) for one, other in zip(first, second, strict=True)]
        yield (
            [source.titles[one] for one in first],
            texts,
            mixed / np.linalg.norm(mixed, axis=1, keepdims=True),
        )


def nearest(folder: Path, source: Seed, passages: int) -> npt.NDArray[np.int64]:
    """The passages truly nearest to each question [questions, TRUTH_DEPTH], kept beside the library."""
    path = folder / "nearest.npy"
    if not path.exists():
        np.save(path, _nearest(source, passages), allow_pickle=False)
    found: npt.NDArray[np.int64] = np.load(path, allow_pickle=False)
    return found


def _nearest(source: Seed, passages: int) -> npt.NDArray[np.int64]:
    """By comparing with every vector; ids count from 1 in the order in which passages were added."""
    heap = faiss.ResultHeap(len(source.questions), TRUTH_DEPTH, keep_max=True)
    for number, (_, _, vectors) in enumerate(blocks(source, passages)):
        found = faiss.knn(source.question_vectors, vectors, TRUTH_DEPTH, faiss.METRIC_INNER_PRODUCT)
        heap.add_result(found[0], found[1] + number * BLOCK + 1)
    heap.finalize()
    return heap.I


def _text(source: Seed, one: int, other: int) -> str:
    return " ".join([*source.sentences[one][:2], *source.sentences[other][-1:]]).replace("  ", " ")


def library(source: Seed, passages: int) -> tuple[Path, Built]:
    """The library of that size, built when it is not in the cache."""
    folder = CACHE / f"scale-{passages}"
    record = folder / "built.json"
    if not record.exists():
        say(f"building a library of {passages} passages in {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        record.write_bytes(msgspec.json.encode(_build(folder, source, passages)))
    return folder, msgspec.json.decode(record.read_bytes(), type=Built)


def _build(folder: Path, source: Seed, passages: int) -> Built:
    started = time.monotonic()
    store = Store(folder)
    try:
        with store:
            embedder = store.embedder(source.family, source.digest)
        for number, block in enumerate(blocks(source, passages)):
            with store:
                add(store, embedder, number * BLOCK, *block)
        with store:
            store.stage(1)
        stored = time.monotonic()
        publish_next(folder, store, source.family, source.digest, source.vectors.shape[1])
    finally:
        store.close()
    return Built(store_s=round(stored - started, 1), publish_s=round(time.monotonic() - stored, 1))


def add(
    store: Store, embedder: int, number: int, titles: list[str], texts: list[str], vectors: Vectors
) -> None:
    """Add a block as documents of ten passages; `number` is that of its first passage."""
    for start in range(0, len(texts), PASSAGES_EACH):
        part = slice(start, start + PASSAGES_EACH)
        document = _document(f"recombined/{number + start}", titles[start], len(texts[part]))
        identity = store.add(document, [_chunk(text) for text in texts[part]])
        store.save_vectors(embedder, store.passages(identity), vectors[part])


def _document(source: str, title: str, chunks: int) -> Document:
    return Document(
        id=0, source=source, title=title, media_type="text/plain", sha256="", bytes=0, mtime_ns=0,
        recipe="", ingested_at=0.0, chunks=chunks,
    )  # fmt: skip


def _chunk(text: str) -> Chunk:
    return Chunk(text=text, heading="", first_line=1, last_line=1, page=0)
