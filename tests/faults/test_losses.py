"""Devices that vanish under load and come back: simulated ones with real weights, beside the real CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edged.backend import Variant
from edged.errors import EdgedError
from edged.report import StageStatus
from edged.testing.daemon import RunningDaemon

from .conftest import OFF, fault
from .crowd import CLIENTS, Crowd, Outcome, ask

Start = Callable[..., RunningDaemon]
QUESTIONS = ("How does a pump work?", "What is a gateway?", "Name three colours.")
TOKENS = 24
GENERATOR = """
[daemon]
state_dir = "{state}"
[placement]
lost_first_s = 0.5
[stages.generator]
variant = "q4_0"
backend = "simulated"
device = "sim:gpu"
fallback = [{{ device = "cpu", backend = "llama_cpp", options = {{}} }}]
options = {{ runtime = "llama_cpp", decode_ms = 5, faults = "{faults}" }}
"""
RERANKER = """
[daemon]
state_dir = "{state}"
[placement]
lost_first_s = 0.5
[stages.retriever]
workers = 0
[stages.generator]
workers = 0
[stages.reranker]
backend = "simulated"
device = "sim:gpu"
fallback = [{{ device = "cpu", backend = "onnx", options = {{}} }}]
options = {{ runtime = "onnx", fixed_ms = 20, faults = "{faults}", scores_cache_mib = 0 }}
"""


def gone(path: Path, *, back: bool = False) -> None:
    """Take the device away, or give it back."""
    fault(path, gone=[] if back else ["sim:gpu"])


@pytest.fixture
def state(tmp_path: Path, variant: Callable[[str, str], Variant]) -> Path:
    """A state folder with the checkout's models."""
    models = variant("smollm2-135m-instruct", "q4_0").path.parents[2]
    variant("ms-marco-minilm-l12-v2", "int8")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "models").symlink_to(models, target_is_directory=True)
    return tmp_path / "state"


def on(running: RunningDaemon, stage: str, device: str) -> StageStatus:
    """Wait until a stage's new work goes to a device, and nobody is left on another."""

    def there(_: object) -> bool:
        found = running.stage(stage)
        settled = len(found.workers) == 1 and found.workers[0].state == "ready"
        return found.state == "ready" and found.device == device and settled

    running.wait_for(there, f"{stage} on {device}")
    return running.stage(stage)


def test_answers_go_on_on_the_cpu_and_the_stage_returns(daemon: Start, state: Path, tmp_path: Path) -> None:
    faults = tmp_path / "faults.json"
    running = daemon(OFF + GENERATOR.format(state=state, faults=faults))
    calm = [ask(running.client, question, max_tokens=TOKENS) for question in QUESTIONS]
    reference = {outcome.question: outcome.text for outcome in calm}

    begun: list[str] = []

    def one(chooser):
        return ask(running.client, chooser.choice(QUESTIONS), begun=begun, max_tokens=TOKENS)

    with Crowd([one] * CLIENTS, seed=1) as crowd:
        running.wait_for(lambda _: running.stage("generator").in_flight == CLIENTS, "work for everybody")
        known = len(begun)
        running.wait_for(lambda _: len(begun) > known, "an answer that has just begun")
        gone(faults)
        moved = on(running, "generator", "cpu")
        assert moved.backend == "llama_cpp"
        assert moved.reason.startswith("device cpu (sim:gpu lost ")
        assert "as its fault file asks; tried again in " in moved.reason
        before = moved.done
        running.wait_for(lambda _: running.stage("generator").done > before + CLIENTS, "answers from the CPU")
        gone(faults, back=True)
        returned = on(running, "generator", "sim:gpu")
        running.wait_for(lambda _: running.stage("generator").done > returned.done + CLIENTS, "more answers")
    crowd.judge(reference)
    assert any(outcome.resumed for outcome in crowd.outcomes)
    after = running.stage("generator")
    assert (after.device_losses, after.device_returns, after.lost_devices, after.reason) == (1, 1, (), "")
    assert after.fallback_s > 0
    assert running.client.status().rejected == {}


def test_rerankings_in_progress_are_done_on_the_cpu(daemon: Start, state: Path, tmp_path: Path) -> None:
    faults = tmp_path / "faults.json"
    running = daemon(RERANKER.format(state=state, faults=faults))
    reference = scores(running)

    def one(_chooser) -> Outcome:
        try:
            return Outcome("", terminals=1, code="" if scores(running) == reference else "other scores")
        except EdgedError as error:
            return Outcome("", terminals=1, code=error.code)

    with Crowd([one] * CLIENTS, seed=1) as crowd:
        running.wait_for(lambda _: running.stage("reranker").in_flight > 1, "a batch in progress")
        gone(faults)
        moved = on(running, "reranker", "cpu")
        running.wait_for(
            lambda _: running.stage("reranker").done > moved.done + CLIENTS, "scores from the CPU"
        )
        gone(faults, back=True)
        back = on(running, "reranker", "sim:gpu")
        running.wait_for(lambda _: running.stage("reranker").done > back.done + CLIENTS, "more scores")
    crowd.judge({})
    assert (back.device_losses, back.device_returns, back.lost_devices) == (1, 1, ())
    assert running.client.status().rejected == {}


def scores(running: RunningDaemon) -> list[float]:
    """What the reranker makes of a question and three documents."""
    found = running.client.rerank(QUESTIONS[0], ["A pump moves water.", "A gateway routes.", "Red, green."])
    return [ranked.relevance_score for ranked in sorted(found, key=lambda ranked: ranked.index)]
