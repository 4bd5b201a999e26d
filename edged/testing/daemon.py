"""A real daemon in a process of its own, and an audit of what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from edged.client import AdminClient, Client
from edged.config import Config, load
from edged.errors import EdgedError
from edged.report import StageStatus, Status, WorkerStatus

POLL_S = 0.02


class RunningDaemon:
    """A started daemon; stop it with `stop`, or let the context manager `running` do it."""

    def __init__(
        self,
        folder: Path,
        config: str,
        environment: Mapping[str, str] | None = None,
        *,
        command: Sequence[str] = (sys.executable, "-m", "edged"),
        stderr: int | None = None,
    ) -> None:
        self.folder = folder
        self.runtime_dir = folder / "run"
        self.log_path = folder / "daemon.log"
        self.config_path = folder / "edged.toml"
        self.config_path.write_text(config)
        self.environment = dict(os.environ if environment is None else environment) | {
            "EDGED_DAEMON__RUNTIME_DIR": str(self.runtime_dir),
        }
        if "state_dir" not in config:
            self.environment["EDGED_DAEMON__STATE_DIR"] = str(folder / "state")
        self.client = Client(self.runtime_dir / "edged.sock")
        self.admin = AdminClient(self.runtime_dir / "admin.sock")
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--config", str(self.config_path)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log if stderr is None else stderr,
                start_new_session=True,
            )

    @property
    def config(self) -> Config:
        """The configuration that it runs with."""
        return load(self.config_path, self.environment)

    @property
    def log(self) -> str:
        """What the daemon and its workers wrote so far."""
        return self.log_path.read_text(errors="replace")

    def wait_for(self, condition: Callable[[Status], bool], what: str, timeout_s: float = 120.0) -> Status:
        """Ask for the status until it meets a condition; `TimeoutError` with the log when it does not."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise TimeoutError(f"the daemon exited with {self.process.returncode}:\n{self.log[-4000:]}")
            with contextlib.suppress(EdgedError):
                status = self.client.status()
                if condition(status):
                    return status
            time.sleep(POLL_S)
        raise TimeoutError(f"waited {timeout_s:g} s for: {what}\n{self.log[-4000:]}")

    def wait_ready(self, timeout_s: float = 120.0) -> Status:
        """Wait until every stage has its workers; `AssertionError` when one gave up."""

        def ready(status: Status) -> bool:
            failed = [f"{stage.name}: {stage.reason}" for stage in status.stages if stage.state == "failed"]
            assert not failed, failed
            return status.state == "ready"

        return self.wait_for(ready, "ready", timeout_s)

    def stage(self, name: str) -> StageStatus:
        """The status of one stage."""
        return next(stage for stage in self.client.status().stages if stage.name == name)

    def workers(self) -> list[WorkerStatus]:
        """All worker processes."""
        return [worker for stage in self.client.status().stages for worker in stage.workers]

    def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM, wait, and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL the daemon; its workers follow by themselves."""
        self.process.kill()
        self.process.wait()

    def leftovers(self, patience_s: float = 5.0) -> list[str]:
        """What outlived the daemon: processes, sockets, shared memory. Empty is right."""
        deadline = time.monotonic() + patience_s
        while (found := self._leftovers()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return found

    def _leftovers(self) -> list[str]:
        marker = f"EDGED_DAEMON__RUNTIME_DIR={self.runtime_dir}".encode()
        processes = [f"process {pid}" for pid in _processes_with(marker)]
        sockets = [f"socket {path}" for path in self.runtime_dir.glob("*.sock")]
        return processes + sockets


def _processes_with(marker: bytes) -> Iterator[str]:
    """Processes, zombies left out, that have a line in their environment."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(path.name) != os.getpid() and marker in (path / "environ").read_bytes().split(b"\0"):
                yield path.name


@contextlib.contextmanager
def running(
    folder: Path,
    config: str = "",
    environment: Mapping[str, str] | None = None,
    *,
    wait: bool = True,
    command: Sequence[str] = (sys.executable, "-m", "edged"),
) -> Iterator[RunningDaemon]:
    """Start a daemon, give it ready, stop it, and insist that nothing stays behind."""
    daemon = RunningDaemon(folder, config, environment, command=command)
    try:
        if wait:
            daemon.wait_ready()
        yield daemon
    finally:
        daemon.stop()
    left = daemon.leftovers()
    assert not left, f"left behind: {left}"
