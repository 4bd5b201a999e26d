"""Find passages: by meaning (dense vectors), by words (BM25), and both fused."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from edged.documents.index import Generation
from edged.documents.words import by_words
from edged.errors import StorageError
from edged.messages import Passage

RANK_CONSTANT = 60
"""k of reciprocal rank fusion, as its authors chose it."""
DEPTH = 50
"""How many passages each of the two searches puts into the fusion, at least. The search by words judges
as many of the nearest, where it cannot look at all that match; twice as many gave 0.0005 nDCG@10."""
WEIGHTS = (1.0, 0.3)
"""Of the dense ranking and of the BM25 ranking: equal weights cost 2 points of nDCG@10 (row Q1)."""


def fuse(
    rankings: Sequence[Sequence[int]], weights: Sequence[float], constant: float = RANK_CONSTANT
) -> dict[int, float]:
    """Reciprocal rank fusion: score(d) = sum over rankings of weight / (constant + rank of d), rank from 1.

    Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank
    Learning Methods", SIGIR 2009. Best first; ties keep the order of the first ranking that names them.

    >>> list(fuse([[7, 8], [8, 9]], [1, 1]))
    [8, 7, 9]
    """
    scores: dict[int, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + weight / (constant + rank)
    return dict(sorted(scores.items(), key=lambda pair: -pair[1]))


def search(
    connection: sqlite3.Connection,
    generation: Generation,
    queries: Sequence[str],
    dense: Sequence[tuple[list[int], list[float]]],
    count: int,
) -> list[list[Passage]]:
    """For each query the best `count` passages of `generation`, best first, with scores dense, bm25, fused.

    `dense` is what `Generation.search` gave for the queries' vectors.
    """
    return [
        _one(connection, generation, query, dict(zip(*found, strict=True)), count)
        for query, found in zip(queries, dense, strict=True)
    ]


def _one(
    connection: sqlite3.Connection, generation: Generation, query: str, cosines: dict[int, float], count: int
) -> list[Passage]:
    depth = max(count, DEPTH)
    manifest = generation.manifest
    words = by_words(
        connection,
        manifest.generation,
        query,
        depth,
        common=generation.words,
        passages=manifest.passages,
        near=list(cosines),
    )
    fused = fuse([list(cosines)[:depth], list(words)], WEIGHTS)
    best = list(fused)[:count]
    scores = {passage: _named({"dense": cosines, "bm25": words, "fused": fused}, passage) for passage in best}
    return fetch(connection, scores)


def _named(scores: Mapping[str, Mapping[int, float]], passage: int) -> dict[str, float]:
    return {name: round(given[passage], 6) for name, given in scores.items() if passage in given}


def fetch(connection: sqlite3.Connection, scores: Mapping[int, dict[str, float]]) -> list[Passage]:
    """Passages in the order of `scores`; one that is missing means a damaged library."""
    marks = ", ".join("?" * len(scores))
    rows = connection.execute(
        "SELECT passages.id, text, source, title, heading, first_line, last_line, page"  # noqa: S608 - question marks
        f" FROM passages JOIN documents ON documents.id = passages.document WHERE passages.id IN ({marks})",
        list(scores),
    )
    found = {row[0]: row[1:] for row in rows}
    if len(found) < len(scores):
        raise StorageError("the library names passages that it does not hold; ingest into a new library")
    return [_passage(passage, found[passage], given) for passage, given in scores.items()]


def _passage(
    identity: int, row: tuple[str, str, str, str, int, int, int], scores: dict[str, float]
) -> Passage:
    text, source, title, heading, first_line, last_line, page = row
    return Passage(
        id=identity,
        text=text,
        source=source,
        title=title,
        heading=heading,
        first_line=first_line,
        last_line=last_line,
        page=page,
        scores=scores,
    )
