"""What `status` says about the calibration: none, stale and why, or nothing."""

from __future__ import annotations

from pathlib import Path

from edged.errors import StorageError
from edged.models.store import ModelStore
from edged.placement import storage
from edged.placement.fingerprint import known_fingerprint
from edged.placement.staleness import stale

UNUSED = "placement by default order: no plan is applied; see what was measured to be best: edgectl plan"
NONE = "placement by default order: nothing has been measured on this machine; run: edgectl calibrate"
ABSENT = 0, 0


class CalibrationNotes:
    """Reads the table again when its file has changed; machine and weights are those of the daemon's start.

    The status is asked for many times a second, and none of these change under a running daemon without
    a reload or a new table.
    """

    def __init__(self, state_dir: Path, store: ModelStore) -> None:
        self._path = storage.path_in(state_dir)
        self._store = store
        self._stamp: tuple[int, int] | None = None
        self._sentences: tuple[str, ...] = ()

    def sentences(self) -> tuple[str, ...]:
        """What an operator should read."""
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp, self._sentences = stamp, self._read()
        return self._sentences

    @property
    def usable(self) -> bool:
        """Whether there is a table to plan with and nothing speaks against it; by the last look."""
        return self._stamp not in {None, ABSENT} and not self._sentences

    def forget(self) -> None:
        """Look again at machine and weights: after a reload."""
        self._stamp = None

    def _look(self) -> tuple[int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return ABSENT
        return found.st_ino, found.st_mtime_ns

    def _read(self) -> tuple[str, ...]:
        try:
            table = storage.load(self._path)
        except StorageError as error:
            return (error.message,)
        if table is None:
            return (NONE,)
        reasons = stale(table, known_fingerprint(table, self._store))
        return (
            (f"the calibration is stale ({'; '.join(reasons)}); run: edgectl calibrate",) if reasons else ()
        )
