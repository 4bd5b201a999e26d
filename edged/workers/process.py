"""Worker processes as the daemon holds them: spawned without a fork of our threads, watched by pidfd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edged.layers.links.meeting import sweep
from edged.workers.spec import WorkerSpec, to_json


class Process:
    """A running worker. `pidfd` becomes readable when the kernel has torn it down."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.incarnation = spec.incarnation
        self._popen = subprocess.Popen(
            # -P: no module is taken from the folder that the daemon happened to be started in
            [sys.executable, "-P", "-m", "edged.workers", spec.incarnation],
            stdin=subprocess.PIPE,
            stdout=sys.stderr.fileno(),
            pass_fds=[arena.descriptor for arena in spec.arenas],
            start_new_session=True,  # Ctrl-C in a terminal is for the daemon, which drains
        )
        self.pid = self._popen.pid
        self.pidfd = self._open_pidfd()
        self.killed_by_us = False
        self._tell(to_json(spec))

    def _open_pidfd(self) -> int:
        try:
            return os.pidfd_open(self.pid)
        except OSError:  # no descriptor left: what cannot be watched may not live
            with self._popen as unwatched:
                unwatched.kill()
            raise

    def _tell(self, spec: bytes) -> None:
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(spec)
            self._popen.stdin.close()
        except BrokenPipeError:  # it died at once: the pidfd tells
            return

    def kill(self) -> None:
        """SIGKILL, by pidfd: never a stranger who got the number afterwards."""
        self.killed_by_us = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return

    def reap(self) -> str:
        """Collect the exit status of a process that is gone, and put it in words."""
        status = self._popen.wait()
        os.close(self.pidfd)
        sweep()  # what a layer pipeline that was killed has left behind
        if status < 0:
            return f"killed by {_signal_name(-status)}"
        return f"exit status {status}"

    @property
    def killed_from_outside(self) -> bool:
        """Whether somebody else SIGKILLed it; meaningful once reaped."""
        return self._popen.returncode == -signal.SIGKILL and not self.killed_by_us


def _signal_name(number: int) -> str:
    """`SIGKILL`; real-time signals have no name of their own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def oom_kills() -> int:
    """How often the kernel has killed for lack of memory since boot (`oom_kill` of /proc/vmstat).

    0 where that cannot be read: whoever asks must not fail for want of a descriptor.
    """
    try:
        with Path("/proc/vmstat").open() as lines:
            return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0


def kill_all(processes: Sequence[Process]) -> None:
    """SIGKILL and reap: the last step of every stop."""
    for process in processes:
        process.kill()
    for process in processes:
        process.reap()
