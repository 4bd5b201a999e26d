"""Q2 and Q4: what quantisation costs, and whether made questions order rungs as people's do.

Both search HotpotQA through the functions of the retriever and the reranker.

Q2: a rung that swaps an embedder leaves the stored vectors as they are, so questions are embedded by the
quantised variant and passages by the variant above it. The loss is that of nDCG@10 of hybrid search with
reranking; the cross-encoder exists in int8 only, so it cannot be compared with anything.

Q4: settings of rungs (candidates, passages kept, with or without reranking) are scored by HotpotQA's own
questions and by those that `edgectl ladder measure` makes. The figure is the share of pairs of settings that
both put in the same order; pairs that people's questions do not tell apart (two standard errors) do not
count.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import retrieval
from benchmarks.collections import hotpotqa
from benchmarks.measurement import Row, say
from benchmarks.setting import ALONE, STATE, rag_library, real_config
from edged.catalogue import Catalogue
from edged.documents import index
from edged.documents.library import Library
from edged.messages import Passage
from edged.models import ModelStore
from edged.rungs.drawing import by_words, subjects
from edged.rungs.invent import invented
from edged.rungs.record import Place, Question
from edged.rungs.scores import found
from edged.stages.encoder import CrossEncoder, Encoder
from edged.stages.reranker import best_passages, passage_text
from edged.testing.daemon import running

EMBEDDER = "all-minilm-l6-v2"
QUANTISED = ("int8-dynamic", "int8")
ASKED, QUICK_ASKED = 150, 40


class Setting(NamedTuple):
    """What a rung does to finding."""

    candidates: int
    keep: int
    rerank: bool


SETTINGS = {
    "as configured": Setting(20, 4, rerank=True),
    "not reranked": Setting(20, 4, rerank=False),
    "fewer passages": Setting(10, 2, rerank=True),
    "fewer, not reranked": Setting(10, 2, rerank=False),
    "one passage": Setting(5, 1, rerank=True),
}


class Finder:
    """Finds passages as the stages do."""

    def __init__(self, library: Library, encoder: Encoder, reranker: CrossEncoder) -> None:
        self._library = library
        self._encoder = encoder
        self._reranker = reranker

    def find(self, text: str, settings: Sequence[Setting]) -> list[list[Passage]]:
        """The passages that each setting hands on; reranked once."""
        most = max(setting.candidates for setting in settings)
        vectors, _ = self._encoder.embed([text], "query")
        near = self._library.search([text], vectors, self._encoder.fingerprint, most)[0]
        logits = self._reranker.score(text, [passage_text(passage) for passage in near])[0].tolist()
        return [_kept(near, logits, setting) for setting in settings]


def _kept(near: Sequence[Passage], logits: Sequence[float], setting: Setting) -> list[Passage]:
    first = near[: setting.candidates]
    if not setting.rerank:
        return list(first[: setting.keep])
    return list(best_passages(first, logits[: setting.candidates], setting.keep))


@contextmanager
def finder(models: ModelStore, folder: Path, embedder: tuple[str, str]) -> Iterator[Finder]:
    """Sessions and library, given back at the end."""
    session, variant = retrieval.open_session(models, *embedder)
    reranking, reranker = retrieval.open_session(models, *retrieval.RERANKER)
    with Library.open(folder) as library:
        yield Finder(library, Encoder(session, variant), CrossEncoder(reranking, reranker))
    session.close()
    reranking.close()


# ------------------------------------------------------------------------ Q2


def q2(quick: bool) -> tuple[float, dict[str, Any]]:
    """The worst loss of nDCG@10 of a quantised embedder whose neighbours are not."""
    cache = STATE / "cache"
    models = ModelStore(STATE / "models", Catalogue.discover())
    collection = retrieval.read_collection(*hotpotqa(cache / "hotpotqa"), quick=quick)
    folder = _library(models, collection, cache)
    questions = [_of_people(question) for question in collection.questions]
    setting = [Setting(20, 10, rerank=True)]
    scores: dict[str, list[float]] = {}
    for name in ("fp32", *QUANTISED):
        say(f"questions embedded by {EMBEDDER} {name}")
        models.pull(EMBEDDER, name)
        with finder(models, folder, (EMBEDDER, name)) as each:
            scores[name] = [found(each.find(q.text, setting)[0], q.relevant).ndcg for q in questions]
    losses = {name: _difference(scores["fp32"], scores[name]) for name in QUANTISED}
    worst = max(losses, key=lambda name: losses[name][0])
    chance = 2 * losses[worst][1]
    return losses[worst][0], {
        # So few questions show a loss only beyond chance.
        **({"gate": round(max(0.01, chance), 4)} if quick else {}),
        "collection": f"HotpotQA, {collection.name}",
        "questions": len(questions),
        "ndcg@10": {name: round(statistics.fmean(values), 4) for name, values in scores.items()},
        "loss": {name: round(loss, 4) for name, (loss, _) in losses.items()},
        "standard_error": {name: round(error, 4) for name, (_, error) in losses.items()},
        "not_compared": "the reranker exists in int8 only",
    }


def _library(models: ModelStore, collection: retrieval.Collection, cache: Path) -> Path:
    """Passages embedded by the unquantised variant, once."""
    session, variant = retrieval.open_session(models, EMBEDDER, "fp32")
    folder = cache / "retrieval" / f"{collection.name}-{variant.model}-{variant.name}-{variant.digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    if not index.current(folder):
        retrieval.build(folder, collection, Encoder(session, variant))
    session.close()
    return folder


def _difference(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Mean of what is lost, and its standard error."""
    lost = [a - b for a, b in zip(before, after, strict=True)]
    return statistics.fmean(lost), statistics.stdev(lost) / math.sqrt(len(lost))


# ------------------------------------------------------------------------ Q4


def q4(quick: bool) -> tuple[float, dict[str, Any]]:
    """Share of pairs of settings that questions of the generator order as people's do."""
    folder = rag_library(quick=quick).folder
    models = ModelStore(STATE / "models", Catalogue.discover())
    collection = retrieval.read_collection(*hotpotqa(STATE / "cache" / "hotpotqa"), quick=quick)
    count = QUICK_ASKED if quick else ASKED
    made, by_word = _made(folder, count)
    kinds = {
        "people": [_of_people(question) for question in collection.questions],
        "generator": made,
        "words": by_words(folder, subjects(folder, count)),
    }
    with finder(models, folder, retrieval.DEFAULT_EMBEDDER) as each:
        scores = {kind: _scores(each, asked) for kind, asked in kinds.items()}
    shares = {kind: _same_order(scores["people"], scores[kind]) for kind in ("generator", "words")}
    return shares["generator"], {
        "collection": f"HotpotQA, {collection.name}",
        "questions": {kind: len(asked) for kind, asked in kinds.items()},
        "of_words_among_the_generators": by_word,
        "same_order": {kind: round(share, 3) for kind, share in shares.items()},
        "ndcg@10": {
            kind: {name: round(statistics.fmean(values), 3) for name, values in row.items()}
            for kind, row in scores.items()
        },
    }


def _of_people(question: retrieval.Question) -> Question:
    relevant = tuple(Place(source=title) for title in sorted(question.relevant))
    return Question(text=question.text, relevant=relevant)


def _made(folder: Path, count: int) -> tuple[list[Question], int]:
    """What `edgectl ladder measure` would ask about this library, by the default generator."""
    with tempfile.TemporaryDirectory() as place, running(Path(place), real_config(STATE, ALONE)) as daemon:
        found = invented(daemon.client, "generator", folder, count=count, seed=0, budget_s=300.0)
    return list(found.questions), found.by_words


def _scores(each: Finder, questions: Sequence[Question]) -> dict[str, list[float]]:
    ranked = [each.find(question.text, list(SETTINGS.values())) for question in questions]
    return {
        name: [
            found(rankings[place], question.relevant).ndcg
            for rankings, question in zip(ranked, questions, strict=True)
        ]
        for place, name in enumerate(SETTINGS)
    }


def _same_order(people: dict[str, list[float]], made: dict[str, list[float]]) -> float:
    """Among pairs of settings that people's questions tell apart."""
    agreeing = []
    for first, second in itertools.combinations(SETTINGS, 2):
        difference, error = _difference(people[first], people[second])
        if abs(difference) > 2 * error:
            other = statistics.fmean(made[first]) - statistics.fmean(made[second])
            agreeing.append((other > 0) == (difference > 0))
    return statistics.fmean(agreeing) if agreeing else 1.0


ROWS = (
    Row(
        id="Q2",
        what="the worst loss of nDCG@10 of a quantised embedder against the one above it, on HotpotQA",
        unit="nDCG@10",
        gate=0.01,
        goal=0.005,
        better="lower",
        measure=q2,
    ),
    Row(
        id="Q4",
        what="pairs of rungs' settings that the generator's questions order as people's do, on HotpotQA",
        unit="share",
        gate=0.8,
        goal=1.0,
        better="higher",
        measure=q4,
    ),
)
