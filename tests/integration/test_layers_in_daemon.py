"""A layer pipeline as the generator: what the daemon tells of it, and swaps to and from it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.backend import Variant
from edged.layers.report import LayerReport
from edged.testing.daemon import RunningDaemon

from .test_daemon import Streaming, ask

LAYERS = 30
CONFIG = """
[daemon]
state_dir = '{state}'
[stages.retriever]
workers = 0
[stages.reranker]
workers = 0
[stages.generator]
variant = 'q4_1'
backend = 'torch_pipeline'
max_batch = 4
options = {{ devices = ['cpu', 'cpu'], context_tokens = 512, max_tokens = 24 }}
"""


@pytest.fixture
def running(
    daemon: Callable[..., RunningDaemon], tmp_path: Path, variant: Callable[[str, str], Variant]
) -> RunningDaemon:
    models = variant("smollm2-135m-instruct", "q4_1").path.parents[2]
    state = tmp_path / "state"
    state.mkdir()
    (state / "models").symlink_to(models, target_is_directory=True)
    return daemon(CONFIG.format(state=state))


def report_of(running: RunningDaemon, tokens: int) -> LayerReport:
    """What the worker tells, once it knows of so many tokens."""

    def known(_: object) -> bool:
        found = running.stage("generator").workers[0].layers
        return found is not None and found.tokens >= tokens

    running.wait_for(known, f"{tokens} tokens in the report")
    found = running.stage("generator").workers[0].layers
    assert found is not None
    return found


def edgectl_status(running: RunningDaemon, *arguments: str) -> str:
    command = [
        sys.executable,
        "-m",
        "edged.cli",
        "--socket",
        str(running.client.socket),
        "status",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_it_tells_of_its_stages(running: RunningDaemon) -> None:
    answer = ask(running.client)
    report = report_of(running, tokens=answer.usage.completion_tokens)
    first, second = report.stages
    assert (first.first, first.end, second.end) == (0, second.first, LAYERS)
    worker = running.stage("generator").workers[0]
    assert first.pid == worker.pid != second.pid
    assert worker.memory_bytes > first.weight_bytes + second.weight_bytes
    assert first.jobs == second.jobs > 0
    assert min(first.busy_s, second.busy_s, second.wait_receive_s, second.received_bytes) > 0
    assert report.span_s >= max(first.busy_s, second.busy_s)
    assert report.working_micro_batches == pytest.approx(1, abs=0.1)  # one client
    assert report.bubble_formula == pytest.approx(0.5, abs=0.05)
    assert report.bubble_unequal <= report.bubble + 0.05

    said = edgectl_status(running)
    assert "2 layer stages over zeromq, ring, room for 2 micro-batches, 1.0 with work on average" in said
    assert f"layer stage 1: layers {second.first}-29 on cpu (pid {second.pid})" in said
    assert "measured, 50% by the formula for equal stages" in said
    (told,) = [s for s in json.loads(edgectl_status(running, "--json"))["stages"] if s["name"] == "generator"]
    assert told["workers"][0]["layers"]["stages"][1]["pid"] == second.pid

    page = running.client.metrics()
    assert 'edged_layer_jobs_total{layer_stage="1",stage="generator"}' in page
    assert 'edged_layer_bubble{stage="generator"}' in page
    assert {
        line.partition("{")[0] for line in page.splitlines() if line.startswith("edged_layer_")
    } == documented()


def documented() -> set[str]:
    """Names of the metrics of layer pipelines in the documentation."""
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    return {line.split("`")[1] for line in text.splitlines() if line.startswith("| `edged_layer_")}


def test_it_gives_way_to_another_backend_and_comes_back_under_load(running: RunningDaemon) -> None:
    for backend in ("llama_cpp", ""):
        streams = [Streaming(running.client) for _ in range(4)]
        assert all(stream.begun.wait(60) for stream in streams)
        if backend:
            running.admin.swap_stage("generator", backend=backend)
        else:
            running.admin.revert_stage("generator")
        running.wait_for(lambda _: not running.admin.swap_report().under_way, "the end of the change")
        assert running.admin.swap_report().problem == ""
        assert all(stream.result().text for stream in streams)
        assert running.stage("generator").backend == (backend or "torch_pipeline")
        assert ask(running.client).text
