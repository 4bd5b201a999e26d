"""Measure what the agenda asks for, keep every answer as soon as it is there, stop in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from edged.config.tables import Rung
from edged.report import Status
from edged.rungs.agenda import Task, agenda
from edged.rungs.asking import Asker
from edged.rungs.figures import in_force
from edged.rungs.record import Record, Sheet, key_of
from edged.rungs.taking import Taking, unwell
from edged.rungs.worth import references


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long it may take, how much is asked, and when it is too hot."""

    budget_s: float
    answers: int
    """Of so many questions the answers are wanted; of all, the passages."""
    critical_c: float | None = None


class Stand(msgspec.Struct, frozen=True, kw_only=True):
    """How far a measurement is, for whoever watches."""

    what: str
    done: int
    """Tasks: a rung and a handful of questions each."""
    left: int
    expected_s: float | None
    """For what is left; None while too little was done to know."""
    budget_left_s: float


class Measurement:
    """One run of the command; `record` is what is known so far."""

    def __init__(
        self,
        ladder: Sequence[Rung],
        record: Record,
        asker: Asker,
        limits: Limits,
        keep: Callable[[Record], None],
        watch: Callable[[Stand], None],
    ) -> None:
        """`keep` is called with the record after every task."""
        self.record = record
        self.stopped = ""
        """Why it ended before its time; empty when it did not."""
        self._whole = in_force(ladder, record.unavailable)
        self._asker = asker
        self._limits = limits
        self._keep = keep
        self._watch = watch
        self._deadline_s = time.monotonic() + limits.budget_s
        self._given_up: set[Task] = set()
        self._spent_s: dict[str, list[float]] = {"search": [], "answer": []}

    def run(self, taking: Taking, rungs: Sequence[int]) -> Record:
        """Measure these rungs and those that they are compared with, as far as the budget goes."""
        names = self._names(rungs)
        while tasks := self._tasks(list(names)):
            task, left_s = tasks[0], self._deadline_s - time.monotonic()
            if left_s < self._expected_s(task):
                break
            self._tell(names[task.key], tasks, left_s)
            status = taking.take(names[task.key])
            if self._too_hot(status):
                break
            self._measure(task, status)
        return self.record

    def _names(self, rungs: Sequence[int]) -> dict[str, str]:
        """By key: the first rung that answers so."""
        compared = references(self._whole, self.record.fingerprint.generators)
        wanted = {0}
        for rung in rungs:
            while rung not in wanted:
                wanted.add(rung)
                rung = compared[rung]
        able = [n for n in sorted(wanted) if self._whole[n].name not in self.record.unavailable]
        names: dict[str, str] = {}
        for number in able:
            names.setdefault(key_of(self._whole[number]), self._whole[number].name)
        return names

    def _tasks(self, keys: Sequence[str]) -> list[Task]:
        tasks = agenda(keys, self.record.sheets, self.record.questions, self._limits.answers)
        return [task for task in tasks if task not in self._given_up]

    def _expected_s(self, task: Task) -> float:
        spent_s = self._spent_s[task.kind]
        return sum(spent_s) / len(spent_s) if spent_s else 0.0

    def _expected_of_all_s(self, tasks: Sequence[Task]) -> float | None:
        known = all(self._spent_s[task.kind] for task in tasks)
        return sum(map(self._expected_s, tasks)) if known else None

    def _tell(self, name: str, tasks: Sequence[Task], left_s: float) -> None:
        kind = "passages" if tasks[0].kind == "search" else "answers"
        self._watch(
            Stand(
                what=f"{name}: {kind} to {len(tasks[0].questions)} questions",
                done=sum(map(len, self._spent_s.values())),
                left=len(tasks),
                expected_s=self._expected_of_all_s(tasks),
                budget_left_s=left_s,
            )
        )

    def _too_hot(self, status: Status) -> bool:
        self.stopped = unwell(status, self._limits.critical_c)
        return bool(self.stopped)

    def _measure(self, task: Task, status: Status) -> None:
        began_s = time.monotonic()
        self._given_up.add(task)  # asked once: a question that was refused is left out of the figures
        questions = {number: self.record.questions[number] for number in task.questions}
        sheet = self.record.sheets.get(task.key, Sheet())
        if task.kind == "search":
            sheet = replace(sheet, found=sheet.found | self._asker.search(questions))
        else:
            answers, load = self._asker.answer(questions)
            sheet = replace(sheet, answers=sheet.answers | answers, loads=(*sheet.loads, load))
        sheet = self._placed(sheet, status)
        self._spent_s[task.kind].append(time.monotonic() - began_s)
        self.record = replace(self.record, sheets=self.record.sheets | {task.key: sheet})
        self._keep(self.record)

    def _placed(self, sheet: Sheet, status: Status) -> Sheet:
        stages = {stage.name: stage for stage in status.stages}
        used = [stages[name] for name in self.record.fingerprint.stages if name in stages]
        return replace(
            sheet,
            devices=tuple(dict.fromkeys(stage.device for stage in used)),
            variants={stage.name: stage.variant for stage in used},
        )
