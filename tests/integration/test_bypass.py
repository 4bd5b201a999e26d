"""Passing the reranker by, through the daemon's doors: real retriever and reranker, simulated generator."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.bypass.calibration import BINS, Evidence, worth_of
from edged.bypass.store import FILE, Key, Learnt, load, save
from edged.errors import BadRequest, NotFound, StageUnavailable
from edged.replies import Final
from edged.report import BypassStatus
from edged.testing.daemon import RunningDaemon, running
from tests.conftest import MODELS

CONFIG = """
[daemon]
state_dir = '{folder}/state'
[stages.reranker]
{reranker}
[stages.generator]
backend = 'simulated'
device = 'sim:cpu'
options = {{ context_tokens = 65536, max_tokens = 8 }}
"""
SHIPPED = worth_of("bge-small-en-v1.5", "ms-marco-minilm-l12-v2")
QUESTION = "At which level does the pump start?"
THINGS = ("pump", "lamp", "router", "filter", "valve", "fan", "door", "alarm")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, variant) -> Path:
    """A state folder whose library holds a page about each of eight things."""
    variant("bge-small-en-v1.5", "int8")
    variant("ms-marco-minilm-l12-v2", "int8")
    folder = tmp_path_factory.mktemp("library")
    with running(prepared(folder, None), CONFIG.format(folder=folder, reranker=""), wait=False) as started:
        pages(folder / "documents")
        ingest(started, folder / "documents")
    return folder / "state" / "library"


@pytest.fixture
def start(tmp_path: Path, library: Path) -> Iterator[object]:
    """Start a daemon on a copy of the library; `reranker` is the body of its table."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(reranker: str = "", folder: Path = tmp_path, *, wait: bool = True) -> RunningDaemon:
            config = CONFIG.format(folder=prepared(folder, library), reranker=reranker)
            return stack.enter_context(running(folder, config, wait=wait))

        yield start


def prepared(folder: Path, library: Path | None) -> Path:
    """Models of the checkout; everything else in a folder of the test's own."""
    state = folder / "state"
    if not state.exists():
        state.mkdir()
        (state / "models").symlink_to(MODELS, target_is_directory=True)
        if library is not None:
            shutil.copytree(library, state / "library")
    return folder


def pages(folder: Path) -> None:
    folder.mkdir()
    for number, thing in enumerate(THINGS):
        text = f"# {thing.title()}\n\nThe {thing} starts at a level of {80 + number} cm.\n"
        (folder / f"{thing}.md").write_text(text)


def edgectl(daemon: RunningDaemon, *arguments: str) -> str:
    command = [sys.executable, "-m", "edged.cli", "--config", str(daemon.config_path), *arguments]
    return subprocess.run(command, env=daemon.environment, check=True, capture_output=True, text=True).stdout


def ingest(daemon: RunningDaemon, folder: Path) -> None:
    edgectl(daemon, "ingest", str(folder))


def ask(daemon: RunningDaemon, question: str = QUESTION, **edged: object) -> Final:
    """What an answer would be written from, and the way that the request took."""
    options = {"passages_only": True, **edged}
    *_, final = daemon.client.chat([{"role": "user", "content": question}], stream=False, edged=options)
    assert isinstance(final, Final)
    return final


def answer(daemon: RunningDaemon, question: str = QUESTION) -> Final:
    *_, final = daemon.client.chat([{"role": "user", "content": question}])
    assert isinstance(final, Final)
    return final


def route(final: Final) -> list[str]:
    return [timing.stage for timing in final.timings]


def bypass(daemon: RunningDaemon) -> BypassStatus:
    found = daemon.stage("reranker").bypass
    assert found is not None
    return found


WHOLE, SHORT = ["retriever", "reranker", "generator"], ["retriever", "generator"]


def test_on_takes_all_work_from_the_reranker_and_off_gives_it_back(start) -> None:
    daemon = start()
    reranked = ask(daemon)
    assert (route(reranked), len(reranked.passages)) == (WHOLE, 4)
    done = daemon.stage("reranker").done
    status = daemon.admin.bypass_stage("reranker", "always")
    assert (status.mode, status.configured, status.passing) == ("always", "auto", "everything")
    found = ask(daemon)
    assert (route(found), found.bypassed, len(found.passages)) == (SHORT, ("reranker",), 4)
    assert "rerank" not in found.passages[0].scores
    assert len(ask(daemon, keep=2).passages) == 2
    assert len(ask(daemon, candidates=3).passages) == 3
    told = answer(daemon)
    assert (route(told), told.bypassed) == (SHORT, ("reranker",))
    assert (daemon.stage("reranker").done, bypass(daemon).bypassed) == (done, 4)
    assert daemon.client.rerank(QUESTION, ["The pump starts."])[0].index == 0
    daemon.admin.bypass_stage("reranker", "off")
    assert ask(daemon).passages == reranked.passages


def test_auto_does_as_the_rung_in_force_says(start) -> None:
    daemon = start()
    assert route(ask(daemon)) == WHOLE
    daemon.admin.pin_rung("no-rerank")
    daemon.wait_for(lambda _: bypass(daemon).passing == "everything", "the rung's bypass")
    assert route(ask(daemon)) == SHORT
    daemon.admin.pin_rung("fewer-passages")
    daemon.wait_for(lambda _: bypass(daemon).passing == "benefit", "the rung's bypass")
    daemon.admin.bypass_stage("reranker", "off")
    assert route(ask(daemon)) == WHOLE
    with pytest.raises(BadRequest, match="bypass mode of reranker is off"):
        daemon.admin.pin_rung("no-rerank")
    daemon.admin.bypass_stage("reranker", "configured")
    daemon.admin.pin_rung("no-rerank")
    daemon.admin.release_rung()


def evidence(missed: float) -> Evidence:
    """Of enough questions at every margin, all of which had missed so much."""
    return Evidence([10.0] * BINS, [10.0] * BINS, [10.0 * missed] * BINS, [10.0 * missed * missed] * BINS)


def learnt(daemon: RunningDaemon) -> Learnt:
    return load(daemon.folder / "state" / FILE)["reranker"][0]


def store(daemon: RunningDaemon, key: Key, missed: float) -> None:
    assert not save({"reranker": [Learnt(key, evidence(missed))]}, daemon.folder / "state" / FILE)


def test_what_is_learnt_outlives_the_daemon_and_goes_with_the_library(start, tmp_path: Path) -> None:
    first = start()
    for thing in THINGS:
        answer(first, f"At which level does the {thing} start?")
    ask(first)
    assert first.stop() == 0
    key, seen = learnt(first).key, learnt(first).evidence
    assert (seen.observations, key.generation) == (len(THINGS), 1)
    assert key.reranker.startswith("ms-marco-minilm-l12-v2/int8/")
    assert key.embedder.startswith("bge-small-en-v1.5/int8/")

    store(first, key, missed=0.0)
    second = start('bypass = "benefit"')
    status = bypass(second)
    assert (status.calibration, status.from_margin, status.observations) == ("own", 0.0, 10 * BINS)
    assert status.generation == 1
    assert route(ask(second)) == SHORT

    pages(tmp_path / "more")
    ingest(second, tmp_path / "more")
    answer(second)
    second.wait_for(lambda _: bypass(second).generation == 2, "what is learnt to be about the new library")
    status = bypass(second)
    assert (status.calibration, status.from_margin) == ("shipped", SHIPPED.from_margin)
    assert status.observations <= 1
    assert second.stop() == 0

    store(second, Key(generation=2, embedder="another", reranker=key.reranker), missed=0.0)
    assert bypass(start('bypass = "benefit"')).calibration == "shipped"


def test_where_reranking_pays_nothing_passes_by(start, tmp_path: Path) -> None:
    first = start()
    answer(first)
    assert first.stop() == 0
    store(first, learnt(first).key, missed=0.5)
    second = start('bypass = "benefit"')
    status = bypass(second)
    assert (status.calibration, status.from_margin) == ("own", None)
    assert route(ask(second)) == WHOLE
    assert status.observations == 10 * BINS
    (tmp_path / "state" / FILE).write_text('{"reranker": {"key": 7}}')
    assert second.stop() == 0


def test_a_damaged_file_is_left_and_said(start, tmp_path: Path) -> None:
    prepared(tmp_path, None)
    (tmp_path / "state" / FILE).write_text('{"reranker": {"key": 7}}')
    daemon = start(wait=False)
    daemon.wait_for(lambda _: daemon.stage("reranker").bypass is not None, "the stages")
    assert (bypass(daemon).calibration, bypass(daemon).observations) == ("shipped", 0)
    assert "what was learnt is lost" in daemon.log


def test_answers_without_a_reranker_that_is_down(start) -> None:
    daemon = start("variant = 'int8'\noptions = { nonsense = 1 }", wait=False)
    daemon.wait_for(lambda _: daemon.stage("reranker").state == "failed", "the reranker's end")
    daemon.wait_for(lambda _: daemon.stage("retriever").state == "ready", "the retriever")
    daemon.wait_for(lambda _: daemon.stage("generator").state == "ready", "the generator")
    with pytest.raises(StageUnavailable):
        ask(daemon)
    daemon.admin.bypass_stage("reranker", "always")
    assert (route(ask(daemon)), len(ask(daemon).passages)) == (SHORT, 4)


def test_the_configured_mode_can_change_while_it_serves(start) -> None:
    daemon = start('bypass = "always"')
    assert route(ask(daemon)) == SHORT
    worker = daemon.stage("reranker").workers[0].pid
    text = daemon.config_path.read_text()
    daemon.config_path.write_text(text.replace('"always"', '"off"'))
    assert daemon.admin.reload() == ["stage reranker: bypass always -> off"]
    daemon.wait_for(lambda _: bypass(daemon).passing == "nothing", "the new mode")
    assert route(ask(daemon)) == WHOLE
    assert daemon.stage("reranker").workers[0].pid == worker


def test_edgectl_and_metrics_tell_and_strangers_are_refused(start) -> None:
    daemon = start()
    said = edgectl(daemon, "stage", "bypass", "reranker", "on")
    assert "everybody passes it by (the mode is 'always'); configured: auto" in said
    ask(daemon)
    shown = json.loads(edgectl(daemon, "stage", "bypass", "reranker", "--json"))
    assert (shown["mode"], shown["bypassed"], shown["questions"]) == ("always", 1, 1)
    assert shown["lost_points"] > 0
    page = daemon.client.metrics()
    assert 'edged_stage_bypassed_total{stage="reranker"} 1.0' in page
    labels = 'calibration="shipped",mode="always",passing="everything",stage="reranker"'
    assert f"edged_stage_bypass_info{{{labels}}} 1.0" in page
    assert "1 of 1 rerankings saved" in edgectl(daemon, "status")
    with pytest.raises(NotFound):
        daemon.admin.bypass_stage("nobody", "off")
    with pytest.raises(BadRequest, match="only a reranker: reranker"):
        daemon.admin.bypass_stage("generator", "off")
    with pytest.raises(BadRequest):
        daemon.admin.bypass_stage("reranker", "sometimes")
