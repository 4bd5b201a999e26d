"""One retriever's search, under a limit on the memory that it may have of its own.

    python -m benchmarks._scale_memory LITTLE LIBRARY ASKED ROOM_BYTES COLD     print `Report` as JSON

A process of its own: ASKED is a folder with questions and their vectors, LITTLE a library that is searched
before the limit is set, so that what a process takes once is taken.
"""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import msgspec
import numpy as np

from benchmarks._eviction import evict, major_faults
from benchmarks._scale_library import Seed
from benchmarks.measurement import percentile
from edged.documents import index
from edged.documents.base import INDEX, VECTORS
from edged.documents.library import Library

CANDIDATES = 20
"""Passages of a search, as the retriever asks for."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen. Own memory is what the kernel cannot take back (RssAnon)."""

    own_bytes: int
    """By which it grew from before the library was opened."""
    file_bytes: int
    """Of the library's files in memory after all questions; the kernel may take them back."""
    first_pass_ms: float
    """Median, with nothing of the library in memory at first."""
    again_ms: float
    again_p95_ms: float
    cold_ms: float
    """Median, with nothing in memory before each question."""
    cold_reads: float
    """Page faults of such a question that waited for the disk."""
    read_whole: str
    """What became of reading the same index into memory instead: the name of the error."""


def report(little: Path, library: Path, source: Seed, room_bytes: int, cold: int) -> Report:
    """Measure in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "questions.json").write_text(json.dumps(source.questions))
        np.save(Path(folder) / "vectors.npy", source.question_vectors, allow_pickle=False)
        arguments = [str(little), str(library), folder, str(room_bytes), str(cold)]
        command = [sys.executable, "-m", "benchmarks._scale_memory", *arguments]
        ran = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(ran.stdout, type=Report)


class _Asked:
    """The questions, asked of a library one by one."""

    def __init__(self, folder: Path) -> None:
        self._questions = json.loads((folder / "questions.json").read_text())
        self._vectors = np.load(folder / "vectors.npy", allow_pickle=False)

    def times_ms(self, library: Library, most: int = 0, *, forget: bool = False) -> list[float]:
        assert library.manifest is not None
        taken = []
        for number, question in enumerate(self._questions[: most or None]):
            if forget:
                evict(os.getpid(), library.path)
            began = time.perf_counter()
            library.search([question], self._vectors[[number]], library.manifest.family, CANDIDATES)
            taken.append((time.perf_counter() - began) * 1e3)
        return taken


def _measure(little: Path, path: Path, asked: _Asked, room_bytes: int, cold: int) -> Report:
    with Library.open(little) as library:
        asked.times_ms(library)
    _warm()
    evict(os.getpid(), path)
    own, used = _status("RssAnon"), _status("VmData")
    resource.setrlimit(resource.RLIMIT_DATA, (used + room_bytes, used + room_bytes))
    with Library.open(path) as library:
        first, again = asked.times_ms(library), asked.times_ms(library)
        grown, files = _status("RssAnon") - own, _status("RssFile")
        faults = major_faults(os.getpid())
        each = asked.times_ms(library, cold, forget=True)
        faults = major_faults(os.getpid()) - faults
    return Report(
        own_bytes=grown,
        file_bytes=files,
        first_pass_ms=round(statistics.median(first), 2),
        again_ms=round(statistics.median(again), 2),
        again_p95_ms=round(percentile(again, 0.95), 2),
        cold_ms=round(statistics.median(each), 1),
        cold_reads=round(faults / len(each)),
        read_whole=_read_whole(path),
    )


def _warm() -> None:
    """Let the BLAS of FAISS and that of NumPy take their buffers; they give up where they get none."""
    faiss.IndexFlatIP(384).search(np.ones((64, 384), np.float32), 1)
    np.ones((256, 384), np.float32) @ np.ones((384, 256), np.float32)
    faiss.PCAMatrix(8, 4).train(np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32))


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def _read_whole(library: Path) -> str:
    folder = index.folder_of(library, index.current(library))
    try:
        held = faiss.read_index(str(folder / INDEX))
        vectors = np.fromfile(folder / VECTORS, "<f2") if (folder / VECTORS).exists() else np.empty(0)
        return f"{held.ntotal} vectors and {len(vectors)} numbers fitted"
    except (MemoryError, RuntimeError) as error:
        return type(error).__name__


if __name__ == "__main__":
    faiss.omp_set_num_threads(1)
    paths = [Path(argument) for argument in sys.argv[1:4]]
    found = _measure(paths[0], paths[1], _Asked(paths[2]), int(sys.argv[4]), int(sys.argv[5]))
    print(msgspec.json.encode(found).decode())
