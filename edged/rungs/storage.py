"""`ladder.json` of a state folder."""

from __future__ import annotations

from pathlib import Path

from edged.documents import records
from edged.rungs.record import Record

FILE = "ladder.json"
WHAT = "the measurement"


def path_in(state_dir: Path) -> Path:
    """Where the measurement of a state folder lies."""
    return state_dir / FILE


def load(path: Path) -> Record | None:
    """The measurement, or None where there is none; `StorageError` for a file that cannot be used."""
    return records.read(path, Record, WHAT, "edgectl ladder measure --fresh")


def save(record: Record, path: Path) -> None:
    """Replace the file whole, as the owner of its folder; `StorageError` when that is not possible."""
    records.replace(path, record, WHAT)
