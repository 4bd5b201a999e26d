"""A library that was ingested: who may read and write it meanwhile, which embedder fits, and damage."""

import os
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from edged.config import Library as Settings
from edged.documents.index import current
from edged.documents.ingest import ingest
from edged.documents.library import Library, reindex
from edged.errors import IndexMismatch, NotFound, StorageError

from .ingestion import SETTINGS, ask, open_encoder, run


def test_an_older_reader_keeps_its_generation(library, documents, encoder):
    run(library, documents, encoder)
    opened = Library.open(library)
    vectors, _ = encoder.embed(["pump"], "query")
    generation = opened._generation
    (documents / "router.md").write_text("# Router\n\nNew text.\n")
    run(library, documents, encoder)
    ids = generation.search(vectors, 10)[0][0]
    rows = opened._connection.execute(
        f"SELECT COUNT(*) FROM passages WHERE id IN ({','.join(map(str, ids))})"
    ).fetchone()
    assert rows[0] == len(ids) == generation.manifest.passages
    assert ask(opened, encoder, "new text")[0].text == "New text."
    assert opened.manifest.generation == 2
    run(library, documents, encoder, settings=Settings(chunk_tokens=40))
    assert [path.name for path in sorted((library / "generations").iterdir())] == ["2", "3"]
    opened.close()
    (documents / "router.md").write_text("# Router\n\nThird text.\n")
    run(library, documents, encoder)
    assert [path.name for path in (library / "generations").iterdir()] == ["4"]


def test_a_query_goes_on_while_an_ingest_holds_the_library(library, documents, encoder):
    run(library, documents, encoder)
    with Library.open(library) as opened:
        seen = []
        (documents / "new.txt").write_text("A new document about valves.\n")

        def look(step):
            seen.append(len(ask(opened, encoder, "valves", 10)))

        ingest(library, [documents], encoder, SETTINGS, prune=False, progress=look)
        assert seen[0] == 3
        assert seen == sorted(seen)
        assert set(seen) <= {3, 4}
        assert "valves" in ask(opened, encoder, "valves")[0].text


def test_another_embedder_is_refused_until_re_embedding(library, documents, encoder, variant):
    run(library, documents, encoder)
    other = open_encoder(variant("bge-small-en-v1.5", "int8"))
    with pytest.raises(IndexMismatch, match="edgectl ingest --re-embed"):
        run(library, documents, other)
    with Library.open(library) as opened:
        assert len(ask(opened, encoder, "pump")) > 0
        with pytest.raises(IndexMismatch):
            ask(opened, other, "pump")
        report = run(library, [], other, re_embed=True)
        assert report.passages_embedded == opened.manifest.passages
        assert "float switch" in ask(opened, other, "when does the pump start?")[0].text
    assert run(library, documents, other).unchanged == 2


def test_another_quantisation_of_the_same_family_is_accepted(library, documents, encoder, variant):
    run(library, documents, encoder)
    precise = open_encoder(variant("all-minilm-l6-v2", "fp32"))
    assert run(library, documents, precise).passages_embedded == 0
    with Library.open(library) as opened:
        assert "float switch" in ask(opened, precise, "when does the pump start?")[0].text


def test_documents_can_be_shown_and_removed(library, documents, encoder):
    run(library, documents, encoder)
    with Library.open(library) as opened:
        assert opened.show("sub/pump.txt")[0].chunks == 1
        assert opened.remove(["pump.txt"]) == [str(documents / "sub" / "pump.txt")]
        assert opened.statistics().documents == 1
        with pytest.raises(NotFound):
            opened.show("pump.txt")
    assert [Path(source).name for source in run(library, documents, encoder).added] == ["pump.txt"]


@pytest.mark.parametrize("fault", ["pointer", "index", "manifest", "database"])
def test_a_damaged_library_is_a_coded_error(library, documents, encoder, fault):
    run(library, documents, encoder)
    number = current(library)
    damaged = {
        "pointer": library / "CURRENT",
        "index": library / "generations" / str(number) / "index.faiss",
        "manifest": library / "generations" / str(number) / "manifest.json",
        "database": library / "library.sqlite",
    }[fault]
    damaged.write_bytes(b"garbage" * 40)
    with pytest.raises(StorageError), Library.open(library) as opened:
        ask(opened, encoder, "pump")


@pytest.mark.skipif(os.geteuid() != 0, reason="acting as another user needs root")
def test_root_writes_as_the_owner_of_the_library(documents, encoder):
    (documents / "router.md").chmod(0o600)
    with TemporaryDirectory() as folder:
        os.chown(folder, 65534, 65534)
        library = Path(folder, "library")
        assert len(run(library, documents, encoder).added) == 2
        assert {path.stat().st_uid for path in (library, *library.rglob("*"))} == {65534}
    assert os.geteuid() == 0


def test_vectors_are_of_unit_length_and_padding_changes_little(encoder):
    texts = ["short", "a much longer text about pumps and switches " * 5]
    together, tokens = encoder.embed(texts)
    alone = np.concatenate([encoder.embed([text])[0] for text in texts])
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    # The int8 weights are quantised per run, so company in the batch shows in the third decimal.
    assert (together * alone).sum(axis=1).min() > 0.98
    assert tokens == sum(encoder.embed([text])[1] for text in texts)


def test_an_index_that_would_lack_passages_is_not_put_in_force(library, documents, encoder):
    run(library, documents, encoder)
    with sqlite3.connect(library / "library.sqlite") as store:
        store.execute("DELETE FROM embeddings WHERE rowid = (SELECT max(rowid) FROM embeddings)")
    with pytest.raises(StorageError, match="--re-embed"):
        reindex(library, "auto")
    with Library.open(library) as opened:
        assert opened.generation == 1
        assert ask(opened, encoder, "how do I reset to factory settings?")
