"""A load run as a picture: what clients waited for, and which stage was busy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edged import pictures
from edged.load.report import Report
from edged.load.sample import Sample
from edged.pictures import figure
from edged.plurals import counted

Run = tuple[Report, Sequence[Sample]]


def save(runs: Sequence[Run], path: Path) -> list[Path]:
    """Write the picture as PNG and as SVG beside `path`; return both files.

    Raises `ConfigError` without matplotlib, `StorageError` when the files cannot be written.
    """
    drawn = figure(11, 7)
    (latency, spread), (rate, stages) = drawn.subplots(2, 2)
    _latency(latency, runs)
    _spread(spread, runs)
    _rate(rate, runs)
    _stages(stages, runs)
    return pictures.save(drawn, path)


def label(report: Report) -> str:
    """Name a run: by its rate or by its clients."""
    if report.rate_per_s is not None:
        return f"{report.rate_per_s:g}/s"
    return counted(report.clients, "client")


def _latency(axes: Any, runs: Sequence[Run]) -> None:
    for report, samples in runs:
        good = [sample for sample in samples if not sample.error]
        points = axes.scatter([s.end_s for s in good], [s.latency_s for s in good], s=9, label=label(report))
        first = [(s.end_s, s.first_s - s.due_s) for s in good if s.first_s is not None]
        axes.scatter(
            *zip(*first, strict=True), s=5, marker="x", color=points.get_facecolor()
        ) if first else None
    axes.set(
        title="each request: whole answer (dots), first token (crosses)", xlabel="seconds", ylabel="seconds"
    )
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")


def _spread(axes: Any, runs: Sequence[Run]) -> None:
    for report, samples in runs:
        ordered = sorted(sample.latency_s for sample in samples if not sample.error)
        shares = [(rank + 1) / len(ordered) for rank in range(len(ordered))]
        axes.step(ordered, shares, where="post", label=label(report))
    axes.set(title="share of answers within", xlabel="seconds", ylim=(0, 1.02))
    axes.grid(alpha=0.3)


def _rate(axes: Any, runs: Sequence[Run]) -> None:
    names = [label(report) for report, _ in runs]
    bars = axes.bar(names, [report.throughput_per_s for report, _ in runs])
    axes.bar_label(bars, fmt="%.2f")
    axes.set(title="answers per second")


def _stages(axes: Any, runs: Sequence[Run]) -> None:
    names = list(dict.fromkeys(name for report, _ in runs for name in report.stages))
    width = 0.8 / len(runs)
    for place, (report, _) in enumerate(runs):
        shares = [report.stages[name].utilisation if name in report.stages else 0.0 for name in names]
        axes.bar([n + place * width for n in range(len(names))], shares, width, label=label(report))
    axes.set_xticks([n + 0.4 - width / 2 for n in range(len(names))], names)
    axes.set(title="share of the run in which a stage worked", ylim=(0, 1.05))
