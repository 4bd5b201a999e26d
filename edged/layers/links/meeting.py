"""Where the processes of a pipeline find each other: a private folder that goes with whoever made it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "edged-layers-"


class Meeting:
    """A folder of mode 0700 in the temporary folder, locked for as long as its maker lives.

    What a maker that was killed has left behind is removed by the next one, and by `sweep`.
    """

    def __init__(self) -> None:
        sweep()
        while not self._made():
            pass  # a sweep came between making and locking it

    def _made(self) -> bool:
        self.folder = tempfile.mkdtemp(prefix=PREFIX)
        try:
            self._descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return False
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        if Path(self.folder).exists():
            return True
        os.close(self._descriptor)
        return False

    def close(self) -> None:
        """Remove it; idempotent."""
        if self._descriptor >= 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self._descriptor)
            self._descriptor = -1


def _left() -> list[Path]:
    try:
        return list(Path(tempfile.gettempdir()).glob(PREFIX + "*"))
    except OSError:  # no descriptor left: whoever sweeps next will see them
        return []


def sweep() -> None:
    """Remove the folders of ours whose maker is gone; what cannot be looked at is left alone."""
    for folder in _left():
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another user's, or gone
            continue
        try:
            if os.fstat(descriptor).st_uid == os.getuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:  # in use
            continue
        finally:
            os.close(descriptor)
