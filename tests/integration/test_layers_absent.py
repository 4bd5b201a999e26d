"""Everything but layer pipelines works without torch, and what needs it says what to install."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = """
import sys
for name in ("torch", "transformers", "gguf", "safetensors"):
    sys.modules[name] = None
{then}
"""
CONFIG = "[stages.generator]\nbackend = 'torch_pipeline'\noptions = { devices = ['cpu', 'cpu'] }\n"
ADVICE = "pip install 'edged[pipeline]'"


def without_torch(then: str) -> subprocess.CompletedProcess[str]:
    code = BLOCKED.format(then=then)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def edgectl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return without_torch(f"from edged.cli import main; sys.argv[1:] = {list(arguments)!r}; sys.exit(main())")


def test_import() -> None:
    done = without_torch(
        "import edged.daemon, edged.layers.planning.plan, edged.layers.report, edged.workers.loop\n"
        "import edged.cli.root"
    )
    assert done.returncode == 0, done.stderr


def test_devices_lists_it_as_missing() -> None:
    done = edgectl("devices", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert ADVICE in found["missing"]["torch_pipeline"]
    assert "torch_pipeline" not in {device["backend"] for device in found["devices"]}


@pytest.mark.parametrize(
    "command",
    [
        ("config", "check"),
        ("layers", "run", "--stages", "2", "--model", "random:llama:layers=2"),
        ("layers", "bench", "--stages", "2", "--synthetic", "1ms"),
    ],
    ids=["check", "run", "bench"],
)
def test_commands_that_need_it_name_the_extra(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "edged.toml").write_text(CONFIG)
    done = edgectl("--config", str(tmp_path / "edged.toml"), *command)
    assert done.returncode == 78, done.stdout + done.stderr
    assert ADVICE in done.stderr
    assert "Traceback" not in done.stderr


def test_the_default_needs_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "edged.toml").write_text("")
    done = edgectl("--config", str(tmp_path / "edged.toml"), "config", "check")
    assert done.returncode == 0, done.stderr
