"""Cores and accelerators in virtual time, shared by the jobs that run on them: pure.

What shares cores gets an equal share of them, or what it wants where that is less (`fairness.py`).
An accelerator is divided equally.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from edged.placement import fairness
from edged.placement.cores import mask
from edged.placement.interference import Excess
from edged.placement.table import Form

if TYPE_CHECKING:
    from simpy import Environment, Event

DONE_S = 1e-9
"""What is left of a job is rounding."""


class Job(msgspec.Struct, frozen=True):
    """A batch, or a step of a token worker."""

    form: Form
    seconds: float
    """When nothing else runs."""
    busy: float
    """Cores that it keeps busy meanwhile."""
    threads: int = 0
    """Those that it runs on under its lease."""


class Silicon:
    """Runs jobs; `excess` is what neighbours cost beyond sharing cores fairly, None for nothing.

    It was measured with all threads at work, so it counts where nobody is told to use fewer, and where two
    jobs together have more threads than there are cores.
    """

    def __init__(
        self, environment: Environment, cores: int, excess: Excess | None, *, leased: bool = False
    ) -> None:
        self._environment = environment
        self._cores = cores
        self._excess = excess
        self._most_threads = cores if leased else 0
        self._left: dict[int, float] = {}
        self._jobs: dict[int, tuple[Job, Event]] = {}
        self._slowdowns: dict[int, float] = {}
        self._at = 0.0
        self._version = 0
        self._busy = 0.0
        self._area = 0.0

    def run(self, job: Job) -> Event:
        """Begin a job; the event comes when it is done."""
        self._advance()
        done = self._environment.event()
        self._version += 1
        self._jobs[self._version], self._left[self._version] = (job, done), job.seconds
        self._plan()
        return done

    def core_seconds(self) -> float:
        """Core-seconds used so far."""
        return self._area + self._busy * (self._environment.now - self._at)

    def _advance(self) -> None:
        elapsed_s = self._environment.now - self._at
        self._area += self._busy * elapsed_s
        self._at = self._environment.now
        for number in self._left:
            self._left[number] -= elapsed_s / self._slowdowns[number]

    def _plan(self) -> None:
        """Look when the next job will be done if nothing changes."""
        jobs = [job for job, _ in self._jobs.values()]
        found = slowdowns(jobs, self._cores, self._excess, self._most_threads)
        self._slowdowns = dict(zip(self._jobs, found, strict=True))
        self._busy = sum(job.busy / slow for job, slow in zip(jobs, found, strict=True))
        self._version += 1
        if self._jobs:
            next_s = min(self._left[number] * self._slowdowns[number] for number in self._jobs)
            timer = self._environment.timeout(max(0.0, next_s), self._version)
            assert timer.callbacks is not None
            timer.callbacks.append(self._due)

    def _due(self, timer: Event) -> None:
        if timer.value != self._version:
            return
        self._advance()
        for number in [number for number, left_s in self._left.items() if left_s <= DONE_S]:
            _, done = self._jobs.pop(number)
            del self._left[number], self._slowdowns[number]
            done.succeed()
        self._plan()


def slowdowns(jobs: Sequence[Job], cores: int, excess: Excess | None, most_threads: int = 0) -> list[float]:
    """By how much each of these jobs is slower than alone; at least 1.

    Neighbours with `most_threads` or fewer between them have no excess.
    """
    everything = (1 << cores) - 1
    hosted = [mask(job.form.device, cores) or everything for job in jobs]  # any core feeds an accelerator
    crowding = fairness.slowdowns([job.busy for job in jobs], hosted)
    return [crowd * _company(jobs, place, most_threads, excess) for place, crowd in enumerate(crowding)]


def _company(jobs: Sequence[Job], place: int, most_threads: int, excess: Excess | None) -> float:
    job = jobs[place]
    own = job.form
    others = [other for number, other in enumerate(jobs) if number != place]
    if not own.device.startswith("cpu"):
        return 1.0 + sum(other.form.device == own.device for other in others)
    if excess is None:
        return 1.0
    crowding = [
        o.form for o in others if o.form.stage != own.stage and job.threads + o.threads > most_threads
    ]
    return 1.0 + sum(excess(own, other) - 1 for other in crowding)
