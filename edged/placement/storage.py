"""`<state>/calibration.json`: read, written whole and by rename, one writer at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edged.documents.access import Owner
from edged.errors import AlreadyRunning, StorageError
from edged.placement.table import Table

FILE = "calibration.json"
LOCK = "calibration.lock"


def path_in(state_dir: Path) -> Path:
    """Where the table of a state folder lies."""
    return state_dir / FILE


def load(path: Path) -> Table | None:
    """The table, or None where nothing was calibrated; `StorageError` for a file that cannot be used."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Table)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StorageError(
            f"the calibration {path} cannot be read ({error}); run: edgectl calibrate --fresh"
        ) from error


def save(table: Table, path: Path) -> None:
    """Replace the file whole, as the owner of its folder; `StorageError` when that is not possible."""
    document = msgspec.json.format(msgspec.json.encode(table), indent=1)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with Owner(path.parent).acting():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            beside.write_bytes(document)
            beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write the calibration {path}: {error.strerror}; free space or permissions?"
        ) from error


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the right to calibrate within the block; `AlreadyRunning` when somebody else has it."""
    try:
        with Owner(path.parent).acting():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            descriptor = os.open(path.with_name(LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise StorageError(f"cannot write in {path.parent}: {error.strerror}; run as its owner") from error
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise AlreadyRunning("another calibration is under way; wait for it to end") from error
