"""`edgectl ladder` through the door: a real daemon, pinned to rung after rung and put back."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from edged.cli.root import edgectl as edgectl_root
from edged.errors import BadRequest
from edged.replies import Final
from edged.rungs import storage
from edged.rungs.record import Record
from edged.testing.daemon import RunningDaemon, running
from edged.testing.heat_box import governor, hurried, lighter
from tests.conftest import MODELS

from .conftest import simulated
from .ingestion import run

Start = Callable[..., RunningDaemon]
EXAMPLES = Path(__file__).parents[2] / "examples" / "documents"
LADDER = lighter('{ generator = "light" }')
PLAIN = '\n[pipelines.plain]\nstages = ["generator"]\n'
QUESTIONS = [{"question": f"What is item {n}?", "answer": f"item {n}"} for n in range(10)]


def config(decode_ms: float = 0.2) -> str:
    stage = f"options = {{ decode_ms = {decode_ms}, max_tokens = 12 }}"
    return hurried(LADDER) + simulated(generator=stage) + PLAIN


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS))
    return path


def begin(daemon: RunningDaemon, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edged.cli", "--config", str(daemon.config_path), "ladder", *command],
        env=daemon.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def edgectl(daemon: RunningDaemon, *command: str) -> tuple[int, str, str]:
    with begin(daemon, *command) as process:
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err


def measured(daemon: RunningDaemon, *command: str) -> dict[str, Any]:
    status, out, err = edgectl(daemon, "measure", "--pipeline", "plain", "--json", *command)
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def record(daemon: RunningDaemon) -> Record:
    found = storage.load(storage.path_in(daemon.config.daemon.state_dir))
    assert found is not None
    return found


def by_name(found: dict[str, Any]) -> dict[str, Any]:
    return {rung["name"]: rung for rung in found["rungs"]}


def test_every_rung_is_measured_and_the_daemon_is_as_it_was(daemon: Start, questions: Path) -> None:
    running = daemon(config())
    rungs = by_name(measured(running, "--questions", str(questions), "--clients", "2"))
    full, short, light, shed = (
        rungs[name]["measured"] for name in ("full", "shorter-answers", "lighter-models", "shed-batch")
    )
    assert (full["cost"]["value"], full["quality"]["value"]) == (1.0, 1.0)
    assert short["quality"]["value"] < 1.0
    assert short["latency_s"] < full["latency_s"]
    assert full["cpu_s"] > 0
    assert light["variants"] == {"generator": "light"}
    assert shed["cost"] == light["cost"], "refusing changes no answer"
    assert rungs["peer"]["source"] == "estimated"
    assert "peer" in rungs["peer"]["measured"]["unavailable"]
    found = governor(running)
    assert (found.name, found.pin, found.under_way) == ("full", "", False)
    assert running.stage("generator").variant == "none"

    answered = running.client.status().completed
    again = measured(running, "--questions", str(questions), "--clients", "2")
    assert by_name(again) == rungs, "nothing is asked twice"
    assert running.client.status().completed == answered


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_puts_everything_back_and_is_gone_on_with(
    daemon: Start, questions: Path, number: signal.Signals
) -> None:
    running = daemon(config(decode_ms=20))
    command = ("measure", "--pipeline", "plain", "--questions", str(questions), "--clients", "4")
    with begin(running, *command) as process:
        running.wait_for(lambda _: governor(running).pin == "lighter-models", "the third rung")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "every answer so far is kept" in err
    running.wait_for(lambda _: not governor(running).under_way, "the end of the change")
    found = governor(running)
    assert (found.name, found.pin) == ("full", "")
    kept = record(running)
    assert any(sheet.answers for sheet in kept.sheets.values())
    assert running.client.status().outstanding == 0


def test_a_pin_of_the_operator_is_there_again(daemon: Start, questions: Path) -> None:
    running = daemon(config())
    running.admin.pin_rung("shorter-answers")
    measured(running, "--questions", str(questions), "--answers", "4", "--rungs", "lighter-models")
    found = governor(running)
    assert (found.name, found.pin) == ("shorter-answers", "shorter-answers")
    assert len(record(running).sheets) == 2, "what it is compared with, too"
    kept = record(running)
    questions.write_text(json.dumps(QUESTIONS[0]))
    command = ("measure", "--pipeline", "plain", "--questions", str(questions))
    status, _, err = edgectl(running, *command)
    assert (status, "error [bad_request]" in err, "--fresh" in err) == (1, True, True), err
    assert record(running) == kept, "nothing is discarded unasked"
    status, _, err = edgectl(running, *command, "--fresh", "--rungs", "full")
    assert status == 0, err
    assert "full: answers to 1 questions: 0 of 1 batches of questions done" in err
    assert len(record(running).questions) == 1


def test_a_governor_that_has_gone_down_is_left_alone(daemon: Start, questions: Path) -> None:
    running = daemon(config().replace("climb_after_s = 0.3", "climb_after_s = 300"))
    running.admin.pin_rung("shorter-answers")
    said = CliRunner().invoke(
        edgectl_root, ["--config", str(running.config_path), "governor", "auto"], env=running.environment
    )
    assert said.output.endswith(
        "released by the operator; a better rung in about 5m 0s if it stays calm\n"
    ), said.output
    command = ("measure", "--pipeline", "plain", "--questions", str(questions))
    status, _, err = edgectl(running, *command)
    assert (status, "error [shed]" in err) == (1, True), err
    assert "rung 'shorter-answers' was pinned and released" in err
    assert "edgectl governor pin full" in err
    assert running.client.status().accepted == 0
    running.admin.pin_rung("full")
    measured(running, "--questions", str(questions), "--answers", "2", "--rungs", "full")


def test_a_changed_stage_makes_figures_stale(daemon: Start, questions: Path) -> None:
    running = daemon(config())
    measured(running, "--questions", str(questions), "--answers", "4")
    running.config_path.write_text(config().replace("max_tokens = 12", "max_tokens = 11"))
    status, out, err = edgectl(running, "show")
    assert (status, "stale" in err) == (0, True), err
    assert "stage generator: configured otherwise" in err
    shown = json.loads(edgectl(running, "show", "--json")[1])
    assert shown["stale"]
    assert {rung["source"] for rung in shown["rungs"]} == {"estimated"}
    assert out.startswith("RUNG")
    running.admin.reload()
    running.wait_ready()
    _, _, err = edgectl(running, "measure", "--pipeline", "plain", "--questions", str(questions))
    assert "measured anew because of stage generator" in err


def test_bad_questions_are_refused_by_line_and_field(daemon: Start, tmp_path: Path) -> None:
    running = daemon(config())
    path = tmp_path / "bad.jsonl"
    cases = {
        '{"question": "q", "answer": "a"}\n{"question": "q", "anser": "a"}\n': "unknown_field.*line 2.*anser",
        '{"question": "q", "relevant": ["a.md"]}\n': "bad_request.*every question needs an answer",
        "": "bad_request.*has no questions",
    }
    for lines, says in cases.items():
        path.write_text(lines)
        status, _, err = edgectl(running, "measure", "--pipeline", "plain", "--questions", str(path))
        assert (status, bool(re.search(says, err))) == (1, True), err
    assert running.client.status().accepted == 0


def test_what_there_is_to_say_before_anything_is_measured(daemon: Start) -> None:
    running = daemon(config())
    asked = [{"role": "user", "content": "q"}]
    answer = running.client.chat(asked, model="generator", edged={"passages_only": True})
    with pytest.raises(BadRequest, match="without documents") as refused:
        list(answer)
    assert refused.value.param == "edged.passages_only"
    status, out, err = edgectl(running, "show")
    assert status == 0
    assert "edgectl ladder measure" in err
    assert "estimated" in out


REAL = """
[daemon]
state_dir = "{state}"
[library]
dir = "{library}"
[stages.retriever]
model = "all-minilm-l6-v2"
variant = "int8"
options = {{ threads = 1 }}
"""


def test_real_models_are_measured_on_real_documents(tmp_path, library, encoder, variant) -> None:
    for model, name in (("ms-marco-minilm-l12-v2", "int8"), ("smollm2-135m-instruct", "q4_1")):
        variant(model, name)
    run(library, EXAMPLES, encoder)
    state = tmp_path / "state"
    state.mkdir()
    (state / "models").symlink_to(MODELS, target_is_directory=True)
    with running(tmp_path, REAL.format(state=state, library=library) + hurried(LADDER)) as daemon:
        small = ("--count", "4", "--answers", "2", "--clients", "2", "--rungs", "fewer-passages")
        command = ("measure", "--json", "--budget", "60s", *small)
        status, out, err = edgectl(daemon, *command)
        assert status == 0, err
        found = json.loads(out)
        full, fewer, *_ = (rung["measured"] for rung in found["rungs"])
        kept = record(daemon)
        assert len(kept.questions) == 4
        assert 0.0 < fewer["ndcg"]["value"] <= full["ndcg"]["value"] <= 1.0
        assert full["agreement"]["value"] == pytest.approx(1.0, abs=0.01)
        assert all(answer.vector for sheet in kept.sheets.values() for answer in sheet.answers.values())
        assert kept.origin == "generator"
        assert msgspec.json.decode(msgspec.json.encode(kept), type=Record) == kept
        assert governor(daemon).pin == ""
        asked = [{"role": "user", "content": "What does alarm A310 mean?"}]
        for stream in (True, False):
            *_, found = daemon.client.chat(asked, stream=stream, edged={"passages_only": True, "keep": 2})
            assert isinstance(found, Final)
            assert (found.text, len(found.passages)) == ("", 2)
            assert found.passages[0].scores["blend"] > found.passages[1].scores["blend"]
        with begin(daemon, "measure", "--count", "64", "--fresh") as process:
            assert process.stderr is not None
            assert "0 of 64 made" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        assert (process.returncode, "stopped before anything was measured" in err) == (130, True), err
        assert record(daemon) == kept
