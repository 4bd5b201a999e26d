"""How a process that loads a model begins."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edged.birth import SPINS


@pytest.mark.parametrize("module", ["edged_backends.llama_cpp_runtime", "edged_backends.torch_pipeline"])
@pytest.mark.parametrize(("given", "expected"), [({}, SPINS), ({"GOMP_SPINCOUNT": "70"}, "70")])
def test_the_threads_of_openmp_wait_briefly_unless_the_operator_says_otherwise(module, given, expected):
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    shown = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        env=environment | {"OMP_DISPLAY_ENV": "verbose"} | given,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert f"GOMP_SPINCOUNT = '{expected}'" in shown, "what libgomp itself has read"
