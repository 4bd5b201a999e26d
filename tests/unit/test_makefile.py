"""The Makefile in a checkout whose path holds a space."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"


@pytest.mark.skipif(shutil.which("make") is None, reason="this machine has no make")
def test_clean_removes_what_the_targets_made_and_nothing_else(tmp_path: Path) -> None:
    checkout, neighbour = tmp_path / "my project", tmp_path / "my"
    for folder in (checkout / ".edged", checkout / ".venv", checkout / "project" / ".edged", neighbour):
        folder.mkdir(parents=True)
    shutil.copy(MAKEFILE, checkout)
    subprocess.run(["make", "clean"], cwd=checkout, check=True, capture_output=True)
    assert neighbour.exists()
    assert sorted(path.name for path in checkout.iterdir()) == ["Makefile", "project"]
    assert (checkout / "project" / ".edged").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="this machine has no make")
def test_the_demo_gets_its_folder_whole(tmp_path: Path) -> None:
    checkout = tmp_path / "my project"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(MAKEFILE, checkout)
    (checkout / "pyproject.toml").touch()
    (checkout / ".venv" / ".installed").touch()
    python = checkout / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf %s "$EDGED_DEMO_STATE"\n')
    python.chmod(0o755)
    command = ["make", "--no-print-directory", "demo"]
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key != "MFLAGS"
    }
    shown = subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True, text=True)
    assert shown.stdout == f"{checkout}/.edged"
