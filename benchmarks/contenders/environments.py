"""A virtual environment for each contender that needs one: never a dependency of the project."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.contenders.line_up import Contender
from benchmarks.measurement import say
from benchmarks.setting import STATE

FOLDER = STATE / "bench"
TELEMETRY_OFF = {"RAY_USAGE_STATS_ENABLED": "0", "ORT_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


def python(contender: Contender) -> Path:
    """The interpreter that runs a contender; makes its environment on first use.

    The runtimes that all share (openvino, onnxruntime, tokenizers, faiss) are read from the project's
    environment by a path file, so that every program computes with the same builds.
    """
    if not contender.packages:
        return Path(sys.executable)
    folder = FOLDER / contender.packages[0].split("=")[0].split("[")[0]
    stamp = folder / "installed"
    wanted = "\n".join(contender.packages)
    if not stamp.exists() or stamp.read_text() != wanted:
        _install(folder, contender.packages)
        stamp.write_text(wanted)
    return folder / "bin" / "python"


def _install(folder: Path, packages: tuple[str, ...]) -> None:
    say(f"==> {folder}: installing {', '.join(packages)}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    subprocess.run(
        [*pip, "--progress-bar", "on", "--prefer-binary", *packages], check=True, stdout=sys.stderr
    )
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    # Behind the environment's own packages, and only after pip, which would count them as its own.
    (site / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n")


def environment(more: dict[str, str]) -> dict[str, str]:
    """What a contender runs with: the project's source, no telemetry."""
    root = STATE.parent
    return {**os.environ, **TELEMETRY_OFF, "PYTHONPATH": f"{root}:{root / 'backends'}", **more}
