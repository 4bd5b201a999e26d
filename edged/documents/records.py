"""One JSON document of a state folder: replaced whole and by rename, as the owner of the folder."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from edged.documents import durable
from edged.documents.access import Owner
from edged.errors import StorageError

T = TypeVar("T")


def read(path: Path, kind: type[T], what: str, remedy: str) -> T | None:
    """Decode the document, or None where there is none.

    `StorageError` for a file that cannot be used: `what` it is, and the `remedy` as a command.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StorageError(f"{what} {path} cannot be read ({error}); run: {remedy}") from error


def replace(path: Path, value: msgspec.Struct, what: str) -> None:
    """Write the document anew and wait for the disk; `StorageError` when that is not possible."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with Owner(path.parent).acting():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            durable.write(beside, msgspec.json.format(msgspec.json.encode(value), indent=1))
            beside.replace(path)
            durable.sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {what} {path}: {error.strerror}; free space or permissions?"
        ) from error
