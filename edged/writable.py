"""Whether a file can be written, asked before there is anything to write."""

from __future__ import annotations

import os
from pathlib import Path


def obstacle(file: Path) -> str:
    """Say why a file cannot be written or replaced; empty when it can be."""
    if not file.parent.is_dir():
        return "no such folder"
    if file.is_dir():
        return "it is a folder"
    place, needed = (file, os.W_OK) if file.exists() else (file.parent, os.W_OK | os.X_OK)
    free = os.access(place, needed, effective_ids=True)
    return "" if free else "permission denied"
