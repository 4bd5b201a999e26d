"""A probe as calibration holds it: started, asked with a time limit, never left behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from edged.layers.links.meeting import sweep
from edged.placement.probe import Command, Loaded, Loop, ProbeSpec, Refused, Reply, Run
from edged.workers.process import oom_kills

T = TypeVar("T", bound=Reply)
_CHUNK_BYTES = 1 << 16
_TAIL_BYTES = 2000


class ProbeFailed(Exception):
    """The form did not do what was asked; `code` and `message` as in `Failure`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class BudgetSpent(Exception):
    """The time for calibration is over; what was begun is given up."""


class Probe:
    """A child process with one form; use it as a context manager."""

    def __init__(self, spec: ProbeSpec, deadline_s: float) -> None:
        """`deadline_s` is the end of the budget, CLOCK_MONOTONIC."""
        self._deadline_s = deadline_s
        self._buffer = b""
        self._oom_kills = oom_kills()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "edged.placement.probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C is for the command, which ends its probes
        )
        self._send(msgspec.json.encode(spec, enc_hook=str))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._popen.kill()
        self._popen.wait()
        sweep()  # a layer pipeline's folder
        for stream in (self._popen.stdin, self._popen.stdout, self._errors):
            if stream is not None:
                stream.close()

    def loaded(self, limit_s: float) -> Loaded:
        """Wait until the model is loaded."""
        return self._reply(Loaded, limit_s)

    def ask(self, command: Run | Loop, kind: type[T], limit_s: float) -> T:
        """Have a command carried out."""
        self.tell(command)
        return self._reply(kind, limit_s)

    def tell(self, command: Command) -> None:
        """Send a command; `heard` waits for its answer."""
        self._send(msgspec.json.encode(command))

    def heard(self, kind: type[T], limit_s: float) -> T:
        """Wait for the answer to the last command."""
        return self._reply(kind, limit_s)

    def _send(self, line: bytes) -> None:
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(line + b"\n")
            self._popen.stdin.flush()
        except BrokenPipeError as error:
            raise self._death() from error

    def _reply(self, kind: type[T], limit_s: float) -> T:
        reply = msgspec.json.decode(self._line(limit_s), type=Reply)
        if isinstance(reply, Refused):
            raise ProbeFailed(reply.code, reply.message)
        assert isinstance(reply, kind)
        return reply

    def _line(self, limit_s: float) -> bytes:
        """One line, or `ProbeFailed` (it died, or hangs), or `BudgetSpent`."""
        assert self._popen.stdout is not None
        descriptor, end_s = self._popen.stdout.fileno(), time.monotonic() + limit_s
        while b"\n" not in self._buffer:
            left_s = min(end_s, self._deadline_s) - time.monotonic()
            if left_s <= 0 or not select.select([descriptor], [], [], left_s)[0]:
                raise self._too_late(limit_s)
            data = os.read(descriptor, _CHUNK_BYTES)
            if not data:
                raise self._death()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _too_late(self, limit_s: float) -> Exception:
        if time.monotonic() >= self._deadline_s:
            return BudgetSpent()
        return ProbeFailed("hung", f"no answer within {limit_s:.0f} s; killed")

    def _death(self) -> ProbeFailed:
        status = self._popen.wait()
        if status == -signal.SIGKILL and oom_kills() > self._oom_kills:
            return ProbeFailed("out_of_memory", "the kernel killed it for want of memory")
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return ProbeFailed("crashed", f"the process ended with {how}: {self._last_words()}".rstrip(": "))

    def _last_words(self) -> str:
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(size - _TAIL_BYTES, 0))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else ""
