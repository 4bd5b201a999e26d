"""The daemon on a rung for as long as it is measured, and afterwards as it was."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from edged.client import AdminClient, Client
from edged.errors import BadRequest, ConfigError, NotFound, StageUnavailable
from edged.report import GovernorStatus, Status

POLL_S = 0.1
PATIENCE_S = 600.0
"""For a rung whose variants have to be loaded."""


def governor_of(status: Status) -> GovernorStatus:
    """The governor's part of the status; `ConfigError` where the daemon has none."""
    if status.governor is None:
        raise ConfigError("the daemon has no governor: it is older than this edgectl; restart it")
    return status.governor


class Taking:
    """A `with` block in which rungs can be taken; at its end the pin is what it was before."""

    def __init__(self, client: Client, admin: AdminClient) -> None:
        self._client = client
        self._admin = admin
        self._before = GovernorStatus(rung=0, name="", why="", since_s=0.0)
        self._taken = ""

    def __enter__(self) -> Self:
        self._before = governor_of(self._client.status())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _undisturbed():
            with suppress(BadRequest, NotFound):  # a rung that cannot be taken any more
                self._admin.pin_rung(self._before.name)  # from where it was, the governor goes on
            if not self._before.pin:
                self._admin.release_rung()
            elif self._before.pin != self._before.name:
                self._admin.pin_rung(self._before.pin)
        if kind is None:
            self._settled()

    def _settled(self) -> None:
        """Wait until the stages run again what they ran before."""
        deadline_s = time.monotonic() + PATIENCE_S
        while governor_of(self._client.status()).under_way and time.monotonic() < deadline_s:
            time.sleep(POLL_S)

    def take(self, name: str) -> Status:
        """Pin a rung and wait until all of it is in force; the status then.

        `StageUnavailable` where the daemon goes somewhere else instead.
        """
        if self._taken != name:
            self._admin.pin_rung(name)
            self._taken = name
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            status = self._client.status()
            governor = governor_of(status)
            lost = governor.pin != name or name in governor.unavailable or _incomplete(governor)
            if lost or time.monotonic() > deadline_s:
                break
            if governor.name == name and not governor.under_way:
                return status
            time.sleep(POLL_S)
        self._taken = ""
        why = (
            governor.unavailable.get(name)
            or _incomplete(governor)
            or f"it is on {governor.name!r}: {governor.why}"
        )
        raise StageUnavailable(f"the daemon does not stay on rung {name!r}: {why}")


def _incomplete(governor: GovernorStatus) -> str:
    """Why the rung in force lacks a part of what it should do; empty where it does all of it."""
    down_to = governor.ladder[: governor.rung + 1]
    refused = {rung.name: governor.left_out[rung.name] for rung in down_to if rung.name in governor.left_out}
    return "; ".join(f"rung {name!r} was refused: {why}" for name, why in refused.items())


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C comes behind the block: what was changed has to be put back first."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, so that everything is put back."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    former = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def unwell(status: Status, critical_c: float | None) -> str:
    """Why the box should not be kept on a rung now; empty when it may.

    Whoever pins a rung takes the governor's hand off the box, so its place has to be taken.
    """
    if critical_c is not None and status.temperature_c is not None and status.temperature_c >= critical_c:
        return f"{status.temperature_c:.0f} °C were reached, and {critical_c:g} °C are critical"
    return ""
