"""Which files are documents: walk the given paths, and say why a file is left out."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from edged.documents.readers import reader_for

_NOT_DOCUMENTS = frozenset({"__pycache__", "node_modules", "CVS", "lost+found"})


class File(msgspec.Struct, frozen=True):
    """A file to ingest."""

    path: Path
    bytes: int
    mtime_ns: int


class LeftOut(msgspec.Struct, frozen=True):
    """A path that is not ingested, and why."""

    source: str
    reason: str
    missing: bool = False
    unreadable: bool = False
    """What lies at or below `source` is unknown: it exists, and cannot be looked at."""


def walk(paths: Sequence[Path], max_bytes: int) -> Iterator[File | LeftOut]:
    """Every file under `paths`, in order; hidden ones and those under version control are passed over."""
    seen: set[str] = set()
    for root in paths:
        for found in _under(root.absolute()):
            if isinstance(found, LeftOut):
                yield found
            elif str(found) not in seen:
                seen.add(str(found))
                yield _judge(found, max_bytes, named=found == root.absolute())


def _under(root: Path) -> Iterator[Path | LeftOut]:
    if not os.path.isdir(root):  # noqa: PTH112 - Path.is_dir raises where a parent may not be entered
        yield root
        return
    unlisted: list[OSError] = []
    for folder, folders, files in os.walk(root, onerror=unlisted.append):
        folders[:] = sorted(name for name in folders if not _ignored(name))
        yield from (Path(folder, name) for name in sorted(files) if not _ignored(name))
    yield from (_unlisted(error) for error in unlisted if not isinstance(error, FileNotFoundError))


def _unlisted(error: OSError) -> LeftOut:
    reason = f"the folder cannot be listed: {error.strerror}; documents below it stay as they are"
    source = str(error.filename).encode(errors="backslashreplace").decode()
    return LeftOut(source, reason, unreadable=True)


def _ignored(name: str) -> bool:
    return name.startswith(".") or name in _NOT_DOCUMENTS or name.endswith("~")


def _judge(path: Path, max_bytes: int, *, named: bool) -> File | LeftOut:
    source = str(path)
    try:
        source.encode()
        status = path.stat() if named else path.lstat()
    except UnicodeEncodeError:
        return LeftOut(ascii(source), "the file name is not valid UTF-8; rename it")
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = f"cannot be read: {error.strerror}"
        return LeftOut(source, reason, missing=missing, unreadable=not missing)
    reason = _objection(path, status, max_bytes)
    return LeftOut(source, reason) if reason else File(path, status.st_size, status.st_mtime_ns)


def _objection(path: Path, status: os.stat_result, max_bytes: int) -> str:
    """Why a file is not ingested; empty when it is."""
    if stat.S_ISLNK(status.st_mode):
        return "a symbolic link: name its target instead"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if reader_for(path) is None:
        return f"no reader for files of kind {path.suffix or path.name!r}"
    if status.st_size > max_bytes:
        return f"larger than library.max_document_bytes ({max_bytes} bytes)"
    return "" if status.st_size else "empty"
