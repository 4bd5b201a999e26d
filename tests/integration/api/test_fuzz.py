"""Whatever is sent: a status below 500 and, when it is a refusal, a coded body."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.api.connection import Limits
from edged.api.openai import ChatRequest, EmbeddingRequest, RerankRequest
from edged.api.server import build_client_app, build_gateway
from edged.errors import BY_CODE

from .conftest import CONFIG, FakeFront, Running

PATHS = ["/v1/chat/completions", "/v1/embeddings", "/v1/rerank"]
FIELDS = sorted(
    {*ChatRequest.__struct_fields__, *EmbeddingRequest.__struct_fields__, *RerankRequest.__struct_fields__}
)

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool"]) | st.text(max_size=5)},
        optional={"content": values, "name": values},
    ),
    max_size=3,
)
valid = {
    "messages": messages,
    "input": st.lists(st.text(max_size=9), max_size=3),
    "query": st.text(max_size=9),
}
bodies = st.fixed_dictionaries({}, optional={name: valid.get(name, values) | values for name in FIELDS})
objects = st.dictionaries(st.sampled_from(FIELDS), values, max_size=5)


class Shared(NamedTuple):
    client: httpx.Client
    path: Path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    app = build_client_app(build_gateway(FakeFront(), CONFIG))
    path = tmp_path_factory.mktemp("fuzz") / "edged.sock"
    with Running(app, path, Limits(connections=8, head_s=0.1), 5.0) as server, server.client() as client:
        yield Shared(client, path)


def check(client: httpx.Client, path: str, body: bytes) -> None:
    response = client.post(path, content=body)
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "code", "param"}
        assert error["code"] in BY_CODE


relaxed = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@relaxed
@given(path=st.sampled_from(PATHS), body=st.binary(max_size=300))
def test_any_bytes(shared: Shared, path: str, body: bytes) -> None:
    check(shared.client, path, body)


@relaxed
@given(path=st.sampled_from(PATHS), body=objects | bodies | values)
def test_any_json(shared: Shared, path: str, body: object) -> None:
    check(shared.client, path, json.dumps(body).encode())


@relaxed
@given(messages=messages, stream=st.booleans(), extra=objects)
def test_nearly_valid_chats(shared: Shared, messages: object, stream: bool, extra: dict[str, object]) -> None:
    check(shared.client, PATHS[0], json.dumps({"messages": messages, "stream": stream, **extra}).encode())


def exchange(path: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def check_raw(answer: bytes) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert status < 500
    if status >= 400:
        assert json.loads(body)["error"]["code"] in BY_CODE


words = st.binary(max_size=30) | st.sampled_from([b"/healthz", b"*", b"//", b"http://x/healthz", b"/%ff%00"])


@relaxed
@given(target=words)
def test_any_target(shared: Shared, target: bytes) -> None:
    request = b"GET " + target.replace(b"\n", b"") + b" HTTP/1.1\r\nconnection: close\r\n\r\n"
    check_raw(exchange(shared.path, request))


@relaxed
@given(head=st.binary(min_size=1, max_size=60))
def test_any_head(shared: Shared, head: bytes) -> None:
    check_raw(exchange(shared.path, b"#" + head + b"\r\n\r\n"))
