"""Configuration files for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edged.config import places as config_places

HOME = {
    "XDG_RUNTIME_DIR": "/run/user/7",
    "XDG_STATE_HOME": "/home/x/state",
    "XDG_CONFIG_HOME": "/home/x/config",
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a configuration file."""

    def file(text: str | bytes, name: str = "edged.toml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return file


@pytest.fixture
def no_system_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the configuration and the daemon of this machine."""
    monkeypatch.setattr(config_places, "SYSTEM_FILE", tmp_path / "etc" / "edged.toml")
    monkeypatch.setattr(config_places, "SYSTEM_RUNTIME", tmp_path / "run")
