"""POST /v1/rerank."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
from msgspec import UNSET

from edged.api.answers import info_of
from edged.api.batches import Batches, cut, merged
from edged.api.endpoint import Reply, Request
from edged.api.gateway import Gateway, answer_headers
from edged.api.openai import Document, EmbeddingUsage, RerankList, RerankRequest, RerankResult
from edged.api.validation import decode, rerank_documents
from edged.dispatch.requests import Completed
from edged.errors import ProtocolError, TooLarge
from edged.messages import RerankAnswer, RerankTask, decoder

_encoder = msgspec.json.Encoder()
_decode_answer: Callable[[bytes], RerankAnswer] = decoder(RerankAnswer)


class Rerank:
    """Scores documents against a query, best first."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, request: Request) -> Reply:
        """Answer one request."""
        gateway = self._gateway
        wanted = decode(await gateway.body(request), RerankRequest)
        route = gateway.names.route(wanted.model, "rerank")
        documents = rerank_documents(wanted)
        tasks = _tasks(wanted.query, documents, gateway.slot_text_bytes)
        watch, rung = gateway.metrics.stopwatch(route.name), gateway.force().name
        batches = Batches(gateway, request, route, gateway.terms(wanted.deadline_ms, wanted.priority))
        parts = await batches.run("rerank", tasks)
        answers = [_answer(part, len(task.documents)) for part, task in zip(parts, tasks, strict=True)]
        tokens = sum(answer.tokens for answer in answers)
        whole = merged(parts)
        watch.completed(whole, tokens, 0)
        logits = [score for answer in answers for score in answer.scores]
        body = RerankList(
            id=f"rerank-{request.id}",
            model=route.name,
            results=_ranked(logits, documents, wanted),
            usage=EmbeddingUsage(tokens, tokens),
            edged=info_of(whole, request.id, route.name, rung),
        )
        return Reply(_encoder.encode(body), headers=answer_headers(whole, rung))


def logistic(logit: float) -> float:
    """1 / (1 + e^-x), without overflow.

    >>> logistic(0.0), logistic(-1000.0), logistic(1000.0)
    (0.5, 0.0, 1.0)
    """
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))


def _tasks(query: str, documents: tuple[str, ...], most_bytes: int) -> list[RerankTask]:
    room = most_bytes - len(query.encode())
    if room <= 0:
        raise TooLarge("the query does not fit a slot (queue.slot_bytes)", param="query")
    return [RerankTask(query=query, documents=run) for run in cut(documents, room)]


def _answer(part: Completed, expected: int) -> RerankAnswer:
    answer = _decode_answer(part.payload)
    if len(answer.scores) != expected or not all(map(math.isfinite, answer.scores)):
        raise ProtocolError("the reranker answered with scores of the wrong number or kind")
    return answer


def _ranked(logits: list[float], documents: tuple[str, ...], wanted: RerankRequest) -> list[RerankResult]:
    order = sorted(range(len(logits)), key=lambda index: -logits[index])
    return [
        RerankResult(
            index=index,
            relevance_score=logistic(logits[index]),
            document=Document(documents[index]) if wanted.return_documents else UNSET,
        )
        for index in order[: wanted.top_n]
    ]
