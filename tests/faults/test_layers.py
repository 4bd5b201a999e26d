"""A layer pipeline in a real daemon: its processes are killed and stopped, and answers are whole."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.backend import Variant
from edged.layers.links.meeting import PREFIX
from edged.layers.report import LayerReport
from edged.report import WorkerStatus
from edged.testing.daemon import RunningDaemon

from .conftest import OFF, nobody_is_left
from .crowd import Crowd, Outcome, ask, healed

pytestmark = pytest.mark.slow

Start = Callable[..., RunningDaemon]
QUESTIONS = ("How does a pump work?", "What is a gateway?", "Name three colours.")
TOKENS = 24
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


def gone(pids: list[int]) -> None:
    """Wait for the end of processes that are killed: giving back gigabytes takes a moment."""
    deadline = time.monotonic() + 10.0
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def crowd(running: RunningDaemon, begun: list[str]) -> Crowd:
    def one(chooser):
        return ask(running.client, chooser.choice(QUESTIONS), begun=begun, max_tokens=TOKENS)

    return Crowd([one] * CLIENTS, seed=1)


def strike(running: RunningDaemon, begun: list[str], victim: int, number: signal.Signals) -> list[int]:
    """Signal one process of the pipeline when an answer has just begun, and wait for its successor."""
    before = worker_of(running)
    pids = pids_of(before)
    running.wait_for(lambda _: running.stage("generator").in_flight == CLIENTS, "everybody")
    known = len(begun)
    running.wait_for(lambda _: len(begun) > known, "the beginning of an answer")
    os.kill(pids[victim], number)
    running.wait_for(lambda _: worker_of(running).pid != before.pid, "another worker")
    done = running.stage("generator").done
    running.wait_for(lambda _: running.stage("generator").done > done, "an answer of the other worker")
    return pids


def test_a_stage_is_killed(daemon: Start, state: Path) -> None:
    running = daemon(pipeline(state, 3))
    reference = calm(running)
    begun: list[str] = []
    with crowd(running, begun) as clients:
        dead = strike(running, begun, 1, signal.SIGKILL)
        assert "stage 1 of 3 of the layer pipeline died (killed by signal 9)" in running.log
        gone(dead)
    clients.judge(reference)
    assert any(outcome.resumed for outcome in clients.outcomes)
    healed(running)
    begun.clear()
    last: list[Outcome] = []
    stream = threading.Thread(
        target=lambda: last.append(ask(running.client, QUESTIONS[0], begun=begun, max_tokens=TOKENS))
    )
    stream.start()
    running.wait_for(lambda _: bool(begun), "the middle of an answer")
    assert running.stop() == 0  # drained
    stream.join()
    assert [(outcome.code, outcome.text) for outcome in last] == [("", reference[QUESTIONS[0]])]
    assert not meetings(state)


def test_the_worker_is_killed_and_a_stage_stopped_and_one_dies_without_work(
    daemon: Start, state: Path
) -> None:
    running = daemon(pipeline(state, 2, options="timeout_s = 4"))
    reference = calm(running)
    begun: list[str] = []
    with crowd(running, begun) as clients:
        dead = strike(running, begun, 0, signal.SIGKILL)
        assert len(meetings(state)) == 1  # the new one's
        dead += strike(running, begun, 1, signal.SIGSTOP)
        assert "stage 1 of 2 of the layer pipeline is stopped" in running.log
    clients.judge(reference)
    healed(running)
    before = worker_of(running)
    os.kill(pids_of(before)[1], signal.SIGKILL)
    running.wait_for(lambda _: worker_of(running).pid != before.pid, "another worker")
    assert "stage 1 of 2 of the layer pipeline died (killed by signal 9)" in running.log
    assert ask(running.client, QUESTIONS[0], max_tokens=TOKENS).text == reference[QUESTIONS[0]]
    gone([*dead, *pids_of(before)])
    assert running.stage("generator").restarts == 3


def test_a_client_leaves_and_the_daemon_is_killed(state: Path, tmp_path: Path) -> None:
    running = RunningDaemon(tmp_path, pipeline(state, 2))
    try:
        running.wait_ready()
        reference = calm(running)
        stream = running.client.chat(
            [{"role": "user", "content": QUESTIONS[0]}], model="generator", max_tokens=400
        )
        next(stream)
        stream.close()
        assert calm(running) == reference
        healed(running)
        pids = pids_of(worker_of(running))
    finally:
        running.kill()
    nobody_is_left(running)
    gone(pids)
