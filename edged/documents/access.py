"""Who may write a library, one at a time, and what a full disk means."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edged.errors import AlreadyRunning, StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def translated(library: Path) -> Iterator[None]:
    """Turn faults of the file system and of SQLite into `StorageError`; the library stays as it was."""
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(_database_sentence(library, error)) from error
    except OSError as error:
        raise StorageError(_sentence(library, error)) from error


def _database_sentence(library: Path, error: sqlite3.Error) -> str:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_FULL:
            return _full(library)
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return f"the library {library} is damaged ({error}); remove the folder and ingest again"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return f"the library {library} cannot be opened ({error}); check its owner and permissions"
        case _:
            return f"the library {library} cannot be used: {error}"


def _sentence(library: Path, error: OSError) -> str:
    if error.errno in _FULL:
        return _full(library)
    if error.errno in _FORBIDDEN:
        return f"no permission to write {error.filename or library}; run as the owner of {library}"
    return f"the library {library} cannot be used: {error}"


def _full(library: Path) -> str:
    return f"the disk of {library} is full; free some space and run the command again: it continues"


class Owner:
    """Acts as the owner of a library, so that root leaves no files that the daemon cannot use."""

    def __init__(self, library: Path) -> None:
        nearest = next(path for path in (library, *library.absolute().parents) if path.exists())
        status = nearest.stat()
        self._ids = status.st_uid, status.st_gid
        self._is_root = os.geteuid() == 0 and self._ids[0] != 0

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Write as the owner within the block."""
        with self._as(*self._ids):
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within `acting`: read sources with the rights of whoever started the command."""
        with self._as(0, 0):
            yield

    @contextmanager
    def _as(self, user: int, group: int) -> Iterator[None]:
        if not self._is_root:
            yield
            return
        former = os.geteuid(), os.getegid()
        _become(user, group)
        try:
            yield
        finally:
            _become(*former)


def _become(user: int, group: int) -> None:
    """Change the effective ids; only effective root may change the group."""
    os.seteuid(0)
    os.setegid(group)
    os.seteuid(user)


@contextmanager
def locked(library: Path) -> Iterator[None]:
    """Hold the library for writing; `AlreadyRunning` when another process does."""
    library.mkdir(parents=True, exist_ok=True, mode=0o750)
    descriptor = os.open(library / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise AlreadyRunning(f"another ingest is writing {library}; wait for it to end") from error
    finally:
        os.close(descriptor)
