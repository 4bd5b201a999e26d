"""Daemons under fire: real processes, simulated models unless a test says otherwise."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from edged.testing.daemon import RunningDaemon, running

OFF = "".join(f"[stages.{name}]\nworkers = 0\n" for name in ("retriever", "reranker"))


def simulated(generator: str = "", more: str = "", before: str = "") -> str:
    """A config with a simulated generator: its options, what follows it, what comes first."""
    return (
        f"{before}\n{OFF}[stages.generator]\nbackend = 'simulated'\ndevice = 'sim:cpu'\n{generator}\n{more}"
    )


def line(options: str = "", timeout_s: float = 60.0) -> str:
    """Three tensor stages in a row, the pipeline `line`, which gives back what it gets."""
    names = ("first", "second", "third")
    stages = "".join(
        f"[stages.{name}]\nkind = 'tensor'\nbackend = 'simulated'\ndevice = 'sim:cpu'\n"
        f"timeout_s = {timeout_s}\noptions = {{ {options} }}\n"
        for name in names
    )
    return f"{stages}[pipelines.line]\nstages = {list(names)}\n"


def fault(path: Path, **faults: object) -> None:
    """Replace the fault file atomically, as its reader expects; `raise` is spelt `raise_`."""
    spelt = {name.rstrip("_"): value for name, value in faults.items()}
    path.with_suffix(".new").write_text(json.dumps(spelt))
    path.with_suffix(".new").rename(path)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., RunningDaemon]]:
    """Start daemons with a config; all are stopped and audited at the end."""
    with ExitStack() as stack:

        def start(config: str, **options: bool) -> RunningDaemon:
            folder = tmp_path / f"d{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            return stack.enter_context(running(folder, config, **options))

        yield start


@contextmanager
def closing_daemon(started: RunningDaemon) -> Iterator[RunningDaemon]:
    """Stop a daemon that was started by hand, and insist that it leaves nothing."""
    try:
        yield started
    finally:
        status = started.stop()
    assert status == 0
    assert started.leftovers() == []


def nobody_is_left(killed: RunningDaemon) -> None:
    """After a SIGKILL the socket files stay for the next start; processes do not."""
    deadline = time.monotonic() + 5.0
    while found := [left for left in killed.leftovers(0.0) if left.startswith("process")]:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
