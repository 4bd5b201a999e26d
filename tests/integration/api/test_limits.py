"""What hurts a server: too many, too large, too slow, too odd."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from edged.api import attendance, endpoint
from edged.api.connection import Limits
from edged.api.server import build_client_app, build_gateway, limits_of
from edged.dispatch.requests import Delta, Event, Submission

from .conftest import CONFIG, FakeFront, Running, answer

USER = [{"role": "user", "content": "How tight?"}]
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"


def raw(running: Running) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(str(running.path))
    return connection


def connection_refused(running: Running) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        return connection.connect_ex(str(running.path)) != 0


def read_all(connection: socket.socket) -> bytes:
    """Read to the end; a reset behind the answer means that it closed with our bytes unread."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            found += piece
    return found


def refusal(connection: socket.socket) -> tuple[int, str]:
    head, _, body = read_all(connection).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.fixture
def limits() -> Limits:
    return Limits(connections=3, head_s=0.2, slow_consumer_s=0.2, message_bytes=2_000_000)


def test_one_connection_too_many_is_told_so(running: Running) -> None:
    crowd = [raw(running) for _ in range(3)]
    with raw(running) as extra:
        assert refusal(extra) == (503, "overloaded")
    for connection in crowd:
        connection.close()
    with running.client() as client:
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("start", [b"P", HEAD, b"GET /healthz HTTP/1.1\r\nx: "])
def test_slow_head_is_cut(running: Running, start: bytes) -> None:
    with raw(running) as connection:
        connection.sendall(start)
        assert refusal(connection) == (408, "body_timeout")


@pytest.mark.parametrize(
    "endless",
    [
        b"GET /" + b"a" * 1_000_000,
        b"GET / HTTP/1.1\r\nx: " + b"a" * 1_000_000,
        HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\nx: " + b"a" * 4_000_000,
    ],
)
def test_endless_head_or_trailer_is_cut(running: Running, endless: bytes) -> None:
    with raw(running) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(endless)
        assert refusal(connection) == (431, "too_large")


def test_descriptor_limit_lowers_the_number_of_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits_of(CONFIG).connections <= CONFIG.api.max_connections
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (100, 4096))
    assert limits_of(CONFIG).connections == 36


def test_slow_body_is_cut(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "BODY_CHUNK_S", 0.2)
    with raw(running) as connection:
        connection.sendall(HEAD + b'content-length: 100\r\n\r\n{"messages"')
        assert refusal(connection) == (408, "body_timeout")


def test_declared_oversize_is_refused_before_it_is_read(running: Running) -> None:
    with raw(running) as connection:
        connection.sendall(HEAD + b"content-length: 18446744073709551615\r\n\r\n")
        assert refusal(connection) == (413, "too_large")


def test_chunked_oversize_is_refused_while_it_is_read(client: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(1000):
            yield b" " * 10_000

    response = client.post("/v1/chat/completions", content=pieces())
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")


def test_body_of_exactly_the_limit_is_read(client: httpx.Client) -> None:
    body = json.dumps({"messages": USER}).encode()
    response = client.post("/v1/chat/completions", content=body.ljust(200_000))
    assert response.status_code == 200
    assert client.post("/v1/chat/completions", content=body.ljust(200_001)).status_code == 413


@pytest.mark.parametrize("noise", [b"\x16\x03\x01hello\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_what_is_not_http_gets_the_same_shape(running: Running, noise: bytes) -> None:
    with raw(running) as connection:
        connection.sendall(noise)
        assert refusal(connection) == (400, "bad_request")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[" * 100_000,
        b'{"messages":[{"role":"user","content":"\xff\xfe"}]}',
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"messages":' + b'{"a":' * 30_000,
    ],
)
def test_hostile_json_is_a_coded_400_and_the_connection_lives(client: httpx.Client, body: bytes) -> None:
    response = client.post("/v1/chat/completions", content=body)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_request")
    assert client.get("/healthz").status_code == 200


def test_client_that_never_reads_is_cut_off(running: Running, front: FakeFront) -> None:
    async def flood(_submission: Submission) -> AsyncIterator[Event]:
        while True:
            yield Delta("x" * 10_000, 1)
            await asyncio.sleep(0)

    front.script = flood
    body = json.dumps({"messages": USER, "stream": True}).encode()
    with raw(running) as connection:
        connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        while not front.tickets:
            connection.recv(1)
        assert front.tickets[0].cancelled.wait(10)


def test_silence_is_broken_by_comments(
    running: Running, front: FakeFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attendance, "KEEP_ALIVE_S", 0.05)
    heard = asyncio.Event()

    async def late(submission: Submission) -> AsyncIterator[Event]:
        await heard.wait()
        async for event in answer(submission):
            yield event

    front.script = late
    asked = {"messages": USER, "stream": True}
    with running.client() as client, client.stream("POST", "/v1/chat/completions", json=asked) as response:
        lines = response.iter_lines()
        assert any(line == ": keep-alive" for line in lines)
        running.call(heard.set)
        assert any(line == "data: [DONE]" for line in lines)


def test_stop_lets_an_open_stream_finish(running: Running, front: FakeFront) -> None:
    proceed = asyncio.Event()

    async def slow(submission: Submission) -> AsyncIterator[Event]:
        yield Delta("It", 1)
        await proceed.wait()
        async for event in answer(submission):
            yield event

    front.script = slow
    asked = {"messages": USER, "stream": True}
    with running.client() as client, client.stream("POST", "/v1/chat/completions", json=asked) as response:
        lines = response.iter_lines()
        next(lines)
        running.begin_stop()
        while not connection_refused(running):
            time.sleep(0.002)
        running.call(proceed.set)
        assert any(line == "data: [DONE]" for line in lines)


def test_end_of_the_drain_cuts_what_is_still_open(front: FakeFront, tmp_path: Path) -> None:
    async def endless(_submission: Submission) -> AsyncIterator[Event]:
        yield Delta("It", 1)
        await asyncio.Event().wait()

    front.script = endless
    app = build_client_app(build_gateway(front, CONFIG))
    asked = {"messages": USER, "stream": True}
    with Running(app, tmp_path / "s", Limits(connections=3), 0.1) as running, running.client() as client:
        with client.stream("POST", "/v1/chat/completions", json=asked) as response:
            lines = response.iter_lines()
            next(lines)
            running.begin_stop()
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        assert front.tickets[0].cancelled.wait(5)


def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    body = json.dumps({"messages": USER}).encode()
    chat = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    last = b"GET /nothing HTTP/1.1\r\nconnection: close\r\n\r\n"
    with raw(running) as connection:
        connection.sendall(chat + b"HEAD /healthz HTTP/1.1\r\n\r\n" + b"GET /healthz HTTP/1.1\r\n\r\n" + last)
        statuses = re.findall(rb"HTTP/1\.1 (\d+)", read_all(connection))
    assert statuses == [b"200", b"200", b"200", b"404"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("POST", "/v1/chat/completions/", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
        ("POST", "/admin/v1/drain", 404, "not_found"),
    ],
)
def test_unknown_paths_and_methods_have_the_same_shape(
    client: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
