"""A scripted dispatcher behind the real HTTP server on a real Unix socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Self

import httpx
import msgspec
import pytest
import uvloop
from starlette.types import ASGIApp

from edged.api.connection import Limits
from edged.api.gateway import Gateway
from edged.api.listen import bind_unix, unlink_own
from edged.api.server import Server, build_admin_app, build_client_app, build_gateway, serve
from edged.config import BUILT_IN, Config
from edged.dispatch.requests import Completed, Delta, Event, StageTiming, Submission
from edged.errors import EdgedError
from edged.governor.readings import DeviceHeat, Frequency, Pressure, Readings, Senses
from edged.messages import (
    Answer,
    ChatTask,
    Citation,
    EmbedAnswer,
    EmbedTask,
    Passage,
    RerankAnswer,
    RerankTask,
    decoder,
    encode,
)
from edged.placement.table import Plan
from edged.report import (
    BypassStatus,
    Override,
    PlanReport,
    PlanStatus,
    StageStatus,
    Status,
    SwapReport,
    WorkerStatus,
)

from .governed import GOVERNOR, FakeGoverning
from .peered import PEERS

CONFIG = msgspec.convert(BUILT_IN | {"api": {"max_body_bytes": 200_000}}, Config)
DIMENSION = 3
PASSAGE = Passage(
    id=7, text="Bolts take 12 Nm.", source="manual.md", title="Manual", first_line=3, last_line=4
)
CITATION = Citation(number=1, passage=PASSAGE, quote="12 Nm", support=1.0)

Script = Callable[[Submission], AsyncIterator[Event]]


def timings(route: tuple[str, ...]) -> tuple[StageTiming, ...]:
    return tuple(
        StageTiming(
            stage=name, wait_s=0.001, compute_s=0.01, batch=2, device="cpu", variant="int8", attempts=1
        )
        for name in route
    )


def vector_of(text: str) -> bytes:
    import struct

    return struct.pack("<3f", len(text), 0.5, -1.0)


async def answer(submission: Submission) -> AsyncIterator[Event]:
    """What a healthy dispatcher does: tokens one by one, real payload structs."""
    route = submission.route
    if submission.operation == "chat":
        task = decoder(ChatTask)(submission.payload)
        words = ["It", " takes", " 12 Nm", " [1]" if task.grounded else ""]
        for word in words:
            yield Delta(word, 1)
        whole = Answer(
            text="".join(words),
            finish="stop",
            prompt_tokens=20,
            completion_tokens=len(words),
            model="smollm2-135m-instruct",
            citations=(CITATION,) if task.grounded else (),
        )
        yield Completed(encode(whole), timings(route))
    elif submission.operation == "embed":
        texts = decoder(EmbedTask)(submission.payload).texts
        vectors = b"".join(vector_of(text) for text in texts)
        body = EmbedAnswer(count=len(texts), dimension=DIMENSION, vectors=vectors, tokens=2 * len(texts))
        yield Completed(encode(body), timings(route))
    elif submission.operation == "rerank":
        documents = decoder(RerankTask)(submission.payload).documents
        scores = tuple(float(len(document)) for document in documents)
        yield Completed(encode(RerankAnswer(scores=scores, tokens=9)), timings(route))
    else:
        yield Completed(submission.payload[::-1], timings(route))


class FakeTicket:
    """Plays a script until it ends or is cancelled."""

    def __init__(self, request: int, events: AsyncIterator[Event]) -> None:
        self.request = request
        self.cancelled = threading.Event()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self._player = asyncio.get_running_loop().create_task(self._play(events))

    async def _play(self, events: AsyncIterator[Event]) -> None:
        async for event in events:
            self._queue.put_nowait(event)

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            event = await self._queue.get()
            yield event
            if not isinstance(event, Delta):
                return

    def cancel(self) -> None:
        if not self._player.done():
            self._player.cancel()
            self.cancelled.set()


SENSES = Senses(
    readings=Readings(
        at_s=1.0,
        frequency=Frequency(1200.0, 1800.0, 2400.0),
        pressure={"memory": Pressure(0.25, 0.125)},
    ),
    devices=(
        DeviceHeat(device="cpu", celsius=51.5, filtered_c=51.4, predicted_c={"10": 53.0}, error_c=-0.5),
        DeviceHeat(device="npu", celsius=None, filtered_c=None, why="npu-thermal is missing"),
    ),
    ignored_readings={"absurd": 0, "stuck": 0, "jumping": 0, "missing": 4},
)


class FakeFront:
    """A dispatcher that plays `script` for every submission, or raises `refusal`."""

    def __init__(self) -> None:
        self.script: Script = answer
        self.refusal: EdgedError | None = None
        self.submissions: list[Submission] = []
        self.tickets: list[FakeTicket] = []
        self.is_ready = True
        self.temperature_c: float | None = 51.5

    def submit(self, submission: Submission, /) -> FakeTicket:
        if self.refusal is not None:
            raise self.refusal
        self.submissions.append(submission)
        ticket = FakeTicket(len(self.submissions), self.script(submission))
        self.tickets.append(ticket)
        return ticket

    def ready(self) -> bool:
        return self.is_ready

    def status(self) -> Status:
        stages = tuple(stage_status(name, stage.kind, stage.model) for name, stage in CONFIG.stages.items())
        return Status(
            version="0.1.0",
            pid=1,
            state="ready",
            uptime_s=1.0,
            config_path="",
            accepted=len(self.submissions),
            completed=0,
            rejected={"overloaded": 3},
            outstanding=0,
            entry_slots=32,
            entry_slots_used=1,
            memory_bytes=1 << 20,
            load_average=0.5,
            temperature_c=self.temperature_c,
            temperature_note="",
            stages=stages,
            pipelines={"rag": ("retriever", "reranker", "generator")},
            notes=(),
            senses=SENSES,
            peers=PEERS,
            governor=GOVERNOR,
            plan=PlanStatus(
                id="0af1",
                objective="throughput",
                bottleneck="generator",
                predicted_rate_per_s=2.0,
                observed_rate_per_s=1.9,
                paces={"generator": 1.0},
            ),
        )


def stage_status(name: str, kind: str, model: str) -> StageStatus:
    worker = WorkerStatus(
        incarnation="a", pid=2, state="ready", in_flight=0, memory_bytes=1024, uptime_s=1.0, load_s=0.1
    )
    return StageStatus(
        name=name,
        kind=kind,
        state="ready",
        reason="",
        model=model,
        variant="int8",
        backend="onnx",
        device="cpu",
        workers=(worker,),
        queued=1,
        in_flight=2,
        slots=32,
        slots_used=3,
        done=10,
        failed=1,
        restarts=1,
        rate_per_s=1.0,
        mean_wait_s=0.1,
        mean_compute_s=0.1,
        mean_batch=1.0,
        details={},
        bypass=BYPASS if kind == "reranker" else None,
    )


BYPASS = BypassStatus(
    mode="benefit",
    configured="auto",
    passing="benefit",
    why="the mode is 'benefit'",
    bypassed=3,
    questions=8,
    lost_points=0.25,
    from_margin=0.6,
    calibration="own",
    observations=240,
    generation=2,
)


class FakeSwaps:
    """Remembers which changes it was told to begin."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls
        self.report = SwapReport(stage="generator", under_way=True, phase="loading")

    def swap(self, name: str, asked: Override, /, *, one_copy: bool) -> list[str]:
        self._calls.append(f"swap {name} {asked.variant}/{asked.backend}/{asked.device} {one_copy}")
        return [f"stage {name}: variant int8 -> fp32"]

    def revert(self, name: str, /, *, one_copy: bool) -> list[str]:
        self._calls.append(f"revert {name} {one_copy}")
        return []

    def scale(self, name: str, workers: int, /) -> list[str]:
        self._calls.append(f"scale {name} {workers}")
        return [f"stage {name}: workers 1 -> {workers}"]


class FakeOperator:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.swaps = FakeSwaps(self.calls)
        self.governing = FakeGoverning(self.calls)
        self.failure: EdgedError | None = None

    async def restart_stage(self, stage: str, /) -> None:
        self.calls.append(f"restart {stage}")

    async def reload(self) -> list[str]:
        if self.failure is not None:
            raise self.failure
        self.calls.append("reload")
        return ["generator: max_batch 8 -> 4"]

    def plan(self) -> PlanReport:
        return PlanReport(plan=None)

    async def apply_plan(self, plan: Plan | None, /, *, dry_run: bool) -> list[str]:
        self.calls.append(f"{'try' if dry_run else 'apply'} {plan.id if plan else 'none'}")
        return ["stage generator: workers 1 -> 2"]

    async def drain(self) -> None:
        self.calls.append("drain")

    def configuration(self) -> dict[str, object]:
        return {"daemon": {"state_dir": Path("/state"), "drain_s": 20.0}}

    def recent_logs(self, count: int, /) -> list[dict[str, object]]:
        return [{"message": "started", "level": "info"}][:count]


class Running:
    """A server in a thread of its own, with an event loop of its own."""

    def __init__(self, app: ASGIApp, path: Path, limits: Limits, drain_s: float) -> None:
        self.path = path
        self._listener = bind_unix(path, 0o660)
        self.server = Server(app, [self._listener], limits, drain_s)
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.begin_stop()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def begin_stop(self) -> None:
        self.call(self._stop.set)

    def call(self, action: Callable[[], object]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(action)

    def client(self) -> httpx.Client:
        return httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.path)), base_url="http://edged", timeout=20
        )

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._started.set)
        await serve([self.server], self._stop)
        unlink_own(self._listener, self.path)


@pytest.fixture
def front() -> FakeFront:
    return FakeFront()


@pytest.fixture
def gateway(front: FakeFront) -> Gateway:
    return build_gateway(front, CONFIG)


@pytest.fixture
def limits() -> Limits:
    return Limits(connections=64)


@pytest.fixture
def running(gateway: Gateway, limits: Limits, tmp_path: Path) -> Iterator[Running]:
    with Running(build_client_app(gateway), tmp_path / "edged.sock", limits, 5.0) as server:
        yield server


@pytest.fixture
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as client:
        yield client


@pytest.fixture
def operator() -> FakeOperator:
    return FakeOperator()


@pytest.fixture
def admin(gateway: Gateway, operator: FakeOperator, limits: Limits, tmp_path: Path) -> Iterator[httpx.Client]:
    app = build_admin_app(gateway, operator)
    with Running(app, tmp_path / "admin.sock", limits, 5.0) as server, server.client() as client:
        yield client
