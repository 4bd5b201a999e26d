"""Commands that work without a daemon, on a library and a store of models of their own."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edged.catalogue import Catalogue
from edged.cli import ingest as ingesting
from edged.cli.root import edgectl
from edged.config import BUILT_IN

MODELS = Path(__file__).parents[3] / ".edged" / "models"
EMBEDDER = BUILT_IN["stages"]["retriever"]["model"]

MANUAL = (
    "# Manual\n\n## Reset\n\nHold the button for ten seconds.\n\n## Lease\n\nA lease lasts twelve hours.\n"
)


@pytest.fixture
def papers(tmp_path: Path) -> Path:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "manual.md").write_text(MANUAL)
    (folder / "notes.txt").write_text("Version 2 adds a watchdog.\n")
    (folder / "image.bin").write_bytes(b"\0\1")
    return folder


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder that shares the weights of the checkout."""
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "models").symlink_to(MODELS)
    return folder


@pytest.fixture
def call(state: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setattr(ingesting.os, "nice", lambda _: 0)  # of the process that tests

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(edgectl, ["--set", f"daemon.state_dir={state}", *arguments])

    return run


def test_documents_come_in_are_seen_and_go(call, papers):
    result = call("ingest", str(papers))
    assert result.exit_code == 0, result.stderr
    assert "2 added, 0 updated, 0 unchanged, 0 removed, 1 skipped, 0 failed" in result.stdout
    assert "image.bin" in result.stderr
    listed = json.loads(call("documents", "list", "--json").stdout)
    assert [Path(each["source"]).name for each in listed] == ["manual.md", "notes.txt"]
    shown = call("documents", "show", "manual.md").stdout
    assert "lines 5-5  Reset\nHold the button for ten seconds." in shown
    assert json.loads(call("documents", "stats", "--json").stdout)["documents"] == 2
    assert call("documents", "remove", "notes.txt").stdout == f"{papers / 'notes.txt'}: removed\n"
    assert json.loads(call("documents", "stats", "--json").stdout)["documents"] == 1


def test_a_second_ingest_has_nothing_to_do_and_prunes_what_is_gone(call, papers):
    call("ingest", str(papers))
    (papers / "notes.txt").unlink()
    report = json.loads(call("ingest", str(papers), "--prune", "--json").stdout)
    assert (report["unchanged"], report["passages_embedded"]) == (1, 0)
    assert [Path(source).name for source in report["removed"]] == ["notes.txt"]


def test_a_file_is_one_document_however_it_is_spelt(call, papers, monkeypatch):
    (papers.parent / "link").symlink_to(papers)
    monkeypatch.chdir(papers)
    for spelling in (".", "../papers", "../link/manual.md", str(papers)):
        report = json.loads(call("ingest", spelling, "--json").stdout)
    assert (report["documents"], report["unchanged"]) == (2, 2)
    shown = json.loads(call("documents", "show", "../link/../papers/manual.md", "--json").stdout)
    assert shown["document"]["source"] == str(papers / "manual.md")
    removed = call("documents", "remove", "../link/notes.txt", "./notes.txt")
    assert removed.stdout == f"{papers / 'notes.txt'}: removed\n"


def test_names_of_files_do_not_reach_the_terminal_as_commands(call, papers):
    (papers / "a\x1b[31m\nb.md").write_text(MANUAL)
    (papers / "c\x1b[31m.bin").write_bytes(b"\0")
    assert "c\\x1b[31m.bin" in call("ingest", str(papers)).stderr
    listed = call("documents", "list").stdout
    assert "a\\x1b[31m\\x0ab.md" in listed
    assert "\x1b" not in listed


def test_a_document_without_lines_shows_none(call, papers):
    (papers / "page.html").write_text("<h1>Reset</h1><p>Hold the button.</p>")
    call("ingest", str(papers))
    shown = call("documents", "show", "page.html").stdout
    assert shown.endswith("Reset\n\nHold the button.\n")
    assert "lines 0" not in shown


def test_another_embedder_is_refused_until_the_library_is_embedded_again(call, papers):
    other = ["--set", "stages.retriever.model=all-minilm-l6-v2", "ingest", str(papers)]
    first = json.loads(call("ingest", str(papers), "--json").stdout)
    refused = call(*other)
    assert (refused.exit_code, refused.stderr.partition(":")[0]) == (1, "error [index_mismatch]")
    assert "--re-embed" in refused.stderr
    again = json.loads(call(*other, "--re-embed", "--json").stdout)
    assert again["passages_embedded"] == first["passages_embedded"] > 0
    assert "all-minilm" in call("documents", "stats").stdout
    back = json.loads(call("ingest", "--re-embed", "--json").stdout)
    assert back["passages_embedded"] == first["passages_embedded"]
    assert "bge-small" in call("documents", "stats").stdout


def lose_generation(state: Path) -> Path:
    """Remove the files of the generation in force, as a backup without them does."""
    library = state / "library"
    assert (library / "CURRENT").read_text() == "1"
    shutil.rmtree(library / "generations")
    return library


@pytest.mark.parametrize("mended_by", ["reindex", "ingest"])
def test_a_generation_that_is_missing_is_named_and_built_again(call, papers, state, mended_by):
    assert call("ingest", str(papers)).exit_code == 0
    library = lose_generation(state)
    refused = call("documents", "list")
    assert (refused.exit_code, refused.stderr.partition(":")[0]) == (1, "error [storage]")
    for part in ("generation 1", str(library / "generations"), "edgectl documents reindex"):
        assert part in refused.stderr.replace("\n", " ")
    mend = ("documents", "reindex") if mended_by == "reindex" else ("ingest", str(papers))
    mended = call(*mend)
    assert mended.exit_code == 0, mended.stderr
    assert [Path(each["source"]).name for each in json.loads(call("documents", "list", "--json").stdout)] == [
        "manual.md",
        "notes.txt",
    ]
    numbers = json.loads(call("documents", "stats", "--json").stdout)
    assert (numbers["generation"], numbers["passages"]) == (2, 3)
    again = json.loads(call("ingest", str(papers), "--json").stdout)
    assert (again["unchanged"], again["passages_embedded"]) == (2, 0)


def test_a_missing_generation_whose_vectors_are_gone_too_says_what_embeds_them(call, papers, state):
    assert call("ingest", str(papers)).exit_code == 0
    library = lose_generation(state)
    with closing(sqlite3.connect(library / "library.sqlite")) as store, store:
        store.execute("DELETE FROM embeddings WHERE rowid = (SELECT max(rowid) FROM embeddings)")
    refused = call("documents", "reindex")
    assert (refused.exit_code, refused.stderr.partition(":")[0]) == (1, "error [storage]")
    assert "generation 1" in refused.stderr
    assert "edgectl ingest --re-embed" in refused.stderr
    again = json.loads(call("ingest", "--re-embed", "--json").stdout)
    assert (again["passages_embedded"], again["generation"]) == (1, 2)
    assert "Hold the button" in call("documents", "show", "manual.md").stdout


def test_ingest_wants_to_know_what(call):
    refused = call("ingest")
    assert (refused.exit_code, "name the files or folders" in refused.stderr) == (2, True)


def test_a_document_that_is_not_there(call):
    result = call("documents", "show", "nothing.md")
    assert result.exit_code == 1
    assert result.stderr.startswith("error [not_found]: ")
    assert call("ingest", "/nowhere/at/all").exit_code == 2


def test_an_empty_library_is_no_error(call):
    assert json.loads(call("documents", "list", "--json").stdout) == []
    assert call("documents", "stats").exit_code == 0


def test_without_weights_ingest_says_what_to_run(tmp_path: Path, papers: Path, monkeypatch):
    monkeypatch.setattr(ingesting.os, "nice", lambda _: 0)
    arguments = ["--set", f"daemon.state_dir={tmp_path / 'bare'}", "ingest", str(papers)]
    result = CliRunner().invoke(edgectl, arguments)
    assert result.exit_code == 1
    assert f"edgectl models pull {EMBEDDER}" in result.stderr


def test_ctrl_c_stops_an_ingest_and_a_rerun_continues(state: Path, papers: Path):
    for number in range(6):
        text = "\n\n".join(f"## Part {number}.{part}\n\nThe gateway counts to {part}." for part in range(20))
        (papers / f"part{number}.md").write_text(text)
    signalled = (  # one batch is committed: now the user presses Ctrl-C
        "import os, signal, edged.documents.ingest as ingest\n"
        "save, calls = ingest.Store.save_vectors, []\n"
        "def counted(*given, **named):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return save(*given, **named)\n"
        "ingest.Store.save_vectors = counted\n"
    )
    setting = ["--set", f"daemon.state_dir={state}", "ingest", str(papers)]
    code = signalled + "from edged.cli import main; main()"
    stopped = subprocess.run(
        [sys.executable, "-c", code, *setting], capture_output=True, text=True, check=False, timeout=120
    )
    assert stopped.returncode == 128 + signal.SIGINT
    assert ingesting.STOPPED in stopped.stderr
    assert "Traceback" not in stopped.stderr
    plain = [sys.executable, "-c", "from edged.cli import main; main()", *setting, "--json"]
    again = json.loads(subprocess.run(plain, capture_output=True, text=True, check=True, timeout=120).stdout)
    assert again["documents"] == 8
    assert 0 < again["passages_embedded"] < again["passages"]


def test_models_are_listed_with_what_is_here(call):
    rows = json.loads(call("models", "list", "--json").stdout)
    here = json.loads(call("models", "list", "--here", "--json").stdout)
    assert {row["model"] for row in rows} == set(Catalogue.discover().models)
    assert here == [row for row in rows if row["present"]]
    assert "int8*" in call("models", "list").stdout


def test_pulling_without_a_name_gets_what_the_stages_need(call):
    """All of it is here already, so nothing is fetched."""
    pulled = json.loads(call("models", "pull", "--json").stdout)
    assert [each["model"] for each in pulled] == [stage["model"] for stage in BUILT_IN["stages"].values()]


def test_a_pull_prints_where_the_weights_are(call, state):
    pulled = call("models", "pull", EMBEDDER).stdout
    assert pulled.startswith(f"{EMBEDDER} ")
    assert Path(pulled.split(": ")[1].strip()).is_file()


def test_verifying_hashes_again(call):
    assert call("models", "verify", EMBEDDER).stdout.startswith(f"{EMBEDDER} ")


@pytest.mark.parametrize("command", ["pull", "verify", "remove"])
def test_an_unknown_model_names_the_nearest(call, command):
    result = call("models", command, "bge-smal-en-v1.5")
    assert result.exit_code == 1
    assert EMBEDDER in result.stderr


def test_removing_deletes_one_variant(tmp_path: Path):
    """In a store of its own."""
    folder = tmp_path / "models" / EMBEDDER / "int8"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"weights")
    arguments = ["--set", f"daemon.state_dir={tmp_path}", "models", "remove", EMBEDDER, "int8"]
    assert CliRunner().invoke(edgectl, arguments).stdout == f"{EMBEDDER} int8: removed\n"
    assert not folder.exists()
