"""Where files are made before they enter the store: one pull at a time, swept before and after."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edged.errors import ModelError

FOLDER = ".staging"
LOCK = ".lock"
RESUMABLE = ".part"
SPARE_BYTES = 64 << 20


@contextmanager
def staged(store: Path) -> Iterator[Path]:
    """Hold the store's lock, with a staging folder that holds nothing but downloads to resume.

    Waits while another process holds it. Raises `ModelError` when the store cannot be written.
    """
    folder = store / FOLDER
    lock = _open_lock(store, folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            _sweep(folder)
            yield folder
        finally:
            _sweep(folder)
    finally:
        os.close(lock)


def require_space(store: Path, needed_bytes: int) -> None:
    """Raise `ModelError` when the disk would be full afterwards."""
    free_bytes = shutil.disk_usage(store).free
    if free_bytes < needed_bytes + SPARE_BYTES:
        raise ModelError(
            f"{store} has {free_bytes >> 20} MiB free, this needs {needed_bytes + SPARE_BYTES >> 20} MiB; "
            "make room: edgectl models remove NAME"
        )


def _open_lock(store: Path, folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(store / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ModelError(f"{store} cannot be written: {error.strerror}; run as its owner") from error


def _sweep(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix != RESUMABLE:
            path.unlink()
