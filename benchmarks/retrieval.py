"""Q1: how well passages are found, on HotpotQA's questions, with and without words and reranking.

    python -m benchmarks.retrieval [--quick]     print the table

Each passage of the collection is one passage of a library, searched through the same functions as in the
retriever. A question's relevant passages are those with its supporting facts. nDCG@10 with binary gains:
DCG = sum over ranks i of rel(i) / log2(i + 1), divided by the DCG of the ideal order (Järvelin and
Kekäläinen, "Cumulated gain-based evaluation of IR techniques", ACM TOIS 20(4), 2002).
The full run embeds 9,221 passages with each embedder; they are kept in the cache and the run is resumable.
`--quick` is a subset: few questions among the passages of their own and other questions' contexts.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.collections import hotpotqa
from benchmarks.measurement import Row, say
from benchmarks.setting import STATE
from edged import plugins
from edged.backend import TensorSession, Variant
from edged.catalogue import Catalogue
from edged.documents import index, search, words
from edged.documents.chunk import Chunk, embedded_text
from edged.documents.library import Library
from edged.documents.publish import publish_next
from edged.documents.store import Document, Store, connect
from edged.messages import Passage
from edged.models import ModelStore
from edged.stages.encoder import CrossEncoder, Encoder
from edged.stages.reranker import best_passages, passage_text

DEFAULT_EMBEDDER = ("bge-small-en-v1.5", "int8")
EMBEDDERS = [DEFAULT_EMBEDDER, ("all-minilm-l6-v2", "fp32"), ("all-minilm-l6-v2", "int8")]
RERANKER = ("ms-marco-minilm-l12-v2", "int8")
CANDIDATES = 20
DEPTH = 10
FULL_QUESTIONS = 160
QUICK_QUESTIONS, QUICK_CONTEXTS = 40, 50
METHODS = ("dense", "bm25", "hybrid", "logit only", "hybrid+rerank")
"""`logit only` orders by the reranker alone; `hybrid+rerank` is what the reranker stage does."""


class Question(msgspec.Struct, frozen=True):
    text: str
    relevant: frozenset[str]
    """Titles of the passages that hold its supporting facts."""


class Collection(msgspec.Struct, frozen=True):
    name: str
    questions: list[Question]
    passages: dict[str, str]
    """By title, which is unique."""


def ndcg(ranking: Sequence[str], relevant: frozenset[str], depth: int = DEPTH) -> float:
    """Normalised discounted cumulated gain at `depth`, binary gains.

    >>> ndcg(["x", "a"], frozenset({"a"}))
    0.6309297535714575
    """
    gain = sum(1 / math.log2(rank + 1) for rank, item in enumerate(ranking[:depth], 1) if item in relevant)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(len(relevant), depth) + 1))
    return gain / ideal


def read_collection(
    questions_path: Path, corpus_path: Path, *, quick: bool, questions: int = FULL_QUESTIONS
) -> Collection:
    """All passages and evenly spread questions; or, for `quick`, the contexts of the first questions."""
    raw: list[dict[str, Any]] = json.loads(questions_path.read_bytes())
    corpus = {title: "".join(lines) for title, lines in json.loads(corpus_path.read_bytes()).items()}
    if quick:
        near = {title for entry in raw[:QUICK_CONTEXTS] for title, _ in entry["context"]}
        passages = {title: text for title, text in corpus.items() if title in near}
        return Collection("quick", [_question(entry) for entry in raw[:QUICK_QUESTIONS]], passages)
    spread = raw[:: len(raw) // questions][:questions]
    return Collection("full", [_question(entry) for entry in spread], corpus)


def _question(entry: Mapping[str, Any]) -> Question:
    return Question(entry["question"], frozenset(title for title, _ in entry["supporting_facts"]))


def open_session(models: ModelStore, model: str, name: str) -> tuple[TensorSession, Variant]:
    """The CPU session of a model, fetched when it is missing."""
    variant = models.pull(model, name)
    backend = plugins.load("onnx")
    device = next(device for device in backend.devices() if device.id == "cpu")
    session = backend.open(variant, device, {})
    return session, variant  # type: ignore[return-value]  # an encoder's session takes tensors


def build(folder: Path, collection: Collection, encoder: Encoder) -> None:
    """Embed what is not embedded yet, and publish."""
    store = Store(folder)
    try:
        with store:
            embedder = store.embedder(encoder.fingerprint, encoder.digest)
            if not store.sources():
                for title, text in collection.passages.items():
                    store.add(_document(title), [_chunk(text)])
        for batch in _batches(store, embedder):
            texts = [embedded_text(title, heading, text) for _, title, heading, text in batch]
            vectors, _ = encoder.embed(texts)
            with store:
                store.save_vectors(embedder, [row[0] for row in batch], vectors)
        with store:
            store.stage(1)
        publish_next(folder, store, encoder.fingerprint, encoder.digest, encoder.dimension)
    finally:
        store.close()


def _batches(store: Store, embedder: int) -> Iterator[list[tuple[int, str, str, str]]]:
    after = 0
    while batch := store.unembedded([embedder], after, 128):
        print(f"\rembedding passage {batch[-1][0]}", end="", file=sys.stderr, flush=True)
        yield batch
        after = batch[-1][0]


def _document(title: str) -> Document:
    return Document(
        id=0, source=title, title=title, media_type="text/plain", sha256="", bytes=0, mtime_ns=0,
        recipe="", ingested_at=0.0, chunks=1,
    )  # fmt: skip


def _chunk(text: str) -> Chunk:
    return Chunk(text=text, heading="", first_line=1, last_line=1, page=0)


class CachedReranker:
    """Logits of pairs, scored once for all embedders and runs; keyed by question and title."""

    def __init__(self, encoder: CrossEncoder, folder: Path) -> None:
        self._encoder = encoder
        self._path = folder / f"logits-alone-{encoder.variant.digest[:12]}.json"
        self._known: dict[str, float] = json.loads(self._path.read_bytes()) if self._path.exists() else {}

    def score(self, question: str, passages: Sequence[Passage]) -> list[float]:
        """One logit for each passage."""
        keys = [f"{question}\n{passage.source}" for passage in passages]
        new = [row for row, key in enumerate(keys) if key not in self._known]
        logits, _ = self._encoder.score(question, [passage_text(passages[row]) for row in new])
        self._known |= dict(zip([keys[row] for row in new], logits.tolist(), strict=True))
        return [self._known[key] for key in keys]

    def save(self) -> None:
        """Keep them for the next run."""
        self._path.write_text(json.dumps(self._known))


class Rankings:
    """Ranks titles for a question in every way."""

    def __init__(self, folder: Path, encoder: Encoder, reranker: CachedReranker) -> None:
        self._library = Library.open(folder)
        self._connection = connect(folder, read_only=True)
        self._generation = index.open_current(folder)
        self._encoder = encoder
        self._reranker = reranker

    def rank(self, question: str) -> dict[str, list[str]]:
        """Titles, best first, by method."""
        assert self._generation is not None
        vectors, _ = self._encoder.embed([question], "query")
        dense = self._generation.search(vectors, CANDIDATES)[0][0]
        number = self._generation.manifest.generation
        found_by_words = list(words.by_words(self._connection, number, question, CANDIDATES))
        hybrid = self._library.search([question], vectors, self._encoder.fingerprint, CANDIDATES)[0]
        logits = self._reranker.score(question, hybrid)
        by_logit = sorted(zip(logits, hybrid, strict=True), key=lambda pair: -pair[0])
        rankings = {
            "dense": search.fetch(self._connection, {identity: {} for identity in dense}),
            "bm25": search.fetch(self._connection, {identity: {} for identity in found_by_words}),
            "hybrid": hybrid,
            "logit only": [passage for _, passage in by_logit],
            "hybrid+rerank": best_passages(hybrid, logits, len(hybrid)),
        }
        return {method: [passage.source for passage in ranked] for method, ranked in rankings.items()}

    def close(self) -> None:
        """Let go of the library, and keep the logits."""
        self._library.close()
        self._connection.close()
        if self._generation:
            self._generation.close()
        self._reranker.save()


def measure(
    collection: Collection, cache: Path, models: ModelStore, embedder: tuple[str, str]
) -> dict[str, list[float]]:
    """nDCG@10 of every question, by method."""
    session, variant = open_session(models, *embedder)
    reranker_session, reranker_variant = open_session(models, *RERANKER)
    encoder = Encoder(session, variant)
    folder = cache / "retrieval" / f"{collection.name}-{variant.model}-{variant.name}-{variant.digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    if not index.current(folder):
        build(folder, collection, encoder)
    reranker = CachedReranker(CrossEncoder(reranker_session, reranker_variant), folder.parent)
    rankings = Rankings(folder, encoder, reranker)
    found = [(rankings.rank(question.text), question.relevant) for question in collection.questions]
    rankings.close()
    session.close()
    reranker_session.close()
    return {method: [ndcg(ranked[method], relevant) for ranked, relevant in found] for method in METHODS}


def q1(quick: bool, cache: Path = STATE / "cache") -> tuple[float, dict[str, Any]]:
    """What hybrid search and reranking gain over dense search alone, in points of nDCG@10."""
    started = time.monotonic()
    models = ModelStore(cache.parent / "models", Catalogue.discover())
    collection = read_collection(*hotpotqa(cache / "hotpotqa"), quick=quick)
    embedders = [DEFAULT_EMBEDDER] if quick else EMBEDDERS
    table = {" ".join(embedder): measure(collection, cache, models, embedder) for embedder in embedders}
    default = table[" ".join(DEFAULT_EMBEDDER)]
    gains = [
        100 * (after - before)
        for before, after in zip(default["dense"], default["hybrid+rerank"], strict=True)
    ]
    error = statistics.stdev(gains) / math.sqrt(len(gains))
    chance = 2 * error
    return statistics.mean(gains), {
        # So few questions show a loss only beyond chance: two standard errors of the paired difference.
        **({"gate": round(-chance, 2)} if quick else {}),
        "collection": f"HotpotQA, {collection.name}",
        "passages": len(collection.passages),
        "questions": len(collection.questions),
        "standard_error": round(error, 2),
        "ndcg@10": {
            name: {method: round(statistics.mean(values), 4) for method, values in row.items()}
            for name, row in table.items()
        },
        "elapsed_s": round(time.monotonic() - started, 1),
    }


ROWS = (
    Row(
        id="Q1",
        what="nDCG@10 of hybrid search + rerank minus dense search alone, on HotpotQA",
        unit="points",
        gate=0.0,
        goal=5.0,
        better="higher",
        measure=q1,
    ),
)


def main(arguments: list[str]) -> None:
    """Print the table: a line an embedder, a column a method."""
    _, detail = q1("--quick" in arguments)
    say(f"\n{'':28}" + "".join(f"{method:>15}" for method in METHODS))
    for name, values in detail["ndcg@10"].items():
        say(f"{name:28}" + "".join(f"{values[method]:15.4f}" for method in METHODS))


if __name__ == "__main__":
    main(sys.argv[1:])
