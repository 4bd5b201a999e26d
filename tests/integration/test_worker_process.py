"""The process of a worker: options, cores, what it inherits, and whose child it is."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edged.messages import Fault, Ready
from edged.transport.slots import read_only
from edged.workers.process import Process
from edged.workers.spec import to_json

from .worker_bench import ENTRY, OWN, WAIT_S, Bench


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
