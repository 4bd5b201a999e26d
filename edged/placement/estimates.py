"""How long a measurement will take, from what is known: pure. For progress, not for decisions."""

from __future__ import annotations

from collections.abc import Sequence

from edged.placement.agenda import Duo, Known, Solo, Task
from edged.placement.forms import Candidate
from edged.placement.table import Form, Point, Work

CELL_S = 1.0
"""A cell is run again until its rounds took so long together, or `MOST_ROUNDS` are done."""
MOST_ROUNDS = 7
_FIRST_GUESS_S = {"generator": 1.5, "reranker": 0.5}
"""Of a batch of one, while nothing of the stage is measured."""
_LOAD_GUESS_S = 3.0
_LENGTH_FACTOR: dict[Work, float] = {"short": 0.6, "typical": 1.0, "long": 1.9}


def batch_s(candidate: Candidate, batch: int, known: Known, work: Work = "typical") -> float:
    """Seconds of one batch: measured, else in proportion to a smaller batch of the form or of its stage."""
    points = known.typical(candidate.form) or _of_stage(candidate.form, known)
    nearest = min(points.values(), key=lambda point: abs(point.batch - batch), default=None)
    single_s = nearest.wall_s / nearest.batch if nearest else _FIRST_GUESS_S.get(candidate.kind, 0.05)
    return single_s * batch * _LENGTH_FACTOR[work]


def expected_s(task: Task, known: Known) -> float:
    """Seconds that a task will take, loading included."""
    if isinstance(task, Solo):
        cells = [(batch_s(task.candidate, cell.batch, known, cell.work), cell.rounds) for cell in task.cells]
        return _load_s(task.candidate.form, known) + sum(max(one * n, CELL_S) for one, n in cells)
    return _load_s(task.first.form, known) + _load_s(task.second.form, known) + 5 * _slower_s(task, known)


def total_s(tasks: Sequence[Task], known: Known) -> float:
    """Seconds of a whole agenda as it looks now; passes that follow from its results are not in it."""
    return sum(expected_s(task, known) for task in tasks)


def _slower_s(task: Duo, known: Known) -> float:
    sides = (task.first, task.first_batch), (task.second, task.second_batch)
    return max(batch_s(candidate, batch, known) for candidate, batch in sides)


def _load_s(form: Form, known: Known) -> float:
    weight = known.weights.get(form)
    return weight.load_s + 1.0 if weight else _LOAD_GUESS_S


def _of_stage(form: Form, known: Known) -> dict[int, Point]:
    return next((known.typical(other) for other in known.points if other.stage == form.stage), {})
