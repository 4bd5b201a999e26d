"""From samples to the figures that an operator wants: pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from edged.load.sample import Sample

BUSY = 0.7
"""Below this share of the run the busiest stage is no bottleneck: more load would be served."""


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Of a duration, in seconds; None where nothing was measured."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    maximum: float | None = None


class StageLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage did during the run."""

    utilisation: float
    """Share of the run in which it was answering at least one of these requests, 0..1."""
    compute_s: float
    """Mean per request."""
    wait_s: float
    """Mean time that a request waited for it."""
    mean_batch: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run: a number of clients, or a rate."""

    clients: int
    """Of a closed loop; of an open loop, the most that were in flight."""
    rate_per_s: float | None
    """Arrivals of an open loop; None for a closed one."""
    duration_s: float
    answered: int
    errors: dict[str, int]
    throughput_per_s: float
    tokens_per_s: float
    latency: Quantiles
    first_token: Quantiles
    token_gap: Quantiles
    stages: dict[str, StageLoad]
    bottleneck: str
    """Name of the stage; empty when none was busy."""
    verdict: str
    """The same in a sentence."""


def report(samples: Sequence[Sample], *, clients: int, rate_per_s: float | None, duration_s: float) -> Report:
    """Summarise a run of `duration_s` seconds; unanswered requests count as errors only."""
    good = [sample for sample in samples if not sample.error]
    stages = stage_loads(good, duration_s)
    busiest = max(stages, key=lambda name: stages[name].utilisation, default="")
    bottleneck = busiest if stages and stages[busiest].utilisation >= BUSY else ""
    return Report(
        clients=clients,
        rate_per_s=rate_per_s,
        duration_s=duration_s,
        answered=len(good),
        errors=dict(Counter(sample.error for sample in samples if sample.error)),
        throughput_per_s=len(good) / duration_s,
        tokens_per_s=sum(sample.tokens for sample in good) / duration_s,
        latency=quantiles(sample.latency_s for sample in good),
        first_token=quantiles(s.first_s - s.due_s for s in good if s.first_s is not None),
        token_gap=quantiles(gap for sample in good for gap in sample.gaps_s),
        stages=stages,
        bottleneck=bottleneck,
        verdict=_verdict(bottleneck, stages),
    )


def quantiles(values: Iterable[float]) -> Quantiles:
    """Linear-interpolated quantiles.

    >>> quantiles([1.0, 2.0, 3.0]).p50
    2.0
    """
    array = np.fromiter(values, np.float64)
    if not array.size:
        return Quantiles()
    p50, p95, p99 = (float(value) for value in np.percentile(array, (50, 95, 99)))
    return Quantiles(p50=p50, p95=p95, p99=p99, maximum=float(array.max()))


def stage_loads(samples: Sequence[Sample], duration_s: float) -> dict[str, StageLoad]:
    """Per stage; when it worked on a request is reckoned back from the request's end."""
    names = dict.fromkeys(timing.stage for sample in samples for timing in sample.timings)
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for sample in samples:
        end = sample.end_s
        for timing in reversed(sample.timings):
            spans[timing.stage].append((end - timing.compute_s, end))
            end -= timing.compute_s + timing.wait_s
    return {name: _stage_load(name, samples, covered(spans[name]) / duration_s) for name in names}


def _stage_load(name: str, samples: Sequence[Sample], share: float) -> StageLoad:
    timings = [timing for sample in samples for timing in sample.timings if timing.stage == name]
    return StageLoad(
        utilisation=min(1.0, share),
        compute_s=sum(timing.compute_s for timing in timings) / len(timings),
        wait_s=sum(timing.wait_s for timing in timings) / len(timings),
        mean_batch=sum(timing.batch for timing in timings) / len(timings),
    )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals.

    >>> covered([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)])
    4.0
    """
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _verdict(bottleneck: str, stages: dict[str, StageLoad]) -> str:
    if not stages:
        return "nothing was answered"
    if not bottleneck:
        return "no stage was busy all the time: the load is the limit; try more clients or a higher rate"
    load = stages[bottleneck]
    waited = max(stages, key=lambda name: stages[name].wait_s)
    behind = f"; requests waited longest for {waited} ({stages[waited].wait_s:.2f} s)"
    return f"{bottleneck} is the bottleneck: busy {load.utilisation:.0%} of the time{behind}"
