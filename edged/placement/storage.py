"""`calibration.json` and `plan.json` of a state folder: read, written whole and by rename."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edged.documents import records
from edged.documents.access import Owner
from edged.errors import AlreadyRunning, StorageError
from edged.placement.table import Plan, Table

FILE = "calibration.json"
LOCK = "calibration.lock"
PLAN = "plan.json"


def path_in(state_dir: Path) -> Path:
    """Where the table of a state folder lies."""
    return state_dir / FILE


def load(path: Path) -> Table | None:
    """The table, or None where nothing was calibrated; `StorageError` for a file that cannot be used."""
    return records.read(path, Table, "the calibration", "edgectl calibrate --fresh")


def save(table: Table, path: Path) -> None:
    """Replace the file whole, as the owner of its folder; `StorageError` when that is not possible."""
    records.replace(path, table, "the calibration")


def load_plan(path: Path) -> Plan | None:
    """The applied plan, or None where none is; `StorageError` for a file that cannot be used."""
    return records.read(path, Plan, "the plan", "edgectl plan --apply, or edgectl plan --clear")


def keep_plan(plan: Plan | None, path: Path) -> None:
    """Replace the applied plan, or remove it; `StorageError` when that is not possible."""
    if plan is not None:
        records.replace(path, plan, "the plan")
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot remove the plan {path}: {error.strerror}") from error


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
