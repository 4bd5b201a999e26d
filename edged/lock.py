"""One daemon per runtime folder."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from edged.errors import AlreadyRunning, ConfigError


def take_lock(runtime_dir: Path) -> int:
    """Make the runtime folder and lock it, before any bind; the kernel frees the lock when we die.

    `ConfigError` for a folder that cannot be made, or in which others could put sockets of their own.
    """
    try:
        runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_foreign(runtime_dir)
        descriptor = os.open(
            runtime_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
    except OSError as error:
        raise ConfigError(
            f"cannot use the runtime folder {runtime_dir}: {error.strerror}; set daemon.runtime_dir",
            param="daemon.runtime_dir",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise AlreadyRunning(
            f"another daemon runs in {runtime_dir}; stop it, or set daemon.runtime_dir"
        ) from error
    return descriptor


def _refuse_foreign(runtime_dir: Path) -> None:
    """Whoever may write in the folder could replace the sockets in it and be taken for the daemon."""
    found = runtime_dir.stat()
    if found.st_uid not in {0, os.geteuid()} or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"the runtime folder {runtime_dir} can be written by others; make it yours (chmod 700), or set "
            "daemon.runtime_dir",
            param="daemon.runtime_dir",
        )
