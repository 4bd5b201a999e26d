"""The processes of the stages behind the first: started, watched, named when they die."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from edged.errors import BackendError, ConfigError, DeviceLost
from edged.layers.spec import Loaded, StageSpec

_KINDS = {"backend": BackendError, "device_lost": DeviceLost, "config": ConfigError}
LEAVE_S = 2.0
"""How long a stage that was told to leave may take."""


class Member(msgspec.Struct, eq=False):
    """One stage's process; its standard output tells of readiness, and by its end of death."""

    stage: int
    popen: subprocess.Popen[bytes]
    pidfd: int
    told: Loaded | None = None
    """What it said last, if it ended by itself."""

    @property
    def output(self) -> int:
        """Descriptor of its standard output."""
        assert self.popen.stdout is not None
        return self.popen.stdout.fileno()


class Crew:
    """All of them. Closing kills and reaps whatever is left."""

    def __init__(self, specs: Sequence[StageSpec]) -> None:
        self._stages = specs[0].stages if specs else 1
        self._members: list[Member] = []
        for spec in specs:
            try:
                popen = _start(spec)
                self._members.append(Member(spec.stage, popen, os.pidfd_open(popen.pid)))
            except OSError as error:
                self.kill()
                self.close()
                raise BackendError(
                    f"stage {spec.stage} of {spec.stages} cannot be started: {error}"
                ) from error

    @property
    def outputs(self) -> list[int]:
        """Descriptors that become readable when a stage speaks or dies."""
        return [member.output for member in self._members]

    @property
    def pids(self) -> dict[int, int]:
        """Process ids by stage."""
        return {member.stage: member.popen.pid for member in self._members}

    def loaded(self, timeout_s: float) -> list[Loaded]:
        """Wait until all are ready; the first that is not raises what kept it, named."""
        until_s = time.monotonic() + timeout_s
        waiting = {member.output: member for member in self._members}
        found: list[Loaded] = []
        while waiting:
            readable, _, _ = select.select(list(waiting), [], [], max(0.0, until_s - time.monotonic()))
            if not readable:
                slow = min(member.stage for member in waiting.values())
                raise BackendError(f"stage {slow} of {self._stages} has not loaded within {timeout_s:g} s")
            found += [self._report(waiting.pop(descriptor)) for descriptor in readable]
        self._go()
        return sorted(found, key=lambda each: each.stage)

    def _go(self) -> None:
        """Tell all that all have loaded: only now is it time to meet."""
        for member in self._members:
            assert member.popen.stdin is not None
            with suppress(BrokenPipeError):  # it died: its standard output tells
                member.popen.stdin.write(b"\n")
                member.popen.stdin.close()

    def _report(self, member: Member) -> Loaded:
        assert member.popen.stdout is not None
        line = member.popen.stdout.readline()
        if not line:
            raise self._death(member)
        loaded = msgspec.json.decode(line, type=Loaded)
        if loaded.failed:
            raise _KINDS[loaded.code](f"stage {loaded.stage} of {self._stages}: {loaded.failed}")
        return loaded

    def check(self) -> None:
        """Raise `BackendError` that names the stage which died first, if one has."""
        dead = [member for member in self._members if member.popen.poll() is not None]
        if dead:
            raise self._death(self._killed() or dead[0])

    def blamed(self, error: BackendError, patience_s: float = 1.0) -> BackendError:
        """Return the death of a stage where that is what `error` comes from, else `error`.

        The neighbours of a killed stage end too, each with a broken link: the killed one is to blame.
        """
        until_s = time.monotonic() + patience_s
        while not self._killed() and (alive := [each for each in self._members if each.popen.poll() is None]):
            gone, _, _ = select.select(
                [each.pidfd for each in alive], [], [], max(0.0, until_s - time.monotonic())
            )
            if not gone:
                break
        try:
            self.check()
        except BackendError as death:
            return death
        return self._stopped() or error

    def _killed(self) -> Member | None:
        return next((each for each in self._members if (each.popen.poll() or 0) < 0), None)

    def _stopped(self) -> BackendError | None:
        """Name a stage that somebody has stopped."""
        for member in self._members:
            if Path(f"/proc/{member.popen.pid}/stat").read_text().rpartition(")")[2].split()[0] in {"T", "t"}:
                return BackendError(
                    f"stage {member.stage} of {self._stages} of the layer pipeline is stopped (process "
                    f"{member.popen.pid}) and gives no tokens"
                )
        return None

    def _death(self, member: Member) -> BackendError:
        status = member.popen.wait()
        assert member.popen.stdout is not None
        if last := member.popen.stdout.readline():
            member.told = msgspec.json.decode(last, type=Loaded)
        if member.told and member.told.failed:
            kind = DeviceLost if member.told.code == "device_lost" else BackendError
            return kind(f"stage {member.stage} of {self._stages}: {member.told.failed}")
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return BackendError(
            f"stage {member.stage} of {self._stages} of the layer pipeline died ({how}); its messages are on "
            "standard error, in the daemon's case in its log"
        )

    def close(self) -> None:
        """Give those that were told to leave a moment, then kill; idempotent."""
        until_s = time.monotonic() + LEAVE_S
        for member in self._members:
            with member.popen as popen:
                try:
                    popen.wait(max(0.0, until_s - time.monotonic()))
                except subprocess.TimeoutExpired:
                    popen.kill()
            os.close(member.pidfd)
        self._members = []

    def kill(self) -> None:
        """Kill all at once: nobody is to wait for what will never come."""
        for member in self._members:
            member.popen.kill()


def _start(spec: StageSpec) -> subprocess.Popen[bytes]:
    popen = subprocess.Popen(
        [sys.executable, "-P", "-m", "edged.layers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert popen.stdin is not None
    try:
        popen.stdin.write(msgspec.json.encode(spec) + b"\n")
        popen.stdin.flush()
    except BrokenPipeError:  # it died at once: its standard output tells
        return popen
    return popen
