"""Start a contender, wait until it answers, stop all of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil

from benchmarks.contenders.environments import environment, python
from benchmarks.contenders.line_up import Contender
from benchmarks.contenders.settings import Settings
from benchmarks.setting import STATE

READY_S = 300.0


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A server that answers."""

    name: str
    address: str
    pid: int


@contextlib.contextmanager
def contending(contender: Contender, library: Path, settings: dict[str, Any]) -> Iterator[Program]:
    """A contender from its first answer on; nothing of it is left at the end."""
    interpreter = python(contender)
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        address = f"127.0.0.1:{port}" if contender.address == "tcp" else f"{folder}/socket"
        given = Settings(
            library=str(library),
            models=str(STATE / "models"),
            cache=str(STATE / "cache"),
            address=address,
            **settings,
        )
        marker = f"EDGED_CONTENDER={folder}"
        mosec = {"MOSEC_ADDRESS": "127.0.0.1", "MOSEC_PORT": str(port), "MOSEC_TIMEOUT": "300000"}
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [interpreter, "-m", f"benchmarks.contenders.{contender.module}", msgspec.json.encode(given)],
                cwd=STATE.parent,
                env=environment({**mosec, "EDGED_CONTENDER": folder, "TMPDIR": folder}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            _wait(process, address, log)
            yield Program(name=contender.name, address=address, pid=process.pid)
        finally:
            _stop(process, marker)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while not _answers(address):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"a contender does not answer:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.1)


def _answers(address: str) -> bool:
    """Whether a question is answered; a framework's port is open long before its workers are ready."""
    content = b'{"question": "Is anybody there?", "max_tokens": 2}'
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET if host else socket.AF_UNIX) as sock:
        sock.settimeout(READY_S)
        sock.connect((host, int(port)) if host else address)
        head = "POST /ask HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
        sock.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        with sock.makefile("rb") as answer:
            return b" 200 " in answer.readline() and b"completion_tokens" in answer.read()
    return False


def _stop(process: subprocess.Popen[bytes], marker: str) -> None:
    """SIGTERM, then SIGKILL for whatever carries the marker: frameworks leave children behind."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10.0)
    for other in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (
                other.pid != os.getpid()
                and other.environ().get("EDGED_CONTENDER") == marker.partition("=")[2]
            ):
                other.kill()
    process.kill()
    process.wait()
