"""From what was measured to the figures of each rung: pure.

Quality is that of finding (nDCG@10 in proportion to the first rung's) times that of telling (how much of
what is told without shorter answers and lighter generators, from the same passages, is told still). Cost is
the CPU seconds of an answer in proportion to the first rung's; where a stage runs on other silicon, or its
processes cannot be seen, the time between two answers at full load.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import median

import msgspec
from msgspec.structs import replace

from edged.config.tables import Rung
from edged.governor.effects import settings
from edged.rungs.record import Load, Question, Record, Sheet, key_of
from edged.rungs.scores import Mean, agreement, likeness, mean, said

LEAST_COST = 0.01
"""Of the first rung's; a rung that costs nothing would promise endless answers."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a rung costs and is worth, all in all; None where that was not measured."""

    name: str
    cost: Mean | None = None
    """Work of an answer in proportion to the first rung's."""
    quality: Mean | None = None
    """In proportion to the first rung's."""
    ndcg: Mean | None = None
    recall: Mean | None = None
    """Share of the right passages that are handed on."""
    agreement: Mean | None = None
    """Of its answers with the first rung's: their meanings, or without an embedder their words."""
    same_words: Mean | None = None
    """Word F1 of its answers with the first rung's."""
    said: Mean | None = None
    """Share of the words of the expected answers that are in its answers."""
    supported: Mean | None = None
    """Share of its answers whose citations contain what they say."""
    latency_s: float | None = None
    """Median, under the load of the run."""
    first_s: float | None = None
    """The same, until the first text."""
    throughput_per_s: float | None = None
    cpu_s: float | None = None
    """Of an answer."""
    joules: float | None = None
    """Of an answer, all else that the processor packages did included."""
    variants: dict[str, str] = {}
    """What each stage ran."""
    unavailable: str = ""
    """Why it could not be taken; empty for a rung that can."""


def figures(ladder: Sequence[Rung], record: Record) -> tuple[Figures, ...]:
    """The figures of every rung of a ladder, as far as they are known."""
    whole = in_force(ladder, record.unavailable)
    sheets = [record.sheets.get(key_of(each), Sheet()) for each in whole]
    told = _told(whole, sheets, record)
    return tuple(
        Figures(name=rung.name, unavailable=record.unavailable[rung.name])
        if rung.name in record.unavailable
        else _figures(rung.name, sheet, sheets[0], record.questions, telling)
        for rung, sheet, telling in zip(whole, sheets, told, strict=True)
    )


def in_force(ladder: Sequence[Rung], unavailable: Collection[str]) -> list[Rung]:
    """All that is done on each rung, without what those do that cannot be taken."""
    without = [number for number, rung in enumerate(ladder) if rung.name in unavailable]
    return [settings(ladder, number, without) for number in range(len(ladder))]


def measured(ladder: Sequence[Rung], found: Sequence[Figures]) -> tuple[Rung, ...]:
    """The ladder with measured cost and quality where the configuration is silent."""
    return tuple(
        replace(
            rung,
            cost=_else(rung.cost, each.cost, least=LEAST_COST),
            quality=_else(rung.quality, each.quality, most=1.0),
        )
        for rung, each in zip(ladder, found, strict=True)
    )


def _else(
    configured: float | None, known: Mean | None, *, least: float = 0.0, most: float = 10.0
) -> float | None:
    return configured if configured is not None or known is None else min(most, max(least, known.value))


def _figures(
    name: str, sheet: Sheet, best: Sheet, questions: Sequence[Question], telling: Mean | None
) -> Figures:
    answers = sheet.answers.values()
    firsts = [each.first_s for each in answers if each.first_s is not None]
    same_words = [agreement(sheet.answers[n].text, best.answers[n].text) for n in _both(sheet, best)]
    expected = [
        said(each.text, questions[n].answer) for n, each in sheet.answers.items() if questions[n].answer
    ]
    return Figures(
        name=name,
        cost=_cost(sheet, best),
        quality=_quality(_finding(sheet, best), telling),
        ndcg=_known([found.ndcg for found in sheet.found.values()]),
        recall=_known([found.recall for found in sheet.found.values()]),
        agreement=_known(_agreeing(sheet, best, best)),
        same_words=_known(same_words),
        said=_known(expected),
        supported=_known([float(each.supported) for each in answers]),
        latency_s=median(each.latency_s for each in answers) if answers else None,
        first_s=median(firsts) if firsts else None,
        throughput_per_s=_rate(sheet.loads),
        cpu_s=_each(sheet.loads, [load.cpu_s for load in sheet.loads]) or None,
        joules=_joules(sheet.loads),
        variants=sheet.variants,
    )


def _both(sheet: Sheet, other: Sheet) -> list[int]:
    return sorted(sheet.answers.keys() & other.answers.keys())


def _known(values: Sequence[float]) -> Mean | None:
    return mean(values) if values else None


# ---------------------------------------------------------------------- cost


def _rate(loads: Sequence[Load]) -> float | None:
    spent_s = sum(load.duration_s for load in loads)
    return sum(load.answered for load in loads) / spent_s if spent_s else None


def _each(loads: Sequence[Load], spent: Sequence[float]) -> float:
    return sum(spent) / max(1, sum(load.answered for load in loads))


def _joules(loads: Sequence[Load]) -> float | None:
    spent = [load.joules for load in loads if load.joules is not None]
    return _each(loads, spent) if spent and len(spent) == len(loads) else None


def _cost(sheet: Sheet, best: Sheet) -> Mean | None:
    """Run by run, each in proportion to the first rung's of the same round."""
    by_cpu = all(map(_on_cpu, (sheet, best)))
    pairs = [
        (_work(ours, by_cpu=by_cpu), _work(theirs, by_cpu=by_cpu))
        for ours, theirs in zip(sheet.loads, best.loads, strict=False)
    ]
    ratios = [ours / theirs for ours, theirs in pairs if theirs > 0]
    return _known(ratios)


def _work(load: Load, *, by_cpu: bool) -> float:
    return (load.cpu_s if by_cpu else load.duration_s) / max(1, load.answered)


def _on_cpu(sheet: Sheet) -> bool:
    """Whether CPU seconds are all the work there is, and can be seen."""
    here = all(device.removeprefix("sim:").startswith("cpu") for device in sheet.devices)
    return here and all(load.cpu_s > 0 for load in sheet.loads)


# ------------------------------------------------------------------- quality


def _finding(sheet: Sheet, best: Sheet) -> Mean | None:
    """Mean nDCG in proportion to the first rung's; the margin is that of the paired difference."""
    numbers = sorted(sheet.found.keys() & best.found.keys())
    total = mean([best.found[n].ndcg for n in numbers])
    if not total.value:
        return None
    difference = mean([best.found[n].ndcg - sheet.found[n].ndcg for n in numbers])
    return Mean(1 - difference.value / total.value, difference.margin / total.value, len(numbers))


def _told(rungs: Sequence[Rung], sheets: Sequence[Sheet], record: Record) -> list[Mean | None]:
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
    return key_of(replace(rung, answer_tokens=0, peer=False, variants=variants))


def _tells(rung: Rung, generators: Collection[str]) -> tuple[object, ...]:
    """All that decides what is told about them."""
    variants = {stage: name for stage, name in rung.variants.items() if stage in generators}
    return rung.answer_tokens, rung.peer, variants


def _agreeing(sheet: Sheet, reference: Sheet, best: Sheet) -> list[float]:
    """By answer that both gave: how much it is the same."""
    numbers = _both(sheet, reference)
    ours, theirs = ([each.answers[n] for n in numbers] for each in (sheet, reference))
    strangers = [answer.vector for answer in best.answers.values() if answer.vector]
    if len(strangers) < 2 or not all(answer.vector for answer in (*ours, *theirs)):  # noqa: PLR2004 - a pair
        return [agreement(a.text, b.text) for a, b in zip(ours, theirs, strict=True)]
    if not numbers:
        return []
    return likeness([answer.vector for answer in ours], [answer.vector for answer in theirs], strangers)


def _kept(sheet: Sheet, reference: Sheet, best: Sheet, questions: Sequence[Question]) -> Mean | None:
    """By the expected answers, in proportion, where all are known and some are given; else by agreement."""
    numbers = _both(sheet, reference)
    if numbers and all(questions[n].answer for n in numbers):
        ours, theirs = (
            [said(each.answers[n].text, questions[n].answer) for n in numbers] for each in (sheet, reference)
        )
        total = mean(theirs).value
        if total:
            lost = mean([b - a for a, b in zip(ours, theirs, strict=True)])
            return Mean(1 - lost.value / total, lost.margin / total, len(numbers))
    return _known(_agreeing(sheet, reference, best))


def _quality(finding: Mean | None, telling: Mean | None) -> Mean | None:
    return telling if finding is None else _product(finding, telling)


def _product(first: Mean | None, second: Mean | None) -> Mean | None:
    """The product, with the margin of independent factors."""
    if first is None or second is None:
        return None
    margin = math.hypot(first.margin * second.value, second.margin * first.value)
    counts = [each.count for each in (first, second) if each.count]
    return Mean(first.value * second.value, margin, min(counts, default=0))
