"""A layer pipeline in a real daemon: its processes are killed and stopped, and answers are whole."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.backend import Variant
from edged.layers.meeting import PREFIX
from edged.layers.report import LayerReport
from edged.report import WorkerStatus
from edged.testing.daemon import RunningDaemon

from .conftest import OFF, nobody_is_left
from .crowd import Crowd, ask, healed

Start = Callable[..., RunningDaemon]
QUESTIONS = ("How does a pump work?", "What is a gateway?", "Name three colours.")
TOKENS = 12
CLIENTS = 4
PIPELINE = (
    "[daemon]\nstate_dir = '{state}'\n"
    + OFF
    + "[stages.generator]\nvariant = 'q4_1'\nbackend = 'torch_pipeline'\nmax_batch = 4\n"
    "options = {{ devices = {devices}, context_tokens = 512, threads = 1{options} }}\n"
)


def pipeline(state: Path, stages: int, options: str = "") -> str:
    more = f", {options}" if options else ""
    return PIPELINE.format(state=state, devices=["cpu"] * stages, options=more)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, variant: Callable[[str, str], Variant], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkout's models, and a temporary folder of the daemon's own, which is empty in the end."""
    models = variant("smollm2-135m-instruct", "q4_1").path.parents[2]
    folder = tmp_path.parent / f"{tmp_path.name}s"
    (folder / "t").mkdir(parents=True)
    (folder / "models").symlink_to(models, target_is_directory=True)
    monkeypatch.setenv("TMPDIR", str(folder / "t"))
    return folder


def meetings(state: Path) -> list[Path]:
    return list((state / "t").glob(PREFIX + "*"))


def worker_of(running: RunningDaemon) -> WorkerStatus:
    """The only worker, once it has told of its layers."""
    running.wait_for(lambda _: told(running) is not None, "a worker that tells of its layers")
    return running.stage("generator").workers[0]


def told(running: RunningDaemon) -> LayerReport | None:
    workers = [each for each in running.stage("generator").workers if each.state == "ready"]
    return workers[0].layers if workers else None


def pids_of(worker: WorkerStatus) -> list[int]:
    assert worker.layers is not None
    return [stage.pid for stage in worker.layers.stages]


def calm(running: RunningDaemon) -> dict[str, str]:
    return {question: ask(running.client, question, max_tokens=TOKENS).text for question in QUESTIONS}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def crowd(running: RunningDaemon) -> Crowd:
    def one(chooser):
        return ask(running.client, chooser.choice(QUESTIONS), max_tokens=TOKENS)

    return Crowd([one] * CLIENTS, seed=1)


def strike(running: RunningDaemon, victim: int, number: signal.Signals) -> list[int]:
    """Signal one process of the pipeline in everybody's mid-answer, and wait for its successor."""
    before = worker_of(running)
    pids = pids_of(before)
    running.wait_for(lambda _: running.stage("generator").in_flight == CLIENTS, "everybody in mid-answer")
    os.kill(pids[victim], number)
    running.wait_for(lambda _: worker_of(running).pid != before.pid, "another worker")
    done = running.stage("generator").done
    running.wait_for(
        lambda _: running.stage("generator").done > done + CLIENTS, "answers of the other worker"
    )
    return pids


def test_kills(daemon: Start, state: Path) -> None:
    running = daemon(pipeline(state, 3))
    reference = calm(running)
    with crowd(running) as clients:
        dead = strike(running, 1, signal.SIGKILL)
        assert "stage 1 of 3 of the layer pipeline died (killed by signal 9)" in running.log
        dead += strike(running, 0, signal.SIGKILL)
        assert len(meetings(state)) == 1
    clients.judge(reference)
    assert any(outcome.resumed for outcome in clients.outcomes)
    assert not any(map(alive, dead))
    healed(running)
    assert running.stage("generator").restarts == 2
    assert running.stop() == 0
    assert not meetings(state)


def test_stuck(daemon: Start, state: Path) -> None:
    running = daemon(pipeline(state, 2, options="timeout_s = 2"))
    reference = calm(running)
    with crowd(running) as clients:
        dead = strike(running, 1, signal.SIGSTOP)
        assert "stage 1 of 2 of the layer pipeline is stopped" in running.log
    clients.judge(reference)
    assert not any(map(alive, dead))


def test_stage_that_dies_without_work(daemon: Start, state: Path) -> None:
    running = daemon(pipeline(state, 2))
    before = worker_of(running)
    os.kill(pids_of(before)[1], signal.SIGKILL)
    running.wait_for(lambda _: worker_of(running).pid != before.pid, "another worker")
    assert "stage 1 of 2 of the layer pipeline died" in running.log
    assert ask(running.client, QUESTIONS[0], max_tokens=4).code == ""


def test_daemon_killed(state: Path, tmp_path: Path) -> None:
    running = RunningDaemon(tmp_path, pipeline(state, 2))
    running.wait_ready()
    pids = pids_of(worker_of(running))
    running.kill()
    nobody_is_left(running)
    assert not any(map(alive, pids))


def test_client_that_leaves(daemon: Start, state: Path) -> None:
    running = daemon(pipeline(state, 2))
    stream = running.client.chat(
        [{"role": "user", "content": QUESTIONS[0]}], model="generator", max_tokens=400
    )
    next(stream)
    others = [threading.Thread(target=calm, args=(running,)) for _ in range(2)]
    for other in others:
        other.start()
    stream.close()
    for other in others:
        other.join()
    healed(running)
    assert running.stage("generator").in_flight == 0
