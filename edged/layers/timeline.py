"""What each stage did when, as a picture in which the bubble can be seen."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edged import pictures
from edged.layers.wire import Timing
from edged.pictures import figure


def save(timings: Iterable[tuple[int, Timing]], title: str, path: Path) -> list[Path]:
    """Write PNG and SVG beside `path`: a lane a stage, a bar a job, coloured by micro-batch.

    `timings` are micro-batches and what stages did for them. Raises `ConfigError` without matplotlib,
    `StorageError` when the files cannot be written.
    """
    drawn = figure(12, 3.5)
    _draw(drawn.subplots(), list(timings), title)
    return pictures.save(drawn, path)


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
        axes.figure.legend(fontsize="small", ncols=8, loc="outside lower center")
