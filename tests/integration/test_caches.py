"""Caches through the daemon's doors: real retriever and reranker, and a generator that betrays its prompt.

The simulated generator's text is a function of every token of its prompt: another passage, another order
or another score that changes which passages are kept gives another answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.errors import BadRequest, NotFound
from edged.replies import Final
from edged.testing.daemon import RunningDaemon, running

STATE = Path(__file__).parents[2] / ".edged"
CONFIG = """
[daemon]
state_dir = '{state}'
[library]
dir = '{folder}/library'
[stages.generator]
backend = 'simulated'
device = 'sim:cpu'
options = {{ context_tokens = 65536, max_tokens = 24 }}
"""
QUESTION = "At which level does the pump start?"
DOCUMENTS = {
    "pump.md": "# Pump\n\nThe pump starts at a level of 80 cm and runs for 5 minutes.\n",
    "lamp.md": "# Lamp\n\nA red lamp means that the battery is empty.\n",
    "reset.md": "# Reset\n\nHold the button for ten seconds to restore factory settings.\n",
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, variant) -> Iterator[RunningDaemon]:
    variant("bge-small-en-v1.5", "int8")
    variant("ms-marco-minilm-l12-v2", "int8")
    folder = tmp_path_factory.mktemp("caches")
    with running(folder, CONFIG.format(state=STATE, folder=folder)) as started:
        (folder / "documents").mkdir()
        for name, text in DOCUMENTS.items():
            (folder / "documents" / name).write_text(text)
        edgectl(started, "ingest", str(folder / "documents"))
        yield started


@pytest.fixture(autouse=True)
def _cold(daemon: RunningDaemon) -> None:
    daemon.admin.clear_caches()


def edgectl(daemon: RunningDaemon, *arguments: str) -> str:
    command = [sys.executable, "-m", "edged.cli", "--config", str(daemon.config_path), *arguments]
    return subprocess.run(command, env=daemon.environment, check=True, capture_output=True, text=True).stdout


def ask(daemon: RunningDaemon, question: str = QUESTION, **fields: object) -> str:
    *_, final = daemon.client.chat([{"role": "user", "content": question}], stream=False, **fields)
    assert isinstance(final, Final)
    return final.text


def hits(daemon: RunningDaemon, stage: str, name: str, at_least: int) -> int:
    """The count of hits, which the worker tells within a second."""

    def told(status) -> bool:
        caches = {each.name: each.caches for each in status.stages}[stage]
        return name in caches and caches[name].hits >= at_least

    status = daemon.wait_for(told, f"{at_least} hits of {name}", 20)
    return {each.name: each.caches for each in status.stages}[stage][name].hits


def hits_now(daemon: RunningDaemon, stage: str, name: str) -> int:
    counters = daemon.stage(stage).caches.get(name)
    return counters.hits if counters else 0


def test_the_same_question_again_is_remembered_and_answered_the_same(daemon: RunningDaemon) -> None:
    before = hits_now(daemon, "retriever", "passages"), hits_now(daemon, "reranker", "scores")
    cold = ask(daemon)
    assert ask(daemon) == cold
    hits(daemon, "retriever", "passages", before[0] + 1)
    hits(daemon, "reranker", "scores", before[1] + len(DOCUMENTS))
    daemon.admin.clear_caches()
    assert ask(daemon) == cold


def test_a_changed_document_changes_the_next_answer(daemon: RunningDaemon) -> None:
    old = ask(daemon)
    assert ask(daemon) == old
    document = daemon.folder / "documents" / "pump.md"
    document.write_text(DOCUMENTS["pump.md"].replace("80 cm", "95 cm"))
    edgectl(daemon, "ingest", str(daemon.folder / "documents"))
    new = ask(daemon)
    assert new != old
    daemon.admin.clear_caches()
    assert ask(daemon) == new
    document.write_text(DOCUMENTS["pump.md"])
    edgectl(daemon, "ingest", str(daemon.folder / "documents"))
    assert ask(daemon) == old


def test_how_many_passages_are_wanted_is_part_of_the_question(daemon: RunningDaemon) -> None:
    one, all_ = ask(daemon, edged={"candidates": 1}), ask(daemon, edged={"candidates": 3})
    assert one != all_
    assert (ask(daemon, edged={"candidates": 1}), ask(daemon, edged={"candidates": 3})) == (one, all_)


def test_scores_and_vectors_do_not_depend_on_what_was_asked_before(daemon: RunningDaemon) -> None:
    texts = [*DOCUMENTS.values(), "The pump runs. " * 60]
    cold = {ranked.index: ranked.relevance_score for ranked in daemon.client.rerank(QUESTION, texts)}
    vectors = daemon.client.embed(texts)
    daemon.admin.clear_caches()
    for number, text in enumerate(texts):
        (alone,) = daemon.client.rerank(QUESTION, [text])
        assert alone.relevance_score == cold[number]
        assert daemon.client.embed([text]) == [vectors[number]]
    warm = {ranked.index: ranked.relevance_score for ranked in daemon.client.rerank(QUESTION, texts[::-1])}
    assert warm == {len(texts) - 1 - number: score for number, score in cold.items()}


def test_metrics_and_edgectl_show_and_clear_them(daemon: RunningDaemon) -> None:
    before = hits_now(daemon, "retriever", "embeddings")
    daemon.client.embed(["a text"])
    daemon.client.embed(["a text"])
    hits(daemon, "retriever", "embeddings", before + 1)
    assert 'edged_cache_hits_total{cache="embeddings",stage="retriever"}' in daemon.client.metrics()
    shown = {each["name"]: each for each in json.loads(edgectl(daemon, "cache", "show", "--json"))}
    assert shown["embeddings"]["entries"] == 1
    assert shown["embeddings"]["bytes"] <= shown["embeddings"]["limit_bytes"]
    assert "embeddings" in edgectl(daemon, "cache", "show")
    cleared = edgectl(daemon, "cache", "clear", "embeddings")
    assert cleared.startswith("retriever: embeddings: cleared (1 entries, ")
    daemon.wait_for(
        lambda status: all(
            not s.caches["embeddings"].entries for s in status.stages if "embeddings" in s.caches
        ),
        "an empty cache",
        20,
    )


def test_an_unknown_cache_is_named_with_those_that_exist(daemon: RunningDaemon) -> None:
    ask(daemon)
    hits(daemon, "retriever", "passages", 0)
    with pytest.raises(NotFound, match=r"'embedding'; there is: .*passages"):
        daemon.admin.clear_caches(["embedding"])
    with pytest.raises(BadRequest, match="name"):
        daemon.admin._call("DELETE", "/admin/v1/caches?stage=retriever")
