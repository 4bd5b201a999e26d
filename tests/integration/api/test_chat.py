"""Chat completions as a client sees them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import get_type_hints

import httpx
import pytest

from edged.api.openai import Absent, ChatRequest
from edged.api.validation import IGNORED, NEUTRAL
from edged.dispatch.requests import Completed, Delta, Event, Rejected, Submission
from edged.errors import ContextOverflow, Overloaded, Poisoned
from edged.messages import ChatTask, decoder

from .conftest import FakeFront, Running

DOCS = Path(__file__).parents[3] / "docs" / "api.md"
USER = [{"role": "user", "content": "How tight?"}]


def events(response: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]


def chunks(response: httpx.Response) -> list[dict]:
    found = events(response)
    assert found[-1] == "[DONE]"
    return [json.loads(event) for event in found[:-1]]


def task_of(front: FakeFront) -> ChatTask:
    return decoder(ChatTask)(front.submissions[-1].payload)


def test_whole_answer_carries_citations_timings_and_headers(client: httpx.Client, front: FakeFront) -> None:
    response = client.post("/v1/chat/completions", json={"model": "rag", "messages": USER})
    body = response.json()
    message = body["choices"][0]["message"]
    assert response.status_code == 200
    assert message["content"] == "It takes 12 Nm [1]"
    assert message["refusal"] is None
    assert message["citations"][0]["source"] == "manual.md"
    assert message["citations"][0]["first_line"] == 3
    assert body["usage"] == {"prompt_tokens": 20, "completion_tokens": 4, "total_tokens": 24}
    assert [timing["stage"] for timing in body["edged"]["timings"]] == ["retriever", "reranker", "generator"]
    assert response.headers["x-edged-plan"] == "retriever:cpu:int8;reranker:cpu:int8;generator:cpu:int8"
    assert response.headers["x-edged-resumed"] == "0"
    assert body["edged"]["request_id"] == response.headers["x-request-id"]


def test_stream_has_role_then_text_then_finish_then_usage(client: httpx.Client) -> None:
    asked = {"messages": USER, "stream": True, "stream_options": {"include_usage": True}}
    response = client.post("/v1/chat/completions", json=asked)
    found = chunks(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in found[:-1]]
    assert "".join(texts) == "It takes 12 Nm [1]"
    assert found[-2]["choices"][0]["finish_reason"] == "stop"
    assert found[-2]["choices"][0]["delta"]["citations"][0]["quote"] == "12 Nm"
    assert found[-2]["edged"]["timings"]
    assert all(chunk["usage"] is None for chunk in found[:-1])
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["total_tokens"] == 24


def test_stream_without_usage_option_says_nothing_of_usage(client: httpx.Client) -> None:
    found = chunks(client.post("/v1/chat/completions", json={"messages": USER, "stream": True}))
    assert all("usage" not in chunk for chunk in found)


@pytest.mark.parametrize(
    ("model", "route", "grounded"),
    [
        ("rag", ("retriever", "reranker", "generator"), True),
        ("", ("retriever", "reranker", "generator"), True),
        (None, ("retriever", "reranker", "generator"), True),
        ("generator", ("generator",), False),
        ("smollm2-135m-instruct", ("generator",), False),
    ],
)
def test_model_name_chooses_the_route(
    client: httpx.Client, front: FakeFront, model: str | None, route: tuple[str, ...], grounded: bool
) -> None:
    assert client.post("/v1/chat/completions", json={"model": model, "messages": USER}).status_code == 200
    assert front.submissions[-1].route == route
    assert task_of(front).grounded is grounded


def test_unknown_model_lists_those_that_chat(client: httpx.Client) -> None:
    response = client.post("/v1/chat/completions", json={"model": "gpt-9", "messages": USER})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "not_found", "model")
    assert "rag, generator, smollm2-135m-instruct" in error["message"]


def test_greedy_by_default_and_a_sampled_answer_gets_a_seed(client: httpx.Client, front: FakeFront) -> None:
    client.post("/v1/chat/completions", json={"messages": USER})
    assert (task_of(front).sampling.temperature, task_of(front).sampling.seed) == (0.0, 0)
    client.post("/v1/chat/completions", json={"messages": USER, "temperature": 0.8})
    client.post("/v1/chat/completions", json={"messages": USER, "temperature": 0.8})
    seeds = {decoder(ChatTask)(each.payload).sampling.seed for each in front.submissions[1:]}
    assert len(seeds) == 2


def test_every_parameter_reaches_the_task(client: httpx.Client, front: FakeFront) -> None:
    asked = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "How "}, {"type": "text", "text": "tight?"}],
            },
        ],
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "seed": 11,
        "stop": ["\n", "END"],
        "presence_penalty": 0.1,
        "frequency_penalty": -0.1,
        "repetition_penalty": 1.1,
        "deadline_ms": 1500,
        "edged": {"candidates": 20, "keep": 3},
    }
    assert client.post("/v1/chat/completions", json=asked).status_code == 200
    task = task_of(front)
    assert [(message.role, message.content) for message in task.messages] == [
        ("system", "Be brief."),
        ("user", "How tight?"),
    ]
    assert (task.max_tokens, task.stop, task.candidates, task.keep) == (9, ("\n", "END"), 20, 3)
    assert (task.sampling.top_k, task.sampling.min_p, task.sampling.repetition_penalty) == (40, 0.05, 1.1)
    assert front.submissions[-1].deadline_s == 1.5


def test_neutral_and_harmless_fields_are_accepted(client: httpx.Client) -> None:
    asked = {
        "messages": [*USER, {"role": "assistant", "content": "x", "tool_calls": [], "refusal": None}, *USER],
        "n": 1,
        "logprobs": False,
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "logit_bias": {},
        "user": "me",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "max_tokens": None,
    }
    assert client.post("/v1/chat/completions", json=asked).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("n", True),
        ("logprobs", True),
        ("top_logprobs", 5),
        ("logit_bias", {"5": 100}),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("modalities", ["text", "audio"]),
        ("reasoning_effort", "high"),
        ("web_search_options", {}),
    ],
)
def test_fields_that_would_change_the_answer_are_refused_by_name(
    client: httpx.Client, front: FakeFront, field: str, value: object
) -> None:
    response = client.post("/v1/chat/completions", json={"messages": USER, field: value})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "unsupported_field", field)
    assert front.submissions == []


def test_every_known_field_is_honoured_neutral_or_ignored_and_documented() -> None:
    types = get_type_hints(ChatRequest)
    not_honoured = {name for name in ChatRequest.__struct_fields__ if types[name] == Absent}
    page = DOCS.read_text()
    assert not_honoured == {name for name in (*NEUTRAL, *IGNORED) if name in types}
    assert [name for name in types if f"{name}`" not in page and f"`{name}." not in page] == []


def test_other_unknown_field_is_named_with_the_nearest(client: httpx.Client) -> None:
    response = client.post("/v1/chat/completions", json={"messages": USER, "temprature": 1})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "unknown_field", "temprature")
    assert "'temperature'" in error["message"]


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ({"role": "tool", "content": "x"}, "unsupported_field", "messages[0].role"),
        ({"role": "wizard", "content": "x"}, "bad_request", "messages[0].role"),
        ({"role": "user"}, "bad_request", "messages[0].content"),
        ({"role": "user", "content": 5}, "bad_request", "messages[0].content"),
        ({"role": "user", "content": "x", "colour": 1}, "unknown_field", "messages[0].colour"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "unsupported_field",
            "messages[0].content[0]",
        ),
        ({"role": "system", "content": "x"}, "bad_request", "messages"),
    ],
)
def test_bad_messages_are_refused_with_their_path(
    client: httpx.Client, message: dict[str, object], code: str, param: str
) -> None:
    response = client.post("/v1/chat/completions", json={"messages": [message]})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)


RANGES = {
    "temperature": ([0, 2], [-0.001, 2.001]),
    "top_p": ([0.001, 1], [0, -1, 1.001]),
    "top_k": ([0, 1000], [-1, 1001, 1.5]),
    "min_p": ([0, 1], [-0.001, 1.001]),
    "seed": ([0, 2**31 - 1], [-1, 2**31, 2**64]),
    "max_tokens": ([1, 1 << 20], [0, -1, 2**63, "5"]),
    "presence_penalty": ([-2, 2], [-2.001, 2.001]),
    "frequency_penalty": ([-2, 2], [-2.001, 2.001]),
    "repetition_penalty": ([0.001, 10], [0, -1, 10.001]),
    "stop": ([["a"] * 4, "x"], [["a"] * 5, "", [""], 7]),
    "deadline_ms": ([1, 86_400_000], [0, 86_400_001]),
}


@pytest.mark.parametrize("field", sorted(RANGES))
def test_parameter_ranges(client: httpx.Client, field: str) -> None:
    inside, outside = RANGES[field]
    for value in inside:
        assert client.post("/v1/chat/completions", json={"messages": USER, field: value}).status_code == 200
    for value in outside:
        response = client.post("/v1/chat/completions", json={"messages": USER, field: value})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_request"), value
        assert response.json()["error"]["param"].startswith(field)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "1e999", "-1e999", "1" * 5000])
def test_numbers_that_are_none_are_refused(client: httpx.Client, literal: str) -> None:
    body = b'{"messages":[{"role":"user","content":"x"}],"temperature":' + literal.encode() + b"}"
    assert client.post("/v1/chat/completions", content=body).status_code == 400


def test_full_queue_answers_429_with_the_wait(client: httpx.Client, front: FakeFront) -> None:
    front.refusal = Overloaded("the queue is full", retry_after_s=1.2)
    response = client.post("/v1/chat/completions", json={"messages": USER})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "2"
    assert response.headers["x-edged-predicted-wait-ms"] == "1200"
    assert response.json()["error"]["type"] == "rate_limit_error"


def play(*script: Event):
    async def run(_submission: Submission) -> AsyncIterator[Event]:
        for event in script:
            yield event

    return run


@pytest.mark.parametrize("stream", [False, True])
def test_rejection_before_the_first_token_keeps_its_status(
    client: httpx.Client, front: FakeFront, stream: bool
) -> None:
    front.script = play(Rejected(ContextOverflow("too long", param="messages")))
    response = client.post("/v1/chat/completions", json={"messages": USER, "stream": stream})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_overflow")


def test_rejection_in_mid_stream_is_the_last_event(client: httpx.Client, front: FakeFront) -> None:
    front.script = play(Delta("It", 1), Rejected(Poisoned("died twice")))
    response = client.post("/v1/chat/completions", json={"messages": USER, "stream": True})
    last = json.loads(events(response)[-1])
    assert response.status_code == 200
    assert last["error"]["code"] == "poisoned"


def test_malformed_answer_of_a_worker_is_a_coded_error(client: httpx.Client, front: FakeFront) -> None:
    front.script = play(Completed(b"\xc1nonsense", ()))
    response = client.post("/v1/chat/completions", json={"messages": USER})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "protocol")


def test_unexpected_error_tells_the_log_and_not_the_client(
    client: httpx.Client, front: FakeFront, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_submission: Submission) -> AsyncIterator[Event]:
        raise AssertionError
        yield

    front.submit = lambda _submission: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    response = client.post("/v1/chat/completions", json={"messages": USER}, headers={"x-request-id": "abc-1"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")
    assert "ZeroDivision" not in response.text
    assert "ZeroDivisionError" in caplog.text
    assert "abc-1" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_leaves_cancels_its_ticket(
    client: httpx.Client, running: Running, front: FakeFront, stream: bool
) -> None:
    submitted = threading.Event()

    async def endless(_submission: Submission) -> AsyncIterator[Event]:
        import asyncio

        yield Delta("x", 1)
        submitted.set()
        await asyncio.Event().wait()

    front.script = endless
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json={"messages": USER, "stream": stream}, timeout=0.3)
    assert submitted.wait(5)
    assert front.tickets[0].cancelled.wait(5)
    while running.server._state.tasks:
        time.sleep(0.002)


def test_request_id_of_the_client_is_echoed_when_sane(client: httpx.Client, front: FakeFront) -> None:
    asked = {"messages": USER}
    sane = client.post("/v1/chat/completions", json=asked, headers={"x-client-request-id": "job-17"})
    wild = client.post("/v1/chat/completions", json=asked, headers={"x-request-id": "a b\t;" * 40})
    assert sane.headers["x-request-id"] == "job-17"
    assert front.submissions[0].trace == "job-17"
    assert len(wild.headers["x-request-id"]) == 24
