"""A real worker process; the test plays the dispatcher, with a router and arenas of its own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest

from edged.backend import Variant
from edged.messages import (
    Answer,
    Batch,
    Caches,
    Cancel,
    ChatTask,
    Done,
    Failed,
    Fault,
    FromWorker,
    Gone,
    Message,
    Ping,
    Pong,
    Ready,
    SlotRef,
    Stop,
    Tokens,
    Work,
    decoder,
    encode,
)
from edged.stages.tensor import decode_tensors, encode_tensors
from edged.transport.links import Router
from edged.transport.slots import Arena, Geometry, create, read_only
from edged.workers.process import Process
from edged.workers.spec import ArenaSpec, StageSpec, WorkerSpec, to_json

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


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def work(number: int, source: SlotRef, operation: str = "tensor", **fields: Any) -> Work:
    return Work(number, 1, operation, source, SlotRef(OWN, number % 4, 5), 60_000, **fields)


def tensors(fill: float, rows: int = 1) -> bytes:
    return b"".join(bytes(part) for part in encode_tensors({"input": np.full((rows, 3), fill, np.float32)}))


def chat(text: str, **fields: Any) -> bytes:
    return encode(ChatTask(messages=(Message("user", text),), **fields))


# ------------------------------------------------------------------------------------- batches


def test_it_says_that_it_is_ready_and_what_it_takes(bench: Bench) -> None:
    ready = bench.ready("tensor", max_batch=3)
    assert ready.credit == 3
    assert ready.pid == bench.processes[0].pid
    assert ready.load_s >= 0


def test_it_answers_a_batch_in_place(bench: Bench) -> None:
    bench.ready("tensor")
    works = [work(n, bench.put(n, tensors(n))) for n in range(3)]
    bench.give(*works)
    for expected in works:
        done = bench.expect(Done)
        assert (done.request, done.attempt, done.batch, done.credit) == (expected.request, 1, 3, 1)
        assert done.target.generation == expected.target.generation
        (array,) = decode_tensors(memoryview(bench.result(done))).values()
        assert (array == expected.request).all()


def test_an_item_fails_alone(bench: Bench) -> None:
    bench.ready("tensor")
    bench.give(
        work(0, bench.put(0, tensors(0))),
        work(1, bench.put(1, b"rubbish")),
        work(2, bench.put(2, tensors(2))),
    )
    outcomes = {message.request: message for message in (bench.listen() for _ in range(3))}  # type: ignore[union-attr]
    failed = outcomes.pop(1)
    assert isinstance(failed, Failed)
    assert failed.code == "bad_request"
    assert all(isinstance(message, Done) for message in outcomes.values())


def test_a_result_that_does_not_fit_its_slot_is_too_large(bench: Bench) -> None:
    """The answer of the generator repeats the text: 9000 tokens do not fit 8192 bytes."""
    bench.ready("generator", context_tokens=20_000)
    bench.give(work(0, bench.put(0, chat("go on", max_tokens=9000)), "chat"))
    failed = bench.until(Failed)
    assert (failed.request, failed.code, failed.param) == (0, "too_large", "queue.slot_bytes")


def test_a_source_whose_bytes_changed_is_corrupt(bench: Bench) -> None:
    bench.ready("tensor")
    ref = bench.put(0, tensors(1))
    bench.entry.slot(0)[20] ^= 1
    bench.give(work(0, ref), work(1, bench.put(1, tensors(1))))
    assert bench.expect(Failed).code == "corrupt_slot"
    assert bench.expect(Done).request == 1


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (SlotRef(ENTRY, 99, 1), "protocol"),
        (SlotRef(ENTRY, 0, 1, 8193), "protocol"),
        (SlotRef(ENTRY, -1, 1), "protocol"),
    ],
    ids=["slot", "length", "negative"],
)
def test_a_descriptor_that_points_nowhere_fails_alone(bench: Bench, source: SlotRef, code: str) -> None:
    bench.ready("tensor")
    bench.give(work(0, source))
    assert bench.expect(Failed).code == code
    bench.give(work(1, bench.put(1, tensors(1))))
    assert bench.expect(Done).request == 1


def test_a_target_outside_its_arena_fails_alone(bench: Bench) -> None:
    bench.ready("tensor")
    bench.give(Work(0, 1, "tensor", bench.put(0, tensors(1)), SlotRef(OWN, 77, 1), 1000))
    assert bench.expect(Failed).code == "protocol"
    bench.give(work(1, bench.put(1, tensors(1))))
    assert bench.expect(Done).request == 1


def test_it_answers_a_ping_and_ignores_a_cancel_of_nothing(bench: Bench) -> None:
    bench.ready("tensor")
    bench.send(Cancel(7, 1))
    bench.send(Ping(41))
    assert bench.expect(Pong) == Pong(41)


def test_a_batch_worker_stops_with_status_0(bench: Bench) -> None:
    bench.ready("tensor")
    bench.give(work(0, bench.put(0, tensors(1))))
    bench.send(Stop())
    assert bench.expect(Done).request == 0
    assert bench.exit_status() == "exit status 0"


def test_a_lost_device_ends_the_process_and_nothing_is_answered(bench: Bench, tmp_path: Path) -> None:
    faults = tmp_path / "faults.json"
    faults.write_text('{"raise": "device_lost"}')
    bench.ready("tensor", faults=str(faults))
    bench.give(work(0, bench.put(0, tensors(1))))
    assert bench.expect(Fault).code == "device_lost"
    assert bench.exit_status() == "exit status 1"


def test_a_runtime_that_raises_fails_the_batch_and_lives(bench: Bench, tmp_path: Path) -> None:
    faults = tmp_path / "faults.json"
    faults.write_text('{"raise": "backend", "once": true}')
    bench.ready("tensor", faults=str(faults))
    bench.give(work(0, bench.put(0, tensors(1))))
    assert bench.expect(Failed).code == "backend"
    bench.give(work(1, bench.put(1, tensors(1))))
    assert bench.expect(Done).request == 1


# -------------------------------------------------------------------------------------- tokens


def stream(bench: Bench, request: int) -> tuple[str, Answer]:
    """Gather one answer: contiguous tokens, then `Done`."""
    text, count = "", 0
    while True:
        message = bench.listen()
        if isinstance(message, Tokens):
            assert (message.request, message.first) == (request, count)
            count += len(message.tokens)
            text += message.text
        else:
            assert isinstance(message, Done), message
            return text, decoder(Answer)(bench.result(message))


def test_it_streams_an_answer_and_puts_the_whole_into_the_slot(bench: Bench) -> None:
    assert bench.ready("generator", max_batch=2).credit == 2
    bench.give(work(0, bench.put(0, chat("hello", max_tokens=40)), "chat"))
    text, answer = stream(bench, 0)
    assert text == answer.text
    assert answer.completion_tokens == len(text) == 40


def test_a_cancelled_answer_is_gone_within_a_token(bench: Bench) -> None:
    bench.ready("generator", decode_ms=20, context_tokens=20_000)
    bench.give(work(0, bench.put(0, chat("hello", max_tokens=9000)), "chat"))
    bench.expect(Tokens)
    while bench.router.pending():
        bench.hear()
    said = len(bench.heard)
    bench.send(Cancel(0, 1))
    while not isinstance(bench.heard[-1] if bench.heard else None, Gone):
        assert select.select([bench.router.fileno], [], [], WAIT_S)[0]
        bench.hear()
    assert bench.heard[-1] == Gone(0, 1)
    assert len(bench.heard) - said <= 1 + 3, "it went on for more than the tokens that were on their way"
    bench.heard.clear()
    bench.send(Ping(3))
    assert bench.listen() == Pong(3), "something followed `Gone`"


def test_a_cancelled_answer_makes_room(bench: Bench) -> None:
    bench.ready("generator", max_batch=1, decode_ms=5, context_tokens=20_000)
    bench.give(work(0, bench.put(0, chat("hello", max_tokens=9000)), "chat"))
    bench.expect(Tokens)
    bench.send(Cancel(0, 1))
    bench.until(Gone)
    bench.give(work(1, bench.put(1, chat("next", max_tokens=5)), "chat"))
    assert len(stream(bench, 1)[0]) == 5


def test_a_cancel_of_another_attempt_is_ignored(bench: Bench) -> None:
    bench.ready("generator", decode_ms=5)
    bench.give(work(0, bench.put(0, chat("hello", max_tokens=20)), "chat"))
    bench.send(Cancel(0, 2))
    text, _ = stream(bench, 0)
    assert len(text) == 20


def test_a_stop_finishes_what_is_held_and_exits_0(bench: Bench) -> None:
    bench.ready("generator", decode_ms=5)
    bench.give(work(0, bench.put(0, chat("hello", max_tokens=30)), "chat"))
    bench.expect(Tokens)
    bench.send(Stop())
    assert len(decoder(Answer)(bench.result(bench.until(Done))).text) == 30
    assert bench.exit_status() == "exit status 0"


def test_an_idle_token_worker_stops_at_once(bench: Bench) -> None:
    bench.ready("generator")
    bench.send(Stop())
    assert bench.exit_status() == "exit status 0"


def test_an_item_that_cannot_be_admitted_fails_alone(bench: Bench) -> None:
    bench.ready("generator", decode_ms=1)
    bench.give(work(0, bench.put(0, chat("hello", max_tokens=10)), "chat"))
    bench.give(work(1, bench.put(1, b"\xc1"), "chat"))
    failed = bench.until(Failed)
    assert (failed.request, failed.code) == (1, "protocol")
    assert bench.until(Done).request == 0


def test_a_resumed_item_goes_on_where_the_client_is(bench: Bench) -> None:
    bench.ready("generator", decode_ms=1)
    source = bench.put(0, chat("hello", max_tokens=30))
    bench.give(work(0, source, "chat"))
    tokens: list[int] = []
    while not isinstance(message := bench.listen(), Done):
        assert isinstance(message, Tokens)
        tokens += message.tokens
    whole = decoder(Answer)(bench.result(message)).text
    bench.give(work(1, source, "chat", resume_tokens=tuple(tokens[:12]), resume_characters=12))
    first = bench.expect(Tokens)
    assert first.first == 12
    rest = first.text
    while not isinstance(message := bench.listen(), Done):
        assert isinstance(message, Tokens)
        rest += message.text
    assert whole[:12] + rest == whole == decoder(Answer)(bench.result(message)).text


def test_a_loop_that_has_nothing_to_tell_gives_signs_of_life(bench: Bench) -> None:
    """A prompt of 3000 tokens at 256 a step and 0.5 ms a token: 1.5 s without a token."""
    bench.ready("generator", per_token_ms=0.5, context_tokens=8000)
    bench.give(work(0, bench.put(0, chat("x" * 3000, max_tokens=2)), "chat"))
    assert isinstance(bench.listen(), Pong)
    bench.until(Done)


# ----------------------------------------------------------------------------- birth and death


@pytest.mark.parametrize(
    ("options", "said"),
    [({"no_such_option": 1}, "no_such_option"), ({"threads": "many"}, "threads")],
)
def test_a_bad_option_is_a_fault_and_status_1(bench: Bench, options: dict[str, Any], said: str) -> None:
    bench.start("tensor", **options)
    fault = bench.expect(Fault)
    assert fault.code == "config"
    assert said in fault.message
    assert bench.exit_status() == "exit status 1"


def test_cores_that_it_may_not_use_are_a_fault(bench: Bench) -> None:
    forbidden = max(os.sched_getaffinity(0)) + 1
    bench.start("tensor", device=f"cpu:{forbidden}")
    fault = bench.expect(Fault)
    assert fault.code == "config"
    assert f"'cpu:{forbidden}' names cores that this process may not use" in fault.message
    assert bench.exit_status() == "exit status 1"


def test_a_core_set_pins_every_thread(bench: Bench) -> None:
    core = min(os.sched_getaffinity(0))
    ready = bench.ready("tensor", device=f"cpu:{core}", passthrough=True)
    threads = [int(path.name) for path in Path(f"/proc/{ready.pid}/task").iterdir()]
    assert all(os.sched_getaffinity(thread) == {core} for thread in threads)


def test_without_a_core_set_it_may_run_everywhere(bench: Bench) -> None:
    ready = bench.ready("tensor")
    assert os.sched_getaffinity(ready.pid) == os.sched_getaffinity(0)


def test_it_is_known_by_name_and_goes_before_the_daemon_when_memory_ends(bench: Bench) -> None:
    ready = bench.ready("tensor")
    assert Path(f"/proc/{ready.pid}/comm").read_text().strip() == "edged:tensor"
    assert Path(f"/proc/{ready.pid}/oom_score_adj").read_text().strip() == "500"
    assert "NoNewPrivs:\t1" in Path(f"/proc/{ready.pid}/status").read_text()


def test_it_inherits_the_arenas_and_nothing_else_of_the_daemon(bench: Bench) -> None:
    with ExitStack() as stack:
        secret = stack.enter_context((bench.folder / "secret").open("w"))
        os.set_inheritable(secret.fileno(), True)
        ready = bench.ready("tensor")
        links = {str(path.readlink()) for path in Path(f"/proc/{ready.pid}/fd").iterdir()}
    assert {link for link in links if "memfd" in link} == {
        "/memfd:edged:entry (deleted)",
        "/memfd:edged:own (deleted)",
    }
    assert str(bench.folder / "secret") not in links


PARENT = """
import subprocess, sys, os
child = subprocess.Popen([sys.executable, "-m", "edged.workers", "w"], stdin=subprocess.PIPE,
                         pass_fds=[int(n) for n in sys.argv[2:]])
spec = sys.stdin.buffer.read().replace(b'"parent":0', b'"parent":%d' % (os.getpid() + int(sys.argv[1])))
child.stdin.write(spec); child.stdin.close()
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def foster(bench: Bench) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], int]]]:
    """Start a worker under another parent; the spec names that parent, or somebody `wrong_by` beside it."""
    parents: list[subprocess.Popen[bytes]] = []

    def start(wrong_by: int = 0) -> tuple[subprocess.Popen[bytes], int]:
        spec = msgspec.structs.replace(bench.spec("tensor"), parent=0)
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(wrong_by), *map(str, bench.descriptors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=bench.descriptors,
        )
        parents.append(parent)
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(to_json(spec))
        parent.stdin.close()
        return parent, os.pidfd_open(int(parent.stdout.readline()))

    yield start
    for parent in parents:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()


def test_it_dies_with_its_parent(bench: Bench, foster: Callable[..., Any]) -> None:
    parent, child = foster()
    bench.expect(Ready)
    assert not select.select([child], [], [], 0)[0]
    os.kill(parent.pid, signal.SIGKILL)
    assert select.select([child], [], [], WAIT_S)[0], "the worker outlived its parent"
    os.close(child)


def test_it_ends_when_its_parent_died_before_it_was_awake(bench: Bench, foster: Callable[..., Any]) -> None:
    """The spec names the parent, so that a death before the prctl is not missed."""
    _, child = foster(wrong_by=1)
    assert select.select([child], [], [], WAIT_S)[0], "the worker serves somebody else's child"
    os.close(child)
    assert not bench.router.pending()


def test_a_consumers_arena_is_read_only_in_the_worker(bench: Bench) -> None:
    """The daemon hands out the entry opened for reading; a worker that maps it cannot write it."""
    opened = read_only(bench.descriptors[ENTRY])
    spec = bench.spec("tensor")
    entry = msgspec.structs.replace(spec.arenas[ENTRY], descriptor=opened)
    process = Process(msgspec.structs.replace(spec, arenas=(entry, spec.arenas[OWN])))
    bench.processes.append(process)
    ready = bench.expect(Ready)
    maps = Path(f"/proc/{ready.pid}/maps").read_text().splitlines()
    rights = {line.split()[-2]: line.split()[1] for line in maps if "memfd:edged" in line}
    assert rights == {"/memfd:edged:entry": "r--s", "/memfd:edged:own": "rw-s"}
    os.close(opened)
