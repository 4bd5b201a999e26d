"""Named faults at named moments: what the clients see, and that the daemon serves on."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from edged.errors import EdgedError
from edged.report import Status
from edged.stages.tensor import encode_tensors
from edged.testing.daemon import RunningDaemon

from .conftest import closing_daemon, fault, line, nobody_is_left, simulated
from .crowd import Crowd, ask, healed, tensors, turn_over

Start = Callable[..., RunningDaemon]
STREAM = "options = { decode_ms = 8, max_tokens = 50 }\n"


def ready_pids(status: Status, stage: str = "generator") -> list[int]:
    (found,) = [s for s in status.stages if s.name == stage]
    return [worker.pid for worker in found.workers if worker.state == "ready"]


def crowd_of(daemon: RunningDaemon, clients: int = 4, text: str = "hello") -> Crowd:
    return Crowd([lambda _: ask(daemon.client, text)] * clients, 0)


def busy(daemon: RunningDaemon) -> Status:
    return daemon.wait_for(lambda s: s.stages[-1].in_flight > 0, "work in flight")


def gone(killed: RunningDaemon) -> None:
    """The workers go with the daemon, and its folder can be used again."""
    nobody_is_left(killed)
    for path in killed.runtime_dir.glob("*.sock"):
        path.unlink()


def serves(daemon: RunningDaemon) -> None:
    assert ask(daemon.client, "still there?").code == ""


# ------------------------------------------------------------------------------- deaths of workers


def test_a_worker_killed_while_it_loads_is_replaced(daemon: Start) -> None:
    running = daemon(simulated("options = { load_ms = 600, max_tokens = 5 }"), wait=False)
    status = running.wait_for(lambda s: bool(s.stages[-1].workers), "a process")
    os.kill(status.stages[-1].workers[0].pid, signal.SIGKILL)
    running.wait_ready()
    assert running.stage("generator").restarts == 1
    serves(running)


def test_a_worker_killed_during_the_drain_finishes_its_answers_elsewhere(daemon: Start) -> None:
    running = daemon(simulated(STREAM))
    whole = ask(running.client, "hello").text
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, running.client, "hello") for _ in range(4)]
        status = running.wait_for(lambda s: s.stages[-1].in_flight == 4, "four answers")
        running.process.send_signal(signal.SIGTERM)
        running.wait_for(lambda s: s.state == "draining", "draining")
        os.kill(ready_pids(status)[0], signal.SIGKILL)
        assert {(o.result().code, o.result().text) for o in asked} == {("", whole)}
    assert running.process.wait(30) == 0


@pytest.mark.parametrize("who", ["old", "new", "both"])
def test_a_death_in_the_middle_of_a_restart_drops_nothing(daemon: Start, who: str) -> None:
    running = daemon(simulated("options = { decode_ms = 8, max_tokens = 50, load_ms = 400 }"))
    whole = ask(running.client, "hello").text
    with crowd_of(running) as crowd:
        (old,) = ready_pids(busy(running))
        running.admin.restart_stage("generator")
        status = running.wait_for(lambda s: len(s.stages[-1].workers) == 2, "two workers")
        pids = {w.pid for w in status.stages[-1].workers}
        for victim in {"old": {old}, "new": pids - {old}, "both": pids}[who]:
            os.kill(victim, signal.SIGKILL)
        running.wait_for(
            lambda s: (
                len(s.stages[-1].workers) == 1
                and bool(set(ready_pids(s)) - pids | set(ready_pids(s)) - {old})
            ),
            "one new worker",
        )
    healed(running)
    crowd.judge({"hello": whole})


def test_a_poisoned_batch_costs_the_innocent_nothing(daemon: Start, tmp_path: Path) -> None:
    faults = tmp_path / "faults.json"
    fault(faults, crash="abort", on_text="POISON")
    running = daemon(simulated(STREAM, line(f"fixed_ms = 20, faults = '{faults}'")))

    def send(number: int) -> str:
        if number == 3:
            poison = np.frombuffer(b"POISON--".ljust(512, b"x"), np.int64).reshape(1, 64)
            try:
                tensors(running.client, b"".join(map(bytes, encode_tensors({"input": poison}))), "line")
            except EdgedError as error:
                return error.code
            return ""
        return turn_over(running.client, number).code

    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(send, range(8)))
    assert codes == ["", "", "", "poisoned", "", "", "", ""]
    assert running.stage("first").restarts == 2


def test_a_lost_device_is_tried_again_on_a_new_process(daemon: Start, tmp_path: Path) -> None:
    faults = tmp_path / "faults.json"
    running = daemon(simulated(f"options = {{ decode_ms = 8, max_tokens = 50, faults = '{faults}' }}"))
    whole = ask(running.client, "hello").text
    begun: list[str] = []
    with Crowd([lambda _: ask(running.client, "hello", begun=begun)] * 4, 0) as crowd:
        running.wait_for(lambda _: len(begun) > 3, "answers that have begun")
        fault(faults, raise_="device_lost", once=True)
        running.wait_for(lambda s: s.stages[-1].restarts == 1, "the replacement")
        running.wait_ready()
    crowd.judge({"hello": whole})
    assert any(outcome.resumed for outcome in crowd.outcomes)


def test_nonsense_from_a_model_is_no_crash(daemon: Start, tmp_path: Path) -> None:
    faults = tmp_path / "faults.json"
    fault(faults, garbage=True)
    options = f"faults = '{faults}'"
    running = daemon(simulated(f"options = {{ {options}, max_tokens = 20 }}", line(options)))
    for number in range(5):
        assert ask(running.client, f"question {number}").code == ""
        turn_over(running.client, number)
    fault(faults, nan=True)
    floats = b"".join(map(bytes, encode_tensors({"input": np.ones((1, 8), np.float32)})))
    assert tensors(running.client, floats, "line") != floats
    assert [stage.restarts for stage in running.client.status().stages] == [0] * 6


# -------------------------------------------------------------------------------- deaths of the daemon


def test_sigkill_of_the_daemon_under_load(daemon: Start) -> None:
    """Clients are told, no process survives, and the next daemon in the same folder serves."""
    running = daemon(simulated(STREAM))
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, running.client, "hello") for _ in range(8)]
        running.wait_for(lambda s: s.outstanding == 8, "eight answers")
        running.kill()
        assert {o.result().code for o in asked} == {"connection_lost"}
    gone(running)
    with closing_daemon(RunningDaemon(running.folder, running.config_path.read_text())) as again:
        again.wait_ready()
        serves(again)


def test_sigkill_of_the_process_group_while_workers_load(daemon: Start) -> None:
    running = daemon(simulated("options = { load_ms = 60000 }"), wait=False)
    running.wait_for(lambda s: bool(s.stages[-1].workers), "a process")
    os.killpg(running.process.pid, signal.SIGKILL)
    running.process.wait()
    gone(running)


# ------------------------------------------------------------------------------------------- shortage


def test_256_descriptors_and_400_clients(daemon: Start) -> None:
    """Connections beyond the limit are refused or wait; a worker that dies meanwhile is replaced."""
    running = daemon(simulated(STREAM))
    resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (256, 256))
    with ExitStack() as stack:
        for _ in range(400):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            try:
                client.connect(str(running.client.socket))
            except BlockingIOError:
                break
        os.kill(_child(running), signal.SIGKILL)
    running.wait_for(lambda s: s.stages[-1].restarts == 1 and s.state == "ready", "recovery", 30)
    serves(running)


def _child(running: RunningDaemon) -> int:
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text().split()
    return int(children[0])


@pytest.mark.parametrize("pipe", ["full", "closed"])
def test_a_log_that_nobody_reads_stops_nobody(tmp_path: Path, pipe: str) -> None:
    """Standard error, the daemon's and the workers', is a full pipe, or one whose reader is gone."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    if pipe == "closed":
        os.close(reader)
    config = "[daemon]\nlog_level = 'debug'\n" + simulated(STREAM)
    running = RunningDaemon(tmp_path, config, stderr=writer)
    try:
        with closing_daemon(running):
            running.wait_ready()
            for _ in range(3):
                (pid,) = ready_pids(running.client.status())
                os.kill(pid, signal.SIGKILL)
                running.wait_for(lambda s, pid=pid: bool(set(ready_pids(s)) - {pid}), "the next")  # type: ignore[misc]
                serves(running)
    finally:
        os.close(writer)
        if pipe == "full":
            os.close(reader)


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="mounting needs root and unshare"
)
def test_a_full_disk_under_the_state_folder_stops_nobody(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    fill = f"mount -t tmpfs -o size=64k tmpfs {state} && head -c 1M /dev/zero > {state}/full; "
    command = ["unshare", "-m", "sh", "-c", fill + 'exec "$@"', "sh", sys.executable, "-m", "edged"]
    probe = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", state], check=False, capture_output=True
    )
    if probe.returncode:
        pytest.skip(f"this sandbox mounts nothing: {probe.stderr.decode().strip()}")
    with closing_daemon(RunningDaemon(tmp_path, simulated(STREAM), command=command)) as running:
        running.wait_ready()
        serves(running)
        running.admin.restart_stage("generator")
        running.wait_for(lambda s: len(s.stages[-1].workers) == 1, "the swap")
        serves(running)


def _memory_group() -> Path | None:
    for parent, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = parent / f"edged-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / limit).exists():
            return group / limit
        group.rmdir()
    return None


def test_a_worker_that_runs_out_of_memory_is_replaced(daemon: Start) -> None:
    limit = _memory_group()
    if limit is None:
        pytest.skip("this machine gives no writable memory cgroup")
    try:
        limit.write_text(str(1 << 20))
        running = daemon(simulated("options = { max_tokens = 20, context_tokens = 100000 }"))
        (pid,) = ready_pids(running.client.status())
        (limit.parent / "cgroup.procs").write_text(str(pid))
        assert ask(running.client, "x" * 60_000).code == ""
        assert running.stage("generator").restarts == 1
        assert "out of memory" in running.log
    finally:
        limit.parent.rmdir()


# ------------------------------------------------------------------------------------------- reloads


def test_50_reloads_under_load_fail_nobody(daemon: Start) -> None:
    running = daemon(simulated(STREAM))
    whole = ask(running.client, "hello").text
    with crowd_of(running) as crowd:
        for number in range(50):
            body = simulated(STREAM.replace("max_tokens = 50", f"max_tokens = 50, load_ms = {number}"))
            fresh = running.config_path.with_suffix(".new")
            fresh.write_text(body)
            fresh.rename(running.config_path)
            running.process.send_signal(signal.SIGHUP)
            running.client.status()
        running.wait_for(lambda s: len(s.stages[-1].workers) == 1 and s.state == "ready", "the last", 60)
    healed(running)
    crowd.judge({"hello": whole})


@pytest.mark.parametrize(
    "body", ["nonsense =", "[stages.generator]\nmax_bach = 2", "[queue]\nslots = -1", "\0"]
)
def test_a_bad_reload_under_load_changes_nothing(daemon: Start, body: str) -> None:
    running = daemon(simulated(STREAM))
    before = running.admin.configuration()
    with crowd_of(running, 2) as crowd:
        (pid,) = ready_pids(busy(running))
        running.config_path.write_text(body)
        with pytest.raises(EdgedError) as refused:
            running.admin.reload()
        assert refused.value.code == "config"
    crowd.judge({})
    assert running.admin.configuration() == before
    assert ready_pids(running.client.status()) == [pid]


def test_a_reload_to_fewer_workers_ends_the_surplus(daemon: Start) -> None:
    running = daemon(simulated("workers = 3\n" + STREAM))
    running.config_path.write_text(simulated("workers = 1\n" + STREAM))
    running.admin.reload()
    running.wait_for(lambda s: len(s.stages[-1].workers) == 1 and s.state == "ready", "one worker", 20)
    serves(running)
