"""Daemons for tests: real processes, simulated models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edged.testing.daemon import RunningDaemon, running

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
