"""Which kind of index a library of some size gets, and when it is built anew. Pure.

A generation is a *base*, which several generations share, and a *delta*, the passages that came after it and
are compared one by one. Small libraries are all delta.

The limits were measured with 384 dimensions on one core of a server CPU: `python -m benchmarks P14`.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

Kind = Literal["flat", "hnsw", "ivfpq"]
Wanted = Literal["auto", "flat", "hnsw", "ivfpq"]
Work = Literal["none", "keep", "append", "build"]

FLAT_MOST = 32_768
"""Up to here comparing with every passage takes 2 ms, and nothing is built, trained or missed."""
HNSW_MOST = 262_144
"""Up to here the graph and its vectors (1.8 KB a passage) may be expected to stay in memory: a search touches
some 4,000 of them, anywhere in the file. Above, IVF-PQ reads runs of 96-byte codes."""
SHRINK = 0.5
"""A library keeps its kind until it is this much smaller than the limit, lest it swing to and fro."""
DELTA_LEAST = 4_096
"""Passages (0.25 ms) that are never worth a base. No less than TRAINING_LEAST."""
TRAINING_LEAST = 256
"""Passages: a code book of IVF-PQ has 256 entries, and FAISS trains it on no fewer vectors."""
DELTA_MOST = 16_384
"""Passages (1 ms) beside any base: about half of what IVF-PQ takes for a million."""
DELTA_SHARE = 0.1
REMOVED_SHARE = 0.2
"""Of the rows of a base; more are dead weight."""
TRAINED_GROWTH = 2.0
"""Cells that were trained on half as many passages are trained again."""


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """What a base is made of."""

    kind: Kind
    generation: int
    """It holds all passages that this generation showed."""
    rows: int
    removed: int = 0
    """Rows that are passed over."""
    trained_rows: int
    """When its cells were trained; for other kinds, when it was built."""
    probes: int = 0
    """Cells that a search looks into; 0 for kinds without cells."""
    recall: float = 1.0
    """Share of the true 20 nearest that it finds, for a sample of its own passages, when it was built."""


def choose_kind(passages: int, wanted: Wanted, former: Kind | None) -> Kind:
    """The kind for so many passages.

    >>> choose_kind(20_000, "auto", None), choose_kind(20_000, "auto", "hnsw"), choose_kind(1, "ivfpq", None)
    ('flat', 'hnsw', 'ivfpq')
    """
    if wanted != "auto":
        return wanted
    flat = FLAT_MOST * (SHRINK if former in {"hnsw", "ivfpq"} else 1)
    hnsw = HNSW_MOST * (SHRINK if former == "ivfpq" else 1)
    return "flat" if passages <= flat else "hnsw" if passages <= hnsw else "ivfpq"


def delta_limit(rows: int) -> int:
    """How many passages may wait beside a base of `rows`."""
    return int(min(DELTA_MOST, max(DELTA_LEAST, DELTA_SHARE * rows)))


def choose_work(base: Base | None, kind: Kind, *, passages: int, delta: int, removed: int) -> Work:
    """What a publication does to the base: has none, keeps it, appends the delta to it, or builds it.

    `passages` are shown, `delta` of them are not in the base, `removed` rows of the base are not shown.
    """
    if passages <= DELTA_LEAST:
        return "none"
    if base is None or base.kind != kind or removed > REMOVED_SHARE * base.rows:
        return "build"
    if delta <= delta_limit(base.rows):
        return "keep"
    outgrown = kind == "ivfpq" and base.rows + delta > TRAINED_GROWTH * base.trained_rows
    return "build" if outgrown else "append"


def cells(rows: int) -> int:
    """Cells of an inverted file: the power of two next to 4 √rows, with 39 rows or more in each on average.

    Both are rules of thumb of the FAISS wiki ("Guidelines to choose an index").

    >>> cells(1_000_000), cells(5_000)
    (4096, 128)
    """
    wanted = round(math.log2(4 * math.sqrt(rows)))
    most = math.floor(math.log2(max(1, rows / 39)))
    return 1 << min(wanted, most)


def subspaces(dimension: int) -> int:
    """Parts that a vector is cut into, a byte each: four components a part where they fit.

    >>> subspaces(384), subspaces(6)
    (96, 2)
    """
    return dimension // next(width for width in (4, 3, 2, 1) if dimension % width == 0)
