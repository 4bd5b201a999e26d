"""Embeddings, reranking and raw tensors as a client sees them."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from collections.abc import AsyncIterator

import httpx
import pytest

from edged.api.batches import MOST_TEXTS
from edged.dispatch.requests import Event, Rejected, Submission
from edged.errors import Overloaded, StageUnavailable
from edged.messages import EmbedTask, decoder

from .conftest import FakeFront, answer


def test_one_text_and_a_list(client: httpx.Client) -> None:
    one = client.post("/v1/embeddings", json={"input": "abcd"}).json()
    two = client.post("/v1/embeddings", json={"input": ["a", "bb"], "model": "bge-small-en-v1.5"}).json()
    assert one["data"] == [{"object": "embedding", "index": 0, "embedding": [4.0, 0.5, -1.0]}]
    assert one["model"] == "retriever"
    assert [item["embedding"][0] for item in two["data"]] == [1.0, 2.0]
    assert two["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


def test_base64_is_little_endian_float32(client: httpx.Client) -> None:
    body = client.post("/v1/embeddings", json={"input": "abcd", "encoding_format": "base64"}).json()
    assert struct.unpack("<3f", base64.b64decode(body["data"][0]["embedding"])) == (4.0, 0.5, -1.0)


def test_long_list_is_cut_and_merged_in_order(client: httpx.Client, front: FakeFront) -> None:
    texts = ["x" * (index + 1) for index in range(200)]
    body = client.post("/v1/embeddings", json={"input": texts}).json()
    sizes = [len(decoder(EmbedTask)(each.payload).texts) for each in front.submissions]
    assert [item["embedding"][0] for item in body["data"]] == [float(len(text)) for text in texts]
    assert [item["index"] for item in body["data"]] == list(range(200))
    assert sorted(sizes) == [8, MOST_TEXTS, MOST_TEXTS, MOST_TEXTS]


def test_full_queue_after_the_first_part_is_waited_for(client: httpx.Client, front: FakeFront) -> None:
    submit, refusals = front.submit, iter([False, True, True, False])

    def sometimes(submission: Submission, /) -> object:
        if next(refusals, False):
            raise Overloaded("full", retry_after_s=0.01)
        return submit(submission)

    front.submit = sometimes  # type: ignore[method-assign,assignment]
    assert client.post("/v1/embeddings", json={"input": ["x"] * 100}).status_code == 200
    assert next(refusals, None) is None


def test_failure_of_a_part_fails_the_whole(client: httpx.Client, front: FakeFront) -> None:
    async def second_fails(submission: Submission) -> AsyncIterator[Event]:
        if len(front.submissions) > 1:
            yield Rejected(StageUnavailable("the retriever is off"))
        else:
            async for event in answer(submission):
                yield event

    front.script = second_fails
    response = client.post("/v1/embeddings", json={"input": ["x"] * 300})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "stage_unavailable")


def test_client_that_leaves_cancels_every_part_in_work(client: httpx.Client, front: FakeFront) -> None:
    async def first_only(submission: Submission) -> AsyncIterator[Event]:
        if len(front.submissions) > 1:
            await asyncio.Event().wait()
        async for event in answer(submission):
            yield event

    front.script = first_only
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/embeddings", json={"input": ["x"] * 300}, timeout=0.3)
    assert all(ticket.cancelled.wait(5) for ticket in front.tickets[1:3])


@pytest.mark.parametrize(
    ("given", "kind"), [(None, "passage"), ("search_query", "query"), ("document", "passage")]
)
def test_input_type_chooses_the_prefix(
    client: httpx.Client, front: FakeFront, given: str | None, kind: str
) -> None:
    client.post("/v1/embeddings", json={"input": "x", "input_type": given})
    assert decoder(EmbedTask)(front.submissions[-1].payload).kind == kind


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"input": [1, 2]}, "unsupported_field", "input"),
        ({"input": [[1, 2]]}, "unsupported_field", "input"),
        ({"input": []}, "bad_request", "input"),
        ({"input": ["a", ""]}, "bad_request", "input[1]"),
        ({"input": "a", "dimensions": 2}, "unsupported_field", "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "bad_request", "encoding_format"),
        ({"inputs": "a"}, "unknown_field", "inputs"),
        ({"input": "a", "model": "generator"}, "not_found", "model"),
    ],
)
def test_bad_embedding_requests(client: httpx.Client, body: dict[str, object], code: str, param: str) -> None:
    error = client.post("/v1/embeddings", json=body).json()["error"]
    assert (error["code"], error["param"]) == (code, param)


def test_dimensions_equal_to_the_models_are_accepted(client: httpx.Client) -> None:
    assert client.post("/v1/embeddings", json={"input": "a", "dimensions": 3}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v1/reranking"])
def test_rerank_sorts_and_keeps_the_best(client: httpx.Client, path: str) -> None:
    asked = {
        "query": "q",
        "documents": ["a", {"text": "ccc", "id": 9}, "bb"],
        "top_n": 2,
        "return_documents": True,
    }
    body = client.post(path, json=asked).json()
    assert [result["index"] for result in body["results"]] == [1, 2]
    assert body["results"][0]["document"] == {"text": "ccc"}
    assert math.isclose(body["results"][0]["relevance_score"], 1 / (1 + math.exp(-3.0)))
    assert body["model"] == "reranker"
    assert body["usage"]["total_tokens"] == 9


def test_rerank_of_a_long_list_keeps_the_numbers(client: httpx.Client, front: FakeFront) -> None:
    documents = ["x" * (1 + (index * 37) % 150) for index in range(150)]
    body = client.post("/v1/rerank", json={"query": "q", "documents": documents}).json()
    best = [result["index"] for result in body["results"]]
    assert len(front.submissions) == 3
    assert best == sorted(range(150), key=lambda index: -len(documents[index]))
    assert "document" not in body["results"][0]


def test_tensors_pass_through_as_bytes(client: httpx.Client, front: FakeFront) -> None:
    response = client.post("/edged/v1/tensors/rag", content=b"\x00\x01\xff")
    assert (response.content, response.headers["content-type"]) == (
        b"\xff\x01\x00",
        "application/octet-stream",
    )
    assert (front.submissions[0].operation, front.submissions[0].payload) == ("tensor", b"\x00\x01\xff")
    assert client.post("/edged/v1/tensors/nothing", content=b"").json()["error"]["code"] == "not_found"
