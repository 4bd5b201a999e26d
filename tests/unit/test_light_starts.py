"""What a process starts without: heavy libraries that it does not need cost every start and its memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"faiss", "jinja2", "numpy", "onnxruntime", "openvino", "tokenizers", "torch", "transformers"}


@pytest.mark.parametrize(
    ("modules", "needed"),
    [
        ("edged.__main__", set()),
        ("edged.cli.root", set()),
        ("edged.workers.__main__", set()),
        ("edged.stages.generator, edged_backends.simulated", {"jinja2"}),
    ],
)
def test_starts_without(modules: str, needed: set[str]) -> None:
    code = f"import sys, {modules}; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(shown.split()) & HEAVY == needed
