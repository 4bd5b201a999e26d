"""What the governor decided and why, newest last: in memory, and in a file that survives restarts."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edged.report import Decision

logger = logging.getLogger("edged.governor")

FILE = "governor.jsonl"
KEPT = 1000
"""Decisions that are kept; the file is shortened to them when it holds twice as many."""
MOST_BYTES = 4 << 20
"""A file that is larger than this was not written here: of it only the end is read."""


class History:
    """At most `KEPT` decisions; construct, then `read` what the last daemon left."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self._rows: deque[Decision] = deque(maxlen=KEPT)
        self._lines = 0
        self._encoder = msgspec.json.Encoder()
        self._failed = False

    def read(self) -> None:
        """Take up what is stored; lines that are no decisions, such as a torn last one, are left out."""
        try:
            data = _tail(self._path)
        except FileNotFoundError:
            return
        except OSError as error:
            self._fail(error)
            return
        lines = data.splitlines()
        self._rows.extend(_decoded(lines))
        self._lines = len(lines)
        if not data.endswith(b"\n"):
            self._shorten()

    def add(self, row: Decision) -> None:
        """Keep a decision; a disk that is full costs its line in the file only."""
        self._rows.append(row)
        self._lines += 1
        if self._lines >= 2 * KEPT:
            self._shorten()
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "ab", opener=_private) as file:
                file.write(self._encoder.encode(row) + b"\n")
        except OSError as error:
            self._fail(error)

    def newest(self, count: int) -> list[Decision]:
        """The last so many, oldest first."""
        return list(self._rows)[-count:]

    def _shorten(self) -> None:
        beside = self._path.with_name(f".{FILE}.new")
        try:
            with open(beside, "wb", opener=_private) as file:
                file.writelines(self._encoder.encode(row) + b"\n" for row in self._rows)
            beside.replace(self._path)
        except OSError as error:
            self._fail(error)
        self._lines = len(self._rows)

    def _fail(self, error: OSError) -> None:
        if not self._failed:
            logger.warning("history is kept in memory only", extra={"why": error.strerror or str(error)})
        self._failed = True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - MOST_BYTES))
        return file.read()


def _decoded(lines: list[bytes]) -> Iterator[Decision]:
    decoder = msgspec.json.Decoder(Decision)
    for line in lines:
        try:
            yield decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
