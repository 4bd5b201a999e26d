"""What a running pipeline has to say, out of its specs and its meter."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from edged.layers.meter import Meter
from edged.layers.planning.bubble import steady
from edged.layers.report import LayerReport, StageReport
from edged.layers.spec import Loaded, StageSpec


def account(
    specs: Sequence[StageSpec],
    micro_batches: int,
    loaded: Sequence[Loaded],
    pids: Mapping[int, int],
    meter: Meter,
) -> LayerReport:
    """Put together what every stage did until the last turn ended."""
    stages = tuple(_stage(spec, told, pids, meter) for spec, told in zip(specs, loaded, strict=True))
    span_s = sum(meter.working_s.values())
    mean_s = [stage.busy_s / stage.jobs if stage.jobs else 0.0 for stage in stages]
    return LayerReport(
        mode=specs[0].mode,
        transport=specs[0].transport if len(specs) > 1 else "none",
        micro_batches=micro_batches,
        working_micro_batches=_mean({working: float(working) for working in meter.working_s}, meter),
        span_s=span_s,
        tokens=meter.emitted,
        bubble=max(0.0, meter.bubble(meter.turned_s)),
        bubble_formula=_expected(specs, [1.0] * len(specs), meter),
        bubble_unequal=_expected(specs, mean_s, meter) if all(mean_s) else 0.0,
        stages=stages,
    )


def _expected(specs: Sequence[StageSpec], stage_s: Sequence[float], meter: Meter) -> float:
    """The formula for each number of micro-batches that had work, weighed by how long so many had it."""
    by_number = {working: steady(specs[0].mode, stage_s, working) for working in meter.working_s if working}
    return _mean(by_number, meter)


def _mean(values: Mapping[int, float], meter: Meter) -> float:
    span_s = sum(meter.working_s[working] for working in values)
    return (
        sum(value * meter.working_s[working] for working, value in values.items()) / span_s if span_s else 0.0
    )


def _stage(spec: StageSpec, told: Loaded, pids: Mapping[int, int], meter: Meter) -> StageReport:
    times = meter.stages[spec.stage]
    return StageReport(
        stage=spec.stage,
        device=spec.device,
        first=spec.share.first,
        end=spec.share.end,
        pid=pids.get(spec.stage, os.getpid()),
        jobs=times.jobs,
        busy_s=times.busy_s,
        wait_receive_s=times.wait_receive_s,
        wait_send_s=times.wait_send_s,
        copy_s=times.copy_s,
        received_bytes=times.received_bytes,
        weight_bytes=told.weight_bytes,
        cache_bytes=told.cache_bytes,
    )
