"""What the stages of a layer pipeline did with their time: from the timings that come round with each job."""

from __future__ import annotations

from collections import defaultdict, deque

import msgspec

from edged.layers.wire import Job, Timing

KEPT = 20_000
"""Timings kept for a timeline, when one is asked for."""
PAUSE_S = 0.5
"""An owner that lets this pass between two turns has paused the pipeline: that is no bubble."""


class StageTimes(msgspec.Struct, kw_only=True):
    """Seconds and counts of one stage so far, in the time in which the pipeline had work."""

    jobs: int = 0
    busy_s: float = 0.0
    wait_receive_s: float = 0.0
    wait_send_s: float = 0.0
    copy_s: float = 0.0
    received_bytes: int = 0


class Meter:
    """Sums of all stages. `span_s` is the time in which jobs were on their way."""

    def __init__(self, stages: int) -> None:
        self.stages = [StageTimes() for _ in range(stages)]
        self.span_s = 0.0
        self.emitted = 0
        self.timeline: deque[tuple[int, Timing]] | None = None
        """Micro-batches and timings, for a plot."""
        self.working_s: defaultdict[int, float] = defaultdict(float)
        """Of the time with work: how long so many micro-batches had some."""
        self.turned_s = 0.0
        """When the last turn ended."""
        self._since_s: float | None = None
        self._marked_s = 0.0
        self._working = 0

    def keep_timeline(self) -> None:
        """Keep micro-batches and timings from now on, for a plot."""
        self.timeline = deque(maxlen=KEPT)

    def begin(self, now_s: float) -> None:
        """Note that a job starts."""
        if self._since_s is None:
            self._since_s = self._marked_s = now_s

    def rest(self, now_s: float) -> None:
        """Note that nothing is on its way any more."""
        if self._since_s is not None:
            self._mark(now_s)
            self.span_s += now_s - self._since_s
            self._since_s = None

    def turn(self, now_s: float, working: int) -> None:
        """Note that a turn begins, while so many micro-batches have work."""
        if self._since_s is not None and now_s - self.turned_s > PAUSE_S:
            self.rest(self.turned_s)
            self.begin(now_s)
        self._mark(now_s)
        self._working = working

    def turned(self, now_s: float) -> None:
        """Note that a turn has ended."""
        self._mark(now_s)
        self.turned_s = now_s

    def _mark(self, now_s: float) -> None:
        if self._since_s is not None:
            self.working_s[self._working] += now_s - self._marked_s
            self._marked_s = now_s

    def add(self, job: Job, emitted: int) -> None:
        """Count a job that came back."""
        self.emitted += emitted
        for timing in job.timings:
            self._count(timing)
            if self.timeline is not None:
                self.timeline.append((job.lane, timing))

    def _count(self, timing: Timing) -> None:
        times = self.stages[timing.stage]
        waited_from_s = max(timing.waited_from_s, self._since_s or 0.0)
        times.jobs += 1
        times.busy_s += timing.ended_s - timing.began_s
        times.wait_receive_s += max(0.0, timing.began_s - waited_from_s)
        times.wait_send_s += timing.sending_s
        times.copy_s += timing.copy_s
        times.received_bytes += timing.received_bytes

    def bubble(self, now_s: float) -> float:
        """Return the share of all stages' time that was not spent computing; 0 before any work."""
        span_s = self.span_s + (now_s - self._since_s if self._since_s is not None else 0.0)
        busy_s = sum(stage.busy_s for stage in self.stages)
        return min(1.0, max(0.0, 1 - busy_s / (len(self.stages) * span_s))) if span_s else 0.0
