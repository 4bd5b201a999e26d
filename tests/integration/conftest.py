"""Daemons with simulated models, single workers, a package index, and documents with an embedder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edged.backend import Variant
from edged.stages.encoder import Encoder
from edged.testing.daemon import RunningDaemon, running

from .ingestion import MANUAL, open_encoder
from .worker_bench import Bench

NO_BUILT_IN = """
[stages.retriever]
workers = 0
[stages.reranker]
workers = 0
"""


def simulated(**stages: str) -> str:
    """A config whose generator and extra stages are simulated; values are bodies of `[stages.NAME]`."""
    lines = [NO_BUILT_IN]
    for name, body in stages.items():
        lines.append(f"[stages.{name}]\nbackend = 'simulated'\ndevice = 'sim:cpu'\n{body}\n")
    return "\n".join(lines)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., RunningDaemon]]:
    """Start daemons with a config; all are stopped and audited at the end."""
    with ExitStack() as stack:

        def start(config: str, **options: bool) -> RunningDaemon:
            folder = tmp_path / f"d{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            return stack.enter_context(running(folder, config, **options))

        yield start


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A place for one worker; it is killed at the end."""
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.fixture
def package_index(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder for wheels, and the environment in which the real pip takes them from there."""
    folder = tmp_path_factory.mktemp("index")
    return folder, {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}


@pytest.fixture(scope="module")
def encoder(variant: Callable[[str, str], Variant]) -> Encoder:
    """A small embedder with real weights."""
    return open_encoder(variant("all-minilm-l6-v2", "int8"))


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A folder with two documents."""
    folder = tmp_path / "documents"
    (folder / "sub").mkdir(parents=True)
    (folder / "router.md").write_text(MANUAL)
    (folder / "sub" / "pump.txt").write_text("The pump starts when the float switch closes.\n")
    return folder


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Where a library is to be."""
    return tmp_path / "library"
