"""P5 and P6: what the daemon adds to the work itself."""

from __future__ import annotations

import socket
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measurement import Row, percentile, say, spread
from benchmarks.setting import NONE_BUILT_IN, QUESTIONS, real_config, sample_state
from edged.catalogue import Catalogue
from edged.client import Client
from edged.config import Config
from edged.governor.neighbours import SMOOTHING_S
from edged.messages import ChatTask, Message, encode
from edged.models.store import ModelStore
from edged.placement.defaults import place
from edged.replies import Delta
from edged.stages.contract import BatchStage, Item, Progress, TokenStage, as_streaming
from edged.stages.factory import build
from edged.stages.tensor import encode_tensors
from edged.testing.daemon import running

EMPTY_STAGES = f"{NONE_BUILT_IN}[pipelines.empty]\nstages = ['first', 'second', 'third']\n" + "".join(
    f"[stages.{name}]\nkind = 'tensor'\nbackend = 'simulated'\ndevice = 'sim:cpu'\n"
    "options = { passthrough = true }\n"
    for name in ("first", "second", "third")
)


BLOCK = 6
FORGOTTEN_S = 4 * SMOOTHING_S


class RawClient:
    """One persistent connection and as little client as possible, so that the daemon is what is measured."""

    def __init__(self, address: Path | tuple[str, int]) -> None:
        if isinstance(address, Path):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(str(address))
        else:
            self._socket = socket.create_connection(address)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def post(self, path: str, body: bytes) -> float:
        """Send, read the whole answer, and return the seconds that this took."""
        began = time.perf_counter()
        status, answer = self.exchange(path, body)
        took_s = time.perf_counter() - began
        if status != 200:
            raise RuntimeError(f"unexpected answer {status}: {answer[:200]!r}")
        return took_s

    def exchange(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Send, and return the status and body of the answer."""
        head = f"POST {path} HTTP/1.1\r\nhost: edged\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        self._socket.sendall(head + body)
        status = int(self._file.readline().split()[1])
        length = 0
        while (line := self._file.readline()) not in {b"\r\n", b""}:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, self._file.read(length)

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()


def empty_pipeline(quick: bool) -> tuple[float, dict[str, Any]]:
    """Median milliseconds from request in to answer out, through three stages that do nothing."""
    body = b"".join(bytes(part) for part in encode_tensors({"x": np.zeros((1, 256), np.float32)}))
    rounds, each = (3, 300) if quick else (10, 1000)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), EMPTY_STAGES) as daemon:
        client = RawClient(daemon.client.socket)
        for _ in range(100):
            client.post("/edged/v1/tensors/empty", body)
        times = [[client.post("/edged/v1/tensors/empty", body) for _ in range(each)] for _ in range(rounds)]
        one_hop = [client.post("/edged/v1/tensors/first", body) for _ in range(each)]
        client.close()
    medians_ms = [statistics.median(values) * 1e3 for values in times]
    everything = [value for values in times for value in values]
    return statistics.median(medians_ms), {
        "p50_ms_per_round": spread(medians_ms),
        "p99_ms": round(percentile(everything, 0.99) * 1e3, 3),
        "one_stage_p50_ms": round(statistics.median(one_hop) * 1e3, 3),
        "requests": len(everything),
        "payload_bytes": len(body),
    }


class Direct:
    """The same stages on the same models, called one after the other in this process."""

    def __init__(self, config: Config) -> None:
        store = ModelStore(config.daemon.state_dir / "models", Catalogue.discover())
        stages = {name: build(place(name, stage, config, store)) for name, stage in config.stages.items()}
        self._batch: list[BatchStage] = [stages["retriever"], stages["reranker"]]  # type: ignore[list-item]
        streaming = as_streaming(stages["generator"])
        assert streaming is not None
        self._generator: TokenStage = streaming

    def first_token_s(self, question: str) -> float:
        """Seconds to the first token that carries text."""
        task = ChatTask(messages=(Message("user", question),), grounded=True, max_tokens=16)
        began = time.perf_counter()
        payload = memoryview(encode(task))
        for stage in self._batch:
            (result,) = stage.run([Item(1, "chat", payload)])
            assert isinstance(result, bytes), result
            payload = memoryview(result)
        self._generator.admit(Item(1, "chat", payload))
        while True:
            for event in self._generator.step():
                if isinstance(event, Progress) and event.text:
                    took_s = time.perf_counter() - began
                    self._generator.cancel(1)
                    return took_s


def first_token_through(client: Client, question: str) -> float:
    """The same through the socket: streamed, then hung up."""
    began = time.perf_counter()
    events = client.chat([{"role": "user", "content": question}], max_tokens=16)
    for event in events:
        if isinstance(event, Delta):
            took_s = time.perf_counter() - began
            events.close()
            return took_s
    raise RuntimeError("the answer had no text")


def first_token(quick: bool) -> tuple[float, dict[str, Any]]:
    """Time to first token through the daemon, divided by direct calls, in blocks; order reversed every round.

    Unloaded also means without neighbours: direct calls keep cores busy that the daemon would leave to them
    for seconds (`edged/governor/neighbours.py`), so it waits until it has forgotten the block before.
    """
    state = sample_state()
    ours_s: list[float] = []
    theirs_s: list[float] = []
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), real_config(state)) as daemon:
        direct = Direct(daemon.config)
        first_token_through(daemon.client, "Is anybody there?")
        direct.first_token_s("Is anybody there?")

        def ours(block: Sequence[str]) -> None:
            time.sleep(FORGOTTEN_S)
            for question in block:
                ours_s.append(first_token_through(daemon.client, question))
                daemon.wait_for(lambda status: status.outstanding == 0, "idle")

        def theirs(block: Sequence[str]) -> None:
            theirs_s.extend(direct.first_token_s(question) for question in block)

        for number in range(1 if quick else 4):
            block = QUESTIONS[number * BLOCK : (number + 1) * BLOCK]
            for side in (ours, theirs) if number % 2 else (theirs, ours):
                side(block)
            say(
                f"P5 block {number + 1}: through the daemon {ours_s[-BLOCK:]} s, direct {theirs_s[-BLOCK:]} s"
            )
    ratios = [mine / other for mine, other in zip(ours_s, theirs_s, strict=True)]
    return statistics.median(ratios), {
        "ratio": spread(ratios),
        "through_daemon_s": spread(ours_s),
        "direct_s": spread(theirs_s),
        "questions": len(ratios),
    }


ROWS = (
    Row(
        id="P5",
        what="time to first token, unloaded, through the daemon / direct in-process calls",
        unit="ratio",
        gate=1.10,
        goal=1.02,
        better="lower",
        measure=first_token,
    ),
    Row(
        id="P6",
        what="three empty stages through the socket, median",
        unit="ms",
        gate=3.0,
        goal=1.0,
        better="lower",
        measure=empty_pipeline,
    ),
)
