"""What only a real process shows: signals, closed pipes, terminals, start-up imports."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

COMMAND = [sys.executable, "-c", "from edged.cli import main; main()"]
CHAT = ("POST", "/v1/chat/completions")


@pytest.fixture
def start(daemon) -> Callable[..., subprocess.Popen[str]]:
    def run(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen([*COMMAND, "--socket", str(daemon.path), *arguments], text=True, **pipes)

    return run


@pytest.fixture
def stalling(script) -> threading.Event:
    """The first answer stops after its first words; later ones are whole."""
    began = threading.Event()
    whole = script[CHAT]

    def stall(exchange: Any, body: Any) -> None:
        script[CHAT] = whole
        exchange.send_response(200)
        exchange.send_header("Transfer-Encoding", "chunked")
        exchange.end_headers()
        part = 'data: {"choices":[{"delta":{"content":"Hold"}}]}\n\n'
        exchange.wfile.write(f"{len(part):x}\r\n{part}\r\n".encode())
        exchange.wfile.flush()
        began.set()
        exchange.rfile.read(1)  # until the client hangs up

    script[CHAT] = stall
    return began


def test_ctrl_c_ends_ask_with_130_and_no_traceback(start, stalling):
    process = start("ask", "How?")
    assert process.stdout.read(4) == "Hold"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_ctrl_c_ends_the_answer_and_not_the_chat(start, stalling):
    process = start("chat")
    process.stdin.write("first\n")
    process.stdin.flush()
    assert process.stdout.read(4) == "Hold"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate("second\n", timeout=20)
    assert "Hold the button [1]." in output
    assert "(stopped)" in errors
    assert process.returncode == 0


def test_a_closed_pipe_is_not_an_error_message(start):
    reader, writer = os.pipe()
    os.close(reader)
    process = start("status", stdout=writer)
    os.close(writer)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (1, "")


def test_nothing_is_coloured_where_nobody_looks(start):
    output, errors = start("status").communicate(timeout=20)
    assert "\x1b" not in output + errors


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_colours_unless_it_asked_for_none(start, environment, coloured):
    leader, follower = pty.openpty()
    plain = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    process = start("status", stdout=follower, env=plain | {"TERM": "xterm"} | environment)
    os.close(follower)
    shown = b""
    try:
        while data := os.read(leader, 65536):
            shown += data
    except OSError:  # what Linux says at the end of a terminal
        pass
    process.communicate(timeout=20)
    os.close(leader)
    assert b"generator" in shown
    assert (b"\x1b[" in shown) is coloured


def test_status_imports_nothing_heavy(daemon):
    code = (
        "import sys; from edged.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'rich', 'onnxruntime', 'openvino', 'faiss', 'zmq', 'starlette'}\n"
        "print(*(set(sys.modules) & heavy),"
        " file=sys.stderr)"
    )
    arguments = [sys.executable, "-c", code, "--socket", str(daemon.path), "status"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.strip() == ""
    assert "generator" in done.stdout
