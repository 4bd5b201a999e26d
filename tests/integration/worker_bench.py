"""Where one real worker process works: a router and arenas, in the place of the dispatcher."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edged.backend import Variant
from edged.messages import Batch, Caches, Done, FromWorker, Ready, SlotRef, Work
from edged.stages.tensor import encode_tensors
from edged.transport.links import Router
from edged.transport.slots import Arena, Geometry, create
from edged.workers.process import Process
from edged.workers.spec import ArenaSpec, StageSpec, WorkerSpec

WAIT_S = 30.0
GEOMETRY = Geometry(slots=4, slot_bytes=8192)
ENTRY, OWN = 0, 1
M = TypeVar("M")


class Bench:
    """Where one worker works: a router, an entry arena to feed it and an arena for its results."""

    def __init__(self, folder: Path) -> None:
        self.router = Router(folder / "workers.sock")
        self.endpoint = folder / "workers.sock"
        self.folder = folder
        self.descriptors = [create(name, GEOMETRY) for name in ("entry", "own")]
        self.entry = Arena(self.descriptors[ENTRY], GEOMETRY, writable=True)
        self.results = Arena(self.descriptors[OWN], GEOMETRY, writable=False)
        self.processes: list[Process] = []
        self.heard: list[FromWorker] = []
        self.stream_interval_ms = 0.0
        self.ignored: tuple[type, ...] = (Caches,)
        """Counters come between the others whenever they have changed."""

    def spec(self, kind: str, device: str = "sim:cpu", max_batch: int = 4, **options: Any) -> WorkerSpec:
        task: Any = "generate" if kind == "generator" else "tensor"
        variant = Variant(model="m", name="none", task=task, format="none", path=Path("/dev/null"))
        stage = StageSpec(
            name=kind,
            kind=kind,
            backend="simulated" if device.startswith("sim") else "onnx",
            device=device,
            max_batch=max_batch,
            variant=variant,
            options=options,
            library=self.folder,
            stream_interval_ms=self.stream_interval_ms,
        )
        arenas = [
            ArenaSpec(number, descriptor, GEOMETRY, number == OWN)
            for number, descriptor in enumerate(self.descriptors)
        ]
        return WorkerSpec(
            incarnation=f"{kind}-{len(self.processes)}",
            endpoint=self.endpoint,
            parent=os.getpid(),
            stage=stage,
            arenas=tuple(arenas),
            log_level="info",
            log_format="text",
        )

    def start(self, kind: str, device: str = "sim:cpu", max_batch: int = 4, **options: Any) -> Process:
        process = Process(self.spec(kind, device, max_batch, **options))
        self.processes.append(process)
        return process

    def ready(self, kind: str, **options: Any) -> Ready:
        self.start(kind, **options)
        return self.expect(Ready)

    def send(self, message: Any) -> None:
        assert self.router.send(self.processes[-1].incarnation, message)

    def listen(self) -> FromWorker:
        """Give the next message of the newest worker."""
        while not self.heard:
            if not self.router.pending():
                assert select.select([self.router.fileno], [], [], WAIT_S)[0], "the worker is silent"
            self.hear()
        return self.heard.pop(0)

    def hear(self) -> None:
        """Take in what has arrived."""
        arrived = (message for _, message in self.router.receive())
        self.heard += [message for message in arrived if not isinstance(message, self.ignored)]

    def expect(self, kind: type[M]) -> M:
        message = self.listen()
        assert isinstance(message, kind), message
        return message

    def until(self, kind: type[M]) -> M:
        """Skip what comes before a message of a kind."""
        while not isinstance(message := self.listen(), kind):
            pass
        return message

    def put(self, slot: int, payload: bytes) -> SlotRef:
        return self.entry.write(SlotRef(ENTRY, slot, 1), payload)

    def give(self, *works: Work) -> None:
        self.send(Batch(works))

    def result(self, done: Done) -> bytes:
        return bytes(self.results.read(done.target))

    def exit_status(self) -> str:
        """How the newest worker ended, once it has."""
        process = self.processes.pop()
        assert select.select([process.pidfd], [], [], WAIT_S)[0], "the worker does not end"
        return process.reap()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.reap()
        self.router.close()
        self.entry.close()
        self.results.close()
        for descriptor in self.descriptors:
            os.close(descriptor)


def work(number: int, source: SlotRef, operation: str = "tensor", **fields: Any) -> Work:
    return Work(number, 1, operation, source, SlotRef(OWN, number % 4, 5), 60_000, **fields)


def tensors(fill: float, rows: int = 1) -> bytes:
    return b"".join(bytes(part) for part in encode_tensors({"input": np.full((rows, 3), fill, np.float32)}))
