"""Sockets: who may connect, what is never overwritten, what systemd hands over."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edged.api.listen import bind_unix, passed_sockets, unlink_own
from edged.errors import AlreadyRunning, ConfigError


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_mode_is_exact_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        with bind_unix(tmp_path / "s", mode):
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode
    finally:
        os.umask(before)


def test_stale_socket_is_replaced_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    bind_unix(path, 0o600).close()
    assert path.is_socket()
    with bind_unix(path, 0o600) as listener:
        unlink_own(listener, path)
    assert not path.exists()


def test_live_server_is_left_alone(tmp_path: Path) -> None:
    with bind_unix(tmp_path / "s", 0o600), pytest.raises(AlreadyRunning):
        bind_unix(tmp_path / "s", 0o600)


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("/etc/passwd")])
def test_what_is_no_socket_is_never_removed(tmp_path: Path, make: object) -> None:
    make(tmp_path / "s")  # type: ignore[operator]
    with pytest.raises(ConfigError):
        bind_unix(tmp_path / "s", 0o600)
    assert os.path.lexists(tmp_path / "s")


def test_long_path_and_missing_folder_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="longer than 107"):
        bind_unix(tmp_path / ("x" * 120), 0o600)
    with pytest.raises(ConfigError, match="check its folder"):
        bind_unix(tmp_path / "none" / "s", 0o600)


def test_nothing_is_taken_that_was_meant_for_another_process() -> None:
    assert passed_sockets({}) == {}
    assert passed_sockets({"LISTEN_PID": "1", "LISTEN_FDS": "2"}) == {}


CHILD = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from edged.api.listen import passed_sockets
from edged.errors import ConfigError
try:
    found = passed_sockets(os.environ)
except ConfigError as error:
    sys.exit(error.message)
names = {name: listener.getsockname() for name, listener in sorted(found.items())}
print(names, any(listener.get_inheritable() for listener in found.values()))
"""


def child(first: int, second: int, names: str) -> subprocess.CompletedProcess[str]:
    """Start a child whose descriptors 3 and 4 are these, the way systemd does."""
    script = f"exec 3<&{first} 4<&{second}; exec {sys.executable} -c '{CHILD}'"
    environment = {**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": names, "PYTHONPATH": str(Path.cwd())}
    return subprocess.run(
        ["bash", "-c", script],
        pass_fds=(first, second),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_sockets_passed_by_systemd_are_taken_by_name(tmp_path: Path) -> None:
    with bind_unix(tmp_path / "a", 0o600) as one, bind_unix(tmp_path / "b", 0o600) as two:
        done = child(one.fileno(), two.fileno(), "edged-admin.socket:edged.socket")
    expected = {"edged-admin.socket": str(tmp_path / "a"), "edged.socket": str(tmp_path / "b")}
    assert done.stdout.strip() == f"{expected} False", done.stderr


def test_passed_descriptor_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    with bind_unix(tmp_path / "a", 0o600) as one, socket.socket(socket.AF_UNIX) as two:
        done = child(one.fileno(), two.fileno(), "edged.socket:edged-admin.socket")
    assert done.returncode == 1
    assert "edged-admin.socket must be a listening Unix stream socket" in done.stderr
