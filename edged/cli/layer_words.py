"""A layer pipeline in words, for `edgectl status`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edged.cli.output import readable_bytes

if TYPE_CHECKING:
    from edged.layers.report import LayerReport, StageReport
    from edged.report import StageStatus


def pipelines(stage: StageStatus) -> Iterator[str]:
    """Describe the layer pipeline of each of a stage's workers: a headline, then a line per stage of it."""
    for worker in stage.workers:
        if worker.layers is not None:
            yield f"{worker.incarnation}: {_headline(worker.layers)}"
            yield from (f"  {_line(each, worker.layers)}" for each in worker.layers.stages)


def _headline(report: LayerReport) -> str:
    count = len(report.stages)
    layout = f"{count} layer stages over {report.transport}" if count > 1 else "1 layer stage"
    room = f"{report.mode}, room for {report.micro_batches} micro-batches"
    if not report.span_s:
        return f"{layout}, {room}, no work yet"
    return (
        f"{layout}, {room}, {report.working_micro_batches:.1f} with work on average; bubble "
        f"{report.bubble:.0%} measured, {report.bubble_formula:.0%} by the formula for equal stages, "
        f"{report.bubble_unequal:.0%} for stages as unequal as these"
    )


def _line(stage: StageReport, report: LayerReport) -> str:
    holds = f"layers {stage.first}-{stage.end - 1} on {stage.device}"
    memory = f"weights {readable_bytes(stage.weight_bytes)}, cache {readable_bytes(stage.cache_bytes)}"
    told = f"layer stage {stage.stage}: {holds} (pid {stage.pid}), {memory}"
    if not report.span_s:
        return told
    waits = f"{_share(stage.wait_receive_s, report)} to receive, {_share(stage.wait_send_s, report)} to send"
    return (
        f"{told}; busy {_share(stage.busy_s, report)}, waits {waits}, copies {_share(stage.copy_s, report)}"
    )


def _share(seconds: float, report: LayerReport) -> str:
    return f"{seconds / report.span_s:.0%}"
