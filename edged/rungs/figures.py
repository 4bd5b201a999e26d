"""From what was measured to the figures of each rung: pure.

Quality is that of finding (nDCG@10 in proportion to the first rung's) times that of telling (how much of
what is told without shorter answers and lighter generators, from the same passages, is told still). Cost is
the CPU seconds of an answer in proportion to the first rung's; where a stage runs on other silicon, or its
processes cannot be seen, the time between two answers at full load.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import median

import msgspec
from msgspec.structs import replace

from edged.config.tables import Rung
from edged.governor.effects import settings
from edged.rungs.record import Question, Record, Sheet, key_of
from edged.rungs.scores import Mean, agreement, said
from edged.rungs.spending import an_answer, cost, joules, rate
from edged.rungs.worth import agreeing, both, finding, mean_of, quality, told

LEAST_COST = 0.01
"""Of the first rung's; a rung that costs nothing would promise endless answers."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a rung costs and is worth, all in all; None where that was not measured.

    Only questions count that the first rung was asked too: others may be easier.
    """

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
    telling_of = told(whole, sheets, record)
    return tuple(
        Figures(name=rung.name, unavailable=record.unavailable[rung.name])
        if rung.name in record.unavailable
        else _figures(rung.name, sheet, sheets[0], record.questions, telling)
        for rung, sheet, telling in zip(whole, sheets, telling_of, strict=True)
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
    answers = [sheet.answers[n] for n in both(sheet, best)] or list(sheet.answers.values())
    finds = [sheet.found[n] for n in sorted(sheet.found.keys() & best.found.keys())]
    firsts = [each.first_s for each in answers if each.first_s is not None]
    same_words = [agreement(sheet.answers[n].text, best.answers[n].text) for n in both(sheet, best)]
    expected = [
        said(each.text, questions[n].answer) for n, each in sheet.answers.items() if questions[n].answer
    ]
    return Figures(
        name=name,
        cost=cost(sheet, best),
        quality=quality(finding(sheet, best), telling) if _judged(sheet, best, questions) else None,
        ndcg=mean_of([found.ndcg for found in finds]),
        recall=mean_of([found.recall for found in finds]),
        agreement=mean_of(agreeing(sheet, best, best)),
        same_words=mean_of(same_words),
        said=mean_of(expected),
        supported=mean_of([float(each.supported) for each in answers]),
        latency_s=median(each.latency_s for each in answers) if answers else None,
        first_s=median(firsts) if firsts else None,
        throughput_per_s=rate(sheet.loads),
        cpu_s=an_answer(sheet.loads, [load.cpu_s for load in sheet.loads]) or None,
        joules=joules(sheet.loads),
        variants=sheet.variants,
    )


def _judged(sheet: Sheet, best: Sheet, questions: Sequence[Question]) -> bool:
    """Whether there are answers to go by, and passages where they are known."""
    looked_for = any(question.relevant for question in questions)
    return bool(both(sheet, best)) and (not looked_for or bool(sheet.found.keys() & best.found.keys()))
