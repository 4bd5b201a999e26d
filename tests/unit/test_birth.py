"""How a process that loads a model begins."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edged.birth import SPINS, pin
from edged.errors import ConfigError

SETTLE = (
    "import os, {module}; from edged.birth import settle; settle('edged:test', os.getppid()); import faiss"
)


@pytest.mark.parametrize(
    "code",
    [
        "import edged_backends.llama_cpp_runtime",
        "import edged_backends.torch_pipeline",
        *(
            SETTLE.format(module=each)
            for each in ("edged.workers.__main__", "edged.layers.__main__", "edged.placement.probe")
        ),
    ],
)
@pytest.mark.parametrize(("given", "expected"), [({}, SPINS), ({"GOMP_SPINCOUNT": "70"}, "70")])
def test_the_threads_of_openmp_wait_briefly_unless_the_operator_says_otherwise(code, given, expected):
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"OMP_DISPLAY_ENV": "verbose"} | given,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert f"GOMP_SPINCOUNT = '{expected}'" in shown, "what libgomp itself has read"


@pytest.mark.parametrize(("device", "why"), [("cpu:5-1", "names no core"), ("cpu:9999", "may not use")])
def test_a_process_stays_on_no_cores_that_are_not_there(device: str, why: str):
    before = os.sched_getaffinity(0)
    with pytest.raises(ConfigError, match=why):
        pin(device)
    assert os.sched_getaffinity(0) == before
