"""POST /v1/embeddings."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from typing import Literal

import msgspec

from edged.api.answers import info_of
from edged.api.batches import Batches, cut, merged
from edged.api.endpoint import Reply, Request
from edged.api.gateway import Gateway, answer_headers
from edged.api.openai import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage
from edged.api.validation import decode, embedding_texts
from edged.dispatch.requests import Completed
from edged.errors import ProtocolError, UnsupportedField
from edged.messages import EmbedAnswer, EmbedTask, Priority, decoder

_encoder = msgspec.json.Encoder()
_decode_answer: Callable[[bytes], EmbedAnswer] = decoder(EmbedAnswer)
_FLOAT_BYTES = 4
MANY_TEXTS = 16
"""A request with so many inputs fills an index and can wait, unless it says otherwise."""
_QUERY_TYPES = {"query", "search_query"}


class Embeddings:
    """Answers embedding requests of any length."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, request: Request) -> Reply:
        """Answer one request."""
        gateway = self._gateway
        wanted = decode(await gateway.body(request), EmbeddingRequest)
        route = gateway.names.route(wanted.model, "embed")
        tasks = _tasks(wanted, gateway.slot_text_bytes)
        watch, rung = gateway.metrics.stopwatch(route.name), gateway.force().name
        terms = gateway.terms(wanted.deadline_ms, wanted.priority or _priority(tasks))
        batches = Batches(gateway, request, route, terms)
        parts = await batches.run("embed", tasks)
        answers = [_answer(part, len(task.texts)) for part, task in zip(parts, tasks, strict=True)]
        _check_dimension(wanted.dimensions, answers[0].dimension)
        tokens = sum(answer.tokens for answer in answers)
        whole = merged(parts)
        watch.completed(whole, tokens, 0)
        body = EmbeddingList(
            data=_vectors(answers, base64_wanted=wanted.encoding_format == "base64"),
            model=route.name,
            usage=EmbeddingUsage(tokens, tokens),
            edged=info_of(whole, request.id, route.name, rung),
        )
        return Reply(_encoder.encode(body), headers=answer_headers(whole, rung))


def _priority(tasks: list[EmbedTask]) -> Priority:
    """A question is waited for; a long list of passages is not."""
    return "batch" if sum(len(task.texts) for task in tasks) >= MANY_TEXTS else "interactive"


def _tasks(wanted: EmbeddingRequest, most_bytes: int) -> list[EmbedTask]:
    kind: Literal["query", "passage"] = "query" if wanted.input_type in _QUERY_TYPES else "passage"
    return [EmbedTask(texts=texts, kind=kind) for texts in cut(embedding_texts(wanted), most_bytes)]


def _answer(part: Completed, expected: int) -> EmbedAnswer:
    answer = _decode_answer(part.payload)
    if answer.count != expected or len(answer.vectors) != answer.count * answer.dimension * _FLOAT_BYTES:
        raise ProtocolError("the retriever answered with vectors of the wrong number or size")
    return answer


def _check_dimension(wanted: int | None, actual: int) -> None:
    if wanted is not None and wanted != actual:
        raise UnsupportedField(f"this model gives {actual} dimensions and no others", param="dimensions")


def _vectors(answers: list[EmbedAnswer], *, base64_wanted: bool) -> list[Embedding]:
    write = _as_base64 if base64_wanted else _as_floats
    vectors = [vector for answer in answers for vector in write(answer)]
    return [Embedding(index=index, embedding=vector) for index, vector in enumerate(vectors)]


def _as_floats(answer: EmbedAnswer) -> list[list[float]]:
    rows = struct.iter_unpack(f"<{answer.dimension}f", answer.vectors)
    return [list(row) for row in rows]


def _as_base64(answer: EmbedAnswer) -> list[str]:
    size = answer.dimension * _FLOAT_BYTES
    starts = range(0, len(answer.vectors), size)
    return [base64.b64encode(answer.vectors[start : start + size]).decode() for start in starts]
