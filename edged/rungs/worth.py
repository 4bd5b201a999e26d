"""What is found and told on a rung, in proportion to the first: pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from msgspec.structs import replace

from edged.config.tables import Rung
from edged.rungs.record import Question, Record, Sheet, key_of
from edged.rungs.scores import Mean, agreement, likeness, mean, said


def both(sheet: Sheet, other: Sheet) -> list[int]:
    """Questions that both have answered."""
    return sorted(sheet.answers.keys() & other.answers.keys())


def mean_of(values: Sequence[float]) -> Mean | None:
    """The mean, or None of nothing."""
    return mean(values) if values else None


def finding(sheet: Sheet, best: Sheet) -> Mean | None:
    """Mean nDCG in proportion to the first rung's; the margin is that of the paired difference."""
    numbers = sorted(sheet.found.keys() & best.found.keys())
    total = mean([best.found[n].ndcg for n in numbers])
    if not total.value:
        return None
    difference = mean([best.found[n].ndcg - sheet.found[n].ndcg for n in numbers])
    return Mean(1 - difference.value / total.value, difference.margin / total.value, len(numbers))


def told(rungs: Sequence[Rung], sheets: Sequence[Sheet], record: Record) -> list[Mean | None]:
    """Of each rung, how much of what the full generator tells is told still.

    Compared with the first rung that finds the same passages, so that what is lost by finding less is not
    counted twice; what that one has lost already is counted.
    """
    generators = record.fingerprint.generators
    tells = [_tells(rung, generators) for rung in rungs]
    known: list[Mean | None] = []
    for number, reference in enumerate(references(rungs, generators)):
        if reference == number:
            known.append(Mean(1.0, 0.0, 0))
        elif tells[number] == tells[reference]:
            known.append(known[reference])
        else:
            kept = _kept(sheets[number], sheets[reference], sheets[0], record.questions)
            known.append(_product(known[reference], kept))
    return known


def references(rungs: Sequence[Rung], generators: Collection[str]) -> list[int]:
    """By rung, the one with which its answers are compared: see `_told`.

    The first with the same passages; where a rung is itself the first, the one before it.
    """
    finds = [_finds(rung, generators) for rung in rungs]
    firsts = [finds.index(each) for each in finds]
    return [first if first < number else max(0, number - 1) for number, first in enumerate(firsts)]


def _finds(rung: Rung, generators: Collection[str]) -> str:
    """All that decides which passages are found."""
    variants = {stage: name for stage, name in rung.variants.items() if stage not in generators}
    frugal = tuple(stage for stage in rung.frugal if stage not in generators)
    return key_of(replace(rung, answer_tokens=0, peer=False, variants=variants, frugal=frugal))


def _tells(rung: Rung, generators: Collection[str]) -> tuple[object, ...]:
    """All that decides what is told about them."""
    variants = {stage: name for stage, name in rung.variants.items() if stage in generators}
    return rung.answer_tokens, rung.peer, variants, {*rung.frugal} & {*generators}


def agreeing(sheet: Sheet, reference: Sheet, best: Sheet) -> list[float]:
    """By answer that both gave: how much it is the same."""
    numbers = both(sheet, reference)
    ours, theirs = ([each.answers[n] for n in numbers] for each in (sheet, reference))
    strangers = [answer.vector for answer in best.answers.values() if answer.vector]
    if len(strangers) < 2 or not all(answer.vector for answer in (*ours, *theirs)):  # noqa: PLR2004 - a pair
        return [agreement(a.text, b.text) for a, b in zip(ours, theirs, strict=True)]
    if not numbers:
        return []
    return likeness([answer.vector for answer in ours], [answer.vector for answer in theirs], strangers)


def _kept(sheet: Sheet, reference: Sheet, best: Sheet, questions: Sequence[Question]) -> Mean | None:
    """By the expected answers, in proportion, where all are known and some are given; else by agreement."""
    numbers = both(sheet, reference)
    if numbers and all(questions[n].answer for n in numbers):
        ours, theirs = (
            [said(each.answers[n].text, questions[n].answer) for n in numbers] for each in (sheet, reference)
        )
        total = mean(theirs).value
        if total:
            lost = mean([b - a for a, b in zip(ours, theirs, strict=True)])
            return Mean(1 - lost.value / total, lost.margin / total, len(numbers))
    return mean_of(agreeing(sheet, reference, best))


def quality(finding: Mean | None, telling: Mean | None) -> Mean | None:
    """Of an answer: that of finding times that of telling; where nothing is looked for, of telling alone."""
    return telling if finding is None else _product(finding, telling)


def _product(first: Mean | None, second: Mean | None) -> Mean | None:
    """The product, with the margin of independent factors."""
    if first is None or second is None:
        return None
    margin = math.hypot(first.margin * second.value, second.margin * first.value)
    counts = [each.count for each in (first, second) if each.count]
    return Mean(first.value * second.value, margin, min(counts, default=0))
