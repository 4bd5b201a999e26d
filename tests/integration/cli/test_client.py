from __future__ import annotations

import errno
import itertools
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edged.client import AdminClient, Client
from edged.errors import ConnectionLost, EdgedError, Overloaded, Unreachable
from edged.replies import Delta, Final

QUESTION = [{"role": "user", "content": "How do I reset it?"}]
CHAT = ("POST", "/v1/chat/completions")
MESSAGE = {"role": "assistant"}


def chunked(exchange: Any, *parts: str) -> None:
    exchange.send_response(200)
    exchange.send_header("Transfer-Encoding", "chunked")
    exchange.end_headers()
    for part in parts:
        exchange.wfile.write(f"{len(part):x}\r\n{part}\r\n".encode())
    exchange.wfile.flush()
    exchange.close_connection = True


def test_a_stream_gives_its_text_in_pieces_and_then_everything_else(daemon):
    *deltas, final = Client(daemon.path).chat(QUESTION)
    assert deltas == [Delta("Hold the "), Delta("button [1].")]
    assert isinstance(final, Final)
    assert final.text == "Hold the button [1]."
    assert (final.finish, final.request_id) == ("stop", "abc")
    assert final.citations[0].source == "manual.md"
    assert final.timings[0].stage == "generator"
    assert final.usage.completion_tokens == 2


def test_an_answer_that_is_not_streamed_says_the_same(daemon):
    *_, streamed = Client(daemon.path).chat(QUESTION)
    assert list(Client(daemon.path).chat(QUESTION, stream=False)) == [streamed]


def test_fields_reach_the_daemon_as_they_are(daemon):
    list(Client(daemon.path).chat(QUESTION, model="rag", max_tokens=5, edged={"keep": 2}))
    body = daemon.requests[-1][2]
    assert (body["max_tokens"], body["edged"], body["messages"]) == (5, {"keep": 2}, QUESTION)


def test_health_models_metrics_and_status(daemon):
    client = Client(daemon.path)
    assert client.healthy()
    assert not client.ready()
    assert client.models() == [{"id": "rag"}]
    assert client.metrics() == "edged_up 1\n"
    assert client.status().stages[0].workers[0].pid == 4242


def test_vectors_come_in_the_order_of_the_texts(daemon):
    assert Client(daemon.path).embed(["a", "b"]) == [[0.0, 1.0], [1.0, 1.0]]
    assert "model" not in daemon.requests[-1][2]


def test_admin_calls(daemon):
    admin = AdminClient(daemon.path)
    admin.restart_stage("generator")
    assert admin.reload() == ["queue.slots: 32 -> 8"]
    assert admin.configuration() == {"queue": {"slots": 8}}
    assert [record["seq"] for record in admin.logs(2)] == [1, 2]
    assert daemon.requests[-1][1] == "/admin/v1/logs?count=2"


def test_a_stage_name_cannot_leave_its_path(daemon, script):
    script["POST", "/admin/v1/stages/..%2F..%2Freload/restart"] = lambda exchange, _: chunked(exchange, "{}")
    with pytest.raises(ConnectionLost):
        AdminClient(daemon.path).restart_stage("../../reload")
    assert daemon.requests[-1][1].count("/") == 5


def test_a_refusal_becomes_the_error_that_the_daemon_raised(daemon, script):
    def full(exchange: Any, _: Any) -> None:
        body = b'{"error":{"message":"full","type":"rate_limit_error","code":"overloaded","param":null}}'
        exchange.send_response(429)
        exchange.send_header("Retry-After", "3")
        exchange.send_header("Content-Length", str(len(body)))
        exchange.end_headers()
        exchange.wfile.write(body)

    script[CHAT] = full
    with pytest.raises(Overloaded, match="full") as caught:
        list(Client(daemon.path).chat(QUESTION))
    assert caught.value.retry_after_s == 3


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": 5}', b"\xff", b'{"error":null}'])
def test_a_refusal_without_a_reason_is_still_an_error_of_ours(daemon, script, body):
    def broken(exchange: Any, _: Any) -> None:
        exchange.send_response(500)
        exchange.send_header("Content-Length", str(len(body)))
        exchange.end_headers()
        exchange.wfile.write(body)

    script[CHAT] = broken
    with pytest.raises(EdgedError, match="500"):
        list(Client(daemon.path).chat(QUESTION))


def test_an_error_in_mid_stream_is_raised(daemon, script):
    text = 'data: {"choices":[{"delta":{"content":"Ho"}}]}\n\n'
    error = 'data: {"error":{"message":"gone","code":"stage_unavailable"}}\n\n'
    script[CHAT] = lambda exchange, _: chunked(exchange, text, error)
    events = Client(daemon.path).chat(QUESTION)
    assert next(events) == Delta("Ho")
    with pytest.raises(EdgedError, match="gone") as caught:
        next(events)
    assert caught.value.code == "stage_unavailable"


@pytest.mark.parametrize(
    "parts",
    [
        ('data: {"choices":[{"delta":{"content":"Ho"}}]}\n\n',),
        ('data: {"choices":[{"delta":{"content":"Ho"}}]}\n\n', 'data: {"cho'),
        (),
    ],
)
def test_a_stream_that_is_cut_off_is_never_taken_for_an_answer(daemon, script, parts):
    script[CHAT] = lambda exchange, _: chunked(exchange, *parts)
    with pytest.raises(ConnectionLost):
        list(Client(daemon.path).chat(QUESTION))


def test_a_stream_that_ends_well_formed_but_without_done_was_cut_too(daemon, script):
    def ends(exchange: Any, _: Any) -> None:
        chunked(exchange, 'data: {"choices":[]}\n\n')
        exchange.wfile.write(b"0\r\n\r\n")

    script[CHAT] = ends
    with pytest.raises(ConnectionLost):
        list(Client(daemon.path).chat(QUESTION))


def test_closing_the_iterator_hangs_up(daemon, script):
    left = threading.Event()

    def endless(exchange: Any, _: Any) -> None:
        chunked(exchange)
        part = 'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
        with suppress(OSError):
            for _ in itertools.count():
                exchange.wfile.write(f"{len(part):x}\r\n{part}\r\n".encode())
        left.set()

    script[CHAT] = endless
    events = Client(daemon.path).chat(QUESTION)
    assert next(events) == Delta("a")
    events.close()
    assert left.wait(10)


def test_silence_is_not_waited_out_for_ever(daemon, script):
    release = threading.Event()
    script[CHAT] = lambda exchange, _: release.wait(10)
    with pytest.raises(ConnectionLost, match=r"said nothing for 0\.05 s"):
        list(Client(daemon.path, timeout_s=0.05).chat(QUESTION))
    release.set()


def test_nobody_there_says_how_to_start_somebody(tmp_path: Path):
    with pytest.raises(Unreachable, match="systemctl start edged"):
        Client(tmp_path / "none.sock").status()


def test_a_socket_left_behind_is_nobody_either(tmp_path: Path):
    path = tmp_path / "left.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    with pytest.raises(Unreachable, match="no daemon answers"):
        Client(path).status()


class Forbidden(socket.socket):
    """Root may use every socket: this one refuses root as well."""

    def connect(self, address: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", address)


def test_a_socket_that_is_not_for_us_names_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edged.client.socket.socket", Forbidden)
    with pytest.raises(Unreachable, match="edged-clients"):
        Client(tmp_path / "edged.sock").status()


def test_a_full_backlog_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "busy.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        waiting = fill_backlog(path)
        served = threading.Thread(target=serve_last, args=(listener, len(waiting) + 1))
        monkeypatch.setattr("edged.client.time.sleep", lambda _: served.is_alive() or served.start())
        assert Client(path).metrics() == "ok"
        served.join()
        for connection in waiting:
            connection.close()


def test_a_backlog_that_stays_full_is_overload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "busy.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        waiting = fill_backlog(path)
        monkeypatch.setattr("edged.client.CONNECT_S", 0.0)
        with pytest.raises(Overloaded, match="accepts no connection"):
            Client(path).status()
        for connection in waiting:
            connection.close()


def fill_backlog(path: Path) -> list[socket.socket]:
    waiting = []
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(0)
        try:
            connection.connect(str(path))
        except BlockingIOError:
            connection.close()
            return waiting
        waiting.append(connection)


def serve_last(listener: socket.socket, count: int) -> None:
    """Take in every connection; answer the last."""
    for number in range(count):
        connection, _ = listener.accept()
        with connection:
            if number == count - 1:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
