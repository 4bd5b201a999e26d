"""Find passages by words: BM25, in a time that does not grow with the library.

SQLite scores every passage that holds any word of the query, one or two microseconds each. Where the words
of a query are so common that this would take long, only its rarer words are looked up; what they find and
what is near by meaning is then ranked by BM25 over all words. On HotpotQA (493 questions), with the limit
scaled to 0.1 % of its passages (what it is of a million), nDCG@10 of the hybrid ranking is 0.875; without a
limit 0.877. Merely leaving the common words out loses 0.024.
"""

from __future__ import annotations

import math
import re
import sqlite3
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from edged.documents.store import VISIBLE

POSTINGS = 1_000
"""Passages that SQLite may score for a query: about 1.5 ms."""
SHORTLIST = 50
"""Of the passages with the rarer words, how many are ranked by all words."""
COLUMN_WEIGHTS = (2.0, 1.0, 1.0)
"""Of title, heading and text in BM25."""
SATURATION, LENGTH_SHARE = 1.2, 0.75
"""k1 and b of BM25, as in SQLite's FTS5."""
_MOST_WORDS = 48
_WORD = re.compile(r"\w+")
_MARKS = re.compile(r"[\u0300-\u036f]+")
_TOKEN = re.compile(r"[^\W_]+")
_STOP_WORDS = """
    a an and are as at be but by can could did do does for from had has have how i if in into is it its
    me my of on or our should that the their them there these they this those to was we were what when
    where which who whom whose why will with would you your
"""


def query_words(query: str) -> list[str]:
    """The telling words of a query, each once.

    >>> query_words("How do I reset the Router?")
    ['reset', 'router']
    """
    words = list(dict.fromkeys(_WORD.findall(query.lower())))
    stop_words = frozenset(_STOP_WORDS.split())
    telling = [word for word in words if word not in stop_words] or words
    return telling[:_MOST_WORDS]


def match_expression(words: Sequence[str]) -> str:
    """An FTS5 expression that means any of the words.

    >>> match_expression(["reset", "near", "router"])
    '"reset" OR "near" OR "router"'
    """
    return " OR ".join(f'"{word}"' for word in words)


def tokens(text: str) -> list[str]:
    """Split as the library's tokenizer does: letters and digits, in lower case, without diacritics.

    >>> tokens("Café_au lait!")
    ['cafe', 'au', 'lait']
    """
    if not text.isascii():
        text = _MARKS.sub("", unicodedata.normalize("NFD", text))
    return _TOKEN.findall(text.lower())


def affordable(words: Sequence[str], common: Mapping[str, int], limit: int) -> list[str]:
    """The rarest words, as many as stand in no more than `limit` passages in all.

    >>> affordable(["film", "kurosawa", "the"], {"film": 4_000, "the": 500_000}, 5_000)
    ['kurosawa', 'film']
    """
    kept, postings = [], 0
    for word in sorted(words, key=lambda word: _held_by(word, common)):
        postings += _held_by(word, common)
        if postings > limit:
            break
        kept.append(word)
    return kept


def _held_by(word: str, common: Mapping[str, int]) -> int:
    """Passages with a word at most, as far as they were counted."""
    return min((common.get(token, 0) for token in tokens(word)), default=0)


def by_words(
    connection: sqlite3.Connection,
    generation: int,
    query: str,
    count: int,
    *,
    common: Mapping[str, int] | None = None,
    passages: int = 0,
    near: Collection[int] = (),
) -> dict[int, float]:
    """Ids of the passages with the best BM25 score, best first; higher is better.

    `common` tells how many of the `passages` hold a word, where many do; `near` are passages that are
    judged besides where not all that match can be.
    """
    words = query_words(query)
    rare = affordable(words, common or {}, POSTINGS)
    if len(rare) == len(words):
        return _matching(connection, generation, words, count)
    found = _matching(connection, generation, rare, SHORTLIST)
    scores = _scored(connection, words, common or {}, passages, {*found, *near})
    best = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
    return dict(best[:count])


def _matching(
    connection: sqlite3.Connection, generation: int, words: Sequence[str], count: int
) -> dict[int, float]:
    """The best of all passages with any of the words; those that are not shown are looked up last."""
    if not words:
        return {}
    weights = ", ".join(map(str, COLUMN_WEIGHTS))
    looked_at = 2 * count
    while True:
        rows = connection.execute(
            f"SELECT best.id, score, {VISIBLE} FROM (SELECT rowid AS id, -bm25(terms, {weights}) AS score"  # noqa: S608 - constants
            " FROM terms WHERE terms MATCH :words ORDER BY score DESC, rowid LIMIT :looked_at) AS best"
            " CROSS JOIN passages ON passages.id = best.id CROSS JOIN documents ON documents.id = document",
            {"words": match_expression(words), "generation": generation, "looked_at": looked_at},
        ).fetchall()
        shown = [(passage, score) for passage, score, visible in rows if visible]
        if len(shown) >= count or len(rows) < looked_at:
            return dict(shown[:count])
        looked_at *= 4


def _scored(
    connection: sqlite3.Connection,
    words: Sequence[str],
    common: Mapping[str, int],
    passages: int,
    candidates: Collection[int],
) -> dict[int, float]:
    """BM25 of the candidates that hold any of the words; lengths are compared with their mean."""
    wanted = list(dict.fromkeys(tokens(" ".join(words))))
    weight = {token: _weight(_document_frequency(connection, token, common), passages) for token in wanted}
    marks = ", ".join("?" * len(candidates))
    rows = connection.execute(
        f"SELECT id, title, heading, text FROM searchable WHERE id IN ({marks})",  # noqa: S608 - question marks
        list(candidates),
    )
    split = {row[0]: [tokens(column) if column else [] for column in row[1:]] for row in rows}
    lengths = {passage: sum(map(len, columns)) for passage, columns in split.items()}
    mean = max(1.0, sum(lengths.values()) / max(1, len(lengths)))
    scores = {passage: _score(columns, weight, lengths[passage] / mean) for passage, columns in split.items()}
    return {passage: score for passage, score in scores.items() if score > 0}


def _score(columns: Sequence[Sequence[str]], weight: Mapping[str, float], length: float) -> float:
    """Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009."""
    held: defaultdict[str, float] = defaultdict(float)
    for column, share in zip(columns, COLUMN_WEIGHTS, strict=True):
        for token in column:
            if token in weight:
                held[token] += share
    dampening = SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * length)
    return sum(
        weight[token] * count * (SATURATION + 1) / (count + dampening) for token, count in held.items()
    )


def _weight(document_frequency: int, passages: int) -> float:
    """Inverse document frequency, never negative, as FTS5 has it."""
    return max(1e-6, math.log((passages - document_frequency + 0.5) / (document_frequency + 0.5)))


def _document_frequency(connection: sqlite3.Connection, token: str, common: Mapping[str, int]) -> int:
    if token in common:
        return common[token]
    row = connection.execute("SELECT doc FROM temp.vocabulary WHERE term = ?", (token,)).fetchone()
    return int(row[0]) if row else 0


def passages_with(connection: sqlite3.Connection, words: Sequence[str]) -> dict[str, int]:
    """By word, how many passages of the file hold it; of a word of several tokens, its rarest counts."""
    return {
        word: min((_document_frequency(connection, token, {}) for token in tokens(word)), default=0)
        for word in words
    }
