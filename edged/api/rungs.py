"""Metric families about the rung in force."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from edged.report import GovernorStatus


def governor_families(status: GovernorStatus) -> Iterator[Any]:
    """Yield the rung, and what was decided."""
    text = "Number of the rung in force; 0 is the best."
    yield GaugeMetricFamily("edged_governor_rung", text, value=status.rung)
    info = GaugeMetricFamily("edged_governor_info", "Always 1; the labels tell.", labels=["rung", "pin"])
    info.add_metric([status.name, status.pin], 1)
    yield info
    changes = CounterMetricFamily(
        "edged_governor_changes",
        "Changes of the rung, by direction and by the kind of signal or, without one, the reason.",
        labels=["direction", "cause"],
    )
    for direction, causes in status.changes.items():
        for cause, times in causes.items():
            changes.add_metric([direction, cause], times)
    yield changes
    text = "Rungs that could not be taken when they should have been."
    yield CounterMetricFamily("edged_governor_refusals", text, value=status.refused)
    spent = CounterMetricFamily("edged_governor_rung_seconds", "Time on each rung.", labels=["rung"])
    for rung, seconds in status.on_rung_s.items():
        spent.add_metric([rung], seconds)
    yield spent
