"""From measurements to what a stage can be offered: forms with batch, workers and their price: pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import msgspec

from edged.placement.cores import mask
from edged.placement.limits import Limits, Wishes
from edged.placement.table import Form, Point, Table

MOST_WORKERS = 8
MOST_WORKERS_OF_ONE_THREAD = 64
"""Where a stage has one for every core; as in `[stages]`."""
KEEPS_THREADS = frozenset({("openvino", True), ("simulated", True), ("simulated", False)})
"""Backend and whether it streams: what does not change its threads while it runs."""
Siblings = Mapping[int, Mapping[int, Point]]
"""Points of a form and of its siblings with other threads: by threads, by batch."""


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run a stage, and all that the planner has to know of it. Seconds are per request."""

    form: Form
    batch: int
    workers: int
    rate_per_s: float
    """When it never waits for cores or work."""
    cpu_s: float
    core_s: tuple[float, ...]
    """Entry n-1: seconds per request of all its workers together on n cores."""
    latency_s: float
    """Unloaded: of a batch of one, or of the smallest batch that was measured."""
    first_s: float
    loaded_latency_s: float
    """In a full batch."""
    loaded_first_s: float
    batch_s: float
    """Of a whole batch; what decides whether a lease bothers with it."""
    joules: float | None
    memory_bytes: int
    streaming: bool
    lanes: int = 1
    """See `Point.lanes`."""
    fixed: bool = False
    """The operator says how many workers."""


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """A form, or one batch or number of workers of it, that is out of the question, and why."""

    form: Form
    batch: int = 0
    workers: int = 0
    why: str


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What there is for one stage."""

    stage: str
    options: tuple[Option, ...]
    rejections: tuple[Rejection, ...]


class Prices:
    """A table, indexed."""

    def __init__(self, table: Table) -> None:
        self._families: dict[Form, dict[int, dict[int, Point]]] = defaultdict(lambda: defaultdict(dict))
        for point in table.points:
            if point.work == "typical":
                self._families[family(point.form)][point.form.threads][point.batch] = point
        self._weights = {weight.form: weight.memory_bytes for weight in table.weights}
        self._failures = {failure.form: failure for failure in table.failures}

    def offer(self, stage: str, wishes: Wishes, limits: Limits) -> Offer:
        """All options of a stage within the limits, and what is left out with the reason."""
        options: list[Option] = []
        rejections = [
            Rejection(form=form, why=f"does not run here: {failure.message}")
            for form, failure in sorted(self._failures.items())
            if form.stage == stage
        ]
        for form in self._forms(stage, wishes.model):
            if why := wishes.objection(form) or self._over(form, limits):
                rejections.append(Rejection(form=form, why=why))
                continue
            for option in self._options(form, wishes, limits):
                if isinstance(option, Rejection):
                    rejections.append(option)
                else:
                    options.append(option)
        return Offer(stage=stage, options=tuple(options), rejections=tuple(rejections))

    def _forms(self, stage: str, model: str) -> list[Form]:
        return sorted(
            msgspec.structs.replace(base, threads=threads)
            for base, siblings in self._families.items()
            if base.stage == stage and (base.model == model or not model)
            for threads in siblings
        )

    def _over(self, form: Form, limits: Limits) -> str:
        if form.device in limits.excluded:
            return f"device {form.device} is excluded"
        if form.threads > limits.cores:
            return f"it wants {form.threads} cores of {limits.cores}"
        return ""

    def siblings(self, form: Form) -> Siblings:
        """The points of a form and of those that differ in threads alone."""
        return self._families[family(form)]

    def unweighed(self, form: Form) -> bool:
        """Whether nothing is known about its memory."""
        return form not in self._weights

    def _options(self, form: Form, wishes: Wishes, limits: Limits) -> Iterator[Option | Rejection]:
        points = self.siblings(form)[form.threads]
        most = max((batch for batch in points if batch <= (wishes.max_batch or batch)), default=min(points))
        for batch in sorted(points):
            if wishes.max_batch and batch != most:
                why = f"the configuration says max_batch = {wishes.max_batch}"
                yield Rejection(form=form, batch=batch, why=why)
                continue
            for workers in _worker_counts(form, wishes, limits):
                option = self._option(form, points[batch], workers, limits.cores)
                option = msgspec.structs.replace(option, fixed=wishes.workers is not None)
                if option.memory_bytes > limits.memory_bytes:
                    need = f"needs {option.memory_bytes >> 20} MiB of {limits.memory_bytes >> 20}"
                    yield Rejection(form=form, batch=batch, workers=workers, why=need)
                else:
                    yield option

    def _option(self, form: Form, point: Point, workers: int, cores: int) -> Option:
        points = self.siblings(form)[form.threads]
        alone = points[min(points)]
        return Option(
            form=form,
            batch=point.batch,
            workers=workers,
            rate_per_s=workers * point.batch / point.wall_s,
            cpu_s=point.cpu_s / point.batch,
            core_s=tuple(self.seconds(form, point.batch, workers, n) for n in range(1, cores + 1)),
            latency_s=alone.wall_s,
            first_s=alone.first_s or alone.wall_s,
            loaded_latency_s=point.wall_s,
            loaded_first_s=point.first_s or point.wall_s,
            batch_s=point.wall_s,
            joules=None if point.joules is None else point.joules / point.batch,
            memory_bytes=workers * self._weights.get(form, 0),
            streaming=point.new_tokens > 0,
            lanes=point.lanes,
        )

    def seconds(self, form: Form, batch: int, workers: int, cores: int) -> float:
        """Seconds per request of a stage on `cores` cores: its workers share them.

        A lease never gives a worker more than the threads that it was born with. With fewer, it costs what
        the sibling of so many threads costs; where that was not measured, or the engine keeps its threads,
        its CPU seconds on those cores.
        """
        point = self.siblings(form)[form.threads][batch]
        if not form.threads:
            return point.wall_s / batch / workers
        running = min(workers, cores)
        threads = min(form.threads, max(1, cores // running))
        known = self.siblings(form)
        if threads < form.threads and (form.backend, point.new_tokens > 0) in KEEPS_THREADS:
            known = {}
        sibling = known.get(threads, {}).get(batch)
        wall_s = sibling.wall_s if sibling else max(point.wall_s, point.cpu_s / threads)
        return wall_s / batch / running


def family(form: Form) -> Form:
    """What a form has in common with its siblings of other thread counts."""
    return msgspec.structs.replace(form, threads=0)


def _worker_counts(form: Form, wishes: Wishes, limits: Limits) -> tuple[int, ...]:
    """As many workers as have cores of their own; one on an accelerator."""
    if wishes.workers is not None:
        return (wishes.workers,)
    most = limits.cores // form.threads if form.threads else 1
    few = tuple(range(1, min(most, MOST_WORKERS) + 1)) or (1,)
    own = mask(form.device, limits.cores).bit_count()
    return (*few, own) if form.threads == 1 and MOST_WORKERS < own <= MOST_WORKERS_OF_ONE_THREAD else few
