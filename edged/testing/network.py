"""Two network namespaces and a cable between them that a test can cut: silence, and no goodbye."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SUBNET = "10.213.7"
PREFIX_BITS = 24
_IP = shutil.which("ip") or "/sbin/ip"


def refusal() -> str:
    """Why no such namespaces can be made here; empty when they can."""
    if not Path(_IP).exists():
        return "no ip(8) on this machine"
    name = f"edged-try-{os.getpid()}"
    tried = _ip("netns", "add", name, check=False)
    if tried.returncode:
        return f"no network namespace: {tried.stderr.strip()}"
    _ip("netns", "delete", name, check=False)
    return ""


def _ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run([_IP, *words], capture_output=True, text=True, check=check)


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, 0):
        raise OSError(ctypes.get_errno(), "setns")


class Cable:
    """Namespaces `0` and `1`, each with an address and loopback, joined by one veth pair."""

    def __init__(self, name: str) -> None:
        self.namespaces = tuple(f"{name}-{end}" for end in (0, 1))
        self._ends = tuple(f"{name[-12:]}-{end}" for end in (0, 1))

    def lay(self) -> None:
        """Make everything; `CalledProcessError` where that is not permitted."""
        for namespace in self.namespaces:
            _ip("netns", "add", namespace)
        _ip("link", "add", self._ends[0], "type", "veth", "peer", "name", self._ends[1])
        for number, (namespace, end) in enumerate(zip(self.namespaces, self._ends, strict=True)):
            _ip("link", "set", end, "netns", namespace)
            address = f"{self.address(number)}/{PREFIX_BITS}"
            _ip("-n", namespace, "address", "add", address, "dev", end)
            for device in ("lo", end):
                _ip("-n", namespace, "link", "set", device, "up")

    @staticmethod
    def address(end: int) -> str:
        """IPv4 address of an end."""
        return f"{SUBNET}.{end + 1}"

    def command(self, end: int, program: Sequence[str]) -> tuple[str, ...]:
        """How a program is started at an end."""
        return (_IP, "netns", "exec", self.namespaces[end], *program)

    @contextmanager
    def inside(self, end: int) -> Iterator[None]:
        """Let this thread, and what it starts, be at an end (setns(2); `os.setns` comes with Python 3.12)."""
        with (
            Path("/proc/thread-self/ns/net").open("rb") as home,
            Path(f"/run/netns/{self.namespaces[end]}").open("rb") as there,
        ):
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def cut(self, end: int = 0) -> None:
        """From now on nothing arrives, in either direction, and nobody is told."""
        _ip("-n", self.namespaces[end], "link", "set", self._ends[end], "down")

    def mend(self, end: int = 0) -> None:
        """Undo `cut`."""
        _ip("-n", self.namespaces[end], "link", "set", self._ends[end], "up")

    def take_away(self) -> None:
        """Remove everything; idempotent."""
        for namespace, end in zip(self.namespaces, self._ends, strict=True):
            _ip("-n", namespace, "link", "delete", end, check=False)
            _ip("netns", "delete", namespace, check=False)
            Path(f"/run/netns/{namespace}").unlink(missing_ok=True)
        _ip("link", "delete", self._ends[0], check=False)


@contextmanager
def cable(name: str = "") -> Iterator[Cable]:
    """Lay a cable, and take it away whatever happens."""
    laid = Cable(name or f"edged{secrets.token_hex(4)}")
    try:
        laid.lay()
        yield laid
    finally:
        laid.take_away()
