"""Layer pipelines in the metrics: what each stage of one did, by the stage that it is the generator of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from edged.layers.report import LayerReport, StageReport
from edged.report import StageStatus

_COUNTERS: dict[str, tuple[str, Callable[[StageReport], float]]] = {
    "jobs": ("Turns of micro-batches that a layer stage computed.", lambda each: each.jobs),
    "busy_seconds": ("Time in which a layer stage computed.", lambda each: each.busy_s),
    "wait_receive_seconds": (
        "Time in which a layer stage waited for the one before, while there was work.",
        lambda each: each.wait_receive_s,
    ),
    "wait_send_seconds": (
        "Time in which sending to the next kept a layer stage waiting.",
        lambda each: each.wait_send_s,
    ),
    "copy_seconds": (
        "Time in which a layer stage waited for copies between host and device.",
        lambda each: each.copy_s,
    ),
    "received_bytes": ("Bytes of tensors that a layer stage received.", lambda each: each.received_bytes),
}
_GAUGES: dict[str, tuple[str, Callable[[StageReport], float]]] = {
    "weight_bytes": ("Weights that a layer stage holds.", lambda each: each.weight_bytes),
    "cache_bytes": ("Keys and values that a layer stage has room for.", lambda each: each.cache_bytes),
}
_WHOLE: dict[str, tuple[str, Callable[[LayerReport], float]]] = {
    "bubble": (
        "Share of the layer stages' time in which they did nothing although there was work, 0 to 1.",
        lambda report: report.bubble,
    ),
    "bubble_formula": (
        "The same by the formula for equal stages and the micro-batches that had work.",
        lambda report: report.bubble_formula,
    ),
    "working_micro_batches": (
        "Micro-batches that had work, on average over the time in which any had.",
        lambda report: report.working_micro_batches,
    ),
}


def layer_families(stages: Sequence[StageStatus]) -> Iterator[Any]:
    """Yield the families of all layer pipelines; several workers of a stage are added up."""
    found = {stage.name: reports for stage in stages if (reports := _reports(stage))}
    for name, (text, read) in _COUNTERS.items():
        yield _by_layer_stage(CounterMetricFamily, name, text, read, found)
    for name, (text, read) in _GAUGES.items():
        yield _by_layer_stage(GaugeMetricFamily, name, text, read, found)
    span = CounterMetricFamily(
        "edged_layer_span_seconds", "Time in which a layer pipeline had work.", labels=["stage"]
    )
    for stage, reports in found.items():
        span.add_metric([stage], sum(report.span_s for report in reports))
    yield span
    for name, (text, value) in _WHOLE.items():
        family = GaugeMetricFamily(f"edged_layer_{name}", text, labels=["stage"])
        for stage, reports in found.items():
            family.add_metric([stage], _weighed(reports, value))
        yield family


def _reports(stage: StageStatus) -> list[LayerReport]:
    return [worker.layers for worker in stage.workers if worker.layers is not None]


def _by_layer_stage(
    kind: Any,
    name: str,
    text: str,
    read: Callable[[StageReport], float],
    found: dict[str, list[LayerReport]],
) -> Any:
    family = kind(f"edged_layer_{name}", text, labels=["stage", "layer_stage"])
    for stage, reports in found.items():
        sums: defaultdict[int, float] = defaultdict(float)
        for each in (each for report in reports for each in report.stages):
            sums[each.stage] += read(each)
        for number, value in sorted(sums.items()):
            family.add_metric([stage, str(number)], value)
    return family


def _weighed(reports: Sequence[LayerReport], value: Callable[[LayerReport], float]) -> float:
    """The average over workers, by how long each had work."""
    span_s = sum(report.span_s for report in reports)
    return sum(value(report) * report.span_s for report in reports) / span_s if span_s else 0.0
