"""Metric families about who passes rerankers by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from edged.report import BypassStatus, StageStatus


def bypass_families(stages: tuple[StageStatus, ...]) -> Iterator[Any]:
    """Of every stage that can be passed by."""
    rows = [(stage.name, stage.bypass) for stage in stages if stage.bypass is not None]
    if not rows:
        return
    yield _info(rows)
    saved = CounterMetricFamily(
        "edged_stage_bypassed", "Requests that passed the stage by.", labels=["stage"]
    )
    lost = GaugeMetricFamily(
        "edged_stage_bypass_lost_points",
        "Expected loss of nDCG@10 by that, in points, on average over all requests that came to the stage.",
        labels=["stage"],
    )
    margin = GaugeMetricFamily(
        "edged_stage_bypass_from_margin",
        "The margin from which on a request passes by for benefit; absent where none does.",
        labels=["stage"],
    )
    for name, bypass in rows:
        saved.add_metric([name], bypass.bypassed)
        lost.add_metric([name], bypass.lost_points)
        if bypass.from_margin is not None:
            margin.add_metric([name], bypass.from_margin)
    yield from (saved, lost, margin)


def _info(rows: list[tuple[str, BypassStatus]]) -> Any:
    labels = ["stage", "mode", "passing", "calibration"]
    info = GaugeMetricFamily("edged_stage_bypass_info", "Always 1; the labels tell.", labels=labels)
    for name, bypass in rows:
        info.add_metric([name, bypass.mode, bypass.passing, bypass.calibration], 1)
    return info
