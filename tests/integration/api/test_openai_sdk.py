"""The OpenAI Python SDK works unchanged over the Unix socket."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from edged.errors import Overloaded

from .conftest import FakeFront, Running

USER = [{"role": "user", "content": "How tight?"}]


@pytest.fixture
def sdk(running: Running) -> Iterator[openai.OpenAI]:
    transport = httpx.HTTPTransport(uds=str(running.path))
    http = httpx.Client(transport=transport)
    with openai.OpenAI(base_url="http://edged/v1", api_key="none", http_client=http, max_retries=0) as client:
        yield client


def test_chat(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="rag", messages=USER, max_tokens=50, temperature=0)
    assert answer.choices[0].message.content == "It takes 12 Nm [1]"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 24
    assert answer.choices[0].message.citations[0]["source"] == "manual.md"


def test_answer_can_be_sent_back_as_history(sdk: openai.OpenAI) -> None:
    first = sdk.chat.completions.create(model="rag", messages=USER)
    history = [*USER, first.choices[0].message.model_dump(), *USER]
    assert sdk.chat.completions.create(model="rag", messages=history).choices


def test_streaming(sdk: openai.OpenAI) -> None:
    options = {"include_usage": True}
    stream = sdk.chat.completions.create(model="rag", messages=USER, stream=True, stream_options=options)
    found = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in found if chunk.choices)
    assert text == "It takes 12 Nm [1]"
    assert found[-1].usage.completion_tokens == 4


def test_stream_helper(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(model="rag", messages=USER) as stream:
        stream.until_done()
        assert stream.get_final_completion().choices[0].message.content == "It takes 12 Nm [1]"


@pytest.mark.parametrize("encoding", ["float", "base64", openai.NOT_GIVEN])
def test_embeddings(sdk: openai.OpenAI, encoding: object) -> None:
    answer = sdk.embeddings.create(model="bge-small-en-v1.5", input=["a", "bbb"], encoding_format=encoding)
    raw = [item.embedding for item in answer.data]
    if encoding == "base64":
        assert all(isinstance(vector, str) for vector in raw)
    else:
        assert raw == [[1.0, 0.5, -1.0], [3.0, 0.5, -1.0]]


def test_models(sdk: openai.OpenAI) -> None:
    assert "rag" in {model.id for model in sdk.models.list()}
    assert sdk.models.retrieve("rag").owned_by == "edged"


def test_errors_become_the_sdks_own(sdk: openai.OpenAI, front: FakeFront) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(model="rag", messages=USER, n=2)
    assert (refused.value.code, refused.value.param) == ("unsupported_field", "n")
    with pytest.raises(openai.NotFoundError):
        sdk.chat.completions.create(model="gpt-9", messages=USER)
    front.refusal = Overloaded("full", retry_after_s=0.5)
    with pytest.raises(openai.RateLimitError) as overloaded:
        sdk.chat.completions.create(model="rag", messages=USER)
    assert overloaded.value.code == "overloaded"
    assert overloaded.value.response.headers["retry-after"] == "1"
