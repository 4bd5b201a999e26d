"""What each stage did when, as a picture in which the bubble can be seen."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edged.errors import ConfigError, StorageError
from edged.layers.wire import Timing


def save(timings: Iterable[tuple[int, Timing]], title: str, path: Path) -> list[Path]:
    """Write PNG and SVG beside `path`: a lane a stage, a bar a job, coloured by micro-batch.

    `timings` are micro-batches and what stages did for them. Raises `ConfigError` without matplotlib,
    `StorageError` when the files cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "a plot needs matplotlib; run: pip install 'edged[plot]'", param="--plot"
        ) from error
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    _draw(figure.subplots(), list(timings), title)
    files = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    try:
        for file in files:
            figure.savefig(file, dpi=120)
    except OSError as error:
        raise StorageError(f"the plot cannot be written: {error}") from error
    return files


def _draw(axes: Any, timings: list[tuple[int, Timing]], title: str) -> None:
    origin_s = min((timing.began_s for _, timing in timings), default=0.0)
    for lane in sorted({lane for lane, _ in timings}):
        own = [timing for number, timing in timings if number == lane]
        axes.barh(
            [timing.stage for timing in own],
            [timing.ended_s - timing.began_s for timing in own],
            left=[timing.began_s - origin_s for timing in own],
            height=0.8,
            edgecolor="white",
            linewidth=0.3,
            label=f"micro-batch {lane}",
        )
    stages = sorted({timing.stage for _, timing in timings})
    axes.set_yticks(stages, [f"stage {stage}" for stage in stages])
    axes.invert_yaxis()
    axes.set(title=title, xlabel="seconds (gaps are the bubble)")
    if timings:
        axes.legend(fontsize="small", ncols=8, loc="lower right")
