"""Figures written as PNG and SVG; the only importer of matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edged.errors import ConfigError, StorageError


def figure(width: float, height: float) -> Any:
    """Return an empty figure, in inches; `ConfigError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "a plot needs matplotlib; run: pip install 'edged[plot]'", param="--plot"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Any, path: Path) -> list[Path]:
    """Write a figure beside `path`; return both files. `StorageError` when they cannot be written."""
    files = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    try:
        for file in files:
            drawn.savefig(file, dpi=120)
    except OSError as error:
        raise StorageError(f"the plot cannot be written: {error}") from error
    return files
