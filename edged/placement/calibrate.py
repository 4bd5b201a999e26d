"""Measure what the agenda asks for, keep every figure as soon as it is there, stop in time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from statistics import median

import msgspec

from edged.placement.agenda import Cell, Duo, Known, Solo, Task, agenda
from edged.placement.completeness import closed, opened
from edged.placement.contention import slowdowns
from edged.placement.estimates import CELL_S, MOST_ROUNDS, batch_s, total_s
from edged.placement.forms import Candidate
from edged.placement.probe import Laps, Loop, ProbeSpec, Round, Run
from edged.placement.probing import BudgetSpent, Probe, ProbeFailed
from edged.placement.table import Failure, Form, Pair, Point, Table, Weight
from edged.placement.workload import Workload

PATIENCE = 20.0
"""A batch hangs when it takes so many times what is expected, and longer than `LEAST_PATIENCE_S`."""
LEAST_PATIENCE_S = 60.0
TOGETHER_LAPS, TOGETHER_LEAST_S = 2.2, 1.0
"""Two forms run side by side for so many laps of the slower one, and for so many seconds at least."""
WORTH_STARTING_S = 2.0
"""With less of the budget left, nothing is begun."""


class Limits(msgspec.Struct, frozen=True):
    """How long things may take."""

    budget_s: float
    load_s: float = 300.0
    """Loading one form."""
    least_patience_s: float = LEAST_PATIENCE_S


class Stand(msgspec.Struct, frozen=True, kw_only=True):
    """How far a calibration is, for whoever watches."""

    what: str
    done: int
    left: int
    expected_s: float
    """For what is left, as far as it is known."""
    budget_left_s: float


class Calibration:
    """One run of the command; `table` is what is known so far."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        workload: Workload,
        table: Table,
        limits: Limits,
        keep: Callable[[Table], None],
        watch: Callable[[Stand], None],
    ) -> None:
        """`keep` is called with the table after every figure."""
        self.table = table
        self._candidates = candidates
        self._workload = workload
        self._limits = limits
        self._keep = keep
        self._watch = watch
        self._start_s = time.monotonic()
        self._deadline_s = self._start_s + limits.budget_s
        self._given_up: set[tuple[Form, Form]] = set()
        self._done = 0

    def run(self) -> Table:
        """Measure until nothing is left or the budget is spent."""
        self.table = self._closed()
        with suppress(BudgetSpent):
            while tasks := self._agenda():
                if self._left_s() < WORTH_STARTING_S:
                    break
                self._tell(tasks)
                self._measure(tasks[0])
                self._done += 1
        self._update(self._closed())
        return self.table

    def _closed(self) -> Table:
        """The table with the stages finished of which nothing is left; a pair that was given up is left."""
        stages = {candidate.form.stage for candidate in self._candidates}
        return closed(self.table, stages, map(_stages, agenda(self._candidates, self.table)))

    def _agenda(self) -> list[Task]:
        share = 1 - self._left_s() / self._limits.budget_s
        tasks = agenda(self._candidates, self.table, share)
        return [task for task in tasks if not (isinstance(task, Duo) and _forms(task) in self._given_up)]

    def _left_s(self) -> float:
        return self._deadline_s - time.monotonic()

    def _tell(self, tasks: Sequence[Task]) -> None:
        self._watch(
            Stand(
                what=describe(tasks[0]),
                done=self._done,
                left=len(tasks),
                expected_s=total_s(tasks, Known(self.table)),
                budget_left_s=self._left_s(),
            )
        )

    def _measure(self, task: Task) -> None:
        if isinstance(task, Solo):
            self._alone(task)
        else:
            self._together(task)

    def _probe(self, stack: ExitStack, candidate: Candidate, batch: int) -> tuple[Probe, float]:
        """A loaded probe, opened for so many sequences, and the seconds that loading took."""
        stage = msgspec.structs.replace(candidate.spec, max_batch=max(batch, 1))
        spec = ProbeSpec(parent=os.getpid(), stage=stage, workload=self._workload)
        probe = stack.enter_context(Probe(spec, self._deadline_s))
        return probe, probe.loaded(self._limits.load_s).load_s

    # ------------------------------------------------------------ one form

    def _alone(self, task: Solo) -> None:
        form, cell = task.candidate.form, None
        with ExitStack() as stack:
            try:
                most = max(cell.batch for cell in task.cells)
                probe, load_s = self._probe(stack, task.candidate, most)
                self._rounds(probe, task.candidate, Cell(1))
                for cell in task.cells:
                    if self._wanted(task.candidate, cell):
                        self._note(form, cell, self._rounds(probe, task.candidate, cell), load_s)
            except ProbeFailed as error:
                self._refuse(form, cell, error)

    def _wanted(self, candidate: Candidate, cell: Cell) -> bool:
        """Whether a cell is still on the agenda, now that smaller ones are measured."""
        return any(
            isinstance(task, Solo) and task.candidate.form == candidate.form and cell in task.cells
            for task in self._agenda()
        )

    def _rounds(self, probe: Probe, candidate: Candidate, cell: Cell) -> list[Round]:
        """Run a cell until it has its rounds and its time; the first round is warm-up where others follow."""
        rounds: list[Round] = []
        while not self._enough(rounds, cell):
            limit_s = self._patience_s(candidate, cell)
            rounds.append(probe.ask(Run(cell.batch, cell.work), Round, limit_s))
        return rounds[1:] or rounds

    @staticmethod
    def _enough(rounds: Sequence[Round], cell: Cell) -> bool:
        took_s = sum(each.wall_s for each in rounds)
        warm = len(rounds) - 1 if len(rounds) > 1 else len(rounds)
        return warm >= cell.rounds and (took_s >= CELL_S or warm >= MOST_ROUNDS)

    def _patience_s(self, candidate: Candidate, cell: Cell) -> float:
        expected = batch_s(candidate, cell.batch, Known(self.table), cell.work)
        return max(PATIENCE * expected, self._limits.least_patience_s)

    def _note(self, form: Form, cell: Cell, rounds: Sequence[Round], load_s: float) -> None:
        point = point_of(form, cell, rounds)
        memory_bytes = max(each.memory_bytes for each in rounds)
        weight = Weight(form=form, memory_bytes=memory_bytes, load_s=round(load_s, 3), batch=cell.batch)
        same = (cell.batch, cell.work)
        points = [p for p in self.table.points if p.form != form or (p.batch, p.work) != same]
        former = next((w for w in self.table.weights if w.form == form), weight)
        if former.batch > weight.batch:
            weight = msgspec.structs.replace(former, load_s=weight.load_s)
        weights = [w for w in self.table.weights if w.form != form]
        self._update(self._reopened(form), points=(*points, point), weights=(*weights, weight))

    def _refuse(self, form: Form, cell: Cell | None, error: ProbeFailed) -> None:
        """A form that fails before it has a figure does not run here; else so large a batch does not."""
        runs = cell is not None and any(point.form == form for point in self.table.points)
        failure = Failure(
            form=form,
            code=error.code,
            message=error.message,
            batch=cell.batch if runs and cell else 0,
            work=cell.work if runs and cell else "typical",
        )
        self._update(self._reopened(form), failures=(*self.table.failures, failure))

    def _reopened(self, form: Form) -> Table:
        return opened(self.table, {form.stage})

    # ----------------------------------------------------------- two forms

    def _together(self, task: Duo) -> None:
        with ExitStack() as stack:
            try:
                pair = self._pair(stack, task)
            except ProbeFailed:
                self._given_up.add(_forms(task))
                return
        self._update(self.table, pairs=(*self.table.pairs, pair))

    def _pair(self, stack: ExitStack, task: Duo) -> Pair:
        sides = ((task.first, task.first_batch), (task.second, task.second_batch))
        probes = [self._probe(stack, candidate, batch)[0] for candidate, batch in sides]
        alone = [
            median(each.wall_s for each in self._rounds(probe, candidate, Cell(batch)))
            for probe, (candidate, batch) in zip(probes, sides, strict=True)
        ]
        laps = self._side_by_side(probes, sides, max(alone))
        first, second = slowdowns(laps[0], laps[1], alone[0], alone[1])
        return Pair(
            first=task.first.form,
            second=task.second.form,
            first_batch=task.first_batch,
            second_batch=task.second_batch,
            first_slowdown=round(first, 3),
            second_slowdown=round(second, 3),
        )

    def _side_by_side(
        self, probes: Sequence[Probe], sides: Sequence[tuple[Candidate, int]], slower_s: float
    ) -> list[tuple[tuple[float, float], ...]]:
        length_s = max(TOGETHER_LAPS * slower_s, TOGETHER_LEAST_S)
        until_s = time.monotonic() + length_s
        for probe, (_, batch) in zip(probes, sides, strict=True):
            probe.tell(Loop(batch, until_s))
        limit_s = length_s + max(PATIENCE * slower_s, self._limits.least_patience_s)
        return [probe.heard(Laps, limit_s).times for probe in probes]

    def _update(self, table: Table, **changes: object) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.table = msgspec.structs.replace(table, measured_at=now, **changes)
        self._keep(self.table)


def point_of(form: Form, cell: Cell, rounds: Sequence[Round]) -> Point:
    """Medians over rounds."""
    walls = [each.wall_s for each in rounds]
    wall_s = median(walls)
    spent = [each.joules for each in rounds if each.joules is not None]
    return Point(
        form=form,
        batch=cell.batch,
        work=cell.work,
        length=round(median(each.length for each in rounds)),
        cached_tokens=round(median(each.cached_tokens for each in rounds)),
        new_tokens=round(median(each.new_tokens for each in rounds)),
        lanes=rounds[0].lanes,
        wall_s=round(wall_s, 6),
        cpu_s=round(median(each.cpu_s for each in rounds), 6),
        first_s=round(median(each.first_s for each in rounds), 6),
        joules=median(spent) if spent else None,
        rounds=len(rounds),
        others=round(median(each.others for each in rounds), 2),
        spread=round((max(walls) - min(walls)) / wall_s, 3) if wall_s else 0.0,
    )


def describe(task: Task) -> str:
    """A task in a line.

    The parts that make it slow or quick: stage, variant, backend, device, threads, options.
    """
    if isinstance(task, Duo):
        return f"{label(task.first.form)} + {label(task.second.form)}"
    batches = ",".join(dict.fromkeys(str(cell.batch) for cell in task.cells))
    return f"{label(task.candidate.form)} x{batches}"


def label(form: Form) -> str:
    """A form in a few words."""
    threads = f"{form.threads}t" if form.threads else ""
    options = " ".join(f"{name}={str(value).lower()}" for name, value in form.options)
    return " ".join(filter(None, (form.stage, form.variant, form.backend, form.device, threads, options)))


def _forms(task: Duo) -> tuple[Form, Form]:
    return task.first.form, task.second.form


def _stages(task: Task) -> tuple[str, ...]:
    if isinstance(task, Duo):
        return task.first.form.stage, task.second.form.stage
    return (task.candidate.form.stage,)
