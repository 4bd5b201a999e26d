"""Variants that nobody ships, made on this machine: same input and tools, same bytes.

Each method runs in a process of its own: a native quantiser that aborts takes nothing else along.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from edged.errors import ModelError

METHODS = {
    "gguf_requantise": ("edged.models.requantise", "llama"),
    "onnx_export_bert": ("edged.models.bert", "derive"),
    "onnx_int8_dynamic": ("edged.models.int8", "derive"),
}
LAST_LINES = 3


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the process that derives is told, as JSON in its only argument."""

    base: str
    target: str
    parameters: dict[str, Any]


def derive(method: str, base: Path, target: Path, parameters: dict[str, Any]) -> None:
    """Make `target` from `base`; `ModelError` says what failed, or which extra is missing."""
    module, extra = METHODS[method]
    job = msgspec.json.encode(Job(str(base), str(target), parameters)).decode()
    command = [sys.executable, "-P", "-m", module, job]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if "ModuleNotFoundError" in done.stderr:
        raise ModelError(f"deriving by {method} needs an extra: pip install 'edged[{extra}]'")
    if done.returncode or not target.is_file():
        last = "; ".join(done.stderr.strip().splitlines()[-LAST_LINES:])
        raise ModelError(f"deriving by {method} failed (exit status {done.returncode}): {last[:500]}")


def read_job(arguments: list[str]) -> Job:
    """Read the job from the command line."""
    return msgspec.json.decode(arguments[1], type=Job)
