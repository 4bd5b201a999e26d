"""Starts that fail, and workers that end oddly: a sentence each time, and nothing stays behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.testing.daemon import RunningDaemon

from .conftest import simulated

Start = Callable[..., RunningDaemon]
GENERATOR = "options = { decode_ms = 10, max_tokens = 60 }"
OFF = simulated(generator="workers = 0")


def start(folder: Path, config: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "edged.toml").write_text(config)
    places = {"EDGED_DAEMON__RUNTIME_DIR": str(folder / "run"), "EDGED_DAEMON__STATE_DIR": str(folder / "s")}
    return subprocess.run(
        [sys.executable, "-m", "edged", "--config", str(folder / "edged.toml")],
        env=os.environ | places | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def pid_of(daemon: RunningDaemon) -> int:
    return daemon.stage("generator").workers[0].pid


def replaced(daemon: RunningDaemon, old: int) -> None:
    def other(status: object) -> bool:
        return status.state == "ready" and pid_of(daemon) != old  # type: ignore[attr-defined]

    daemon.wait_for(other, "a replacement", 30)


def test_a_start_without_memory_for_the_queue_leaves_no_socket(tmp_path: Path) -> None:
    off = 'kind = "generator"\nbackend = "simulated"\nworkers = 0\n'
    many = "".join(f"[stages.spare{number}]\n{off}" for number in range(200))
    ended = start(tmp_path, "[queue]\nslots = 65536\n" + OFF + many)
    assert ended.returncode == 78
    assert "204 arenas of 16384 MiB" in ended.stderr
    assert "queue.slots" in ended.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


def test_a_start_that_can_bind_only_one_socket_leaves_none(tmp_path: Path) -> None:
    ended = start(tmp_path, f"[api]\nadmin_socket = '{tmp_path}/absent/admin.sock'\n" + OFF)
    assert ended.returncode == 78
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


def test_sigterm_during_the_start_is_an_orderly_stop(tmp_path: Path) -> None:
    daemon = RunningDaemon(tmp_path, simulated(generator=GENERATOR))
    deadline = time.monotonic() + 60
    while not (daemon.runtime_dir / "edged.sock").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert daemon.stop() == 0
    assert daemon.leftovers() == []


@pytest.mark.parametrize("folder", ["/proc/nowhere/run", "/dev/null"])
def test_a_runtime_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path, folder: str) -> None:
    ended = start(tmp_path, OFF, EDGED_DAEMON__RUNTIME_DIR=folder)
    assert ended.returncode == 78
    assert "daemon.runtime_dir" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_runtime_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    ended = start(tmp_path, OFF)
    assert ended.returncode == 78
    assert "can be written by others" in ended.stderr
    assert list((tmp_path / "run").iterdir()) == []


def test_a_path_too_long_for_the_workers_socket_is_a_sentence(tmp_path: Path) -> None:
    runtime_dir = tmp_path / ("x" * (107 - len(f"{tmp_path}//edged.sock")))
    ended = start(tmp_path, OFF, EDGED_DAEMON__RUNTIME_DIR=str(runtime_dir))
    assert ended.returncode == 78
    assert "daemon.runtime_dir" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert [path.name for path in runtime_dir.iterdir()] == ["lock"]


def test_a_worker_ended_by_a_signal_without_a_name_is_replaced(daemon: Start) -> None:
    running = daemon(simulated(generator=GENERATOR))
    old = pid_of(running)
    os.kill(old, signal.SIGRTMIN + 6)
    replaced(running, old)
    assert f"killed by signal {signal.SIGRTMIN + 6}" in running.log


def test_a_worker_that_dies_while_no_descriptor_is_left_is_replaced(daemon: Start) -> None:
    running = daemon(simulated(generator=GENERATOR))
    old, daemon_pid = pid_of(running), running.process.pid
    limits = resource.prlimit(daemon_pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon_pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    os.kill(old, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while "worker not started" not in running.log and time.monotonic() < deadline:
        time.sleep(0.02)
    resource.prlimit(daemon_pid, resource.RLIMIT_NOFILE, limits)
    replaced(running, old)


def test_workers_import_nothing_from_the_folder_that_the_daemon_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m` would: a file `msgspec.py` beside somebody's documents must not be run."""
    (tmp_path / "msgspec.py").write_text("raise SystemExit('taken from the working folder')")
    monkeypatch.chdir(tmp_path)
    as_script = (sys.executable, "-P", "-m", "edged")  # the installed command has no working folder either
    running = RunningDaemon(tmp_path, simulated(generator=GENERATOR), command=as_script)
    try:
        running.wait_ready(30)
    finally:
        assert running.stop() == 0
