"""The reranker: reads question and passage together, and keeps the passages that answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

import msgspec
import numpy as np

from edged.backend import TensorSession, Variant
from edged.documents.chunk import embedded_text
from edged.errors import BackendError, BadRequest, EdgedError
from edged.messages import (
    CacheCounters,
    ChatTask,
    Judgement,
    Passage,
    RerankAnswer,
    RerankTask,
    decoder,
    encode,
)
from edged.stages.caches import Cache, Row, Rows, clear, counters_of, identity_of, limit_option, remembered
from edged.stages.contract import Item, Judged, Payload
from edged.stages.encoder import CrossEncoder
from edged.stages.margin import missed, standard_scores
from edged.stages.options import KEEP, MOST_KEEP, at_most, count_option, each
from edged.stages.retriever import question

_decode_chat: Callable[[bytes | memoryview], ChatTask] = decoder(ChatTask)
_decode_rerank: Callable[[bytes | memoryview], RerankTask] = decoder(RerankTask)

Pair = tuple[str, str]

SCORE_BYTES = 64
"""Of a kept score and its number of tokens."""

LOGIT_WEIGHT = 3.0
"""Of the logit beside the cosine. A good embedder gains from 1 to 2, a weak one from more (row Q1)."""


class Job(msgspec.Struct, frozen=True):
    """An item with the pairs that it needs scored."""

    task: ChatTask | RerankTask
    pairs: list[Pair]


class Reranker:
    """Operations `chat` (thins out `passages`) and `rerank`."""

    OPTIONS = frozenset({"keep", "scores_cache_mib"})

    def __init__(self, session: TensorSession, variant: Variant, options: Mapping[str, Any]) -> None:
        self._keep = count_option(options, "keep", default=KEEP, most=MOST_KEEP)
        self._session = session
        self._encoder = CrossEncoder(session, variant)
        self._identity = identity_of(variant)
        self._scores: Rows[float] = Cache(limit_option(options, "scores_cache_mib", default_mib=8))
        self._caches = {"scores": self._scores}
        self.details: Mapping[str, Any] = {
            "model": variant.model,
            "variant": variant.name,
            "context_tokens": variant.context_tokens,
            "keep": self._keep,
        }

    def run(self, items: Sequence[Item]) -> Iterator[Payload | EdgedError]:
        """Answer a micro-batch, item by item: the pairs of one question are work enough for every core.

        Models quantised dynamically to int8 give other scores in other company (one scale serves the
        whole run), so a question's pairs never share a run with another's.
        """
        for item in items:
            yield each(self._answer, item)

    def _answer(self, item: Item) -> Payload:
        job = _job(item)
        scored = self._score(job.pairs)
        scores = tuple(row.value for row in scored)
        if isinstance(job.task, RerankTask):
            return encode(RerankAnswer(scores=scores, tokens=sum(row.tokens for row in scored)))
        if not job.pairs:
            return bytes(item.payload)
        found, keep = job.task.passages, at_most(job.task.keep or self._keep, job.task.ceiling.keep)
        best = best_passages(found, scores, len(found))
        payload = encode(msgspec.structs.replace(job.task, passages=best[:keep]))
        if job.task.passages_only:  # what is usual is learnt from what is usual
            return payload
        return Judged.of(payload, Judgement(missed=_missed(found, best, scores)))

    def _score(self, pairs: Sequence[Pair]) -> list[Row[float]]:
        def score(rows: list[int]) -> list[Row[float]]:
            scores, counts = self._encoder.score_pairs([pairs[row] for row in rows])
            return [Row(_finite(value), count) for value, count in zip(scores, counts, strict=True)]

        return remembered(
            self._scores,
            self._identity,
            pairs,
            score,
            row_bytes=SCORE_BYTES,
            alone=self._session.lone_rows,
        )

    @property
    def lanes(self) -> int:
        """See `BatchStage.lanes`."""
        return self._session.lanes

    def attend(self, look: Callable[[], None]) -> None:
        """See `BatchStage.attend`."""
        self._session.attend(look)

    def set_cores(self, count: int) -> None:
        """See `Housekeeping.set_cores`."""
        self._session.set_threads(count)

    def cache_counters(self) -> dict[str, CacheCounters]:
        """See `Housekeeping.cache_counters`."""
        return counters_of(self._caches)

    def clear_caches(self, names: Collection[str]) -> None:
        """See `Housekeeping.clear_caches`."""
        clear(self._caches, names)

    def close(self) -> None:
        """Give memory back; idempotent."""
        self._session.close()


def best_passages(passages: Sequence[Passage], logits: Sequence[float], keep: int) -> tuple[Passage, ...]:
    """The `keep` best passages, best first, with the scores `rerank` (the logit) and `blend`.

    `blend`, which orders them, is the weighted sum of the standard scores of the logit and of the dense
    cosine among these passages (z-score normalisation and CombSUM: Montague and Aslam, "Relevance score
    normalization for metasearch", CIKM 2001). A passage that only its words found counts as the least
    similar of them.
    """
    cosines = [passage.scores["dense"] for passage in passages if "dense" in passage.scores]
    lowest = min(cosines, default=0.0)
    dense = standard_scores([passage.scores.get("dense", lowest) for passage in passages])
    blend = dense + LOGIT_WEIGHT * standard_scores(logits)
    noted = [
        msgspec.structs.replace(
            passage, scores={**passage.scores, "rerank": logit, "blend": round(float(score), 4)}
        )
        for passage, logit, score in zip(passages, logits, blend, strict=True)
    ]
    return tuple(sorted(noted, key=lambda passage: -passage.scores["blend"])[:keep])


def _missed(before: Sequence[Passage], after: Sequence[Passage], scores: Sequence[float]) -> float:
    ids = [passage.id for passage in before]
    return missed(ids, [passage.id for passage in after], dict(zip(ids, scores, strict=True)))


def _finite(score: np.float32) -> float:
    if not isfinite(score):
        raise BackendError("the reranker gave a score that is not finite; try another variant or device")
    return round(float(score), 4)


def _job(item: Item) -> Job:
    if item.operation == "rerank":
        rerank = _decode_rerank(item.payload)
        return Job(rerank, [(rerank.query, document) for document in rerank.documents])
    if item.operation != "chat":
        raise BadRequest(f"the reranker does not do {item.operation!r}; it does chat and rerank")
    chat = _decode_chat(item.payload)
    if not chat.grounded:
        return Job(chat, [])
    asked = question(chat) if chat.passages else ""
    return Job(chat, [(asked, passage_text(passage)) for passage in chat.passages])


def passage_text(passage: Passage) -> str:
    """What is scored: the passage under its title and heading."""
    return embedded_text(passage.title, passage.heading, passage.text)
