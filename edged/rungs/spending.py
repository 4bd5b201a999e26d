"""What the answers of a rung took: pure."""

from __future__ import annotations

from collections.abc import Sequence

from edged.rungs.record import Load, Sheet
from edged.rungs.scores import Mean
from edged.rungs.worth import mean_of


def rate(loads: Sequence[Load]) -> float | None:
    """Answers per second."""
    spent_s = sum(load.duration_s for load in loads)
    return sum(load.answered for load in loads) / spent_s if spent_s else None


def an_answer(loads: Sequence[Load], spent: Sequence[float]) -> float:
    """What an answer took of what each load has spent."""
    return sum(spent) / max(1, sum(load.answered for load in loads))


def joules(loads: Sequence[Load]) -> float | None:
    """Of an answer; None where it was not measured throughout."""
    spent = [load.joules for load in loads if load.joules is not None]
    return an_answer(loads, spent) if spent and len(spent) == len(loads) else None


def cost(sheet: Sheet, best: Sheet) -> Mean | None:
    """Run by run, each in proportion to the first rung's of the same round."""
    by_cpu = all(map(_on_cpu, (sheet, best)))
    pairs = [
        (_work(ours, by_cpu=by_cpu), _work(theirs, by_cpu=by_cpu))
        for ours, theirs in zip(sheet.loads, best.loads, strict=False)
    ]
    ratios = [ours / theirs for ours, theirs in pairs if theirs > 0]
    return mean_of(ratios)


def _work(load: Load, *, by_cpu: bool) -> float:
    return (load.cpu_s if by_cpu else load.duration_s) / max(1, load.answered)


def _on_cpu(sheet: Sheet) -> bool:
    """Whether CPU seconds are all the work there is, and can be seen."""
    here = all(device.removeprefix("sim:").startswith("cpu") for device in sheet.devices)
    return here and all(load.cpu_s > 0 for load in sheet.loads)
