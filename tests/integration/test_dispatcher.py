"""The dispatcher in this process, with a worker of its own: what only it does, not its decisions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
import uvloop

from edged.backend import Variant
from edged.dispatch.dispatcher import Dispatcher
from edged.dispatch.requests import Completed, Rejected, Submission
from edged.governor import neighbours
from edged.stages.tensor import encode_tensors
from edged.transport.slots import Geometry
from edged.workers.spec import StageSpec

WAIT_S = 30.0
STAGE = "tensor"


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(folder, Geometry(8, 4096), "error", "text")
    dispatcher.start()
    try:
        yield dispatcher
    finally:
        await dispatcher.stop()


async def outcome(dispatcher: Dispatcher, deadline_s: float = WAIT_S) -> object:
    payload = b"".join(bytes(part) for part in encode_tensors({"input": np.ones((1, 3), np.float32)}))
    asked = Submission(route=(STAGE,), operation="tensor", payload=payload, deadline_s=deadline_s)
    async with asyncio.timeout(WAIT_S):
        return [event async for event in dispatcher.submit(asked)][-1]


def spec(folder: Path, max_batch: int) -> StageSpec:
    variant = Variant(model="m", name="none", task="tensor", format="none", path=Path("/dev/null"))
    return StageSpec(
        name=STAGE,
        kind="tensor",
        backend="simulated",
        device="sim:cpu",
        max_batch=max_batch,
        variant=variant,
        options={},
        library=folder,
    )


def test_a_deadline_passes_although_the_machine_cannot_be_read(tmp_path: Path, monkeypatch) -> None:
    def fail(_: object) -> float:
        raise OSError(24, "Too many open files")

    async def play() -> None:
        async with started(tmp_path) as dispatcher:
            dispatcher.add_idle_stage(STAGE, streaming=False, wanted=1, reason="none is wanted")
            dispatcher.ledger.stages[STAGE].failed = ""
            event = await outcome(dispatcher, deadline_s=0.2)
            assert isinstance(event, Rejected)
            assert event.error.code == "deadline_exceeded"
            assert dispatcher.self_test()

    monkeypatch.setattr(neighbours, "busy_cpu_s", fail)
    uvloop.run(play())


def test_what_batches_cost_is_learned_anew_after_a_change(tmp_path: Path) -> None:
    async def play() -> None:
        async with started(tmp_path) as dispatcher:
            first = spec(tmp_path, max_batch=4)
            dispatcher.add_stage(first, 1, 60.0, WAIT_S)
            dispatcher.start_workers()
            assert isinstance(await outcome(dispatcher), Completed)
            stage = dispatcher.ledger.stages[STAGE]
            for _ in range(40):
                stage.finish_service(4, 100.0, dispatcher.now())
            async with asyncio.timeout(WAIT_S):
                dispatcher.change_stage(msgspec.structs.replace(first, max_batch=2), 1, 60.0, WAIT_S)
                while stage.changed:
                    assert isinstance(await outcome(dispatcher), Completed)
            assert isinstance(await outcome(dispatcher), Completed)
            assert stage.services <= 2
            assert stage.service_s == pytest.approx(0, abs=50)

    uvloop.run(play())
