"""Libraries with a base: what they find, what a publication writes, and what damage and a full memory do."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.documents import durable, index, kinds, words
from edged.documents.chunk import Chunk
from edged.documents.index import folder_of, open_current
from edged.documents.library import Library, reindex
from edged.documents.publish import publish_next
from edged.documents.store import Document, Store, connect
from edged.errors import NotFound, StorageError

DIMENSION = 32
KINDS = ["flat", "hnsw", "ivfpq"]
FAMILY = "synthetic"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Libraries of hundreds have a base, and a delta of dozens; one thread builds, as others test besides."""
    faiss.omp_set_num_threads(1)
    monkeypatch.setattr(kinds, "DELTA_LEAST", 40)
    monkeypatch.setattr(kinds, "DELTA_MOST", 80)


def vectors(count: int, seed: int, dimension: int = DIMENSION) -> np.ndarray:
    """Unit vectors around some centres."""
    source = np.random.default_rng(seed)
    centres = source.standard_normal((20, dimension))
    spread = centres[source.integers(0, 20, count)] + 0.7 * source.standard_normal((count, dimension))
    return (spread / np.linalg.norm(spread, axis=1, keepdims=True)).astype(np.float32)


class Writer:
    """Adds and removes documents of ten passages, and publishes."""

    def __init__(self, path: Path, wanted: str = "auto") -> None:
        self.path, self.wanted = path, wanted
        self.known: dict[int, np.ndarray] = {}
        self.sources: dict[str, list[int]] = {}
        path.mkdir(exist_ok=True)

    def add(self, count: int, seed: int, dimension: int = DIMENSION) -> None:
        store = Store(self.path)
        with store:
            embedder = store.embedder(FAMILY, FAMILY)
            for number, rows in enumerate(
                np.array_split(vectors(count, seed, dimension), max(1, count // 10))
            ):
                source = f"{seed}/{number}"
                document = store.add(described(source, len(rows)), [passage(f"text {seed}") for _ in rows])
                ids = store.passages(document)
                store.save_vectors(embedder, ids, rows)
                self.known |= dict(zip(ids, rows, strict=True))
                self.sources[source] = ids
            store.stage(index.current(self.path) + 1)
        store.close()

    def remove(self, sources: Sequence[str]) -> None:
        store = Store(self.path)
        with store:
            for source in sources:
                assert store.remove(source, index.current(self.path) + 1)
                for identity in self.sources.pop(source):
                    del self.known[identity]
        store.close()

    def publish(self, **options: Any) -> index.Manifest:
        store = Store(self.path)
        dimension = len(next(iter(self.known.values()), np.empty(DIMENSION)))
        try:
            return publish_next(
                self.path, store, FAMILY, FAMILY, dimension, **({"wanted": self.wanted} | options)
            )
        finally:
            store.close()

    def nearest(self, query: np.ndarray, count: int) -> list[int]:
        ids = np.array(list(self.known))
        return ids[np.argsort(-(np.stack(list(self.known.values())) @ query))[:count]].tolist()


def described(source: str, chunks: int) -> Document:
    return Document(
        id=0, source=source, title="Title", media_type="text/plain", sha256="", bytes=1, mtime_ns=0,
        recipe="", ingested_at=0.0, chunks=chunks,
    )  # fmt: skip


def passage(text: str) -> Chunk:
    return Chunk(text=text, heading="", first_line=1, last_line=1, page=0)


def check(writer: Writer, least: float) -> None:
    """What is found is shown, is near, and has its true cosine."""
    queries = vectors(20, 99)
    generation = open_current(writer.path)
    assert generation is not None
    hits = 0
    for query, (ids, scores) in zip(queries, generation.search(queries, 10), strict=True):
        assert len(set(ids)) == min(10, len(writer.known))
        assert scores == sorted(scores, reverse=True)
        assert np.allclose(scores, [writer.known[identity] @ query for identity in ids], atol=2e-3)
        hits += len(set(ids) & set(writer.nearest(query, 10)))
    generation.close()
    assert hits >= least * min(10, len(writer.known)) * len(queries)


@pytest.fixture(params=KINDS)
def writer(request, tmp_path) -> Writer:
    made = Writer(tmp_path / "library", request.param)
    made.add(1_200, 1)
    assert made.publish().base.kind == request.param
    return made


def inode(writer: Writer, name: str) -> int:
    return (folder_of(writer.path, index.current(writer.path)) / name).stat().st_ino


def test_every_kind_finds_what_is_near_and_gives_true_cosines(writer):
    check(writer, 1.0 if writer.wanted == "flat" else 0.95)
    with Library.open(writer.path) as library:
        numbers = library.statistics()
    assert (numbers.index, numbers.base_passages, numbers.passages) == (writer.wanted, 1_200, 1_200)
    assert numbers.recall >= 0.95


def test_one_more_document_leaves_the_base_as_it_is(writer):
    base, before = inode(writer, "base.faiss"), open_current(writer.path)
    writer.add(10, 2)
    writer.remove(["1/3", "1/40"])
    manifest = writer.publish()
    assert inode(writer, "base.faiss") == base
    assert (manifest.base.rows, manifest.base.removed, manifest.passages) == (1_200, 20, 1_190)
    delta = (folder_of(writer.path, 2) / "index.faiss").stat().st_size
    assert delta < 10 * DIMENSION * 4 + 1_000
    check(writer, 0.95)
    assert before.manifest.passages == 1_200
    assert len(before.search(vectors(1, 5), 10)[0][0]) == 10
    before.close()


def test_a_document_that_came_after_the_base_goes_again(writer):
    writer.add(30, 2)
    writer.publish()
    writer.remove(["2/1"])
    assert writer.publish().passages == 1_220
    check(writer, 0.95)


def test_a_large_delta_joins_the_base_while_an_older_reader_reads(writer):
    older = open_current(writer.path)
    before = older.search(vectors(5, 7), 10)
    writer.remove(["1/3"])
    writer.add(130, 2)
    manifest = writer.publish()
    assert (manifest.base.rows, manifest.base.removed, manifest.base.generation) == (1_330, 10, 2)
    assert manifest.base.trained_rows == 1_200
    assert older.search(vectors(5, 7), 10) == before
    older.close()
    check(writer, 0.95)


def test_a_base_with_much_dead_weight_is_built_anew(writer):
    writer.remove([f"1/{number}" for number in range(40)])
    manifest = writer.publish()
    assert (manifest.base.rows, manifest.base.removed) == (800, 0)
    check(writer, 0.95)


def test_a_library_that_shrank_has_no_base(writer):
    writer.remove([f"1/{number}" for number in range(117)])
    assert writer.publish().base is None
    check(writer, 1.0)


@pytest.mark.parametrize("file", ["base.ids", "manifest.json"])
def test_a_publication_that_fails_leaves_no_trace(writer, monkeypatch, file):
    """It fails after the ids were written behind those that the generation in force shares."""
    writer.add(130, 2)

    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write" if file == "manifest.json" else "write_with", full)
        with pytest.raises(OSError, match="No space"):
            writer.publish()
    assert index.current(writer.path) == 1
    former = Writer(writer.path)
    former.known = {identity: row for identity, row in writer.known.items() if identity <= 1_200}
    check(former, 0.95)
    assert writer.publish().base.rows == 1_330
    check(writer, 0.95)


def test_another_kind_is_built_when_it_is_wanted(writer):
    other = KINDS[KINDS.index(writer.wanted) - 1]
    manifest = reindex(writer.path, other)
    assert (manifest.base.kind, manifest.wanted) == (other, other)
    check(writer, 0.95)
    with Library.open(writer.path) as library:
        library.remove(["1/0"])
        assert library.manifest.base.kind == other


def test_an_empty_library_has_nothing_to_index(tmp_path):
    with pytest.raises(NotFound, match="edgectl ingest"):
        reindex(tmp_path / "library", "auto")


@pytest.mark.parametrize("name", [*(f"base.{part}" for part in ("faiss", "ids", "vectors", "words")),
                                  "removed.rows", "index.faiss", "manifest.json"])  # fmt: skip
@pytest.mark.parametrize("damage", ["gone", "empty"])
def test_a_damaged_base_is_a_coded_error_that_reindexing_mends(tmp_path, name, damage):
    writer = Writer(tmp_path / "library", "ivfpq")
    writer.add(600, 1)
    writer.publish()
    damaged = folder_of(writer.path, 1) / name
    if damage == "gone":
        damaged.unlink()
    else:
        damaged.write_bytes(b"odd" if name == "removed.rows" else b"")
    with pytest.raises(StorageError, match="edgectl documents reindex"):
        Library.open(writer.path)
    reindex(writer.path, "ivfpq")
    check(writer, 0.95)


def test_files_are_copied_where_there_are_no_links(writer, monkeypatch):
    def refuse(path, target):
        raise PermissionError(1, "Operation not permitted", str(target))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    base = inode(writer, "base.faiss")
    writer.add(10, 2)
    writer.publish()
    assert inode(writer, "base.faiss") != base
    writer.add(130, 3)
    assert writer.publish().base.rows == 1_340
    check(writer, 0.95)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8)), min_size=1, max_size=4), st.sampled_from(KINDS)
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_any_history_exactly_what_is_shown_can_be_found(tmp_path_factory, history, kind):
    """Every passage finds itself, and nothing that is gone is found."""
    writer = Writer(tmp_path_factory.mktemp("history") / "library", kind)
    writer.add(600, 1000)  # at least kinds.TRAINING_LEAST are left, whatever is removed
    for number, (added, removed) in enumerate(history):
        if added:
            writer.add(added, number)
        gone = random.Random(number).sample(sorted(writer.sources), min(removed, len(writer.sources) - 1))
        writer.remove(gone)
        assert writer.publish().passages == len(writer.known)
    generation = open_current(writer.path)
    found = generation.search(np.stack(list(writer.known.values())), 5)
    generation.close()
    own = [identity in ids for identity, (ids, _) in zip(writer.known, found, strict=True)]
    assert np.mean(own) >= (1.0 if kind == "flat" else 0.98)
    assert {identity for ids, _ in found for identity in ids} <= set(writer.known)


SEARCH_UNDER_A_LIMIT = """
import json, resource, sys
from pathlib import Path
import faiss, numpy as np
from edged.documents.base import OpenBase
from edged.documents.index import folder_of, manifest_of
faiss.omp_set_num_threads(1)
def mapped(library):
    folder, manifest = folder_of(library, 1), manifest_of(library, 1)
    query = np.eye(1, manifest.dimension, dtype=np.float32)
    return OpenBase(folder, manifest.base, manifest.dimension).search(query, 50)[1][0]
def in_memory(library):
    folder, manifest = folder_of(library, 1), manifest_of(library, 1)
    index = faiss.read_index(str(folder / "base.faiss"))
    vectors = np.fromfile(folder / "base.vectors", "<f2") if manifest.base.kind == "ivfpq" else None
    return index.search(np.eye(1, manifest.dimension, dtype=np.float32), 50)[1][0]
def outcome(search, library):
    try:
        return len(search(library))
    except (MemoryError, RuntimeError) as error:
        return type(error).__name__
large, little, room = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
before = [outcome(search, little) for search in (mapped, in_memory)]  # what BLAS takes, it takes here
faiss.IndexFlatIP(1024).search(np.ones((64, 1024), np.float32), 1)
np.ones((256, 1024), np.float32) @ np.ones((1024, 256), np.float32)
used = int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + room, used + room))
print(json.dumps([before, outcome(mapped, large), outcome(in_memory, large)]))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_larger_than_the_memory_allowed_is_searched(tmp_path, kind):
    """Beside it the same files, read instead of mapped, do not fit: so the limit bites."""
    writer, little = Writer(tmp_path / "library", kind), Writer(tmp_path / "little", kind)
    for each, rows in ((writer, 6_000), (little, 300)):
        each.add(rows, 1, dimension=1_024)
        each.publish()
    room = 6 << 20
    assert sum(path.stat().st_size for path in folder_of(writer.path, 1).iterdir()) > 2 * room
    arguments = [sys.executable, "-c", SEARCH_UNDER_A_LIMIT, str(writer.path), str(little.path), str(room)]
    output = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True).stdout
    before, mapped, read = json.loads(output)
    assert (before, mapped) == ([50, 50], 50)
    assert isinstance(read, str)


def read_at_random(path: Path) -> list[bool]:
    """Of each part of a file that is mapped: whether the kernel was told that it is read at random."""
    parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    flags = [part.partition("VmFlags:")[2].split() for part in parts if str(path) in part]
    return ["rr" in each for each in flags]


def test_only_a_graph_is_read_without_reading_ahead(writer):
    """Else a search of a flat index waits for each of its pages by itself."""
    opened = open_current(writer.path)
    told = read_at_random(folder_of(writer.path, 1) / "base.faiss")
    opened.close()
    assert any(told) if writer.wanted == "hnsw" else not all(told)


def texts(count: int) -> list[str]:
    """`common` in all, `often` in every third, `number<n>` in one each."""
    return [
        f"common words stand here {'often ' * (number % 3 == 0)}and number{number} "
        f"with {'filler ' * (number % 5)}"
        for number in range(count)
    ]


@pytest.fixture
def library_of_words(tmp_path):
    store = Store(tmp_path)
    with store:
        for number, text in enumerate(texts(300)):
            store.add(described(str(number), 1), [passage(text)])
        store.stage(1)
    store.close()
    connection = connect(tmp_path, read_only=True)
    yield connection
    connection.close()


def test_scores_over_all_passages_are_those_of_sqlite(library_of_words):
    query = words.query_words("common often number7 number8 filler")
    exact = words._matching(library_of_words, 1, query, 300)
    everything = list(range(1, 301))
    scored = words._scored(library_of_words, query, {}, 300, everything)
    assert scored.keys() == exact.keys()
    assert [scored[identity] for identity in exact] == pytest.approx(list(exact.values()), rel=1e-9)


def test_words_too_common_are_judged_and_not_looked_up(library_of_words, monkeypatch):
    monkeypatch.setattr(words, "POSTINGS", 50)
    common = {"common": 300, "often": 100}
    asked: list[str] = []
    library_of_words.set_trace_callback(asked.append)
    query = "common often number9"
    found = words.by_words(library_of_words, 1, query, 10, common=common, passages=300, near=[31, 32])
    assert list(found) == [10, 31, 32]
    assert not any('"common"' in statement for statement in asked)
    alone = words.by_words(library_of_words, 1, "common often", 10, common=common, passages=300, near=[32])
    assert list(alone) == [32]


def test_passages_that_are_not_shown_do_not_crowd_out_those_that_are(library_of_words, tmp_path):
    store = Store(tmp_path)
    with store:
        for number in range(150):
            store.remove(str(number), 2)
    store.close()
    assert set(words.by_words(library_of_words, 2, "often", 5)) <= set(range(151, 301))
    assert len(words.by_words(library_of_words, 2, "often", 40)) == 40
    assert len(words.by_words(library_of_words, 1, "often", 100)) == 100
