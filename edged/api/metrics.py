"""Prometheus metrics: what the dispatcher's status says, and what the API observes.

`docs/api.md` lists every name; a test compares the two.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from edged.api.heat import machine_families
from edged.api.layers import layer_families
from edged.api.passing import bypass_families
from edged.api.peers import peer_families
from edged.api.rungs import governor_families
from edged.dispatch.requests import Completed, StageTiming
from edged.report import PlanStatus, StageStatus, Status

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 300)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128)

_STAGE_GAUGES: dict[str, tuple[str, Callable[[StageStatus], float]]] = {
    "queued": ("Requests that wait in front of the stage.", lambda stage: stage.queued),
    "in_flight": ("Requests that the stage's workers hold.", lambda stage: stage.in_flight),
    "slots": ("Slots of the stage's output arena.", lambda stage: stage.slots),
    "slots_used": ("Slots of the stage's output arena that are leased.", lambda stage: stage.slots_used),
    "workers": ("Processes of the stage.", lambda stage: len(stage.workers)),
    "batch_limit": (
        "The largest micro-batch that is formed now; for a generator, sequences decoded together.",
        lambda stage: stage.batch_limit,
    ),
    "utilisation": (
        "Share of the last minute in which the stage's workers held work, 0 to 1.",
        lambda stage: stage.utilisation,
    ),
    "memory_bytes": (
        "Resident memory of the stage's processes.",
        lambda stage: sum(worker.memory_bytes for worker in stage.workers),
    ),
}
_STAGE_COUNTERS: dict[str, tuple[str, Callable[[StageStatus], float]]] = {
    "done": ("Items that the stage finished.", lambda stage: stage.done),
    "failed": ("Items that failed alone.", lambda stage: stage.failed),
    "swaps": ("Changes of the stage while it served that came into force.", lambda stage: stage.swaps),
    "swaps_failed": ("Such changes that left it as it was.", lambda stage: stage.swaps_failed),
    "device_losses": ("Workers that found their device gone.", lambda stage: stage.device_losses),
    "device_returns": ("Returns of the stage to a lost device.", lambda stage: stage.device_returns),
    "fallback_seconds": (
        "Time that the stage was not on the device on which it belongs.",
        lambda stage: stage.fallback_s,
    ),
    "restarts": ("Workers that were replaced after a fault.", lambda stage: stage.restarts),
}
_CACHE_GAUGES = {
    "entries": "What a cache holds; 0 for `prefix`, whose runtime does not count.",
    "bytes": "Memory that a cache takes.",
    "limit_bytes": "Bound of a cache, all workers together; 0 where the runtime does not tell.",
}
_CACHE_COUNTERS = {
    "hits": "Look-ups that were answered; of `prefix`, prompt tokens that were there.",
    "misses": "Look-ups, or prompt tokens, that had to be computed.",
    "evictions": "Entries that had to go for newer ones.",
}
_GAUGES: dict[str, tuple[str, Callable[[Status], float]]] = {
    "uptime_seconds": ("Time since the daemon started.", lambda status: status.uptime_s),
    "outstanding_requests": (
        "Accepted requests without a terminal event.",
        lambda status: status.outstanding,
    ),
    "entry_slots": ("Slots of the entry arena.", lambda status: status.entry_slots),
    "entry_slots_used": ("Slots of the entry arena that are leased.", lambda status: status.entry_slots_used),
    "resident_memory_bytes": ("Daemon and workers together.", lambda status: status.memory_bytes),
    "load_average": ("Load average of the machine over one minute.", lambda status: status.load_average),
}
_COUNTERS: dict[str, tuple[str, Callable[[Status], float]]] = {
    "requests_accepted": ("Requests that got an entry slot.", lambda status: status.accepted),
    "requests_completed": ("Accepted requests that were answered.", lambda status: status.completed),
}


class StatusCollector(Collector):  # type: ignore[misc]  # the library is untyped
    """Turns the dispatcher's status into metric families at each scrape."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def describe(self) -> Iterator[Any]:
        """Say nothing before the first scrape: the daemon may not be up yet."""
        return iter(())

    def collect(self) -> Iterator[Any]:
        """Yield every family."""
        status = self._status()
        for name, (help_text, read) in _GAUGES.items():
            yield GaugeMetricFamily(f"edged_{name}", help_text, value=read(status))
        for name, (help_text, read) in _COUNTERS.items():
            yield CounterMetricFamily(f"edged_{name}", help_text, value=read(status))
        yield from _daemon_families(status)
        if status.senses is not None:
            yield from machine_families(status.senses)
        if status.governor is not None:
            yield from governor_families(status.governor)
        if status.peers is not None:
            yield from peer_families(status.peers)
        if status.plan is not None:
            yield from _plan_families(status.plan)
        yield from _stage_families(status.stages)
        yield from bypass_families(status.stages)
        yield from layer_families(status.stages)
        for name, text in _CACHE_GAUGES.items():
            yield _by_cache(GaugeMetricFamily, name, text, status.stages)
        for name, text in _CACHE_COUNTERS.items():
            yield _by_cache(CounterMetricFamily, name, text, status.stages)


def _daemon_families(status: Status) -> Iterator[Any]:
    rejected = CounterMetricFamily(
        "edged_requests_rejected", "Requests refused, by error code.", labels=["code"]
    )
    for code, times in status.rejected.items():
        rejected.add_metric([code], times)
    yield rejected
    state = GaugeMetricFamily("edged_daemon_info", "Always 1; the labels tell.", labels=["version", "state"])
    state.add_metric([status.version, status.state], 1)
    yield state
    if status.temperature_c is not None:
        text = "The hottest plausible sensor; absent where there is none."
        yield GaugeMetricFamily("edged_temperature_celsius", text, value=status.temperature_c)


def _plan_families(plan: PlanStatus) -> Iterator[Any]:
    labels = ["plan", "objective", "bottleneck"]
    info = GaugeMetricFamily("edged_plan_info", "Always 1; the labels tell.", labels=labels)
    info.add_metric([plan.id, plan.objective, plan.bottleneck], 1)
    yield info
    text = "Requests per second at saturation, as planned."
    yield GaugeMetricFamily("edged_plan_predicted_rate", text, value=plan.predicted_rate_per_s)
    if plan.observed_rate_per_s is not None:
        text = "The same, when the planned bottleneck was last saturated."
        yield GaugeMetricFamily("edged_plan_observed_rate", text, value=plan.observed_rate_per_s)
    text = "1 when the plan should be made anew: status says why."
    yield GaugeMetricFamily("edged_plan_stale", text, value=float(bool(plan.stale)))
    pace = GaugeMetricFamily(
        "edged_plan_pace",
        "Below 1 the stage is slower than planned, above 1 faster; only where it was saturated.",
        labels=["stage"],
    )
    for stage, factor in plan.paces.items():
        pace.add_metric([stage], factor)
    yield pace


def _stage_families(stages: tuple[StageStatus, ...]) -> Iterator[Any]:
    labels = ["stage", "kind", "state", "model", "variant", "backend", "device"]
    info = GaugeMetricFamily("edged_stage_info", "Always 1; the labels tell.", labels=labels)
    for stage in stages:
        info.add_metric([stage.name, *(str(getattr(stage, label)) for label in labels[1:])], 1)
    yield info
    waiting = GaugeMetricFamily(
        "edged_stage_queued_by_priority",
        "Requests that wait in front of the stage, by class.",
        labels=["stage", "priority"],
    )
    for stage in stages:
        for priority, count in stage.queued_by_priority.items():
            waiting.add_metric([stage.name, priority], count)
    yield waiting
    for name, (help_text, read) in _STAGE_GAUGES.items():
        yield _fill(GaugeMetricFamily(f"edged_stage_{name}", help_text, labels=["stage"]), stages, read)
    for name, (help_text, read) in _STAGE_COUNTERS.items():
        yield _fill(CounterMetricFamily(f"edged_stage_{name}", help_text, labels=["stage"]), stages, read)


def _fill(family: Any, stages: tuple[StageStatus, ...], read: Callable[[StageStatus], float]) -> Any:
    for stage in stages:
        family.add_metric([stage.name], read(stage))
    return family


def _by_cache(kind: Any, name: str, help_text: str, stages: tuple[StageStatus, ...]) -> Any:
    family = kind(f"edged_cache_{name}", help_text, labels=["stage", "cache"])
    for stage in stages:
        for cache, counters in stage.caches.items():
            family.add_metric([stage.name, cache], getattr(counters, name))
    return family


class Metrics:
    """The registry of one daemon and the observations that the API makes."""

    def __init__(self, status: Callable[[], Status]) -> None:
        disable_created_metrics()  # the library's only switch: a time stamp per series doubles the page
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(StatusCollector(status))
        self._stages: dict[tuple[str, str, str], _StageHistograms] = {}
        self._pipelines: dict[str, _Series] = {}
        self._define_stage_metrics()
        self._define_request_metrics()

    def page(self) -> bytes:
        """Render everything in the text format."""
        return bytes(generate_latest(self._registry))

    def refused(self, code: str) -> None:
        """Count an error that a client got."""
        self._errors.labels(code).inc()

    def stopwatch(self, pipeline: str) -> Stopwatch:
        """Start timing a request."""
        return Stopwatch(self, pipeline)

    def of_pipeline(self, pipeline: str) -> _Series:
        """What is observed of a pipeline; looked up by its label once."""
        known = self._pipelines.get(pipeline)
        return known or self._pipelines.setdefault(pipeline, _Series(self, pipeline))

    def observe_stages(self, timings: tuple[StageTiming, ...]) -> None:
        """Record what each stage did for a request."""
        for timing in timings:
            key = (timing.stage, timing.device, timing.variant)
            stage = self._stages.get(key)
            if stage is None:
                stage = self._stages[key] = _StageHistograms(*(each.labels(*key) for each in self._per_stage))
            stage.observe(timing)

    def _define_stage_metrics(self) -> None:
        labels = ("stage", "device", "variant")
        self._per_stage = (
            self._histogram("stage_wait_seconds", "Time in the queue of a stage.", labels, _SECONDS),
            self._histogram("stage_compute_seconds", "Time in the work of a stage.", labels, _SECONDS),
            self._histogram("stage_batch_size", "Items of the micro-batch.", labels, _ITEMS),
        )

    def _define_request_metrics(self) -> None:
        labels = ("pipeline",)
        first = "Time from the request to the first token."
        each = "Time between tokens, averaged over an answer."
        self.first_token = self._histogram("time_to_first_token_seconds", first, labels, _SECONDS)
        self.per_token = self._histogram("time_per_output_token_seconds", each, labels, _SECONDS)
        self.duration = self._histogram("request_duration_seconds", "Whole answers.", labels, _SECONDS)
        self.resumes = self._counter("resumes", "Answers that another worker continued.", labels)
        self.tokens = self._counter(
            "tokens", "Tokens, by direction: prompt or completion.", ("pipeline", "direction")
        )
        self._errors = self._counter("api_errors", "Errors that clients got, by code.", ("code",))

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(f"edged_{name}", text, labels, buckets=buckets, registry=self._registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"edged_{name}", text, labels, registry=self._registry)


class _StageHistograms:
    def __init__(self, wait: Histogram, compute: Histogram, batch: Histogram) -> None:
        self._wait, self._compute, self._batch = wait, compute, batch

    def observe(self, timing: StageTiming) -> None:
        self._wait.observe(timing.wait_s)
        self._compute.observe(timing.compute_s)
        self._batch.observe(timing.batch)


class _Series:
    def __init__(self, metrics: Metrics, pipeline: str) -> None:
        self.duration = metrics.duration.labels(pipeline)
        self.prompt_tokens = metrics.tokens.labels(pipeline, "prompt")


class Stopwatch:
    """Times one request."""

    __slots__ = ("_first_s", "_metrics", "_pipeline", "_start_s", "created")

    def __init__(self, metrics: Metrics, pipeline: str) -> None:
        self._metrics = metrics
        self._pipeline = pipeline
        self._start_s = time.perf_counter()
        self._first_s = 0.0
        self.created = int(time.time())

    def first_token(self) -> None:
        """Note the first token; later calls change nothing."""
        if not self._first_s:
            self._first_s = time.perf_counter()
            self._metrics.first_token.labels(self._pipeline).observe(self._first_s - self._start_s)

    def completed(self, completed: Completed, prompt_tokens: int, completion_tokens: int) -> None:
        """Record an answer."""
        end_s = time.perf_counter()
        asyncio.get_running_loop().call_soon(self._record, end_s, completed, prompt_tokens, completion_tokens)

    def _record(self, end_s: float, completed: Completed, prompt_tokens: int, completion_tokens: int) -> None:
        """Observe once the answer is on its way: a dozen histograms cost more than a write."""
        metrics, pipeline = self._metrics, self._pipeline
        series = metrics.of_pipeline(pipeline)
        series.duration.observe(end_s - self._start_s)
        metrics.observe_stages(completed.timings)
        series.prompt_tokens.inc(prompt_tokens)
        if completion_tokens:
            metrics.tokens.labels(pipeline, "completion").inc(completion_tokens)
        if completed.resumed:
            metrics.resumes.labels(pipeline).inc(completed.resumed)
        if self._first_s and completion_tokens > 1:
            metrics.per_token.labels(pipeline).observe((end_s - self._first_s) / (completion_tokens - 1))

    def failed(self, code: str) -> None:
        """Record an answer that broke off."""
        self._metrics.refused(code)
