"""B1: how many rerankings are saved by leaving out those that change little, on HotpotQA's questions.

B1o is the other side: with an embedder about which nothing was measured, no more is lost than is allowed.

Half of the questions teach the calibration what reranking its passages was worth, by the reranker's own
scores alone, as the daemon does; on the rest, whose relevant passages are known, it is measured what was
saved and lost. Library and scores are those of Q1 and are kept in the cache: the first run takes minutes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import retrieval
from benchmarks.collections import hotpotqa
from benchmarks.measurement import Row, say
from benchmarks.retrieval import CANDIDATES, DEFAULT_EMBEDDER, RERANKER, CachedReranker, Question, ndcg
from benchmarks.setting import STATE
from edged.bypass.calibration import BUDGET_POINTS, Curve, Evidence, Worth, curve_of, worth_of
from edged.catalogue import Catalogue
from edged.documents import index
from edged.documents.library import Library
from edged.messages import Passage
from edged.models import ModelStore
from edged.stages.encoder import CrossEncoder, Encoder
from edged.stages.margin import margin_of, missed
from edged.stages.options import KEEP
from edged.stages.reranker import best_passages

QUICK_QUESTIONS, FULL_QUESTIONS = 500, 1000
OTHER_EMBEDDER = ("all-minilm-l6-v2", "int8")
STEPS = 20
"""Points of the curve."""


class Case(msgspec.Struct, frozen=True):
    """A question that was answered both ways."""

    margin: float
    missed: float
    lost: float
    """Points of nDCG@10 that it loses without reranking; below 0: that it gains."""
    lost_kept: float
    """The same of nDCG at the number of passages that are kept."""


class Cases:
    """Answers questions from the library of Q1, with and without reranking."""

    def __init__(self, cache: Path, models: ModelStore, embedder: tuple[str, str]) -> None:
        session, variant = retrieval.open_session(models, *embedder)
        reranker, reranker_variant = retrieval.open_session(models, *RERANKER)
        self._sessions = (session, reranker)
        self._encoder = Encoder(session, variant)
        name = f"full-{variant.model}-{variant.name}-{variant.digest[:12]}"
        self._folder = cache / "retrieval" / name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._reranker = CachedReranker(CrossEncoder(reranker, reranker_variant), self._folder.parent)

    def all(self, collection: retrieval.Collection) -> list[Case]:
        """One case a question."""
        if not index.current(self._folder):
            retrieval.build(self._folder, collection, self._encoder)
        with Library.open(self._folder) as library:
            cases = [self._case(library, question) for question in _told(collection.questions)]
        self._reranker.save()
        for session in self._sessions:
            session.close()
        return cases

    def _case(self, library: Library, question: Question) -> Case:
        vectors, _ = self._encoder.embed([question.text], "query")
        found = library.search([question.text], vectors, self._encoder.fingerprint, CANDIDATES)[0]
        logits = self._reranker.score(question.text, found)
        best = best_passages(found, logits, len(found))
        ids = [passage.id for passage in found]
        scores = dict(zip(ids, logits, strict=True))
        return Case(
            margin=margin_of(found) or 0.0,
            missed=missed(ids, [passage.id for passage in best], scores),
            lost=_lost(found, best, question, retrieval.DEPTH),
            lost_kept=_lost(found, best, question, KEEP),
        )


def _told(questions: Sequence[Question]) -> Iterator[Question]:
    for number, question in enumerate(questions):
        if number % 100 == 0:
            say(f"question {number} of {len(questions)}")
        yield question


def _lost(before: Sequence[Passage], after: Sequence[Passage], question: Question, depth: int) -> float:
    with_it, without = (
        ndcg([passage.source for passage in ranked], question.relevant, depth) for ranked in (after, before)
    )
    return 100 * (with_it - without)


def learnt(cases: Sequence[Case], worth: Worth) -> Curve:
    """What the daemon would know after these questions."""
    evidence = Evidence()
    for case in cases:
        evidence.add(case.margin, case.missed)
    return curve_of(evidence, worth)


def outcome(cases: Sequence[Case], from_margin: float) -> dict[str, float]:
    """What is saved and lost if all from this margin on pass the reranker by; points over all questions."""
    losses = [case.lost if case.margin >= from_margin else 0.0 for case in cases]
    kept = [case.lost_kept if case.margin >= from_margin else 0.0 for case in cases]
    return {
        "from_margin": round(from_margin, 4),
        "saved": round(sum(case.margin >= from_margin for case in cases) / len(cases), 4),
        "lost_points": round(statistics.mean(losses), 3),
        "standard_error": round(statistics.stdev(losses) / math.sqrt(len(losses)), 3),
        f"lost_points@{KEEP}": round(statistics.mean(kept), 3),
    }


def curve(cases: Sequence[Case]) -> list[dict[str, float]]:
    """The same at equal steps of what is saved."""
    margins = sorted((case.margin for case in cases), reverse=True)
    places = [round(len(margins) * step / STEPS) - 1 for step in range(1, STEPS + 1)]
    return [outcome(cases, margins[place]) for place in places]


def measure(
    embedder: tuple[str, str], cache: Path, *, count: int, spared: str
) -> tuple[dict[str, float], dict[str, Any]]:
    """What is learnt saves and costs on questions that did not teach: those whose number ends in `spared`."""
    started = time.monotonic()
    models = ModelStore(cache.parent / "models", Catalogue.discover())
    collection = retrieval.read_collection(*hotpotqa(cache / "hotpotqa"), quick=False, questions=count)
    cases = Cases(cache, models, embedder).all(collection)
    teaching = [case for number, case in enumerate(cases) if str(number)[-1] not in spared]
    held_out = [case for number, case in enumerate(cases) if str(number)[-1] in spared]
    worth = worth_of(embedder[0], RERANKER[0])
    known = learnt(teaching, worth)
    found, everything = outcome(held_out, known.from_margin), outcome(held_out, -math.inf)
    return found, {
        "collection": "HotpotQA",
        "passages": len(collection.passages),
        "embedder": embedder[0],
        "questions": {"teaching": len(teaching), "held_out": len(held_out)},
        "budget_points": BUDGET_POINTS,
        "learnt": found | {"own": known.own},
        "expected_lost_points": round(_expected(held_out, known), 3),
        "shipped": outcome(held_out, worth.from_margin),
        "at_random": round(min(1.0, BUDGET_POINTS / everything["lost_points"]), 4),
        "reranking_is_worth_points": everything["lost_points"],
        "missed_is_worth_points": round(_worth(cases), 1),
        "curve": curve(held_out),
        "elapsed_s": round(time.monotonic() - started, 1),
    }


def _worth(cases: Sequence[Case]) -> float:
    """Points lost for a whole unit missed, over all questions."""
    return statistics.mean(case.lost for case in cases) / statistics.mean(case.missed for case in cases)


def b1(quick: bool, cache: Path = STATE / "cache") -> tuple[float, dict[str, Any]]:
    """Share of rerankings saved on held-out questions; nothing, if more than the budget is lost."""
    found, detail = measure(
        DEFAULT_EMBEDDER, cache, count=QUICK_QUESTIONS if quick else FULL_QUESTIONS, spared="13579"
    )
    return found["saved"] if found["lost_points"] <= BUDGET_POINTS else 0.0, detail


def b1o(quick: bool, cache: Path = STATE / "cache") -> tuple[float, dict[str, Any]]:
    """Points lost on held-out questions; more than the budget counts where it is more than chance.

    Of another pair of models the daemon wants to see more questions, so `quick` takes as many.
    """
    del quick
    found, detail = measure(OTHER_EMBEDDER, cache, count=FULL_QUESTIONS, spared="369")
    chance = 2 * found["standard_error"]  # two standard errors
    return found["lost_points"], {"gate": round(BUDGET_POINTS + chance, 2), **detail}


def _expected(cases: Sequence[Case], known: Curve) -> float:
    return statistics.mean(
        known.points(case.margin) if case.margin >= known.from_margin else 0.0 for case in cases
    )


ROWS = (
    Row(
        id="B1",
        what="rerankings saved at no more than 0.5 points of nDCG@10 lost, on held-out questions of HotpotQA",
        unit="share",
        gate=0.3,
        goal=0.6,
        better="higher",
        measure=b1,
    ),
    Row(
        id="B1o",
        what="nDCG@10 lost by saved rerankings with an embedder that was not measured, on held-out questions",
        unit="points",
        gate=BUDGET_POINTS,
        goal=0.0,
        better="lower",
        measure=b1o,
    ),
)
