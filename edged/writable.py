"""Whether a file can be written, asked before there is anything to write."""

from __future__ import annotations

import os
from pathlib import Path
from stat import S_ISDIR


def obstacle(file: Path) -> str:
    """Say why a file cannot be written or replaced; empty when it can be."""
    try:
        folder, old = _mode(file.parent), _mode(file)
    except OSError as error:  # a folder above may not be entered, a name is too long
        return os.strerror(error.errno or 0).lower()
    if not S_ISDIR(folder):
        return "no such folder"
    if S_ISDIR(old):
        return "it is a folder"
    place, needed = (file, os.W_OK) if old else (file.parent, os.W_OK | os.X_OK)
    free = os.access(place, needed, effective_ids=True)
    return "" if free else "permission denied"


def _mode(path: Path) -> int:
    """The mode of what is there; 0 where nothing is."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
