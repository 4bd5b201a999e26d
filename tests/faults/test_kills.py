"""Random deaths under load: every accepted request ends once, well, and as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.backend import Variant
from edged.testing.daemon import RunningDaemon, running

from .conftest import line, simulated
from .crowd import Crowd, Outcome, ask, healed, turn_over, under_fire

ROOT = Path(__file__).parents[2]
WORDS = tuple(f"question {number}" for number in range(8))


def test_150_deaths_and_hangs_of_simulated_workers(daemon: Callable[..., RunningDaemon], seed: int) -> None:
    """Five clients stream from the generator, three send tensors through three stages."""
    generator = "workers = 2\ntimeout_s = 1\noptions = { decode_ms = 4, max_tokens = 60 }"
    running = daemon(simulated(generator, line("fixed_ms = 2", timeout_s=1.0)))
    reference = {question: ask(running.client, question).text for question in WORDS}
    chooser = random.Random(seed)

    def stream(own: random.Random) -> Outcome:
        return ask(running.client, own.choice(WORDS))

    def send(own: random.Random) -> Outcome:
        return turn_over(running.client, own.getrandbits(62))

    with Crowd([stream] * 5 + [send] * 3, seed) as crowd:
        done = under_fire(running, chooser, 150, (0.01, 0.05), (*[signal.SIGKILL] * 9, signal.SIGSTOP))
    healed(running)
    crowd.judge(reference)
    assert done["SIGKILL"] > 50
    assert done["SIGSTOP"] > 2
    assert sum(stage.restarts for stage in running.client.status().stages) >= done["SIGKILL"]
    assert sum(outcome.resumed > 0 for outcome in crowd.outcomes) >= 5
    assert len(crowd.outcomes) > 200, crowd.codes


QUESTIONS = (
    "How long must the reset button be held to restore the factory settings?",
    "Which TCP port does the Modbus bridge listen on?",
    "What does alarm A310 mean?",
    "How long does the CR2032 cell last?",
)
REAL = (
    ("bge-small-en-v1.5", "int8"),
    ("ms-marco-minilm-l12-v2", "int8"),
    ("smollm2-135m-instruct", "q4_1"),
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, variant: Callable[[str, str], Variant]) -> Path:
    """The sample documents, ingested into a library of our own with the checkout's models."""
    for model, name in REAL:
        variant(model, name)
    folder = tmp_path_factory.mktemp("library")
    (folder / "edged.toml").write_text(real(folder))
    subprocess.run(
        [sys.executable, "-m", "edged.cli", "--config", "edged.toml", "ingest", ROOT / "examples/documents"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


def real(library: Path, generator: str = "") -> str:
    """The built-in pipeline on the checkout's models and a library of our own."""
    run, state = library / "run", ROOT / ".edged"
    return (
        f"[daemon]\nstate_dir = '{state}'\nruntime_dir = '{run}'\n"
        f"[library]\ndir = '{library / 'documents'}'\n"
        f"[stages.generator]\nvariant = 'q4_1'\n{generator}"
    )


def kill_in_mid_answer(daemon: RunningDaemon, begun: list[str]) -> None:
    """Kill the generator once while a client has part of its answer."""
    before = len(begun)
    daemon.wait_for(lambda _: len(begun) > before, "an answer to begin")
    os.kill(daemon.stage("generator").workers[0].pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("backend", "kills", "pause_s"),
    [("openvino", 6, (0.1, 0.8)), ("llama_cpp", 6, (0.1, 0.8))],
)
def test_deaths_of_real_models_in_mid_answer(
    library: Path, tmp_path: Path, backend: str, kills: int, pause_s: tuple[float, float], seed: int
) -> None:
    """Whoever dies, every answer ends once and well; openvino's are the undisturbed ones, to the letter.

    llama_cpp claims no such identity for prompts of this length (docs/decisions/0011).
    """
    config = real(library, f"backend = '{backend}'\nmax_batch = 4\n")
    chooser = random.Random(seed)
    begun: list[str] = []
    with running(tmp_path, config) as daemon:

        def question(own: random.Random) -> Outcome:
            return ask(daemon.client, own.choice(QUESTIONS), "rag", begun=begun, max_tokens=24)

        reference = {text: ask(daemon.client, text, "rag", max_tokens=24) for text in QUESTIONS}
        assert {outcome.code for outcome in reference.values()} == {""}
        with Crowd([question] * 4, seed) as crowd:
            done = under_fire(daemon, chooser, kills, pause_s)
            kill_in_mid_answer(daemon, begun)
        healed(daemon)
        exact = backend == "openvino"
        crowd.judge({text: outcome.text for text, outcome in reference.items()} if exact else {})
        restarts = sum(stage.restarts for stage in daemon.client.status().stages)
    assert restarts > done.total()
    assert any(outcome.resumed for outcome in crowd.outcomes)
