"""Sockets to listen on: bound by us with the right mode, or handed over by systemd."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from edged.config.tables import Api
from edged.errors import AlreadyRunning, ConfigError

BACKLOG = 4096
CLIENT_NAME = "edged.socket"
ADMIN_NAME = "edged-admin.socket"
ADMIN_MODE = 0o600
_FIRST_PASSED = 3
_ANSWER_S = 1.0
_LONGEST_PATH_BYTES = 107


def listeners(
    api: Api, environment: Mapping[str, str], sockets: ExitStack
) -> tuple[list[socket.socket], dict[Path, socket.socket]]:
    """The client socket and the admin socket: systemd's where it passed them, else our own, also by path.

    `sockets` closes them all, and removes the files of our own, however the daemon ends.
    """
    passed = passed_sockets(environment)
    wanted = (
        (api.socket, CLIENT_NAME, int(api.socket_mode, 8)),
        (api.admin_socket, ADMIN_NAME, ADMIN_MODE),
    )
    for listener in passed.values():
        sockets.callback(listener.close)
    own: dict[Path, socket.socket] = {}
    for path, name, mode in wanted:
        if name not in passed:
            own[path] = bind_unix(path, mode)
            sockets.callback(own[path].close)
            sockets.callback(unlink_own, own[path], path)
    return [passed.get(name) or own[path] for path, name, _ in wanted], own


def bind_unix(path: Path, mode: int) -> socket.socket:
    """Bind and listen on `path` with exactly `mode`; nobody can connect before the mode is set.

    A stale socket is replaced. `ConfigError` when the path is something else or cannot be bound,
    `AlreadyRunning` when a server answers on it.
    """
    if len(os.fsencode(path)) > _LONGEST_PATH_BYTES:
        raise ConfigError(f"socket path is longer than {_LONGEST_PATH_BYTES} bytes: choose a shorter one")
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        os.fchmod(listener.fileno(), ADMIN_MODE)  # bind() takes the mode over, less the umask
        listener.bind(os.fspath(path))
        path.chmod(mode)
        listener.listen(BACKLOG)
        listener.settimeout(0)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {path.name}: {error.strerror}; check its folder") from error
    return listener


def unlink_own(listener: socket.socket, path: Path) -> None:
    """Remove the socket file, unless somebody else has put another one in its place."""
    with contextlib.suppress(FileNotFoundError, OSError):
        if stat.S_ISSOCK(path.lstat().st_mode) and listener.getsockname() == os.fspath(path):
            path.unlink()


def passed_sockets(environment: Mapping[str, str]) -> dict[str, socket.socket]:
    """Take the listening sockets that systemd passed to this process, by name.

    Empty when none are meant for this process id. `ConfigError` when one is not a listening Unix socket.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(environment.get("LISTEN_FDS", "0"))
    names = [name for name in environment.get("LISTEN_FDNAMES", "").split(":") if name]
    descriptors = range(_FIRST_PASSED, _FIRST_PASSED + count)
    named = zip(names or [CLIENT_NAME, ADMIN_NAME], descriptors, strict=False)
    return {name: _adopt(name, descriptor) for name, descriptor in named}


def _adopt(name: str, descriptor: int) -> socket.socket:
    try:
        listener = socket.socket(fileno=descriptor)
        listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ConfigError(f"descriptor passed as {name} is no socket: check the .socket unit") from error
    if listener.family != socket.AF_UNIX or not listening:
        listener.detach()
        raise ConfigError(f"{name} must be a listening Unix stream socket: check ListenStream= in its unit")
    listener.set_inheritable(False)
    listener.settimeout(0)
    return listener


def _clear(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"{path.name} exists and is not a socket: move it away or set another path")
    if _answers(path):
        raise AlreadyRunning(f"a server answers on {path.name} already: stop it or set another path")
    path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_ANSWER_S)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        return True
