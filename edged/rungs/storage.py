"""`ladder.json` of a state folder: read, written whole and by rename."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from edged.documents import durable
from edged.documents.access import Owner
from edged.errors import StorageError
from edged.rungs.record import Record

FILE = "ladder.json"


def path_in(state_dir: Path) -> Path:
    """Where the measurement of a state folder lies."""
    return state_dir / FILE


def load(path: Path) -> Record | None:
    """The measurement, or None where there is none; `StorageError` for a file that cannot be used."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StorageError(
            f"the measurement {path} cannot be read ({error}); run: edgectl ladder measure --fresh"
        ) from error


def save(record: Record, path: Path) -> None:
    """Replace the file whole, as the owner of its folder; `StorageError` when that is not possible."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with Owner(path.parent).acting():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            durable.write(beside, msgspec.json.format(msgspec.json.encode(record), indent=1))
            beside.replace(path)
            durable.sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write the measurement {path}: {error.strerror}; free space or permissions?"
        ) from error
