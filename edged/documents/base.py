"""The base of a generation: an index over most passages that later generations share by hard link.

`base.faiss` knows its vectors by row; `base.ids` gives the passage of each row. IVF-PQ has `base.vectors`
besides (float16), so that its candidates are ranked by true cosines. All of them are memory-mapped: what a
search does not touch need not be in memory. Ids and vectors only ever grow at the end.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import msgspec
import numpy as np
import numpy.typing as npt

from edged.documents import durable, kinds
from edged.documents.ahead import read_ahead
from edged.documents.kinds import Base

_faiss: Any = faiss
"""Its stubs lack the keyword constructors that its wrappers add."""

INDEX = "base.faiss"
IDS = "base.ids"
VECTORS = "base.vectors"
REMOVED = "removed.rows"

Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
Blocks = Iterator[tuple[Ids, Vectors]]

NEIGHBOURS = 32
"""Edges of a row in HNSW (M); with EXPANSION 128 recall@20 is 0.99 at 20,000 and at 100,000 passages."""
BUILD_EXPANSION = 80
EXPANSION = 128
"""Of a search in HNSW (efSearch)."""
PROBES = (32, 64, 128, 256, 512)
"""Cells that a search may look into; the first that reaches RECALL is taken when cells are trained."""
RECALL = 0.99
CANDIDATES = 200
"""Candidates of IVF-PQ that are ranked again, at least: recall@20 at 1 M is 0.70 without, 0.996 with it."""
CANDIDATES_EACH = 4
"""And for each passage that is wanted."""
TRAINING_ROWS = 40
"""For each cell."""
TRAINING_ROUNDS = 8
SAMPLE, SAMPLE_DEPTH = 64, 20
_BLOCK_ROWS = 16_384


def write_base(folder: Path, base: Base, dimension: int, blocks: Blocks) -> Base:
    """Build a base of `base.kind` in a folder; what it became. Raises `OSError`."""
    index = _empty(base.kind, dimension)
    (folder / IDS).touch()
    if index is None:
        (folder / VECTORS).touch()
    rows = _take(folder, index, 0, dimension, blocks)
    _save(folder, index or _trained(_stored(folder, rows, dimension), dimension))
    return _measured(folder, msgspec.structs.replace(base, rows=rows, trained_rows=rows), dimension)


def append_base(folder: Path, former: Path, base: Base, dimension: int, blocks: Blocks) -> Base:
    """Take over the base of the generation in folder `former`, with more rows. Raises `OSError`."""
    index = faiss.read_index(str(former / INDEX))
    share_base(folder, former, base, without_index=True)
    has_cells = base.kind == "ivfpq"
    rows = _take(folder, None if has_cells else index, base.rows, dimension, blocks)
    if has_cells:
        _fill(index, _stored(folder, rows, dimension)[base.rows :])
    _save(folder, index)
    return msgspec.structs.replace(base, rows=rows)


def share_base(folder: Path, former: Path, base: Base, *, without_index: bool = False) -> None:
    """Take over the base of the generation in folder `former` as it is. Raises `OSError`."""
    names = [IDS] if without_index else [IDS, INDEX]
    for name in [*names, VECTORS] if base.kind == "ivfpq" else names:
        durable.share(former / name, folder / name)


def read_ids(folder: Path, base: Base) -> Ids:
    """The passage of each row, int64 [rows]."""
    return np.fromfile(folder / IDS, "<i8", base.rows)


def _take(folder: Path, index: Any, rows: int, dimension: int, blocks: Blocks) -> int:
    """Write ids behind `rows`, and vectors into the index or, without one, into their file; the new rows."""
    with (
        durable.appending(folder / IDS, rows * 8) as id_file,
        _vector_file(folder, index, rows, dimension) as file,
    ):
        for ids, vectors in blocks:
            id_file.write(ids.astype("<i8").tobytes())
            if file:
                file.write(vectors.astype("<f2").tobytes())
            else:
                index.add(vectors)
            rows += len(ids)
    return rows


def _vector_file(
    folder: Path, index: Any, rows: int, dimension: int
) -> AbstractContextManager[BinaryIO | None]:
    return nullcontext() if index else durable.appending(folder / VECTORS, rows * dimension * 2)


def _empty(kind: kinds.Kind, dimension: int) -> Any:
    """An index that takes vectors as they come; None for IVF-PQ, which is trained on them first."""
    if kind == "ivfpq":
        return None
    if kind == "flat":
        return faiss.IndexFlatIP(dimension)
    index = faiss.IndexHNSWFlat(dimension, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILD_EXPANSION
    return index


def _trained(vectors: npt.NDArray[np.float16], dimension: int) -> Any:
    """IVF-PQ, trained on an even sample of the vectors and filled with all."""
    count = kinds.cells(len(vectors))
    index = faiss.IndexIVFPQ(
        faiss.IndexFlatIP(dimension),
        dimension,
        count,
        kinds.subspaces(dimension),
        8,
        faiss.METRIC_INNER_PRODUCT,
    )
    for clustering in (index.cp, index.pq.cp):
        clustering.niter = TRAINING_ROUNDS
        clustering.min_points_per_centroid = 1  # else it prints a warning about small libraries
        clustering.max_points_per_centroid = TRAINING_ROWS
    wanted = max(count, 256) * TRAINING_ROWS
    step = max(1, len(vectors) // wanted)
    index.train(vectors[::step].astype(np.float32))
    _fill(index, vectors)
    return index


def _fill(index: Any, vectors: npt.NDArray[np.float16]) -> None:
    for start in range(0, len(vectors), _BLOCK_ROWS):
        index.add(vectors[start : start + _BLOCK_ROWS].astype(np.float32))


def _save(folder: Path, index: Any) -> None:
    """Write through Python's file: FAISS's own writer does not notice a full disk."""
    durable.write_with(folder / INDEX, lambda file: write_index(index, file))


def write_index(index: Any, file: BinaryIO) -> None:
    """Write an index of FAISS into an open file. Raises `OSError`."""
    faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]  # by SWIG


def map_index(path: str) -> Any:
    """Open an index of FAISS so that codes, lists and edges stay in the file; `RuntimeError` when damaged."""
    index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
    read_ahead(index)
    return index


def _stored(folder: Path, rows: int, dimension: int) -> npt.NDArray[np.float16]:
    return map_array(folder / VECTORS, "<f2", rows * dimension).reshape(rows, dimension)


def map_array(path: Path, kind: str, count: int) -> npt.NDArray[Any]:
    """The first `count` numbers of a file, read when they are used; `ValueError` when it is short."""
    if not count:
        return np.empty(0, kind)
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    mapping.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapping, kind, count)


class OpenBase:
    """A base that is searched; `removed` are rows that are passed over."""

    def __init__(self, folder: Path, base: Base, dimension: int, removed: Ids | None = None) -> None:
        self.base = base
        self._index = map_index(str(folder / INDEX))
        self._ids = map_array(folder / IDS, "<i8", base.rows)
        self._vectors = _stored(folder, base.rows, dimension) if base.kind == "ivfpq" else None
        self._selector = _selector(base.rows, removed) if removed is not None and len(removed) else None
        if (self._index.ntotal, self._index.d) != (base.rows, dimension):
            raise ValueError("the base does not match its manifest")

    def search(self, queries: Vectors, count: int, probes: int = 0) -> tuple[Vectors, Ids]:
        """Cosines and passages [queries, count], best first; where nothing is left, the passage is -1."""
        if self._vectors is None:
            scores, rows = self._index.search(queries, count, params=self._parameters(count, probes))
        else:
            wanted = max(CANDIDATES, CANDIDATES_EACH * count)
            _, candidates = self._index.search(queries, wanted, params=self._parameters(count, probes))
            pairs = [
                self._ranked(query, near, count) for query, near in zip(queries, candidates, strict=True)
            ]
            scores, rows = np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])
        return scores, np.where(rows >= 0, self._ids[rows], -1)

    def _parameters(self, count: int, probes: int) -> Any:
        if self.base.kind == "flat":
            return _faiss.SearchParameters(sel=self._selector)
        if self.base.kind == "hnsw":
            return _faiss.SearchParametersHNSW(efSearch=max(EXPANSION, count), sel=self._selector)
        return _faiss.SearchParametersIVF(nprobe=probes or self.base.probes, sel=self._selector)

    def _ranked(self, query: Vectors, rows: Ids, count: int) -> tuple[Vectors, Ids]:
        """The best candidates by the cosine with their stored vectors, padded to `count` with row -1."""
        assert self._vectors is not None
        near = np.sort(rows[rows >= 0])  # in the order of the file
        scores = self._vectors[near].astype(np.float32) @ query
        best = np.argsort(-scores, kind="stable")[:count]
        padding = (0, count - len(best))
        return (
            np.pad(scores[best], padding, constant_values=-np.inf),
            np.pad(near[best], padding, constant_values=-1),
        )

    def sample(self) -> tuple[Vectors, Ids, Ids]:
        """Vectors and passages of some rows, and the passages that are truly nearest to each."""
        rows = np.unique(np.linspace(0, self.base.rows - 1, SAMPLE, dtype=np.int64))
        queries = (
            self._vectors[rows].astype(np.float32)
            if self._vectors is not None
            else self._index.reconstruct_batch(rows)
        )
        return queries, self._ids[rows], self._ids[self._nearest(queries)]

    def _nearest(self, queries: Vectors) -> Ids:
        depth = min(SAMPLE_DEPTH + 1, self.base.rows)
        if self._vectors is None:
            return faiss.downcast_index(self._index.storage).search(queries, depth)[1]
        heap = faiss.ResultHeap(len(queries), depth, keep_max=True)
        for start in range(0, self.base.rows, _BLOCK_ROWS):
            block = self._vectors[start : start + _BLOCK_ROWS].astype(np.float32)
            scores, rows = faiss.knn(queries, block, min(depth, len(block)), faiss.METRIC_INNER_PRODUCT)
            heap.add_result(scores, rows + start)
        heap.finalize()
        return heap.I


def _selector(rows: int, removed: Ids) -> Any:
    kept = np.ones(rows, bool)
    kept[removed] = False
    return _faiss.IDSelectorBitmap(np.packbits(kept, bitorder="little"))


def _measured(folder: Path, base: Base, dimension: int) -> Base:
    """Find the fewest cells that reach RECALL, and say what was reached."""
    if base.kind == "flat":
        return base
    opened = OpenBase(folder, base, dimension)
    queries, own, nearest = opened.sample()
    recall = 0.0
    for probes in PROBES if base.kind == "ivfpq" else (0,):
        found = opened.search(queries, nearest.shape[1], probes)[1]
        recall = recall_of(found, nearest, own)
        base = msgspec.structs.replace(base, probes=probes, recall=round(recall, 4))
        if recall >= RECALL:
            break
    return base


def recall_of(found: Ids, nearest: Ids, own: Ids) -> float:
    """Share of the nearest that were found; a row's `own` passage does not count, as it finds itself.

    >>> recall_of(np.array([[7, 1, 3]]), np.array([[7, 1, 2]]), np.array([7]))
    0.5
    """
    shares = []
    for seen, true, itself in zip(found.tolist(), nearest.tolist(), own.tolist(), strict=True):
        wanted = set(true) - {itself}
        shares.append(len(wanted & set(seen)) / max(1, len(wanted)))
    return float(np.mean(shares))
