"""A scripted daemon: HTTP over a Unix socket in the documented shapes, so that the CLI can be driven."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from edged.cli.root import edgectl
from edged.report import StageStatus, Status, WorkerStatus

CITATION = {
    "number": 1,
    "source": "manual.md",
    "title": "Manual",
    "heading": "Reset",
    "first_line": 12,
    "last_line": 18,
    "page": 0,
    "quote": "Hold the button for ten seconds.",
    "support": 0.9,
    "text": "Hold the button for ten seconds. Then wait.",
}
TIMING = {
    "stage": "generator",
    "wait_s": 0.25,
    "compute_s": 1.5,
    "batch": 1,
    "device": "cpu",
    "variant": "q4_0",
    "attempts": 1,
}
EDGED = {"request_id": "abc", "model": "smollm2", "timings": [TIMING], "resumed": 0}
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}

Exchange = BaseHTTPRequestHandler
Script = Callable[[Exchange, Any], None]


def reply(exchange: Exchange, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
    data = body.encode() if isinstance(body, str) else msgspec.json.encode(body)
    exchange.send_response(status)
    exchange.send_header("Content-Length", str(len(data)))
    for name, value in (headers or {}).items():
        exchange.send_header(name, value)
    exchange.end_headers()
    exchange.wfile.write(data)


def refuse(exchange: Exchange, status: int, code: str, message: str, retry_after: str = "") -> None:
    error = {"message": message, "type": "server_error", "code": code, "param": None}
    reply(exchange, {"error": error}, status, {"Retry-After": retry_after} if retry_after else None)


def open_stream(exchange: Exchange) -> None:
    exchange.send_response(200)
    exchange.send_header("Content-Type", "text/event-stream")
    exchange.send_header("Transfer-Encoding", "chunked")
    exchange.end_headers()


def send_chunk(exchange: Exchange, data: str) -> None:
    body = data.encode()
    exchange.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n")
    exchange.wfile.flush()


def send_event(exchange: Exchange, **fields: Any) -> None:
    chunk = {
        "id": "chatcmpl-abc",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "rag",
        "choices": [],
    }
    send_chunk(exchange, f"data: {json.dumps(chunk | fields)}\n\n")


def delta(finish: str | None = None, **fields: Any) -> list[dict[str, Any]]:
    return [{"index": 0, "delta": fields, "logprobs": None, "finish_reason": finish}]


def stream_answer(exchange: Exchange, *texts: str) -> None:
    open_stream(exchange)
    send_event(exchange, choices=delta(role="assistant", content=""))
    send_chunk(exchange, ": keep-alive\n\n")
    for text in texts:
        send_event(exchange, choices=delta(content=text))
    send_event(exchange, choices=delta("stop", citations=[CITATION]), edged=EDGED)
    send_event(exchange, usage=USAGE)
    send_chunk(exchange, "data: [DONE]\n\n")
    exchange.wfile.write(b"0\r\n\r\n")


def answer(exchange: Exchange, body: Any) -> None:
    if body.get("stream"):
        stream_answer(exchange, "Hold the ", "button [1].")
        return
    message = {"role": "assistant", "content": "Hold the button [1].", "citations": [CITATION]}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = {"id": "1", "created": 1, "model": "rag", "choices": [choice], "usage": USAGE, "edged": EDGED}
    reply(exchange, whole)


def status_of(name: str = "generator") -> Status:
    worker = WorkerStatus(
        incarnation="1", pid=4242, state="ready", in_flight=1, memory_bytes=3 << 20, uptime_s=5.0, load_s=0.5
    )
    stage = StageStatus(
        name=name,
        kind="generator",
        state="degraded",
        reason="a worker is missing",
        model="smollm2",
        variant="q4_0",
        backend="openvino",
        device="cpu",
        workers=(worker,),
        queued=3,
        in_flight=1,
        slots=32,
        slots_used=4,
        done=10,
        failed=0,
        restarts=1,
        rate_per_s=2.5,
        mean_wait_s=0.1,
        mean_compute_s=0.4,
        mean_batch=1.5,
        details={},
    )
    return Status(
        version="0.1.0",
        pid=4241,
        state="degraded",
        uptime_s=90.0,
        config_path="/etc/edged/edged.toml",
        accepted=12,
        completed=10,
        rejected={"overloaded": 2},
        outstanding=2,
        entry_slots=32,
        entry_slots_used=1,
        memory_bytes=5 << 20,
        load_average=0.5,
        temperature_c=61.4,
        temperature_note="",
        stages=(stage,),
        pipelines={"rag": (name,)},
        notes=("no calibration: default placement",),
    )


RECORDS = [
    {"ts": 1.0, "level": "info", "logger": "edged", "event": "ready", "stages": 3, "seq": 1},
    {"ts": 2.0, "level": "warning", "logger": "edged", "event": "worker_died", "pid": 7, "seq": 2},
]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else None
        self.server.requests.append((self.command, self.path, body))
        self.server.scripts[self.command, self.path.partition("?")[0]](self, body)

    do_GET = do_POST = _serve  # noqa: N815 - http.server's names

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def address_string(self) -> str:
        return "unix"


class ScriptedDaemon(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.path = path
        self.requests: list[tuple[str, str, Any]] = []
        self.scripts: dict[tuple[str, str], Script] = {
            ("GET", "/edged/v1/status"): lambda exchange, _: reply(exchange, status_of()),
            ("GET", "/healthz"): lambda exchange, _: reply(exchange, {"status": "ok"}),
            ("GET", "/readyz"): lambda exchange, _: refuse(exchange, 503, "stage_unavailable", "starting"),
            ("GET", "/metrics"): lambda exchange, _: reply(exchange, "edged_up 1\n"),
            ("GET", "/v1/models"): lambda exchange, _: reply(exchange, {"data": [{"id": "rag"}]}),
            ("POST", "/v1/chat/completions"): answer,
            ("POST", "/v1/embeddings"): lambda exchange, body: reply(
                exchange,
                {
                    "data": [
                        {"index": i, "embedding": [float(i), 1.0]}
                        for i in reversed(range(len(body["input"])))
                    ]
                },
            ),
            ("POST", "/v1/rerank"): lambda exchange, _: reply(
                exchange,
                {"results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]},
            ),
            ("POST", "/admin/v1/stages/generator/restart"): lambda exchange, _: reply(
                exchange, {"status": "restarted", "changes": []}
            ),
            ("POST", "/admin/v1/reload"): lambda exchange, _: reply(
                exchange, {"status": "reloaded", "changes": ["queue.slots: 32 -> 8"]}
            ),
            ("POST", "/admin/v1/drain"): lambda exchange, _: reply(
                exchange, {"status": "draining", "changes": []}
            ),
            ("GET", "/admin/v1/config"): lambda exchange, _: reply(exchange, {"queue": {"slots": 8}}),
            ("GET", "/admin/v1/logs"): lambda exchange, _: reply(exchange, {"records": RECORDS}),
        }

    def handle_error(self, *_: Any) -> None:
        """A client that leaves is part of the tests."""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    """A scripted daemon that answers on one socket, the admin socket's calls included."""
    with ScriptedDaemon(tmp_path / "edged.sock") as server:
        (tmp_path / "admin.sock").symlink_to(server.path)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def call(daemon: ScriptedDaemon) -> Callable[..., Result]:
    """Run `edgectl ARGUMENTS` against the scripted daemon."""

    def run(*arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(edgectl, ["--socket", str(daemon.path), *arguments], input=stdin)

    return run


@pytest.fixture
def script(daemon: ScriptedDaemon) -> dict[tuple[str, str], Script]:
    """What the daemon answers to which call; tests replace entries."""
    return daemon.scripts
