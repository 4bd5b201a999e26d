"""P14: retrieval as the library grows, beside FAISS alone.

Libraries of 1,000, 100,000 and 1,000,000 passages (quick: 1,000 and 20,000) with the kind of index that edged
chooses for each. *Retrieval* is `Library.search` as the retriever calls it for one question at a time: dense
search, search by words, fusion, passages read; the question's embedding, which no size changes, is left out.
*FAISS alone* is the same kind of index with the same parameters and the same number of results, all in
memory, re-ranked by FAISS where edged re-ranks (float16, four candidates for each result): no words, no
texts. One thread each, the same 200 questions (quick: 60), order reversed every round; the median latency
of each round is what is compared, and CPU times are in the detail: everything is in memory by then, so on a
quiet machine the two agree.

- P14: (retrieval at N / retrieval at 1,000) / (FAISS at N / FAISS at 1,000), for the N where it is worst.
  Costs that no size changes make it smaller: so the detail has the milliseconds too, and there is P14d.
- P14d: dense search alone, memory-mapped and with passage ids, / FAISS alone, for the N where it is worst.
- P14m: memory of its own (not the files' pages, which the kernel takes back when it needs them) that a
  process takes for a library / bytes of its index, under a limit that is far smaller than the index. The run
  counts only if reading the index into memory instead failed under the same limit.

The first full run builds the libraries, a quarter of an hour on two cores; they stay in the cache (3.9 GB).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks._scale_library import TRUTH_DEPTH, Seed, library, nearest, seed
from benchmarks._scale_memory import CANDIDATES, Report, report
from benchmarks.measurement import Row, say, spread
from edged.documents import base as bases
from edged.documents import index
from edged.documents.library import Library
from edged.documents.search import DEPTH

FULL, QUICK = (1_000, 100_000, 1_000_000), (1_000, 20_000)
WARM_PASSES = 2
ROOM_BYTES = 24 << 20
"""Memory that P14m allows; a process that asks more of the kernel gets an error."""
_faiss: Any = faiss
"""Its stubs lack the keyword constructors that its wrappers add."""

Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]


class Alone:
    """What a program would do that uses FAISS and nothing else, on the index that edged built."""

    def __init__(self, folder: Path, manifest: index.Manifest) -> None:
        self._base = manifest.base
        name = bases.INDEX if self._base else "index.faiss"
        self._coarse = faiss.read_index(str(folder / name))
        self._index = self._coarse
        if self._base and self._base.kind == "ivfpq":
            self._fine = _in_memory(folder / bases.VECTORS, manifest.dimension)
            self._index = faiss.IndexRefine(self._coarse, self._fine)

    def search(self, queries: Vectors, count: int) -> Ids:
        """Rows [queries, count], best first."""
        if not self._base or self._base.kind == "flat":
            return self._index.search(queries, count)[1]
        if self._base.kind == "hnsw":
            parameters = _faiss.SearchParametersHNSW(efSearch=max(bases.EXPANSION, count))
        else:
            inner = _faiss.SearchParametersIVF(nprobe=self._base.probes)
            factor = max(bases.CANDIDATES / count, bases.CANDIDATES_EACH)
            parameters = _faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=inner)
        return self._index.search(queries, count, params=parameters)[1]


def _in_memory(path: Path, dimension: int) -> Any:
    vectors = np.fromfile(path, "<f2").reshape(-1, dimension)
    fine = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    for start in range(0, len(vectors), 1 << 16):
        fine.add(vectors[start : start + (1 << 16)].astype(np.float32))
    return fine


class Sized:
    """A library of some size, and three ways to ask it."""

    def __init__(self, source: Seed, passages: int) -> None:
        self.passages = passages
        self.folder, self.built = library(source, passages)
        self._library = Library.open(self.folder)
        manifest = self._library.manifest
        generation = index.open_current(self.folder)
        assert manifest is not None
        assert generation is not None
        self.manifest, self._generation = manifest, generation
        self._source = source
        self._alone = Alone(index.folder_of(self.folder, manifest.generation), manifest)

    def ways(self) -> dict[str, Callable[[int], object]]:
        """`retrieval`, `dense` and `faiss`, each for the question of a number."""
        source = self._source
        vectors = [source.question_vectors[[number]] for number in range(len(source.questions))]
        return {
            "retrieval": lambda number: self._library.search(
                [source.questions[number]], vectors[number], source.family, CANDIDATES
            ),
            "dense": lambda number: self._generation.search(vectors[number], DEPTH),
            "faiss": lambda number: self._alone.search(vectors[number], DEPTH),
        }

    def described(self) -> dict[str, Any]:
        """Kind, recall against comparing with every vector, and what building took."""
        true = nearest(self.folder, self._source, self.passages)
        found = self._generation.search(self._source.question_vectors, DEPTH)
        hits = [
            len(set(ids[:TRUTH_DEPTH]) & set(row)) for (ids, _), row in zip(found, true.tolist(), strict=True)
        ]
        built = self.manifest.base
        return {
            "kind": built.kind if built else "flat (no base)",
            "recall_at_10": round(sum(hits) / true.size, 4),
            "index_mib": round(index_bytes(self.folder) / 2**20, 1),
            "build_s": msgspec.to_builtins(self.built),
        }

    def close(self) -> None:
        """Let go of the files."""
        self._library.close()
        self._generation.close()


def index_bytes(library: Path) -> int:
    """Of the generation in force, vectors included."""
    folder = index.folder_of(library, index.current(library))
    return sum(path.stat().st_size for path in folder.iterdir())


class Taken(NamedTuple):
    """Median milliseconds of a question in one round."""

    wall_ms: float
    cpu_ms: float


Times = dict[tuple[int, str], list[Taken]]
"""By size and way, a value a round."""


def _rounds(sizes: Sequence[Sized], ways: Sequence[str], questions: int, rounds: int) -> Times:
    asks = {(size.passages, way): size.ways()[way] for size in sizes for way in ways}
    for ask in asks.values():
        for _ in range(WARM_PASSES):
            _taken(ask, questions)
    times: Times = {pair: [] for pair in asks}
    for number in range(rounds):
        for pair in list(asks) if number % 2 else list(asks)[::-1]:
            times[pair].append(_taken(asks[pair], questions))
        say(
            f"round {number + 1} of {rounds}: "
            + ", ".join(f"{n} {way} {t[-1].wall_ms:.2f} ms" for (n, way), t in times.items())
        )
    return times


def _taken(ask: Callable[[int], object], questions: int) -> Taken:
    wall, cpu = [], []
    for number in range(questions):
        began, used = time.perf_counter(), time.thread_time()
        ask(number)
        cpu.append(time.thread_time() - used)
        wall.append(time.perf_counter() - began)
    return Taken(statistics.median(wall) * 1e3, statistics.median(cpu) * 1e3)


def _measured(quick: bool, ways: Sequence[str]) -> tuple[Times, dict[str, Any]]:
    faiss.omp_set_num_threads(1)
    source = seed()
    sizes = [Sized(source, passages) for passages in (QUICK if quick else FULL)]
    try:
        times = _rounds(sizes, ways, 60 if quick else len(source.questions), 3 if quick else 7)
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        return times, {str(size.passages): size.described() for size in sizes}
    finally:
        for size in sizes:
            size.close()


def growth(quick: bool) -> tuple[float, dict[str, Any]]:
    """P14: see the module."""
    times, libraries = _measured(quick, ["retrieval", "dense", "faiss"])
    least, *larger = sorted({passages for passages, _ in times})
    ratios = {n: _growth_ratios(times, n, least) for n in larger}
    return max(map(statistics.median, ratios.values())), {
        "growth_over_faiss": {str(n): spread(values) for n, values in ratios.items()},
        **_medians(times),
        "libraries": libraries,
    }


def _growth_ratios(times: Times, passages: int, least: int) -> list[float]:
    columns = [times[size, way] for way in ("retrieval", "faiss") for size in (passages, least)]
    return [
        (ours.wall_ms / ours_least.wall_ms) / (theirs.wall_ms / theirs_least.wall_ms)
        for ours, ours_least, theirs, theirs_least in zip(*columns, strict=True)
    ]


def _medians(times: Times) -> dict[str, dict[str, dict[str, float]]]:
    """`median_wall_ms` and `median_cpu_ms`: by size, by way."""
    sizes = sorted({passages for passages, _ in times})
    return {
        f"median_{unit}": {
            str(size): {
                way: round(statistics.median(getattr(taken, unit) for taken in each), 3)
                for (n, way), each in times.items()
                if n == size
            }
            for size in sizes
        }
        for unit in Taken._fields
    }


def dense(quick: bool) -> tuple[float, dict[str, Any]]:
    """P14d: see the module."""
    times, libraries = _measured(quick, ["dense", "faiss"])
    larger = sorted({passages for passages, _ in times})[1:]
    ratios = {
        n: [
            ours.wall_ms / theirs.wall_ms
            for ours, theirs in zip(times[n, "dense"], times[n, "faiss"], strict=True)
        ]
        for n in larger
    }
    return max(map(statistics.median, ratios.values())), {
        "over_faiss": {str(n): spread(values) for n, values in ratios.items()},
        **_medians(times),
        "libraries": libraries,
    }


def memory(quick: bool) -> tuple[float, dict[str, Any]]:
    """P14m: see the module."""
    source = seed()
    little, _ = library(source, QUICK[0])
    path, _ = library(source, (QUICK if quick else FULL)[-1])
    found = report(little, path, source, ROOM_BYTES, 5 if quick else 10)
    detail = msgspec.to_builtins(found) | {
        "index_bytes": index_bytes(path),
        "library_bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        "room_bytes": ROOM_BYTES,
        "violations": _violations(found),
    }
    return found.own_bytes / index_bytes(path), detail | ({"gate": 0.5} if quick else {})


def _violations(found: Report) -> list[str]:
    return [] if found.read_whole.endswith("Error") else [f"the limit does not bite: {found.read_whole}"]


ROWS = (
    Row(
        id="P14",
        what="retrieval at 1 k / 100 k / 1 M passages: latency growth / that of FAISS alone, the worst",
        unit="ratio",
        gate=1.3,
        goal=1.05,
        better="lower",
        measure=growth,
    ),
    Row(
        id="P14d",
        what="dense search at 100 k / 1 M passages, memory-mapped / FAISS alone in memory, the worst",
        unit="ratio",
        gate=1.3,
        goal=1.05,
        better="lower",
        measure=dense,
    ),
    Row(
        id="P14m",
        what="memory of its own for a library of 1 M passages / bytes of its index",
        unit="ratio",
        gate=0.1,
        goal=0.03,
        better="lower",
        measure=memory,
    ),
)
