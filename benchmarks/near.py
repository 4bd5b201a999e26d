"""The near end of one hop: takes what the far end (`hop.py`) makes, and counts time and CPU seconds."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zmq

from benchmarks.hop import NAME, RESULTS
from edged.dispatch.ledger import ENTRY, Slots
from edged.messages import Batch, Done, SlotRef, Stop, Work
from edged.transport.links import Router
from edged.transport.slots import Arena, Geometry, create, read_only

SHIPPED_SLOTS, LARGE_SLOTS = 32, 8


def slots_for(size: int) -> int:
    """As many slots as are shipped; eight of a large payload."""
    return SHIPPED_SLOTS if size <= 256 << 10 else LARGE_SLOTS


class Cost(NamedTuple):
    """Of one message."""

    wall_s: float
    cpu_s: float
    """Both processes, the threads of ZeroMQ included."""
    peak: int = 0
    """Most slots out on lease."""


@contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """Keep this process, and the threads that it starts now, on a core; -1 leaves it to the kernel."""
    before = os.sched_getaffinity(0)
    if cpu >= 0:
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _child(kind: str, options: dict[str, Any], descriptors: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.hop", kind, json.dumps(options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=descriptors)


def _cpu_of(child: subprocess.Popen[str]) -> float:
    out, _ = child.communicate(timeout=60)
    return float(out.split()[-1])


class Hop:
    """One producer behind edged's own link and arenas, leased from here as the dispatcher leases."""

    def __init__(self, folder: Path, mode: str, size: int, cpu: int) -> None:
        page = 4096
        self._count = slots_for(size)
        geometry = Geometry(self._count, -(-size // page) * page)
        self._descriptors = [create("sources", geometry), create("results", geometry)]
        self._sources = Arena(self._descriptors[0], geometry, writable=True)
        self._results = Arena(read_only(self._descriptors[1]), geometry, writable=False)
        self._slots = Slots(RESULTS, self._count)
        self._router = Router(folder / "hop.sock")
        self._source = self._sources.write(SlotRef(ENTRY, 0, 1), os.urandom(size))
        readable = read_only(self._descriptors[0])
        options = {"path": str(folder / "hop.sock"), "slots": self._count, "slot_bytes": geometry.slot_bytes}
        options |= {
            "bytes": size,
            "mode": mode,
            "cpu": cpu,
            "results": self._descriptors[1],
            "sources": readable,
        }
        self._child = _child("edged", options, (self._descriptors[1], readable))
        os.close(readable)
        self._size = size
        self._request = 0
        self.peak = 0
        next(self._arrivals())

    def stream(self, messages: int) -> Cost:
        """Cost of a message when the producer always has credit."""
        began, cpu = time.perf_counter(), time.process_time()
        half = self._count // 2
        asked = self._ask(half) + self._ask(half)  # one batch is made while one is taken
        for arrived, done in enumerate(self._arrivals(), 1):
            self._take(done)
            if asked < messages and not self._router.pending():
                asked += self._ask(min(self._count - self._slots.used, messages - asked))
            if arrived == messages:
                break
        return self._cost(messages, began, cpu)

    def round_trips(self, messages: int) -> Cost:
        """Cost of asking for one message and taking it, one after the other."""
        arrivals = self._arrivals()
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(messages):
            self._ask(1)
            self._take(next(arrivals))
        return self._cost(messages, began, cpu)

    def _cost(self, messages: int, began: float, cpu: float) -> Cost:
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        self._router.send(NAME, Stop())
        return Cost(wall_s / messages, (cpu_s + _cpu_of(self._child)) / messages, self.peak)

    def _ask(self, count: int) -> int:
        works = []
        for _ in range(count):
            target = self._slots.lease()
            assert target is not None
            self._request += 1
            works.append(Work(self._request, 1, "tensor", self._source, target, 1000))
        self.peak = max(self.peak, self._slots.used)
        self._router.send(NAME, Batch(tuple(works)))
        return count

    def _take(self, done: Done) -> None:
        assert len(self._results.read(done.target)) == self._size
        self._slots.release(done.target)

    def _arrivals(self) -> Iterator[Done]:
        while True:
            if not self._router.pending():
                select.select([self._router.fileno], [], [])
            for _, message in self._router.receive():
                assert isinstance(message, Done), message
                yield message

    def close(self) -> None:
        """Give everything back."""
        self._child.kill()
        self._child.wait()
        self._router.close()
        for arena in (self._sources, self._results):
            arena.close()
        for descriptor in self._descriptors:
            os.close(descriptor)


def edged(mode: str, size: int, messages: int, pins: tuple[int, int], *, trips: bool = False) -> Cost:
    """One run over edged's link and arenas."""
    with tempfile.TemporaryDirectory() as folder, pinned(pins[0]):
        hop = Hop(Path(folder), mode, size, pins[1])
        try:
            return hop.round_trips(messages) if trips else hop.stream(messages)
        finally:
            hop.close()


def pyzmq(size: int, messages: int, pins: tuple[int, int]) -> Cost:
    """One run over PUSH and PULL, payloads copied in and out."""
    with tempfile.TemporaryDirectory() as folder, pinned(pins[0]):
        context = zmq.Context()
        receiver, control = context.socket(zmq.PULL), context.socket(zmq.PAIR)
        receiver.bind(f"ipc://{folder}/p")
        control.bind(f"ipc://{folder}/p.c")
        child = _child("pyzmq", {"path": f"{folder}/p", "bytes": size, "messages": messages, "cpu": pins[1]})
        control.recv()
        began, cpu = time.perf_counter(), time.process_time()
        control.send(b"")
        for _ in range(messages):
            assert len(receiver.recv()) == size
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        control.send(b"")
        total_s = cpu_s + _cpu_of(child)
        context.destroy(linger=0)
    return Cost(wall_s / messages, total_s / messages)


def python_queue(size: int, messages: int) -> Cost:
    """One run over `multiprocessing.Queue`: pickled through a pipe."""
    fork = get_context("fork")
    results, spent = fork.Queue(maxsize=slots_for(size)), fork.Queue()

    def produce() -> None:
        payload, began = np.frombuffer(os.urandom(size), np.uint8), time.process_time()
        for _ in range(messages):
            results.put(payload)
        results.close()
        results.join_thread()
        spent.put(time.process_time() - began)

    process = fork.Process(target=produce)
    process.start()
    assert len(results.get()) == size
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(messages - 1):
        assert len(results.get()) == size
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    total_s = cpu_s + spent.get()
    process.join()
    return Cost(wall_s / messages, total_s / messages)


def memcpy(size: int, messages: int) -> float:
    """Seconds to copy a payload, rotating over as many buffers as there are slots."""
    source = np.frombuffer(os.urandom(size), np.uint8)
    targets = [np.empty(size, np.uint8) for _ in range(slots_for(size))]
    for target in targets:
        np.copyto(target, source)
    began = time.perf_counter()
    for number in range(messages):
        np.copyto(targets[number % len(targets)], source)
    return (time.perf_counter() - began) / messages


def bare_trip(messages: int, pins: tuple[int, int]) -> float:
    """Seconds of a ping-pong of 64 bytes over bare DEALER and ROUTER: what ZeroMQ's own threads cost."""
    with tempfile.TemporaryDirectory() as folder, pinned(pins[0]):
        child = _child("bare", {"path": f"{folder}/b", "messages": messages, "cpu": pins[1]})
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            router.bind(f"ipc://{folder}/b")
            name, payload = router.recv_multipart()
            began = time.perf_counter()
            for _ in range(messages):
                router.send_multipart((name, payload))
                router.recv_multipart()
            took_s = (time.perf_counter() - began) / messages
        child.communicate(timeout=60)
    return took_s


def eventfd_trip(messages: int, pins: tuple[int, int]) -> float:
    """Seconds of a bare ping-pong between two processes over two eventfds."""
    there, back = os.eventfd(0), os.eventfd(0)
    with pinned(pins[0]):
        child = os.fork()
        if child == 0:
            if pins[1] >= 0:
                os.sched_setaffinity(0, {pins[1]})
            for _ in range(messages):
                os.eventfd_read(there)
                os.eventfd_write(back, 1)
            os._exit(0)
        began = time.perf_counter()
        for _ in range(messages):
            os.eventfd_write(there, 1)
            os.eventfd_read(back)
        took_s = (time.perf_counter() - began) / messages
    os.waitpid(child, 0)
    os.close(there)
    os.close(back)
    return took_s
