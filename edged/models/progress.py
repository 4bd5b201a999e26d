"""How far a pull has got."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int | None, str], None]
"""`progress(done_bytes, total_bytes or None, what)`."""


def silent(_done_bytes: int, _total_bytes: int | None, _what: str) -> None:
    """Report nothing."""


class Step:
    """One file on its way: bytes finished for good, and those of the piece in progress."""

    def __init__(self, what: str, progress: Progress, total_bytes: int | None = None) -> None:
        self.total_bytes = total_bytes
        self._what = what
        self._progress = progress
        self._done_bytes = 0

    def report(self, piece_bytes: int) -> None:
        """Say how much of the piece in progress there is."""
        self._progress(self._done_bytes + piece_bytes, self.total_bytes, self._what)

    def advance(self, piece_bytes: int) -> None:
        """Count a piece as finished."""
        self._done_bytes += piece_bytes
        self.report(0)
